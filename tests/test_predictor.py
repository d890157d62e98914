from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_iou

from fpn import InputError, Predictor
from fpn.data.transforms import Sample, collate_scales
from fpn.models.detectors import FasterRCNN
from fpn.models.necks import FeaturePyramid
from fpn.models.postprocess import DetectionSelection
from fpn.models.resnet import ResNet
from fpn.models.roi_head import RoIHead, TwoFCHead
from fpn.types import Targets


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
    forms = [tensor, tensor.float() / 255, picture, path, str(path)]
    first, *others = [predictor([form])[0] for form in forms]
    assert len(first.boxes) > 0
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert (first.boxes <= torch.tensor([70.0, 48, 70, 48]) + 1e-4).all()


def test_palettes_and_grey_pictures(predictor: Predictor) -> None:
    for mode in ("L", "P", "RGBA", "CMYK"):
        assert len(predictor([Image.new(mode, (40, 30))])) == 1


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
        (torch.full((3, 4, 4), 255.0), "divide it by 255"),
        (tmp_path / "absent.jpg", "absent.jpg"),
        (broken, "broken.jpg"),
    ]
    for image, message in cases:
        with pytest.raises(InputError, match=message):
            predictor([image])
    with pytest.raises(InputError, match="takes a list"):
        predictor(torch.zeros(3, 4, 4))  # type: ignore[arg-type]
