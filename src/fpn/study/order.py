"""Whether the rows of a table come out in the paper's order."""

import math
from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple

import torch
from torchmetrics.functional.regression import kendall_rank_corrcoef


class Order(NamedTuple):
    """How the order of some rows agrees with the paper's."""

    rows: int
    """How many there are to compare."""
    tau: float
    """Kendall's tau-b, in [-1, 1]: 1 for the same order, less where rows are equal in one side alone;
    NaN with fewer than two rows, or where all rows of a side are equal."""
    inverted: tuple[tuple[str, str], ...]
    """Pairs (better, worse) by the paper of which ours has the first below the second."""
    tied: tuple[tuple[str, str], ...]
    """Pairs (better, worse) by the paper that are equal in ours."""


def compare_order(paper: Mapping[str, float], ours: Mapping[str, float]) -> Order:
    """Compares the rows that both have, by one number of each, the higher the better."""
    rows = [row for row in paper if row in ours]
    tau = math.nan
    if len(rows) > 1:
        one, other = (
            torch.tensor([side[row] for row in rows], dtype=torch.float64) for side in (ours, paper)
        )
        tau = float(torch.as_tensor(kendall_rank_corrcoef(one, other, variant="b")))
    pairs = [
        (x, y) if paper[x] > paper[y] else (y, x) for x, y in combinations(rows, 2) if paper[x] != paper[y]
    ]
    return Order(
        len(rows),
        tau,
        tuple((better, worse) for better, worse in pairs if ours[better] < ours[worse]),
        tuple(pair for pair in pairs if ours[pair[0]] == ours[pair[1]]),
    )
