import itertools
from functools import partial
from typing import Any

import pytest
import torch
from torchvision.ops import nms

from fpn.errors import InputError
from fpn.models.detectors import Detector, FasterRCNN, FastRCNN, ProposalNetwork
from fpn.models.necks import FeaturePyramid, SingleLevel
from fpn.models.resnet import ResNet
from fpn.models.roi_head import Conv5Head, RoIHead, TwoFCHead
from fpn.models.rpn import RegionProposalNetwork
from fpn.models.targets import RoISampling
from fpn.types import Batch, Detections, Inference, Targets

SIZES = {2: [8.0], 3: [16.0], 4: [32.0], 5: [64.0], 6: [128.0]}


def small(kind: type[Detector] = FasterRCNN, **arguments: Any) -> Any:
    parts: dict[str, Any] = {
        "bottom_up": partial(ResNet, "resnet18", norm="group", width=8),
        "neck": partial(FeaturePyramid, channels=8),
    }
    if kind is not FastRCNN:
        parts["rpn"] = partial(RegionProposalNetwork, sizes=SIZES)
    if kind is not ProposalNetwork:
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


@pytest.mark.parametrize("kind", [ProposalNetwork, FasterRCNN, FastRCNN])
@pytest.mark.parametrize("bad", [[5.0, 5, 5, 9], [5, 9, 8, 4], [5, 5, torch.inf, 9], [torch.nan, 5, 8, 9]])
def test_a_degenerate_true_box_is_named(kind: type[Detector], bad: list[float]) -> None:
    """torchvision's detectors refuse those without area too; a loss of NaN would tell nothing."""
    truth = targets(3)
    truth.boxes[1] = torch.tensor(bad)
    data = batch([targets(2), truth])._replace(proposals=[targets(5).boxes] * 2)
    with pytest.raises(InputError, match=f"x1 {bad[0]:g}, y1 {bad[1]:g}"):
        small(kind).losses(data)


@pytest.mark.parametrize("label", [0, -1])
def test_the_backgrounds_label_is_no_objects(label: int) -> None:
    """Labels that count from 0 would train a class as background."""
    truth = targets(3)
    truth.labels[2] = label
    with pytest.raises(InputError, match=f"has the label {label}: objects have 1…K"):
        small().losses(batch([targets(2), truth]))


def test_no_image_of_a_batch_has_a_proposal() -> None:
    detector = small(FastRCNN, roi_sampling=RoISampling(include_ground_truth=False))
    data = batch([targets(2), targets(0)])._replace(proposals=[torch.zeros(0, 4)] * 2)
    assert all(loss.item() == 0 for loss in detector.losses(data).values())
    assert [len(found.boxes) for found in detector.eval().detect(data)] == [0, 0]


def test_bfloat16_network_keeps_boxes_in_float32() -> None:
    detector = small()
    data = batch([targets(3), targets(1)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = detector.losses(data)
        found = detector.eval().detect(data)
    assert all(torch.isfinite(loss) and loss.dtype == torch.float32 for loss in losses.values())
    assert found[0].boxes.dtype == torch.float32


SINGLE_C4 = {
    "neck": partial(SingleLevel, level=4),
    "roi_head": partial(RoIHead, resolution=14, canonical_size=56, head=Conv5Head),
}


def given(number: int, n: int = 2) -> list[torch.Tensor]:
    """Proposals of n images."""
    corner = torch.rand(n, number, 2) * torch.tensor([90.0, 60.0])
    return list(torch.cat((corner, corner + 4 + 30 * torch.rand(n, number, 2)), dim=2))


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("proposals", [20, 0])
def test_conv5_head_is_the_bottom_ups_own_stage(norm: str, proposals: int) -> None:
    bottom_up = ResNet("resnet18", norm=norm, width=8)  # type: ignore[arg-type]
    conv5 = {name: value.clone() for name, value in bottom_up.get_submodule("layer4").state_dict().items()}
    detector = small(FastRCNN, bottom_up=lambda: bottom_up, **SINGLE_C4)
    assert not hasattr(detector.bottom_up, "layer4")
    head = detector.roi_head.head["shared"]
    assert all(torch.equal(value, conv5[name]) for name, value in head.conv5[0].state_dict().items())
    x = torch.rand(3, 32, 14, 14)
    head.eval()
    maps = head.conv5(x)
    assert maps.shape == (3, 64, 7, 7)
    scores, deltas = head(x)
    assert torch.allclose(scores, head.scores(maps.flatten(2).mean(2)), atol=1e-6)
    assert deltas.shape == (3, 4, 4)
    detector.train()
    # Without proposals and ground truth there is nothing for BatchNorm to average.
    data = batch([targets(2 if proposals else 0)] * 2)._replace(proposals=given(proposals))
    sum(detector.losses(data).values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in detector.parameters())
    assert all(torch.isfinite(value).all() for value in detector.state_dict().values())


def test_conv5_head_wants_conv5() -> None:
    head = partial(RoIHead, head=Conv5Head)
    with pytest.raises(InputError, match="the neck must end at C4"):
        small(roi_head=head)
    with pytest.raises(InputError, match="the neck must end at C4"):
        small(FastRCNN, neck=partial(SingleLevel, level=3), roi_head=head)


def test_fast_rcnn_on_the_proposals_of_a_faster_rcnn_finds_what_that_finds() -> None:
    whole = small().eval()
    half = small(FastRCNN).eval()
    half.load_state_dict({k: v for k, v in whole.state_dict().items() if not k.startswith("rpn.")})
    data = batch(None)
    with torch.no_grad():
        expected = whole(data)
        # In pixels of the network's input, which is twice the size of these images.
        boxes = [2 * found.boxes for found in expected.proposals]
        found = half(data._replace(proposals=boxes))
    for a, b in zip(expected.detections, found.detections, strict=True):
        assert len(a.boxes) > 0
        assert torch.equal(a.labels, b.labels)
        assert torch.allclose(a.boxes, b.boxes, atol=1e-4)
        assert torch.allclose(a.scores, b.scores, atol=1e-6)
    for a, b in zip(expected.proposals, found.proposals, strict=True):
        assert torch.allclose(a.boxes, b.boxes, atol=1e-4)


def test_fast_rcnn_uses_the_best_of_the_given_proposals() -> None:
    detector = small(FastRCNN, testing_top_n=5).eval()
    proposals = given(9)
    data = batch(None)
    with torch.no_grad():
        all_nine, best_five = (
            detector(data._replace(proposals=p)) for p in (proposals, [p[:5] for p in proposals])
        )
    assert [len(p.boxes) for p in all_nine.proposals] == [5, 5]
    for a, b in zip(all_nine.detections, best_five.detections, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("number", [30, 1, 0])
@pytest.mark.parametrize("objects", [2, 0])
def test_fast_rcnn_has_gradients_everywhere(number: int, objects: int) -> None:
    detector = small(FastRCNN)
    losses = detector.losses(batch([targets(objects), targets(0)])._replace(proposals=given(number)))
    assert list(losses) == ["roi_class", "roi_box"]
    sum(losses.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in detector.parameters())
    with torch.no_grad():
        found = detector.eval()(batch(None)._replace(proposals=given(number)))
    assert len(found.detections) == len(found.proposals) == 2


def test_fast_rcnn_without_proposals() -> None:
    with pytest.raises(InputError, match="FastRCNN needs proposals"):
        small(FastRCNN).losses(batch([targets(1)]))


@pytest.mark.parametrize("kind", [ProposalNetwork, FasterRCNN, FastRCNN])
def test_an_image_pyramid_of_one_scale_twice_is_that_scale(kind: type[Detector]) -> None:
    """The boxes of the second copy are the first's own, so suppression takes out every one of them.

    So it does with proposals of two levels that overlap, which a single scale keeps.
    """
    detector = small(kind).eval()
    data = batch(None)._replace(proposals=given(20))
    with torch.no_grad():
        once, twice = detector(data), detector.over_scales([data, data])
    for one, other in zip(once.proposals, twice.proposals, strict=True):
        keep = slice(None) if kind is FastRCNN else nms(one.boxes, one.scores, 0.7)
        # Sets, because boxes of equal score may change places.
        assert set(map(tuple, one.boxes[keep].tolist())) == set(map(tuple, other.boxes.tolist()))
    for one, other in zip(once.detections or [], twice.detections or [], strict=True):
        assert torch.equal(one.boxes, other.boxes)
        assert torch.equal(one.labels, other.labels)


def test_an_image_pyramid_merges_what_its_scales_find(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(*rows: tuple[float, float, int]) -> Detections:
        x, score, label = (torch.tensor(column) for column in zip(*rows, strict=True))
        return Detections(torch.stack((x, x * 0, x + 10, x * 0 + 10), dim=1), score, label)

    detector = small()
    results = iter(
        [
            ([found((0.0, 0.9, 1), (50.0, 0.3, 1))], [found((0.0, 0.8, 1), (50.0, 0.4, 2))]),
            ([found((1.0, 0.5, 1))], [found((1.0, 0.9, 1), (50.0, 0.6, 3))]),
        ]
    )
    monkeypatch.setattr(FasterRCNN, "forward", lambda self, data: Inference(*next(results)))
    merged = detector.over_scales([batch(None, 1)] * 2)
    # IoU 9 / 11 > 0.7 and > 0.5: of two boxes one pixel apart the better stays, per class.
    assert merged.proposals[0].boxes[:, 0].tolist() == [0.0, 50.0]
    assert merged.detections[0].boxes[:, 0].tolist() == [1.0, 50.0, 50.0]
    assert merged.detections[0].labels.tolist() == [1, 3, 2]
    assert merged.detections[0].scores.tolist() == pytest.approx([0.9, 0.6, 0.4])


@pytest.mark.parametrize("kind", [ProposalNetwork, FasterRCNN, FastRCNN])
def test_what_is_found_and_the_losses_come_from_one_run_of_the_network(kind: type[Detector]) -> None:
    detector = small(kind).eval()
    data = batch([targets(3), targets(0)])
    if kind is FastRCNN:
        data = data._replace(proposals=[targets(40).boxes for _ in range(2)])
    runs = []
    detector.neck.register_forward_hook(lambda *_: runs.append("neck"))

    def apart() -> tuple[Inference, dict[str, torch.Tensor]]:
        return detector(data), detector.losses(data, torch.Generator().manual_seed(1))

    with torch.no_grad():
        expected, losses = apart()
        assert len(runs) == 2
        found, together = detector.find_with_losses(data, torch.Generator().manual_seed(1))
        assert len(runs) == 3
        apart()
        assert len(runs) == 5
    assert together == losses
    for a, b in zip(
        found.detections or found.proposals, expected.detections or expected.proposals, strict=True
    ):
        assert len(a.boxes) > 0
        assert all(map(torch.equal, a, b))


def test_losses_of_ones_own_are_those_of_a_validation() -> None:
    class Own(FasterRCNN):
        def losses(self, batch: Batch, generator: torch.Generator | None = None) -> dict[str, torch.Tensor]:
            doubled = super().losses(batch._replace(images=2 * batch.images), generator)
            return {"own": sum(doubled.values(), torch.zeros(()))}

    detector = small(Own).eval()
    data = batch([targets(3)])
    with torch.no_grad():
        expected = detector.losses(data, torch.Generator().manual_seed(1))
        assert detector.find_with_losses(data, torch.Generator().manual_seed(1))[1] == expected


def test_toggles_are_those_that_the_network_has() -> None:
    on = {"lateral": True, "top_down": True, "smooth": True, "nonlinearity": False, "shared": True}
    assert small().toggles == small(ProposalNetwork).toggles == small(FastRCNN).toggles == on
    assert small(neck=partial(FeaturePyramid, top_down=False)).toggles == on | {"top_down": False}
    apart = partial(RegionProposalNetwork, shared=False)
    assert small(rpn=apart).toggles == on | {"shared": False}, "shared is what all heads are"
    assert small(roi_head=partial(RoIHead, shared=False)).toggles == on | {"shared": False}
    single = small(
        ProposalNetwork,
        neck=partial(SingleLevel, level=4),
        rpn=partial(RegionProposalNetwork, sizes={4: [64]}),
    )
    assert single.toggles == {"shared": True}
