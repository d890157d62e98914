import torch
from hypothesis import given
from hypothesis import strategies as st

from fpn.ops.sampling import sample_balanced


def chosen(
    labels: torch.Tensor, number: int, fraction: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of one image, the foreground and the background."""
    index, taken = (part[0] for part in sample_balanced(labels[None], number, fraction, generator))
    assert len(index) == min(number, len(labels))
    assert taken.tolist() == sorted(taken.tolist(), reverse=True)
    index = index[taken]
    return index[labels[index] > 0], index[labels[index] == 0]


@given(
    labels=st.lists(st.integers(-1, 3), max_size=80),
    number=st.integers(0, 40),
    fraction=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_properties(labels: list[int], number: int, fraction: float, seed: int) -> None:
    label = torch.tensor(labels, dtype=torch.int64)
    g = torch.Generator().manual_seed(seed)
    foreground, background = chosen(label, number, fraction, g)
    assert (label[foreground] > 0).all()
    assert (label[background] == 0).all()
    assert len(foreground) == min(int(number * fraction), int((label > 0).sum()))
    assert len(background) == min(number - len(foreground), int((label == 0).sum()))
    for some in (foreground, background):
        assert some.tolist() == sorted(set(some.tolist()))
    again = chosen(label, number, fraction, torch.Generator().manual_seed(seed))
    assert torch.equal(again[0], foreground)
    assert torch.equal(again[1], background)


def test_every_candidate_is_as_likely() -> None:
    labels = torch.tensor([1] * 6 + [0] * 10)
    g = torch.Generator().manual_seed(0)
    counts = torch.zeros(16)
    for _ in range(2000):
        foreground, background = chosen(labels, 8, 0.25, g)
        counts[torch.cat((foreground, background))] += 1
    torch.testing.assert_close(counts[:6], torch.full((6,), 2000 * 2 / 6), atol=90, rtol=0)
    torch.testing.assert_close(counts[6:], torch.full((10,), 2000 * 6 / 10), atol=90, rtol=0)


def test_images_of_a_batch_are_drawn_each_on_its_own() -> None:
    labels = torch.tensor([[1] * 4 + [0] * 8, [0] * 12, [-1] * 12, [1] * 12])
    index, taken = sample_balanced(labels, 6, 0.5, torch.Generator().manual_seed(0))
    numbers = [((label[i] > 0) & t).sum().item() for label, i, t in zip(labels, index, taken, strict=True)]
    assert (taken.sum(dim=1).tolist(), numbers) == ([6, 6, 0, 3], [3, 0, 0, 3])
    counts = torch.zeros(2, 12)
    g = torch.Generator().manual_seed(1)
    for _ in range(2000):
        index, _ = sample_balanced(torch.zeros(2, 12), 6, 0.5, g)
        counts.scatter_add_(1, index, torch.ones(2, 6))
    torch.testing.assert_close(counts, torch.full((2, 12), 1000.0), atol=90, rtol=0)
