import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fpn.ops.roi_align import gather_roi_align, pool_levels


def gathered(p: Tensor, rois: Tensor, resolution: int, scale: float, ratio: int, aligned: bool) -> Tensor:
    return gather_roi_align([p], rois, [len(rois)], resolution, [scale], ratio, aligned)


def drawn(seed: int, number: int, shape: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    """A map, and RoIs of all sizes within it, across its border, outside, empty and upside down."""
    generator = torch.Generator().manual_seed(seed)
    n, _, h, w = shape
    p = torch.randn(shape, generator=generator)
    side = 8 * torch.tensor([w, h])
    centre = torch.rand(number, 2, generator=generator) * 2 * side - 0.5 * side
    extent = 2 ** (torch.rand(number, 2, generator=generator) * 9) - 2
    image = torch.randint(n, (number, 1), generator=generator).float()
    rois = torch.cat((image, centre - extent / 2, centre + extent / 2), dim=1)
    rois[::7, 1:] = rois[::7, 1:].round()  # samples on the cells themselves
    return p, rois


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(0, 20),
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 12), st.integers(1, 12)),
    st.sampled_from([1, 2, 7, 14]),
    st.integers(1, 4),
    st.booleans(),
)
def test_is_torchvisions(
    seed: int, number: int, shape: tuple[int, int, int, int], resolution: int, ratio: int, aligned: bool
) -> None:
    p, rois = drawn(seed, number, shape)
    p.requires_grad_()
    ours = gathered(p, rois, resolution, 1 / 8, ratio, aligned)
    theirs = torchvision.ops.roi_align(p, rois, resolution, 1 / 8, ratio, aligned)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
    towards = torch.randn(ours.shape, generator=torch.Generator().manual_seed(seed))
    (gradient,) = torch.autograd.grad(ours, p, towards)
    (expected,) = torch.autograd.grad(theirs, p, towards)
    torch.testing.assert_close(gradient, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("ratio", [0, 2])
def test_is_torchvisions_on_the_cpu_whatever_the_ratio(ratio: int) -> None:
    p, rois = drawn(3, 30, (2, 5, 20, 30))
    theirs = torchvision.ops.roi_align(p, rois, 7, 1 / 8, ratio, False)
    ours = pool_levels([p], rois, [len(rois)], 7, [1 / 8], ratio, False)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("ratio", [0, 2])
def test_each_level_has_its_own_rois(ratio: int) -> None:
    fine, rois = drawn(3, 30, (2, 5, 20, 30))
    coarse = torch.randn(2, 5, 7, 9)
    ours = pool_levels([fine, coarse, coarse], rois, [12, 0, 18], 7, [1 / 8, 1 / 16, 1 / 32], ratio, True)
    theirs = [
        torchvision.ops.roi_align(fine, rois[:12], 7, 1 / 8, ratio, True),
        torchvision.ops.roi_align(coarse, rois[12:], 7, 1 / 32, ratio, True),
    ]
    torch.testing.assert_close(ours, torch.cat(theirs), atol=1e-5, rtol=1e-4)


def test_gradients_in_double_precision() -> None:
    p, rois = drawn(5, 4, (2, 2, 5, 6))
    p, rois = p.double().requires_grad_(), rois.double()
    assert torch.autograd.gradcheck(lambda x: gathered(x, rois, 2, 1 / 8, 2, True), p)


def test_a_map_that_lies_with_its_channels_last() -> None:
    p, rois = drawn(7, 20, (2, 4, 9, 11))
    last = p.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(
        gathered(last, rois, 7, 1 / 8, 2, False), gathered(p, rois, 7, 1 / 8, 2, False)
    )
