"""Data for Lightning: sets, samplers and loaders for any number of processes.

The samplers shard by themselves and the loaders are never rebuilt, so the Trainer needs
`use_distributed_sampler=False`; two processes that both saw all images would otherwise go unnoticed.
"""

import math
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader

from fpn.data.coco import Annotations, CocoDataset, read_annotations, tolerated
from fpn.data.loader import TrainLoader, outlive_signals
from fpn.data.proposals import Proposals
from fpn.data.samplers import AspectRatioBatches, ExactShards
from fpn.data.shapes import SCENES, Scene, generate_shapes
from fpn.data.transforms import (
    EvalTransform,
    ImageSettings,
    Rounding,
    Sample,
    TrainTransform,
    Transform,
    as_stored,
    collate,
    collate_scales,
    round_half_up,
)
from fpn.errors import InputError
from fpn.types import Categories

_INSTANCES = "annotations/instances_{}2017.json"
_STAGES = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ()}


class CocoDataModule(LightningDataModule):
    """Images and annotations in COCO's format.

    Args:
        root: Folder of the data set, laid out as COCO 2017 is; the six paths below default to what it holds.
        train_images: Folder of the training images. Default: train2017 in root.
        train_annotations: Their annotations. Default: annotations/instances_train2017.json in root.
        val_images: Folder of the validation images. Default: val2017 in root.
        val_annotations: Their annotations. Default: annotations/instances_val2017.json in root.
        test_images: Folder of the test images. Default: the validation images.
        test_annotations: Their annotations. Default: the validation annotations.
        train_proposals: Proposal file of the training images, for a detector that reads one.
            Default: none.
        val_proposals: That of the validation images. Default: none.
        test_proposals: That of the test images. Default: val_proposals, where the annotations are
            the same.
        short_side: Pixels of an image's short side after resizing.
        max_side: Most pixels of an image's long side after resizing; it wins over short_side.
        train_short_sides: Short sides in pixels, one drawn for each training image. Default: short_side.
        size_factor: Multiplies short_side, max_side and train_short_sides; 0.75 makes 600 of 800
            pixels.
        train_size_factors: Factors of the size, one drawn for each training image: they multiply its
            short side and the long side's limit. Default: 1 alone.
        test_size_factors: Factors of the size, at all of which each test image is searched: a
            featurized image pyramid. Default: 1 alone.
        flip_probability: Share of the training images that are mirrored left to right, from 0 to 1.
        antialias: Resize as PIL and Detectron2 do, rather than as torchvision's detection models do.
        rounding: How the sides of a resized image become whole: down as in torchvision, nearest as in
            Detectron2.
        mean: Subtracted from red, green and blue values between 0 and 1.
        std: Divides red, green and blue values once the mean is subtracted.
        batch_size: Training images per process and step.
        eval_batch_size: Validation and test images per process and step.
        num_workers: Processes that load images, for each process that trains; 0 loads in that process itself.
        keep_empty_images: Train on images without objects too; otherwise they are left out and counted.
        max_unreadable: Share of the training images, at least 0 and below 1, whose files may turn out
            unreadable: missing, broken, or of another size than stated. Another image takes the place
            of each, which is named in a warning; a file more ends the run, as does the first where the
            share is below one image. A resumed run counts anew. Images to score must all be readable.
        label_gaps: Number the classes by category id, with classes of no object in the gaps, as
            torchvision's references do: 90 for COCO's 80.
        seed: Determines the order of the training images and what is drawn for each, from 0 upwards.
    """

    def __init__(
        self,
        root: str = "datasets/coco",
        train_images: str | None = None,
        train_annotations: str | None = None,
        val_images: str | None = None,
        val_annotations: str | None = None,
        test_images: str | None = None,
        test_annotations: str | None = None,
        train_proposals: str | None = None,
        val_proposals: str | None = None,
        test_proposals: str | None = None,
        short_side: int = 800,
        max_side: int = 1333,
        train_short_sides: list[int] | None = None,
        size_factor: float = 1.0,
        train_size_factors: list[float] | None = None,
        test_size_factors: list[float] | None = None,
        flip_probability: float = 0.5,
        antialias: bool = False,
        rounding: Rounding = "down",
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
        batch_size: int = 2,
        eval_batch_size: int = 1,
        num_workers: int = 4,
        keep_empty_images: bool = False,
        max_unreadable: float = 0.001,
        label_gaps: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _require(0 < size_factor < math.inf, f"size_factor is a positive number, not {size_factor}")
        sides = [round_half_up(size_factor * s) for s in (short_side, max_side, *(train_short_sides or []))]
        _require(
            min(sides) >= 1,
            f"short_side, max_side and train_short_sides, times size_factor, are pixels, not {min(sides)}",
        )
        for name, factors in (("train", train_size_factors), ("test", test_size_factors)):
            _require(factors != [], f"{name}_size_factors is empty; leave it out for 1 alone")
            least = min(factors or [1.0])
            _require(
                all(map(math.isfinite, factors or [])) and round_half_up(least * min(sides)) >= 1,
                f"{name}_size_factors multiply sides, which stay pixels, so not {least}",
            )
        _require(0 <= flip_probability <= 1, f"flip_probability is a share, not {flip_probability}")
        _require(batch_size >= 1, f"batch_size is {batch_size}, but a batch has an image at least")
        _require(
            eval_batch_size >= 1, f"eval_batch_size is {eval_batch_size}, but a batch has an image at least"
        )
        _require(num_workers >= 0, f"num_workers is {num_workers}; 0 loads without workers")
        _require(0 <= max_unreadable < 1, f"max_unreadable is a share below 1, not {max_unreadable}")
        _require(seed >= 0, f"seed is {seed}, but must not be negative")
        _require(min(std) > 0, f"std divides, so it must be positive, not {min(std)}")

        self.image_settings = ImageSettings(sides[0], sides[1], antialias, mean, std, rounding)
        self.batch_size, self.eval_batch_size, self.num_workers = batch_size, eval_batch_size, num_workers
        self.keep_empty_images, self.label_gaps, self.seed = keep_empty_images, label_gaps, seed
        self.max_unreadable = max_unreadable
        self._train_transform = TrainTransform(
            self.image_settings, tuple(sides[2:]), flip_probability, tuple(train_size_factors or [])
        )
        self._test_scales = [self.image_settings.scaled(factor) for factor in test_size_factors or []]

        folder = Path(root)
        val_folder, val_file = (
            val_images or folder / "val2017",
            val_annotations or folder / _INSTANCES.format("val"),
        )
        self._folders = {
            "train": Path(train_images or folder / "train2017"),
            "val": Path(val_folder),
            "test": Path(test_images or val_folder),
        }
        self._files = {
            "train": Path(train_annotations or folder / _INSTANCES.format("train")),
            "val": Path(val_file),
            "test": Path(test_annotations or val_file),
        }
        if test_proposals is None and self._files["test"] == self._files["val"]:
            test_proposals = val_proposals
        self._proposals = {"train": train_proposals, "val": val_proposals, "test": test_proposals}
        self._read: dict[Path, Annotations] = {}
        self._datasets: dict[str, CocoDataset] = {}

    @property
    def categories(self) -> Categories:
        """The classes: those of the validation annotations, or of the others where there are none.

        Raises:
            InputError: if neither file can be read.
        """
        return self._annotations(self._reference).categories

    def source(self, split: Literal["train", "val", "test"]) -> tuple[Path, Path]:
        """The annotation file and the image folder of a split."""
        return self._files[split], self._folders[split]

    @property
    def val_annotations_path(self) -> Path:
        """What validation is scored against."""
        return self._files["val"]

    @property
    def test_annotations_path(self) -> Path:
        """What testing is scored against."""
        return self._files["test"]

    @property
    def reads_proposals(self) -> bool:
        """Whether a proposal file is given for any split."""
        return any(path is not None for path in self._proposals.values())

    def setup(self, stage: str) -> None:
        """Read what a stage needs: "fit", "validate" or "test".

        Raises:
            InputError: if a file or folder is missing or wrong, or two splits list other
                categories; if no training image has an object; if proposals are of other
                annotations, or given for only one of the splits of "fit".
        """
        without = [split for split in _STAGES[stage] if self._proposals[split] is None]
        if 0 < len(without) < len(_STAGES[stage]):
            raise InputError(
                f"{without[0]}_proposals is not given: a run that trains and validates needs both "
                "train_proposals and val_proposals, or neither"
            )
        for split in _STAGES[stage]:
            if split not in self._datasets:
                self._datasets[split] = self._dataset(split)

    def note_unreadable(self, lines: Iterable[str]) -> None:
        """Name the training images that could not be read, each once, and count them.

        Args:
            lines: `Batch.unreadable` of all processes.

        Raises:
            InputError: so far there are more than max_unreadable allows for.
        """
        self._datasets["train"].note_unreadable(lines, "another image takes its place", rank_zero_warn)

    def train_dataloader(self) -> DataLoader[Sample]:
        """Shuffled batches of this process.

        Raises:
            InputError: if there are too few images for one step.
        """
        dataset = self._datasets["train"]
        heights, widths = dataset.annotations.sizes.T
        overfits = self.trainer is not None and getattr(self.trainer, "overfit_batches", 0) > 0
        try:
            batches = AspectRatioBatches(
                widths / heights, self.batch_size, *self._place(), seed=self.seed, reshuffle=not overfits
            )
        except ValueError as error:
            raise InputError(f"{dataset.annotations.path}: {error}; lower batch_size") from None
        return TrainLoader(dataset, batches, self._position, **self._loading())

    def val_dataloader(self) -> DataLoader[Sample]:
        """The validation images of this process, each once."""
        return self._evaluation("val")

    def test_dataloader(self) -> DataLoader[Sample]:
        """The test images of this process, each once.

        With `test_size_factors`, what it yields is not a batch but a list of batches of the same
        images, one for each of these short sides.
        """
        return self._evaluation("test")

    @property
    def _reference(self) -> str:
        # The validation file is much the smaller one of COCO's.
        return next((split for split in ("val", "train", "test") if self._files[split].is_file()), "val")

    def _annotations(self, split: str) -> Annotations:
        path = self._files[split]
        if path not in self._read:
            if not path.is_file():
                raise InputError(f"{path}: no such annotation file; root or {split}_annotations names it")
            annotations = read_annotations(path)
            self._read[path] = annotations.labelled_by_id() if self.label_gaps else annotations
        return self._read[path]

    def _dataset(self, split: str) -> CocoDataset:
        annotations, folder = self._annotations(split), self._folders[split]
        if annotations.categories != self.categories:
            raise InputError(
                f"{annotations.path} and {self._files[self._reference]} list different categories:"
                f" {annotations.categories.difference(self.categories)}"
            )
        if not folder.is_dir():
            raise InputError(f"{folder}: no such image folder; root or {split}_images names it")
        has_objects = annotations.has_objects()
        transform: Transform = EvalTransform(self.image_settings)
        if split == "test" and self._test_scales:
            transform = as_stored
        fate, allowed = "kept", None
        if split == "train":
            transform = self._train_transform
            if not self.keep_empty_images:
                annotations, fate = annotations.with_objects(), "left out"
            allowed = tolerated(self.max_unreadable, len(annotations))
        proposals, path = None, self._proposals[split]
        if path is not None:
            proposals = Proposals(path)
            proposals.check(annotations.path, annotations.image_ids)
        crowds = int(annotations.crowd.sum())
        rank_zero_info(
            f"{split}: {len(annotations):,} images, {len(annotations.boxes) - crowds:,} objects,"
            f" {crowds:,} crowd regions; {int((~has_objects).sum()):,} images without objects {fate},"
            f" {annotations.degenerate:,} degenerate boxes dropped"
            + (f"; proposals of {path}" if path else "")
        )
        return CocoDataset(annotations, folder, transform, proposals, allowed)

    def _evaluation(self, split: str) -> DataLoader[Sample]:
        dataset = self._datasets[split]
        rank, world_size = self._place()
        if len(dataset) < world_size:
            # Lightning skips the evaluation of a process without batches, and the others would wait for it.
            raise InputError(
                f"{dataset.annotations.path}: {len(dataset)} images cannot be scored by {world_size} "
                "processes; use fewer devices"
            )
        loading = self._loading()
        if dataset.transform is as_stored:
            loading["collate_fn"] = partial(collate_scales, scales=self._test_scales)
        shard = ExactShards(len(dataset), self.eval_batch_size, rank, world_size)
        return DataLoader(dataset, batch_sampler=shard, **loading)

    def _loading(self) -> dict[str, Any]:
        return {
            "num_workers": self.num_workers,
            "worker_init_fn": outlive_signals,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "collate_fn": partial(collate, settings=self.image_settings),
        }

    def _place(self) -> tuple[int, int]:
        """Rank and world size."""
        if self.trainer is None:
            return 0, 1
        connector = self.trainer._accelerator_connector
        if connector.use_distributed_sampler and self.trainer.world_size > 1:
            raise InputError("set trainer.use_distributed_sampler to false: the data module shards by itself")
        return self.trainer.global_rank, self.trainer.world_size

    def _position(self) -> tuple[int, int]:
        """The epoch, and how many of its batches are done."""
        if self.trainer is None:
            return 0, 0
        return self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop.batch_progress.current.ready


class ShapesDataModule(CocoDataModule):
    """The embedded data set: pictures of shapes, drawn on first use, and resized by size factors only.

    No argument shares its name but not its default with one of `CocoDataModule`: where this class takes the
    other's place in a configuration, what has the same name keeps its value.

    Args:
        folder: Folder of the data set; it is made there when missing.
        train_count: Training images to draw.
        val_count: Validation images to draw.
        drawing_seed: Determines what is drawn.
        long_side: Pixels of the long side of what is drawn.
        scene: What is drawn: plain, or framed, where a shape is an object only if it lies within a frame.
        **kwargs: Arguments of `CocoDataModule` about batches and loading.
    """

    def __init__(
        self,
        folder: str = "datasets/shapes",
        train_count: int = 2000,
        val_count: int = 200,
        drawing_seed: int = 0,
        long_side: int = 256,
        scene: Scene = "plain",
        **kwargs: Any,
    ) -> None:
        super().__init__(root=folder, short_side=long_side, max_side=long_side, **kwargs)
        _require(scene in SCENES, f"there is no scene {scene!r} of shapes; there are {', '.join(SCENES)}")
        self._draw = partial(
            generate_shapes,
            Path(folder),
            train=train_count,
            val=val_count,
            seed=drawing_seed,
            long_side=long_side,
            scene=scene,
        )
        self._drawn: Categories = SCENES[scene][0]

    @property
    def categories(self) -> Categories:
        """The classes of shapes, known before any is drawn."""
        return self._drawn.with_gaps() if self.label_gaps else self._drawn

    def prepare_data(self) -> None:
        """Draw the images unless they are there."""
        if not Path(self._draw.args[0]).exists():
            rank_zero_info(f"drawing the shapes into {self._draw.args[0]}")
        self._draw()


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise InputError(message)
