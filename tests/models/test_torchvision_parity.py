"""Our detector against torchvision's, with the same weights: the same detections, losses and gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision_peer import as_batch, peer, peer_targets

from fpn import Predictor
from fpn.checkpoints import _rename, load_torchvision
from fpn.models.targets import AnchorSampling, RoISampling
from fpn.types import Targets

SHORT, LONG = 200, 333
SIZES = [(150, 211), (301, 222), (97, 64), (33, 400)]


def smooth_image(size: tuple[int, int]) -> Tensor:
    """An image with structure at several scales, in [0, 1]."""
    layers = [torch.rand(1, 3, -(-size[0] // s) + 1, -(-size[1] // s) + 1) for s in (4, 16, 64)]
    return sum(F.interpolate(x, size=size, mode="bilinear") for x in layers)[0] / 3  # type: ignore[index]


@pytest.fixture(scope="module")
def torchvisions() -> Any:
    torch.manual_seed(0)
    return peer(min_size=SHORT, max_size=LONG)


@pytest.mark.parametrize("sizes", [[s] for s in SIZES] + [SIZES[:2], SIZES])
def test_detections_are_the_same(torchvisions: Any, sizes: list[tuple[int, int]]) -> None:
    images = [smooth_image(size) for size in sizes]
    ours = Predictor(load_torchvision(torchvisions.state_dict()), SHORT, LONG)
    with torch.inference_mode():
        expected = torchvisions(images)
    found = ours(images)
    assert sum(len(e["boxes"]) for e in expected) >= 90 * len(sizes)
    for e, f in zip(expected, found, strict=True):
        torch.testing.assert_close(f.boxes, e["boxes"], atol=1e-3, rtol=0)
        torch.testing.assert_close(f.scores, e["scores"], atol=1e-5, rtol=0)
        assert torch.equal(f.labels, e["labels"])


def test_no_detections(torchvisions: Any) -> None:
    ours = Predictor(load_torchvision(torchvisions.state_dict(), score_threshold=0.999999), SHORT, LONG)
    found = ours([smooth_image(SIZES[0])])[0]
    assert (found.boxes.shape, found.scores.shape, found.labels.shape) == ((0, 4), (0,), (0,))


def test_losses_and_gradients_are_the_same() -> None:
    """With every anchor and every RoI sampled, there is no chance involved."""
    everything = 10**6
    torch.manual_seed(3)
    theirs = peer(
        min_size=SHORT,
        max_size=LONG,
        rpn_batch_size_per_image=everything,
        box_batch_size_per_image=everything,
    ).train()
    ours = load_torchvision(
        theirs.state_dict(),
        anchor_sampling=AnchorSampling(per_image=everything),
        roi_sampling=RoISampling(per_image=everything),
    ).train()
    images = [smooth_image(size) for size in SIZES[:3]]
    none = torch.zeros(0, 4)
    truth = [
        Targets(torch.tensor([[10.0, 20, 100, 120], [50, 5, 80, 33]]), torch.tensor([3, 88]), none),
        Targets(torch.tensor([[0.0, 0, 222, 301]]), torch.tensor([1]), none),
        Targets(none, torch.zeros(0, dtype=torch.int64), none),
    ]
    expected = theirs(images, peer_targets(truth))
    losses = ours.losses(as_batch(theirs, images, truth))
    names = {
        "rpn_objectness": "loss_objectness",
        "rpn_box": "loss_rpn_box_reg",
        "roi_class": "loss_classifier",
        "roi_box": "loss_box_reg",
    }
    for our_name, their_name in names.items():
        torch.testing.assert_close(losses[our_name], expected[their_name], rtol=1e-5, atol=1e-8)
    sum(losses.values()).backward()
    sum(expected.values()).backward()
    gradients = {_rename(name): p.grad for name, p in theirs.named_parameters()}
    assert gradients.keys() == {name for name, _ in ours.named_parameters()}
    for name, parameter in ours.named_parameters():
        scale = gradients[name].abs().max().item()
        assert scale > 0
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-5 * scale)


def test_weights_of_the_public_constructor_load_from_a_file(tmp_path: Path) -> None:
    """torchvision's own function, whose BatchNorm is an ordinary one with epsilon 1e-5."""
    from torchvision.models.detection import fasterrcnn_resnet50_fpn

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
        torch.testing.assert_close(f.boxes, e["boxes"], atol=1e-3, rtol=0)
        torch.testing.assert_close(f.scores, e["scores"], atol=1e-5, rtol=0)
        assert torch.equal(f.labels, e["labels"])
