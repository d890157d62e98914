import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops.poolers import LevelMapper

from fpn.ops.levels import assign_levels


def square(side: float) -> torch.Tensor:
    return torch.tensor([[3.0, 5.0, 3.0 + side, 5.0 + side]])


@pytest.mark.parametrize(
    ("side", "level"),
    [(1, 2), (111, 2), (112, 3), (223, 3), (224, 4), (447, 4), (448, 5), (896, 5), (4096, 5), (0, 2)],
)
def test_eq_1_at_its_boundaries(side: float, level: int) -> None:
    assert assign_levels(square(side), 2, 5).item() == level


@given(st.floats(1, 2000), st.floats(1, 2000))
def test_is_torchvisions(width: float, height: float) -> None:
    box = torch.tensor([[0.0, 0.0, width, height]])
    assert assign_levels(box, 2, 5).item() == LevelMapper(2, 5)([box]).item() + 2


@given(st.floats(2, 1000))
def test_an_octave_is_a_level(side: float) -> None:
    one, two = assign_levels(square(side), -99, 99).item(), assign_levels(square(2 * side), -99, 99).item()
    exact = math.log2(side / 224)
    if abs(exact - round(exact)) > 1e-4:
        assert two == one + 1


def test_canonical_size_moves_the_boundaries() -> None:
    assert assign_levels(square(56), 2, 5, canonical_size=56).item() == 4
    assert assign_levels(square(55), 2, 5, canonical_size=56).item() == 3


def test_a_box_of_no_size_has_a_level_too() -> None:
    inverted = torch.tensor([[50.0, 10.0, 10.0, 50.0], [math.nan, 0.0, 9.0, 9.0], [0.0, 0.0, math.inf, 9.0]])
    assert assign_levels(inverted, 2, 5).tolist() == [2, 2, 5]
