"""What a training starts from is loaded once, when it begins; a checkpoint needs none of it."""

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from lit_runs import kept
from torch import Tensor

from fpn.data.datamodule import CocoDataModule
from fpn.data.options import ImageOptions
from fpn.errors import InputError
from fpn.lit.cli import main
from fpn.lit.module import DetectionModule
from fpn.lit.run_folder import newest_of_runs
from fpn.lit.schedule import Schedule
from fpn.models.detectors import FasterRCNN
from fpn.models.necks import FeaturePyramid
from fpn.models.resnet import ResNet

RUNS = Path("runs/tiny")
WEIGHT = "layer2.0.conv1.weight"
SMALL = {"name": "resnet18", "norm": "batch", "width": 8}


@pytest.fixture
def weights(config: str) -> dict[str, Tensor]:
    """Of a bottom-up, as they lie in classifier.pth; the configuration names the file."""
    network = ResNet("resnet18", norm="batch", width=8)
    torch.save(network.state_dict(), "classifier.pth")
    content = yaml.safe_load(Path(config).read_text())
    content["model"]["detector"]["bottom_up"]["weights"] = "classifier.pth"
    Path(config).write_text(yaml.safe_dump(content))
    return network.state_dict()


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """Grows with every loading of a bottom-up's own weights."""
    seen: list[str | None] = []
    original = ResNet.load_weights

    def load(self: ResNet) -> None:
        seen.append(self.weights)
        original(self)

    monkeypatch.setattr(ResNet, "load_weights", load)
    return seen


def bottom_up(state: dict[str, Any]) -> Tensor:
    weight: Tensor = state[f"detector.bottom_up.{WEIGHT}"]
    return weight


def test_a_fit_loads_the_bottom_ups_weights_and_a_checkpoint_needs_no_file(
    config: str,
    weights: dict[str, Tensor],
    loads: list[str | None],
    monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
) -> None:
    monkeypatch.setattr(ResNet, "pixels", ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)))  # timm tells them of its own
    main(["fit", "--config", config, "--model.detector.bottom_up.frozen_stages", "5"])
    remedy = "--data.images.mean '[0.5, 0.5, 0.5]' --data.images.std '[0.25, 0.25, 0.25]'"
    assert any(str(one.message).endswith(remedy) for one in recwarn)
    assert loads == ["classifier.pth"]
    assert torch.equal(bottom_up(kept(RUNS / "version_0", "last")["state_dict"]), weights[WEIGHT])
    Path("classifier.pth").unlink()
    last = str(RUNS / "version_0/checkpoints/last.ckpt")
    more = ["--model.detector.bottom_up.frozen_stages", "5", "--model.schedule.steps", "6"]
    main(["fit", "--config", config, *more, "--ckpt_path", last])
    main(["test", "--ckpt_path", last])
    assert len(loads) == 1


def test_a_bottom_up_that_is_not_among_the_parts_has_its_own_weights(
    config: str,
    weights: dict[str, Tensor],
    loads: list[str | None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    main(["fit", "--config", config, "--seed_everything", "7"])
    last = RUNS / "version_0/checkpoints/last.ckpt"
    theirs = kept(RUNS / "version_0", "last")["state_dict"]
    given = ["--model.start_from", str(last), "--model.detector.bottom_up.frozen_stages", "5"]
    neck = "detector.neck.smooths.2.0.weight"
    for version, (parts, own) in enumerate((("[neck]", True), ("[neck, bottom_up]", False)), start=1):
        loads.clear()
        main(
            [
                "fit",
                "--config",
                config,
                *given,
                "--model.start_parts",
                parts,
                "--model.frozen_parts",
                "[neck]",
            ]
        )
        state = kept(RUNS / f"version_{version}", "last")["state_dict"]
        assert torch.equal(state[neck], theirs[neck])
        assert torch.equal(bottom_up(state), weights[WEIGHT] if own else bottom_up(theirs))
        assert len(loads) == own
    assert f"neck: weights of {last}; bottom_up, rpn, roi_head: new" in caplog.text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model.start_from", "absent.pth"], "checkpoint absent.pth does not exist"),
        (["--model.detector.bottom_up.weights", "absent.pth"], "checkpoint absent.pth does not exist"),
        (
            ["--model.start_from", "COCO_V1"],
            "https://download.pytorch.org/models/fasterrcnn_resnet50_fpn_coco-258fb6c6.pth could not be "
            "downloaded (no network); download that elsewhere and give the file",
        ),
        (
            ["--model.detector.bottom_up.weights", "IMAGENET1K_V1"],
            "https://download.pytorch.org/models/resnet18-f37072fd.pth could not be downloaded (no network); "
            "set model.detector.bottom_up.weights to a file, or to null",
        ),
    ],
)
def test_what_is_missing_is_told_before_data_are_read(
    words: list[str],
    told: str,
    config: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fail)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    for more, line in (([], "nowhere"), (words, told)):  # the data are missing too
        with pytest.raises(SystemExit) as caught:
            main(["fit", "--config", config, "--data.root", "nowhere", *more])
        assert caught.value.code == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"fpn: {line}")


def test_averages_begin_with_the_weights_that_are_loaded(config: str, weights: dict[str, Tensor]) -> None:
    """They are copied before: what is kept before the first step is the start."""
    average = [{"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging"}]
    fail = [{"class_path": f"{__name__}.Failing"}]
    with pytest.raises(SystemExit):
        main(["fit", "--config", config, f"--trainer.callbacks={json.dumps(average + fail)}"])
    checkpoint = kept(RUNS / "version_0", "last")
    for part in ("state_dict", "current_model_state"):
        assert torch.equal(bottom_up(checkpoint[part]), weights[WEIGHT])


class Failing(Callback):
    """Before the first step."""

    def on_train_batch_start(self, *_: object) -> None:
        raise KeyError


@pytest.mark.filterwarnings("ignore:Found .* in eval mode")
def test_plain_python_starts_from_them_too(
    shapes: Path, weights: dict[str, Tensor], loads: list[str | None]
) -> None:
    def module() -> DetectionModule:
        own = partial(ResNet, "resnet18", norm="batch", width=8, weights="classifier.pth", frozen_stages=5)
        detector = partial(FasterRCNN, bottom_up=own, neck=partial(FeaturePyramid, channels=8))
        return DetectionModule(10, detector, schedule=Schedule(2, (), reference_images=2))

    def trainer() -> Trainer:
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
        return Trainer(accelerator="cpu", max_epochs=-1, use_distributed_sampler=False, logger=False, **quiet)

    def data() -> CocoDataModule:
        return CocoDataModule(str(shapes), images=ImageOptions(96, 96), num_workers=0)

    first, again = module(), module()
    assert not torch.equal(bottom_up(first.state_dict()), weights[WEIGHT])
    running = trainer()
    running.fit(first, data())
    assert first.global_step == 2
    assert torch.equal(bottom_up(first.state_dict()), weights[WEIGHT])
    running.save_checkpoint("two.ckpt")
    running.test(first, data(), verbose=False)
    assert loads == ["classifier.pth"]
    Path("classifier.pth").unlink()
    trainer().fit(again, data(), ckpt_path="two.ckpt")
    assert torch.equal(bottom_up(again.state_dict()), weights[WEIGHT])
    assert len(loads) == 1


def test_the_newest_of_the_runs_is_none_of_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {**os.environ})
    for age, run in enumerate(("study/table1/c/seed_0/version_0", "fpn/version_1", "fpn/version_0")):
        file = tmp_path / run / "checkpoints/last.ckpt"
        file.parent.mkdir(parents=True)
        file.touch()
        os.utime(file, (1e9 - age, 1e9 - age))
    (tmp_path / "study/table1/c/seed_0/run.json").touch()
    newest = tmp_path / "fpn/version_1/checkpoints/last.ckpt"
    assert newest_of_runs("last", str(tmp_path), must_be=True) == newest
    # What a process of the same run finds later, which Lightning has started.
    os.utime(tmp_path / "fpn/version_0/checkpoints/last.ckpt")
    os.environ["LOCAL_RANK"] = "1"
    assert newest_of_runs("last", str(tmp_path), must_be=True) == newest
    del os.environ["LOCAL_RANK"]
    with pytest.raises(InputError, match=r"there is no best\.ckpt below"):
        newest_of_runs("best", str(tmp_path / "study"), must_be=True)
