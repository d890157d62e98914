"""The embedded data set, read by pycocotools and torchvision, which know nothing of how it was drawn."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.mask import area, frPyObjects, toBbox
from torchvision.io import decode_image

from fpn.data import scene, shapes
from fpn.data.shapes import CATEGORIES, generate_shapes
from fpn.errors import InputError
from fpn.lit.cli import main

TRAIN, VAL = 500, 30
SPLITS = ("train2017", "val2017")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "shapes"
    generate_shapes(out, train=TRAIN, val=VAL)
    return out


@pytest.fixture(scope="module")
def coco(root: Path) -> COCO:
    return COCO(root / "annotations" / "instances_train2017.json")


def _objects(coco: COCO) -> list[dict[str, Any]]:
    return [found for found in coco.anns.values() if not found["iscrowd"]]


def _files(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def _pixels(root: Path, coco: COCO, image_id: int) -> NDArray[np.uint8]:
    return np.asarray(Image.open(root / "train2017" / coco.imgs[image_id]["file_name"]))


def _extent(mask: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(x1, y1, x2, y2) of a mask's pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=float)


def _corners(annotation: dict[str, Any]) -> NDArray[np.float64]:
    x, y, width, height = annotation["bbox"]
    return np.array([x, y, x + width, y + height])


def _masks(coco: COCO) -> Iterator[tuple[dict[str, Any], NDArray[np.uint8]]]:
    return ((found, coco.annToMask(found)) for found in coco.anns.values())


@pytest.mark.parametrize("split", SPLITS)
def test_files_are_coco(root: Path, split: str) -> None:
    coco = COCO(root / "annotations" / f"instances_{split}.json")

    assert len(coco.imgs) == len(list((root / split).iterdir())) == (TRAIN if "train" in split else VAL)
    assert tuple(coco.cats) == CATEGORIES.ids
    assert tuple(category["name"] for category in coco.cats.values()) == CATEGORIES.names
    assert all(category["supercategory"] for category in coco.cats.values())
    assert sorted(coco.anns) == list(range(1, len(coco.anns) + 1))
    assert {"info", "licenses"} <= coco.dataset.keys()
    for image in list(coco.imgs.values())[:8]:
        pixels = decode_image(str(root / split / image["file_name"]))
        assert pixels.shape == (3, image["height"], image["width"])


def test_category_ids_have_gaps() -> None:
    assert len(CATEGORIES.ids) == len(CATEGORIES.names) == len(set(CATEGORIES.names)) >= 8
    assert list(CATEGORIES.ids) == sorted(set(CATEGORIES.ids))
    assert max(CATEGORIES.ids) > len(CATEGORIES.ids)


def test_image_ids_of_the_splits_differ(root: Path, coco: COCO) -> None:
    val = COCO(root / "annotations" / "instances_val2017.json")
    assert not coco.imgs.keys() & val.imgs.keys()


def test_every_category_occurs_about_as_often(coco: COCO) -> None:
    counts = [len(coco.getAnnIds(catIds=category, iscrowd=False)) for category in CATEGORIES.ids]
    assert min(counts) > 0.7 * np.mean(counts)
    assert max(counts) < 1.3 * np.mean(counts)


def test_frames_differ(coco: COCO) -> None:
    frames = {(image["width"], image["height"]) for image in coco.imgs.values()}
    assert {np.sign(width - height) for width, height in frames} == {-1, 0, 1}
    assert min(min(frame) for frame in frames) == 160
    assert max(max(frame) for frame in frames) == 256


def test_objects_are_log_uniform_from_6_to_192_pixels(coco: COCO) -> None:
    sizes = np.sqrt([np.prod(found["bbox"][2:]) for found in _objects(coco)])
    octave = np.floor(np.log2(sizes / 6.0)).clip(0, 4)
    shares = np.bincount(octave.astype(int), minlength=5) / len(sizes)

    assert len(sizes) > 4 * TRAIN
    assert sizes.min() > 5.5
    assert sizes.max() < 193
    np.testing.assert_allclose(shares, 0.2, atol=0.025)


def test_images_hold_none_to_ten_objects(coco: COCO) -> None:
    counts = [len(coco.getAnnIds(imgIds=image, iscrowd=False)) for image in coco.imgs]
    assert set(counts) == set(range(11))


def test_boxes_lie_inside_their_images(coco: COCO) -> None:
    for found in coco.anns.values():
        image = coco.imgs[found["image_id"]]
        left, top, right, bottom = _corners(found)
        assert 0 <= left < right <= image["width"] + 0.01
        assert 0 <= top < bottom <= image["height"] + 0.01


def test_boxes_and_areas_are_those_of_the_polygons_in_the_frame(coco: COCO) -> None:
    cut = 0
    # Eight times as large, since pycocotools rounds outlines to whole pixels and so blunts sharp tips.
    scale = 8
    for found in _objects(coco):
        image, outline = coco.imgs[found["image_id"]], np.array(found["segmentation"][0])
        height, width = image["height"], image["width"]
        (drawn,) = frPyObjects([(outline * scale).tolist()], height * scale, width * scale)
        np.testing.assert_allclose(found["bbox"], toBbox(drawn) / scale, atol=0.8)
        x, y = outline.reshape(-1, 2).T
        length = np.hypot(np.roll(x, 1) - x, np.roll(y, 1) - y).sum()
        assert abs(found["area"] - area(drawn) / scale**2) < 0.3 * length
        cut += min(x.min(), y.min()) < -1 or x.max() > width + 1 or y.max() > height + 1
    assert cut > 0.05 * len(coco.anns)


def test_masks_are_read_by_pycocotools(coco: COCO) -> None:
    for found, mask in _masks(coco):
        image = coco.imgs[found["image_id"]]
        assert mask.shape == (image["height"], image["width"])
        assert mask.any()


def test_objects_stay_visible(coco: COCO) -> None:
    """Whatever lies over an object, in any order, the union of all smaller ones leaves most of it."""
    for image in coco.imgs:
        found = sorted(coco.loadAnns(coco.getAnnIds(image)), key=lambda a: np.prod(a["bbox"][2:]))
        nearer = np.zeros((coco.imgs[image]["height"], coco.imgs[image]["width"]), dtype=bool)
        for annotation in found:
            mask = coco.annToMask(annotation).astype(bool)
            if not annotation["iscrowd"] and annotation["area"] > 1000:
                assert (mask & ~nearer).sum() > 0.6 * mask.sum()
            nearer |= mask


def test_crowds_are_boxes_over_many_shapes(coco: COCO) -> None:
    crowds = [(found, mask) for found, mask in _masks(coco) if found["iscrowd"]]
    assert len(crowds) >= 0.9 * TRAIN / scene.CROWD_EVERY
    for found, mask in crowds:
        assert found["segmentation"].keys() == {"size", "counts"}
        np.testing.assert_array_equal(_extent(mask), _corners(found))
        assert mask.sum() == found["area"] == np.prod(found["bbox"][2:])


@pytest.mark.parametrize("split", SPLITS)
def test_some_images_have_crowds_and_some_nothing(root: Path, split: str) -> None:
    coco = COCO(root / "annotations" / f"instances_{split}.json")
    empty = [image for image in coco.imgs if not coco.getAnnIds(image)]
    assert len(empty) == len(coco.imgs) // scene.EMPTY_EVERY
    assert coco.getAnnIds(iscrowd=True)


def _fill(root: Path, coco: COCO, found: dict[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean colours of a shape and of what surrounds it in its box."""
    pixels = _pixels(root, coco, found["image_id"])
    mask = coco.annToMask(found).astype(bool)
    left, top, right, bottom = _corners(found).round().astype(int)
    around = np.zeros_like(mask)
    around[max(top - 2, 0) : bottom + 2, max(left - 2, 0) : right + 2] = True
    return pixels[mask].mean(axis=0), pixels[around & ~mask].mean(axis=0)


def test_colour_tells_no_category_but_stands_out(root: Path, coco: COCO) -> None:
    inside: dict[int, list[NDArray[np.float64]]] = {category: [] for category in CATEGORIES.ids}
    contrasts = []
    for found in _objects(coco):
        within, around = _fill(root, coco, found)
        inside[found["category_id"]].append(within)
        contrasts.append(np.linalg.norm(within - around))
    everything = np.concatenate([np.array(colours) for colours in inside.values()])
    for colours in inside.values():
        # Five standard errors of the mean of so many draws from one distribution.
        bound = 5 * everything.std(axis=0) / np.sqrt(len(colours))
        assert (abs(np.mean(colours, axis=0) - everything.mean(axis=0)) < bound).all()
    assert np.quantile(contrasts, 0.05) > 40


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        generate_shapes(tmp_path / name, train=6, val=3, seed=seed)
    one, two, other = (_files(tmp_path / name) for name in ("one", "two", "other"))

    assert one == two
    assert one.keys() == other.keys()
    assert all(one[name] != other[name] for name in one)


def test_an_image_does_not_depend_on_the_number_of_images(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "few"
    generate_shapes(out, train=14, val=3)
    for split in SPLITS:
        name = f"annotations/instances_{split}.json"
        few, many = (json.loads((folder / name).read_text()) for folder in (out, root))
        count = len(few["images"])
        assert few["images"] == many["images"][:count]
        assert few["annotations"] == many["annotations"][: len(few["annotations"])]
        for image in few["images"]:
            name = image["file_name"]
            assert (out / split / name).read_bytes() == (root / split / name).read_bytes()


def test_splits_are_drawn_apart(tmp_path: Path) -> None:
    generate_shapes(tmp_path / "set", train=2, val=2)
    files = [path.read_bytes() for split in SPLITS for path in (tmp_path / "set" / split).iterdir()]
    assert len(set(files)) == 4


def test_long_side_scales_frames_and_the_largest_objects(tmp_path: Path) -> None:
    generate_shapes(tmp_path / "set", train=30, val=1, long_side=128)
    coco = COCO(tmp_path / "set" / "annotations" / "instances_train2017.json")
    assert max(max(image["width"], image["height"]) for image in coco.imgs.values()) == 128
    assert 70 < max(np.sqrt(np.prod(found["bbox"][2:])) for found in _objects(coco)) < 97


def test_complete_sets_are_kept_and_others_refused(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "set"
    few = {"train": 2, "val": 1}
    generate_shapes(out, **few)
    image = next((out / "train2017").iterdir())
    image.write_bytes(b"still here")
    generate_shapes(out, **few)
    assert image.read_bytes() == b"still here"
    for other in ({"train": 3, "val": 1}, few | {"seed": 1}, {}):
        with pytest.raises(InputError, match="shapes of other parameters: remove it"):
            generate_shapes(out, **other)
    assert image.read_bytes() == b"still here"
    assert list(out.parent.iterdir()) == [out]


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known, draw = shapes.SCENES["plain"]

    def interrupted(rng: np.random.Generator, index: int, long_side: int) -> Any:
        if index == 2:
            raise KeyboardInterrupt
        return draw(rng, index, long_side)

    monkeypatch.setitem(shapes.SCENES, "plain", (known, interrupted))
    with pytest.raises(KeyboardInterrupt):
        generate_shapes(tmp_path / "new", train=4, val=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [None, "{}", "not JSON", '["a list"]'])
def test_a_foreign_folder_is_refused_and_left_alone(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    if content is not None:
        (tmp_path / "shapes.json").write_text(content)
    before = _files(tmp_path)
    with pytest.raises(InputError, match="something other than a shapes data set"):
        generate_shapes(tmp_path, train=1, val=1)
    assert _files(tmp_path) == before


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set").write_text("mine")
    with pytest.raises(InputError, match="something other"):
        generate_shapes(tmp_path / "set", train=1, val=1)


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    generate_shapes(tmp_path / "set", train=1, val=1)
    assert len(list((tmp_path / "set").rglob("*.jpg"))) == 2


@pytest.mark.parametrize("wrong", ["train 0", "val 0", "seed -1", "long_side 63"])
def test_parameters_out_of_range_are_refused(
    tmp_path: Path, wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["shapes", str(tmp_path / "set"), *f"--{wrong}".split()])
    assert left.value.code == 2
    assert wrong.split()[0] in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_nothing_is_printed_off_a_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    generate_shapes(tmp_path / "set", train=1, val=1)
    assert capfd.readouterr() == ("", "")
