"""SyncBatchNorm in place of BatchNorms: the network computes what it did, and what is frozen stays so."""

from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from fpn.errors import InputError
from fpn.lightning_private import synchronise_by
from fpn.lit.sync_norms import SyncNorms
from fpn.models.detectors import FasterRCNN
from fpn.models.necks import SingleLevel
from fpn.models.resnet import ResNet
from fpn.models.roi_head import Conv5Head, RoIHead
from fpn.models.rpn import RegionProposalNetwork
from fpn.models.timm_bottom_up import TimmBottomUp


def synchronised(module: nn.Module) -> int:
    return sum(isinstance(norm, nn.SyncBatchNorm) for norm in module.modules())


def maps(network: Any, images: Tensor) -> dict[int, Tensor]:
    with torch.no_grad():
        found: dict[int, Tensor] = network.eval()(images)
    return found


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "resnet18"])
def test_timms_norms_keep_their_activation(name: str) -> None:
    pytest.importorskip("timm")
    network, images = TimmBottomUp(name, norm="live"), torch.rand(1, 3, 64, 64)
    before = maps(network, images)
    keys, norms = list(network.state_dict()), sum(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    sync = SyncNorms()
    sync.apply(network)
    assert synchronised(network) == norms > 0
    during = maps(network, images)
    with torch.no_grad():
        next(norm for norm in network.modules() if isinstance(norm, nn.SyncBatchNorm)).running_mean += 0.5
    learned = maps(network, images)
    sync.revert(network)
    assert synchronised(network) == 0
    assert list(network.state_dict()) == keys
    after = maps(network, images)
    for level, expected in before.items():
        torch.testing.assert_close(during[level], expected)
        torch.testing.assert_close(after[level], learned[level])
        assert not torch.equal(learned[level], expected)


def test_frozen_norms_stay() -> None:
    """Those of conv5 too, which a head has taken over: they keep their statistics in training."""
    pytest.importorskip("timm")
    detector = FasterRCNN(
        2,
        bottom_up=partial(TimmBottomUp, "resnet18"),
        neck=partial(SingleLevel, level=4),
        rpn=partial(RegionProposalNetwork, sizes={4: [64]}),
        roi_head=partial(RoIHead, head=Conv5Head),
    )
    SyncNorms().apply(detector)
    detector.train()
    assert synchronised(detector) == 0
    assert not any(norm.training for norm in detector.modules() if isinstance(norm, nn.BatchNorm2d))


def test_frozen_stages_stay_and_the_others_learn_together() -> None:
    network = ResNet("resnet18", norm="batch", width=8, frozen_stages=2)
    SyncNorms().apply(network)
    assert synchronised(network.get_submodule("layer1")) == 0
    assert synchronised(network.get_submodule("layer2")) == 5


def test_a_norm_that_does_more_is_refused() -> None:
    class Leaky(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).relu()

    with pytest.raises(InputError, match="does not do what Leaky does"):
        SyncNorms().apply(nn.Sequential(Leaky(3)))


def test_a_trainer_puts_in_these_where_it_is_asked_for_any() -> None:
    sync = SyncNorms()
    for asked in (True, False):
        options: dict[str, Any] = {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "logger": False}
        trainer = Trainer(**options, sync_batchnorm=asked)
        synchronise_by(trainer, sync)
        strategy: Any = trainer.strategy
        assert (strategy._layer_sync is sync) is asked
