"""Our detector against torchvision's, with the same weights: the same detections, losses and gradients."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from torchvision_peer import LOSSES, SIZES, as_batch, assert_same, peer, peer_targets, smooth_image

from fpn import FasterRCNN, InputError, Predictor
from fpn.interop.torchvision import from_torchvision, load_torchvision, to_torchvision
from fpn.models.necks import BalancedFeaturePyramid, FeaturePyramid
from fpn.models.postprocess import DetectionSelection, ProposalSelection, ranked
from fpn.models.resnet import ResNet
from fpn.models.roi_head import RoIHead
from fpn.models.rpn import RegionProposalNetwork
from fpn.models.targets import AnchorSampling, RoISampling
from fpn.types import Found, RoIs, Targets

SHORT, LONG = 160, 267
SMALLEST = 64, 107


@pytest.fixture(scope="module")
def torchvisions() -> Any:
    torch.manual_seed(0)
    return peer(min_size=SHORT, max_size=LONG)


@pytest.mark.parametrize("sizes", [[s] for s in SIZES] + [SIZES[:2], SIZES])
def test_detections_are_the_same(torchvisions: Any, sizes: list[tuple[int, int]]) -> None:
    images = [smooth_image(size) for size in sizes]
    ours = Predictor(load_torchvision(torchvisions.state_dict(), norm_eps=0.0), SHORT, LONG)
    with torch.inference_mode():
        expected = torchvisions(images)
    found = ours(images)
    assert sum(len(e["boxes"]) for e in expected) >= 90 * len(sizes)
    for e, f in zip(expected, found, strict=True):
        assert_same(f, e)


def test_no_detections(torchvisions: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvisions.roi_heads, "score_thresh", 0.999999)
    detector = load_torchvision(torchvisions.state_dict(), norm_eps=0.0, score_threshold=0.999999)
    images = [smooth_image(size) for size in SIZES[:2]]
    with torch.inference_mode():
        expected = torchvisions(images)
    for e, f in zip(expected, Predictor(detector, SHORT, LONG)(images), strict=True):
        assert (f.boxes.shape, f.scores.shape, f.labels.shape) == ((0, 4), (0,), (0,))
        assert (e["boxes"].shape, e["scores"].shape, e["labels"].shape) == ((0, 4), (0,), (0,))


def few() -> list[Targets]:
    none = torch.zeros(0, 4)
    return [
        Targets(torch.tensor([[10.0, 20, 100, 120], [50, 5, 80, 33]]), torch.tensor([3, 88]), none),
        Targets(torch.tensor([[0.0, 0, 222, 301]]), torch.tensor([1]), none),
        Targets(none, torch.zeros(0, dtype=torch.int64), none),
    ]


def crowded() -> list[Targets]:
    """A hundred boxes an image, from a pixel to all of it, many alike."""
    targets = []
    for height, width in SIZES[:3]:
        limits = torch.tensor([width, height, width, height])
        x1, y1, x2, y2 = (torch.rand(100, 4) * limits).unbind(1)
        boxes = torch.stack((x1.min(x2), y1.min(y2), x1.max(x2) + 1, y1.max(y2) + 1), dim=1).min(limits)
        boxes[:20] = boxes[20:40]
        targets.append(Targets(boxes, torch.randint(1, 91, (100,)), torch.zeros(0, 4)))
    return targets


def empty() -> list[Targets]:
    none = torch.zeros(0, 4)
    return [Targets(none, torch.zeros(0, dtype=torch.int64), none)] * 3


def both_learn(
    truth: list[Targets], monkeypatch: pytest.MonkeyPatch | None = None
) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Losses and gradients under our names, torchvision's and ours.

    With every anchor and every RoI sampled, there is no chance involved. With a monkeypatch both learn in
    bfloat16, of torchvision's proposals: which ones are kept is then a matter of rounding.
    """
    everything = 10**6
    (short, long), kept = SMALLEST, 100 if monkeypatch is None else 40
    torch.manual_seed(3)
    theirs = peer(
        min_size=short,
        max_size=long,
        rpn_post_nms_top_n_train=kept,
        rpn_batch_size_per_image=everything,
        box_batch_size_per_image=everything,
    ).train()
    ours = load_torchvision(
        theirs.state_dict(),
        norm_eps=0.0,
        training_proposals=ProposalSelection(2000, kept),
        anchor_sampling=AnchorSampling(per_image=everything),
        roi_sampling=RoISampling(per_image=everything),
    ).train()
    if monkeypatch is not None:
        share_proposals(theirs, monkeypatch)
    images = [smooth_image(size) for size in SIZES[: len(truth)]]
    with torch.autocast("cpu", torch.bfloat16, enabled=monkeypatch is not None):
        expected = theirs(images, peer_targets(truth))
        losses = ours.losses(as_batch(theirs, images, truth))
    sum(expected.values()).backward()
    sum(losses.values()).backward()
    gradients = from_torchvision({name: p.grad for name, p in theirs.named_parameters()})
    return [
        ({LOSSES[name]: loss for name, loss in expected.items()}, gradients),
        (losses, {name: p.grad for name, p in ours.named_parameters()}),
    ]


def share_proposals(theirs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have ours train on the proposals that torchvision's has just made, in single precision both."""
    made: list[list[Tensor]] = []
    keep = theirs.rpn.filter_proposals

    def filter_proposals(*given: Any) -> tuple[list[Tensor], list[Tensor]]:
        boxes, scores = keep(*given)
        made.append([some.float() for some in boxes])
        return made[-1], scores

    def select_proposals(*_: Any) -> Found:
        (found,) = made
        return ranked(found)

    monkeypatch.setattr(theirs.rpn, "filter_proposals", filter_proposals)
    monkeypatch.setattr("fpn.models.detectors.select_proposals", select_proposals)


@pytest.mark.parametrize("make", [crowded, empty])
def test_losses_and_gradients_are_the_same(
    make: Callable[[], list[Targets]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In double precision to the last digits: in single, rounding alone turns a few ReLUs."""
    monkeypatch.setattr(
        Tensor, "float", lambda self: self if self.dtype == torch.float64 else self.to(torch.float32)
    )
    torch.set_default_dtype(torch.float64)
    try:
        (expected, gradients), (losses, ours) = both_learn(make())
    finally:
        torch.set_default_dtype(torch.float32)
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[name].item(), rel=1e-6, abs=1e-9)
    assert gradients.keys() == ours.keys()
    for name, gradient in ours.items():
        assert gradient.dtype == torch.float64
        scale = gradients[name].abs().max().item()
        # Without objects nothing is learned about boxes.
        assert scale > 0 or (make is empty and "deltas" in name)
        torch.testing.assert_close(gradient, gradients[name], rtol=1e-10, atol=1e-12 * scale)


def test_losses_and_gradients_agree_in_single_precision() -> None:
    (expected, gradients), (losses, ours) = both_learn(few())
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-5, atol=1e-8)
    for name, gradient in ours.items():
        assert (gradient - gradients[name]).norm() < 1e-3 * gradients[name].norm(), name


@pytest.mark.long
def test_losses_and_gradients_agree_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of bfloat16 is 1/256."""
    (expected, gradients), (losses, ours) = both_learn(few()[:2], monkeypatch)
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[name].item(), rel=5e-3)
    for name, gradient in ours.items():
        cosine = F.cosine_similarity(gradient.flatten().double(), gradients[name].flatten().double(), dim=0)
        assert cosine > 0.99, name


@pytest.mark.long
def test_what_the_network_says_agrees_in_bfloat16() -> None:
    """Logits and deltas of the RPN, and of the head on the same RoIs, before anything is chosen by them."""
    torch.manual_seed(0)
    torchvisions = peer(min_size=SMALLEST[0], max_size=SMALLEST[1])
    ours = load_torchvision(torchvisions.state_dict(), norm_eps=0.0)
    batch = as_batch(torchvisions, [smooth_image(size) for size in SIZES[:2]])
    boxes = [torch.rand(20, 4).sort(dim=1).values * 60 for _ in range(2)]
    rois = RoIs(torch.cat(boxes), torch.arange(2).repeat_interleave(20))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        theirs = torchvisions.backbone(batch.images)
        p = ours.neck(ours.bottom_up(batch.images))
        logits, deltas = torchvisions.rpn.head(list(theirs.values()))
        output = ours.rpn(p, batch.images.shape[-2:])
        pooled = torchvisions.roi_heads.box_roi_pool(theirs, boxes, batch.sizes)
        scores, moves = torchvisions.roi_heads.box_predictor(torchvisions.roi_heads.box_head(pooled))
        our_scores, our_moves = ours.roi_head(p, rois)
    pairs = [(our_scores, scores), (our_moves.flatten(1), moves)]
    for k, level in enumerate(output.objectness):
        pairs.append((output.objectness[level], logits[k].permute(0, 2, 3, 1).flatten(1)))
        flat = deltas[k].unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)
        pairs.append((output.deltas[level], flat))
    for one, other in pairs:
        assert one.dtype == torch.float32
        scale = other.float().abs().max().item()
        torch.testing.assert_close(one, other.float(), atol=0.02 * scale, rtol=0)


def test_weights_of_the_public_constructor_load_from_a_file(tmp_path: Path) -> None:
    """torchvision's own function, whose BatchNorm is an ordinary one with epsilon 1e-5."""
    theirs = fasterrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=7,
        box_score_thresh=0.0,
        min_size=SHORT,
        max_size=LONG,
    ).eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.3, 0.6)
    file = tmp_path / "theirs.pth"
    torch.save(theirs.state_dict(), file)
    images = [smooth_image(size) for size in SIZES[:2]]
    with torch.inference_mode():
        expected = theirs(images)
    found = Predictor(load_torchvision(file, score_threshold=0.0), SHORT, LONG)(images)
    for e, f in zip(expected, found, strict=True):
        assert len(f.boxes) == 100
        assert_same(f, e)


def exported(**parts: Any) -> FasterRCNN:
    return FasterRCNN(6, **({"bottom_up": partial(ResNet, "resnet18", norm="batch")} | parts)).eval()


def test_there_and_back(torchvisions: Any) -> None:
    state = to_torchvision(load_torchvision(torchvisions.state_dict(), norm_eps=0.0))
    assert state.keys() == torchvisions.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in torchvisions.state_dict().items())


@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_a_detector_of_ours_finds_the_same_in_torchvisions(norm: Any) -> None:
    ours = exported(
        bottom_up=partial(ResNet, "resnet18", norm=norm), detections=DetectionSelection(score_threshold=0.1)
    )
    theirs = TorchvisionFasterRCNN(
        resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=FrozenBatchNorm2d),
        num_classes=7,
        min_size=SHORT,
        max_size=LONG,
        box_score_thresh=0.1,
    ).eval()
    theirs.load_state_dict(to_torchvision(ours), strict=True)
    image = smooth_image(SIZES[0])
    with torch.inference_mode():
        (expected,) = theirs([image])
    (found,) = Predictor(ours, SHORT, LONG)([image])
    assert len(found.boxes) > 20
    torch.testing.assert_close(found.boxes, expected["boxes"], atol=1e-3, rtol=0)
    torch.testing.assert_close(found.scores, expected["scores"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ({"rpn": partial(RegionProposalNetwork, shared=False)}, "no rpn.head"),
        ({"rpn": partial(RegionProposalNetwork, grid="stride")}, "rpn.grid 'stride'"),
        ({"rpn": partial(RegionProposalNetwork, sizes={2: [32], 3: [64], 4: [128], 5: [256]})}, "rpn.levels"),
        ({"roi_head": partial(RoIHead, levels=[3, 4])}, "roi_head.levels (3, 4)"),
        ({"roi_head": partial(RoIHead, canonical_level=3)}, "roi_head.canonical_level 3"),
        ({"roi_head": partial(RoIHead, epsilon=0.0)}, "roi_head.epsilon 0.0"),
        ({"roi_head": partial(RoIHead, aligned=True)}, "roi_head.aligned True"),
        ({"roi_head": partial(RoIHead, shared=False)}, "no roi_head"),
        ({"roi_head": partial(RoIHead, resolution=14)}, "roi_head.resolution 14"),
        ({"neck": partial(FeaturePyramid, top_down=False)}, "neck.top_down False"),
        ({"neck": partial(FeaturePyramid, nonlinearity=True)}, "neck.nonlinearity True"),
        ({"neck": partial(FeaturePyramid, smooth=False)}, "layer_blocks"),
        ({"neck": partial(FeaturePyramid, lateral=False)}, "inner_blocks"),
        ({"neck": partial(FeaturePyramid, channels=128)}, "shape"),
        # The parameters of an FPN, and other maps.
        ({"neck": partial(BalancedFeaturePyramid, refine=None)}, "neck 'BalancedFeaturePyramid'"),
        ({"bottom_up": partial(ResNet, "resnet18", norm="group")}, "running_mean"),
        ({"bottom_up": partial(ResNet, "resnet18", width=32)}, "shape"),
        ({"bottom_up": partial(ResNet, "resnet50", stride_in_1x1=True)}, "stride_in_1x1 True"),
    ],
)
def test_what_torchvision_lacks_is_named(parts: dict[str, Any], named: str) -> None:
    with torch.device("meta"):
        detector = exported(**parts)
    with pytest.raises(InputError) as caught:
        to_torchvision(detector)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("changed", [{"size_factor": 0.5}, {"ratios": (0.5, 1.0, 3.0)}])
def test_other_anchors_than_torchvisions_are_named(changed: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"cannot have rpn\.(sizes|ratios)"):
        to_torchvision(exported(rpn=partial(RegionProposalNetwork, **changed)))


def test_weights_of_a_live_batchnorm_go_there_and_back() -> None:
    """The public constructor's own BatchNorm loads ours strictly, and ours its."""
    ours = exported(bottom_up=partial(ResNet, "resnet50", norm="batch"))
    theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=7)
    theirs.load_state_dict(to_torchvision(ours), strict=True)
    back = load_torchvision(theirs.state_dict(), bottom_up=partial(ResNet, "resnet50", norm="batch"))
    assert all(torch.equal(value, back.state_dict()[name]) for name, value in ours.state_dict().items())
