"""`fpn predict`: images in, COCO results, pictures or a proposal file out."""

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from hashlib import sha256
from multiprocessing import parent_process
from operator import itemgetter
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.multiprocessing.spawn import ProcessExitedException, spawn
from torch.utils.data import Dataset
from torchvision.io import write_jpeg

from fpn.allocator import keep_freed_memory
from fpn.checkpoints import Trained, load, remembered
from fpn.console import mistakes, say
from fpn.data.datamodule import CocoDataModule
from fpn.data.loader import Loader
from fpn.data.proposals import Stamp, file_hash, write_counted
from fpn.data.results import RESULTS, Listed, write_predictions
from fpn.described import remade
from fpn.devices import device_named
from fpn.errors import InputError
from fpn.importing import asked_for, import_asked
from fpn.lit.to_predict import Files, Images, OfAnnotations, picture_names
from fpn.lit.unfinished import Recorded, Recorder, own_folder
from fpn.models.detectors import ProposalNetwork
from fpn.pictures import draw
from fpn.predictor import Predictor
from fpn.settings import NonNegativeInt, PositiveFloat, PositiveInt
from fpn.stage_times import StageTimes
from fpn.types import Batch, Categories, Detections, Precision

_PATIENCE = 600
"""Seconds that a batch may take to come from a worker."""


def predict(
    ckpt_path: str,
    images: str | list[str] | None = None,
    annotations: str | None = None,
    split: Literal["train", "val", "test"] | None = None,
    root: str | None = None,
    out: str | None = None,
    score_threshold: float = 0.5,
    pictures: bool | None = None,
    selection: Literal["testing", "training"] = "testing",
    scales: list[PositiveFloat] | None = None,
    batch_size: PositiveInt | None = None,
    num_workers: NonNegativeInt | None = None,
    device: str | None = None,
    devices: PositiveInt = 1,
    precision: Precision = "32-true",
    stage_times: bool = False,
) -> None:
    """Find objects in images with a trained detector.

    examples:
      a folder of photos
        fpn predict --ckpt_path best.ckpt --images photos/
      two of them, with a detector that torchvision publishes
        fpn predict --ckpt_path COCO_V1 --images street.jpg house.jpg
      the images that a COCO file lists, under its ids, as COCO's server takes the results
        fpn predict --ckpt_path best.ckpt --images val2017/ --annotations instances_val2017.json
      those that the checkpoint was validated on, with pictures
        fpn predict --ckpt_path best.ckpt --split val --pictures

    Writes to a folder of its own:
      predictions.json    a COCO file of images, categories by name, and boxes with scores
      detections.json     COCO results
      predictions.csv     a line for each box
      pictures/           the boxes drawn, in files named after the images
    A ProposalNetwork writes proposals.safetensors instead, where --annotations or --split is given.

    After an interruption the same command goes on. An image that cannot be read is named and left
    out; with --annotations it is an error. Photos are taken as viewers show them.

    Args:
        ckpt_path: a checkpoint written by `fpn fit`, a file of torchvision's or Detectron2's, or the name of
            weights that torchvision publishes, as COCO_V1.
        images: image files and folders; with annotations, where their file names start.
        annotations: a COCO file, with or without annotated objects.
        split: in place of images and annotations, those that the checkpoint was trained with.
        root: of a split, the folder of the data set, where it is no longer where it was in training.
        out: the folder to write to; by default predictions, or predictions_2 and so on.
        score_threshold: only boxes with this score are drawn.
        pictures: draw the boxes; by default only without annotations.
        selection: how many proposals a ProposalNetwork makes: its testing_proposals or training_proposals.
        scales: search each image at several sizes, as [0.5, 1, 2] times that of training.
        batch_size: images at a time; by default 1, of a split as many as in validation.
        num_workers: processes that load images, 0 for none; by default 0, of a split as in training.
        device: as cpu or cuda:1; by default a GPU where there is one.
        devices: processes that share the images, on as many GPUs or all on the CPU.
        precision: of the network's layers. Boxes are float32 in any.
        stage_times: print at the end how long each stage took.
    """
    if stage_times and devices > 1:
        raise InputError("stage_times are those of one process: leave out devices")
    trained = load(ckpt_path)
    source: Images
    if split is not None:
        if images is not None or annotations is not None:
            raise InputError(f"split {split} stands for images and annotations: give the one or the others")
        data = _data_of(ckpt_path, root)
        unreadable = data.max_unreadable if split == "train" else None
        source = OfAnnotations(trained, *data.source(split), unreadable)
        batch_size = batch_size or data.eval_batch_size
        num_workers = data.num_workers if num_workers is None else num_workers
    elif images is None:
        raise InputError("fpn predict needs --images, or --split for those of the checkpoint's own data")
    elif root is not None:
        raise InputError("root is of a split: images is given where it is")
    elif annotations is not None:
        source = OfAnnotations(trained, Path(annotations), _folder(images))
    else:
        source = Files([images] if isinstance(images, str) else images)
    batch_size = batch_size or 1
    number = len(source.names)
    drawn = pictures or (pictures is None and isinstance(source, Files))
    work = _Work(
        ckpt_path,
        source,
        batch_size,
        num_workers or 0,
        _devices(device, devices),
        selection,
        scales or [],
        precision,
        picture_names(source.names.tolist()) if drawn else None,
        score_threshold,
    )
    # Of several processes each makes its own: what is wrong with it is told once, here.
    predictor = work.predictor(trained, work.devices[0] if devices == 1 else "cpu")
    settings = {
        "checkpoint": file_hash(ckpt_path) if Path(ckpt_path).exists() else ckpt_path,
        "images": source.about,
        "files": sha256("\n".join(source.names.tolist()).encode()).hexdigest(),
        "pictures": score_threshold if drawn else None,
        "options": [selection, scales, precision, batch_size],
    }
    times = StageTimes(predictor.detector) if stage_times else None
    with own_folder(out, settings) as kept, times or nullcontext():
        with Recorded(kept, number) as recorded:
            done = recorded.done
        if done.any():
            say(f"going on in {kept.parent}: {done.sum():,} of {number:,} images are done")
        left = np.unique(np.flatnonzero(~done) // batch_size)  # the numbers of batches
        if devices == 1:
            work.do(kept, left, predictor, trained.categories, times)
        else:
            _share_out(work, kept, left)
        with Recorded(kept, number) as recorded:
            source.check(np.flatnonzero(~recorded.done).tolist())
            written = _write(kept.parent, source, recorded, trained, Path(ckpt_path))
    written += ["pictures"] if drawn else []
    say(
        f"{recorded.counts.sum():,} boxes in {recorded.done.sum():,} of {number:,} images; written to"
        f" {kept.parent}: {', '.join(written)}"
    )
    if times is not None:
        Console().print(times.table())


def _folder(images: str | list[str]) -> Path:
    """That of an annotation file's images."""
    names = [images] if isinstance(images, str) else images
    if len(names) != 1 or not Path(names[0]).is_dir():
        raise InputError(f"with annotations, images is the folder of their files, not {', '.join(names)}")
    return Path(names[0])


class _Given:
    """Takes data as the command line does."""

    def __init__(self, data: CocoDataModule) -> None:
        self.data = data


def _data_of(ckpt_path: str, root: str | None) -> CocoDataModule:
    """What the checkpoint was trained with, in the folder where that is now."""
    kept = remembered(ckpt_path).config
    if not kept:
        raise InputError(f"{ckpt_path} does not tell its data: give --images and --annotations")
    if root is not None:
        arguments = kept["data"]["init_args"]
        arguments["root" if "root" in arguments else "folder"] = root
    data: CocoDataModule = remade(_Given, {"data": kept["data"]}, ckpt_path)["data"]
    data.prepare_data()
    return data


@dataclass(frozen=True)
class _Work:
    """What a process has to know to look at images."""

    ckpt_path: str
    images: Images
    batch_size: int
    num_workers: int
    devices: list[str]
    """Of each process."""
    selection: Literal["testing", "training"]
    scales: Sequence[float]
    precision: Precision
    pictures: list[str] | None
    """File names, where pictures are to be drawn."""
    score_threshold: float

    def predictor(self, trained: Trained, device: str) -> Predictor:
        """What looks at them."""
        detector = trained.detector
        if self.selection == "training":
            if not isinstance(detector, ProposalNetwork) or detector.finds_objects:
                name = type(detector).__name__
                raise InputError(f"selection training is of a ProposalNetwork's proposals, not for a {name}")
            detector.testing_proposals = detector.training_proposals
        return Predictor.of(trained, device, self.scales, self.precision)

    def do(
        self,
        kept: Path,
        batches: NDArray[np.int64],
        predictor: Predictor,
        categories: Categories,
        times: StageTimes | None = None,
        title: str = "predict",
    ) -> None:
        """Keep what is found in the images of batches of these numbers; no title, no progress bar."""
        loaded = _Batches(self.images, self.batch_size, predictor.prepare)
        loader = Loader(
            loaded,
            [[number] for number in batches.tolist()],
            itemgetter(0),
            name=lambda number: ", ".join(self.images.names[[*loaded.places(number)]]),
            workers=self.num_workers,
            patience=_PATIENCE,
            on_wait=lambda seconds: _end_with_parent(),
            persistent_workers=False,
            pin_memory=predictor.device.type == "cuda",
        )
        console = Console(stderr=True, quiet=not title)
        # In memory are the batches that the loader makes ahead, and nothing of what was found.
        with Recorder(kept) as recorder:
            for places, unreadable, prepared in track(loader, title, total=len(loader), console=console):
                self.images.note(unreadable)
                if places:
                    found = predictor.detect(prepared)
                    self._draw(kept.parent / "pictures", zip(places, found, strict=True), categories)
                    recorder.add(zip(places, prepared[0].original_sizes, found, strict=True))
                if times is not None:
                    times.begin("load")
                _end_with_parent()
        if times is not None:
            times.begin("results")

    def _draw(self, folder: Path, found: Iterable[tuple[int, Detections]], categories: Categories) -> None:
        if self.pictures is None:
            return
        for place, detections in found:
            path = folder / self.pictures[place]
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = draw(self.images.picture(place), detections, categories, self.score_threshold)
            write_jpeg(picture, str(path), quality=90)


@dataclass(frozen=True)
class _Batches(Dataset[tuple[list[int], list[str], list[Batch]]]):
    """Batches by number: always the same images make one, for one pads another, which moves its boxes."""

    images: Images
    batch_size: int
    prepare: Callable[[Sequence[Tensor]], list[Batch]]

    def places(self, number: int) -> range:
        return range(len(self.images.names))[number * self.batch_size :][: self.batch_size]

    def __getitem__(self, number: int) -> tuple[list[int], list[str], list[Batch]]:
        """Places of images, lines on those that cannot be read, and batches of the others."""
        images, lines = dict[int, Tensor](), list[str]()
        for place in self.places(number):
            try:
                images[place] = self.images.picture(place)
            except InputError as error:
                lines.append(str(error))
        return [*images], lines, self.prepare([*images.values()]) if images else []


def _devices(device: str | None, number: int) -> list[str]:
    """Those of so many processes."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if number == 1 or device == "cpu":
        return [device] * number
    if ":" in device:
        raise InputError(f"device {device} is one, not {number}: give {device.partition(':')[0]}")
    names = [f"{device}:{index}" for index in range(number)]
    device_named(names[-1])
    return names


def _share_out(work: _Work, kept: Path, batches: NDArray[np.int64]) -> None:
    """Have processes look at the images of these batches; each tells what goes wrong in it."""
    world = len(work.devices)
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # of the others, which it ends
    try:
        spawn(_share, (work, kept, batches), world)
    except ProcessExitedException as error:
        if error.signal_name is None:
            sys.exit(error.exit_code)
        raise InputError(
            f"one of {world} processes was ended by {error.signal_name}; the same command goes on"
        ) from None


def _share(rank: int, work: _Work, kept: Path, batches: NDArray[np.int64]) -> None:
    """What one of several processes does."""
    with mistakes("fpn"):
        keep_freed_memory()
        import_asked(asked_for())
        world = len(work.devices)
        torch.set_num_threads(max(1, torch.get_num_threads() // world))
        trained = load(work.ckpt_path)
        predictor = work.predictor(trained, work.devices[rank])
        title = "" if rank else f"predict, process 1 of {world}"
        try:
            work.do(kept, batches[rank::world], predictor, trained.categories, title=title)
        except KeyboardInterrupt:
            sys.exit(130)  # which torch would take for a good end


def _end_with_parent() -> None:
    """Leave where the process that has started this one is no more."""
    parent = parent_process()
    if parent is not None and not parent.is_alive():
        sys.exit(1)


def _write(folder: Path, source: Images, recorded: Recorded, trained: Trained, checkpoint: Path) -> list[str]:
    """Write the results; their names."""
    if isinstance(source, OfAnnotations) and not trained.detector.finds_objects:
        of = source.images.annotations
        stamp = Stamp(file_hash(of.path), of.path.name, file_hash(checkpoint), checkpoint.name)
        proposals = ((found.boxes, found.scores) for found in map(recorded.__getitem__, range(len(of))))
        path = folder / "proposals.safetensors"
        write_counted(path, of.image_ids.tolist(), recorded.counts.tolist(), proposals, stamp)
        return [path.name]

    def listed() -> Iterator[tuple[Listed, Detections]]:
        for place, (done, size) in enumerate(zip(recorded.done, recorded.sizes, strict=True)):
            if image := source.listed(place, (int(size[0]), int(size[1])) if done else None):
                yield image, recorded[place]

    write_predictions(folder, (image for image, _ in listed()), listed(), trained.categories)
    return [*RESULTS]
