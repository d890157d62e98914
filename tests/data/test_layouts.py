"""Every layout: the same objects written by hand, read as training reads them."""

import json
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import layout_files
import numpy as np
import pytest
import yaml
from layout_files import PHOTOS, TRUTH, Truth
from PIL import Image

from fpn.data.coco import read_annotations
from fpn.data.datamodule import CocoDataModule
from fpn.data.options import Split
from fpn.errors import InputError


def seen(data: CocoDataModule, *splits: str) -> Truth:
    """What training would learn from, by split and stem; the images' files are there."""
    found: Truth = {}
    for split in splits or ("train", "val"):
        file, folder = data.source(split)
        annotations = read_annotations(file)
        names = dict(enumerate(annotations.categories.names, 1))
        found[split] = {}
        for index, name in enumerate(annotations.file_names.tolist()):
            assert (folder / name).is_file()
            target = annotations.targets(index)
            objects = zip(target.labels.tolist(), target.boxes.tolist(), strict=True)
            found[split][Path(name).stem] = sorted((names[label], box) for label, box in objects)
    return found


def assert_same(found: Truth, wanted: Truth, tolerance: float = 0.0) -> None:
    assert found.keys() == wanted.keys()
    for split in wanted:
        assert found[split].keys() == wanted[split].keys()
        for stem, objects in wanted[split].items():
            assert [name for name, _ in found[split][stem]] == [name for name, _ in objects]
            boxes = [np.array([box for _, box in ones]) for ones in (found[split][stem], objects)]
            np.testing.assert_allclose(*boxes, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("stem", "folder", "name"),
    [
        ("instances_{}2017", "{}2017", "COCO 2017"),
        ("instances_{}2017", "images/{}2017", "COCO 2017"),
        ("instances_{}2014", "{}2014", "COCO 2014"),
        ("instances_{}", "images/{}", "COCO"),
        ("{}", "images", "COCO"),
    ],
)
def test_coco(tmp_path: Path, stem: str, folder: str, name: str) -> None:
    data = CocoDataModule(str(layout_files.coco(tmp_path, stem, folder)))
    assert_same(seen(data), TRUTH)
    assert data._splits.layout.name == name
    assert data.source("test") == data.source("val")


@pytest.mark.parametrize(
    ("stem", "folder"),
    [("instances_{}2017", "{}2017"), ("instances_{}", "{}"), ("instances_{}", "images/{}"), ("{}", "images")],
)
def test_cocos_test_counts_where_it_has_annotations(tmp_path: Path, stem: str, folder: str) -> None:
    root = layout_files.coco(tmp_path, stem, folder)
    file, photo = root / "annotations" / f"{stem.format('test')}.json", ("g", 64, 48, [(1, 2, 3, 20, 30)])
    layout_files.coco_file(file, [photo], 200)
    layout_files.draw(root / folder.format("test"), photo)
    data = CocoDataModule(str(root))
    assert_same(seen(data, "test"), {"test": {"g": [("ant", [2.0, 3.0, 22.0, 33.0])]}})
    assert data.source("test") == (file, root / folder.format("test"))
    assert_same(seen(data), TRUTH)
    for listed in ({"annotations": []}, {}):
        content = {key: one for key, one in json.loads(file.read_text()).items() if key != "annotations"}
        file.write_text(json.dumps(content | listed))
        data = CocoDataModule(str(root))
        assert data.source("test") == data.source("val")


def test_roboflow(tmp_path: Path) -> None:
    root = layout_files.roboflow(tmp_path)
    assert_same(seen(CocoDataModule(str(root))), TRUTH)
    (root / "valid").rename(root / "test")
    data = CocoDataModule(str(root))
    assert data.source("train")[1] == root / "train"
    with pytest.raises(InputError, match=r"Roboflow's COCO export, without val; .*data\.val_share 0\.2"):
        data.source("val")
    layout_files.roboflow(root)
    assert CocoDataModule(str(root)).source("test") == (root / "test/_annotations.coco.json", root / "test")


@pytest.mark.parametrize(
    ("file", "folder", "given"),
    [
        ("annotations.json", "images", ""),
        ("annotations.json", "images", "annotations.json"),
        ("annotations/instances_default.json", "images/default", ""),
        ("labels.json", "", ""),
        ("labels.json", "photos of/bees", ""),
    ],
)
def test_one_file_is_divided(tmp_path: Path, file: str, folder: str, given: str) -> None:
    root = layout_files.single(tmp_path, file, folder)
    with pytest.raises(InputError, match=r"one COCO file, without val; .*data\.val_share"):
        CocoDataModule(str(root / given)).source("val")
    found = seen(CocoDataModule(str(root / given), val_share=0.3))
    assert {split: len(photos) for split, photos in found.items()} == {"train": 4, "val": 2}
    every = {stem: objects for photos in TRUTH.values() for stem, objects in photos.items()}
    assert_same({"": found["train"] | found["val"]}, {"": every})


def test_a_number_of_a_yolo_class_fills_no_memory(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images/a.png")
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: {0: cat, 2000000000: dog}\n")
    with pytest.raises(InputError, match="'names' has a class 2000000000: numbers go up to 99999"):
        CocoDataModule(str(tmp_path)).source("train")


@pytest.mark.parametrize("form", ["images/{}", "{}/images"])
@pytest.mark.parametrize(("names", "lists"), [("list", False), ("dict", True)])
def test_yolo(tmp_path: Path, form: str, names: str, lists: bool) -> None:
    root = layout_files.yolo(tmp_path, form, names, lists)
    data = CocoDataModule(str(root))
    # Half of the sixth decimal, of 64 pixels, twice.
    assert_same(seen(data), TRUTH, 64e-6)
    assert data.categories.names == layout_files.NAMES
    assert_same(seen(CocoDataModule(str(root / "data.yaml"))), TRUTH, 64e-6)


def test_yolo_boxes_by_hand(tmp_path: Path) -> None:
    layout_files.draw(tmp_path / "train" / "images", ("a", 200, 100, []))
    (tmp_path / "train" / "labels").mkdir()
    rows = ["0 0.5 0.5 0.25 0.5", "1 0.1 0.2 0.3 0.2 0.3 0.6", "", "1 0.9 0.5 0.4 0.1"]
    (tmp_path / "train" / "labels" / "a.txt").write_text("\n".join(rows))
    # As Roboflow exports it: the paths are one folder too high.
    (tmp_path / "data.yaml").write_text("train: ../train/images\nval: ../train/images\nnames: [bee, ant]\n")
    wanted = [
        ("ant", [20.0, 20.0, 60.0, 60.0]),
        ("ant", [140.0, 45.0, 200.0, 55.0]),
        ("bee", [75.0, 25.0, 125.0, 75.0]),
    ]
    found = seen(CocoDataModule(str(tmp_path)))
    assert_same(found, {split: {"a": wanted} for split in ("train", "val")}, 1e-5)
    # And again when a label changes.
    (tmp_path / "train" / "labels" / "a.txt").write_text("0 0.5 0.5 0.5 0.5")
    assert seen(CocoDataModule(str(tmp_path)))["val"]["a"] == [("bee", [50.0, 25.0, 150.0, 75.0])]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0 32 24 10 12", r"a\.txt: line 2: '0 32 24 10 12': give shares .* not pixels"),
        ("3 0.5 0.5 0.1 0.1", r"a\.txt: line 2: class 3 has no name; there are 3 names"),
        ("0 0.5 0.5 0.1", r"a\.txt: line 2 has 4 numbers"),
        ("0 0.5 0.5 0.1 0.1 0.9", r"a\.txt: line 2 has 6 numbers"),
        ("bee 0.5 0.5 0.1 0.1", r"a\.txt: line 2: .* is not numbers alone"),
        ("0 0.5 nan 0.1 0.1", r"a\.txt: line 2: .*give shares"),
    ],
)
def test_a_row_that_is_none_of_yolos_is_one_line(tmp_path: Path, row: str, message: str) -> None:
    root = layout_files.yolo(tmp_path)
    (root / "labels" / "train" / "a.txt").write_text(f"0 0.5 0.5 0.5 0.5\n{row}\n")
    with pytest.raises(InputError, match=message):
        CocoDataModule(str(root)).source("train")


def test_yolo_boxes_are_shares_of_the_image_as_shown(tmp_path: Path) -> None:
    root, exif = layout_files.yolo(tmp_path), Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees: 48 × 64
    Image.new("RGB", (64, 48)).save(root / "images" / "train" / "a.png", exif=exif)
    annotations = read_annotations(CocoDataModule(str(root)).source("train")[0])
    assert annotations.sizes[0].tolist() == [64, 48]
    # x, y, width and height of 64 × 48 were 1, 2, 20, 30.
    wanted = [1 / 64 * 48, 2 / 48 * 64, 21 / 64 * 48, 32 / 48 * 64]
    np.testing.assert_allclose(annotations.boxes[0], wanted, atol=64e-6)


@pytest.mark.parametrize("layout", [layout_files.yolo, layout_files.voc])
@pytest.mark.parametrize("ending", [".ppm", ".TGA", ".jp2", ".dib"])
def test_images_are_found_by_all_endings_that_pillow_reads(
    tmp_path: Path, layout: Callable[[Path], Path], ending: str
) -> None:
    root = layout(tmp_path)
    for file in root.rglob("[bc]*.png"):
        layout_files.draw(file.parent, next(one for one in PHOTOS["train"] if one[0] == file.stem), ending)
        file.unlink()
    assert_same(seen(CocoDataModule(str(root))), TRUTH, 64e-6)


@pytest.mark.parametrize(("images", "few"), [(24, 3), (400, 4)])
def test_a_few_unreadable_images_are_left_out_and_told(tmp_path: Path, images: int, few: int) -> None:
    files = [layout_files.draw(tmp_path / "images", (f"{place:03}", 20, 20, [])) for place in range(images)]
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / f"{images - 1:03}.txt").write_text("0 0.5 0.5 0.5 0.5")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [bee]")
    for file in files[:few]:
        file.write_text("no image")
    broken = ", ".join(map(str, files[:few]))
    data = CocoDataModule(str(tmp_path))
    assert len(seen(data, "train")["train"]) == images - few
    told = f"train: {few} images cannot be read and are left out: {broken}"
    assert data._splits.layout.notes == (told,)
    assert CocoDataModule(str(tmp_path))._splits.layout.notes == (told,)  # also when it was made before
    files[few].write_text("no image")
    with pytest.raises(
        InputError, match=rf"{few + 1} of {images} images cannot be read; .*remove them"
    ) as caught:
        CocoDataModule(str(tmp_path)).source("train")
    assert str(caught.value).endswith(f": {broken}, {files[few]}")
    for file in files[few:]:
        file.write_text("no image")
    with pytest.raises(InputError, match=rf"{images} of {images} images .*{files[few]}.*, …$"):
        CocoDataModule(str(tmp_path)).source("train")


def test_unreadable_images_alone_are_refused(tmp_path: Path) -> None:
    root = layout_files.yolo(tmp_path)
    for file in (root / "images" / "val").iterdir():
        file.write_text("no image")
    with pytest.raises(InputError, match="2 of 2 images cannot be read"):
        CocoDataModule(str(root)).source("val")


@pytest.mark.parametrize("entry", ["../test/images", "images/test", ["images/val", "images/test"]])
def test_test_images_of_yolo_that_are_not_there_are_left_out_and_told(
    tmp_path: Path, entry: str | list[str]
) -> None:
    root = layout_files.yolo(tmp_path)
    described = yaml.safe_load((root / "data.yaml").read_text())
    (root / "data.yaml").write_text(yaml.safe_dump({**described, "test": entry}))
    data = CocoDataModule(str(root))
    assert data.source("test") == data.source("val")
    assert data._splits.layout.notes == (f"test is left out: {entry!r} is not there",)
    if entry == "images/test":  # as COCO keeps those of its test to itself
        layout_files.draw(root / "images" / "test", PHOTOS["val"][0])
        data = CocoDataModule(str(root))
        assert data.source("test") == data.source("val")
        assert data._splits.layout.notes == (f"test is left out: {entry!r} has no boxes",)
        (root / "labels" / "test").mkdir()
        (root / "labels" / "test" / "e.txt").write_text("0 0.5 0.5 0.5 0.5")
        assert CocoDataModule(str(root)).source("test")[1] == root / "images" / "test"
    for split in ("train", "val"):
        (root / "data.yaml").write_text(yaml.safe_dump({**described, split: "images/nowhere"}))
        with pytest.raises(InputError, match=r"data\.yaml: 'images/nowhere': no such folder"):
            CocoDataModule(str(root)).source("train")


def test_yolo_images_that_are_not_there_are_one_line(tmp_path: Path) -> None:
    root = layout_files.yolo(tmp_path, lists=True)
    with (root / "train.txt").open("a") as file:
        file.write("images/train/z.png\n")
    with pytest.raises(InputError, match=r"train\.txt: images/train/z\.png: no such image"):
        CocoDataModule(str(root)).source("train")
    (root / "train.txt").unlink()
    with pytest.raises(InputError, match=r"data\.yaml: 'train\.txt': no such folder"):
        CocoDataModule(str(root)).source("train")


@pytest.mark.parametrize("count_from", [1, 0])
@pytest.mark.parametrize("home", ["", "VOC2007", "VOCdevkit/VOC2012"])
def test_voc(tmp_path: Path, count_from: int, home: str) -> None:
    layout_files.voc(tmp_path / home, count_from)
    data = CocoDataModule(str(tmp_path))
    assert_same(seen(data), TRUTH)
    assert ("pixels are counted from 0" in " ".join(data._splits.layout.notes)) == (count_from == 0)
    assert data.categories == ((1, 2, 3), ("ant", "bee", "wasp"))


def test_voc_trains_on_trainval_without_val(tmp_path: Path) -> None:
    root, lists = layout_files.voc(tmp_path), tmp_path / "ImageSets" / "Main"
    every = [(lists / f"{split}.txt").read_text() for split in ("val", "train")]
    (lists / "trainval.txt").write_text("".join(every))
    assert CocoDataModule(str(root))._splits.layout.notes == ()  # with a list of its own
    (lists / "train.txt").unlink()
    data = CocoDataModule(str(root))
    assert_same(seen(data), TRUTH)
    assert data._splits.layout.notes == (
        "train is trainval.txt without the images of val.txt, as there is no train.txt",
    )
    (lists / "val.txt").unlink()
    assert len(seen(CocoDataModule(str(root)), "train")["train"]) == 6


def test_images_to_train_and_to_validate_on_are_told(tmp_path: Path) -> None:
    root = layout_files.voc(tmp_path / "voc")
    with (root / "ImageSets" / "Main" / "val.txt").open("a") as file:
        file.write("b.1\n")
    data = CocoDataModule(str(root))
    assert set(seen(data)["val"]) == {"e", "f", "b.1"}
    told = "1 of the 3 validation images are training images too: b.1"
    assert data._splits.layout.notes == (told,)
    root = layout_files.yolo(tmp_path / "yolo")
    described = yaml.safe_load((root / "data.yaml").read_text())
    (root / "data.yaml").write_text(yaml.safe_dump({**described, "val": "images/train"}))
    told = "4 of the 4 validation images are training images too: a, b.1, c, d"
    assert CocoDataModule(str(root))._splits.layout.notes == (told,)


def test_names_of_voc_may_have_spaces(tmp_path: Path) -> None:
    root, lists = layout_files.voc(tmp_path), tmp_path / "ImageSets" / "Main"
    for old, new in (("a", "photo (1)"), ("c", "photo 1")):
        for folder, ending in (("Annotations", ".xml"), ("JPEGImages", ".png")):
            (root / folder / f"{old}{ending}").rename(root / folder / f"{new}{ending}")
        text = (root / "Annotations" / f"{new}.xml").read_text()
        (root / "Annotations" / f"{new}.xml").write_text(text.replace(f"{old}.png", f"{new}.png"))
    # The last two as in the lists of one class, with one space or two.
    (lists / "train.txt").write_text("photo (1)\nphoto 1\nb.1 -1\nd  1\n")
    found = seen(CocoDataModule(str(root)), "train")["train"]
    renamed = {"a": "photo (1)", "c": "photo 1"}
    assert found == {renamed.get(stem, stem): objects for stem, objects in TRUTH["train"].items()}
    (lists / "train.txt").write_text("photo (1) 1\nphoto (2)\n")
    with pytest.raises(InputError, match=r"1 of its 2 images have no annotations, as .*/photo \(2\)\.xml"):
        CocoDataModule(str(root)).source("train")


def test_voc_is_read_again_when_images_change(tmp_path: Path) -> None:
    """As when they are saved anew with another ending: the XML files stay."""
    root = layout_files.voc(tmp_path)
    names = read_annotations(CocoDataModule(str(root)).source("train")[0]).file_names.tolist()
    for image in (root / "JPEGImages").iterdir():
        with Image.open(image) as opened:
            opened.save(image.with_suffix(".bmp"))
        image.unlink()
    again = read_annotations(CocoDataModule(str(root)).source("train")[0]).file_names.tolist()
    assert again == [Path(name).with_suffix(".bmp").name for name in names]


def test_voc_with_fractions_counts_from_0(tmp_path: Path) -> None:
    """As CVAT writes it: no pixel has a fraction."""
    root = layout_files.voc(tmp_path)
    (file,) = (root / "Annotations").glob("a.xml")
    file.write_text(file.read_text().replace("<xmin>2</xmin>", "<xmin>2.25</xmin>"))
    assert seen(CocoDataModule(str(root)), "train")["train"]["a"][0][1][0] == 2.25


def test_voc_without_lists_is_divided(tmp_path: Path) -> None:
    root = layout_files.voc(tmp_path, lists=False)
    with pytest.raises(InputError, match=r"Pascal VOC, without val; .*data\.val_share"):
        CocoDataModule(str(root)).source("val")
    found = seen(CocoDataModule(str(root), val_share=0.3))
    every = {stem: objects for photos in TRUTH.values() for stem, objects in photos.items()}
    assert_same({"": found["train"] | found["val"]}, {"": every})
    assert len(found["val"]) == 2


def test_voc_difficult_objects_are_crowd_regions_and_parts_are_no_objects(tmp_path: Path) -> None:
    root = layout_files.voc(tmp_path)
    text = layout_files.voc_xml(PHOTOS["train"][2], difficult=(1,))
    box = "".join(f"<{side}>1</{side}>" for side in ("xmin", "ymin", "xmax", "ymax"))
    part = f"<part><name>head</name><bndbox>{box}</bndbox></part>"
    text = text.replace("</object>", part + "</object>", 1).replace("<width>60</width>", "<width>0</width>")
    (root / "Annotations" / "c.xml").write_text(text)
    data = CocoDataModule(str(root))
    annotations = read_annotations(data.source("train")[0])
    target = annotations.targets(2)
    assert target.boxes.tolist() == [[7, 9, 28, 23], [11, 30, 20, 38]]
    assert target.crowds.tolist() == [[40, 41, 53, 58]]
    assert annotations.sizes[2].tolist() == [60, 60]  # by the file itself
    assert data._splits.layout.notes == (
        "train: 1 difficult objects are crowd regions, neither object nor background",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation><object>", "not an XML file"),
        ("<annotation><object><name>bee</name></object></annotation>", "object 1, bee, has no bndbox"),
        ("<annotation><object><bndbox/></object></annotation>", "object 1 has no name"),
    ],
)
def test_an_xml_file_that_is_none_of_vocs_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    root = layout_files.voc(tmp_path)
    (root / "Annotations" / "a.xml").write_text(text)
    with pytest.raises(InputError, match=rf"a\.xml: {message}"):
        CocoDataModule(str(root)).source("train")
    (root / "Annotations" / "a.xml").unlink()
    with pytest.raises(InputError, match=r"train\.txt: 1 of its 4 images have no annotations, as .*a\.xml"):
        CocoDataModule(str(root)).source("train")


def stems(root: Path, **options: Any) -> list[set[str]]:
    found = seen(CocoDataModule(str(root), **options))
    return [set(found[split]) for split in ("train", "val")]


def test_label_studios_yolo_is_divided(tmp_path: Path) -> None:
    root = layout_files.yolo(tmp_path)
    for folder in [*root.glob("*/*/")]:
        for file in folder.iterdir():
            file.rename(folder.parent / file.name)
        folder.rmdir()
    (root / "data.yaml").unlink()
    (root / "notes.json").write_text(json.dumps({"categories": [], "info": {}}))
    (root / "classes.txt").write_text("bee\nant\nwasp\n")
    with pytest.raises(InputError, match=r"YOLO, without val; .*data\.val_share"):
        CocoDataModule(str(root)).source("val")
    data = CocoDataModule(str(root), val_share=0.3)
    found = seen(data)
    assert len(found["val"]) == 2
    every = {stem: objects for photos in TRUTH.values() for stem, objects in photos.items()}
    assert_same({"": found["train"] | found["val"]}, {"": every}, 64e-6)
    (root / "classes.txt").write_text("bee\nant\n")
    with pytest.raises(InputError, match="class 2 has no name; there are 2 names"):
        CocoDataModule(str(root)).source("train")
    (root / "labels").rename(root / "others")
    with pytest.raises(InputError, match="no layout that is known"):
        CocoDataModule(str(root)).source("train")


def test_yolo_with_names_alone_keeps_its_splits(tmp_path: Path) -> None:
    root = layout_files.yolo(tmp_path)
    (root / "data.yaml").unlink()
    (root / "classes.txt").write_text("bee\nant\nwasp")
    assert_same(seen(CocoDataModule(str(root))), TRUTH, 64e-6)


def test_cvats_yolo(tmp_path: Path) -> None:
    root = layout_files.yolo(tmp_path)
    (root / "data.yaml").unlink()
    for split, name in (("train", "train"), ("val", "valid")):
        images = sorted((root / "images" / split).iterdir())
        (root / f"{name}.txt").write_text("".join(f"data/obj_{name}_data/{one.name}\n" for one in images))
        (root / f"obj_{name}_data").mkdir()
        for file in (*images, *(root / "labels" / split).iterdir()):
            file.rename(root / f"obj_{name}_data" / file.name)
    (root / "obj.names").write_text("bee\nant\nwasp\n")
    (root / "obj.data").write_text("classes = 3\nnames = data/obj.names\ntrain = data/train.txt\n")
    data = CocoDataModule(str(root))
    assert_same(seen(data), TRUTH, 64e-6)
    assert data.source("test") == data.source("val")


def test_cvats_yolo_below_a_folder_images(tmp_path: Path) -> None:
    """Boxes lie beside the images, and no folder `labels` anywhere."""
    root = layout_files.yolo(tmp_path / "images" / "set")
    for label in [*(root / "labels").rglob("*.txt")]:
        label.rename(root / "images" / label.relative_to(root / "labels"))
    assert_same(seen(CocoDataModule(str(root))), TRUTH, tolerance=1e-3)


def test_yolo_of_folders_of_the_working_directory_and_from_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = layout_files.yolo(tmp_path / "set")
    file = next(root.glob("*.yaml"))
    content = yaml.safe_load(file.read_text())
    content["train"] = [content["train"], str((root / "images" / "val").absolute())]
    file.write_text(yaml.safe_dump(content | {"path": ""}))
    monkeypatch.chdir(tmp_path)
    found = seen(CocoDataModule("set"), "train")["train"]
    assert found.keys() == TRUTH["train"].keys() | TRUTH["val"].keys()


@pytest.mark.parametrize("folder", ["images", "{}", "images/{}"])
def test_cocos_files_in_the_root(tmp_path: Path, folder: str) -> None:
    root = layout_files.coco(tmp_path, "{}", folder)
    for file in (root / "annotations").iterdir():
        file.rename(root / file.name)
    data = CocoDataModule(str(root))
    assert_same(seen(data), TRUTH)
    assert data.source("train") == (root / "train.json", root / folder.format("train"))
    (root / "val.json").unlink()
    assert len(seen(CocoDataModule(str(root), val_share=0.25))["val"]) == 1


def test_a_share_depends_on_names_alone(tmp_path: Path) -> None:
    photos = [(f"{number}", 20, 20, [(0, 1, 1, 9, 9)]) for number in range(40)]
    layout_files.coco_file(tmp_path / "all.json", photos)
    for photo in photos:
        layout_files.draw(tmp_path / "images", photo)
    # Worked out apart from the code: the first 10 of 40 by SHA-256 of "0 NAME".
    train, val = stems(tmp_path, val_share=0.25)
    names = [f"{number}.png" for number in range(40)]
    names.sort(key=lambda name: sha256(f"0 {name}".encode()).hexdigest())
    assert val == {Path(name).stem for name in names[:10]}
    assert train | val == {stem for stem, *_ in photos}
    assert not train & val
    assert stems(tmp_path, val_share=0.25, seed=1) == [train, val]
    layout_files.coco_file(tmp_path / "all.json", photos[::-1])
    assert stems(tmp_path, val_share=0.25) == [train, val]


def test_what_belongs_together_is_not_divided(tmp_path: Path) -> None:
    copies = [(f"p{number % 5}_jpg.rf.{number:032x}", 20, 20, [(0, 1, 1, 9, 9)]) for number in range(20)]
    layout_files.coco_file(tmp_path / "_annotations.coco.json", [*copies, *copies[:5]])
    for photo in copies:
        layout_files.draw(tmp_path, photo)
    for share in (0.2, 0.4, 0.6, 0.8):
        train, val = stems(tmp_path, val_share=share)
        assert len(val) == 20 * share
        assert not {stem[:2] for stem in train} & {stem[:2] for stem in val}


def test_a_divided_file_is_made_again_when_it_changes(tmp_path: Path) -> None:
    root = layout_files.single(tmp_path)
    before = {
        path: path.stat().st_mtime_ns for path in CocoDataModule(str(root), val_share=0.3).source("val")
    }
    assert {p: p.stat().st_mtime_ns for p in CocoDataModule(str(root), val_share=0.3).source("val")} == before
    content = json.loads((root / "annotations.json").read_text())
    content["categories"][0]["name"] = "bumblebee"
    (root / "annotations.json").write_text(json.dumps(content))
    assert "bumblebee" in CocoDataModule(str(root), val_share=0.3).categories.names
    assert not [*root.rglob("*.part")]


def test_a_class_0_stays_one_in_a_half_without_it(tmp_path: Path) -> None:
    """Roboflow's category 0 is none, but for one that has objects somewhere."""
    root = layout_files.single(tmp_path)
    content = json.loads((root / "annotations.json").read_text())
    for one in content["categories"]:
        one["id"] -= 1
    for one in content["annotations"]:
        one["category_id"] -= 1
    rare = content["annotations"][0]["image_id"]  # the only image of class 0
    content["annotations"] = [
        one for one in content["annotations"] if one["category_id"] or one["image_id"] == rare
    ]
    (root / "annotations.json").write_text(json.dumps(content))
    for share in (0.2, 0.5, 0.8):
        data = CocoDataModule(str(root), val_share=share)
        for split in ("train", "val"):
            assert read_annotations(data.source(split)[0]).categories.names == layout_files.NAMES
    content["annotations"] = [one for one in content["annotations"] if one["category_id"]]
    (root / "annotations.json").write_text(json.dumps(content))
    data = CocoDataModule(str(root), val_share=0.5)
    assert read_annotations(data.source("train")[0]).categories.names == layout_files.NAMES[1:]


def test_masks_and_ids_stay_as_they_are(tmp_path: Path) -> None:
    root = layout_files.single(tmp_path)
    content = json.loads((root / "annotations.json").read_text())
    for one in content["annotations"]:
        one["segmentation"] = [[1, 2, 3, 4, 5, 6]]
    (root / "annotations.json").write_text(json.dumps(content))
    data = CocoDataModule(str(root), val_share=0.3)
    halves = [json.loads(data.source(split)[0].read_text()) for split in ("train", "val")]
    for key in ("images", "annotations"):
        both = sorted(halves[0][key] + halves[1][key], key=lambda one: one["id"])
        assert both == content[key]
    assert halves[0]["categories"] == halves[1]["categories"] == content["categories"]


def test_where_nothing_can_be_written_the_users_cache_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = layout_files.single(tmp_path / "set")
    monkeypatch.setattr("fpn.data.cached.os.access", lambda path, mode: not str(path).startswith(str(root)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file, _ = CocoDataModule(str(root), val_share=0.3).source("train")
    assert file.is_relative_to(tmp_path / "cache" / "fpn")
    assert not (root / ".fpn").exists()


def test_another_users_cache_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = layout_files.single(tmp_path / "set")
    (root / ".fpn").mkdir()
    usual = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != ".fpn" and usual(path, mode))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert CocoDataModule(str(root), val_share=0.5).source("val")[0].is_relative_to(tmp_path / "cache")


def test_a_name_that_is_not_utf_8_is_told(tmp_path: Path) -> None:
    root = layout_files.yolo(tmp_path)
    image = next((root / "images" / "train").iterdir())
    image.rename(image.with_name(os.fsdecode(b"Stra\xdfe.png")))
    file, _ = CocoDataModule(str(root)).source("train")
    with pytest.raises(InputError, match=r"file_name.*Stra"):
        read_annotations(file)


def test_what_is_given_wins_over_the_layout(tmp_path: Path) -> None:
    root, other = layout_files.coco(tmp_path / "set"), layout_files.roboflow(tmp_path / "other")
    file, folder = other / "valid" / "_annotations.coco.json", other / "valid"
    data = CocoDataModule(str(root), val=Split(str(folder), str(file)))
    assert data.source("val") == data.source("test") == (file, folder)
    assert data.source("train")[1] == root / "train2017"
    # Where all is given, the root need not be.
    data = CocoDataModule("nowhere", train=Split(str(folder), str(file)), val_share=0.5)
    assert {split: len(photos) for split, photos in seen(data).items()} == {"train": 1, "val": 1}
    assert data.source("test") == data.source("val")


def test_a_share_where_there_is_a_validation_set_is_refused(tmp_path: Path) -> None:
    root = layout_files.coco(tmp_path)
    with pytest.raises(InputError, match=r"others to validate on, .*instances_val2017\.json: give only one"):
        CocoDataModule(str(root), val_share=0.2).source("train")


@pytest.mark.parametrize(("share", "left"), [(0.0, "none to validate on"), (1.0, "none to train on")])
def test_a_share_of_all_or_nothing_is_refused(tmp_path: Path, share: float, left: str) -> None:
    root = layout_files.single(tmp_path)
    with pytest.raises(InputError, match=left):
        CocoDataModule(str(root), val_share=share).source("train")


def _nothing(root: Path) -> None:
    root.mkdir()


def _photos(root: Path) -> None:
    for photo in PHOTOS["train"]:
        layout_files.draw(root / "photos", photo)
        layout_files.draw(root, photo, ".jpg")
    (root / "notes.json").write_text("{}")


@pytest.mark.parametrize(
    ("make", "found"),
    [(_nothing, "Found there: nothing"), (_photos, r"Found there: photos/, 4 \*\.jpg, 1 \*\.json")],
)
def test_no_layout_is_one_line(tmp_path: Path, make: Callable[[Path], None], found: str) -> None:
    make(tmp_path / "set")
    with pytest.raises(InputError, match=f"no layout that is known: COCO 2017 .*{found}") as caught:
        _ = CocoDataModule(str(tmp_path / "set")).categories
    assert "\n" not in str(caught.value)
