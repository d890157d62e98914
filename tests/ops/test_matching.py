from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from fpn.ops.matching import BACKGROUND, IGNORED, match_boxes


def boxes(corners: list[tuple[int, int, int, int]]) -> torch.Tensor:
    rows = [(x, y, x + w, y + h) for x, y, w, h in corners]
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


BOX = st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(1, 20), st.integers(1, 20))


@given(truth=st.lists(BOX, min_size=1, max_size=6), candidates=st.lists(BOX, min_size=1, max_size=25))
@settings(max_examples=200)
@pytest.mark.parametrize(("high", "low", "rescue"), [(0.7, 0.3, True), (0.5, 0.5, False)])
def test_is_torchvisions_wherever_every_object_is_touched(
    high: float,
    low: float,
    rescue: bool,
    truth: list[tuple[int, int, int, int]],
    candidates: list[tuple[int, int, int, int]],
) -> None:
    gt, anchors = boxes(truth), boxes(candidates)
    ours = match_boxes(gt, anchors, high, low, rescue)
    iou = box_iou(gt, anchors)
    touched = iou.amax(dim=1) > 0
    # torchvision lets an object that nothing touches rescue everything it does not touch; ours must not.
    theirs = Matcher(high, low, allow_low_quality_matches=False)(iou.clone())
    if rescue and touched.any():
        best = (iou[touched] == iou[touched].amax(dim=1, keepdim=True)).any(dim=0)
        theirs = torch.where(best, iou.max(dim=0).indices, theirs)
        if touched.all():
            assert torch.equal(theirs, Matcher(high, low, allow_low_quality_matches=True)(iou.clone()))
    assert torch.equal(ours, theirs)


@given(truth=st.lists(BOX, min_size=1, max_size=9), candidates=st.lists(BOX, min_size=1, max_size=25))
@pytest.mark.parametrize("pairs", [1, 60])
def test_blocks_of_boxes_match_as_all_at_once(
    pairs: int, truth: list[tuple[int, int, int, int]], candidates: list[tuple[int, int, int, int]]
) -> None:
    gt, anchors = boxes(truth), boxes(candidates)
    whole = match_boxes(gt, anchors, 0.6, 0.3, rescue=True)
    with patch("fpn.ops.matching.PAIRS_AT_ONCE", pairs):
        assert torch.equal(match_boxes(gt, anchors, 0.6, 0.3, rescue=True), whole)


def test_by_hand() -> None:
    truth = boxes([(0, 0, 10, 10), (100, 100, 10, 10), (500, 500, 10, 10)])
    candidates = boxes([(0, 0, 10, 10), (0, 0, 10, 20), (0, 0, 2, 2), (100, 100, 2, 10), (300, 300, 9, 9)])
    # Overlaps 1, 0.5, 0.04 with the first; 0.2 with the second, its best; nothing touches the third.
    match = match_boxes(truth, candidates, 0.7, 0.3, rescue=True)
    assert match.tolist() == [0, IGNORED, BACKGROUND, 1, BACKGROUND]
    assert match_boxes(truth, candidates, 0.7, 0.3, rescue=False).tolist()[3] == BACKGROUND


def test_without_ground_truth_or_candidates() -> None:
    some = boxes([(0, 0, 5, 5), (3, 3, 5, 5)])
    assert match_boxes(some[:0], some, 0.7, 0.3, rescue=True).tolist() == [BACKGROUND, BACKGROUND]
    assert match_boxes(some, some[:0], 0.7, 0.3, rescue=True).shape == (0,)


def test_two_boxes_without_area_do_not_match() -> None:
    points = torch.tensor([[5.0, 5.0, 5.0, 5.0]])
    assert match_boxes(points, points, 0.5, 0.5, rescue=False).tolist() == [BACKGROUND]
    assert match_boxes(points, points, 0.7, 0.3, rescue=True).tolist() == [BACKGROUND]
