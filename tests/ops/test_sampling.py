import torch
from hypothesis import given
from hypothesis import strategies as st

from fpn.ops.sampling import sample_balanced


@given(
    labels=st.lists(st.integers(-1, 3), max_size=80),
    number=st.integers(0, 40),
    fraction=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_properties(labels: list[int], number: int, fraction: float, seed: int) -> None:
    label = torch.tensor(labels, dtype=torch.int64)
    g = torch.Generator().manual_seed(seed)
    foreground, background = sample_balanced(label, number, fraction, g)
    assert (label[foreground] > 0).all()
    assert (label[background] == 0).all()
    assert len(foreground) == min(int(number * fraction), int((label > 0).sum()))
    assert len(background) == min(number - len(foreground), int((label == 0).sum()))
    for chosen in (foreground, background):
        assert chosen.tolist() == sorted(set(chosen.tolist()))
    again = sample_balanced(label, number, fraction, torch.Generator().manual_seed(seed))
    assert torch.equal(again[0], foreground)
    assert torch.equal(again[1], background)


def test_every_candidate_is_as_likely() -> None:
    labels = torch.tensor([1] * 6 + [0] * 10)
    g = torch.Generator().manual_seed(0)
    counts = torch.zeros(16)
    for _ in range(2000):
        foreground, background = sample_balanced(labels, 8, 0.25, g)
        counts[torch.cat((foreground, background))] += 1
    torch.testing.assert_close(counts[:6], torch.full((6,), 2000 * 2 / 6), atol=90, rtol=0)
    torch.testing.assert_close(counts[6:], torch.full((10,), 2000 * 6 / 10), atol=90, rtol=0)
