import math
from functools import partial

import pytest
import torch
from torchvision.models.detection.rpn import RPNHead as Peer

from fpn.errors import InputError
from fpn.models.necks import FeaturePyramid, Neck, SingleLevel
from fpn.models.rpn import RegionProposalNetwork, RPNHead

CHANNELS = {2: 4, 3: 6, 4: 8, 5: 10}
FIVE = [32.0, 64.0, 128.0, 256.0, 512.0]


def test_head_is_torchvisions() -> None:
    ours, peer = RPNHead(8, 3), Peer(8, 3)
    peer.conv[0][0].load_state_dict(ours.conv.state_dict())
    peer.cls_logits.load_state_dict(ours.objectness.state_dict())
    peer.bbox_pred.load_state_dict(ours.deltas.state_dict())
    x = torch.randn(2, 8, 5, 7)
    (logits,), (deltas,) = peer([x])
    objectness, ours_deltas = ours(x)
    for n, a, y, z in [(0, 0, 0, 0), (1, 2, 4, 6), (1, 1, 3, 2)]:
        index = (y * 7 + z) * 3 + a
        assert objectness[n, index] == logits[n, a, y, z]
        assert torch.equal(ours_deltas[n, index], deltas[n, 4 * a : 4 * a + 4, y, z])


@pytest.mark.parametrize(
    ("neck", "sizes", "number"),
    [
        (partial(FeaturePyramid, CHANNELS, 8), {2: [32], 3: [64], 4: [128], 5: [256], 6: [512]}, 199_974),
        (partial(SingleLevel, CHANNELS, 4), {4: FIVE}, 47_250),
        (partial(SingleLevel, CHANNELS, 5), {5: FIVE}, 12_000),
        (partial(FeaturePyramid, CHANNELS, 8, [2]), {2: FIVE}, 750_000),
    ],
)
def test_number_of_anchors_of_an_800_by_1000_image(neck: partial[Neck], sizes: dict, number: int) -> None:
    """Table 1 prints 200k, 47k, 12k and 750k; the maps of 800 × 1000 are not padded there."""
    built = neck()
    rpn = RegionProposalNetwork(built, sizes)
    p = {k: torch.zeros(1, built.channels, -(-800 // 2**k), -(-1000 // 2**k)) for k in built.levels}
    output = rpn(p, (800, 1000))
    assert sum(len(a) for a in output.anchors.values()) == number
    assert sum(o.shape[1] for o in output.objectness.values()) == number
    assert sum(d.shape[1] for d in output.deltas.values()) == number


def test_p6_is_every_second_position_of_p5() -> None:
    neck = FeaturePyramid(CHANNELS, 8)
    rpn = RegionProposalNetwork(neck)
    p = {k: torch.randn(1, 8, 2 ** (8 - k) + 1, 2 ** (8 - k)) for k in neck.levels}
    output = rpn(p, (288, 256))
    expected = rpn.head["shared"](p[5][:, :, ::2, ::2])
    assert torch.equal(output.objectness[6], expected[0])
    assert torch.equal(output.deltas[6], expected[1])


def test_unshared_heads_with_the_same_weights_say_the_same() -> None:
    neck = FeaturePyramid(CHANNELS, 8)
    shared, unshared = RegionProposalNetwork(neck), RegionProposalNetwork(neck, shared=False)
    assert sorted(unshared.head) == ["2", "3", "4", "5", "6"]
    for head in unshared.head.values():
        head.load_state_dict(shared.head["shared"].state_dict())
    p = {k: torch.randn(2, 8, 2 ** (8 - k), 2 ** (8 - k)) for k in neck.levels}
    one, other = shared(p, (256, 256)), unshared(p, (256, 256))
    for k in one.objectness:
        assert torch.equal(one.objectness[k], other.objectness[k])
        assert torch.equal(one.deltas[k], other.deltas[k])
    numbers = [sum(q.numel() for q in r.parameters()) for r in (shared, unshared)]
    assert numbers[1] == 5 * numbers[0]


def test_grids_differ_only_where_a_map_is_odd() -> None:
    neck = FeaturePyramid(CHANNELS, 8)
    spread, stride = RegionProposalNetwork(neck), RegionProposalNetwork(neck, grid="stride")
    assert torch.equal(spread.anchors(5, (25, 34), (800, 1088)), stride.anchors(5, (25, 34), (800, 1088)))
    last = [r.anchors(6, (13, 17), (800, 1088))[-1].unflatten(0, (2, 2)).mean(0) for r in (spread, stride)]
    assert last[0].tolist() == [64 * 16, 61 * 12]
    assert last[1].tolist() == [64 * 16, 64 * 12]


def test_on_sides_that_are_no_multiple_of_32_anchors_stand_on_their_cells() -> None:
    neck = FeaturePyramid(CHANNELS, 8)
    spread, stride = RegionProposalNetwork(neck), RegionProposalNetwork(neck, grid="stride")
    for size in ((801, 1067), (816, 1072), (201, 267), (33, 5)):
        for k in (2, 3, 4, 5, 6):
            cells = [math.ceil(side / 2**k) for side in size]
            assert torch.equal(spread.anchors(k, cells, size), stride.anchors(k, cells, size))


def test_mistakes_are_named() -> None:
    with pytest.raises(InputError, match="a shared head needs the same number"):
        RegionProposalNetwork(FeaturePyramid(CHANNELS, 8), {2: [8], 3: [16, 32]})
    with pytest.raises(InputError, match=r"levels \[3\], but the neck gives \[4\]"):
        RegionProposalNetwork(SingleLevel(CHANNELS, 4), {3: [8]})
