"""Our detector with Detectron2's weights and settings, against what Detectron2 is documented to do."""

import math
import os
import pickle
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import detectron2_peer as peer
import numpy as np
import pytest
import torch
from detectron2_peer import Limits, Scored
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional as image_ops

from fpn import DETECTRON2_IMAGES, InputError, Predictor, load_detectron2
from fpn.data.transforms import prepare_image, resized_size
from fpn.models.detectors import FasterRCNN, ProposalNetwork
from fpn.models.losses import fast_rcnn_losses, rpn_losses
from fpn.models.necks import FeaturePyramid
from fpn.models.postprocess import ranked, select_detections, select_proposals
from fpn.models.resnet import ResNet
from fpn.models.roi_head import RoIHead
from fpn.models.rpn import RegionProposalNetwork
from fpn.models.targets import AnchorTargets, RoITargets
from fpn.ops.levels import assign_levels
from fpn.ops.matching import BACKGROUND, IGNORED, match_boxes
from fpn.types import Detections, RoIs, RPNOutput
from fpn.weights import read_pickle

State = dict[str, Tensor]
SMALL = Limits(96, 160, per_level=200, per_image=60)
LARGE = Limits(544, 640, per_level=25, per_image=1000)
SIZES = [(79, 141), (135, 97), (96, 117)]
RATIOS = (0.25, 1.0, 4.0)


def picture(size: tuple[int, int], seed: int = 0) -> Tensor:
    """A uint8 image with structure at several scales."""
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for step in (4, 16, 64):
        coarse = torch.rand(1, 3, size[0] // step + 2, size[1] // step + 2, generator=generator)
        layers.append(torch.nn.functional.interpolate(coarse, size=size, mode="bicubic"))
    return (sum(layers)[0] * 85).clamp(0, 255).to(torch.uint8)  # type: ignore[index]


@pytest.fixture(scope="module")
def weights() -> State:
    return peer.detector_weights()


@pytest.fixture
def _resized_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grey level moves two objects of 97 across the threshold; resizing is compared by itself."""
    monkeypatch.setattr(
        peer, "resize", lambda image, size: image_ops.resize(image, list(size), antialias=True)
    )


@pytest.fixture(scope="module")
def ours(weights: State) -> FasterRCNN:
    detector = load_detectron2(weights)
    assert type(detector) is FasterRCNN
    return detector


def loaded(name: Any, **settings: Any) -> ResNet:
    resnet = ResNet(name, **settings)
    resnet.load_weights()
    return resnet


def predictor(detector: ProposalNetwork, limits: Limits) -> Predictor:
    detector.testing_proposals = replace(
        detector.testing_proposals, pre_nms_top_n=limits.per_level, post_nms_top_n=limits.per_image
    )
    return Predictor(detector, limits.short, limits.longest, settings=DETECTRON2_IMAGES)


def missing(found: Detections, expected: Sequence[Scored], pixels: float, score: float) -> list[Scored]:
    """Those expected that were not found, in whatever order."""
    left = list(zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True))
    absent = []
    for one in expected:
        same = [
            other
            for other in left
            if other[2] == one.class_ + 1
            and abs(other[1] - one.score) <= score
            and all(abs(a - b) <= pixels for a, b in zip(other[0], one.box, strict=True))
        ]
        if same:
            left.remove(same[0])
        else:
            absent.append(one)
    return absent


def assert_found(found: Detections, expected: Sequence[Scored] | None) -> None:
    """The same boxes, best first."""
    assert expected is not None
    assert len(found.boxes) == len(expected) >= 20
    assert (found.scores.diff() <= 0).all()
    assert missing(found, expected, pixels=1e-2, score=1e-4) == []


@pytest.mark.usefixtures("_resized_alike")
@pytest.mark.parametrize(("limits", "size"), [*((SMALL, size) for size in SIZES), (LARGE, (333, 361))])
def test_objects_are_the_same(
    weights: State, ours: FasterRCNN, limits: Limits, size: tuple[int, int]
) -> None:
    image = picture(size)
    expected = peer.infer(weights, image, limits)
    if limits is LARGE:
        assert {peer.level_of(proposal.box) for proposal in expected.proposals} == {2, 3, 4, 5}
    (found,) = predictor(ours, limits)([image])
    assert_found(found, expected.objects)


@pytest.mark.usefixtures("_resized_alike")
def test_objects_of_a_batch_are_the_same(weights: State, ours: FasterRCNN) -> None:
    images = [picture(size, seed) for seed, size in enumerate(SIZES[:2])]
    canvases = [peer.prepare(image, SMALL)[0].shape[-2:] for image in images]
    canvas = max(h for h, _ in canvases), max(w for _, w in canvases)
    assert all(tuple(own) != canvas for own in canvases)
    found = predictor(ours, SMALL)(images)
    for image, one in zip(images, found, strict=True):
        assert_found(one, peer.infer(weights, image, SMALL, canvas).objects)


@pytest.mark.usefixtures("_resized_alike")
def test_proposals_of_an_rpn_are_the_same(weights: State) -> None:
    alone = peer.without_roi_heads(weights)
    detector = load_detectron2(alone)
    assert type(detector) is ProposalNetwork
    image = picture(SIZES[0])
    (found,) = predictor(detector, SMALL)([image])
    height, width = peer.resized(*SIZES[0], SMALL.short, SMALL.longest)
    down, across = SIZES[0][0] / height, SIZES[0][1] / width
    proposals = []
    for logit, (x1, y1, x2, y2), _ in peer.infer(alone, image, SMALL).proposals:
        box = x1 * across, y1 * down, x2 * across, y2 * down
        proposals.append(Scored(1 / (1 + math.exp(-logit)), box))
    assert_found(found, proposals)


@pytest.mark.usefixtures("_resized_alike")
def test_objects_on_resnet101_are_the_same() -> None:
    weights = peer.detector_weights(101, classes=3)
    detector = load_detectron2(weights)
    assert detector.classes == 3
    image = picture(SIZES[1])
    assert_found(predictor(detector, SMALL)([image])[0], peer.infer(weights, image, SMALL).objects)


def surplus_of_old_files() -> dict[str, np.ndarray[Any, Any]]:
    return {
        "pixel_mean": np.array(peer.MEAN, np.float32)[:, None, None],
        "pixel_std": np.ones((3, 1, 1), np.float32),
        "proposal_generator.anchor_generator.cell_anchors.0": np.zeros((3, 4), np.float32),
    }


@pytest.mark.parametrize("kind", ["pickle 2", "pickle 5", "pytorch"])
def test_files_give_the_same_detector(weights: State, ours: FasterRCNN, tmp_path: Path, kind: str) -> None:
    file = tmp_path / ("model_final.pth" if kind == "pytorch" else "model_final.pkl")
    if kind == "pytorch":
        torch.save({"model": weights, "iteration": 3}, file)
    else:
        arrays = {name: value.numpy() for name, value in weights.items()} | surplus_of_old_files()
        with file.open("wb") as stream:
            pickle.dump({"model": arrays, "__author__": "someone"}, stream, protocol=int(kind[-1]))
    loaded = load_detectron2(file)
    file.unlink()  # of 160 MB
    expected, got = ours.state_dict(), loaded.state_dict()
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_a_pickle_of_python_2(tmp_path: Path) -> None:
    """{'w': array([1.5, -2], float32)} opcode by opcode: the array's bytes are a text there."""
    minus_1 = b"J" + (-1).to_bytes(4, "little", signed=True)
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    dtype = b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNN" + minus_1 * 2 + b"K\x00tb"
    values = struct.pack("<2f", 1.5, -2)
    file = tmp_path / "old.pkl"
    file.write_bytes(
        b"\x80\x02}U\x01w" + array + b"(K\x01K\x02\x85" + dtype + b"\x89U\x08" + values + b"tbs."
    )
    read = read_pickle(file)
    assert list(read) == ["w"]
    assert read["w"].dtype == np.float32
    assert read["w"].tolist() == [1.5, -2]


def caffe2_names(state: State) -> State:
    """A ResNet's weights as Caffe2 names them."""
    branches = {"conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c", "shortcut": "branch1"}
    parts = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}
    named = {}
    for name, value in state.items():
        layer, _, part = name.rpartition(".")
        normed = layer.endswith(".norm")
        layer = layer.removesuffix(".norm")
        if layer == "stem.conv1":
            new = f"res_conv1_bn_{parts[part]}" if normed else "conv1_w"
        else:
            stage, block, conv = layer.split(".")
            new = f"{stage}_{block}_{branches[conv]}" + (f"_bn_{parts[part]}" if normed else "_w")
        named[new] = value
    return named


def fused(state: State) -> State:
    """The same network, each BatchNorm a scale and a shift."""
    state = dict(state)
    for name in [name for name in state if name.endswith("running_var")]:
        norm = name.removesuffix("running_var")
        scale = state[f"{norm}weight"] / (state.pop(name) + 1e-5).sqrt()
        state[f"{norm}bias"] = state[f"{norm}bias"] - state.pop(f"{norm}running_mean") * scale
        state[f"{norm}weight"] = scale
    return state


def caffe2_file(state: State, path: Path, blobs: bool = False) -> str:
    named = caffe2_names(state)
    channels = len(named["res5_2_branch2c_w"])
    surplus = {
        "fc1000_w": torch.zeros(1000, channels),
        "fc1000_b": torch.zeros(1000),
        "conv1_b": torch.zeros(len(named["conv1_w"])),
        "conv1_w_momentum": named["conv1_w"],
        "fc1000_b_momentum": torch.zeros(1000),
    }
    arrays = {name: value.numpy() for name, value in (named | surplus).items()}
    # Detectron's own files hold their arrays as blobs, some of Detectron2's for it as they are.
    content = {"blobs": arrays} if blobs else arrays
    path.write_bytes(pickle.dumps(content, protocol=2))
    return str(path)


@pytest.mark.parametrize("depth", [50, 101])
@pytest.mark.parametrize("fuse", [False, True])
def test_msra_weights_give_the_same_maps(tmp_path: Path, depth: int, fuse: bool) -> None:
    state = peer.resnet_weights(depth, width=16)
    file = caffe2_file(fused(state) if fuse else state, tmp_path / f"R-{depth}.pkl", blobs=fuse)
    resnet = loaded(f"resnet{depth}", weights=file, stride_in_1x1=True, width=16).eval()  # type: ignore[arg-type]
    limits = Limits(64, 128)
    image = picture((64, 96))
    x, _ = peer.prepare(image, limits)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = (image / 255 - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        expected, got = peer.bottom_up(state, x), resnet(normalised[None])
    assert list(got) == [2, 3, 4, 5]
    for level in got:
        scale = expected[level].abs().max().item()
        assert scale > 0
        torch.testing.assert_close(got[level], expected[level], atol=1e-5 * scale, rtol=1e-4)


def refused(function: Callable[[], object], *words: str) -> None:
    with pytest.raises(InputError) as caught:
        function()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_msra_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    file = caffe2_file(peer.resnet_weights(50, width=8), tmp_path / "R-50.pkl")
    refused(lambda: loaded("resnet50", weights=file, width=8), "R-50.pkl", "stride_in_1x1")
    file = caffe2_file(peer.resnet_weights(101, width=8), tmp_path / "R-101.pkl")
    refused(
        lambda: loaded("resnet50", weights=file, width=8, stride_in_1x1=True), "R-101.pkl", "layer3", "50"
    )


def test_weights_converted_from_torchvisions_are_not_taken_for_msras(tmp_path: Path) -> None:
    """Detectron2 publishes those too: for RGB images divided by 57, strides on the 3×3, names as its own."""
    arrays = {name: value.numpy() for name, value in peer.resnet_weights(50, width=8).items()}
    file = tmp_path / "R-50.pkl"
    content = {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}
    file.write_bytes(pickle.dumps(content))
    refused(lambda: loaded("resnet50", weights=str(file), width=8, stride_in_1x1=True), "R-50.pkl")
    taken = loaded("resnet50", weights=str(file), width=8)
    assert torch.equal(taken.conv1.weight, torch.from_numpy(arrays["stem.conv1.weight"]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("backbone.fpn_lateral3.bias"), ["lateral", "3", "bias"]),
        (lambda w: w.pop("roi_heads.box_predictor.cls_score.bias"), ["roi_head"]),
        (lambda w: w.update({"roi_heads.mask_head.deconv.bias": torch.zeros(256)}), ["mask_head.deconv"]),
        (
            lambda w: w.update({"roi_heads.box_predictor.bbox_pred.bias": torch.zeros(4)}),
            ["deltas.bias", "shape"],
        ),
        (
            lambda w: w.update({f"{peer.BODY}res2.0.conv1.weight": torch.zeros(64, 64, 3, 3)}),
            ["layer1.0.conv1.weight", "(64, 64, 3, 3)"],
        ),
        (lambda w: w.update({f"{peer.BODY}stem.conv1.weight": torch.zeros(64, 3, 7)}), ["conv1.weight"]),
        (lambda w: w.update({"roi_heads.box_predictor.cls_score.bias": torch.tensor(1.0)}), ["bias"]),
        (lambda w: w.update({"roi_heads.box_predictor.bbox_pred.bias": torch.tensor(1.0)}), ["bias"]),
        (lambda w: w.update({f"{peer.BODY}res3.4.conv1.weight": torch.zeros(64, 256, 1, 1)}), ["layer2.4"]),
    ],
    ids=[
        "missing",
        "no class scores",
        "mask head",
        "class-agnostic",
        "shape",
        "flat stem",
        "bare scores",
        "bare deltas",
        "surplus block",
    ],
)
def test_weights_of_another_detector_are_refused(
    weights: State, change: Callable[[State], object], words: list[str]
) -> None:
    weights = dict(weights)
    change(weights)
    refused(lambda: load_detectron2(weights), "the state dict", *words)


def test_files_of_another_detector_are_refused(tmp_path: Path) -> None:
    stem = {f"{peer.BODY}stem.conv1.weight": np.zeros((64, 3, 7, 7), np.float32)}
    fourth = {f"{peer.BODY}res4.{i}.conv1.weight": np.zeros((1, 1, 1, 1), np.float32) for i in range(7)}
    divided = {"pixel_std": np.array([57.375, 57.12, 58.395], np.float32)}
    reordered = {"pixel_mean": np.array(peer.MEAN[::-1], np.float32)}
    cases: list[tuple[Any, list[str]]] = [
        ({"model": stem | fourth}, ["res4", "7"]),
        ({"model": stem}, ["res4", "0"]),
        ({"model": stem | divided}, ["pixel_std", "57.375"]),
        ({"model": stem | reordered}, ["pixel_mean", "123.675"]),
        ({"model": [stem]}, ["list"]),
        ({"model": stem | {"a text": "bytes"}}, ["a text"]),
        ({"model": stem | {"objects": np.array([None])}}, ["objects"]),
        ([stem], ["list"]),
        (stem["backbone.bottom_up.stem.conv1.weight"], ["ndarray"]),
        ({}, []),
    ]
    file = tmp_path / "other.pkl"
    for content, words in cases:
        file.write_bytes(pickle.dumps(content))
        refused(lambda: load_detectron2(file), "other.pkl", *words)
    refused(lambda: load_detectron2(tmp_path / "absent.pkl"), "absent.pkl")


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    content = {"model": {"weight": np.arange(40, dtype=np.float32)}, "__author__": "someone"}
    file = tmp_path / "damaged.pkl"
    for protocol in (2, 5):
        whole = pickle.dumps(content, protocol=protocol)
        file.write_bytes(whole)
        np.testing.assert_array_equal(read_pickle(file)["model"]["weight"], content["model"]["weight"])  # type: ignore[index]
        for length in range(len(whole)):
            file.write_bytes(whole[:length])
            refused(lambda: load_detectron2(file), "damaged.pkl")
    file.write_text("<html>\nNot found\n</html>\n")
    refused(lambda: load_detectron2(file), "damaged.pkl")


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("echo > exploded",)


class Own:
    """Marks when it is made again."""

    def __init__(self) -> None:
        self.value = 1

    def __setstate__(self, state: object) -> None:
        Path("exploded").touch()


@pytest.mark.parametrize(("thing", "name"), [(Bomb(), "system"), (Own(), "Own")])
def test_pickles_that_want_to_run_code_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, thing: object, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file, trace = Path("bomb.pkl"), Path("exploded")
    for protocol in range(6):
        # Old protocols make an object by a function of the library's.
        named = "copy_reg" if protocol < 2 and name == "Own" else name
        contents = {"": thing, "in": {"model": {"weight": thing}}, "objects": np.array([thing], object)}
        for key, content in contents.items():
            why = key if key == "objects" else named
            file.write_bytes(pickle.dumps(content, protocol=protocol))
            refused(lambda: load_detectron2(file), "bomb.pkl", why)
            refused(lambda: loaded("resnet18", weights=str(file), width=8), "bomb.pkl", why)
            assert not trace.exists()
    pickle.loads(file.read_bytes())
    assert trace.exists()


def test_arrays_made_over_pointers_are_refused(tmp_path: Path) -> None:
    """An object is a pointer: bytes of the file taken for one crash Python, or worse, once it is followed."""
    objects = b"cnumpy\nndarray\nK\x01\x85U\x01OC\x08AAAAAAAA\x87R"
    # A type of eight plain bytes that says of itself that they are a field of objects.
    field = b"}U\x01acnumpy\ndtype\nU\x02O8K\x00K\x01\x87RK\x00\x86s"
    type_ = b"cnumpy\ndtype\nU\x02V8K\x00K\x01\x87R(K\x03U\x01|NU\x01a\x85" + field + b"K\x08K\x01K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    file = tmp_path / "pointers.pkl"
    for made in (objects, array + b"(K\x01K\x01\x85" + type_ + b"\x89C\x08AAAAAAAAtb"):
        file.write_bytes(b"\x80\x03}U\x01w" + made + b"s.")
        refused(lambda: read_pickle(file), "pointers.pkl")


def test_anchors_are_those_of_detectron2s_table() -> None:
    cell = {
        (-32, -8, 32, 8),
        (-16, -16, 16, 16),
        (-8, -32, 8, 32),
        (-64, -16, 64, 16),
        (-32, -32, 32, 32),
        (-16, -64, 16, 64),
    }
    assert set(peer.cell_anchors([32, 64], RATIOS)) == cell
    neck = FeaturePyramid({2: 4}, 8, levels=[2])
    rpn = RegionProposalNetwork(neck, {2: [32, 64]}, RATIOS, rounded=False, grid="stride")
    # An image that is not two strides wide.
    first, second = rpn.anchors(2, (1, 2), (4, 10)).unflatten(0, (2, 6)).tolist()
    assert {tuple(anchor) for anchor in first} == cell
    assert {tuple(anchor) for anchor in second} == {(x1 + 4, y1, x2 + 4, y2) for x1, y1, x2, y2 in cell}


@pytest.mark.parametrize(("aligned", "first"), [(True, 4.5), (False, 7.5)])
def test_pooling_is_that_of_detectron2s_table(aligned: bool, first: float) -> None:
    values, box = torch.arange(25.0).reshape(5, 5), (1.0, 1.0, 3.0, 3.0)
    expected = first + torch.arange(4.0)[:, None] * 2.5 + torch.arange(4.0) * 0.5
    by_loop = peer.roi_align(values[..., None].numpy(), box, 1.0, 4, aligned)[..., 0]
    torch.testing.assert_close(torch.from_numpy(by_loop), expected)
    neck = FeaturePyramid({2: 4}, 8, levels=[2])
    head = RoIHead(neck, 1, resolution=4, sampling_ratio=0, aligned=aligned)
    pooled = head._pool({2: values[None, None]}, torch.tensor([[0, *(4 * side for side in box)]]), [1], [2])
    torch.testing.assert_close(pooled[0, 0], expected)


def test_levels_are_detectron2s(ours: FasterRCNN) -> None:
    """At 112, 224 and 448 pixels too, and just below, where torchvision's epsilon lifts a box a level."""
    sides = [size * factor for size in (56, 112, 224, 448, 896) for factor in (0.9, 1.0, 1.1)]
    boxes = [(10.0, 20.0, 10 + side, 20 + side) for side in sides]
    boxes += [(0.0, 0.0, 112, 111.9999), (0.0, 0.0, 224, 223.9998), (0.0, 0.0, 448, 447.9996)]
    expected = [peer.level_of(box) for box in boxes]
    assert expected[-3:] == [2, 3, 4]
    head = ours.roi_head
    level = assign_levels(
        torch.tensor(boxes), 2, 5, head.canonical_size, head.canonical_level, epsilon=head.epsilon
    )
    assert level.tolist() == expected


def test_boxes_of_any_size_stay(ours: FasterRCNN) -> None:
    """Down to a thousandth of a pixel; those without width or height do not."""
    boxes = torch.tensor([[5.0, 5, 5.001, 5.002], [9, 9, 9, 12], [9, 9, 12, 9]])
    selections = (ours.testing_proposals, ours.training_proposals)
    output = RPNOutput({2: boxes}, {2: torch.ones(1, 3)}, {2: torch.zeros(1, 3, 4)})
    sizes = torch.tensor([[20, 20]])
    found = [select_proposals(output, sizes, ours.rpn.box_weights, s).split()[0] for s in selections]
    scores, deltas = torch.tensor([[[0.0, 9]]]).expand(1, 3, 2), torch.zeros(1, 3, 2, 4)
    weights = ours.roi_head.box_weights
    found += select_detections(scores, deltas, ranked([boxes]), sizes, weights, ours.detections).split()
    for one in found:
        torch.testing.assert_close(one.boxes, boxes[:1])


def test_matches_are_those_of_detectron2s_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Best boxes 1, 1, 2, 0: too much for background, rescued, too little, enough."""
    table = torch.tensor([[0.15, 0.45, 0.2, 0.6], [0.3, 0.65, 0.05, 0.1], [0.05, 0.4, 0.25, 0.4]])
    monkeypatch.setattr("fpn.ops.matching.box_iou", lambda truth, candidates: table)
    match = match_boxes(torch.zeros(3, 4), torch.zeros(4, 4), 0.7, 0.3, rescue=True)
    assert match.tolist() == [IGNORED, 1, BACKGROUND, 0]


@pytest.mark.parametrize(("short", "longest"), [(96, 160), (800, 1333), (640, 1333), (7, 9)])
def test_sizes_of_small_images_are_detectron2s(short: int, longest: int) -> None:
    for height in range(1, 201):
        for width in range(1, 201):
            # Where a side would have no pixels, Detectron2 fails.
            expected = tuple(max(1, side) for side in peer.resized(height, width, short, longest))
            assert resized_size((height, width), short, longest, "nearest") == expected


@given(
    st.integers(200, 2000), st.integers(200, 2000), st.sampled_from([600, 640, 672, 704, 736, 768, 800, 1000])
)
def test_sizes_of_photographs_are_detectron2s(height: int, width: int, short: int) -> None:
    for longest in (1000, 1333):
        expected = peer.resized(height, width, short, longest)
        assert resized_size((height, width), short, longest, "nearest") == expected


@pytest.mark.parametrize("size", [(333, 361), (75, 141), (480, 640)])
def test_resized_images_are_pils(size: tuple[int, int]) -> None:
    image = picture(size)
    for short, longest in ((96, 160), (300, 500)):
        settings = replace(DETECTRON2_IMAGES, short_side=short, max_side=longest)
        expected = peer.resize(image, peer.resized(*size, short, longest))
        got = prepare_image(image, settings)
        assert got.shape == expected.shape
        difference = (got.double() - expected.double()).abs()  # a grey level here and there
        assert difference.max() <= 1
        assert difference.mean() <= 0.25


def test_losses_by_hand(ours: FasterRCNN) -> None:
    """Three anchors are sampled of two images; of two RoIs one is an object."""
    objectness = torch.tensor([[2.0, 5.0, -1.0], [0.0, 0.0, 7.0]])
    deltas = torch.zeros(2, 3, 4)
    deltas[0, 0] = torch.tensor([1.0, -2, 3, 4])
    targets = AnchorTargets(torch.tensor([0]), torch.tensor([2, 3 + 1]), torch.tensor([[0.0, 0, 0, 0.5]]))
    losses = rpn_losses(
        objectness, deltas, torch.zeros(3, 4), targets, ours.rpn_box_loss, ours.rpn.box_weights, 256
    )
    entropy = math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1)) + math.log(2)
    assert losses["rpn_objectness"].item() == pytest.approx(entropy / (256 * 2))
    assert losses["rpn_box"].item() == pytest.approx((1 + 2 + 3 + 3.5) / (256 * 2))

    predicted = torch.zeros(2, 2, 4)
    predicted[0, 1] = torch.tensor([0.25, -0.25, 0, 2])
    rois = RoIs(torch.zeros(2, 4), torch.tensor([0, 1]))
    sampled = RoITargets(rois, torch.tensor([1, 0]), torch.tensor([0]), torch.zeros(1, 4), torch.arange(2))
    losses = fast_rcnn_losses(
        torch.zeros(2, 2), predicted, sampled, ours.roi_box_loss, ours.roi_head.box_weights
    )
    assert losses["roi_class"].item() == pytest.approx(math.log(2))
    assert losses["roi_box"].item() == pytest.approx((0.25 + 0.25 + 2) / 2)


def test_missing_statistics_are_not_made_up(weights: State) -> None:
    name = "backbone.bottom_up.res4.3.conv2.norm.running_var"
    lacking = {key: value for key, value in weights.items() if key != name}
    refused(lambda: load_detectron2(lacking), "it has no bottom_up.layer3.3.bn2.running_var")


def test_small_pickles_stay_small(tmp_path: Path) -> None:
    value: list[Any] = []
    for _ in range(40):
        value = [value, value]
    file = tmp_path / "nested.pkl"
    file.write_bytes(pickle.dumps({"model": {"weight": value}}))
    refused(lambda: load_detectron2(file), "'weight' is not a tensor")
    file.write_bytes(
        b"cnumpy.core.numeric\n_frombuffer\n(J\x00\x00\x00\x40cnumpy\ndtype\n(U\x02u1tR(tU\x01CtR."
    )
    refused(lambda: load_detectron2(file), "without its bytes")
