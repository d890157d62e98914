"""Files that are missing, or lie there under another spelling of their names."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fpn.data.datamodule import CocoDataModule
from fpn.data.file_names import find_files, locate
from fpn.data.options import ImageOptions, Split
from fpn.errors import InputError

ACCENTED = unicodedata.normalize("NFC", "Pâte é.jpg")
SPELLINGS = [
    ("photos\\a.jpg", "photos/a.jpg"),
    ("photos/sub\\b c.JPG", "photos/sub/b c.JPG"),
    ("photos/sub/b%20c.JPG", "photos/sub/b c.JPG"),
    ("photos%5Csub%5Cb%20c.jpg", "photos/sub/b c.JPG"),
    ("photos/a.JPG", "photos/a.jpg"),
    ("Photos/A.jpg", "photos/a.jpg"),
    (unicodedata.normalize("NFD", ACCENTED), ACCENTED),
    ("train/photos/a.jpg", "photos/a.jpg"),
    ("C:\\Users\\me\\images\\photos\\a.jpg", "photos/a.jpg"),
    ("/data/elsewhere/d.jpg", "d.jpg"),
    ("https://host.example/sets/d.jpg", "d.jpg"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("photos/a.jpg", "photos/sub/b c.JPG", ACCENTED, "d.jpg", "e.jpg", "E.jpg", "50%25.jpg"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "secret.jpg").touch()
    return tmp_path / "images"


@pytest.mark.parametrize(("listed", "file"), SPELLINGS)
def test_another_spelling_of_a_name(folder: Path, listed: str, file: str) -> None:
    told: list[str] = []
    assert find_files(Path("t.json"), folder, ["e.jpg", listed], None, told.append) == ["e.jpg", file]
    (line,) = told
    assert line.startswith("1 of 2 file names are spelled otherwise")
    assert repr(listed) in line
    assert repr(file) in line


def test_an_absolute_path_into_the_folder(folder: Path) -> None:
    found = locate(folder, [str(folder / "photos" / "a.jpg")])
    assert found.names == ["photos/a.jpg"]


def test_names_as_they_are_come_first(folder: Path) -> None:
    names = ["50%25.jpg", "e.jpg", "E.jpg"]
    told: list[str] = []
    assert find_files(Path("t.json"), folder, names, None, told.append) == names
    assert told == []


@pytest.mark.parametrize(
    "listed",
    [
        ["none.jpg"],
        ["É.jpg"],
        ["../secret.jpg"],
        ["photos/../../secret.jpg"],
        ["%2e%2e/secret.jpg"],
        ["..\\images\\d.jpg"],
        # Which of two files, and which of two images, nothing tells.
        ["%65.JPG"],
        ["d.jpg", "one/d.jpg"],
        ["one/d.jpg", "two/d.jpg"],
    ],
)
def test_what_is_not_found(folder: Path, listed: list[str]) -> None:
    there = listed.index("d.jpg") + 1 if "d.jpg" in listed else 0
    found = locate(folder, listed)
    assert found.missing == list(range(there, len(listed)))
    assert found.names == listed
    with pytest.raises(InputError, match=r"t\.json"):
        find_files(Path("t.json"), folder, listed, None, print)


def test_an_image_listed_twice_has_one_file(folder: Path) -> None:
    assert locate(folder, ["photos\\a.jpg"] * 2).names == ["photos/a.jpg"] * 2


@pytest.mark.parametrize("name", ["/etc/hostname", "C:\\none.jpg", "\\\\server\\none.jpg"])
def test_a_path_that_leads_elsewhere_is_refused_however_many_may_be_missing(folder: Path, name: str) -> None:
    with pytest.raises(InputError, match="not a path inside the image folder"):
        find_files(Path("t.json"), folder, ["d.jpg", name], 1, print)


@given(st.lists(st.sampled_from([str(i) for i in range(20)]), min_size=1, max_size=30))
def test_the_missing_are_those_of_no_file(
    tmp_path_factory: pytest.TempPathFactory, listed: list[str]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "numbers"
    folder.mkdir(exist_ok=True)
    for number in range(0, 20, 3):
        (folder / str(number)).touch()
    assert locate(folder, listed).missing == [i for i, name in enumerate(listed) if int(name) % 3]


def data_of(root: Path, listed: dict[str, list[str]], **options: Any) -> CocoDataModule:
    """Splits of images of these names, each of 40 × 30 pixels with an object."""
    splits = {}
    for split, names in listed.items():
        content = {
            "images": [
                {"id": i, "file_name": name, "height": 30, "width": 40} for i, name in enumerate(names)
            ],
            "annotations": [
                {"id": i, "image_id": i, "category_id": 1, "bbox": [1, 2, 9, 9], "area": 81, "iscrowd": 0}
                for i in range(len(names))
            ],
            "categories": [{"id": 1, "name": "cat"}],
        }
        path = root / f"{split}.json"
        path.write_text(json.dumps(content))
        splits[split] = Split(str(root / "images"), str(path))
    return CocoDataModule(**splits, images=ImageOptions(30), num_workers=0, **options)


def test_training_looks_for_the_files_of_all_splits_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "images").mkdir()
    there = [f"{i} .png" for i in range(8)]
    for name in there:
        Image.new("RGB", (40, 30)).save(tmp_path / "images" / name)
    lost = [f"lost{i}.png" for i in range(7)]
    with pytest.raises(InputError) as caught:
        data_of(tmp_path, {"train": there + lost[:2], "val": there}).setup("fit")
    assert str(caught.value) == (
        f"2 of the 10 images of {tmp_path / 'train.json'} are not in {tmp_path / 'images'}: lost0.png,"
        " lost1.png; put them there, or take them out of that file; data.max_unreadable 0.2 trains without"
        " them"
    )
    data_of(tmp_path, {"train": there + lost[:2], "val": there}, max_unreadable=0.2).setup("fit")
    with pytest.raises(InputError, match=r"7 of the 15 .*: lost0\.png, .* lost4\.png, …; put .* file$"):
        data_of(tmp_path, {"train": there, "val": there + lost}, max_unreadable=0.9).setup("fit")
    with pytest.raises(InputError, match="is this the folder in which their names start"):
        data_of(tmp_path, {"train": lost, "val": there}, max_unreadable=0.9).setup("fit")
    spelled = [f"images\\{name.replace(' ', '%20')}" for name in there]
    data = data_of(tmp_path, {"train": spelled, "val": there})
    with caplog.at_level("INFO"):
        data.setup("fit")
    assert sum("train: 8 of 8 file names are spelled otherwise" in line for line in caplog.messages) == 1
    batches: Any = data.train_dataloader()
    assert sum(len(batch.image_ids) for batch in batches) == 8
