"""Our detectors against torchvision's later Faster R-CNNs: the same weights, the same results."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection, mobilenet_v3_large
from torchvision_peer import LOSSES, SIZES, as_batch, assert_same, peer_targets, smooth_image, stirred

from fpn import FasterRCNN, InputError, MobileNetV3, Predictor, load_torchvision, to_torchvision
from fpn.interop.torchvision import from_torchvision
from fpn.models.bottom_up import Stages
from fpn.models.necks import FeaturePyramid
from fpn.models.optimized import optimized
from fpn.models.postprocess import ProposalSelection
from fpn.models.resnet import ResNet
from fpn.models.roi_head import FourConvOneFC, HeadInput, RoIHead
from fpn.models.rpn import RegionProposalNetwork
from fpn.models.targets import AnchorSampling, RoISampling
from fpn.types import Targets


class Model(NamedTuple):
    """One of torchvision's, and where ours has the same settings."""

    make: Callable[..., Any]
    weights: str
    """The name of its published weights."""
    scales: tuple[float, float]
    objectness: float
    bottom_up: Any
    """As it is trained."""
    tested: ProposalSelection
    threshold: float

    def theirs(self, **settings: Any) -> Any:
        """It, with random weights; few proposals."""
        model = self.make(weights=None, weights_backbone=None, **settings)
        return stirred(model, "mobilenet" in self.make.__name__, self.scales, self.objectness)


MODELS = {
    "v2": Model(
        detection.fasterrcnn_resnet50_fpn_v2,
        "FasterRCNN_ResNet50_FPN_V2_Weights",
        (0.3, 0.6),
        30.0,
        partial(ResNet, "resnet50", norm="batch"),
        ProposalSelection(1000, 1000),
        0.0,
    ),
    "mobilenet": Model(
        detection.fasterrcnn_mobilenet_v3_large_fpn,
        "FasterRCNN_MobileNet_V3_Large_FPN_Weights",
        (0.7, 1.3),
        300.0,
        partial(MobileNetV3, norm_eps=1e-5, two_last=True),
        ProposalSelection(1000, 1000, score_threshold=0.05),
        0.05,
    ),
    "mobilenet_320": Model(
        detection.fasterrcnn_mobilenet_v3_large_320_fpn,
        "FasterRCNN_MobileNet_V3_Large_320_FPN_Weights",
        (0.7, 1.3),
        300.0,
        partial(MobileNetV3, norm_eps=1e-5, two_last=True),
        ProposalSelection(150, 150, score_threshold=0.05),
        0.05,
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_published_files_give_the_detections_of_torchvisions(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the file's own name, and by the weights' name; as they are and made quicker."""
    model = MODELS[name]
    # 100 of the proposals: with random weights the rest is the same over and over.
    tested = model.tested if "320" in name else ProposalSelection(1000, 100, score_threshold=model.threshold)
    torch.manual_seed(1)
    theirs = model.theirs(min_size=160, max_size=267, rpn_post_nms_top_n_test=tested.post_nms_top_n)
    weights = getattr(detection, model.weights).COCO_V1
    file = tmp_path / Path(weights.url).name
    torch.save(theirs.state_dict(), file)
    ours = load_torchvision(file)
    assert (ours.classes, ours.testing_proposals) == (90, model.tested)
    assert ours.testing_proposals.pre_nms_top_n == theirs.rpn._pre_nms_top_n["testing"]
    assert ours.training_proposals.score_threshold == theirs.rpn.score_thresh
    assert [list(ours.rpn.sizes.values()), [ours.rpn.ratios] * len(ours.rpn.sizes)] == [
        [tuple(map(float, sizes)) for sizes in theirs.rpn.anchor_generator.sizes],
        list(theirs.rpn.anchor_generator.aspect_ratios),
    ]
    ours.testing_proposals = tested
    images = [smooth_image(size) for size in SIZES[: 1 if name == "v2" else 2]]
    with torch.inference_mode():
        expected = theirs(images)
        output = ours.rpn(ours.neck(ours.bottom_up(x := theirs.transform(images)[0].tensors)), x.shape[-2:])
    if model.threshold:  # where nothing is below it, it would not be seen
        scores = torch.cat(list(output.objectness.values()), dim=1).sigmoid()
        assert 0.02 < (scores < model.threshold).float().mean() < 0.9
    for detector in (ours, optimized(ours)):
        for one, other in zip(expected, Predictor(detector, 160, 267)(images), strict=True):
            assert len(one["boxes"]) > 20
            assert_same(other, one)
    monkeypatch.setattr(type(weights), "get_state_dict", lambda *_, **__: theirs.state_dict())
    named = load_torchvision(f"{model.weights}.COCO_V1").state_dict()
    assert all(torch.equal(value, named[key]) for key, value in ours.state_dict().items())


def truth() -> list[Targets]:
    """Ten boxes an image, from a pixel to all of it."""
    targets = []
    for height, width in SIZES[:2]:
        limits = torch.tensor([width, height, width, height])
        x1, y1, x2, y2 = (torch.rand(10, 4) * limits).unbind(1)
        boxes = torch.stack((x1.min(x2), y1.min(y2), x1.max(x2) + 1, y1.max(y2) + 1), dim=1).min(limits)
        targets.append(Targets(boxes, torch.randint(1, 91, (10,)), torch.zeros(0, 4)))
    return targets


@pytest.mark.parametrize("which", [pytest.param("v2", marks=pytest.mark.long), "mobilenet", "mobilenet_320"])
def test_losses_and_gradients_are_the_same(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In double precision; every anchor and every RoI is learned from, so there is no chance in it."""
    everything, kept, model = 10**6, 10, MODELS[which]
    monkeypatch.setattr(
        Tensor, "float", lambda self: self if self.dtype == torch.float64 else self.to(torch.float32)
    )
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(3)
        theirs = model.theirs(
            min_size=64,
            max_size=107,
            rpn_post_nms_top_n_train=kept,
            rpn_batch_size_per_image=everything,
            box_batch_size_per_image=everything,
        ).train()
        ours = load_torchvision(
            theirs.state_dict(),
            bottom_up=model.bottom_up,
            training_proposals=ProposalSelection(2000, kept, score_threshold=model.threshold),
            anchor_sampling=AnchorSampling(per_image=everything),
            roi_sampling=RoISampling(per_image=everything),
            **({"neck": partial(FeaturePyramid, norm="batch")} if which == "v2" else {}),
        ).train()
        images, objects = [smooth_image(size) for size in SIZES[:2]], truth()
        expected = theirs(images, peer_targets(objects))
        losses = ours.losses(as_batch(theirs, images, objects))
        sum(expected.values()).backward()
        sum(losses.values()).backward()
    finally:
        torch.set_default_dtype(torch.float32)
    assert {LOSSES[key] for key in expected} == losses.keys()
    for key, loss in expected.items():
        assert losses[LOSSES[key]].item() == pytest.approx(loss.item(), rel=1e-6, abs=1e-9)
    gradients = from_torchvision({key: p.grad for key, p in theirs.named_parameters()})
    found = {key: p.grad for key, p in ours.named_parameters()}
    assert gradients.keys() == found.keys()
    for key, gradient in found.items():
        assert gradient is not None
        assert gradient.dtype == torch.float64
        scale = gradients[key].abs().max().item()
        torch.testing.assert_close(gradient, gradients[key], rtol=1e-8, atol=1e-10 * scale, msg=key)
    # What the norms have seen is kept alike.
    after = from_torchvision(theirs.state_dict())
    for key, value in ours.state_dict().items():
        if "running" in key:
            torch.testing.assert_close(value, after[key], rtol=1e-10, atol=1e-12)


def test_there_and_back(name: str) -> None:
    theirs = MODELS[name].theirs(num_classes=7)
    state = theirs.state_dict()
    back = to_torchvision(load_torchvision(state))
    for key, value in state.items():
        assert key.endswith("num_batches_tracked") or torch.equal(back[key], value)
    MODELS[name].make(weights=None, weights_backbone=None, num_classes=7).load_state_dict(back, strict=True)


def test_what_is_not_known_is_refused_in_one_line() -> None:
    states: list[tuple[dict[str, Tensor], str]] = []
    with torch.device("meta"):
        v2 = MODELS["v2"].make(weights=None, weights_backbone=None, num_classes=3).state_dict()
    one = {key: value for key, value in v2.items() if not key.startswith("rpn.head.conv.1.")}
    states.append((one, "rpn.head.shared.more.0"))  # a head of one convolution beside norms in the neck
    body = {f"backbone.body.{key}": torch.zeros(1) for key in ("18.0.weight", "18.1.weight")}
    states.append((body, "no Faster R-CNN of torchvision's on a ResNet or MobileNetV3-Large"))
    states.append(({"conv1.weight": torch.zeros(1)}, "no Faster R-CNN of torchvision's"))
    for state, told in states:
        with torch.device("meta"), pytest.raises(InputError) as caught:
            load_torchvision(state)
        assert told in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"bottom_up": MobileNetV3}, "bottom_up.two_last False"),
        ({"rpn": partial(RegionProposalNetwork, convolutions=2)}, "inner_blocks.0.0.bias"),
        ({"neck": partial(FeaturePyramid, norm="batch")}, "box_head.0.0.weight"),
        ({"roi_head": partial(RoIHead, head=FourConvOneFC)}, "inner_blocks.0.0.bias"),
    ],
)
def test_what_torchvision_lacks_is_named(parts: dict[str, Any], told: str) -> None:
    with torch.device("meta"):
        detector = FasterRCNN(6, **parts)
    with pytest.raises(InputError) as caught:
        to_torchvision(detector)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"rpn": partial(RegionProposalNetwork, sizes={5: [32], 6: [64]}, grid="stride")}, "rpn.grid stride"),
        ({"rpn": partial(RegionProposalNetwork, sizes={5: [32], 6: [64]})}, "roi_head.levels [5, 6]"),
    ],
)
def test_a_level_that_is_as_fine_as_the_one_before_is_not_taken_for_another(
    parts: dict[str, Any], told: str
) -> None:
    with torch.device("meta"), pytest.raises(InputError, match=r"level 6 of mobilenet_v3_large") as caught:
        FasterRCNN(
            3,
            bottom_up=partial(MobileNetV3, two_last=True),
            neck=partial(FeaturePyramid, levels=[5, 6]),
            **parts,
        )
    assert told in str(caught.value)


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_mobilenets_maps_are_torchvisions_layers(norm: Any, tmp_path: Path) -> None:
    """Each level ends with the last layer of its stride; a classifier's weights load by name from a file."""
    classifier = mobilenet_v3_large(weights=None).eval()
    for module in classifier.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)
            module.running_mean.normal_(0, 0.1)
    torch.save(classifier.state_dict(), tmp_path / "classifier.pth")
    ours = MobileNetV3(str(tmp_path / "classifier.pth"), norm=norm, frozen_stages=2).eval()
    ours.load_weights()
    x = images = torch.rand(1, 3, 65, 98)
    found = ours(images)
    for i, layer in enumerate(classifier.features):
        x = layer(x)
        if i in (3, 6, 12, 16):
            level = {3: 2, 6: 3, 12: 4, 16: 5}[i]
            assert x.shape == (1, ours.channels[level], -(-65 // 2**level), -(-98 // 2**level))
            torch.testing.assert_close(found[level], x, rtol=1e-4, atol=1e-5)
    trained = {name for name, p in ours.named_parameters() if p.requires_grad}
    assert {int(name.partition(".")[0]) for name in trained} == set(range(4, 17))


@pytest.mark.parametrize("training", [True, False])
def test_a_head_with_norms_takes_no_rois_at_all(training: bool) -> None:
    head = FourConvOneFC(HeadInput(8, 7, 3, Stages(channels=0)), norm="batch", channels=8, hidden=16)
    scores, deltas = head.train(training)(torch.zeros(0, 8, 7, 7))
    assert (scores.shape, deltas.shape) == ((0, 4), (0, 4, 4))
    (scores.sum() + deltas.sum()).backward()
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())
