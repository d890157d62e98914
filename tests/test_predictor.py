import copy
import pickle
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_iou

from fpn import InputError, Predictor
from fpn.checkpoints import Trained
from fpn.data.transforms import ImageSettings, Sample, collate_scales
from fpn.deploy.export import write
from fpn.models.detectors import FasterRCNN
from fpn.models.necks import FeaturePyramid
from fpn.models.postprocess import DetectionSelection
from fpn.models.resnet import ResNet
from fpn.models.roi_head import RoIHead, TwoFCHead
from fpn.pictures import draw
from fpn.types import Categories, Targets


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    detector = FasterRCNN(
        3,
        bottom_up=partial(ResNet, "resnet18", norm="group", width=8),
        neck=partial(FeaturePyramid, channels=8),
        roi_head=partial(RoIHead, head=partial(TwoFCHead, hidden=16)),
        detections=DetectionSelection(score_threshold=0.0),
    )
    return Predictor(detector, short_side=64, max_side=100)


def test_every_kind_of_image_gives_the_same(predictor: Predictor, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 70, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    path = tmp_path / "image.png"
    picture.save(path)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    forms = [tensor, tensor.float() / 255, picture, path, str(path), path.read_bytes(), pixels]
    forms += [257 * pixels.astype(np.uint16), (pixels / 255).astype(np.float32), pixels[::-1][::-1]]
    first, *others = [predictor([form])[0] for form in forms] + [predictor(form) for form in forms]
    assert len(first.boxes) > 0
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert (first.boxes <= torch.tensor([70.0, 48, 70, 48]) + 1e-4).all()


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"]
)
def test_pil_images_of_all_modes(predictor: Predictor, mode: str) -> None:
    """White on black, in a corner, as RGB."""
    picture = Image.new("L", (64, 48))
    picture.paste(255, (8, 8, 30, 30))
    expected = predictor(picture.convert("RGB"))
    between = picture.convert({"La": "LA", "PA": "P", "RGBa": "RGBA"}.get(mode, "RGB"))
    found = predictor(between.convert(mode) if between.mode != mode else between)
    assert found.scores.tolist() == pytest.approx(expected.scores.tolist(), abs=1e-2)
    assert found.boxes.shape == expected.boxes.shape


def test_grey_arrays(predictor: Predictor) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (48, 70), dtype=np.uint8)
    expected = predictor(np.stack([grey] * 3, axis=2))
    for form in (grey, 257 * grey.astype(np.uint16), (257 * grey.astype(np.uint16)).astype(">u2")):
        assert torch.equal(predictor(form).boxes, expected.boxes)


def test_photos_are_seen_as_viewers_show_them(predictor: Predictor, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 70, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    shown = torch.from_numpy(pixels).permute(2, 0, 1).rot90(1, (-2, -1))
    (expected,) = predictor([shown])
    for form in (tmp_path / "turned.png", Image.open(tmp_path / "turned.png")):
        assert torch.equal(predictor([form])[0].boxes, expected.boxes)


def test_pil_images_of_16_bits(predictor: Predictor) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (48, 70), dtype=np.uint16)
    (expected,) = predictor([Image.fromarray(grey.astype(np.uint8))])
    assert torch.equal(predictor([Image.fromarray(257 * grey)])[0].boxes, expected.boxes)
    with pytest.raises(InputError, match="save it with 8 or 16 bits"):
        predictor([Image.fromarray(grey.astype(np.float32))])


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (333, 7), (64, 64)])
def test_any_size(predictor: Predictor, size: tuple[int, int]) -> None:
    found = predictor([torch.randint(0, 256, (3, *size), dtype=torch.uint8)])[0]
    assert torch.isfinite(found.boxes).all()
    assert (found.boxes >= 0).all()


def test_an_empty_list(predictor: Predictor) -> None:
    assert predictor([]) == []


def test_one_scale_as_a_pyramid_is_the_plain_predictor(predictor: Predictor) -> None:
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((48, 70), (33, 20))]
    pyramid = Predictor(predictor.detector, short_side=64, max_side=100, scales=[1])
    for one, other in zip(predictor(images), pyramid(images), strict=True):
        assert len(one.boxes) > 0
        # Merging suppresses nothing that is left, but may order what has the same score otherwise.
        assert torch.equal(one.scores, other.scores)
        assert torch.equal(one.boxes.sum(0), other.boxes.sum(0))


def test_a_pyramid_is_all_scales_merged(predictor: Predictor) -> None:
    image = torch.randint(0, 256, (3, 48, 70), dtype=torch.uint8)
    pyramid = Predictor(predictor.detector, short_side=64, max_side=100, scales=[0.5, 1])
    assert [(scale.short_side, scale.max_side) for scale in pyramid.scales] == [(32, 50), (64, 100)]
    found = pyramid([image])[0]
    parts = [
        Predictor(predictor.detector, short_side=side, max_side=limit)([image])[0]
        for side, limit in ((32, 50), (64, 100))
    ]
    every = [
        (tuple(box), score, label)
        for part in parts
        for box, score, label in zip(*(field.tolist() for field in part), strict=True)
    ]
    merged = list(zip(map(tuple, found.boxes.tolist()), *(f.tolist() for f in found[1:]), strict=True))
    assert set(merged) <= set(every)
    assert merged[0] == max(every, key=lambda one: one[1])
    assert len(merged) <= 100
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    for label in found.labels.unique():
        own = found.boxes[found.labels == label]
        assert (box_iou(own, own).fill_diagonal_(0) <= 0.5).all()


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16-mixed", torch.bfloat16), ("16-mixed", torch.float16)]
)
def test_half_precision_is_the_layers_own(predictor: Predictor, precision: Any, dtype: torch.dtype) -> None:
    """The same as the whole call within torch's own autocast, and not the same as in float32."""
    image = torch.randint(0, 256, (3, 48, 70), dtype=torch.uint8)
    half = Predictor(predictor.detector, short_side=64, max_side=100, precision=precision)
    found, single = half([image])[0], predictor([image])[0]
    with torch.autocast("cpu", dtype):
        expected = predictor([image])[0]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert found.boxes.dtype == found.scores.dtype == torch.float32
    assert not torch.equal(found.scores, single.scores)


def test_prepared_batches_are_taken_too(predictor: Predictor) -> None:
    image = torch.randint(0, 256, (3, 48, 70), dtype=torch.uint8)
    nothing = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    sample = Sample(image, (48, 70), (48, 70), 9, nothing)
    found = predictor.detect(collate_scales([sample], predictor.scales))
    expected = predictor([image])
    assert all(torch.equal(one, other) for one, other in zip(found[0], expected[0], strict=True))


def test_a_detector_of_given_proposals_is_refused(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(predictor.detector), "reads_proposals", True)
    with pytest.raises(InputError, match=r"finds objects in given proposals: use fpn test with data\.test\."):
        Predictor(predictor.detector)


def test_sides_are_positive(predictor: Predictor) -> None:
    for sides in ({"short_side": 0}, {"max_side": -1}, {"scales": [1, 0]}):
        with pytest.raises(InputError, match=r"sides are pixels|scales are factors"):
            Predictor(predictor.detector, **sides)


def test_precisions_are_listed(predictor: Predictor) -> None:
    with pytest.raises(InputError, match="no precision 'bf16'; there are 32-true, bf16-mixed, 16-mixed"):
        Predictor(predictor.detector, precision="bf16")  # type: ignore[arg-type]


def test_a_device_is_one_of_this_machine(predictor: Predictor) -> None:
    # More than any machine has, what torch has never heard of, and what holds no numbers.
    for name in ("cuda:99", "nonsense", "", "meta"):
        with pytest.raises(InputError, match=f"^device '{name}' cannot be used .*: this machine has cpu.*$"):
            Predictor(predictor.detector, device=name)
    for device in ("cpu", torch.device("cpu")):
        assert Predictor(predictor.detector, device=device).device == torch.device("cpu")


def test_mistakes_are_named(predictor: Predictor, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    cases = [
        (torch.zeros(3, 4), r"\(3, 4\)"),
        (torch.zeros(1, 4, 4), r"\(1, 4, 4\)"),
        (torch.zeros(3, 0, 4), r"\(3, 0, 4\)"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "int64"),
        (torch.full((3, 4, 4), 255.0), "from 255 to 255: divide it by 255"),
        (torch.tensor([-2.1, 2.6]).expand(3, 4, 2), "from -2.1 to 2.6: give it without normalisation"),
        (torch.full((3, 4, 4), 1.5), "without normalisation, or clamp it"),
        (torch.full((3, 4, 4), torch.nan), "NaN"),
        (torch.tensor([0.5, torch.inf]).expand(3, 4, 2), "infinite"),
        (torch.zeros(4, 4, 3), r"permute\(2, 0, 1\) puts the colours first"),
        (np.zeros((3, 4, 5), np.uint8), r"transpose\(1, 2, 0\) puts the colours last"),
        (np.zeros((2, 4, 5, 3), np.uint8), "several go into a list"),
        (np.zeros((4, 5, 3), np.int64), "int64"),
        (np.zeros((4, 5, 3), bool), "not bool"),
        (np.full((4, 5, 3), -1.0), "without normalisation"),
        (b"\xff\xd8\xff\xe0 not a picture", "the bytes of an image: cannot be decoded"),
        (b"", "the bytes of an image: .* is empty"),
        (None, "paths, bytes, PIL images, arrays and tensors, one or a list, not a NoneType"),
        (tmp_path / "absent.jpg", "absent.jpg"),
        (broken, "broken.jpg"),
    ]
    for image, message in cases:
        with pytest.raises(InputError, match=message):
            predictor([image])
        with pytest.raises(InputError, match=message):
            predictor(image)


def test_what_is_found_knows_its_names(predictor: Predictor, tmp_path: Path) -> None:
    categories = Categories((7, 9, 40), ("cat", "dog", "cow"))
    named = Predictor(predictor.detector, short_side=64, max_side=100, categories=categories)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    found = named(tmp_path / "image.png")
    boxes, scores, labels = found
    assert found.names == [("cat", "dog", "cow")[label - 1] for label in labels.tolist()]
    assert predictor(pixels).names == [str(label) for label in labels.tolist()]
    for entry, box, score, label in zip(found.to_coco(5), boxes, scores, labels, strict=True):
        x, y, width, height = entry["bbox"]
        assert [x, y, x + width, y + height] == pytest.approx(box.tolist(), abs=0.011)
        assert (entry["image_id"], entry["category_id"]) == (5, (7, 9, 40)[label - 1])
        assert entry["score"] == pytest.approx(float(score), abs=1e-5)
    boxes[:, 0] += 0  # as one moves what was found in a tile
    threshold = float(scores[2])
    expected = draw(torch.from_numpy(pixels).permute(2, 0, 1), found, categories, threshold)
    for one in (
        found,
        named(pixels),
        named((pixels / 255).astype(np.float32)),
        pickle.loads(pickle.dumps(found)),
    ):
        plotted = np.asarray(one.plot(threshold))
        assert np.array_equal(plotted, expected.permute(1, 2, 0).numpy())
    assert not np.array_equal(plotted, pixels)
    best = found.above(threshold)
    assert len(best.scores) == 3
    assert (best.names, best.categories) == (found.names[:3], categories)
    half = found._replace(boxes=boxes / 2)
    assert half.names == found.names
    assert half.to_coco()[0]["bbox"][2] == pytest.approx(found.to_coco()[0]["bbox"][2] / 2, abs=0.011)
    assert predictor(pixels).plot(2.0).tobytes() == pixels.tobytes()


def test_categories_of_another_number_are_refused(predictor: Predictor, tmp_path: Path) -> None:
    categories = Categories((0, 7, 9, 40), ("__background__", "cat", "dog", "cow"))
    told = "4 categories for a detector of 3 classes without the background"
    with pytest.raises(InputError, match=told):
        Predictor(predictor.detector, categories=categories)
    with pytest.raises(InputError, match=told):
        write(Trained(predictor.detector, categories, ImageSettings()), tmp_path / "out.onnx")
    assert not [*tmp_path.iterdir()]


def test_an_export_with_anchors_elsewhere_is_refused(predictor: Predictor, tmp_path: Path) -> None:
    trained = Trained(predictor.detector, Categories((1, 2, 3), ("a", "b", "c")), ImageSettings(divisor=16))
    with pytest.raises(InputError, match=r"divisor 16: an exported rpn\.grid spread needs multiples of 32"):
        write(trained, tmp_path / "out.onnx")


def test_a_detector_of_another_precision_is_used_in_float32(predictor: Predictor) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 70, 3), dtype=np.uint8)
    expected = predictor(pixels)
    double = copy.deepcopy(predictor.detector).double()
    found = Predictor(double, short_side=64, max_side=100)(pixels)
    assert torch.allclose(found.boxes, expected.boxes)
    half = copy.deepcopy(predictor.detector).half()
    assert Predictor(half, short_side=64, max_side=100)(pixels).boxes.dtype == torch.float32


def test_to_supervision(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    categories = Categories((7, 9, 40), ("cat", "dog", "cow"))
    found = Predictor(predictor.detector, 64, 100, categories=categories)(np.zeros((48, 70, 3), np.uint8))
    with monkeypatch.context() as absent:
        absent.setitem(sys.modules, "supervision", None)
        with pytest.raises(InputError, match="supervision is not installed: pip install supervision"):
            found.to_supervision()
    pytest.importorskip("supervision")
    theirs = found.to_supervision()
    assert theirs.xyxy.tolist() == found.boxes.tolist()
    assert [categories.names[i] for i in theirs.class_id] == found.names == theirs["class_name"].tolist()
    assert theirs.confidence.tolist() == found.scores.tolist()


def test_it_is_a_snapshot(predictor: Predictor) -> None:
    """Training goes on: no weight, no average of a norm and no setting of it comes through."""
    detector = FasterRCNN(
        3,
        bottom_up=partial(ResNet, "resnet18", norm="live", width=8),
        neck=partial(FeaturePyramid, channels=8),
        roi_head=partial(RoIHead, head=partial(TwoFCHead, hidden=16)),
        detections=DetectionSelection(score_threshold=0.0),
    )
    image = torch.randint(0, 256, (3, 48, 70), dtype=torch.uint8)
    kept = Predictor(detector, short_side=64, max_side=100)
    before = kept(image)
    with torch.no_grad():
        for tensor in (*detector.parameters(), *detector.buffers()):
            if tensor.is_floating_point():
                tensor.mul_(0.9)
    detector.detections = DetectionSelection(score_threshold=0.0, max_detections=1)
    detector.train()
    assert all(torch.equal(one, other) for one, other in zip(kept(image), before, strict=True))
    after = Predictor(detector, short_side=64, max_side=100)(image)
    assert len(after.boxes) == 1
    assert not torch.equal(after.scores, before.scores[:1])
