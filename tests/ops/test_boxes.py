import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxCoder

from fpn.ops.boxes import decode_boxes, encode_boxes, intersection_over_own_area, rescale_boxes

WEIGHTS = [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)]


def random_boxes(number: int, generator: torch.Generator) -> torch.Tensor:
    corner = torch.rand(number, 2, generator=generator) * 500
    return torch.cat((corner, corner + 10 + torch.rand(number, 2, generator=generator) * 300), dim=1)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_deltas_are_torchvisions(weights: tuple[float, ...]) -> None:
    g = torch.Generator().manual_seed(1)
    boxes, references = random_boxes(200, g), random_boxes(200, g)
    coder = BoxCoder(weights)
    deltas = encode_boxes(boxes, references, weights)
    assert torch.equal(deltas, coder.encode_single(boxes, references))
    wild = torch.randn(200, 4, generator=g) * 10  # far past the cut of the logarithmic scale
    assert torch.equal(decode_boxes(wild, references, weights), coder.decode_single(wild, references))


@given(seed=st.integers(0, 2**31), weights=st.sampled_from(WEIGHTS))
def test_decoding_inverts_encoding(seed: int, weights: tuple[float, ...]) -> None:
    g = torch.Generator().manual_seed(seed)
    boxes, references = random_boxes(20, g), random_boxes(20, g)
    back = decode_boxes(encode_boxes(boxes, references, weights), references, weights)
    # Boxes beyond 62.5 times their reference are cut; these are not.
    torch.testing.assert_close(back, boxes, atol=2e-2, rtol=1e-4)


def test_decoding_by_hand() -> None:
    reference = torch.tensor([[10.0, 20.0, 30.0, 60.0]])  # 20 × 40 about (20, 40)
    deltas = torch.tensor([[0.5, -0.25, math.log(2), 0.0]])
    expected = torch.tensor([[10.0, 10.0, 50.0, 50.0]])  # 40 × 40 about (30, 30)
    torch.testing.assert_close(decode_boxes(deltas, reference, WEIGHTS[0]), expected)


def test_arithmetic_is_float32_for_half_precision_deltas() -> None:
    reference = torch.tensor([[3000.0, 3000.0, 4096.0, 4096.0]])
    decoded = decode_boxes(torch.zeros(1, 4, dtype=torch.bfloat16), reference, WEIGHTS[0])
    assert decoded.dtype == torch.float32
    assert torch.equal(decoded, reference)


def test_own_area_by_loop() -> None:
    g = torch.Generator().manual_seed(2)
    boxes, regions = random_boxes(15, g), random_boxes(6, g)
    boxes[0, 2:] = boxes[0, :2]  # without area
    got = intersection_over_own_area(boxes, regions)
    for i, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        for j, (u1, v1, u2, v2) in enumerate(regions.tolist()):
            overlap = max(min(x2, u2) - max(x1, u1), 0) * max(min(y2, v2) - max(y1, v1), 0)
            area = (x2 - x1) * (y2 - y1)
            assert got[i, j].item() == pytest.approx(overlap / area if area else 0.0, abs=1e-5)
    assert intersection_over_own_area(boxes, regions[:0]).shape == (15, 0)


def test_rescaling_by_hand() -> None:
    box = torch.tensor([[10.0, 20.0, 30.0, 40.0]])
    assert rescale_boxes(box, (100, 200), (50, 800)).tolist() == [[40.0, 10.0, 120.0, 20.0]]
