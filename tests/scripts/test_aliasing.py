"""The measures of aliasing on signals whose spectrum and whose steps are known."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from aliasing import UPSAMPLINGS, block_edges, drifts, merged_maps, smoothing, spectrum
from fpn.models.detectors import ProposalNetwork
from fpn.models.necks import FeaturePyramid, SingleLevel
from fpn.models.resnet import ResNet
from fpn.types import Detections


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


@pytest.mark.parametrize("size", [(64, 64), (12, 12), (20, 33), (2, 40)])
def test_the_spectrum_of_noise_is_flat(size: tuple[int, int]) -> None:
    found = spectrum(torch.randn(64, 64, *size))
    assert len(found.power) == len(found.frequency) == len(found.number) == 16
    assert int(found.number.sum()) == size[0] * size[1]
    assert torch.equal(found.power.isnan(), found.number == 0)
    shape = found.power[(found.frequency > 0.15) & (found.number > 0)]
    np.testing.assert_allclose(shape, float(shape.mean()), rtol=0.1)
    frequencies = [np.abs(np.fft.fftfreq(side)) for side in size]
    beyond = np.maximum.outer(*frequencies) > 0.25
    assert found.above(0.25) == pytest.approx(beyond.mean(), abs=0.02)


@pytest.mark.parametrize(("side", "least"), [(64, 0.006), (32, 0.012), (20, 0.018)])
def test_what_a_coarse_map_can_hold_has_no_images(side: int, least: float) -> None:
    """Noise enlarged without any, by its Fourier transform, the finest pattern of the coarse map included."""
    coarse = torch.fft.fftshift(torch.fft.fft2(torch.randn(16, 16, side // 2, side // 2)), dim=(-2, -1))
    fine = torch.nn.functional.pad(coarse, [side // 4] * 4)
    enlarged = torch.fft.ifft2(torch.fft.ifftshift(fine, dim=(-2, -1))).real
    assert spectrum(enlarged).above(0.25) < least
    assert (
        spectrum(UPSAMPLINGS["nearest"](torch.randn(16, 16, side // 2, side // 2), (side, side))).above(0.25)
        > 10 * least
    )


def test_the_spectrum_of_a_wave_in_any_direction() -> None:
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(64.0), indexing="ij")
    for along_x, along_y in ((0.2, 0.0), (0.1, 0.2), (0.21, 0.21), (0.0, 0.5)):
        found = spectrum(torch.cos(2 * math.pi * (along_x * x + along_y * y))[None, None])
        greater = max(along_x, along_y)
        assert abs(float(found.frequency[found.power.argmax()]) - greater) < 1 / 32
        # What a map of half the resolution can hold is no image.
        assert (found.above(0.25) > 0.5) == (greater > 0.25)


def test_block_edges() -> None:
    assert block_edges(torch.randn(4, 4, 64, 64)) == pytest.approx(1, abs=0.05)
    assert block_edges(UPSAMPLINGS["nearest"](torch.randn(1, 1, 8, 8), (16, 16))) == math.inf
    # A line of steps 1 within blocks and 3 between, along a row; nothing along a column.
    line = torch.tensor([0.0, 1, 4, 5, 8, 9]).expand(1, 1, 6, 6)
    assert block_edges(line) == pytest.approx(3)


def test_what_known_filters_make_of_the_summands() -> None:
    """A 3×3 that keeps one channel of four keeps a quarter of the power; 1:2:1 takes the images away."""
    network = detector()
    images = torch.randn(1, 3, 256, 256)
    keep, blur = torch.zeros(3, 3), torch.outer(torch.tensor([1.0, 2, 1]), torch.tensor([1.0, 2, 1])) / 16
    keep[1, 1] = 2
    merged = network.neck.merge(network.bottom_up(images))
    with torch.no_grad():
        for k, kernel in (("2", keep), ("3", blur)):
            layer = network.neck.smooths[k][0]
            layer.weight.zero_()
            for channel in range(8):
                layer.weight[channel, channel] = kernel
            layer.bias.fill_(5)
    found = smoothing(network, images)
    assert set(found) == {2, 3, 4}
    assert found[2].gain_above == pytest.approx(4, rel=1e-4)
    assert found[2].gain_lateral == pytest.approx(4, rel=1e-4)
    assert found[2].images_after == pytest.approx(found[2].images_before, rel=1e-4)
    enlarged = UPSAMPLINGS["nearest"](merged[4], (32, 32))
    assert found[3].images_before == pytest.approx(spectrum(enlarged).above(0.25))
    assert found[3].images_after < 0.5 * found[3].images_before
    assert found[3].gain_above < 1
    chance = smoothing(network, images, random=True)
    assert chance == smoothing(network, images, random=True)
    assert chance[2].gain_above != pytest.approx(4, rel=1e-2)


@pytest.mark.parametrize("without", ["top_down", "lateral", "smooth", "nonlinearity"])
def test_there_is_nothing_to_tell_of_a_3x3_that_follows_no_linear_sum(without: str) -> None:
    network = detector(**{without: without == "nonlinearity"})
    with pytest.raises(TypeError, match="no top-down pathway, laterals or 3×3, or a nonlinearity"):
        smoothing(network, torch.randn(1, 3, 64, 64))


def test_merged_maps_are_the_pathway() -> None:
    network = detector()
    images = torch.randn(1, 3, 64, 96)
    found = merged_maps(network, images)
    assert set(found) == {"nearest", "bilinear", "blurred", "after 3×3"}
    c = network.bottom_up(images)
    p = network.neck(c)
    for k in (2, 3, 4, 5):
        assert torch.equal(found["after 3×3"][k], p[k])
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
    # The border of the canvas, 64 pixels away and less, is within what C5 sees.
    assert maps["merged"][32] < 0.2 * maps["merged"][4]


def test_boxes_that_do_not_move_with_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    network = detector()

    def found(batch: object) -> list[Detections]:
        shift = len(calls)
        calls.append(batch)
        boxes = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
        boxes[0] += shift  # along with it; the other stays
        return [
            Detections(boxes, torch.tensor([0.9, 0.8 - 0.1 * shift]), torch.full((2,), labels[shift > 0]))
        ]

    calls: list[object] = []
    labels = [1, 1]
    monkeypatch.setattr(network, "detect", found)
    one, two = drifts(network, torch.randn(1, 3, 32, 32), [1, 2])
    calls.clear()
    (best,) = drifts(network, torch.randn(1, 3, 32, 32), [1], top=1)
    assert best.overlap == pytest.approx(1)
    labels[:] = [1, 2]
    calls.clear()
    assert drifts(network, torch.randn(1, 3, 32, 32), [1])[0].lost == 1
    labels[:] = [1, 1]
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
    assert math.isnan(nothing.lost)
