"""The audit of a hand-made bad set and of real images; its verdict, against what training does;
anchors' best overlaps, against all anchors there are.
"""

import json
import shutil
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import layout_files
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO
from torchvision.ops import box_iou

from fpn.data.audit import Audit, look_at
from fpn.data.coco import CocoDataset, read_annotations
from fpn.data.datamodule import CocoDataModule
from fpn.data.image_files import inspect
from fpn.data.object_sizes import best_overlaps, input_sizes
from fpn.data.options import ImageOptions, Split
from fpn.data.samplers import Pick
from fpn.data.transforms import as_stored, resized_size
from fpn.errors import InputError
from fpn.lit.cli import main
from fpn.models.rpn import ANCHOR_SIZES
from fpn.ops.anchors import cell_anchors, grid_anchors

Json = dict[str, Any]


def image(id_: int, name: str | None = None, **changes: Any) -> Json:
    return {"id": id_, "file_name": name or f"{id_}.jpg", "height": 30, "width": 40} | changes


def box(id_: int, image_id: int, bbox: list[Any], category_id: int = 3, **changes: Any) -> Json:
    return {"id": id_, "image_id": image_id, "category_id": category_id, "bbox": bbox} | changes


def picture(height: int = 30, width: int = 40) -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 255, (-(-height // 6), -(-width // 6), 3), dtype=np.uint8)
    return Image.fromarray(coarse.repeat(6, 0).repeat(6, 1)[:height, :width])


def deep_png(path: Path, colour: int) -> None:
    """A PNG of 40 × 30 pixels with 16 bits a channel: grey (0) or RGB (2)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)

    rows = (b"\0" + bytes(40 * 2 * (3 if colour else 1))) * 30
    header = (40).to_bytes(4) + (30).to_bytes(4) + bytes([16, colour, 0, 0, 0])
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Image files of all kinds, named for what they are."""
    folder = tmp_path_factory.mktemp("files")
    plain, exif, other = picture(), Image.Exif(), Image.Exif()
    plain.save(folder / "fine.jpg", quality=95)
    plain.save(folder / "fine.png")
    plain.save(folder / "fine.gif")
    plain.save(folder / "fine.webp")
    whole = (folder / "fine.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("no image")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "folder.jpg").mkdir()
    picture(40, 30).save(folder / "upright.jpg")
    exif[0x0112], other[0x0112] = 6, 1
    plain.save(folder / "turned.jpg", exif=exif)
    plain.save(folder / "turned.png", exif=exif)
    plain.save(folder / "not_turned.jpg", exif=other)
    plain.convert("L").save(folder / "grey.jpg")
    plain.convert("LA").save(folder / "grey.png")
    plain.convert("CMYK").save(folder / "cmyk.jpg")
    deep_png(folder / "deep_grey.png", 0)
    deep_png(folder / "deep.png", 2)
    plain.save(folder / "film.gif", save_all=True, append_images=[picture(30, 40).rotate(180)])
    plain.save(folder / "film.webp", save_all=True, append_images=[picture(30, 40).rotate(180)])
    plain.save(folder / "picture.bmp")
    plain.convert("F").save(folder / "float.tif")
    return folder


def written(folder: Path, data: Any) -> Path:
    path = folder / "instances.json"
    path.write_text(json.dumps(data))
    return path


def audited(path: Path, folder: Path | None = None, **options: Any) -> Audit:
    return look_at(path, folder, anchor_sizes=ANCHOR_SIZES, num_workers=0, **options)


def found(report: Audit, section: str) -> dict[str, list[Any]]:
    """What was found, less what was looked for and not found."""
    return {key: one.items for key, one in report.findings[section].items() if one.items}


NAN, INF = float("nan"), float("inf")
BAD: Json = {
    "images": [
        image(1),
        image(2, "2.jpg"),
        image(3, "2.jpg"),
        image(4, "../4.jpg"),
        image(2, "5.jpg"),
        image(6),
        image(7),
        image(8, width="wide"),
        image(9, height=0),
        image(10),
        "11.jpg",
        {"id": 12},
    ],
    "annotations": [
        box(100, 1, [1, 2, 3, 4]),
        box(102, 1, [1, 2, 3, 4], category_id=4),
        box(101, 1, [1, 2, 3, 4.0], iscrowd=0),  # the same as 100
        box(103, 2, [1, 2, 3, 4], iscrowd=1),
        box(104, 3, [5, 5, 0, 4]),
        box(105, 3, [5, 5, 4, -1]),
        box(106, 3, [5, -9, 4, 0.005]),
        box(107, 3, [41, 5, 4, 4]),
        box(108, 3, [5, -8, 4, 8]),
        box(109, 3, [NAN, 5, 4, 4]),
        box(110, 3, [5, 5, INF, 4]),
        box(111, 6, [30, 20, 20, 5]),
        box(112, 6, [0, 0, 40.01, 30]),  # within what two decimals round to
        box(113, 6, [3, 3, 5, 5], area=NAN),
        box(114, 99, [1, 1, 2, 2]),
        box(115, 8, [1, 1, 2, 2]),
        box(116, 6, [1, 1, 2, 2], category_id=99),
        box(116, 6, [2, 1, 2, 2]),
        box(117, 6, [2, 1, 2, "wide"]),
        box(118, 6, [2, 1, 2]),
        box(119, 6, [2, 1, 2, 2], iscrowd=2),
        box(120, 6, [2, 1, 2, 2], area="four"),
        box(121, 6, [2, 1, 2, 2], category_id=None),  # type: ignore[arg-type]
        [2, 1, 2, 2],
    ],
    "categories": [
        {"id": 3, "name": "cat"},
        {"id": 4, "name": "dog"},
        {"id": 4, "name": "cow"},
        {"id": 7, "name": "cat"},
        {"id": 8},
    ],
}


def test_all_that_is_wrong_is_found(tmp_path: Path) -> None:
    report = audited(written(tmp_path, BAD))
    assert report.listed == {"images": 12, "annotations": 24, "categories": 5}
    images = found(report, "images")
    assert images.pop("malformed") == [
        "'width' of entry 7 is 'wide', not a length in whole pixels",
        "'height' of entry 8 is 0, not a length in whole pixels",
        "entry 10 is a string, not an object",
        "'file_name' of entry 11 is missing, not a string",
    ]
    assert images == {
        "outside_folder": ["../4.jpg"],
        "duplicate_file_names": ["2.jpg"],
        "duplicate_ids": [2],
        "unannotated": [4, 2, 7, 10],
        "only_crowds": [2],
        "only_unusable": [3],
    }
    annotations = found(report, "annotations")
    assert annotations.pop("malformed") == [
        "'bbox' of entry 18 is [2, 1, 2, 'wide'], not four numbers",
        "'bbox' of entry 19 is [2, 1, 2], not four numbers",
        "'iscrowd' of entry 20 is 2, not 0 or 1",
        "'area' of entry 21 is 'four', not a number",
        "'category_id' of entry 22 is missing, not an integer or a string",
        "entry 23 is a list, not an object",
    ]
    assert annotations == {
        "crowds": [103],
        "not_finite": [109, 110],
        "negative": [105],
        "empty": [104, 106],
        "outside": [107, 108],
        "partly_outside": [111],
        "area_not_finite": [113],
        "unknown_image": [114, 115],
        "unknown_category": [116],
        "duplicates": [101],
        "duplicate_ids": [116],
    }
    assert found(report, "categories") == {
        "without_objects": [4, 7],
        "duplicate_ids": [4],
        "duplicate_names": ["cat"],
        "malformed": ["'name' of entry 4 is missing, not a string"],
    }
    assert [tuple(one) for one in report.by_category] == [
        (3, "cat", 6, 2, 1),
        (4, "dog", 1, 1, 0),
        (4, "cow", 0, 0, 0),
        (7, "cat", 0, 0, 0),
    ]
    assert report.refusal.startswith(f"{tmp_path / 'instances.json'}: ")
    json.dumps(report.as_json(), allow_nan=False)


def test_a_set_without_fault(tmp_path: Path) -> None:
    data = BAD | {
        "images": [image(1)],
        "annotations": [box(1, 1, [1, 2, 3, 4])],
        "categories": [{"id": 3, "name": "a"}],
    }
    report = audited(written(tmp_path, data))
    assert [found(report, section) for section in ("images", "annotations", "categories")] == [{}, {}, {}]
    assert report.refusal == report.validation_refusal == ""


@pytest.mark.parametrize("annotations", [[], [box(1, 1, [1, 2, 3, 4], iscrowd=1)]])
def test_nothing_to_learn_from_is_what_only_training_refuses(
    tmp_path: Path, files: Path, annotations: list[Json]
) -> None:
    data = {"images": [image(1, "fine.jpg")], "annotations": annotations}
    path = written(tmp_path, data | {"categories": [{"id": 3, "name": "a"}]})
    for folder in (None, files):
        report = audited(path, folder)
        assert report.refusal == trained(path, files, 0.0)
        assert report.refusal.startswith(f"{path}: no image has an object to learn from")
        assert report.validation_refusal == ""


def test_what_only_scoring_refuses(tmp_path: Path) -> None:
    for wrong, message in (
        (box(2, 1, [NAN, 1, 2, 2]), "'bbox' of entry 1 is [nan, 1, 2, 2], not four finite numbers"),
        (box(2, 1, [1, 1, 2, 2], area=INF), "'area' of entry 1 is inf, not a finite number"),
    ):
        data = {"images": [image(1)], "categories": [{"id": 3, "name": "a"}]}
        report = audited(written(tmp_path, data | {"annotations": [box(1, 1, [1, 2, 3, 4]), wrong]}))
        assert report.refusal == ""
        assert message in report.validation_refusal


KINDS = {
    "fine.jpg": {},
    "fine.png": {},
    "fine.gif": {},
    "fine.webp": {},
    "text.jpg": {"fault": "unreadable"},
    "empty.jpg": {"fault": "unreadable"},
    "picture.bmp": {},
    "folder.jpg": {"fault": "missing"},
    "none.jpg": {"fault": "missing"},
    "x" * 300: {"fault": "missing"},
    "upright.jpg": {"height": 40, "width": 30},
    "turned.jpg": {"orientation": 6},
    "turned.png": {"orientation": 6},
    "not_turned.jpg": {},
    "grey.jpg": {"grey": True},
    "grey.png": {"grey": True},
    "cmyk.jpg": {"cmyk": True},
    "deep_grey.png": {"grey": True},
    "deep.png": {},
    "float.tif": {"fault": "unsupported"},
    "film.gif": {"fault": "unsupported"},
    "film.webp": {"fault": "unsupported"},
}


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_files(files: Path, name: str, decode: bool) -> None:
    one = inspect(str(files / name), decode)
    expected = {
        "height": 30,
        "width": 40,
        "fault": "",
        "orientation": 1,
        "grey": False,
        "cmyk": False,
    } | KINDS[name]
    if expected["fault"] in ("missing", "unreadable"):
        expected |= {"height": 0, "width": 0}
    assert {key: getattr(one, key) for key in expected} == expected
    assert bool(one.reason) == bool(one.fault)


def test_large_photos_are_told(tmp_path: Path) -> None:
    Image.new("1", (10_001, 5_000)).save(tmp_path / "large.png")
    Image.new("1", (10_000, 5_000)).save(tmp_path / "other.png")
    images = [
        image(1, "large.png", width=10_001, height=5_000),
        image(2, "other.png", width=10_000, height=5_000),
    ]
    data = {
        "images": images,
        "annotations": [box(1, 1, [1, 2, 3, 4])],
        "categories": [{"id": 3, "name": "a"}],
    }
    report = audited(written(tmp_path, data), tmp_path)
    assert report.refusal == ""
    assert report.findings["images"]["large"].items == ["large.png"]


def test_a_file_that_breaks_off_is_found_by_decoding(files: Path) -> None:
    assert inspect(str(files / "cut.jpg"), decode=False).fault == ""
    one = inspect(str(files / "cut.jpg"), decode=True)
    assert one.fault == "unreadable"
    assert one.reason == "cannot be decoded: it is damaged, or ends too early"


def trained(path: Path, folder: Path, share: float) -> str:
    """The line that ends an epoch of training; empty if it goes through."""
    fine = {
        "annotations": [box(1, 1, [1, 2, 3, 4])],
        "categories": json.loads(path.read_text())["categories"],
    }
    other = path.with_name("val.json")
    other.write_text(json.dumps(fine | {"images": [image(1, "fine.jpg")]}))
    splits = [Split(str(folder), str(one)) for one in (path, other)]
    images = ImageOptions(30)
    data = CocoDataModule(
        train=splits[0], val=splits[1], images=images, batch_size=1, num_workers=0, max_unreadable=share
    )
    try:
        data.setup("fit")
        batches: Any = data.train_dataloader()
        for batch in batches:
            data.note_unreadable(batch.unreadable)
    except InputError as error:
        return str(error)
    return ""


@settings(max_examples=40)
@pytest.mark.filterwarnings("ignore:.*another image takes its place")
@given(
    names=st.lists(
        st.sampled_from(["cut.jpg", *(name for name in sorted(KINDS) if len(name) < 256)]),
        min_size=4,
        max_size=8,
        unique=True,
    ),
    empty=st.sets(st.integers(0, 7)),
    allowed=st.integers(0, 3),
)
def test_the_verdict_on_files_is_that_of_training(
    files: Path, tmp_path_factory: pytest.TempPathFactory, names: list[str], empty: set[int], allowed: int
) -> None:
    """With the images numbered in `empty` without an object, which training does not read."""
    data = {
        "images": [image(place, name) for place, name in enumerate(names)],
        "annotations": [box(place, place, [1, 2, 3, 4]) for place in range(len(names)) if place not in empty],
        "categories": [{"id": 3, "name": "cat"}],
    }
    path = written(tmp_path_factory.getbasetemp(), data)
    share = allowed / max(1, len(data["annotations"]), allowed + 1)
    report = audited(path, files, decode=True, max_unreadable=share)
    assert bool(report.refusal) == bool(trained(path, files, share))
    # Validation reads all images, and stops at the first that it cannot.
    try:
        validation = CocoDataset(read_annotations(path).found_in(files, None), files, as_stored)
        lines = [refusal_of(validation, place) for place in range(len(validation))]
        first = next((line for line in lines if line), "")
    except InputError as error:
        first = str(error)
    assert bool(report.validation_refusal) == bool(first)
    if first and not report.refusal:
        assert report.validation_refusal.partition(": ")[0] == first.partition(": ")[0]


def refusal_of(data: CocoDataset, place: int) -> str:
    try:
        data[Pick(place, 0)]
    except InputError as error:
        return str(error)
    return ""


def nearest_of_all(
    boxes: NDArray[np.float64], size: tuple[int, int], anchor_sizes: dict[int, list[float]]
) -> NDArray[np.float32]:
    """(B, L) the greatest IoU over every anchor of each level's whole grid."""
    columns = []
    for level, sizes in anchor_sizes.items():
        # The maps of a network on an image of this size: padded to 32, halved by each level, rounded up.
        padded = [-(-side // 32) * 32 for side in size]
        h, w = (-(-side // 2**level) for side in padded)
        spread = (padded[0] // h, padded[1] // w)
        anchors = grid_anchors(cell_anchors(sizes, (0.5, 1.0, 2.0)), (h, w), spread)
        columns.append(box_iou(torch.from_numpy(boxes), anchors.double()).amax(dim=1))
    return torch.stack(columns, dim=1).float().numpy()


@settings(max_examples=80)
@given(
    size=st.tuples(st.integers(20, 300), st.integers(20, 300)),
    corners=st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=1, max_size=8),
    snap=st.booleans(),
    anchor_sizes=st.sampled_from([ANCHOR_SIZES, {2: [4, 11], 5: [10], 6: [20, 50]}]),
)
def test_best_overlaps_are_those_of_all_anchors(
    size: tuple[int, int],
    corners: list[tuple[float, ...]],
    snap: bool,
    anchor_sizes: dict[int, list[float]],
) -> None:
    """Boxes anywhere in the image, its borders included, slivers and the whole among them."""
    scaled = np.array(corners) * np.array([size[1], size[0]] * 2)
    if snap:
        scaled = scaled.round()
    low, high = np.minimum(scaled[:, :2], scaled[:, 2:]), np.maximum(scaled[:, :2], scaled[:, 2:])
    boxes = np.concatenate((low, np.maximum(high, low + 0.01)), axis=1)
    found = best_overlaps(boxes, np.tile(np.array(size), (len(boxes), 1)), anchor_sizes)
    np.testing.assert_allclose(found, nearest_of_all(boxes, size, anchor_sizes), atol=1e-6)


def test_best_overlaps_of_large_images() -> None:
    random = np.random.default_rng(0)
    for size in ((800, 1333), (801, 640)):
        limits = np.array(size[::-1])
        sides = np.exp(random.uniform(np.log(4), np.log(600), (30, 2)))
        low = random.uniform(0, 1, (30, 2)) * (limits - sides)
        low[:15] = np.where(random.random((15, 2)) < 0.5, 0, limits - sides[:15])  # at the borders
        boxes = np.concatenate((low, low + sides), axis=1)
        found = best_overlaps(boxes, np.tile(np.array(size), (30, 1)), ANCHOR_SIZES)
        np.testing.assert_allclose(found, nearest_of_all(boxes, size, ANCHOR_SIZES), atol=1e-6)


@given(
    size=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    short=st.integers(1, 1200),
    longest=st.integers(1, 2000),
)
def test_input_sizes_are_those_of_the_transforms(size: tuple[int, int], short: int, longest: int) -> None:
    assert tuple(input_sizes(np.array([size]), short, longest)[0]) == resized_size(size, short, longest)


def test_sizes_of_objects(tmp_path: Path) -> None:
    """In an image of 800 × 800, which is not resized, a box on an anchor overlaps it wholly."""
    data = {
        "images": [image(1, height=800, width=800), image(2, height=400, width=400)],
        "annotations": [
            box(1, 1, [400 - 32, 400 - 32, 64, 64]),  # an anchor of P3
            box(2, 1, [400 - 64, 400 - 64, 128, 128], area=1000),  # of P4; small by its mask
            box(3, 2, [200 - 32, 200 - 32, 64, 64]),  # of P4 once resized to 800
            box(4, 1, [0, 0, 7, 7]),
            box(5, 1, [0, 0, 800, 800], area=96.0**2),
            box(6, 1, [0, 0, 300, 300], iscrowd=1),
        ],
        "categories": [{"id": 3, "name": "cat"}],
    }
    sizes = audited(written(tmp_path, data)).sizes
    assert sizes.by_area == {"small": 2, "medium": 2, "large": 1}
    octaves = {one["from"]: one for one in sizes.octaves}
    assert {start: one["objects"] for start, one in octaves.items() if one["objects"]} == {
        0: 1,
        64: 1,
        128: 2,
        512: 1,
    }
    assert [one["to"] for one in sizes.octaves] == [8, 16, 32, 64, 128, 256, 512, None]
    assert octaves[64]["iou_0.7"] == octaves[128]["iou_0.7"] == 1
    assert octaves[0]["iou_0.5"] == 0
    assert octaves[8] == {"from": 8, "to": 16, "objects": 0, "iou_0.5": None, "iou_0.7": None}
    # The whole image: 512² within it is 0.41.
    assert octaves[512]["iou_0.5"] == 0
    assert [(one["level"], one["fits_best"]) for one in sizes.levels] == [
        (2, 0.2),
        (3, 0.2),
        (4, 0.4),
        (5, 0),
        (6, 0.2),
    ]
    assert [one["iou_0.7"] for one in sizes.levels] == [0, 0.2, 0.4, 0, 0]
    assert sizes.overall == {"objects": 5, "iou_0.5": 0.6, "iou_0.7": 0.6}


@pytest.mark.coco_mini
def test_real_data(coco_mini: Path) -> None:
    path = coco_mini / "annotations" / "instances_val2017.json"
    report = look_at(path, coco_mini / "val2017", anchor_sizes=ANCHOR_SIZES, decode=True, num_workers=2)
    assert report.refusal == report.validation_refusal == ""
    truth = COCO(str(path))
    singles = [one for one in truth.anns.values() if not one["iscrowd"]]
    assert len(report.findings["annotations"]["crowds"].items) == len(truth.anns) - len(singles)
    objects = Counter(one["category_id"] for one in singles)
    images = Counter(category for category, _ in {(one["category_id"], one["image_id"]) for one in singles})
    for one in report.by_category:
        assert (one.objects, one.images) == (objects[one.id], images[one.id])
    assert report.sizes.by_area["small"] == sum(one["area"] < 32**2 for one in singles)
    assert report.sizes.by_area["large"] == sum(one["area"] >= 96**2 for one in singles)
    grey = [name for name in sorted((coco_mini / "val2017").iterdir()) if Image.open(name).mode == "L"]
    assert sorted(report.findings["images"]["grey"].items) == [name.name for name in grey]
    assert not {"missing", "unreadable", "unsupported", "other_size"} & found(report, "images").keys()


def ended(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["audit", *arguments])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_slivers(tmp_path: Path) -> None:
    big = {"width": 800, "height": 400}  # at 800/1333: 1333 × 666, so 1.66 times as large
    boxes = {
        1: [10, 10, 1, 228],
        2: [10, 10, 200, 2],
        3: [10, 10, 2.3, 50],  # 3.8 pixels and 21.7 times as long
        4: [10, 10, 2.5, 60],  # 4.2 pixels
        5: [10, 10, 2, 38],  # 19 times as long
        6: [10, 10, 3, 3],
    }
    crowd = box(7, 1, [10, 10, 1, 228], iscrowd=1)
    content = {
        "images": [image(1, **big)],
        "annotations": [*(box(id_, 1, bbox) for id_, bbox in boxes.items()), crowd],
        "categories": [{"id": 3, "name": "bee"}],
    }
    report = audited(written(tmp_path, content))
    assert report.findings["annotations"]["slivers"].items == [1, 2, 3]
    assert not report.findings["annotations"]["slivers"].wrong
    assert not report.refusal
    assert audited(written(tmp_path, content), short_side=400, max_side=800).findings["annotations"][
        "slivers"
    ].items == [1, 2, 3, 4]


@pytest.mark.parametrize("ratio", [20.0, 25.0, 100.0])
def test_a_sliver_is_background_to_every_anchor(ratio: float) -> None:
    sides = np.geomspace(0.5, 30, 200)
    boxes = np.stack([0 * sides, 0 * sides, sides, ratio * sides], axis=1) + 30
    sizes = np.full((len(boxes), 2), 4000)
    fine = {2: np.geomspace(1, 600, 300).tolist()}
    assert best_overlaps(boxes, sizes, fine).max() < 0.25


@pytest.mark.parametrize("make", [layout_files.coco, layout_files.yolo, layout_files.voc])
def test_a_root(make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = make(tmp_path / "set"), tmp_path / "audit.json"
    options = ["--num_workers", "0", "--json", str(out)]
    main(["audit", str(root), *options])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{root}: ")
    assert [line[:20] for line in lines if "Training would" in line] == [
        "train: Training woul",
        "val: Training would ",
    ]
    written_out = json.loads(out.read_text())
    assert {name: one["images"]["listed"] for name, one in written_out.items()} == {"train": 4, "val": 2}
    assert {name: one["sizes"]["overall"]["objects"] for name, one in written_out.items()} == {
        "train": 6,
        "val": 3,
    }
    next(path for path in root.rglob("e.png")).unlink()
    if make is not layout_files.yolo:  # which lists no images, but their folder
        assert ended("--root", str(root), *options) == 1


def test_validation_images_without_objects_are_taken(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a fit takes them, which then has no score."""
    content = {"images": [image(1, "fine.jpg")], "categories": [{"id": 3, "name": "a"}]}
    train, val = written(tmp_path, content | {"annotations": [box(1, 1, [1, 2, 3, 4])]}), tmp_path / "v.json"
    val.write_text(json.dumps(content | {"annotations": []}))
    options = ["--annotations", str(train), "--images", str(files), "--num_workers", "0"]
    main(["audit", *options, "--against", str(val)])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("val: "))
    assert line.startswith("val: Training would take this")
    assert line.endswith("it has no object to find: there will be no score, and no best checkpoint")


def test_a_root_that_lacks_something(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = layout_files.single(tmp_path / "set")
    options = [str(root), "--num_workers", "0"]
    assert ended(*options) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith(f"Training would refuse this: {root}: one COCO file, without val")
    assert lines[2].startswith("train: Training would take this")
    main(["audit", *options, "--val_share", "0.3"])
    assert "val is 2 of the 6 images" in capsys.readouterr().out.splitlines()[0]
    assert ended(*options, "--annotations", "some.json") == 2
    assert "not both" in capsys.readouterr().err
    assert ended(*options, "--against", "some.json") == 2
    assert "not both" in capsys.readouterr().err
    assert ended(str(tmp_path / "none")) == 2
    assert "none: no such folder" in capsys.readouterr().err


def test_two_files(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fine = {"annotations": [box(1, 1, [1, 2, 3, 4])], "categories": [{"id": 3, "name": "a"}]}
    train, val, out = (
        written(tmp_path, fine | {"images": [image(1, "fine.jpg")]}),
        tmp_path / "v.json",
        tmp_path / "o",
    )
    val.write_text(json.dumps(fine | {"images": [image(1, "fine.jpg"), image(2, "gone.jpg")]}))
    options = ["--annotations", str(train), "--images", str(files), "--num_workers", "0"]
    both = [*options, "--against", str(val), "--json", str(out)]
    assert ended(*both) == 1
    shown = [line for line in capsys.readouterr().out.splitlines() if " would" in line]
    assert shown[0].startswith("train: Training would take this")
    assert shown[1].startswith("val: Validation would refuse this")
    assert "gone.jpg" in shown[1]
    assert "max_unreadable" not in shown[1]  # which is of training
    assert {name: one["images"]["listed"] for name, one in json.loads(out.read_text()).items()} == {
        "train": 1,
        "val": 2,
    }
    (other := tmp_path / "other").mkdir()
    for name in ("fine.jpg", "gone.jpg"):
        shutil.copy(files / "fine.jpg", other / name)
    main(["audit", *both, "--against_images", str(other)])


def test_what_fit_takes_and_tells_the_audit_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = {"id": 1, "image_id": 1, "category_id": 3, "segmentation": [[1, 1, 9, 1, 9, 7]]}
    listed = {"annotations": [mask], "categories": [{"id": 3, "name": "a"}], "images": [image(1, "fine.jpg")]}
    main(["audit", "--annotations", str(written(tmp_path, listed))])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "1 boxes are those of the masks, as there is no bbox" in lines


def test_the_command(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    path = str(written(tmp_path, BAD))
    out = tmp_path / "made" / "audit.json"
    assert ended("--annotations", path, "--images", str(files), "--num_workers", "0", "--json", str(out)) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"Training would refuse this: {path}: ")
    assert len(lines) <= 45
    assert max(map(len, lines[1:])) <= 100
    assert sum(line.startswith("none of ") for line in lines) == 1
    written_out = json.loads(out.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert written_out["refusal"] in lines[0]
    assert written_out["images"]["missing"]["count"] == 7  # 1, 2 (twice), 5, 6, 7 and 10.jpg
    assert written_out["annotations"]["negative"] == {
        "what": "boxes of negative width or height",
        "count": 1,
        "items": [105],
    }

    fine = {"annotations": [box(1, 1, [1, 2, 3, 4])], "categories": [{"id": 3, "name": "[red]a\nb[/red]"}]}
    path = str(written(tmp_path, fine | {"images": [image(1, "fine.jpg")]}))
    main(["audit", "--annotations", path])
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].startswith("Training would take this")
    assert "[red]a?b[/red] 1 (1)" in printed

    # A file that breaks off: only --decode finds it, bare or with its value.
    path = str(written(tmp_path, fine | {"images": [image(1, "cut.jpg")]}))
    given_files = ["--annotations", path, "--images", str(files), "--num_workers", "0"]
    main(["audit", *given_files])
    assert "--decode reads whole files" in capsys.readouterr().out.splitlines()[0]
    for switch in (["--decode"], ["--decode", "true"], ["--decode=true"]):
        assert ended(*given_files, *switch) == 1
        assert "cut.jpg: cannot be decoded" in capsys.readouterr().out.splitlines()[0]
    # In place of one in two images another is taken.
    two = {"annotations": [box(1, 1, [1, 2, 3, 4]), box(2, 2, [1, 2, 3, 4])]}
    written(tmp_path, fine | two | {"images": [image(1, "cut.jpg"), image(2, "fine.jpg")]})
    main(["audit", *given_files, "--decode", "--max_unreadable", "0.5"])
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("Training would take this")
    assert f"validation would refuse it: {files}/cut.jpg" in first

    for arguments, message in (
        (["--annotations", "none.json"], "none.json: no such annotation file"),
        (["--annotations", path, "--images", "none"], "none: no such image folder"),
        (["--annotations", path, "--short_side", "0"], "short_side"),
        (["--annotations", path, "--num_workers", "-1"], "num_workers"),
        (["--annotations", path, "--decoded"], "decoded"),
        ([], "annotations"),
    ):
        assert ended(*arguments) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fpn: ")]
        assert len(errors) == 1
        assert message in errors[0]
