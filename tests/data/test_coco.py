"""Reading COCO-format files, against hand-made files and pycocotools; decoding, against PIL."""

import gc
import json
import os
import pickle
import pickletools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pycocotools import mask
from pycocotools.coco import COCO
from torch.utils.data import DataLoader

from fpn.data.coco import CocoDataset, read_annotations
from fpn.data.coco_file import CocoFile, read_json, uncollected
from fpn.data.conventions import another_convention
from fpn.data.decoding import Exif, read_image
from fpn.data.image_files import inspect, turned_line
from fpn.data.samplers import ExactShards, Pick
from fpn.data.transforms import EvalTransform, ImageSettings, Sample, as_stored
from fpn.errors import InputError

Json = dict[str, Any]


def content(boxes: Sequence[Sequence[float]] | None = None, **changes: Any) -> Json:
    """Two images of 40 × 30 pixels (ids 12, 5), categories 9 and 3, and the given boxes, all in image 5."""
    return {
        "images": [
            {"id": 12, "file_name": "b.png", "height": 30, "width": 40},
            {"id": 5, "file_name": "sub/a.png", "height": 30, "width": 40},
        ],
        "annotations": [
            {"id": 100 + place, "image_id": 5, "category_id": 9, "bbox": box, "iscrowd": 0, "area": 1}
            for place, box in enumerate([[1, 2, 3, 4]] if boxes is None else boxes)
        ],
        "categories": [{"id": 9, "name": "zebra"}, {"id": 3, "name": "ant"}],
    } | changes


def written(folder: Path, data: Any) -> Path:
    path = folder / "instances.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def dataset(folder: Path, data: Json) -> CocoDataset:
    return CocoDataset(read_annotations(written(folder, data)), folder, EvalTransform(ImageSettings(30, 40)))


def picture(height: int = 30, width: int = 40) -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 255, (-(-height // 6), -(-width // 6), 3), dtype=np.uint8)
    return Image.fromarray(coarse.repeat(6, 0).repeat(6, 1)[:height, :width])


def test_a_hand_made_file(tmp_path: Path) -> None:
    data = content([[1, 2, 3, 4], [30, 20, 50, 50], [-5, -5, 10, 10], [2.5, 3.5, 1, 1]])
    data["annotations"][3] |= {"category_id": 3, "image_id": 12}
    data["annotations"][1] |= {"iscrowd": 1}
    del data["annotations"][0]["iscrowd"]
    found = read_annotations(written(tmp_path, data))
    assert found.categories.ids == (3, 9)
    assert found.categories.names == ("ant", "zebra")
    assert found.image_ids.tolist() == [12, 5]
    assert found.file_names.tolist() == ["b.png", "sub/a.png"]
    assert found.sizes.tolist() == [[30, 40], [30, 40]]
    assert found.offsets.tolist() == [0, 1, 4]
    assert found.boxes.tolist() == [[2.5, 3.5, 3.5, 4.5], [1, 2, 4, 6], [30, 20, 40, 30], [0, 0, 5, 5]]
    assert found.labels.tolist() == [1, 2, 2, 2]
    assert found.crowd.tolist() == [False, False, True, False]
    assert found.degenerate == 0
    target = found.targets(1)
    assert target.boxes.tolist() == [[1, 2, 4, 6], [0, 0, 5, 5]]
    assert target.labels.tolist() == [2, 2]
    assert target.crowds.tolist() == [[30, 20, 40, 30]]


@pytest.mark.coco_mini
@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_real_annotations_are_pycocotools(coco_mini: Path, split: str) -> None:
    path = coco_mini / "annotations" / f"instances_{split}.json"
    found, truth = read_annotations(path), COCO(str(path))
    assert found.categories.ids == tuple(sorted(truth.getCatIds()))
    assert found.image_ids.tolist() == list(truth.imgs)
    assert len(found.boxes) == len(truth.anns)
    for index, image_id in enumerate(found.image_ids.tolist()):
        entries = truth.loadAnns(truth.getAnnIds(image_id))
        target = found.targets(index)
        singles = [entry for entry in entries if not entry["iscrowd"]]
        assert [found.categories.ids[i - 1] for i in target.labels] == [e["category_id"] for e in singles]
        assert len(target.crowds) == len(entries) - len(singles)
        for box, entry in zip(target.boxes.tolist(), singles, strict=True):
            x, y, w, h = entry["bbox"]
            assert box == pytest.approx([x, y, x + w, y + h], abs=0.02)


@pytest.mark.coco_mini
def test_real_images_load_in_workers_without_python_objects(coco_mini: Path) -> None:
    annotations = read_annotations(coco_mini / "annotations" / "instances_val2017.json")
    data = CocoDataset(annotations, coco_mini / "val2017", EvalTransform(ImageSettings(64, 96)))
    loader = DataLoader(data, batch_sampler=ExactShards(6, 2), num_workers=1, collate_fn=list)
    ids = [sample.image_id for batch in loader for sample in batch]
    assert ids == annotations.image_ids[:6].tolist()


def test_a_data_set_holds_no_python_object_per_image_or_box(tmp_path: Path) -> None:
    def objects(count: int) -> int:
        data = content([[1, 2, 3, 4]] * count)
        data["images"] += [
            {"id": 1000 + i, "file_name": f"{i:012}.jpg", "height": 30, "width": 40} for i in range(count)
        ]
        # An array is a few opcodes, however long; every other object has at least one of its own.
        return sum(1 for _ in pickletools.genops(pickle.dumps(dataset(tmp_path, data))))

    assert objects(2000) - objects(10) < 10


def test_degenerate_boxes_are_dropped_and_counted(tmp_path: Path) -> None:
    good = [[1, 2, 3, 4]] * 5
    found = read_annotations(written(tmp_path, content([*good, [5, 5, 0, 4], [5, 5, 4, -1]])))
    assert found.degenerate == 2
    assert len(found.boxes) == 5


@pytest.mark.parametrize(
    "box",
    [[5, 5, 0, 0], [5, 5, 3, 0.001], [40, 3, 5, 5], [-9, 3, 5, 5], ["NaN", 1, 2, 3], [1, 1, "Infinity", 5]],
)
def test_what_counts_as_degenerate(tmp_path: Path, box: list[Any]) -> None:
    text = (
        json.dumps(content([[0, 0, 40, 30], box])).replace('"NaN"', "NaN").replace('"Infinity"', "Infinity")
    )
    found = read_annotations(written(tmp_path, text))
    assert found.degenerate == 1
    assert found.boxes.tolist() == [[0, 0, 40, 30]]


def test_boxes_in_another_convention_are_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, content([[1, 2, 3, 4]] * 10 + [[60, 60, 70, 70]] * 7))
    with pytest.raises(InputError, match=r"7 of 17 boxes .*annotations 110, 111, 112, 113, 114, …") as caught:
        read_annotations(path)
    assert str(path) in str(caught.value)
    kept = read_annotations(written(tmp_path, content([[1, 2, 3, 4]] * 97 + [[60, 60, 70, 70]] * 3)))
    assert kept.degenerate == 3


def honest(seed: int = 0) -> NDArray[np.float64]:
    """Boxes within a photo of 640 × 480 pixels, some of which end at its border."""
    rng, sides = np.random.default_rng(seed), np.array([640, 480])
    size = sides * np.exp(rng.uniform(np.log(0.03), 0, (200, 2)))
    return np.concatenate([(sides - size) * rng.uniform(0, 1, (200, 2)).round(2), size], axis=1)


@pytest.mark.parametrize(
    ("convention", "named"),
    [
        (lambda xy, wh: [xy, xy + wh], r"corners \[x1, y1, x2, y2\]"),
        (lambda xy, wh: [xy + wh / 2, wh], r"\[center x, center y, width, height\]"),
        (lambda xy, wh: [xy / (640, 480), wh / (640, 480)], "numbers from 0 to 1"),
        (lambda xy, wh: [(xy + wh / 2) / (640, 480), wh / (640, 480)], "numbers from 0 to 1"),
        (lambda xy, wh: [100 * xy / (640, 480), 100 * wh / (640, 480)], "percent"),
        (lambda xy, wh: [2 * xy, 2 * wh], "another size"),
        (lambda xy, wh: [xy, -wh], "empty"),
    ],
)
def test_another_convention_is_named(tmp_path: Path, convention: Any, named: str) -> None:
    boxes = honest()
    data = content(boxes.tolist())
    for image in data["images"]:
        image |= {"height": 480, "width": 640}
    assert read_annotations(written(tmp_path, data)).degenerate == 0
    for entry, box in zip(
        data["annotations"], np.hstack(convention(boxes[:, :2], boxes[:, 2:])).tolist(), strict=True
    ):
        entry["bbox"] = box
    path = written(tmp_path, data)
    with pytest.raises(InputError, match=rf"{named}.*data\.trust_boxes"):
        read_annotations(path)
    assert len(read_annotations(path, trust_boxes=True)) == 2


@pytest.mark.coco_mini
@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_real_boxes_are_in_no_other_convention(coco_mini: Path, split: str) -> None:
    path = coco_mini / "annotations" / f"instances_{split}.json"
    data = json.loads(path.read_text())
    assert another_convention(CocoFile(path, data)) == ""
    for entry in data["annotations"]:
        x, y, w, h = entry["bbox"]
        entry["bbox"] = [x, y, x + w, y + h]
    assert "corners" in another_convention(CocoFile(path, data))
    for entry in data["annotations"]:
        x1, y1, x2, y2 = entry["bbox"]
        entry["bbox"] = [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
    assert "center" in another_convention(CocoFile(path, data))


def without(kind: str, field: str) -> Json:
    data = content()
    del data[kind][0][field]
    return data


def changed(kind: str, field: str, value: Any) -> Json:
    data = content()
    data[kind][0][field] = value
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{", "not a JSON file"),
        ("\0", "not a JSON file"),
        ("[]", "it is a list, not an object"),
        ("{}", "'images' is not a list"),
        (content(images=[]), "'images' is empty"),
        (content(categories=[]), "'categories' is empty"),
        (content(annotations={}), "'annotations' is not a list"),
        (content(annotations=[3]), "'annotations' is not a list of objects"),
        (content(annotations=None), "'annotations' is not a list"),
        (content(categories=None), "'categories' is not a list"),
        (without("images", "id"), "images: 'id' of entry 0 is missing"),
        (without("images", "height"), "'height' of entry 0 is missing"),
        (without("images", "file_name"), "'file_name' of entry 0 is missing"),
        (without("annotations", "bbox"), "'bbox' of entry 0 is missing"),
        (without("annotations", "category_id"), "'category_id' of entry 0 is missing"),
        (without("categories", "name"), "'name' of entry 0 is missing"),
        (changed("images", "id", "5"), "'id' of entry 1 is 5, which an earlier one has"),
        (changed("images", "id", ["12"]), "'id' of entry 0 is ['12'], not an integer or a string"),
        (changed("images", "width", 40.5), "40.5, not a length in whole pixels"),
        (changed("images", "id", True), "True, not an integer"),
        (changed("images", "id", 2.0**53 + 2), "not an integer"),
        (changed("images", "width", 2**31), "'width' of entry 0 is 2147483648, not a length in whole pixels"),
        (changed("images", "width", 0), "'width' of entry 0 is 0, not a length in whole pixels"),
        (changed("images", "file_name", 7), "7, not a string"),
        (changed("images", "file_name", ""), "not a path inside"),
        (changed("images", "file_name", "a/../../b.png"), "not a path inside"),
        (changed("images", "file_name", "..\\b.png"), "not a path inside"),
        (changed("images", "file_name", "./"), "not a path inside"),
        (changed("images", "file_name", "a\nb.png"), "not a path inside"),
        (changed("images", "file_name", "a" * 1001), "not a path inside"),
        (changed("images", "file_name", "a\0b.png"), "'a\\x00b.png', not a string"),
        (changed("categories", "name", "\ud800"), "'\\ud800', not a string"),
        (changed("categories", "name", "\x1b]0;title\x07"), "'\\x1b]0;title\\x07', not a string"),
        (changed("images", "id", 5), "images: 'id' of entry 1 is 5, which an earlier one has"),
        (changed("categories", "id", 3), "categories: 'id' of entry 1 is 3, which an earlier one has"),
        (changed("annotations", "image_id", 6), "'image_id' of entry 0 is 6, which is not listed"),
        (changed("annotations", "image_id", 99), "'image_id' of entry 0 is 99, which is not listed"),
        (changed("annotations", "category_id", 4), "'category_id' of entry 0 is 4, which is not listed"),
        (changed("annotations", "bbox", [1, 2, 3]), "not four numbers"),
        (changed("annotations", "bbox", [1, 2, 3, "wide"]), "not four numbers"),
        (
            changed("annotations", "bbox", [1, 2, 3, 4, 0.5]),
            "a rotated box [x, y, width, height, angle]; give the upright box",
        ),
        (changed("annotations", "area", "one"), "'area' of entry 0 is 'one', not a number"),
        (changed("annotations", "bbox", [1, 2, 3, None]), "not four numbers"),
        (changed("annotations", "bbox", [1, 2, 3, 10**400]), "not four numbers"),
        (changed("annotations", "bbox", [1, 2, 3, True]), "not four numbers"),
        (changed("annotations", "iscrowd", 2), "'iscrowd' of entry 0 is 2, not 0 or 1"),
        (changed("annotations", "iscrowd", "no"), "'iscrowd' of entry 0 is 'no', not 0 or 1"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(tmp_path: Path, data: Any, message: str) -> None:
    path = written(tmp_path, data)
    with pytest.raises(InputError) as caught:
        read_annotations(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("images", "id", 12.0),
        ("images", "width", 40.0),
        ("images", "file_name", "a..b/..c.d"),
        ("categories", "id", 9.0),
        ("annotations", "id", -(2**63)),
        ("annotations", "bbox", [1.0, 2, 3, 4.0]),
        ("annotations", "iscrowd", False),
        ("annotations", "iscrowd", None),
        ("annotations", "area", None),
        ("annotations", "area", -1.5),
        ("annotations", "segmentation", {"counts": "x", "size": "any"}),
    ],
)
def test_what_is_written_otherwise_and_means_the_same(
    tmp_path: Path, kind: str, field: str, value: Any
) -> None:
    plain, other = (
        read_annotations(written(tmp_path, data)) for data in (content(), changed(kind, field, value))
    )
    for key in ("image_ids", "sizes", "offsets", "boxes", "labels", "crowd"):
        assert np.array_equal(getattr(plain, key), getattr(other, key))
    assert other.categories == plain.categories
    assert str(other.file_names[0]) == (value if field == "file_name" else "b.png")


def test_true_is_a_crowd(tmp_path: Path) -> None:
    assert read_annotations(written(tmp_path, changed("annotations", "iscrowd", True))).crowd.tolist() == [
        True
    ]


def test_a_missing_file_or_a_folder_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such annotation file"):
        read_annotations(tmp_path / "none.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_annotations(tmp_path)


def test_a_file_of_unlabelled_images(tmp_path: Path) -> None:
    data = content()
    del data["annotations"]
    path = written(tmp_path, data)
    with pytest.raises(InputError, match="'annotations' is not a list"):
        read_annotations(path)
    found = read_annotations(path, need_objects=False)
    assert found.image_ids.tolist() == [12, 5]
    assert found.offsets.tolist() == [0, 0, 0]
    assert found.boxes.shape == (0, 4)
    assert found.targets(1).boxes.shape == (0, 4)
    labelled = written(tmp_path, content())
    assert len(read_annotations(labelled, need_objects=False).boxes) == 1
    with pytest.raises(InputError, match="'annotations' is not a list"):
        read_annotations(written(tmp_path, content(annotations=7)), need_objects=False)


def test_no_annotations_at_all(tmp_path: Path) -> None:
    data = content([])
    picture().save(tmp_path / "b.png")
    found = dataset(tmp_path, data)
    assert found.annotations.has_objects().tolist() == [False, False]
    sample = found[Pick(0, 0)]
    assert [part.shape for part in sample.target] == [(0, 4), (0,), (0, 4)]
    assert sample.image_id == 12


def test_an_image_of_crowds_alone_has_no_objects(tmp_path: Path) -> None:
    data = content([[1, 2, 3, 4], [5, 5, 0, 5]])
    data["annotations"][0]["iscrowd"] = 1
    annotations = read_annotations(written(tmp_path, data))
    assert annotations.has_objects().tolist() == [False, False]
    assert annotations.targets(1).crowds.tolist() == [[1, 2, 4, 6]]
    assert len(annotations.targets(1).boxes) == 0


def test_selecting_images_keeps_their_boxes(tmp_path: Path) -> None:
    data = content([[1, 2, 3, 4], [2, 2, 3, 4], [3, 2, 3, 4]])
    data["images"].append({"id": 7, "file_name": "c.png", "height": 30, "width": 40})
    data["annotations"][2]["image_id"] = 7
    annotations = read_annotations(written(tmp_path, data))
    assert annotations.has_objects().tolist() == [False, True, True]
    kept = annotations.select(annotations.has_objects())
    assert kept.image_ids.tolist() == [5, 7]
    assert kept.targets(0).boxes[:, 0].tolist() == [1, 2]
    assert kept.targets(1).boxes[:, 0].tolist() == [3]
    assert len(annotations.select(np.array([True, False, False])).boxes) == 0


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_decode_as_pil_does(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "image.jpg"
    picture().convert(mode).save(path, quality=95)
    expected = np.asarray(Image.open(path).convert("RGB")).astype(int)
    found = read_image(path)
    assert found.dtype == torch.uint8
    assert np.abs(found.permute(1, 2, 0).numpy() - expected).max() <= 2


@pytest.mark.parametrize("mode", ["RGBA", "P", "L"])
def test_pngs_have_three_channels(tmp_path: Path, mode: str) -> None:
    picture().convert(mode).save(tmp_path / "image.png")
    assert read_image(tmp_path / "image.png").shape == (3, 30, 40)


OTHERS = ["bmp", "tif", "avif", "jp2", "jfif", "webp", "gif", "ppm", "tga", "ico", "qoi"]


@pytest.mark.parametrize("kind", [kind for kind in OTHERS if f".{kind}" in Image.registered_extensions()])
def test_what_torchvision_does_not_decode_pillow_does(tmp_path: Path, kind: str) -> None:
    path, exact = tmp_path / f"image.{kind}", {"webp": {"lossless": True}, "jfif": {"quality": 95}}
    picture().resize((64, 64), Image.Resampling.NEAREST).save(path, **exact.get(kind, {}))
    expected = np.asarray(Image.open(path).convert("RGB")).astype(int)
    # Whatever the file is called.
    found = read_image(path.rename(tmp_path / "image"))
    assert found.dtype == torch.uint8
    assert np.abs(found.permute(1, 2, 0).numpy() - expected).max() <= 2


@pytest.mark.parametrize("kind", ["png", "tif"])
@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_sixteen_bits_are_scaled_by_their_range(tmp_path: Path, kind: str, mode: str) -> None:
    grey = np.arange(30 * 40).reshape(30, 40) * 54
    stored = Image.frombytes(mode, (40, 30), grey.astype("<u2" if mode == "I;16" else ">u2").tobytes())
    stored.save(tmp_path / f"deep.{kind}")
    found = read_image(tmp_path / f"deep.{kind}")
    assert found.shape == (3, 30, 40)
    assert found.eq(found[:1]).all()
    assert np.array_equal(found[0], np.round(grey / 257))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "1"])
@pytest.mark.parametrize("kind", ["png", "tif"])
def test_transparency_is_dropped(tmp_path: Path, mode: str, kind: str) -> None:
    image = picture().convert("P" if mode == "PA" else mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.linear_gradient("L").resize((40, 30)))
    expected = np.asarray(image.convert("RGB"))
    image.save(tmp_path / f"a.{kind}", **({"transparency": 3} if mode == "PA" and kind == "png" else {}))
    assert np.array_equal(read_image(tmp_path / f"a.{kind}").permute(1, 2, 0), expected)


def test_one_pixel(tmp_path: Path) -> None:
    data = content([[0, 0, 1, 1]])
    data["images"][1] |= {"height": 1, "width": 1}
    (tmp_path / "sub").mkdir()
    picture(1, 1).save(tmp_path / "sub" / "a.png")
    sample = dataset(tmp_path, data)[Pick(1, 0)]
    assert sample.image.shape == (3, 30, 30)
    assert sample.target.boxes.tolist() == [[0, 0, 30, 30]]
    assert sample.original_size == (1, 1)


def exif(orientation: int) -> Image.Exif:
    data = Image.Exif()
    data[0x0112] = orientation
    return data


TURNED = {"jpg": {"quality": 95}, "png": {}, "webp": {"lossless": True}, "avif": {"quality": 95}, "tif": {}}


@pytest.mark.parametrize("kind", [kind for kind in TURNED if f".{kind}" in Image.registered_extensions()])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_shown_as_pil_shows_them(tmp_path: Path, kind: str, orientation: int) -> None:
    path = tmp_path / f"b.{kind}"
    # Odd sizes, in more than one of the parts that are mirrored one by one.
    picture(71, 141).save(path, exif=exif(orientation), **TURNED[kind])
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB")).astype(int)
    found = read_image(path).permute(1, 2, 0).numpy()
    assert found.shape == ((71, 141, 3) if orientation < 5 else (141, 71, 3))
    assert np.abs(found - expected).max() <= 4
    if kind != "tif":
        stored = np.asarray(Image.open(path).convert("RGB")).astype(int)
        assert np.abs(read_image(path, "ignore").permute(1, 2, 0).numpy() - stored).max() <= 4


@pytest.mark.parametrize(
    ("orientation", "rule", "stated", "turned"),
    [
        (6, "apply", (40, 30), True),
        (6, "apply", (30, 40), False),
        (6, "ignore", (30, 40), False),
        (6, "ignore", (40, 30), None),
        (6, "apply", (31, 40), None),
        (3, "apply", (30, 40), True),
        (2, "apply", (30, 40), True),
        (3, "ignore", (30, 40), False),
        (1, "apply", (30, 40), False),
        (1, "apply", (40, 30), None),
    ],
)
def test_sizes_tell_the_frame_of_the_boxes(
    tmp_path: Path, orientation: int, rule: Exif, stated: tuple[int, int], turned: bool | None
) -> None:
    """As shown, as stored, or neither, which is refused; the audit and the start of training say the same."""
    path = tmp_path / "b.png"
    picture().save(path, exif=exif(orientation))
    data = changed("images", "file_name", "b.png")
    data["images"] = [data["images"][0] | {"height": stated[0], "width": stated[1]}]
    data["annotations"] = []
    annotations = read_annotations(written(tmp_path, data))
    images = CocoDataset(annotations, tmp_path, as_stored, exif=rule)
    told = turned_line(annotations, tmp_path, rule)
    one = inspect(str(path), decode=False).against(*stated, rule)
    if turned is None:
        with pytest.raises(InputError, match=rf"{stated[1]} × {stated[0]}"):
            images.picture(0)
        assert one.fault == "other_size"
        return
    expected = Image.open(path)
    expected = ImageOps.exif_transpose(expected) if turned else expected
    assert np.array_equal(images.picture(0).permute(1, 2, 0), expected)
    assert (one.fault, one.turned, one.left_turned) == ("", turned, orientation > 1 and not turned)
    assert ("1 are turned or mirrored" in told, "1 are taken as stored" in told) == (
        one.turned,
        one.left_turned,
    )


def broken_files(folder: Path) -> dict[str, str]:
    picture().save(folder / "whole.jpg", quality=95)
    whole = (folder / "whole.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("hello" * 10)
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "folder.jpg").mkdir()
    Image.fromarray(np.zeros((30, 40), dtype=np.float32)).save(folder / "real.tif")
    (folder / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(12))
    picture().save(folder / "cut.png")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:100])
    return {
        "cut.jpg": "damaged, or ends too early",
        "cut.png": "damaged, or ends too early",
        "text.jpg": "no image of a kind that torchvision or Pillow reads",
        "empty.jpg": "the file is empty",
        "photo.heic": "it is HEIC, which takes the package pillow-heif; or save it as JPEG",
        "folder.jpg": "no such image",
        "real.tif": "save it with 8 or 16 bits",
        "none.jpg": "no such image",
        "x" * 300 + ".jpg": "name too long",
    }


def test_a_broken_image_is_one_line_that_names_it(tmp_path: Path) -> None:
    for name, message in broken_files(tmp_path).items():
        with pytest.raises(InputError) as caught:
            dataset(tmp_path, changed("images", "file_name", name))[Pick(0, 0)]
        assert message in str(caught.value)
        assert str(caught.value).startswith(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_what_has_no_end_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "device.png"):
        with pytest.raises(InputError, match=rf"{name}: no such image file"):
            read_image(tmp_path / name)


def test_an_input_error_in_a_worker_stays_one(tmp_path: Path) -> None:
    loader = DataLoader(
        dataset(tmp_path, content()), batch_sampler=ExactShards(1, 1), num_workers=1, collate_fn=list
    )
    with pytest.raises(InputError) as caught:
        list(loader)
    assert str(caught.value).strip().splitlines()[-1] == (
        f"fpn.errors.InputError: {tmp_path / 'b.png'}: no such image file"
    )


def test_all_randomness_is_the_picks(tmp_path: Path) -> None:
    picture().save(tmp_path / "b.png")

    def noise(sample: Sample, generator: torch.Generator) -> Sample:
        return sample._replace(image=torch.rand(3, 4, 4, generator=generator))

    data = CocoDataset(read_annotations(written(tmp_path, content())), tmp_path, noise)
    assert torch.equal(data[Pick(0, 5)].image, data[Pick(0, 5)].image)
    assert not torch.equal(data[Pick(0, 5)].image, data[Pick(0, 6)].image)


@pytest.mark.parametrize("on", [True, False])
def test_garbage_is_collected_again_as_before(on: bool, tmp_path: Path) -> None:
    seen = []
    was_on = gc.isenabled()
    try:
        (gc.enable if on else gc.disable)()
        with pytest.raises(InputError, match="no such annotation file"):
            read_json(tmp_path / "absent.json", "annotation")
        seen.append(gc.isenabled())
        with uncollected(), uncollected():
            seen.append(gc.isenabled())
        seen.append(gc.isenabled())
    finally:
        (gc.enable if was_on else gc.disable)()
    assert seen == [on, False, on]


def square(kind: str) -> Any:
    """The pixels 3 ≤ x < 10, 5 ≤ y < 9 of 40 × 30, as a mask of COCO's."""
    pixels = np.zeros((30, 40), dtype=np.uint8, order="F")
    pixels[5:9, 3:10] = 1
    if kind == "polygons":
        return [[3, 5, 10, 5, 10, 7], [3, 7, 10, 7, 3, 9]]
    runs = mask.encode(pixels)
    if kind == "compressed runs":
        return {"size": runs["size"], "counts": runs["counts"].decode()}
    changes = np.flatnonzero(np.diff(np.concatenate([[0], pixels.ravel(order="F"), [0]])))
    return {"size": [30, 40], "counts": np.diff([0, *changes.tolist(), 1200]).tolist()}


@pytest.mark.parametrize("kind", ["polygons", "compressed runs", "runs"])
@pytest.mark.parametrize("bbox", [None, []])
def test_without_a_box_it_is_the_masks(tmp_path: Path, kind: str, bbox: Any) -> None:
    data = changed("annotations", "bbox", bbox)
    data["annotations"][0]["segmentation"] = square(kind)
    found = read_annotations(written(tmp_path, data))
    assert found.boxes.tolist() == [[3, 5, 10, 9]]
    assert any("1 boxes are those of the masks" in line for line in found.told)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (without("annotations", "id"), "1 annotation ids are missing or repeated"),
        (content([[1, 2, 3, 4]] * 2) | {"annotations": content()["annotations"] * 2}, "1 annotation ids"),
        (without("annotations", "area"), "1 annotations have no area"),
        (changed("annotations", "bbox", ["1", "2.0", 3, "4"]), "1 numbers, or boxes of some"),
        (changed("images", "width", "40"), "1 numbers, or boxes"),
        (content([[1, 2, 3, 4]]), ""),
    ],
)
def test_what_is_plain_is_taken_and_told(tmp_path: Path, data: Json, told: str) -> None:
    found = read_annotations(written(tmp_path, data))
    assert found.boxes.tolist() == [[1, 2, 4, 6]] * len(data["annotations"])
    assert bool(found.told) == bool(told)
    assert told in " ".join(found.told)


def test_sizes_and_names_that_are_elsewhere(tmp_path: Path) -> None:
    data = content()
    for entry, name in zip(data["images"], ["b.png", "a.png"], strict=True):
        del entry["height"], entry["width"], entry["file_name"]
        entry["coco_url"] = f"http://images.example.org/sub/{name}"
    (tmp_path / "sub").mkdir()
    picture(30, 40).save(tmp_path / "b.png")
    picture(30, 40).save(tmp_path / "sub" / "a.png")
    found = read_annotations(written(tmp_path, data), image_folder=tmp_path)
    assert found.file_names.tolist() == ["b.png", "sub/a.png"]
    assert found.sizes.tolist() == [[30, 40]] * 2
    assert [line[:9] for line in found.told] == ["2 images ", "2 images "]


def test_sizes_of_files_under_another_spelling(tmp_path: Path) -> None:
    picture(30, 40).save(tmp_path / "a.jpg")
    file = written(tmp_path, content(images=[{"id": 5, "file_name": r"C:\x\A.JPG"}]))
    assert read_annotations(file, image_folder=tmp_path).sizes.tolist() == [[30, 40]]


@pytest.mark.parametrize("angle", [0, 90, 30.0, -135.5, 360])
def test_a_box_that_cvat_turned_is_the_upright_one_around_it(tmp_path: Path, angle: float) -> None:
    """By its four corners, turned about the centre."""
    data = content([[10, 12, 16, 4]])
    data["annotations"][0]["attributes"] = {"occluded": False, "rotation": angle}
    turn = np.deg2rad(angle)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    corners = np.array([[-8, -2], [8, -2], [8, 2], [-8, 2]]) @ matrix.T + (18, 14)
    found = read_annotations(written(tmp_path, data))
    expected = [*corners.min(axis=0), *corners.max(axis=0)]
    np.testing.assert_allclose(found.boxes[0], np.clip(expected, 0, [40, 30, 40, 30]), atol=1e-5)
    assert any("turned by an attribute" in line for line in found.told) == bool(angle % 180)


def test_crowds_alone_name_their_remedy(tmp_path: Path) -> None:
    path = written(tmp_path, changed("annotations", "iscrowd", 1))
    with pytest.raises(InputError, match=r"all 1 have iscrowd 1, .* data\.crowds to objects"):
        read_annotations(path).with_objects()
    assert len(read_annotations(path, crowds="objects").with_objects()) == 1


def test_repeat_factors_are_lviss(tmp_path: Path) -> None:
    """Its formula, in loops over an annotation file."""
    rng = np.random.default_rng(0)
    images = [{"id": 10 * i, "file_name": f"{i}.png", "height": 50, "width": 50} for i in range(60)]
    box = {"bbox": [1, 2, 10, 10], "area": 100}
    annotations: list[dict[str, Any]] = []
    for image in images[1:]:  # the first has none
        for category in rng.choice([3, 3, 3, 5, 7], rng.integers(1, 5)).tolist():
            annotations.append(box | {"image_id": image["id"], "category_id": category, "iscrowd": 0})
    annotations.append(box | {"image_id": 20, "category_id": 11, "iscrowd": 0})
    annotations.append(box | {"image_id": 30, "category_id": 11, "iscrowd": 1})
    annotations = [one | {"id": number} for number, one in enumerate(annotations)]
    categories = [{"id": id_, "name": str(id_)} for id_ in (3, 5, 7, 9, 11)]
    path = tmp_path / "file.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    read = read_annotations(path)
    for threshold in (0.0, 0.001, 0.1, 0.5, 1.0):
        expected = []
        for image in images:
            factor = 1.0
            for one in annotations:
                if one["image_id"] == image["id"] and not one["iscrowd"]:
                    of_class = {
                        other["image_id"]
                        for other in annotations
                        if other["category_id"] == one["category_id"] and not other["iscrowd"]
                    }
                    factor = max(factor, (threshold / (len(of_class) / len(images))) ** 0.5)
            expected.append(factor)
        np.testing.assert_allclose(read.repeat_factors(threshold), expected, rtol=1e-12)
        assert max(expected) > 1 or threshold < 0.1
