import argparse
import contextlib
import os
import pickle
import resource
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights, fasterrcnn_resnet50_fpn

from fpn import FasterRCNN, InputError, load, load_detectron2, load_torchvision
from fpn.checkpoints import save_whole, start_from
from fpn.models.postprocess import DetectionSelection
from fpn.models.resnet import ResNet
from fpn.weights import _PlainUnpickler, as_tensors, check_weights, read_checkpoint, read_pickle


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("exploded"),)  # type: ignore[return-value]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_that_wants_to_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": torch.zeros(1), "more": Bomb()}, "bomb.pth")
    Path("bomb.pkl").write_bytes(pickle.dumps({"weight": Bomb()}))
    for name in ("bomb.pth", "bomb.pkl"):
        for read in (read_checkpoint, read_pickle, load, load_torchvision, load_detectron2):
            with pytest.raises(InputError, match=rf"{name}"):
                read(name)
    assert not Path("exploded").exists()


def test_a_checkpoint_takes_its_name_once_it_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "folder" / "whole.ckpt"
    save_whole({"step": 1}, path)
    before = path.read_bytes()
    synced = []

    def fsync(descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        synced.append((path.read_bytes() == before, size))

    monkeypatch.setattr(os, "fsync", fsync)
    save_whole({"step": torch.full((1000,), 2.0)}, path)
    assert synced == [(True, path.stat().st_size)]
    assert read_checkpoint(path)["step"].tolist() == [2.0] * 1000
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("limit", [0, 100, 10_000])
def test_a_full_disk_leaves_the_checkpoint_that_was_there(limit: int, tmp_path: Path) -> None:
    path = tmp_path / "whole.ckpt"
    save_whole({"step": 1}, path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            save_whole({"step": torch.zeros(10_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(path)
    assert read_checkpoint(path) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    good = tmp_path / "good.pth"
    torch.save({"weight": torch.zeros(1000)}, good)
    cut = tmp_path / "cut.pth"
    cut.write_bytes(good.read_bytes()[:500])
    text = tmp_path / "text.pth"
    text.write_text("not a checkpoint")
    for path in (cut, text, tmp_path / "absent.pth"):
        with pytest.raises(InputError) as caught:
            read_checkpoint(path)
        assert path.name in str(caught.value)
        assert "\n" not in str(caught.value)
    listed = tmp_path / "list.pth"
    torch.save([1, 2], listed)
    with pytest.raises(InputError, match="holds a list"):
        read_checkpoint(listed)
    nested = tmp_path / "nested.pth"
    torch.save({"state": {"weight": torch.zeros(1)}}, nested)
    with pytest.raises(InputError, match="'state' is not a tensor"):
        as_tensors(read_checkpoint(nested), "nested.pth")
    with pytest.raises(InputError, match="neither a checkpoint of this project nor"):
        load(good)


def test_first_misfit_is_named() -> None:
    wanted = {"a": torch.zeros(2), "b": torch.zeros(3)}
    check_weights(wanted, wanted, "it")
    with pytest.raises(InputError, match="it does not fit this detector: it has no b"):
        check_weights(wanted, {"a": torch.zeros(2)}, "it")
    with pytest.raises(InputError, match="which has no c"):
        check_weights(wanted, {**wanted, "c": torch.zeros(1)}, "it")
    with pytest.raises(InputError, match=r"b has a shape of \(4,\), not \(3,\)"):
        check_weights(wanted, {"a": torch.zeros(2), "b": torch.zeros(4)}, "it")


def test_other_models_of_torchvision_are_refused() -> None:
    from torchvision.models import resnet18
    from torchvision.models.detection import retinanet_resnet50_fpn

    for make in (partial(resnet18), partial(retinanet_resnet50_fpn, weights_backbone=None)):
        with pytest.raises(InputError, match="no Faster R-CNN of torchvision's"):
            load_torchvision(make(weights=None).state_dict())


def test_a_file_of_nobody_known_is_named(tmp_path: Path) -> None:
    file = tmp_path / "R-50.pkl"
    file.write_bytes(pickle.dumps({"blobs": {"conv1_w": np.zeros((64, 3, 7, 7), np.float32)}}))
    with torch.device("meta"):
        detector = FasterRCNN(3, bottom_up=partial(ResNet, "resnet18"))
    with pytest.raises(
        InputError, match=r"R-50\.pkl is neither .* go to model\.detector\.bottom_up\.weights"
    ):
        start_from(detector, file)


def test_one_word_for_each_setting(tmp_path: Path) -> None:
    with torch.device("meta"):
        state = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=2).state_dict()
    with torch.device("meta"):
        bottom_up = load_torchvision(state, norm_eps=0.0, bottom_up=partial(ResNet, "resnet50")).bottom_up
        assert bottom_up.norm_eps == 0
        selection = DetectionSelection(score_threshold=0.3, max_detections=7)
        asked = load_torchvision(state, detections=selection).detections
        both = load_torchvision(state, score_threshold=0.6, detections=selection).detections
        neither = load_torchvision(state).detections
    assert asked == selection
    assert (both.score_threshold, both.max_detections) == (0.6, 7)
    assert neither.score_threshold == 0.05


def test_a_pickle_leaves_nothing_behind(tmp_path: Path) -> None:
    """Opcode by opcode: BUILD on what a pickle names sets attributes of it."""
    names = ((b"numpy", b"ndarray"), (b"numpy", b"dtype"), (b"_codecs", b"encode"))
    before = {key: dict(vars(made)) for key, made in _PlainUnpickler.known.items()}
    for module, name in names:
        file = tmp_path / "odd.pkl"
        file.write_bytes(b"\x80\x02}U\x01wc" + module + b"\n" + name + b"\n}U\x04evilK\x01sbs.")
        with contextlib.suppress(InputError):
            read_pickle(file)
    assert {key: dict(vars(made)) for key, made in _PlainUnpickler.known.items()} == before


def test_resnet_weights_file_is_read_safely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.weight": Bomb()}, "bomb.pth")
    with pytest.raises(InputError, match="refused"):
        ResNet("resnet18", weights="bomb.pth").load_weights()
    assert not Path("exploded").exists()


def test_what_a_training_reference_writes_beside_the_weights_is_read(tmp_path: Path) -> None:
    file = tmp_path / "model_25.pth"
    torch.save({"model": {"a": torch.zeros(1)}, "args": argparse.Namespace(lr=0.02), "epoch": 25}, file)
    assert read_checkpoint(file)["epoch"] == 25
    torch.save({"model": {}, "path": Path("x")}, file)
    with pytest.raises(InputError, match="it names pathlib") as caught:
        read_checkpoint(file)
    assert "\x1b" not in str(caught.value)


def test_a_name_of_another_detector_is_no_name_of_this_one() -> None:
    for name in ("RetinaNet_ResNet50_FPN_Weights.COCO_V1", "FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V2"):
        with pytest.raises(InputError, match="does not exist"):
            load_torchvision(name)


@pytest.mark.parametrize("error", [RuntimeError("invalid hash"), EOFError(), pickle.UnpicklingError("x")])
def test_a_damaged_download_is_named(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(self: object, **options: object) -> None:
        assert options["weights_only"] is True
        raise error

    monkeypatch.setattr(FasterRCNN_ResNet50_FPN_Weights, "get_state_dict", fetch)
    with pytest.raises(InputError, match=r"delete .*fasterrcnn_resnet50_fpn_coco-258fb6c6\.pth"):
        load_torchvision("COCO_V1")
