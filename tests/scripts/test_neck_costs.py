"""Operations of a neck, against those counted by hand."""

from functools import partial

import pytest

from fpn.models.necks import FaPN, FeaturePyramid
from neck_costs import cost


def test_operations_are_those_counted_by_hand() -> None:
    """Maps of 4 × 6 and 2 × 3 cells; each product with its sum is two."""
    fine, coarse, d = 24, 6, 8
    laterals = 2 * d * (fine * 4 + coarse * 6)
    smooths = 2 * 9 * d * d * (fine + coarse)
    levels = {"channels": d, "levels": [4, 5]}
    _, operations = cost(partial(FeaturePyramid, **levels), {4: 4, 5: 6}, 64, 96)
    assert operations * 1e9 == pytest.approx(laterals + smooths)
    selection = 2 * 4 * 4  # of one cell; the 1×1 after it is a lateral
    compared, offsets, deformable = 2 * 2 * d * d, 2 * 9 * d * 27 * 4, 2 * 9 * d * d
    _, operations = cost(partial(FaPN, groups=4, **levels), {4: 4, 5: 6}, 64, 96)
    by_hand = laterals + smooths + selection + fine * (compared + offsets + deformable)
    assert operations * 1e9 == pytest.approx(by_hand)
