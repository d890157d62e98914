import itertools
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from fpn.errors import InputError
from fpn.models.necks import FeaturePyramid, SingleLevel

CHANNELS = {2: 4, 3: 6, 4: 8, 5: 10}


def maps(size: tuple[int, int] = (70, 101)) -> dict[int, Tensor]:
    return {k: torch.randn(2, d, -(-size[0] // 2**k), -(-size[1] // 2**k)) for k, d in CHANNELS.items()}


def test_is_torchvisions_on_odd_maps() -> None:
    ours, peer = FeaturePyramid(CHANNELS, 16), FeaturePyramidNetwork(list(CHANNELS.values()), 16)
    for i, k in enumerate(CHANNELS):
        peer.inner_blocks[i][0].load_state_dict(ours.laterals[str(k)][0].state_dict())
        peer.layer_blocks[i][0].load_state_dict(ours.smooths[str(k)][0].state_dict())
    c = maps()
    expected = peer(OrderedDict((str(k), x) for k, x in c.items()))
    p = ours(c)
    assert list(p) == [2, 3, 4, 5]
    for k in p:
        assert torch.equal(p[k], expected[str(k)])


@pytest.mark.parametrize(
    ("lateral", "top_down", "smooth", "nonlinearity"),
    [t for t in itertools.product([True, False], repeat=4) if t[0] or t[1]],
)
def test_toggles_compute_what_they_say(
    lateral: bool, top_down: bool, smooth: bool, nonlinearity: bool
) -> None:
    """Against the definition, level by level, written out."""
    neck = FeaturePyramid(
        CHANNELS, 16, lateral=lateral, top_down=top_down, smooth=smooth, nonlinearity=nonlinearity
    )
    act = F.relu if nonlinearity else (lambda x: x)
    c = maps((64, 96))
    lateral_levels = [2, 3, 4, 5] if lateral else [5]
    assert sorted(neck.laterals) == [str(k) for k in lateral_levels]
    assert sorted(neck.smooths) == (["2", "3", "4", "5"] if smooth else [])
    assert sum(isinstance(m, nn.ReLU) for m in set(neck.modules())) == nonlinearity
    p = neck(c)
    above = None
    for k in (5, 4, 3, 2):
        merged = act(neck.laterals[str(k)][0](c[k])) if k in lateral_levels else 0
        if top_down and above is not None:
            merged = merged + above.repeat_interleave(2, -1).repeat_interleave(2, -2)
        above = merged
        expected = act(neck.smooths[str(k)][0](merged)) if smooth else merged
        torch.testing.assert_close(p[k], expected)
    sum(x.sum() for x in p.values()).backward()
    assert all(parameter.grad is not None for parameter in neck.parameters())


def test_only_the_finest_level_still_needs_all_above() -> None:
    full, finest = FeaturePyramid(CHANNELS, 16), FeaturePyramid(CHANNELS, 16, levels=[2])
    assert sorted(finest.laterals) == ["2", "3", "4", "5"]
    assert sorted(finest.smooths) == ["2"]
    finest.load_state_dict({k: v for k, v in full.state_dict().items() if k in finest.state_dict()})
    c = maps()
    assert torch.equal(finest(c)[2], full(c)[2])
    alone = FeaturePyramid(CHANNELS, 16, levels=[2], top_down=False)
    assert sorted(alone.laterals) == ["2"]


def test_single_level_is_the_map_itself() -> None:
    c = maps()
    neck = SingleLevel(CHANNELS, level=4)
    assert (neck.levels, neck.channels) == ((4,), 8)
    assert list(neck(c)) == [4]
    assert neck(c)[4] is c[4]
    assert not list(neck.parameters())


def test_mistakes_are_named() -> None:
    with pytest.raises(InputError, match="both false"):
        FeaturePyramid(CHANNELS, lateral=False, top_down=False)
    with pytest.raises(InputError, match=r"\[2, 6\] are not among"):
        FeaturePyramid(CHANNELS, levels=[2, 6])
    with pytest.raises(InputError, match="level 6 is not among"):
        SingleLevel(CHANNELS, level=6)
