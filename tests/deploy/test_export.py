"""Exported detectors in ONNX Runtime, OpenVINO and PyTorch against `Predictor`, on images of odd sizes."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import detectron2_peer
import numpy as np
import pytest
import torch
from deploy.networks import IMAGE, SIZES, calibrated, small
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.ops import box_iou
from torchvision_peer import peer

from benchmarks.stages import pairs
from fpn import (
    Categories,
    InputError,
    MobileNetV3,
    Predictor,
    TimmBottomUp,
    load_detectron2,
    load_torchvision,
)
from fpn.checkpoints import Trained
from fpn.deploy import OnnxPredictor
from fpn.deploy.export import write
from fpn.interop.detectron2 import DETECTRON2_IMAGES
from fpn.models import postprocess
from fpn.models.cascade import CascadeRCNN
from fpn.models.detectors import FastRCNN, ProposalNetwork
from fpn.models.necks import (
    NASFPN,
    PAFPN,
    BalancedFeaturePyramid,
    BiFPN,
    CarafePyramid,
    FaPN,
    FeaturePyramid,
    SingleLevel,
)
from fpn.models.postprocess import DetectionSelection
from fpn.models.resnet import ResNet
from fpn.models.roi_head import Conv5Head, FourConvOneFC, RoIHead, TwoFCHead
from fpn.models.rpn import RegionProposalNetwork
from fpn.ops.suppression import suppress

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

NAMES = Categories((3, 4, 7, 8, 20), ("cat", "dog", "cow", "(no category)", "Käfer"))
ODD = [[(96, 160)], [(1, 1)], [(10, 210)], [(210, 10)], [(64, 64), (1, 10), (300, 40)], [(50, 60)] * 2]
"""Sizes of batches."""
CLOSE = 1e-5
"""Rounding is taken to turn no overlap or score by more."""
Network = Callable[[NDArray[Any], NDArray[Any]], Sequence[NDArray[Any]]]


def noise(size: tuple[int, int], seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (3, *size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def in_onnx_runtime(path: Path) -> Network:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images, sizes: session.run(None, {"images": images, "sizes": sizes})


def in_openvino(path: Path) -> Network:
    openvino = pytest.importorskip("openvino")
    network = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda *given: [*network(list(given)).values()]


def in_pytorch(path: Path) -> Network:
    network = torch.export.load(path).module()
    return lambda *given: [part.numpy() for part in network(*map(torch.from_numpy, given))]


RUNTIMES = {".onnx": [in_onnx_runtime, in_openvino], ".pt2": [in_pytorch]}


@contextmanager
def close_calls(images: int) -> Iterator[Tensor]:
    """How many comparisons of suppression rounding may turn, for each of a batch's images.

    Those of two boxes of a group, one of which overlaps the other by nearly the threshold, or by more while
    their scores are nearly the same, so that either may be the first.
    """
    calls = torch.zeros(images, dtype=torch.int64)

    def noting(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
        for row, (box, score) in enumerate(zip(boxes.double(), scores, strict=True)):
            box, score = box[score.isfinite()], score[score.isfinite()]
            overlap = box_iou(box, box)
            tied = (overlap > iou) & ((score[:, None] - score).abs() < CLOSE)
            turned = ((overlap - iou).abs() < CLOSE) | tied
            calls[row * images // len(boxes)] += turned.triu(1).sum()
        return suppress(boxes, scores, iou)

    with patch.object(postprocess, "suppress", noting):
        yield calls


def check(
    trained: Trained,
    folder: Path,
    runtimes: Sequence[Any],
    input: str = "pixels",
    least: int = 100,
    odd: Sequence[Sequence[tuple[int, int]]] = ODD,
    ties: bool = False,
    excused: bool = False,
) -> None:
    """Every runtime finds what `Predictor` finds, once as much as `least`; input is the network's.

    With ties, neighbouring places score the same, and rounding decides which of their boxes stay: then only
    how many there are, nearly, and the best score are compared. So it is in a picture of one pixel.
    Where it is excused, a comparison of suppression that rounding may turn excuses two boxes: the one that
    it leaves, and the one that this one takes the place of.
    """
    predictor = Predictor.of(trained._replace(categories=None))  # type: ignore[arg-type]  # which leaves none out
    most = 0
    for suffix, format in ((".onnx", "onnx"), (".pt2", "torch_export")):
        networks = [run for run in RUNTIMES[suffix] if run in runtimes]
        if not networks:
            continue
        path = folder / f"network{suffix}"
        if not path.exists():
            write(trained, path, format, input)  # type: ignore[arg-type]
        for network in [run(path) for run in networks]:
            for number, shapes in enumerate(odd):
                images = [noise(shape, 10 * number + i) for i, shape in enumerate(shapes)]
                with close_calls(len(images)) as calls:
                    expected = predictor(images)
                if input == "pixels":
                    pixels = np.full((len(images), 3, *np.max(shapes, axis=0)), 9, np.uint8)
                    for padded, image in zip(pixels, images, strict=True):
                        padded[:, : image.shape[1], : image.shape[2]] = image.numpy()
                    factors = [1.0] * len(images)
                    sizes = np.array(shapes)
                    given: NDArray[Any] = pixels
                else:
                    (batch,) = predictor.prepare(images)
                    given, sizes = batch.images.numpy(), np.array(batch.sizes)
                    factors = [
                        torch.tensor([w / new[1], h / new[0]] * 2)
                        for (h, w), new in zip(shapes, batch.sizes, strict=True)
                    ]  # type: ignore[misc]
                *found, counts = (torch.from_numpy(np.array(part)) for part in network(given, sizes))
                assert found[0].shape[:2] == found[1].shape
                sets = [
                    [found[0][i, :n] * factors[i], found[1][i, :n], *(part[i, :n] for part in found[2:])]
                    for i, n in enumerate(counts.tolist())
                ]
                if len(found) == 2:  # proposals
                    sets = [[*one, torch.ones(len(one[0]))] for one in sets]
                for shape, one, wanted, close in zip(shapes, sets, expected, calls.tolist(), strict=True):
                    n, matched = len(wanted.boxes), len(pairs(one, list(wanted), 1e-2, 1e-4))
                    if ties or shape == (1, 1):
                        assert len(one[0]) == pytest.approx(n, rel=0.15)
                        assert one[1][:1] == pytest.approx(wanted.scores[:1], abs=1e-4)
                    elif excused:
                        assert len(one[0]) == pytest.approx(n, abs=min(2 * close, 0.15 * n))
                        assert matched >= max(len(one[0]), n) - min(2 * close, 0.15 * n)
                    else:
                        assert matched == len(one[0]) == n
                most = max(most, *(len(one[0]) for one in sets))
    assert most >= least


@pytest.fixture(scope="module")
def trained() -> Trained:
    torch.manual_seed(0)
    return Trained(small(), NAMES, IMAGE)


@pytest.fixture(scope="module")
def exported(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "network.onnx"
    write(trained, path)
    return path


def test_onnx_runtime_and_openvino_find_the_same(trained: Trained, exported: Path) -> None:
    check(trained, exported.parent, [in_onnx_runtime, in_openvino])


def test_the_predictor_gives_predictors_results(trained: Trained, exported: Path, tmp_path: Path) -> None:
    """Of every form of an image; a flat one has no object, and a class without a category is left out."""
    predictor, other = Predictor.of(trained), OnnxPredictor(exported)
    pixels = noise((70, 90)).permute(1, 2, 0).numpy()
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=turned)
    Image.fromarray(257 * pixels[:, :, 0].astype(np.uint16)).save(tmp_path / "deep.png")
    forms = [pixels, tmp_path / "a.png", str(tmp_path / "a.jpg"), (tmp_path / "a.jpg").read_bytes()]
    forms += [tmp_path / "deep.png", pixels[:, :, 1], 257 * pixels.astype(np.uint16)]
    forms += [
        Image.open(tmp_path / "a.jpg"),
        Image.fromarray(pixels).convert("P"),
        (pixels / 255).astype(np.float32),
    ]
    for form in forms:
        expected, found = predictor(form), other(form)
        assert found.names == expected.names
        assert len(found.boxes) > 20
        assert found.boxes == pytest.approx(expected.boxes.numpy(), abs=1e-2)
        assert found.scores == pytest.approx(expected.scores.numpy(), abs=1e-4)
        assert found.labels.tolist() == expected.labels.tolist()
        assert set(found.names) <= {"cat", "dog", "cow", "Käfer"}
    flat = np.full((50, 70, 3), 124, np.uint8)
    both, expected_both = other([pixels, flat]), predictor([pixels, flat])
    assert [len(one.boxes) for one in both] == [len(one.boxes) for one in expected_both]
    assert len(both[1].boxes) == 0
    assert other([]) == []


def test_the_file_tells_of_itself(trained: Trained, exported: Path) -> None:
    onnx = pytest.importorskip("onnx")
    about = OnnxPredictor(exported).about
    assert about["names"] == list(NAMES.names)
    assert about["category_ids"] == list(NAMES.ids)
    assert about["image"] | {"mean": 0, "std": 0} == vars(IMAGE) | {"mean": 0, "std": 0}
    assert about["image"]["mean"] == list(IMAGE.mean)
    assert about["score_threshold"] == trained.detector.detections.score_threshold  # type: ignore[attr-defined]
    model = onnx.load(exported)
    onnx.checker.check_model(model)
    assert {one.domain: one.version for one in model.opset_import}[""] == about["opset"] == 18
    assert str(Path.home()).encode() not in exported.read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in exported.read_bytes()


_WITHOUT = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "lightning", "onnx", "onnxscript"):
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
from fpn.deploy import OnnxPredictor
found = OnnxPredictor(sys.argv[1])(sys.argv[2])
print(len(found.boxes), *found.names[:2], "torch" in sys.modules)
"""


def test_it_needs_no_pytorch(trained: Trained, exported: Path, tmp_path: Path) -> None:
    Image.fromarray(noise((70, 90)).permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    words = [sys.executable, "-c", _WITHOUT, str(exported), str(tmp_path / "a.png")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    expected = Predictor.of(trained)(tmp_path / "a.png")
    assert done.stdout.split() == [str(len(expected.boxes)), *expected.names[:2], "False"]


@pytest.mark.filterwarnings("ignore:Specified provider 'TensorExecutionProvider'")
def test_mistakes_are_named(exported: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    predictor = OnnxPredictor(exported)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    (tmp_path / "text.onnx").write_text("no network")
    cases = [
        (np.zeros((3, 4, 5), np.uint8), r"transpose\(1, 2, 0\) puts the colours last"),
        (np.zeros((4, 5, 3), np.int64), "not int64"),
        (np.full((4, 5, 3), 255.0), "from 255 to 255: divide it by 255"),
        (np.full((4, 5, 3), np.nan), "from nan to nan"),
        (tmp_path / "broken.jpg", "broken.jpg: cannot be decoded"),
        (tmp_path / "absent.jpg", "absent.jpg: no such image file"),
        (b"", "the bytes of an image: cannot be decoded"),
        (None, "not a NoneType"),
    ]
    for image, message in cases:
        with pytest.raises(InputError, match=message):
            predictor(image)
    with patch("PIL.EpsImagePlugin.Ghostscript") as program, pytest.raises(InputError, match="cannot be dec"):
        predictor(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n")
    program.assert_not_called()  # a stranger's picture starts no other program
    network = onnx.load(exported)
    for number, told in enumerate(("{oops", "{}", "[]")):
        (entry,) = [one for one in network.metadata_props if one.key == "fpn"]
        entry.value = told
        onnx.save(network, tmp_path / f"{number}.onnx")
    for path, message in (
        (tmp_path / "absent.onnx", "no such file"),
        (tmp_path / "text.onnx", "text.onnx: "),
        *((tmp_path / f"{number}.onnx", "was not written by `fpn export`") for number in range(3)),
    ):
        with pytest.raises(InputError, match=message):
            OnnxPredictor(path)
    with pytest.raises(InputError, match="has no TensorExecutionProvider here, but CPUExecutionProvider"):
        OnnxPredictor(exported, providers=["TensorExecutionProvider", "CPUExecutionProvider"])


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    fast = FastRCNN(
        5, bottom_up=partial(ResNet, "resnet10", width=8), neck=partial(FeaturePyramid, channels=8)
    )
    with pytest.raises(
        InputError, match=r"^FastRCNN needs proposals: FasterRCNN and ProposalNetwork are exported$"
    ):
        write(Trained(fast, NAMES, IMAGE), tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def conv5() -> ProposalNetwork:
    """Table 3 (a): a single map, and conv5 as the head."""
    head = partial(RoIHead, head=Conv5Head, resolution=14, sampling_ratio=0, aligned=True)
    return small(neck=SingleLevel, rpn=partial(RegionProposalNetwork, sizes={4: [16, 64]}), roi_head=head)


def cascade(agnostic: bool) -> ProposalNetwork:
    head = partial(TwoFCHead, hidden=32)
    return small(
        CascadeRCNN, roi_head=partial(RoIHead, head=head, class_agnostic=agnostic, canonical_size=56.0)
    )


ROWS: dict[str, Callable[[], ProposalNetwork]] = {
    "rpn": lambda: small(ProposalNetwork),
    "no_lateral": lambda: small(
        loudness=4, neck=partial(FeaturePyramid, channels=16, lateral=False, nonlinearity=True)
    ),
    "no_top_down": lambda: small(neck=partial(FeaturePyramid, channels=16, top_down=False, smooth=False)),
    "unshared": lambda: small(
        rpn=partial(RegionProposalNetwork, sizes=SIZES, shared=False, grid="stride", rounded=False),
        roi_head=partial(RoIHead, head=partial(TwoFCHead, hidden=32), shared=False, canonical_size=56.0),
    ),
    "conv5": conv5,
    "roi_max_pooling": lambda: small(
        loudness=0.5, roi_head=partial(RoIHead, head=partial(TwoFCHead, hidden=32), pooling="pool")
    ),
    # Runtimes add up a group's values in other orders, which the weights of a louder one would multiply.
    "group_norm": lambda: small(loudness=0.3, bottom_up=partial(ResNet, "resnet18", norm="group", width=16)),
    "class_agnostic": lambda: small(
        roi_head=partial(
            RoIHead,
            head=partial(FourConvOneFC, norm="batch", hidden=32),
            class_agnostic=True,
            canonical_size=56.0,
        )
    ),
    "cascade": lambda: cascade(True),
    "cascade_by_class": lambda: cascade(False),
    **{
        neck.__name__: partial(small, loudness=2, neck=partial(neck, channels=16))
        for neck in (PAFPN, BiFPN, BalancedFeaturePyramid, CarafePyramid)
    },
    "NASFPN": lambda: small(loudness=4, neck=partial(NASFPN, channels=16, repeats=1)),
    "mobilenet": lambda: calibrated(
        small(
            loudness=0.2,
            bottom_up=MobileNetV3,
            neck=partial(FeaturePyramid, channels=16, levels=(4, 5)),
            rpn=partial(RegionProposalNetwork, sizes={4: [16, 32], 5: [64, 128]}),
        )
    ),
    "timm": lambda: small(loudness=4, bottom_up=partial(TimmBottomUp, "mobilenetv3_small_050")),
}


@pytest.mark.long
@pytest.mark.parametrize("row", ROWS)
def test_every_row(row: str, tmp_path: Path) -> None:
    if row == "timm":
        pytest.importorskip("timm")
    torch.manual_seed(0)
    runtimes = [in_onnx_runtime, in_openvino, in_pytorch]
    # Without lateral connections the finer maps are copies of the coarsest one's cells.
    # In a picture of one pixel a group has no variance: GroupNorm multiplies what rounding leaves by 316.
    odd, least = ([one for one in ODD if one != [(1, 1)]], 15) if row == "group_norm" else (ODD, 40)
    check(
        Trained(ROWS[row](), NAMES, IMAGE), tmp_path, runtimes, least=least, odd=odd, ties=row == "no_lateral"
    )


@pytest.mark.long
def test_deformable_convolutions_are_a_program_of_pytorchs_and_not_onnx(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = Trained(small(loudness=2, neck=partial(FaPN, channels=16)), NAMES, IMAGE)
    check(trained, tmp_path, [in_pytorch], least=40)
    with pytest.raises(InputError, match=r"No Op registered for DeformConv .*; try --format torch_export"):
        write(trained, tmp_path / "a.onnx")


@pytest.mark.long
@pytest.mark.parametrize("decay", ["gaussian", "linear"])
def test_soft_nms_is_a_program_of_pytorchs_and_not_onnx(decay: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = Trained(small(detections=DetectionSelection(suppression=decay)), NAMES, IMAGE)
    check(trained, tmp_path, [in_pytorch])
    with pytest.raises(
        InputError, match=r"ONNX has nothing for fpn\.soft_suppress; try --format torch_export"
    ):
        write(trained, tmp_path / "a.onnx")


@pytest.mark.long
def test_torchvisions_weights_normalised(tmp_path: Path) -> None:
    detector = load_torchvision(peer(6).state_dict(), norm_eps=0.0)
    check(
        Trained(detector, NAMES, IMAGE), tmp_path, [in_onnx_runtime, in_pytorch], "normalised", excused=True
    )
    with pytest.raises(InputError, match="takes normalised images: export it with --input pixels"):
        OnnxPredictor(tmp_path / "network.onnx")


@pytest.mark.long
def test_detectron2s_weights_and_resizing(tmp_path: Path) -> None:
    detector = load_detectron2(detectron2_peer.detector_weights())
    image = replace(DETECTRON2_IMAGES, short_side=96, max_side=160)
    check(Trained(detector, NAMES, image), tmp_path, [in_onnx_runtime, in_openvino, in_pytorch], excused=True)


@pytest.mark.long
def test_quantised_as_the_docs_say(
    trained: Trained, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines of the page make a file whose convolutions are of bytes, and which finds much the same."""
    onnx = pytest.importorskip("onnx")
    (tmp_path / "photos" / "train").mkdir(parents=True)
    pixels = [noise((96, 160), seed).permute(1, 2, 0).numpy() for seed in range(4)]
    for i, one in enumerate(pixels):
        Image.fromarray(one).save(tmp_path / "photos" / "train" / f"{i}.jpg")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "best.onnx").symlink_to(exported)
    page = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text()
    (lines,) = [
        block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "quantize_static(" in block
    ]
    exec(lines, {"__name__": "page"})
    operators = [node.op_type for node in onnx.load("best_int8.onnx").graph.node]
    assert operators.count("DequantizeLinear") > operators.count("Conv") > 20
    whole, bytes_ = OnnxPredictor("best.onnx"), OnnxPredictor("best_int8.onnx")
    assert bytes_.about == whole.about
    for one in pixels:
        found, expected = bytes_(one), whole(one)
        assert len(found.boxes) == pytest.approx(len(expected.boxes), rel=0.3)
        assert found.scores[:5] == pytest.approx(expected.scores[:5], abs=0.2)
