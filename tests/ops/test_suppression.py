import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou, nms

from fpn.ops.suppression import soft_suppress, suppress


def drawn(seed: int, groups: int, each: int) -> tuple[Tensor, Tensor]:
    """Boxes that overlap, scores of which some are equal, places without a box and a group without any."""
    generator = torch.Generator().manual_seed(seed)
    corner, side = torch.rand(2, groups, each, 2, generator=generator) * 60
    scores = torch.randn(groups, each, generator=generator)
    scores[::2] = scores[::2].round()
    scores[torch.rand(groups, each, generator=generator) < 0.2] = -torch.inf
    scores[-1] = -torch.inf
    return torch.cat((corner, corner + side), dim=-1), scores


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 2**31), st.integers(1, 5), st.integers(0, 40), st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0])
)
def test_each_group_is_torchvisions(seed: int, groups: int, each: int, iou: float) -> None:
    boxes, scores = drawn(seed, groups, each)
    keep = suppress(boxes, scores, iou)
    for group in range(groups):
        there = (scores[group] > -torch.inf).nonzero()[:, 0]
        expected = there[nms(boxes[group, there], scores[group, there], iou)]
        assert keep[group].nonzero()[:, 0].tolist() == expected.sort().values.tolist()


def test_by_definition() -> None:
    boxes, scores = drawn(0, 4, 60)
    keep = suppress(boxes, scores, 0.4)
    for group in range(4):
        overlaps, kept = box_iou(boxes[group], boxes[group]), set[int]()
        for i in scores[group].argsort(descending=True, stable=True).tolist():
            if scores[group, i] > -torch.inf and all(overlaps[i, j] <= 0.4 for j in kept):
                kept.add(i)
        assert set(keep[group].nonzero()[:, 0].tolist()) == kept


def soft_nms(
    boxes: list[list[float]], scores: list[float], iou: float, sigma: float | None
) -> list[tuple[float, int]]:
    """One group, as the pseudo code of Bodla et al. has it: lowered scores and places, as picked."""
    left, picked = dict(enumerate(scores)), []
    while left:
        best = max(left, key=lambda i: left[i])
        picked.append((left.pop(best), best))
        for i in left:
            overlap = box_iou(torch.tensor([boxes[best]]), torch.tensor([boxes[i]])).item()
            if sigma is not None:
                left[i] *= math.exp(-(overlap**2) / sigma)
            elif overlap > iou:
                left[i] *= 1 - overlap
    return picked


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(0, 8),
    st.integers(0, 40),
    st.sampled_from([None, 0.1, 0.5, 2.0]),
)
def test_the_best_of_soft_nms_by_loop(
    seed: int, images: int, groups: int, each: int, number: int, sigma: float | None
) -> None:
    boxes, _ = drawn(seed, images * groups, each)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(images, groups, each, generator=generator)
    scores[torch.rand(scores.shape, generator=generator) < 0.2] = 0
    boxes = boxes.view(images, groups, each, 4)
    index, best = soft_suppress(boxes, scores, number, 0.3, sigma)
    assert index.shape == best.shape == (images, number)
    assert (best.diff(dim=1) <= 0).all()
    for n in range(images):
        expected: list[tuple[float, int]] = []
        for group in range(groups):
            there = scores[n, group].nonzero()[:, 0].tolist()
            one = soft_nms(boxes[n, group, there].tolist(), scores[n, group, there].tolist(), 0.3, sigma)
            expected += [(score, group * each + there[i]) for score, i in one if score > 0]
        expected = sorted(expected, reverse=True)[:number]
        assert best[n].tolist() == pytest.approx(
            [s for s, _ in expected] + [0.0] * (number - len(expected)), abs=1e-6
        )
        assert index[n, : len(expected)].tolist() == [i for _, i in expected]


def test_the_operators_are_what_they_are_registered_as() -> None:
    boxes, scores = drawn(1, 3, 9)
    torch.library.opcheck(suppress, (boxes, scores, 0.5))
    positive = scores.sigmoid()
    for sigma in (None, 0.5):
        torch.library.opcheck(soft_suppress, (boxes[None], positive[None], 20, 0.3, sigma))


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
def test_the_kernel_for_gpus_does_the_same() -> None:
    """By Triton's interpreter, which must be chosen before Triton is imported."""
    code = """
import torch
from ops.test_suppression import drawn
from fpn.ops.suppression import soft_suppress, suppress
from fpn.ops.suppression_kernel import greedy
for seed, each in enumerate((1, 7, 33, 100)):
    boxes, scores = drawn(seed, 4, each)
    for iou in (0.3, 0.7):
        assert torch.equal(greedy(boxes, scores, iou), suppress(boxes, scores, iou)), (each, iou)
"""
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
