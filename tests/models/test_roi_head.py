from copy import deepcopy
from functools import partial
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign, roi_pool

from benchmarks.timing import detector_of
from fpn.errors import InputError
from fpn.models.bottom_up import Stages
from fpn.models.necks import FeaturePyramid
from fpn.models.norms import FrozenBatchNorm
from fpn.models.roi_head import FourConvOneFC, HeadInput, RoIHead
from fpn.types import RoIs

STAGES = Stages(channels=0)
CHANNELS = {2: 4, 3: 4, 4: 4, 5: 4}


def pyramid() -> dict[int, Tensor]:
    return {k: torch.randn(2, 8, 512 // 2**k, 512 // 2**k) for k in range(2, 6)}


def rois(number: int) -> RoIs:
    centre, size = torch.rand(number, 2) * 512, 2 ** (torch.rand(number, 2) * 8 + 1)
    boxes = torch.cat((centre - size / 2, centre + size / 2), dim=1).clamp(0, 512)
    return RoIs(boxes, torch.arange(number) % 2)


def test_is_torchvisions() -> None:
    ours = RoIHead(FeaturePyramid(CHANNELS, 8), 5)
    pool = MultiScaleRoIAlign(["2", "3", "4", "5"], 7, 2)
    head, predictor = TwoMLPHead(8 * 49, 1024), FastRCNNPredictor(1024, 6)
    mine = ours.head["shared"]
    head.fc6.load_state_dict(mine.fc6.state_dict())
    head.fc7.load_state_dict(mine.fc7.state_dict())
    predictor.cls_score.load_state_dict(mine.scores.state_dict())
    predictor.bbox_pred.load_state_dict(mine.deltas.state_dict())
    p, r = pyramid(), rois(60)
    # Inverted in one direction, which torchvision pools as zeros, and in both; a point.
    r.boxes[:3] = torch.tensor([[300.0, 50, 100, 90], [80, 300, 120, 100], [400, 0, 420, -10]])
    r.boxes[3:5] = torch.tensor([[200.0, 220, 80, 90], [77, 77, 77, 77]])
    r = RoIs(torch.cat((r.boxes[r.image == 0], r.boxes[r.image == 1])), r.image.sort().values)
    boxes = [r.boxes[r.image == n] for n in (0, 1)]
    pooled = pool({str(k): x for k, x in p.items()}, boxes, [(512, 512)] * 2)
    expected_scores, expected_deltas = predictor(head(pooled))
    scores, deltas = ours(p, r)
    torch.testing.assert_close(scores, expected_scores, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(deltas.flatten(1), expected_deltas, atol=1e-6, rtol=1e-5)


def test_unshared_heads_with_the_same_weights_say_the_same() -> None:
    neck = FeaturePyramid(CHANNELS, 8)
    shared, unshared = RoIHead(neck, 5), RoIHead(neck, 5, shared=False)
    for head in unshared.head.values():
        head.load_state_dict(shared.head["shared"].state_dict())
    p, r = pyramid(), rois(50)
    for one, other in zip(shared(p, r), unshared(p, r), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("number", [0, 1])
def test_levels_without_rois_still_have_gradients(shared: bool, number: int) -> None:
    head = RoIHead(FeaturePyramid(CHANNELS, 8), 5, shared=shared)
    p = {k: x.requires_grad_() for k, x in pyramid().items()}
    scores, deltas = head(p, rois(number))
    assert (scores.shape, deltas.shape) == ((number, 6), (number, 6, 4))
    (scores.sum() + deltas.sum()).backward()
    assert all(q.grad is not None and torch.isfinite(q.grad).all() for q in head.parameters())
    assert all(x.grad is not None for x in p.values())


@pytest.mark.parametrize("pooling", ["align", "pool"])
def test_an_inverted_roi_is_pooled_as_zeros(pooling: Literal["align", "pool"]) -> None:
    head = RoIHead(FeaturePyramid(CHANNELS, 8), 5, pooling=pooling)
    corners = [[300.0, 50, 100, 90], [80, 300, 120, 100], [torch.nan, 2, 50, 60]]  # the last as well
    inverted = RoIs(torch.tensor(corners), torch.tensor([0, 1, 1]))
    for given, expected in zip(
        head(pyramid(), inverted), head.head["shared"](torch.zeros(3, 8, 7, 7)), strict=True
    ):
        assert torch.equal(given, expected)


def test_roi_pool_and_chosen_levels() -> None:
    head = RoIHead(FeaturePyramid(CHANNELS, 8), 5, levels=[4], pooling="pool")
    p, r = pyramid(), rois(9)
    pooled = roi_pool(p[4], torch.cat((r.image[:, None].float(), r.boxes), dim=1), 7, 1 / 16)
    expected = head.head["shared"](pooled)
    for got, want in zip(head(p, r), expected, strict=True):
        torch.testing.assert_close(got, want)


def test_mistakes_are_named() -> None:
    neck = FeaturePyramid(CHANNELS, 8)
    with pytest.raises(InputError, match=r"\[5, 6\] are not all among"):
        RoIHead(neck, 5, levels=[5, 6])
    with pytest.raises(InputError, match="leave out a level"):
        RoIHead(neck, 5, levels=[2, 4])


def test_norms_of_all_processes_are_waited_for_also_without_rois(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others would wait for a process that has no RoIs; alone, nothing could be averaged."""
    build = partial(FourConvOneFC, norm="batch", channels=8, hidden=16)
    alone = build(HeadInput(8, 7, 3, STAGES)).train()
    shared = nn.SyncBatchNorm.convert_sync_batchnorm(deepcopy(alone))
    passed = []

    def forward(norm: nn.SyncBatchNorm, x: Tensor) -> Tensor:
        passed.append(norm)
        return x

    monkeypatch.setattr(nn.SyncBatchNorm, "forward", forward)
    assert [part.shape for part in shared(torch.zeros(0, 8, 7, 7))] == [(0, 4), (0, 4, 4)]
    assert len(passed) == 4
    assert [part.shape for part in alone(torch.zeros(0, 8, 7, 7))] == [(0, 4), (0, 4, 4)]
    assert [part.shape for part in shared.eval()(torch.zeros(0, 8, 7, 7))] == [(0, 4), (0, 4, 4)]
    assert len(passed) == 4


def test_the_recipe_shares_every_norm() -> None:
    """Lightning converts what is a BatchNorm of PyTorch's; none is left out as frozen or of another kind."""
    with torch.device("meta"):
        detector = detector_of("base", "recipes/sync_batch_norm")
    norms = [type(module) for module in nn.SyncBatchNorm.convert_sync_batchnorm(detector).modules()]
    assert norms.count(nn.SyncBatchNorm) == 53 + 8  # ResNet-50's, and two of each level
    assert not any(issubclass(norm, FrozenBatchNorm | nn.BatchNorm2d) for norm in norms)
