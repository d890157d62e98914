"""A module, data or parts of a user's own, in Lightning's common ways."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BaseFinetuning
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import OneCycleLR

import fpn
from fpn.data.options import ImageOptions
from fpn.models.necks import FeaturePyramid
from fpn.models.postprocess import ProposalSelection

BOTTOM_UP = partial(fpn.ResNet, "resnet10", norm="batch", width=8, frozen_stages=0)
DETECTOR = partial(fpn.FasterRCNN, bottom_up=BOTTOM_UP, neck=partial(FeaturePyramid, channels=8))
SCHEDULE = fpn.Schedule(2, (), warmup_steps=0, reference_images=2)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fit(module: fpn.DetectionModule, data: fpn.CocoDataModule, **options: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    limits = {"max_steps": 2, "limit_val_batches": 0} | options
    trainer = Trainer(accelerator="cpu", use_distributed_sampler=False, logger=False, **quiet, **limits)
    trainer.fit(module, data)
    trainer.save_checkpoint("own.ckpt")
    return trainer


def data_of(shapes: Path, kind: Callable[..., Any] = fpn.CocoDataModule) -> fpn.CocoDataModule:
    data: fpn.CocoDataModule = kind(root=str(shapes), images=ImageOptions(64, 64), num_workers=0)
    return data


class Distilling(fpn.DetectionModule):
    """With a parameter, a loss and an option of its own, and Lightning's usual first line."""

    def __init__(self, *args: Any, weight: float = 1.0, **options: Any) -> None:
        super().__init__(*args, **options)
        self.save_hyperparameters()
        self.adapter = nn.Linear(1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        own = (self.adapter(torch.ones(1)) - 5).square().sum()
        return super().training_step(batch, batch_idx) + self.hparams["weight"] * own


class Saving(fpn.CocoDataModule):
    """Lightning's usual first line, in data."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.save_hyperparameters()


def test_a_module_with_parameters_of_its_own(shapes: Path) -> None:
    module = Distilling(10, DETECTOR, weight=0.5, schedule=SCHEDULE)
    before = module.adapter.bias.item()
    trainer = fit(module, data_of(shapes, Saving))
    assert module.adapter.bias.item() != before
    trained = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert trained == {id(p) for p in module.parameters() if p.requires_grad}
    again = Distilling.load_from_checkpoint("own.ckpt")
    assert again.hparams["weight"] == 0.5
    assert torch.equal(again.adapter.bias, module.adapter.bias)
    assert Saving.load_from_checkpoint("own.ckpt").image_settings.short_side == 64
    assert isinstance(fpn.load("own.ckpt").detector, fpn.FasterRCNN)


class Lean(fpn.DetectionModule):
    """Its own step and schedule, without the base class's."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return torch.stack([*self.detector.losses(batch).values()]).sum()

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=1e-3)
        scheduler = OneCycleLR(optimizer, max_lr=1e-2, total_steps=10)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def test_hooks_of_ones_own(shapes: Path) -> None:
    module = Lean(10, DETECTOR)
    trainer = fit(module, data_of(shapes))
    assert trainer.global_step == 2
    assert isinstance(trainer.lr_scheduler_configs[0].scheduler, OneCycleLR)


def test_a_loss_of_ones_own_that_is_not_finite_ends_the_fit(shapes: Path) -> None:
    class Broken(Lean):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * torch.nan

    with pytest.raises(Exception, match=r"loss = nan at step 0"):
        fit(Broken(10, DETECTOR), data_of(shapes))


class Thaw(BaseFinetuning):
    """Lightning's finetuning: the bottom-up is trained from the second epoch on."""

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.detector.bottom_up, train_bn=False)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.detector.bottom_up, optimizer, lr=1e-3)


def test_parameters_that_join_later_follow_the_schedule_from_there(shapes: Path) -> None:
    # 10 images in batches of 2 are 5 steps an epoch; the rate falls to a tenth after 7 of them.
    schedule = fpn.Schedule(10, (7,), warmup_steps=0, reference_images=2)
    module = fpn.DetectionModule(10, DETECTOR, partial(AdamW, lr=1e-2), schedule=schedule)
    first = module.detector.bottom_up.conv1.weight.clone()
    trainer = fit(module, data_of(shapes), max_steps=8, callbacks=[Thaw()])
    assert not torch.equal(first, module.detector.bottom_up.conv1.weight)
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == pytest.approx([1e-3, 1e-4])


def test_weights_that_are_loaded_stay_and_are_trained(shapes: Path) -> None:
    source = DETECTOR(10)
    torch.save(source.bottom_up.state_dict(), "published.pth")
    other = partial(
        fpn.FasterRCNN, bottom_up=partial(BOTTOM_UP, weights="published.pth"), neck=DETECTOR.keywords["neck"]
    )
    module = fpn.DetectionModule(10, other, partial(SGD, lr=0.0), schedule=SCHEDULE)
    mine = {name: value + 0.01 for name, value in module.state_dict().items() if value.is_floating_point()}
    module.load_state_dict(mine, strict=False)
    fit(module, data_of(shapes))
    weight = "detector.bottom_up.conv1.weight"
    assert torch.equal(module.state_dict()[weight], mine[weight])

    # Where only other parts were given, its own weights are loaded as ever.
    module = fpn.DetectionModule(10, other, partial(SGD, lr=0.0), schedule=SCHEDULE)
    module.load_state_dict({k: v for k, v in mine.items() if "bottom_up" not in k}, strict=False)
    fit(module, data_of(shapes))
    assert torch.equal(module.detector.bottom_up.conv1.weight, source.bottom_up.conv1.weight)

    # What `fpn.load` gives is in evaluation mode; a training is not.
    loaded = fpn.load("own.ckpt").detector
    assert not loaded.training
    before = loaded.bottom_up.bn1.running_mean.clone()
    fit(fpn.DetectionModule(10, loaded, schedule=SCHEDULE), data_of(shapes))
    assert not torch.equal(loaded.bottom_up.bn1.running_mean, before)


class Unhinted(fpn.DetectionModule):
    """Repeats arguments without their type hints."""

    def __init__(self, classes, detector=fpn.FasterRCNN, schedule=SCHEDULE, width=8):  # type: ignore[no-untyped-def]
        super().__init__(classes, detector, schedule=schedule)


def test_arguments_that_are_repeated_without_a_type_hint(shapes: Path) -> None:
    selection = ProposalSelection(30, 30, nms_iou=0.61)
    fit(Unhinted(10, partial(DETECTOR, testing_proposals=selection)), data_of(shapes))
    again = Unhinted.load_from_checkpoint("own.ckpt")
    assert again.detector.testing_proposals == selection
    assert again.schedule == SCHEDULE


class Starred(fpn.DetectionModule):
    """Names its first argument, and hands the others on."""

    def __init__(self, classes: int, *args: Any, **options: Any) -> None:
        super().__init__(classes, *args, **options)


class OwnStages(fpn.BottomUp):
    """Arguments of the base class's names, and another meaning; and numbers that are drawn in making it."""

    def __init__(self, channels=4, stages=4):  # type: ignore[no-untyped-def]
        rates = [rate.item() for rate in torch.linspace(0, 0.1, stages + 1)]
        made = {k: nn.Conv2d(3 if k == 1 else channels, channels, 3, 2, 1) for k in range(1, stages + 2)}
        super().__init__(made, dict.fromkeys(range(2, stages + 2), channels))
        self.rates = rates


def test_arguments_by_position_and_under_other_meanings(shapes: Path) -> None:
    fit(Starred(10, DETECTOR, partial(AdamW, lr=3e-3), schedule=SCHEDULE), data_of(shapes))
    again = Starred.load_from_checkpoint("own.ckpt")
    (made,) = again.optimizer([torch.nn.Parameter(torch.zeros(1))]).param_groups
    assert isinstance(again.optimizer([torch.nn.Parameter(torch.zeros(1))]), AdamW)
    assert (made["lr"], again.classes, again.schedule) == (3e-3, 10, SCHEDULE)

    own = partial(fpn.FasterRCNN, bottom_up=partial(OwnStages, 8), neck=DETECTOR.keywords["neck"])
    fit(fpn.DetectionModule(10, own, schedule=SCHEDULE), data_of(shapes))
    assert fpn.load("own.ckpt").detector.bottom_up.channels == {2: 8, 3: 8, 4: 8, 5: 8}
    module = fpn.DetectionModule(10, own, schedule=SCHEDULE)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    trainer = Trainer(accelerator="cpu", use_distributed_sampler=False, logger=False, max_steps=4, **quiet)
    trainer.fit(module, data_of(shapes), ckpt_path="own.ckpt")
    assert trainer.global_step == 4


def test_a_group_that_joins_in_a_warm_up_has_no_more_than_the_runs_rate() -> None:
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = SGD(weights[:1], lr=0.02)
    _, scheduler = fpn.Schedule(100, (90,), warmup_steps=50, reference_images=2).attach(optimizer, 2)
    optimizer.step()
    scheduler.step()
    optimizer.add_param_group({"params": weights[1:], "lr": 0.001})
    rates = []
    for _ in range(95):
        optimizer.step()
        scheduler.step()
        rates.append([group["lr"] for group in optimizer.param_groups])
    assert rates[60] == pytest.approx([0.02, 0.02])
    assert max(rate for _, rate in rates) == pytest.approx(0.02)
    assert rates[-1] == pytest.approx([0.002, 0.002])
    # After the warm-up a group has the rate that it comes with, whatever the first one's.
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": 0.03})
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[2]["lr"] == pytest.approx(0.03)


def test_a_schedule_that_no_checkpoint_tells_is_refused() -> None:
    class Other(fpn.Schedule):
        def factor(self, step: int) -> float:
            return 1.0

    with pytest.raises(
        fpn.InputError, match=r"Other: checkpoints tell no Schedule of your own.*configure_optim"
    ):
        fpn.DetectionModule(10, DETECTOR, schedule=Other())
