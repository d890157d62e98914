import itertools
from functools import partial
from typing import Any

import pytest
import torch

from fpn.errors import InputError
from fpn.models.detectors import FasterRCNN, ProposalNetwork
from fpn.models.necks import FeaturePyramid, SingleLevel
from fpn.models.resnet import ResNet
from fpn.models.roi_head import RoIHead, TwoFCHead
from fpn.models.rpn import RegionProposalNetwork
from fpn.types import Batch, Targets

SIZES = {2: [8.0], 3: [16.0], 4: [32.0], 5: [64.0], 6: [128.0]}


def small(kind: type[ProposalNetwork] = FasterRCNN, **arguments: Any) -> ProposalNetwork:
    parts: dict[str, Any] = {
        "bottom_up": partial(ResNet, "resnet18", norm="group", width=8),
        "neck": partial(FeaturePyramid, channels=8),
        "rpn": partial(RegionProposalNetwork, sizes=SIZES),
    }
    if kind is FasterRCNN:
        parts["roi_head"] = partial(RoIHead, canonical_size=56, head=partial(TwoFCHead, hidden=16))
    return kind(3, **(parts | arguments))


def targets(number: int, crowds: int = 0) -> Targets:
    corner = torch.rand(number, 2) * 60
    boxes = torch.cat((corner, corner + 4 + torch.rand(number, 2) * 50), dim=1)
    return Targets(
        boxes, torch.randint(1, 4, (number,)), torch.tensor([[0.0, 0, 30, 30]] * crowds).reshape(-1, 4)
    )


def batch(truth: list[Targets] | None, number: int = 2) -> Batch:
    n = number if truth is None else len(truth)
    sizes = [(96, 128)] * n
    return Batch(torch.randn(n, 3, 96, 128), sizes, [(48, 64)] * n, list(range(n)), truth)


VARIANTS = [
    {"neck": partial(FeaturePyramid, channels=8, lateral=lateral, top_down=top_down, smooth=smooth)}
    for lateral, top_down, smooth in itertools.product([True, False], repeat=3)
    if lateral or top_down
] + [
    {"neck": partial(FeaturePyramid, channels=8, nonlinearity=True)},
    {"rpn": partial(RegionProposalNetwork, sizes=SIZES, shared=False)},
    {"neck": partial(SingleLevel, level=4), "rpn": partial(RegionProposalNetwork, sizes={4: [8.0, 32.0]})},
]


@pytest.mark.parametrize("kind", [ProposalNetwork, FasterRCNN])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("truth", ["some", "one image empty", "none", "crowds only"])
def test_every_parameter_has_a_gradient_on_every_step(
    kind: type[ProposalNetwork], variant: Any, truth: str
) -> None:
    detector = small(kind, **variant)
    cases = {
        "some": [targets(3), targets(1)],
        "one image empty": [targets(0), targets(2)],
        "none": [targets(0), targets(0)],
        "crowds only": [targets(0, 1), targets(0, 2)],
    }
    losses = detector.losses(batch(cases[truth]))
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    without = [name for name, p in detector.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    assert all(torch.isfinite(p.grad).all() for p in detector.parameters() if p.grad is not None)


def test_unshared_roi_heads_have_gradients_too() -> None:
    detector = small(roi_head=partial(RoIHead, shared=False, head=partial(TwoFCHead, hidden=16)))
    sum(detector.losses(batch([targets(1), targets(0)])).values()).backward()
    assert all(p.grad is not None for p in detector.parameters())


def test_losses_are_named_and_a_generator_fixes_them() -> None:
    detector = small().train()
    data = batch([targets(4), targets(2)])
    one, other = (detector.losses(data, torch.Generator().manual_seed(5)) for _ in range(2))
    assert list(one) == ["rpn_objectness", "rpn_box", "roi_class", "roi_box"]
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert list(small(ProposalNetwork).losses(data)) == ["rpn_objectness", "rpn_box"]


def test_results_do_not_depend_on_neighbours() -> None:
    detector = small().eval()
    data = batch(None, 3)
    others = torch.cat((data.images[:1], 50 * torch.randn(2, 3, 96, 128)))
    with torch.no_grad():
        one, other = detector(data), detector(data._replace(images=others))
    assert one.detections is not None
    assert other.detections is not None
    for a, b in ((one.proposals[0], other.proposals[0]), (one.detections[0], other.detections[0])):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_results_are_in_original_pixels_best_first() -> None:
    detector = small().eval()
    with torch.no_grad():
        found = detector(batch(None))
    assert found.detections is not None
    for boxes, scores, labels in found.proposals + found.detections:
        assert len(boxes) == len(scores) == len(labels) > 0
        assert (scores.diff() <= 0).all()
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([64, 48, 64, 48])).all()
        assert (boxes[:, 2:] > 40).any()  # not still in pixels of some other size


def test_a_proposal_network_detects_its_proposals() -> None:
    detector = small(ProposalNetwork).eval()
    data = batch(None, 1)
    with torch.no_grad():
        assert detector(data).detections is None
        found = detector.detect(data)[0]
    assert len(found.boxes) > 0
    assert set(found.labels.tolist()) == {1}


@pytest.mark.parametrize("size", [(1, 1), (31, 33), (97, 65)])
def test_odd_and_tiny_images(size: tuple[int, int]) -> None:
    detector = small()
    padded = tuple(-(-side // 32) * 32 for side in size)
    box = torch.tensor([[0.0, 0.0, size[1], size[0]]])
    truth = [Targets(box, torch.tensor([1]), torch.zeros(0, 4))]
    data = Batch(torch.randn(1, 3, *padded), [size], [size], [0], truth)
    assert torch.isfinite(sum(detector.losses(data).values()))
    assert len(detector.eval().detect(data)) == 1


def test_levels_that_no_head_reads_are_refused() -> None:
    with pytest.raises(InputError, match="no head reads level 2"):
        small(ProposalNetwork, rpn=partial(RegionProposalNetwork, sizes={3: [16.0], 4: [32.0], 5: [64.0]}))
    only_p6 = partial(RegionProposalNetwork, sizes={6: [128.0]})
    with pytest.raises(InputError, match="but the neck gives"):
        small(rpn=only_p6)
    small(rpn=partial(RegionProposalNetwork, sizes={3: [16.0], 4: [32.0], 5: [64.0]}))


def test_no_ground_truth_to_learn_from() -> None:
    with pytest.raises(InputError, match="no ground truth"):
        small().losses(batch(None))


def test_bfloat16_network_keeps_boxes_in_float32() -> None:
    detector = small()
    data = batch([targets(3), targets(1)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = detector.losses(data)
        found = detector.eval().detect(data)
    assert all(torch.isfinite(loss) and loss.dtype == torch.float32 for loss in losses.values())
    assert found[0].boxes.dtype == torch.float32
