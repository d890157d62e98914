from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fpn import InputError, Predictor
from fpn.models.detectors import FasterRCNN
from fpn.models.necks import FeaturePyramid
from fpn.models.postprocess import DetectionSelection
from fpn.models.resnet import ResNet
from fpn.models.roi_head import RoIHead, TwoFCHead


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


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (333, 7), (64, 64)])
def test_any_size(predictor: Predictor, size: tuple[int, int]) -> None:
    found = predictor([torch.randint(0, 256, (3, *size), dtype=torch.uint8)])[0]
    assert torch.isfinite(found.boxes).all()
    assert (found.boxes >= 0).all()


def test_an_empty_list(predictor: Predictor) -> None:
    assert predictor([]) == []


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
