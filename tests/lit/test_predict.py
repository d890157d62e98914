"""`fpn predict` on images: its files, its folder, several processes, and what an interruption leaves."""

import csv
import errno
import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from processes import Started, run
from pycocotools.coco import COCO

from fpn import Predictor, load
from fpn.data.results import RESULTS
from fpn.lit.cli import main
from fpn.lit.to_predict import picture_names
from fpn.lit.unfinished import UNFINISHED, Recorded, Recorder, own_folder
from fpn.types import Detections

REPOSITORY = Path(__file__).resolve().parents[2]
Refused = Callable[..., str]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def predict(unbroken: Path) -> list[str]:
    checkpoint = str(unbroken / "checkpoints" / "last.ckpt")
    return ["predict", "--ckpt_path", checkpoint, "--device", "cpu", "--score_threshold", "0"]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """The one line on standard error of a command that ends with status 2."""

    def line_of(*arguments: str) -> str:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fpn: ")]
        return line

    return line_of


@pytest.fixture
def photos(shapes: Path) -> Path:
    """Files of one name in two folders, and of one stem in one."""
    folder = Path("photos")
    (folder / "sub").mkdir(parents=True)
    sources = sorted((shapes / "val2017").iterdir())
    for name, source in zip(("a.jpg", "sub/a.jpg", "a.png", "sub/b"), sources, strict=False):
        Image.open(source).save(folder / name, "PNG" if "." not in name else None)
    return folder


def test_three_files_say_the_same_and_pictures_keep_names(
    predict: list[str], photos: Path, unbroken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*predict, "--images", str(photos)])
    assert {path.name for path in Path("predictions").iterdir()} == {*RESULTS, "pictures"}
    coco = COCO("predictions/predictions.json")
    results = coco.loadRes("predictions/detections.json")
    predictor = Predictor.of(load(unbroken / "checkpoints" / "last.ckpt"))
    names = {one["id"]: one["name"] for one in coco.loadCats(coco.getCatIds())}
    with Path("predictions/predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [one["file_name"] for one in coco.loadImgs(coco.getImgIds())] == [
        "a.jpg",
        "a.png",
        "sub/a.jpg",
        "sub/b",
    ]
    for image in coco.loadImgs(coco.getImgIds()):
        expected = predictor(photos / image["file_name"])
        with Image.open(photos / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])
        own = coco.loadAnns(coco.getAnnIds(image["id"]))
        of_results = results.loadAnns(results.getAnnIds(image["id"]))
        of_table = [row for row in rows if row["file_name"] == image["file_name"]]
        assert len(own) == len(expected.boxes) > 0
        columns = (
            own,
            of_results,
            of_table,
            expected.boxes.tolist(),
            expected.names,
            expected.scores.tolist(),
        )
        for one, other, row, corners, name, score in zip(*columns, strict=True):
            x, y, width, height = one["bbox"]
            assert [x, y, x + width, y + height] == pytest.approx(corners, abs=0.011)
            assert one["score"] == pytest.approx(score, abs=1e-5)
            assert names[one["category_id"]] == row["name"] == name
            assert one["area"] == pytest.approx(width * height, abs=0.01)
            assert one["iscrowd"] == 0
            assert [one[key] for key in ("bbox", "category_id")] == [
                other[key] for key in ("bbox", "category_id")
            ]
            assert [float(row[key]) for key in ("x1", "y1", "x2", "y2")] == pytest.approx(corners, abs=0.011)
            assert (float(row["score"]), row["image_id"]) == (one["score"], str(image["id"]))
    pictures = {
        path.relative_to("predictions/pictures").as_posix()
        for path in Path("predictions/pictures").rglob("*.*")
    }
    assert pictures == {"a.jpg", "a.png.jpg", "sub/a.jpg", "sub/b.jpg"}
    with Image.open("predictions/pictures/sub/b.jpg") as picture, Image.open(photos / "sub" / "b") as source:
        assert picture.size == source.size

    supervision = pytest.importorskip("supervision")
    data = supervision.DetectionDataset.from_coco(str(photos), "predictions/predictions.json")
    assert len(data) == 4
    assert data.classes == [*names.values()]
    for path, image, theirs in data:
        own = coco.loadAnns(
            coco.getAnnIds(next(i["id"] for i in coco.imgs.values() if path.endswith(f"os/{i['file_name']}")))
        )
        assert image.shape[2] == 3
        assert [data.classes[i] for i in theirs.class_id] == [names[one["category_id"]] for one in own]


def test_pictures_have_names_each_another() -> None:
    names = ["a.png.jpg", "a.png", "a.jpg", "a", "sub/a.JPEG", "sub/a.jpg", "a.jpg", "a.bmp"]
    pictures = picture_names(names)
    assert len(set(pictures)) == len(names)
    assert [pictures[i] for i in (0, 2, 4, 5, 7)] == [
        "a.png.jpg",
        "a.jpg",
        "sub/a.JPEG",
        "sub/a.jpg",
        "a.bmp.jpg",
    ]
    assert pictures[1] == "a.png.jpg.jpg"


def test_a_folder_of_its_own(
    predict: list[str], photos: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    one = [*predict, "--images", str(photos / "a.jpg")]
    main([*one, "--out", "given"])
    before = {path: path.read_bytes() for path in Path("given").rglob("*.*")}
    line = refused(*predict, "--images", str(photos), "--out", "given")
    assert line == "fpn: given has the predictions.json of another run: give another --out"
    assert {path: path.read_bytes() for path in Path("given").rglob("*.*")} == before
    for name in ("predictions", "predictions_2"):
        main(one)
        assert (Path(name) / "detections.json").is_file()
    # A folder with files of the user's is taken, and what an earlier prediction drew is passed over.
    (photos / "notes.txt").write_text("mine")
    main([*one, "--out", str(photos)])
    capsys.readouterr()
    main([*predict, "--images", str(photos), "--pictures", "false"])
    said = capsys.readouterr().out
    assert f"passed over: {photos}/pictures, which a prediction has drawn" in said
    assert "in 4 of 4 images; written to predictions_3: " in said
    # A list: names start in the folder that has all of them; what is named twice is one image.
    names = [f"{photos}/sub", str(photos / "a.jpg"), str(photos / "sub" / "a.jpg")]
    main(["predict", predict[2], "--images", *names, *predict[3:], "--pictures", "false", "--out", "listed"])
    listed = json.loads(Path("listed/predictions.json").read_text())["images"]
    assert [image["file_name"] for image in listed] == ["sub/a.jpg", "sub/b", "a.jpg"]


def test_what_is_no_image_is_refused(predict: list[str], photos: Path, refused: Refused) -> None:
    Path("clip.mp4").write_bytes(b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + bytes(99))
    Path("clip.avi").write_bytes(b"RIFF\0\0\0\0AVI LIST" + bytes(99))
    Path("names.txt").write_text("photos/a.jpg\n")
    Path("torn.jpg").write_bytes(b"\xff\xd8 torn")
    remedies = {
        "clip.mp4": "fpn: clip.mp4 is a video: make images of it, as by `ffmpeg -i clip.mp4 frames/%06d.jpg`",
        "clip.avi": "clip.avi is a video",
        "https://a.org/b.jpg": "https://a.org/b.jpg is an address: fpn predict reads files, so download it",
        "names.txt": "fpn: names.txt is no image: name image files, or a folder of them",
        "absent.jpg": "absent.jpg is neither an image nor a folder",
        "torn.jpg": "none of the 1 images can be read, as torn.jpg",
    }
    for name, remedy in remedies.items():
        assert remedy in refused(*predict, "--images", name)
    assert "clip.mp4 is a video" in refused(*predict, "--images", json.dumps([str(photos), "clip.mp4"]))
    assert not Path("predictions").exists()


@pytest.fixture
def many(shapes: Path) -> Path:
    """Forty images, one of them torn."""
    folder = Path("many")
    folder.mkdir()
    for index, source in zip(range(40), 8 * sorted((shapes / "val2017").iterdir()), strict=True):
        shutil.copy(source, folder / f"{index:02d}.jpg")
    (folder / "07.jpg").write_bytes(b"\xff\xd8 torn")
    return folder


def same(one: str, other: str) -> None:
    """All files of two folders are."""
    files = {path.relative_to(one) for path in Path(one).rglob("*.*")}
    assert files == {path.relative_to(other) for path in Path(other).rglob("*.*")}
    assert len(files) == 42
    for name in files:
        assert Path(one, name).read_bytes() == Path(other, name).read_bytes(), name


def test_it_goes_on_after_an_interruption(
    predict: list[str], many: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*predict, "--images", str(many), "--batch_size", "3", "--out"]
    main([*words, "whole"])
    with Started([*words, "killed"]) as started:
        kept = Path("killed", UNFINISHED)
        while not any(path.stat().st_size for path in kept.glob("*.found")):
            assert started.process.is_alive(), started.said()
            time.sleep(0.002)
        os.killpg(started.pid, signal.SIGKILL)
        started.status()
    assert not Path("killed/predictions.json").exists()
    (file,) = kept.glob("*.found")
    file.write_bytes(file.read_bytes()[:-1])  # in the middle of an entry
    done = Recorded(kept, 40).done
    assert 0 < done.sum() < 39

    other = "killed has an interrupted run with other settings: give another --out"
    assert other in refused(*words, "killed", "--scales", "[1]")
    capsys.readouterr()
    main([*words, "killed", "--stage_times"])
    said = capsys.readouterr().out
    assert f"going on in killed: {done.sum()} of 40 images are done" in said
    assert "in 39 of 40 images; written to killed: predictions.json" in said
    # Batches of three as they were; the torn image, which was looked for again, does not count.
    batches = [range(first, min(first + 3, 40)) for first in range(0, 40, 3)]
    again = [place for batch in batches if not done[batch].all() for place in batch if place != 7]
    assert f"(images: {len(again)}, " in said
    same("whole", "killed")
    with own_folder("busy", {}) as _:
        assert "busy is being written to by another run" in refused(*words, "busy")


def test_it_needs_of_a_network_disk_what_those_have(
    predict: list[str], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS locks ranges of bytes, of files that are open for writing, and removes no folder of open files."""
    monkeypatch.setattr("fcntl.flock", fcntl.lockf)
    remove = shutil.rmtree

    def removes(folder: Path) -> None:
        opened = [str(one.readlink()) for one in Path("/proc/self/fd").iterdir() if one.exists()]
        assert not [path for path in opened if path.startswith(str(folder.resolve()))]
        remove(folder)

    monkeypatch.setattr("shutil.rmtree", removes)
    main([*predict, "--images", str(photos), "--out", "shared"])
    assert Path("shared/predictions.json").is_file()
    assert not Path("shared", UNFINISHED).exists()


def test_it_goes_on_where_results_were_not_written(
    predict: list[str], photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*predict, "--images", str(photos), "--pictures", "false"]
    error = OSError(errno.ENOSPC, "No space left on device", "predictions/detections.json")
    with monkeypatch.context() as full:
        full.setattr("fpn.lit.predict.write_predictions", Mock(side_effect=error))
        with pytest.raises(SystemExit):
            main(words)
    assert "No space left" in capsys.readouterr().err
    main(words)
    assert "going on in predictions: 4 of 4 images are done" in capsys.readouterr().out
    main([*words, "--out", "whole"])
    for name in RESULTS:
        assert Path("predictions", name).read_bytes() == Path("whole", name).read_bytes()
    assert {path.name for path in Path("predictions").iterdir()} == {*RESULTS}


@pytest.mark.long
def test_processes_share_the_images(predict: list[str], many: Path) -> None:
    words = [*predict, "--images", str(many), "--batch_size", "3", "--out"]
    main([*words, "one"])
    said = run([*words, "two", "--devices", "2"])
    assert "left out: many/07.jpg" in said
    assert "in 39 of 40 images; written to two: predictions.json" in said
    same("one", "two")


@pytest.mark.long
def test_what_is_wrong_in_a_process_is_told_once(predict: list[str], shapes: Path, refused: Refused) -> None:
    shutil.copytree(shapes / "val2017", "copy")
    victim = sorted(Path("copy").iterdir())[3]
    victim.write_bytes(b"\xff\xd8 torn")
    truth = str(shapes / "annotations" / "instances_val2017.json")
    words = [*predict, "--annotations", truth, "--images", "copy", "--devices", "2"]
    said = run(words, status=2)
    (line,) = [line for line in said.splitlines() if "fpn: " in line]
    assert line.startswith(f"fpn: {victim}: cannot be decoded")
    assert "Traceback" not in said
    words[words.index("cpu")] = "cpu:0"
    assert "device cpu:0 is one, not 2: give cpu" in refused(*words)
    assert "stage_times are those of one process" in refused(*words, "--stage_times")


def test_the_example_of_the_page(unbroken: Path, photos: Path) -> None:
    """Line by line, but for the last, which downloads weights."""
    text = (REPOSITORY / "docs" / "python.md").read_text()
    block = text.partition("```python\n")[2].partition("```")[0]
    code, _, last = block.strip().rpartition("\n")
    assert "device" in last
    shutil.copy(photos / "a.jpg", "street.jpg")
    shutil.copy(photos / "a.png", "house.png")
    checkpoint = str(unbroken / "checkpoints" / "best.ckpt")
    known: dict[str, Any] = {}
    exec(code.replace("runs/fpn/version_0/checkpoints/best.ckpt", checkpoint), known)
    assert len(known["boxes"]) == len(known["found"].names) > 0
    assert len(known["both"]) == 2
    assert Image.open("found.jpg").size == Image.open("street.jpg").size


def test_what_is_recorded_is_found_again(tmp_path: Path) -> None:
    """Bit for bit, and an entry that was cut off is none."""
    found = [Detections(torch.rand(n, 4) * 1e3, torch.rand(n), torch.randint(1, 91, (n,))) for n in (3, 0, 2)]
    with Recorder(tmp_path) as recorder:
        recorder.add([(4, (10, 20), found[0])])
        recorder.add([(0, (30, 40), found[1]), (2, (50, 60), found[2])])
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    for cut in (0, 1, 24, 2 * 24, 2 * 24 + 1, 2 * 24 + 32 + 1):
        file.write_bytes(content[: len(content) - cut])
        recorded = Recorded(tmp_path, 5)
        count = 3 if cut == 0 else 2 if cut <= 2 * 24 + 32 else 1
        assert recorded.done.tolist() == [count > 1, False, count > 2, False, True]
        assert recorded.sizes[4].tolist() == [10, 20]
        for place, expected in list(zip((4, 0, 2), found, strict=True))[:count]:
            assert all(torch.equal(a, b) for a, b in zip(recorded[place], expected, strict=True))
            assert recorded[place].labels.dtype == torch.int64
        assert recorded.counts.tolist() == [0, 0, 2 * (count > 2), 0, 3]
        assert np.array_equal(recorded[1].boxes, np.zeros((0, 4)))
