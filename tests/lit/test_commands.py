"""`fpn predict` on annotated splits and `fpn proposals`, through the real command line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lit.conftest import TINY
from lit_runs import TEN_STEPS, scores_of
from pages import page_of
from PIL import Image

from fpn import Predictor, load
from fpn.data.coco import read_annotations
from fpn.data.datamodule import CocoDataModule
from fpn.data.options import ImageOptions, Split
from fpn.data.proposals import Proposals, file_hash
from fpn.data.results import RESULTS
from fpn.evaluation import evaluate_proposals, score_boxes
from fpn.lit.cli import main

RUN = "runs/tiny/version_0/checkpoints/last.ckpt"
SHORT = ["--model.schedule", '{"steps": 2, "milestones": [1], "warmup_steps": 1, "reference_images": 2}']
HERE = ["--trainer.logger.init_args.save_dir", "runs"]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on standard error of a command that ends with status 2."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fpn: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.fixture(scope="module")
def trained(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Trains a FasterRCNN or a ProposalNetwork for two steps, once; gives its checkpoint."""
    kept: dict[str, Path] = {}

    def train(kind: str) -> Path:
        if kind not in kept:
            folder = tmp_path_factory.mktemp(kind)
            content = json.loads(json.dumps(TINY))
            content["data"]["root"] = str(shapes)
            content["trainer"]["logger"]["init_args"]["save_dir"] = str(folder / "runs")
            detector = content["model"]["detector"]
            # More in training than in testing, as a selection has to tell.
            detector["training_proposals"] = {"pre_nms_top_n": 80, "post_nms_top_n": 80}
            if kind == "ProposalNetwork":
                for key in ("roi_head", "roi_sampling", "detections"):
                    del detector[key]
                content["model"]["detector"] = {"class_path": "fpn.ProposalNetwork", "init_args": detector}
            (folder / "config.yaml").write_text(yaml.safe_dump(content))
            main(["fit", "--config", str(folder / "config.yaml"), *SHORT])
            kept[kind] = folder / RUN
        return kept[kind]

    return train


def newest_test(checkpoint: Path | str) -> Path:
    """Of a run, the folder of its last test."""
    folders = Path(checkpoint).parents[1].glob("test*")
    return max(folders, key=lambda folder: (folder / "scores.json").stat().st_mtime_ns)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def listed(shapes: Path, split: str) -> tuple[Path, list[str]]:
    """The annotation file of a split, and the options that name it and its images."""
    truth = shapes / "annotations" / f"instances_{split}2017.json"
    return truth, ["--annotations", str(truth), "--images", str(shapes / f"{split}2017")]


def test_from_a_proposal_network_to_training_data(
    trained: Callable[[str], Path], shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = trained("ProposalNetwork")
    predict = ["predict", "--ckpt_path", str(checkpoint), "--device", "cpu"]
    files = {}
    for split, selection, limit in (("train", "training", 80), ("val", "testing", 50)):
        truth, options = listed(shapes, split)
        workers = ["--num_workers", "2"] if split == "train" else []
        main([*predict, *options, "--selection", selection, "--out", split, *workers])
        assert [path.name for path in Path(split).iterdir()] == ["proposals.safetensors"]
        files[split] = Path(split, "proposals.safetensors")
        file = Proposals(files[split])
        assert file.stamp == (file_hash(truth), truth.name, file_hash(checkpoint), "last.ckpt")
        assert file.image_ids.tolist() == read_annotations(truth).image_ids.tolist()
        numbers = [len(file.for_image(i)) for i in file.image_ids.tolist()]
        assert max(numbers) <= limit
        assert max(numbers) > 50 or split == "val"
        for image_id in file.image_ids.tolist():
            assert (np.diff(file.scores_for_image(image_id).numpy()) <= 0).all()
    assert "written to val: proposals.safetensors" in capsys.readouterr().out

    # What the file holds is what the detector finds in an image on its own.
    truth, _ = listed(shapes, "val")
    annotations = read_annotations(truth)
    predictor = Predictor.of(load(checkpoint))
    for index, image_id in enumerate(annotations.image_ids.tolist()):
        found = predictor([shapes / "val2017" / str(annotations.file_names[index])])[0]
        file = Proposals(files["val"])
        assert torch.equal(file.for_image(image_id), found.boxes)
        assert torch.equal(file.scores_for_image(image_id), found.scores)

    # The data hand it out …
    data = CocoDataModule(
        str(shapes),
        train=Split(proposals=str(files["train"])),
        val=Split(proposals=str(files["val"])),
        images=ImageOptions(short_side=96, max_side=96, flip_probability=0.0),
        num_workers=0,
    )
    data.setup("fit")
    for split, loader in (("train", data.train_dataloader()), ("val", data.val_dataloader())):
        batch: Any
        for batch in loader:
            columns = batch.image_ids, batch.proposals, batch.sizes, batch.original_sizes
            for image_id, boxes, size, original in zip(*columns, strict=True):
                factors = torch.tensor([size[1] / original[1], size[0] / original[0]] * 2)
                expected = Proposals(files[split]).for_image(image_id) * factors
                assert torch.equal(boxes, expected)
                assert (boxes <= torch.tensor([size[1], size[0]] * 2) + 1e-3).all()

    # … and as COCO results they score what `fpn test` says of the checkpoint.
    main(["test", "--ckpt_path", str(checkpoint)])
    scores = scores_of(newest_test(checkpoint))
    main(["proposals", str(files["val"]), "val.json", "--annotations", str(truth)])
    recall = evaluate_proposals(truth, "val.json", engine="pycocotools")
    assert {key: scores[f"proposal_{key}"] for key in recall} == pytest.approx(recall, nan_ok=True)
    tested = json.loads((newest_test(checkpoint) / "proposals.json").read_text())
    converted = sorted(json.loads(Path("val.json").read_text()), key=lambda d: d["image_id"])
    assert [d["bbox"] for d in converted] == [d["bbox"] for d in tested]

    main(["proposals", "val.json", "again[b].safetensors", "--annotations", str(truth), "--top", "7"])
    assert "35 boxes written to again[b].safetensors" in capsys.readouterr().out
    for image_id in annotations.image_ids.tolist():
        kept = Proposals(files["val"]).for_image(image_id)[:7]
        assert torch.equal(Proposals("again[b].safetensors").for_image(image_id), kept)


def test_training_images_that_cannot_be_read_have_no_proposals(
    trained: Callable[[str], Path],
    shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shapes, copy)
    paths = sorted((copy / "train2017").iterdir())
    # Missing, torn, and of another size than is stated: in a row, as the first is looked for after the last.
    paths[0].unlink()
    paths[8].write_bytes(b"\xff\xd8 torn")
    Image.new("RGB", (9, 7)).save(paths[9])
    broken = [paths[0], paths[8], paths[9]]
    configs = {kind: trained(kind).parents[4] / "config.yaml" for kind in ("ProposalNetwork", "FasterRCNN")}
    data = ["--data.root", str(copy), "--data.max_unreadable", "0.3"]
    main(["fit", "--config", str(configs["ProposalNetwork"]), *SHORT, *data, *HERE])
    predict = ["predict", "--device", "cpu", "--ckpt_path", RUN]
    train = [*predict, "--split", "train", "--selection", "training"]

    capsys.readouterr()
    main(train)
    told = [line for line in capsys.readouterr().out.splitlines() if "listed without boxes" in line]
    assert sorted(line.partition(":")[0] for line in told) == [str(path) for path in broken]
    assert [line.rpartition("; ")[2] for line in told] == [
        f"listed without boxes ({i} of at most 3)" for i in (1, 2, 3)
    ]
    file = Proposals("predictions/proposals.safetensors")
    annotations = read_annotations(copy / "annotations" / "instances_train2017.json")
    assert file.image_ids.tolist() == annotations.image_ids.tolist()
    network = load(RUN)
    network.detector.testing_proposals = network.detector.training_proposals  # type: ignore[assignment]
    predictor = Predictor.of(network)
    for image_id, name in zip(file.image_ids.tolist(), annotations.file_names.tolist(), strict=True):
        path = copy / "train2017" / name
        expected = torch.zeros(0, 4) if path in broken else predictor([path])[0].boxes
        assert torch.equal(file.for_image(image_id), expected)
        assert len(expected) > 0 or path in broken
    main([*train, "--num_workers", "2", "--batch_size", "3", "--pictures", "--out", "again"])
    assert "in 7 of 10 images" in capsys.readouterr().out
    again = Proposals("again/proposals.safetensors")
    for image_id in file.image_ids.tolist():
        assert (len(again.for_image(image_id)) == 0) == (len(file.for_image(image_id)) == 0)
    assert len(list(Path("again/pictures").iterdir())) == 7

    # Fast R-CNN is trained with it, two epochs, while they are as they were.
    main([*predict, "--split", "val", "--out", "val"])
    moved = copy.rename(tmp_path / "moved")
    assert "no such folder" in refused(capsys, *predict, "--split", "val", "--out", "again_val")
    main([*predict, "--split", "val", "--out", "again_val", "--root", str(moved)])
    moved.rename(copy)
    files = [Path(name, "proposals.safetensors").read_bytes() for name in ("val", "again_val")]
    assert files[0] == files[1]
    content = yaml.safe_load(configs["FasterRCNN"].read_text())
    detector = content["model"]["detector"]
    for key in ("rpn", "training_proposals", "testing_proposals"):
        del detector[key]
    content["model"]["detector"] = {"class_path": "fpn.FastRCNN", "init_args": detector}
    Path("fast.yaml").write_text(yaml.safe_dump(content))
    data += ["--data.train.proposals", "predictions/proposals.safetensors"]
    data += ["--data.val.proposals", "val/proposals.safetensors"]
    recwarn.clear()
    main(["fit", "--config", "fast.yaml", "--model.schedule", TEN_STEPS, *data, *HERE])
    best = "runs/tiny/version_1/checkpoints/best.ckpt"
    assert Path(best).is_file()
    told = [str(w.message) for w in recwarn if "another image takes its place" in str(w.message)]
    assert sorted(line.partition(":")[0] for line in told) == [str(path) for path in broken]

    main(["test", "--ckpt_path", best, *data])
    assert {"Errors", "Proposals"} & {*page_of(newest_test(best) / "report.html").headings} == {"Errors"}

    # One more than may be.
    paths[4].write_bytes(b"\xff\xd8 torn")
    line = refused(capsys, *train, "--out", "none")
    assert "4 of the 10 images of " in line
    assert "cannot be read, where data.max_unreadable allows for 3: " in line
    for path in paths[1:5]:
        path.unlink(missing_ok=True)
    line = refused(capsys, *train, "--out", "none")
    assert "5 of the 10 images of " in line
    assert line.endswith("; data.max_unreadable 0.5 trains without them")
    # Images to score must all be there.
    min((copy / "val2017").iterdir()).write_bytes(b"\xff\xd8 torn")
    assert "cannot be decoded" in refused(capsys, *predict, "--split", "val", "--out", "torn")
    assert not Path("torn").exists()


def test_results_of_an_annotated_split(trained: Callable[[str], Path], shapes: Path) -> None:
    checkpoint = str(trained("FasterRCNN"))
    truth, options = listed(shapes, "val")
    predict = ["predict", "--ckpt_path", checkpoint, "--device", "cpu", *options]
    main([*predict, "--num_workers", "1"])
    assert {path.name for path in Path("predictions").iterdir()} == {*RESULTS}
    found = json.loads(Path("predictions/detections.json").read_text())
    main(["test", "--ckpt_path", checkpoint])
    tested = json.loads((newest_test(checkpoint) / "detections.json").read_text())
    assert [(d["image_id"], d["category_id"]) for d in found] == [
        (d["image_id"], d["category_id"]) for d in tested
    ]
    for one, other in zip(found, tested, strict=True):
        assert one["bbox"] == pytest.approx(other["bbox"], abs=0.006)
        assert one["bbox"] == [round(side, 2) for side in one["bbox"]]
        assert one["score"] == pytest.approx(other["score"], abs=6e-6)
        assert one["score"] == round(one["score"], 5)
    scores = scores_of(newest_test(checkpoint))
    rescored = score_boxes(truth, "predictions/detections.json").overall
    assert rescored["AR@100"] == pytest.approx(scores["AR@100"], abs=0.02)

    # Pictures when they are asked for, and one for each image.
    main([*predict, "--pictures", "--out", "drawn"])
    assert len(list(Path("drawn/pictures").glob("*.jpg"))) == 5


def test_unlabelled_images_in_an_order_of_their_own(trained: Callable[[str], Path], shapes: Path) -> None:
    truth, options = listed(shapes, "val")
    content = json.loads(truth.read_text())
    ids = [image["id"] for image in content["images"]]
    content["images"].reverse()
    del content["annotations"]
    Path("info.json").write_text(json.dumps(content))
    options = ["--annotations", "info.json", *options[2:], "--device", "cpu"]
    main(["predict", "--ckpt_path", str(trained("ProposalNetwork")), *options, "--batch_size", "2"])
    assert Proposals("predictions/proposals.safetensors").image_ids.tolist() == ids[::-1]
    main(["predict", "--ckpt_path", str(trained("FasterRCNN")), *options])
    found = json.loads(Path("predictions_2/detections.json").read_text())
    assert list(dict.fromkeys(d["image_id"] for d in found)) == ids[::-1]


def test_an_image_pyramid(trained: Callable[[str], Path], shapes: Path) -> None:
    checkpoint = trained("FasterRCNN")
    _, options = listed(shapes, "val")
    sides = ["--scales", "[0.6666667, 1]", "--device", "cpu"]
    main(["predict", "--ckpt_path", str(checkpoint), *options, *sides])
    main(
        [
            "predict",
            "--ckpt_path",
            str(checkpoint),
            *options[2:],
            *sides,
            "--pictures=false",
            "--out",
            "plain",
        ]
    )
    found, plain = (
        json.loads(Path(folder, "detections.json").read_text()) for folder in ("predictions", "plain")
    )
    assert found == plain
    main(["test", "--ckpt_path", str(checkpoint), "--data.images.test_scales", "[0.6666667, 1]"])
    tested = json.loads((newest_test(checkpoint) / "detections.json").read_text())
    assert [d["score"] for d in found] == pytest.approx([d["score"] for d in tested], abs=6e-6)
    trained_again = load(checkpoint)
    assert trained_again.image.short_side == 96
    predictor = Predictor.of(trained_again, scales=[0.6666667, 1])
    first = min((shapes / "val2017").iterdir())
    expected = predictor([first])[0].scores.tolist()
    scores = [d["score"] for d in found if d["image_id"] == int(first.stem)]
    assert scores == pytest.approx(expected, abs=6e-6)


def test_a_folder_of_images_of_all_kinds(
    trained: Callable[[str], Path], shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By content, in sub-folders too; what is no image is counted, what is a broken one is named."""
    folder = Path("photos")
    (folder / "sub" / "deeper").mkdir(parents=True)
    picture = Image.open(min((shapes / "val2017").iterdir()))
    kinds = {"a.bmp": "BMP", "b.tif": "TIFF", "sub/c.jfif": "JPEG", "sub/deeper/d": "PNG", "e.txt": "JPEG"}
    for name, kind in kinds.items():
        picture.save(folder / name, kind)
    for name in ("f.csv", "sub/g.csv", "h.json", "LICENSE", ".DS_Store"):
        (folder / name).write_text("words")
    (folder / "torn.jpg").write_bytes(b"\xff\xd8 torn")
    given = ["predict", "--ckpt_path", str(trained("FasterRCNN")), "--device", "cpu", "--images"]
    for out in ("found", "again"):  # where the pictures of the first do not count
        main([*given, str(folder), "--out", str(folder / out)])
        printed = " ".join(capsys.readouterr().out.split())
        assert "passed over, not being images: " in printed
        for words in (
            *(("2 .csv", "1 .json") if out == "found" else ("3 .csv", "3 .json")),
            "1 hidden",
            "1 without an ending",
            "left out: photos/torn.jpg: ",
            "5 of 6",
        ):
            assert words in printed
        listed = json.loads((folder / out / "predictions.json").read_text())["images"]
        assert sorted(one["file_name"] for one in listed) == sorted(kinds)
    line = refused(capsys, *given, str(folder / "torn.jpg"), "--out", "none")
    assert "none of the 1 images can be read, as photos/torn.jpg" in line
    Path("words").mkdir()
    Path("words/a.csv").touch()
    assert "words: no images; there are 1 .csv" in refused(capsys, *given, "words", "--out", "none")
    assert not Path("none/detections.json").exists()


def test_mistakes_end_in_one_line(
    trained: Callable[[str], Path], shapes: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    truth, options = listed(shapes, "val")
    network, detector = str(trained("ProposalNetwork")), str(trained("FasterRCNN"))

    def predict(*arguments: str) -> str:
        return refused(capsys, "predict", "--device", "cpu", *arguments)

    message = predict("--ckpt_path", detector, *options, "--selection", "training")
    assert "selection training is of a ProposalNetwork's proposals, not for a FasterRCNN" in message
    folder = ["--images", str(shapes / "val2017")]
    copy = tmp_path / "copy"
    shutil.copytree(shapes / "val2017", copy)
    victims = sorted(copy.iterdir())[2:4]
    for victim in victims:
        victim.unlink()
    message = predict("--ckpt_path", network, "--annotations", str(truth), "--images", str(copy))
    assert f"2 of the 5 images of {truth} are not in {copy}: {victims[0].name}, " in message
    victims[0].write_bytes(b"\xff\xd8 torn")
    victims[1].write_bytes(b"\xff\xd8 torn")
    for workers in ("0", "1"):
        given = ["--annotations", str(truth), "--images", str(copy), "--num_workers", workers]
        assert victims[0].name in predict("--ckpt_path", network, *given)
    assert [path.name for path in Path("predictions").iterdir()] == ["unfinished_prediction"]
    message = predict("--ckpt_path", network, "--annotations", "absent.json", *folder)
    assert "absent.json: no such annotation file" in message
    one = str(next((shapes / "val2017").iterdir()))
    message = predict("--ckpt_path", network, "--annotations", str(truth), "--images", one)
    assert "with annotations, images is the folder of their files" in message
    content = json.loads(truth.read_text())
    content["categories"][0]["name"] = "tesseract"
    Path("other.json").write_text(json.dumps(content))
    message = predict("--ckpt_path", detector, "--annotations", "other.json", *folder)
    assert "other.json lists other categories" in message
    assert "batch_size is 0" in predict("--ckpt_path", detector, *folder, "--batch_size", "0")
    assert "scales is [0]: give a number above 0" in predict(
        "--ckpt_path", detector, *folder, "--scales", "[0]"
    )
    for device in ("cuda:99", "nonsense"):
        message = predict("--ckpt_path", detector, *folder, "--device", device)
        assert f"device '{device}' cannot be used" in message


def test_conversions_that_are_refused(shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, _ = listed(shapes, "val")

    def convert(*arguments: str) -> str:
        return refused(capsys, "proposals", *arguments)

    Path("found.json").write_text("[]")
    given = ["--annotations", str(truth)]
    assert "needs --annotations" in convert("found.json", "found.safetensors")
    for out in ("found.json", "found.npz", "found"):
        assert "converts .json to .safetensors, or back" in convert("found.json", out, *given)
    assert "top is 0" in convert("found.json", "found.safetensors", *given, "--top", "0")
    assert "absent.json: no such results file" in convert("absent.json", "found.safetensors", *given)
    assert "no such proposal file" in convert("absent.safetensors", "out.json", *given)
    Path("found.safetensors").write_bytes(b"torn")
    assert "not a proposal file" in convert("found.safetensors", "out.json", *given)
    assert not Path("out.json").exists()


def test_photos_are_seen_as_the_checkpoints_were(
    trained: Callable[[str], Path], shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained with exif: ignore, one whose mark says upside down is as without the mark."""
    monkeypatch.chdir(tmp_path)
    state = torch.load(trained("FasterRCNN"), weights_only=True)
    state["fpn"]["config"]["data"]["init_args"]["images"]["exif"] = "ignore"
    torch.save(state, "ignoring.ckpt")
    mark = Image.Exif()
    mark[0x0112] = 3
    with Image.open(next((shapes / "val2017").iterdir())) as photo:
        photo.convert("RGB").save("plain.png")
        photo.convert("RGB").save("marked.png", exif=mark)
        width, height = photo.size
    listed = json.loads((shapes / "annotations" / "instances_val2017.json").read_text())["categories"]
    found = {}
    for name, checkpoint in (("plain", "ignoring.ckpt"), ("marked", "ignoring.ckpt"), ("turned", "")):
        file = f"{'marked' if name == 'turned' else name}.png"
        content = {"images": [{"id": 1, "file_name": file, "width": width, "height": height}]}
        Path("one.json").write_text(json.dumps(content | {"annotations": [], "categories": listed}))
        words = [
            "predict",
            checkpoint or str(trained("FasterRCNN")),
            "--images",
            ".",
            "--annotations",
            "one.json",
        ]
        main([*words, "--out", name, "--num_workers", "0"])
        found[name] = json.loads(Path(name, "detections.json").read_text())
    assert found["marked"] == found["plain"] != found["turned"]
