"""The recipes of data and schedule by the real command line, and what checkpoints tell of them."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lit_runs import kept, rows
from torchvision.transforms import v2

import fpn
from fpn.data.options import ImageOptions
from fpn.data.samplers import Pick
from fpn.described import remade
from fpn.lit.cli import main
from fpn.models.necks import FeaturePyramid

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RUNS = Path("runs/tiny")
NO_VALIDATION = ("--trainer.limit_val_batches", "0", "--trainer.num_sanity_val_steps", "0")
NAMES = ("multi_scale", "large_scale_jitter", "repeat_factor_sampling", "cosine", "ema", "adamw")


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_ten_lines_at_most_under_a_head_with_its_command(name: str) -> None:
    lines = (CONFIGS / "recipes" / f"{name}.yaml").read_text().splitlines()
    head = [line for line in lines if line.startswith("#")]
    assert lines[: len(head)] == head
    assert len(lines) - len(head) <= 10
    assert head[-1] == f"#   fpn fit --config configs/base.yaml --config configs/recipes/{name}.yaml"


@pytest.mark.parametrize(
    "names", [("large_scale_jitter",), [one for one in NAMES if one != "large_scale_jitter"]], ids=str
)
def test_recipes_take_a_step_on_top_of_a_row_and_of_each_other(names: list[str], config: str) -> None:
    recipes = [word for name in names for word in ("--config", f"recipes/{name}")]
    main(
        [
            "fit",
            "--config",
            config,
            "--config",
            "table1/d",
            *recipes,
            "--trainer.max_steps",
            "1",
            *NO_VALIDATION,
        ]
    )
    checkpoint = kept(RUNS / "version_0", "last")
    assert checkpoint["global_step"] == 1
    assert not checkpoint["fpn"]["untold_of_data"]
    told = checkpoint["fpn"]["config"]
    model, data = told["model"], told["data"]["init_args"]
    assert not model["detector"]["init_args"]["neck"]["init_args"]["top_down"]
    again = fpn.CocoDataModule.load_from_checkpoint(RUNS / "version_0/checkpoints/last.ckpt")
    if len(names) > 1:
        assert (data["images"]["train_scales"][0], data["repeat_threshold"]) == (0.8, 0.001)
        assert model["schedule"]["cosine"]
        assert model["optimizer"]["class_path"] == "torch.optim.AdamW"
        assert "current_model_state" in checkpoint
        return
    again.setup("fit")
    dataset = again._datasets["train"]
    samples = [dataset[Pick(0, seed)] for seed in range(12)]
    assert {sample.size for sample in samples} == {(1024, 1024)}
    # By how much the picture fills the square: what is added is of the mean colour, to half a grey level.
    filled = [float((sample.image.abs().amax(dim=0) > 0.02).float().mean()) for sample in samples]
    assert min(filled) < 0.4 < max(filled)


def test_an_augmented_run_goes_on_bit_for_bit(config: str) -> None:
    changes = ("RandomIoUCrop", "RandomPhotometricDistort")
    augment = json.dumps([{"class_path": f"torchvision.transforms.v2.{name}"} for name in changes])
    schedule = json.dumps({"steps": 8, "milestones": [7], "warmup_steps": 2, "reference_images": 2})
    given = ["fit", "--config", config, "--model.schedule", schedule, *NO_VALIDATION]
    augmented = [*given, "--data.images.augment", augment, "--data.repeat_threshold", "0.6"]
    main([*augmented, "--data.num_workers", "1"])
    main([*augmented, "--trainer.max_steps", "3"])
    # The checkpoint tells how its images were augmented, and repeated.
    main([*given, "--ckpt_path", str(RUNS / "version_1/checkpoints/last.ckpt")])
    whole, begun, rest = (
        [row for row in rows(RUNS / f"version_{number}") if row["train/rpn_box"]] for number in range(3)
    )
    assert begun + rest == whole
    assert len(whole) == 8
    one, other = (kept(RUNS / f"version_{number}", "last")["state_dict"] for number in (0, 2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_data_made_in_python_is_told_as_far_as_it_can_be(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)

    def data(change: Any) -> fpn.CocoDataModule:
        return fpn.CocoDataModule(str(shapes), images=ImageOptions(80, 80, augment=[change]), num_workers=0)

    told = remade(fpn.CocoDataModule, data(partial(v2.ColorJitter, 0.4)).made_of, "a checkpoint")
    assert repr(told["images"].augment) == repr([v2.ColorJitter(0.4)])
    bottom_up = partial(fpn.ResNet, "resnet18", norm="batch", width=8, frozen_stages=0)
    detector = partial(fpn.FasterRCNN, bottom_up=bottom_up, neck=partial(FeaturePyramid, channels=8))
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = Trainer(
        accelerator="cpu", max_steps=1, limit_val_batches=0, use_distributed_sampler=False, **quiet
    )
    trainer.fit(fpn.DetectionModule(10, detector), data(v2.ColorJitter(0.4)))
    trainer.save_checkpoint("of.ckpt")
    with pytest.raises(fpn.InputError, match=r"does not tell images\.augment of its data: give it here"):
        fpn.CocoDataModule.load_from_checkpoint("of.ckpt")
    given = ImageOptions(80, 80)
    assert fpn.CocoDataModule.load_from_checkpoint("of.ckpt", images=given)._images is given
    # It is tested at the size that it was trained at, and one that goes on is told what is missing.
    quiet_words = ["--ckpt_path", "of.ckpt", "--trainer.accelerator", "cpu", "--trainer.logger", "false"]
    main(["test", *quiet_words, "--trainer.limit_test_batches", "1"])
    assert (
        torch.load("of.ckpt", weights_only=True)["fpn"]["config"]["data"]["init_args"]["images"]["max_side"]
        == 80
    )
    with pytest.warns(UserWarning, match=r"does not tell images\.augment of its data: see that"):
        main(["fit", *quiet_words, "--trainer.max_steps", "2", *NO_VALIDATION])


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("torchvision.transforms.ColorJitter", "torchvision.transforms.ColorJitter is no Transform"),
        ("torchvision.transforms.v2.Jitter", "there is no torchvision.transforms.v2.Jitter"),
        ("torchvision.transforms.v2.Grayscale", "Grayscale gives an image of shape (1, "),
        ("absent.Jitter", "there is no module absent, here or installed"),
    ],
)
def test_a_bad_transform_ends_in_one_line(
    name: str, line: str, config: str, capfd: pytest.CaptureFixture[str]
) -> None:
    given = [f"--data.images.augment+={name}", "--data.num_workers", "1"]
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--config", config, *given, *NO_VALIDATION])
    assert caught.value.code == 2
    (said,) = (one for one in capfd.readouterr().err.splitlines() if one.startswith("fpn: "))
    assert said.startswith(f"fpn: data.images.augment: {line}")
