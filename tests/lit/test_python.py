"""Lightning's own ways in: a Trainer in a script, its checkpoints anywhere, README's ten lines."""

import copy
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lit_runs import rows, scores_of
from torch.optim import AdamW

import fpn
from fpn.data.options import ImageOptions
from fpn.described import class_path, plain
from fpn.lit.cli import main
from fpn.models.losses import GIoU, SmoothL1
from fpn.models.necks import FeaturePyramid

README = Path(__file__).resolve().parents[2] / "README.md"
BOTTOM_UP = partial(fpn.ResNet, "resnet18", norm="batch", width=8, frozen_stages=0)
NECK = partial(FeaturePyramid, channels=8)
DETECTOR = partial(fpn.FasterRCNN, bottom_up=BOTTOM_UP, neck=NECK, roi_box_loss=GIoU())


def data(shapes: Path) -> fpn.CocoDataModule:
    return fpn.CocoDataModule(str(shapes), images=ImageOptions(96, 96), num_workers=0)


def trainer() -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return Trainer(accelerator="cpu", max_epochs=-1, use_distributed_sampler=False, logger=False, **quiet)


def module(detector: Any, **options: Any) -> fpn.DetectionModule:
    return fpn.DetectionModule(10, detector, schedule=fpn.Schedule(2, (), reference_images=2), **options)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_readme(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = (
        one for one in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if "Trainer" in one
    )
    for long, short in (
        ('"datasets/coco"', f'"{shapes}", images=ImageOptions(96, 96), num_workers=0'),
        ('norm="batch"', 'norm="batch", width=8'),
        ("partial(fpn.FasterRCNN,", "partial(fpn.FasterRCNN, neck=NECK,"),
        ("length=0.1", "length=3e-6"),
        (" Trainer(", ' Trainer(accelerator="cpu", enable_progress_bar=False, logger=False, '),
    ):
        assert block.count(long) == 1
        block = block.replace(long, short)
    names: dict[str, Any] = {"NECK": NECK, "ImageOptions": ImageOptions}
    exec(block, names)
    assert names["module"].global_step == 2
    (found,) = names["predictor"]([torch.zeros(3, 60, 80, dtype=torch.uint8)])
    assert found.boxes.shape[1] == 4
    main(["test", "--ckpt_path", names["path"], "--trainer.accelerator", "cpu", "--trainer.logger", "false"])
    assert 0 <= scores_of(Path())["AP"] <= 1


@pytest.mark.parametrize(
    "detector",
    [
        pytest.param(DETECTOR, id="partial"),
        pytest.param(DETECTOR(10), id="made", marks=pytest.mark.long),
        pytest.param(lambda classes: DETECTOR(classes), id="function"),
    ],
)
def test_its_checkpoints_are_loaded_anywhere(detector: Callable[[int], Any], shapes: Path) -> None:
    running = trainer()
    trained = module(detector, optimizer=partial(AdamW, lr=1e-4), lr_factors={"rpn": 0.5})
    running.fit(trained, data(shapes))
    copy.deepcopy(trained)  # as what averages weights does where it is trained on
    running.save_checkpoint("two.ckpt")
    kept = torch.load("two.ckpt", weights_only=True)
    assert kept["hyper_parameters"]["lr_factors"] == {"rpn": 0.5}
    assert kept["datamodule_hyper_parameters"]["images"]["short_side"] == 96

    again = fpn.DetectionModule.load_from_checkpoint("two.ckpt")
    assert again.lr_factors == {"rpn": 0.5}
    assert isinstance(again.optimizer([torch.nn.Parameter(torch.zeros(1))]), AdamW)
    assert isinstance(again.detector.roi_box_loss, GIoU)
    for name, value in trained.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    # What is saved of it tells as much again.
    other = trainer()
    other.fit(again, fpn.CocoDataModule.load_from_checkpoint("two.ckpt"))
    other.save_checkpoint("four.ckpt")
    assert torch.load("four.ckpt", weights_only=True)["fpn"]["config"] == kept["fpn"]["config"]

    loaded = fpn.load("two.ckpt")
    image = torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8)
    (expected,) = fpn.Predictor(trained.detector, 96, 96, categories=loaded.categories)([image])
    (found,) = fpn.Predictor.of(loaded)([image])
    assert torch.allclose(found.boxes, expected.boxes)
    main(
        ["validate", "--ckpt_path", "four.ckpt", "--trainer.accelerator", "cpu", "--trainer.logger", "false"]
    )


def test_a_run_of_the_command_line_goes_on_in_python(config: str) -> None:
    main(["fit", "--config", config, "--model.detector.neck.channels", "12"])
    path = "runs/tiny/version_0/checkpoints/last.ckpt"
    again = fpn.DetectionModule.load_from_checkpoint(path, val_losses=False)
    assert again.detector.neck.channels == 12
    assert again.schedule.steps == 4
    assert not again.val_losses
    scores = trainer().validate(again, fpn.CocoDataModule.load_from_checkpoint(path), verbose=False)[0]
    logged = [row["val/AP"] for row in rows(Path("runs/tiny/version_0")) if row["val/AP"]]
    assert scores["val/AP"] == pytest.approx(float(logged[-1]), abs=1e-6)


def test_what_a_checkpoint_cannot_tell_has_to_be_given(shapes: Path) -> None:
    running = trainer()
    running.fit(
        module(
            lambda classes: fpn.FasterRCNN(classes, bottom_up=lambda: BOTTOM_UP(), neck=NECK),
            optimizer=lambda parameters: AdamW(parameters),
        ),
        data(shapes),
    )
    running.save_checkpoint("two.ckpt")
    with pytest.raises(fpn.InputError, match="does not tell its detector, which a function made"):
        fpn.load("two.ckpt")
    with pytest.raises(fpn.InputError, match=r"does not tell its optimizer, .*: give optimizer= here"):
        fpn.DetectionModule.load_from_checkpoint("two.ckpt", detector=DETECTOR)
    again = fpn.DetectionModule.load_from_checkpoint("two.ckpt", detector=DETECTOR, optimizer=AdamW)
    assert again.schedule.steps == 2


def test_other_categories_are_refused(shapes: Path, tmp_path: Path) -> None:
    running = trainer()
    running.fit(module(DETECTOR), data(shapes))
    running.save_checkpoint("two.ckpt")
    (other := tmp_path / "other").mkdir()
    for split in ("train", "val"):
        source = shapes / "annotations" / f"instances_{split}2017.json"
        content = json.loads(source.read_text())
        content["categories"][0]["name"] = "cat"
        (other / f"{split}.json").write_text(json.dumps(content))
    splits = {
        split: fpn.data.options.Split(str(shapes / f"{split}2017"), str(other / f"{split}.json"))
        for split in ("train", "val")
    }
    again = fpn.DetectionModule.load_from_checkpoint("two.ckpt")
    with pytest.raises(fpn.InputError, match=r"trained for other categories than the data has: .*'cat'"):
        trainer().validate(again, fpn.CocoDataModule(**splits, images=ImageOptions(96, 96), num_workers=0))


def test_plain_values() -> None:
    assert plain(partial(SmoothL1, 0.5)) == {
        "class_path": "fpn.models.losses.SmoothL1",
        "init_args": {"beta": 0.5},
    }
    assert plain(SmoothL1(beta=0.5)) == plain(partial(SmoothL1, 0.5))
    assert plain((1, Path("a/b"), None, {"k": True})) == [1, "a/b", None, {"k": True}]
    assert plain(fpn.Schedule(3, (2,)))["milestones"] == [2]
    assert class_path(AdamW) == "torch.optim.AdamW"
    for value in (lambda: None, object(), type("Local", (), {})):
        with pytest.raises(TypeError):
            plain(value)


class Narrow(fpn.DetectionModule):
    """As a user's, with arguments of its own."""

    def __init__(self, channels: int = 8) -> None:
        neck = partial(FeaturePyramid, channels=channels)
        detector = partial(fpn.FasterRCNN, bottom_up=BOTTOM_UP, neck=neck)
        super().__init__(10, detector, schedule=fpn.Schedule(2, (), reference_images=2))


def test_a_subclass_with_arguments_of_its_own(shapes: Path) -> None:
    running, trained = trainer(), Narrow(channels=12)
    running.fit(trained, fpn.CocoDataModule(np.str_(shapes), images=ImageOptions(96, 96), num_workers=0))
    running.save_checkpoint("two.ckpt")
    again = Narrow.load_from_checkpoint("two.ckpt", strict=True, weights_only=True, map_location="cpu")
    assert again.detector.neck.channels == fpn.load("two.ckpt").detector.neck.channels == 12


def test_the_number_of_classes_is_the_datas(shapes: Path) -> None:
    for classes in (9, 13):
        with pytest.raises(fpn.InputError, match=f"made for {classes} classes, and the data has 10"):
            trainer().fit(fpn.DetectionModule(classes, DETECTOR), data(shapes))
    with pytest.raises(fpn.InputError, match="made for 3 classes, and the module for 10"):
        module(DETECTOR(3))


class Marked(fpn.CocoDataModule):
    """As a user's, with an argument that no plain value tells."""

    def __init__(self, mark: Callable[[], int], **options: Any) -> None:
        super().__init__(**options)
        self.mark = mark()


def test_what_data_cannot_tell_has_to_be_given(shapes: Path) -> None:
    size = ImageOptions(96, 96)
    marked = Marked(lambda: 7, root=str(shapes), images=size, num_workers=0, batch_size=np.int64(2))
    running = trainer()
    running.fit(module(DETECTOR), marked)
    running.save_checkpoint("two.ckpt")
    with pytest.raises(fpn.InputError, match="does not tell mark of its data: give it here"):
        Marked.load_from_checkpoint("two.ckpt")
    again = Marked.load_from_checkpoint("two.ckpt", mark=lambda: 8, map_location="cpu")
    assert (again.mark, again.batch_size) == (8, 2)
