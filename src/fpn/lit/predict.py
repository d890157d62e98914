"""`fpn predict`: images in, COCO results, pictures or a proposal file out."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.io import write_jpeg
from torchvision.ops import box_convert

from fpn.checkpoints import Trained, load, remembered
from fpn.console import say
from fpn.data.coco import Annotations, CocoDataset, read_annotations, tolerated
from fpn.data.datamodule import CocoDataModule
from fpn.data.decoding import Exif, is_image, read_image
from fpn.data.proposals import Stamp, file_hash, write_proposals
from fpn.data.results import write_results
from fpn.data.samplers import ExactShards
from fpn.data.transforms import as_stored, collate_scales
from fpn.errors import InputError
from fpn.models.detectors import Detector, ProposalNetwork
from fpn.parsing import Parser
from fpn.pictures import draw
from fpn.predictor import Predictor
from fpn.settings import NonNegativeInt, PositiveFloat, PositiveInt
from fpn.stage_times import StageTimes
from fpn.trust import check_classes, only_installed
from fpn.types import Categories, Detections, Precision


def predict(
    ckpt_path: str,
    images: str | list[str] | None = None,
    annotations: str | None = None,
    split: Literal["train", "val", "test"] | None = None,
    out: str = "predictions",
    score_threshold: float = 0.5,
    pictures: bool | None = None,
    selection: Literal["testing", "training"] = "testing",
    scales: list[PositiveFloat] | None = None,
    batch_size: PositiveInt | None = None,
    num_workers: NonNegativeInt | None = None,
    device: str | None = None,
    precision: Precision = "32-true",
    stage_times: bool = False,
) -> None:
    """Find objects in images with a trained detector.

    Writes to the output folder: detections.json, COCO results of all scores; images.json, the id,
    file and size of each image; and pictures/ with the boxes drawn, named by id. Files named by
    numbers, as COCO's are, have these as ids; others are counted from 1. Of a folder, all images are
    taken that can be read, by their content, whatever their names, also those in sub-folders; what is
    passed over is counted. Photos are taken as viewers show them, turned by their EXIF orientation, and
    boxes are in pixels of what is shown. An image that cannot be read is named and left out; where
    none can, that is an error.

    With --annotations, the images are those that a COCO file lists, under its ids, and a missing
    one is an error: detections.json is then what COCO's server takes. Of a ProposalNetwork,
    proposals.safetensors is written in its place, the proposal file that data.train.proposals and
    the like read. With --split train, as many files may be unreadable as training does without
    (data.max_unreadable): each is named, and listed without boxes.

    Args:
        ckpt_path: a checkpoint written by `fpn fit`.
        images: an image file, a folder of them, or a list of both; with annotations, the folder in
            which their file names start.
        annotations: a COCO file, with or without annotated objects.
        out: the folder to write to; made if it is missing.
        score_threshold: only boxes with this score are drawn.
        pictures: write pictures with the boxes drawn; by default only without annotations.
        split: in place of images and annotations, those of the data that the checkpoint was trained with.
        selection: how many proposals a ProposalNetwork makes, as its testing_proposals or its
            training_proposals say.
        scales: factors of the size that the checkpoint was trained for, at all of which each image is
            searched, the boxes found being merged: a featurized image pyramid.
        batch_size: images that go through the network together; by default as many as in validation where a
            split is named, otherwise 1.
        num_workers: processes that load images, 0 to load in the one that predicts; by default as many as
            in training where a split is named, otherwise 0.
        device: where the network runs, as cpu or cuda:1; by default on a GPU where there is one.
        precision: of the network's layers; boxes are float32 in any. bf16-mixed is faster on a CPU with
            matrix units for it (AMX), and may be slower on others.
        stage_times: print at the end how much time each stage took, from loading to writing.
    """
    asked = _asked(ckpt_path, images, annotations, split, batch_size, num_workers)
    trained = load(ckpt_path)
    _select(trained.detector, selection)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    predictor = Predictor.of(trained, device, scales or (), precision)
    source = _Listed(asked, trained) if asked.annotations else _Files(asked, Path(out))
    drawn = pictures or (pictures is None and asked.annotations is None)
    folder = Path(out)
    times = StageTimes(predictor.detector) if stage_times else None
    with times or nullcontext():
        found = source.find(predictor, times)
        names = trained.categories if trained.detector.finds_objects else Categories((1,), ("object",))
        if drawn:
            found = _draw(found, folder / "pictures", names, score_threshold)
        if asked.annotations and not trained.detector.finds_objects:
            written = ["proposals.safetensors"]
            boxes = _write_proposals(folder / written[0], found, asked.annotations, Path(ckpt_path))
        else:
            written = ["detections.json"]
            boxes = write_results(folder / written[0], _results(found, names))
    if isinstance(source, _Files):
        (folder / "images.json").write_text(json.dumps(source.listing))
        written.append("images.json")
    if drawn:
        written.append("pictures")
    say(
        f"{boxes:,} boxes in {source.done:,} of {len(source):,} images; written to {folder}: "
        + ", ".join(written)
    )
    if times is not None:
        Console().print(times.table())


class _Asked(NamedTuple):
    """The images to look at, and how they are read."""

    images: list[str]
    annotations: Path | None
    batch_size: int
    num_workers: int
    max_unreadable: float | None = None
    """The share of the images that may be unreadable; None for none of them."""
    exif: Exif = "apply"


def _asked(
    ckpt_path: str,
    images: str | list[str] | None,
    annotations: str | None,
    split: Literal["train", "val", "test"] | None,
    batch_size: int | None,
    num_workers: int | None,
) -> _Asked:
    """What the options of `predict` come to."""
    if split is None:
        if images is None:
            raise InputError("fpn predict needs --images, or --split for those of the checkpoint's own data")
        paths = [images] if isinstance(images, str) else images
        return _Asked(paths, Path(annotations) if annotations else None, batch_size or 1, num_workers or 0)
    if images is not None or annotations is not None:
        raise InputError(f"split {split} stands for images and annotations: give the one or the others")
    data = _data_of(ckpt_path)
    listed, folder = data.source(split)
    return _Asked(
        [str(folder)],
        listed,
        batch_size or data.eval_batch_size,
        data.num_workers if num_workers is None else num_workers,
        data.max_unreadable if split == "train" else None,
        data.exif,
    )


class _Found(NamedTuple):
    """What is found in an image."""

    image_id: int
    """A number, which names the picture."""
    written_id: int | str
    """What the annotation file calls it."""
    picture: Callable[[], Tensor] | None
    """Reads it again; None if it cannot be read."""
    detections: Detections


class _Files(Dataset[tuple[int, Tensor | str]]):
    """Image files, with ids of their own; what cannot be read comes as a message."""

    def __init__(self, asked: _Asked, out: Path) -> None:
        self.asked, self.paths = asked, _image_files(asked.images, out)
        self.ids = _image_ids(self.paths)
        self.listing: list[dict[str, Any]] = []
        """id, file_name, height and width of the images done, as COCO lists them."""

    @property
    def done(self) -> int:
        return len(self.listing)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        try:
            return index, read_image(self.paths[index])
        except InputError as error:
            return index, str(error)

    def find(self, predictor: Predictor, times: StageTimes | None) -> Iterator[_Found]:
        loader = DataLoader(self, self.asked.batch_size, num_workers=self.asked.num_workers, collate_fn=list)
        for batch in _tracked(loader, times):
            images: dict[int, Tensor] = {}
            for index, image in batch:
                if isinstance(image, str):
                    say(f"left out: {image}")
                else:
                    images[index] = image
            for index, detections in zip(images, predictor(list(images.values())), strict=True):
                image_id, path = self.ids[index], self.paths[index]
                height, width = images[index].shape[-2:]
                entry = {"id": image_id, "file_name": str(path), "height": height, "width": width}
                self.listing.append(entry)
                yield _Found(image_id, image_id, partial(read_image, path), detections)
        if not self.done:
            raise InputError(f"none of the {len(self)} images can be read, as {self.paths[0]}")


class _Listed:
    """The images of an annotation file."""

    def __init__(self, asked: _Asked, trained: Trained) -> None:
        assert asked.annotations is not None
        self.asked, self.done = asked, 0
        folder = _one_folder(asked.images)
        annotations = _read_listed(asked.annotations, folder, trained)
        share = asked.max_unreadable
        allowed = None if share is None else tolerated(share, len(annotations))
        annotations = annotations.found_in(folder, allowed, say)
        self.images = CocoDataset(annotations, folder, as_stored, max_unreadable=allowed, exif=asked.exif)

    def __len__(self) -> int:
        return len(self.images)

    def find(self, predictor: Predictor, times: StageTimes | None) -> Iterator[_Found]:
        loader = DataLoader(
            self.images,
            batch_sampler=ExactShards(len(self), self.asked.batch_size),
            num_workers=self.asked.num_workers,
            collate_fn=partial(collate_scales, scales=predictor.scales),
            pin_memory=predictor.device.type == "cuda",
        )
        annotations = self.images.annotations
        ids = annotations.image_ids.tolist()
        listed = zip(range(len(ids)), ids, map(annotations.written_id, range(len(ids))), strict=True)
        for batches in _tracked(loader, times):
            self.images.note_unreadable(batches[0].unreadable, "listed without boxes", say)
            for found_id, detections in zip(batches[0].image_ids, predictor.detect(batches), strict=True):
                place, image_id, written_id = next(listed)
                if found_id == image_id:
                    self.done += 1
                    yield _Found(image_id, written_id, partial(self.images.picture, place), detections)
                else:  # of the image that takes its place
                    nothing = Detections(*(part[:0] for part in detections))
                    yield _Found(image_id, written_id, None, nothing)


def _data_of(ckpt_path: str) -> CocoDataModule:
    """What the checkpoint was trained with."""
    kept = remembered(ckpt_path).config
    if not kept:
        raise InputError(f"{ckpt_path} does not tell its data: give --images and --annotations")
    parser = Parser(exit_on_error=False)
    parser.add_subclass_arguments(CocoDataModule, "data", fail_untyped=False)
    with only_installed():
        config = parser.parse_object({"data": kept["data"]})
    check_classes(config.as_dict())
    data: CocoDataModule = parser.instantiate(config).data
    data.prepare_data()
    return data


def _select(detector: Detector, selection: Literal["testing", "training"]) -> None:
    if selection == "testing":
        return
    if not isinstance(detector, ProposalNetwork) or detector.finds_objects:
        raise InputError(
            f"selection {selection} is of a ProposalNetwork's proposals, not for a {type(detector).__name__}"
        )
    detector.testing_proposals = detector.training_proposals


def _read_listed(path: Path, folder: Path, trained: Trained) -> Annotations:
    annotations = read_annotations(path, need_objects=False, trust_boxes=True, image_folder=folder)
    known = trained.categories.listed()
    if trained.detector.finds_objects and (difference := known.clash(annotations.categories)):
        raise InputError(f"{path} lists other categories than the checkpoint was trained for: {difference}")
    return annotations


def _one_folder(names: Sequence[str]) -> Path:
    if len(names) != 1 or not Path(names[0]).is_dir():
        raise InputError(f"with annotations, images is the folder of their files, not {', '.join(names)}")
    return Path(names[0])


def _draw(found: Iterable[_Found], folder: Path, names: Categories, threshold: float) -> Iterator[_Found]:
    folder.mkdir(parents=True, exist_ok=True)
    for one in found:
        if one.picture is not None:
            picture = draw(one.picture(), one.detections, names, threshold)
            write_jpeg(picture, str(folder / f"{one.image_id:012d}.jpg"), quality=90)
        yield one


def _results(found: Iterable[_Found], names: Categories) -> Iterator[dict[str, Any]]:
    for _, image_id, _, (boxes, scores, labels) in found:
        # As exact as COCO's own boxes; its server limits the size of a file.
        bbox = box_convert(boxes.double(), "xyxy", "xywh").tolist()
        for box, score, label in zip(bbox, scores.tolist(), labels.tolist(), strict=True):
            yield {
                "image_id": image_id,
                "category_id": names.ids[label - 1],
                "bbox": [round(side, 2) for side in box],
                "score": round(score, 5),
            }


def _write_proposals(path: Path, found: Iterable[_Found], annotations: Path, checkpoint: Path) -> int:
    stamp = Stamp(file_hash(annotations), annotations.name, file_hash(checkpoint), checkpoint.name)
    listed = list(found)
    boxes, scores = [one.detections.boxes for one in listed], [one.detections.scores for one in listed]
    write_proposals(path, [one.image_id for one in listed], boxes, scores, stamp)
    return sum(map(len, scores))


def _tracked(loader: DataLoader[Any], times: StageTimes | None) -> Iterator[Any]:
    for batch in track(loader, "predict", total=len(loader), console=Console(stderr=True)):
        yield batch
        if times is not None:
            times.begin("load")
    if times is not None:
        times.begin("results")


def _image_ids(paths: Sequence[Path]) -> list[int]:
    numbers = [int(path.stem) for path in paths if path.stem.isdecimal()]
    return numbers if len(set(numbers)) == len(paths) else list(range(1, len(paths) + 1))


def _image_files(names: Sequence[str], out: Path) -> list[Path]:
    """The files of these names, and the images in folders of these names, but for the folder written to."""
    files: list[Path] = []
    passed: Counter[str] = Counter()
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = sorted(_below(path, out.resolve()))
            images = [file for file in inside if not file.name.startswith(".") and is_image(file)]
            passed += Counter(_kind(file) for file in {*inside}.difference(images))
            files += images
        elif path.is_file():
            files.append(path)
        else:
            raise InputError(f"{path} is neither an image nor a folder")
    kinds = ", ".join(f"{number:,} {kind}" for kind, number in passed.most_common())
    if not files:
        raise InputError(f"{', '.join(names)}: no images" + (f"; there are {kinds}" if kinds else ""))
    if kinds:
        say(f"passed over, not being images: {kinds}")
    return files


def _below(folder: Path, out: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = [one for one in folders if Path(place, one).resolve() != out]
        yield from (Path(place, name) for name in names)


def _kind(file: Path) -> str:
    return "hidden" if file.name.startswith(".") else file.suffix.lower() or "without an ending"
