"""The necks that came after FPN: the papers' equations as loops on small maps, known costs, identities."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fpn
from fpn.errors import InputError
from fpn.models.necks import (
    NASFPN,
    PAFPN,
    BalancedFeaturePyramid,
    BiFPN,
    CarafePyramid,
    FaPN,
    FeaturePyramid,
    Neck,
    SimpleFPN,
)
from fpn.models.necks.balanced import NonLocal
from fpn.models.necks.bifpn import Fusion
from fpn.models.necks.carafe import Carafe
from fpn.models.necks.fapn import Alignment, Selection
from fpn.types import Batch, Features

CHANNELS = {2: 4, 3: 6, 4: 8, 5: 10}
RESNET50 = {2: 256, 3: 512, 4: 1024, 5: 2048}
OF_FPN = [PAFPN, BalancedFeaturePyramid, CarafePyramid, FaPN]
"""Those that are an FPN and something more."""
PYRAMIDS = [*OF_FPN, BiFPN, NASFPN]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def maps(size: tuple[int, int] = (70, 101), images: int = 2) -> Features:
    sides = {k: (-(-size[0] // 2**k), -(-size[1] // 2**k)) for k in CHANNELS}
    return {k: torch.randn(images, d, *sides[k]) for k, d in CHANNELS.items()}


def as_fpn(neck: FeaturePyramid) -> FeaturePyramid:
    """An FPN with a neck's laterals and 3×3."""
    plain = FeaturePyramid(CHANNELS, neck.channels)
    state = {k: v for k, v in neck.state_dict().items() if k.startswith(("laterals", "smooths"))}
    plain.load_state_dict(state)
    return plain


def shaken(neck: nn.Module) -> Any:
    """With no parameter at zero or one, and norms that have seen something."""
    with torch.no_grad():
        for parameter in neck.parameters():
            parameter.uniform_(-0.2, 0.3)
        for module in neck.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.get_buffer("running_mean").uniform_(-0.5, 0.5)
                module.get_buffer("running_var").uniform_(0.5, 2)
            elif isinstance(module, Fusion):
                module.weights.uniform_(0.2, 1)
    return neck.eval()


def blown_up(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Twice as large by repeating, cut to a size."""
    return x.repeat_interleave(2, -1).repeat_interleave(2, -2)[..., : size[0], : size[1]]


def greatest(x: Tensor, side: int, before: int = 0, stride: int | None = None) -> Tensor:
    """The greatest of the cells of each window that are on the map."""
    stride = stride or side
    h, w = (-(-n // stride) for n in x.shape[-2:])
    out = x.new_empty(*x.shape[:2], h, w)
    for i in range(h):
        for j in range(w):
            y, z = i * stride - before, j * stride - before
            out[..., i, j] = x[..., max(y, 0) : y + side, max(z, 0) : z + side].amax((-2, -1))
    return out


def size(x: Tensor) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]


# All of them.


@pytest.mark.parametrize("cls", PYRAMIDS)
@pytest.mark.parametrize("pixels", [(70, 101), (64, 96), (129, 65)])
def test_levels_channels_and_gradients(cls: Callable[..., Neck], pixels: tuple[int, int]) -> None:
    neck = cls(CHANNELS, channels=16)
    shaken(neck).train()
    c = maps(pixels)
    p = neck({k: x.requires_grad_() for k, x in c.items()})
    levels = (2, 3, 4, 5, 6) if cls is NASFPN else (2, 3, 4, 5)
    assert (tuple(p), neck.levels, neck.channels) == (levels, levels, 16)
    assert sorted(neck.inputs) == [2, 3, 4, 5]
    for k, x in p.items():
        assert x.shape == (2, 16, math.ceil(pixels[0] / 2**k), math.ceil(pixels[1] / 2**k))
    sum((x * torch.randn_like(x)).sum() for x in p.values()).backward()
    for name, parameter in neck.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or "phi.bias" in name, name
    assert all(x.grad is not None and x.grad.any() for x in c.values())


@pytest.mark.parametrize("cls", [*PYRAMIDS, SimpleFPN])
def test_can_be_exported(cls: Callable[..., Neck]) -> None:
    """No branch on values; and the program gives the same maps."""
    once = {"repeats": 1} if cls in (BiFPN, NASFPN) else {}
    neck = shaken(cls(CHANNELS, channels=8, **once))
    c = maps((64, 96), images=1)
    program = torch.export.export(neck, (c,), strict=False)
    other = maps((64, 96), images=1)
    for k, x in program.module()(other).items():
        torch.testing.assert_close(x, neck(other)[k])


@pytest.mark.parametrize("cls", OF_FPN)
def test_fewer_levels(cls: Callable[..., Neck]) -> None:
    neck = cls(CHANNELS, channels=8, levels=[3, 4])
    assert sorted(neck(maps())) == [3, 4]


# PAFPN.


def test_pafpn_is_its_figure() -> None:
    neck, c = shaken(PAFPN(CHANNELS, 8)), maps()
    p, n = as_fpn(neck)(c), neck(c)
    below = p[2]
    assert torch.equal(n[2], below)
    for k in (3, 4, 5):
        down, fuse = neck.downs[str(k)], neck.fuses[str(k)]
        # Stride 2: every second one of the convolution at each cell.
        at_each = F.conv2d(below, down.weight, down.bias, padding=1)[..., ::2, ::2]
        below = F.conv2d(at_each.clamp(min=0) + p[k], fuse.weight, fuse.bias, padding=1).clamp(min=0)
        torch.testing.assert_close(n[k], below)


def test_pafpn_without_its_path_is_fpn() -> None:
    """The strided convolutions zero, the others the identity: what is left is the ReLU of FPN's maps."""
    neck, c = PAFPN(CHANNELS, 8), maps()
    for k in "345":
        nn.init.zeros_(neck.downs[k].weight)
        nn.init.dirac_(neck.fuses[k].weight)
    p, n = as_fpn(neck)(c), neck(c)
    for k in (3, 4, 5):
        torch.testing.assert_close(n[k], p[k].relu())


# BiFPN.


def test_fast_normalised_fusion_is_its_equation() -> None:
    fusion = shaken(Fusion(4, 3))
    with torch.no_grad():
        fusion.weights.copy_(torch.tensor([0.5, -1.0, 2.0]))  # a negative weight is none
    x = [torch.randn(1, 4, 5, 6) for _ in range(3)]
    fused = (0.5 * x[0] + 2.0 * x[2]) / (0.5 + 2.0 + 0.0001)
    fused = fused / (1 + (-fused).exp())
    each = [F.conv2d(fused[:, i : i + 1], fusion.depthwise.weight[i : i + 1], padding=1) for i in range(4)]
    one = torch.einsum("oi,nihw->nohw", fusion.pointwise.weight[..., 0, 0], torch.cat(each, 1))
    one = one + fusion.pointwise.bias.view(-1, 1, 1)
    mean, var = fusion.norm.running_mean.view(-1, 1, 1), fusion.norm.running_var.view(-1, 1, 1)
    scale, shift = fusion.norm.weight.view(-1, 1, 1), fusion.norm.bias.view(-1, 1, 1)
    torch.testing.assert_close(fusion(*x), (one - mean) / (var + 1e-3).sqrt() * scale + shift)


def test_bifpn_is_its_figure() -> None:
    """Sec. 3.3, two times over, with P6 and P7 above the bottom-up's top."""
    neck = shaken(BiFPN({3: 6, 4: 8, 5: 10}, 8, levels=(3, 4, 5, 6, 7), repeats=2))
    c = {k: x for k, x in maps((300, 201)).items() if k > 2}
    lateral = neck.laterals.convs
    p = {k: lateral[str(k)](c[k]) for k in (3, 4, 5)}
    p[6] = greatest(lateral["6"](c[5]), 3, before=1, stride=2)
    p[7] = greatest(p[6], 3, before=1, stride=2)
    for layer in neck.layers:
        m7 = p[7]
        m6 = layer.down["6"](p[6], blown_up(m7, size(p[6])))
        m5 = layer.down["5"](p[5], blown_up(m6, size(p[5])))
        m4 = layer.down["4"](p[4], blown_up(m5, size(p[4])))
        o3 = layer.down["3"](p[3], blown_up(m4, size(p[3])))
        o4 = layer.up["4"](p[4], m4, greatest(o3, 3, before=1, stride=2))
        o5 = layer.up["5"](p[5], m5, greatest(o4, 3, before=1, stride=2))
        o6 = layer.up["6"](p[6], m6, greatest(o5, 3, before=1, stride=2))
        o7 = layer.up["7"](p[7], greatest(o6, 3, before=1, stride=2))
        p = {3: o3, 4: o4, 5: o5, 6: o6, 7: o7}
    found = neck(c)
    assert list(found) == [3, 4, 5, 6, 7]
    for k, x in found.items():
        torch.testing.assert_close(x, p[k])


def test_bifpn_without_its_way_up_is_a_top_down_pathway() -> None:
    """A weight of zero on what comes from below leaves what the finer levels hold out of the coarser ones."""
    neck, c = shaken(BiFPN(CHANNELS, 8, repeats=1)), maps()
    with torch.no_grad():
        for fusion in neck.layers[0].up.values():
            fusion.weights[-1] = 0
    before = neck(c)
    after = neck(c | {2: torch.randn_like(c[2])})
    assert not torch.equal(before[2], after[2])
    assert all(torch.equal(before[k], after[k]) for k in (3, 4, 5))


# Libra R-CNN.


@pytest.mark.parametrize("middle", [2, 4, 5])
def test_balancing_is_its_equation(middle: int) -> None:
    neck, c = BalancedFeaturePyramid(CHANNELS, 8, middle=middle, refine=None), maps((64, 96))
    p, found = as_fpn(neck)(c), neck(c)

    def at(x: Tensor, level: int, to: int) -> Tensor:
        side = 2 ** abs(to - level)
        if level > to:
            return x.repeat_interleave(side, -1).repeat_interleave(side, -2)
        return greatest(x, side)

    b = torch.stack([at(p[k], k, middle) for k in (2, 3, 4, 5)]).mean(0)
    for k in (2, 3, 4, 5):
        torch.testing.assert_close(found[k], p[k] + at(b, middle, k))


def test_non_local_is_its_equation() -> None:
    """Position by position."""
    block, x = shaken(NonLocal(3)), torch.randn(2, 3, 4, 5)
    theta, phi, g = (
        torch.einsum("oi,nihw->nohw", conv.weight[..., 0, 0], x) + conv.bias.view(-1, 1, 1)
        for conv in (block.theta, block.phi, block.g)
    )
    y = torch.zeros_like(x)
    for n in range(2):
        for i in range(20):
            likeness = [(theta[n].flatten(1)[:, i] @ phi[n].flatten(1)[:, j]).exp() for j in range(20)]
            seen = sum(a * g[n].flatten(1)[:, j] for j, a in enumerate(likeness)) / sum(likeness)
            y[n].view(3, -1)[:, i] = seen
    out = torch.einsum("oi,nihw->nohw", block.out.weight[..., 0, 0], y) + block.out.bias.view(-1, 1, 1)
    torch.testing.assert_close(block(x), x + out)
    assert torch.equal(NonLocal(3)(x), x)  # at first it is the identity


def test_refinement_by_a_convolution() -> None:
    neck, c = BalancedFeaturePyramid(CHANNELS, 8, refine="conv"), maps()
    plain = BalancedFeaturePyramid(CHANNELS, 8, refine=None)
    plain.load_state_dict({k: v for k, v in neck.state_dict().items() if "refine" not in k})
    nn.init.zeros_(neck.refine[0].weight)
    nn.init.zeros_(neck.refine[0].bias)
    assert all(torch.equal(x, as_fpn(neck)(c)[k]) for k, x in neck(c).items())
    nn.init.dirac_(neck.refine[0].weight)
    with torch.no_grad():
        for smooth in neck.smooths.values():
            smooth[0].bias.fill_(100)  # where nothing is negative, a ReLU is the identity
    plain.load_state_dict({k: v for k, v in neck.state_dict().items() if "refine" not in k})
    for k, x in neck(c).items():
        torch.testing.assert_close(x, plain(c)[k])


# CARAFE.


def test_reassembly_is_its_equation() -> None:
    up, x = shaken(Carafe(3, 5, 3, 5)), torch.randn(1, 3, 4, 6)
    compressed = F.conv2d(x, up.compress.weight, up.compress.bias)
    encoded = F.conv2d(compressed, up.encode.weight, up.encode.bias, padding=1)
    expected = torch.zeros(1, 3, 8, 12)
    for i in range(8):
        for j in range(12):
            # Pixel shuffle: channel 4 k + 2 (i % 2) + j % 2 of the old cell is channel k of the new one.
            logits = encoded[0, 2 * (i % 2) + j % 2 :: 4, i // 2, j // 2]
            weights = (logits.exp() / logits.exp().sum()).view(5, 5)
            for n in range(-2, 3):
                for m in range(-2, 3):
                    y, z = i // 2 + n, j // 2 + m
                    if 0 <= y < 4 and 0 <= z < 6:
                        expected[0, :, i, j] += weights[n + 2, m + 2] * x[0, :, y, z]
    torch.testing.assert_close(up(x, (8, 12)), expected)
    torch.testing.assert_close(up(x, (7, 11)), expected[..., :7, :11])


def test_carafe_of_the_middle_cell_alone_is_fpn() -> None:
    neck, c = CarafePyramid(CHANNELS, 8), maps()
    with torch.no_grad():
        for up in neck.upsamplers.values():
            up.encode.weight.zero_()
            up.encode.bias.view(25, 4)[12] = 100
    for k, x in neck(c).items():
        torch.testing.assert_close(x, as_fpn(neck)(c)[k])


def test_carafe_costs_what_the_paper_says() -> None:
    """Sec. 3.3: 199 thousand operations for each cell of a map of 256 channels, biases left out here."""
    up = Carafe(256, 64, 3, 5)
    with FlopCounterMode(display=False) as counter:
        up(torch.randn(1, 256, 8, 8), (16, 16))
    assert counter.get_total_flops() / 64 == pytest.approx(199e3, abs=500)


# FaPN.


def test_selection_is_its_equation() -> None:
    selection, c = shaken(Selection(6, 4)), torch.randn(2, 6, 5, 7)
    z = c.flatten(2).mean(2)
    u = 1 / (1 + (-z @ selection.weigh.weight[..., 0, 0].T).exp())
    chosen = c + u[..., None, None] * c
    expected = torch.einsum("oi,nihw->nohw", selection.reduce.weight[..., 0, 0], chosen)
    torch.testing.assert_close(selection(c), expected)


def test_alignment_without_offsets_is_a_convolution() -> None:
    """At first offsets are zero, and masks a half."""
    alignment = Alignment(16, groups=8)
    up, fine = torch.randn(2, 2, 16, 5, 7)
    nn.init.normal_(alignment.conv.bias)
    conv = F.conv2d(up, alignment.conv.weight, None, padding=1)
    torch.testing.assert_close(alignment(up, fine), (conv / 2 + alignment.conv.bias.view(-1, 1, 1)).relu())


def test_alignment_by_whole_cells_moves_the_map() -> None:
    """Offsets of (1, -2) at every tap, for the first group of channels alone."""
    alignment = Alignment(4, groups=2)
    up, fine = torch.randn(2, 1, 4, 6, 8)
    with torch.no_grad():
        alignment.offsets.bias[:18:2] = 1
        alignment.offsets.bias[1:18:2] = -2
        alignment.offsets.bias[36:] = 100  # masks of one
    moved = torch.zeros_like(up)
    moved[:, :2, :-1, 2:] = up[:, :2, 1:, :-2]
    moved[:, 2:] = up[:, 2:]
    expected = torch.zeros_like(up)
    for y in range(1, 4):  # where no tap lies beyond the border
        for x in range(3, 7):
            window = moved[:, :, y - 1 : y + 2, x - 1 : x + 2]
            expected[..., y, x] = torch.einsum("oiyx,niyx->no", alignment.conv.weight, window)
    found = alignment(up, fine)[..., 1:4, 3:7]
    torch.testing.assert_close(found, expected.relu()[..., 1:4, 3:7])


def test_fapn_is_its_figure() -> None:
    neck, c = shaken(FaPN(CHANNELS, 16)), maps()
    above = neck.laterals["5"][0](c[5])
    found = neck(c)
    for k in (4, 3, 2):
        up = F.interpolate(above, size(c[k]), mode="bilinear")
        fine = neck.laterals[str(k)](c[k])
        above = fine + neck.alignments[str(k)](up, fine)
        torch.testing.assert_close(found[k], neck.smooths[str(k)][0](above))


def test_alignment_compares_with_twice_the_enlarged_map() -> None:
    alignment = shaken(Alignment(8, groups=4))
    up, fine = torch.randn(2, 1, 8, 5, 6)
    seen: list[Tensor] = []
    alignment.compare.register_forward_hook(lambda module, given, out: seen.extend(given))
    alignment(up, fine)
    assert torch.equal(seen[0], torch.cat([fine, up + up], 1))


@pytest.mark.parametrize("cls", PYRAMIDS)
def test_half_precision_comes_near(cls: type[Neck]) -> None:
    neck, c = cls(CHANNELS, 16).eval(), maps((64, 96))
    with torch.no_grad():
        exact = neck(c)
        with torch.autocast("cpu", torch.bfloat16):
            near = neck(c)
    for k, x in exact.items():
        assert (near[k].float() - x).norm() < 0.05 * x.norm()


# NAS-FPN.


def test_nas_fpn_is_its_figure() -> None:
    """The 7 cells of Fig. 6 on P3 to P7, written out, two times over."""
    neck = shaken(NASFPN({3: 6, 4: 8, 5: 10}, 4, levels=(3, 4, 5, 6, 7), repeats=2))
    c = {k: x for k, x in maps((256, 384)).items() if k > 2}
    lateral = neck.laterals.convs
    p3, p4, p5 = (lateral[str(k)](c[k]) for k in (3, 4, 5))
    p6 = greatest(p5, 2)
    p7 = greatest(p6, 2)

    def gp(x: Tensor, y: Tensor) -> Tensor:
        """With the gate of the map that comes from the coarser level."""
        return x + y / (1 + (-x.flatten(2).max(2).values[..., None, None]).exp())

    for layer in neck.layers:
        a4, b4, q3, q4, q5, q7, q6 = (
            lambda x, cell=cell: cell[2](cell[1](x.clamp(min=0))) for cell in layer.convs.values()
        )
        p4_1 = a4(gp(blown_up(blown_up(p6, size(p5)), size(p4)), p4))
        p4_2 = b4(p4 + p4_1)
        p3 = q3(p3 + blown_up(p4_2, size(p3)))
        p4 = q4(p4_2 + greatest(p3, 2))
        p5 = q5(gp(greatest(p4, 2), greatest(p3, 4)) + p5)
        p7 = q7(gp(greatest(p5, 4), greatest(p4_2, 8)) + p7)
        p6 = q6(gp(blown_up(p7, size(p6)), greatest(p5, 2)))
    found = neck(c)
    assert list(found) == [3, 4, 5, 6, 7]
    for k, x in zip(found, (p3, p4, p5, p6, p7), strict=True):
        torch.testing.assert_close(found[k], x)


# ViTDet.


def test_simple_fpn_is_its_section() -> None:
    neck = shaken(SimpleFPN({4: 16}, 8))
    x = torch.randn(2, 16, 5, 3)

    def norm(x: Tensor, of: nn.Module) -> Tensor:
        mean = x.mean(1, keepdim=True)
        var = (x - mean).pow(2).mean(1, keepdim=True)
        weight, bias = (value.view(-1, 1, 1) for value in of.parameters())
        return (x - mean) / (var + 1e-6).sqrt() * weight + bias

    def twice(x: Tensor, deconv: nn.Module) -> Tensor:
        """Each cell becomes 2 × 2 of its own."""
        weight, bias = deconv.parameters()
        cells = torch.einsum("nihw,ioyx->nohywx", x, weight).flatten(4, 5).flatten(2, 3)
        return cells + bias.view(-1, 1, 1)

    first, between, _, second = neck.finer["2"]
    half = norm(twice(x, first), between)
    half = half * (1 + torch.erf(half / 2**0.5)) / 2
    made = {2: twice(half, second), 3: twice(x, neck.finer["3"][0]), 4: x, 5: greatest(x, 2)}
    found = neck({4: x})
    assert {k: size(y) for k, y in found.items()} == {2: (20, 12), 3: (10, 6), 4: (5, 3), 5: (3, 2)}
    for k, y in found.items():
        one, of_one, three, of_three = neck.outputs[str(k)]
        y1 = norm(F.conv2d(made[k], one.weight), of_one)
        torch.testing.assert_close(y, norm(F.conv2d(y1, three.weight, padding=1), of_three))
    assert [neck.finer["2"][i].out_channels for i in (0, 3)] == [8, 4]


def test_simple_fpn_on_timms_vit() -> None:
    pytest.importorskip("timm")
    options = {"dynamic_img_size": True, "img_size": 64, "depth": 4, "embed_dim": 24, "num_heads": 2}
    bottom_up = fpn.TimmBottomUp("vit_tiny_patch16_224", options=options)
    assert bottom_up.channels == {4: 24}
    # Of its last block.
    assert len(bottom_up.body.model.blocks) == 4
    neck = SimpleFPN(bottom_up.channels, 8)
    p = neck(bottom_up(torch.randn(1, 3, 96, 160)))
    assert {k: size(x) for k, x in p.items()} == {2: (24, 40), 3: (12, 20), 4: (6, 10), 5: (3, 5)}
    sum((x * torch.randn_like(x)).sum() for x in p.values()).backward()
    assert all(q.grad is not None and q.grad.any() for q in neck.parameters())


# What is published or can be worked out.


def conv(i: int, o: int, k: int, bias: bool = True) -> int:
    return i * o * k * k + o * bias


FPN = sum(conv(i, 256, 1) for i in RESNET50.values()) + 4 * conv(256, 256, 3)
LATERALS = sum(conv(i, 256, 1) + 2 * 256 for i in RESNET50.values())
SEPARABLE = 9 * 256 + conv(256, 256, 1) + 2 * 256


@pytest.mark.parametrize(
    ("cls", "expected"),
    [
        (PAFPN, FPN + 6 * conv(256, 256, 3)),
        (BalancedFeaturePyramid, FPN + 4 * conv(256, 256, 1)),
        (CarafePyramid, FPN + 3 * (conv(256, 64, 1) + conv(64, 100, 3))),
        # Three layers of three fusions of two maps down, two of three maps and one of two up.
        (BiFPN, LATERALS + 3 * (6 * SEPARABLE + 4 * 2 + 2 * 3)),
        (
            FaPN,
            conv(2048, 256, 1)
            + 4 * conv(256, 256, 3)
            + sum(conv(i, i, 1, False) + conv(i, 256, 1, False) for i in (256, 512, 1024))
            + 3 * (conv(512, 256, 1, False) + conv(256, 8 * 27, 3) + conv(256, 256, 3)),
        ),
        (NASFPN, LATERALS + 7 * 7 * (conv(256, 256, 3, False) + 512)),
    ],
)
def test_parameters(cls: Callable[..., Neck], expected: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in cls(RESNET50).parameters()) == expected


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: PAFPN(CHANNELS, levels=[2, 4]), "have a gap"),
        (lambda: BiFPN(CHANNELS, levels=[2, 4]), "without a gap"),
        (lambda: BiFPN(CHANNELS, levels=[5]), "two or more"),
        (lambda: BiFPN(CHANNELS, levels=[1, 2, 3]), "not among the bottom-up's"),
        (lambda: BiFPN(CHANNELS, levels=[6, 7]), "not among the bottom-up's"),
        (lambda: NASFPN(CHANNELS, levels=[2, 3, 4, 5]), "made for five"),
        (lambda: BalancedFeaturePyramid(CHANNELS, levels=[2, 3]), "middle 4 is none"),
        (lambda: CarafePyramid(CHANNELS, encoder=2), "must be odd"),
        (lambda: CarafePyramid({2: 4, 4: 8}, levels=[2, 4]), "have a gap"),
        (lambda: FaPN(CHANNELS, 12), "groups 8 does not divide"),
        (lambda: SimpleFPN({4: 8}, levels=[]), "one or more"),
        (lambda: SimpleFPN({6: 4}, levels=[2]), "of 4 at level 6"),
    ],
)
def test_mistakes_are_named(make: Callable[[], Neck], told: str) -> None:
    with pytest.raises(InputError, match=told):
        make()


@pytest.mark.parametrize(
    ("neck", "told"),
    [(CarafePyramid, "enlarges twofold"), (SimpleFPN, "the neck's map of level 2 is \\(64, 64\\)")],
)
def test_a_level_of_another_stride_is_no_coarser_map(neck: type[Neck], told: str) -> None:
    """Level 6 of this MobileNet is as fine as C5: a neck for which it is not would give maps out of place."""
    detector = fpn.ProposalNetwork(
        1, lambda: fpn.MobileNetV3(two_last=True), lambda channels: neck(channels, 8, levels=[2, 3, 4, 5])
    )
    with pytest.raises(InputError, match=told):
        detector(Batch(torch.rand(1, 3, 128, 128), [(128, 128)], [(128, 128)], [1]))
