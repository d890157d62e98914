"""The measures of aliasing on signals whose spectrum and whose steps are known."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fpn.analysis.aliasing import UPSAMPLINGS, block_edges, drifts, gain, merged_maps, spectrum
from fpn.models.detectors import ProposalNetwork
from fpn.models.necks import FeaturePyramid, SingleLevel
from fpn.models.resnet import ResNet


def wave(cycles: float, length: int) -> Tensor:
    """(1, 1, 1, length), this many cycles a cell."""
    return torch.cos(2 * math.pi * cycles * torch.arange(length) + 0.3)[None, None, None]


def detector(**neck: bool) -> ProposalNetwork:
    torch.manual_seed(0)
    return ProposalNetwork(
        1,
        bottom_up=partial(ResNet, "resnet10", norm="frozen", width=8),
        neck=partial(FeaturePyramid, channels=8, **neck),
    ).eval()


def test_enlarged_maps_by_a_loop() -> None:
    coarse = torch.randn(2, 3, 4, 5)
    repeated = np.repeat(np.repeat(coarse.numpy(), 2, axis=2), 2, axis=3)
    np.testing.assert_array_equal(UPSAMPLINGS["nearest"](coarse, (8, 10)), repeated)
    for name, weights in (("blurred", [1, 4, 6, 4, 1]), ("bilinear", [1, 2, 1])):
        kernel, reach = np.outer(weights, weights) / sum(weights) ** 2, len(weights) // 2
        padded = np.pad(repeated, ((0, 0), (0, 0), (reach, reach), (reach, reach)), mode="edge")
        expected = np.zeros_like(repeated)
        for i in range(8):
            for j in range(10):
                window = padded[..., i : i + len(weights), j : j + len(weights)]
                expected[..., i, j] = (window * kernel).sum(axis=(-2, -1))
        np.testing.assert_allclose(UPSAMPLINGS[name](coarse, (8, 10)), expected, atol=1e-6)
    # Of straight lines, bilinear gives the line itself, but for the ends.
    ramp = torch.arange(6.0).expand(1, 1, 6, 6)
    line = UPSAMPLINGS["bilinear"](ramp, (12, 12))[0, 0, 0, 1:-1]
    np.testing.assert_allclose(line, np.arange(0.25, 5, 0.5), atol=1e-6)


@pytest.mark.parametrize("cycles", [0.05, 0.15, 0.2])
def test_the_image_of_a_wave_is_tan_times_as_strong(cycles: float) -> None:
    """cos(πf) is what repeating cells leaves of f, sin(πf) of its image at 1/2 - f."""
    found = spectrum(UPSAMPLINGS["nearest"](wave(2 * cycles, 512), (1, 1024)), bands=40)
    low, high = ((f / 0.5 * 40) for f in (cycles, 0.5 - cycles))
    near = [slice(max(round(f) - 2, 0), round(f) + 2) for f in (low, high)]
    ratio = found.power[near[1]].sum() / found.power[near[0]].sum()
    assert float(ratio.sqrt()) == pytest.approx(math.tan(math.pi * cycles), rel=0.03)
    outside = found.power.sum() - sum(found.power[part].sum() for part in near)
    assert outside < 1e-3 * found.power.sum()
    for cure in ("bilinear", "blurred"):
        mended = spectrum(UPSAMPLINGS[cure](wave(2 * cycles, 512), (1, 1024)), bands=40)
        assert mended.above(0.25) < 0.5 * found.above(0.25)


def test_the_spectrum_of_noise_is_flat() -> None:
    found = spectrum(torch.randn(8, 8, 64, 64))
    assert found.frequency.tolist() == pytest.approx(((np.arange(16) + 0.5) / 32).tolist())
    np.testing.assert_allclose(found.power[2:], 1, atol=0.1)
    assert found.above(0.25) == pytest.approx(0.75, abs=0.02)  # of a disc, what lies beyond half its radius


def test_the_spectrum_of_a_wave_in_any_direction() -> None:
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(64.0), indexing="ij")
    for angle in (0.0, 0.6, 1.5):
        found = spectrum(
            torch.cos(2 * math.pi * 0.2 * (math.cos(angle) * x + math.sin(angle) * y))[None, None]
        )
        assert abs(float(found.frequency[found.power.argmax()]) - 0.2) < 1 / 32


def test_block_edges() -> None:
    assert block_edges(torch.randn(4, 4, 64, 64)) == pytest.approx(1, abs=0.05)
    assert block_edges(UPSAMPLINGS["nearest"](torch.randn(1, 1, 8, 8), (16, 16))) == math.inf
    # A line of steps 1 within blocks and 3 between, along a row; nothing along a column.
    line = torch.tensor([0.0, 1, 4, 5, 8, 9]).expand(1, 1, 6, 6)
    assert block_edges(line) == pytest.approx(3)


def test_the_gain_of_a_blur_and_of_nothing() -> None:
    layer = nn.Conv2d(2, 2, 3, padding=1)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[:, :, 1] = torch.tensor([0.25, 0.5, 0.25])
        np.testing.assert_allclose(
            gain(layer).power, torch.cos(math.pi * gain(layer).frequency) ** 2, atol=1e-6
        )
        layer.weight.zero_()
        layer.weight[0, 1, 1, 1] = -3.0
    np.testing.assert_allclose(gain(layer).power, 1)


def test_merged_maps_are_the_pathway() -> None:
    network = detector()
    images = torch.randn(1, 3, 64, 96)
    found = merged_maps(network, images)
    assert set(found) == {"nearest", "bilinear", "blurred", "smoothed"}
    c = network.bottom_up(images)
    p = network.neck(c)
    for k in (2, 3, 4, 5):
        assert torch.equal(found["smoothed"][k], p[k])
        assert torch.equal(network.neck.smooths[str(k)](found["nearest"][k]), p[k])
    lateral = network.neck.laterals["4"](c[4])
    enlarged = UPSAMPLINGS["blurred"](found["blurred"][5], (4, 6))
    torch.testing.assert_close(found["blurred"][4], lateral + enlarged)
    network.neck = SingleLevel(network.bottom_up.channels)
    with pytest.raises(TypeError, match="SingleLevel merges no maps"):
        merged_maps(network, images)


def test_what_moves_with_the_picture_and_what_with_the_blocks() -> None:
    """C2 moves by a cell when the picture moves by 4 pixels, so the bottom-up pyramid's P2 does, and an FPN's
    does when all its maps move by whole cells: by 32 pixels."""
    images = torch.randn(2, 3, 64, 96)
    alone, merged = detector(top_down=False), detector()
    maps = {
        name: {found.shift: found.map for found in drifts(network, images, [2, 4, 8, 32])}
        for name, network in (("alone", alone), ("merged", merged))
    }
    assert max(maps["alone"][s] for s in (4, 8, 32)) < 1e-5 < 0.1 < maps["alone"][2]
    assert maps["merged"][4] > 0.01 < maps["merged"][8]
    # The border of the canvas, which C5 sees, is nearer on one side.
    assert maps["merged"][32] < 0.5 * maps["merged"][4]


def test_boxes_that_do_not_move_with_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    from fpn.types import Detections

    network = detector()

    def found(batch: object) -> list[Detections]:
        shift = len(calls)
        calls.append(batch)
        boxes = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
        boxes[0] += shift  # along with it; the other stays
        return [Detections(boxes, torch.tensor([0.9, 0.8 - 0.1 * shift]), torch.ones(2).long())]

    calls: list[object] = []
    monkeypatch.setattr(network, "detect", found)
    one, two = drifts(network, torch.randn(1, 3, 32, 32), [1, 2])
    overlaps = [81 / (200 - 81), 64 / (200 - 64)]
    assert (one.lost, two.lost) == (0, 0.5)
    assert one.overlap == pytest.approx((1 + overlaps[0]) / 2)
    assert two.overlap == pytest.approx(1)
    assert one.score == pytest.approx(0.05)
    assert two.score == pytest.approx(0, abs=1e-6)
    monkeypatch.setattr(
        network,
        "detect",
        lambda batch: [Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long())],
    )
    nothing = drifts(network, torch.randn(1, 3, 32, 32), [1])[0]
    assert math.isnan(nothing.overlap)
