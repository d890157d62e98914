"""Data for Lightning: sets, samplers and loaders for any number of processes.

The samplers shard by themselves and the loaders are never rebuilt, so the Trainer needs
`use_distributed_sampler=False`; two processes that both saw all images would otherwise go unnoticed.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from fpn.data.coco import (
    Annotations,
    CocoDataset,
    labels_as_ids,
    read_annotations,
    read_categories,
    tolerated,
)
from fpn.data.coco_file import Crowds
from fpn.data.image_files import turned_line
from fpn.data.layouts import Splits
from fpn.data.loader import AHEAD, Batches, Loader, TrainLoader, room_told
from fpn.data.options import ImageOptions, Split
from fpn.data.proposals import Proposals
from fpn.data.samplers import AspectRatioBatches, ExactShards, picks_of
from fpn.data.shapes import SCENES, Scene, generate_shapes
from fpn.data.transforms import (
    EvalTransform,
    Sample,
    Transform,
    as_stored,
    collate,
    collate_scales,
    normalise,
)
from fpn.described import Described, remade
from fpn.errors import InputError
from fpn.lightning_private import batches_of_epoch, shards_again
from fpn.settings import NonNegativeInt, PositiveInt, Share
from fpn.types import Batch, Categories
from fpn.weights import read_checkpoint

_STAGES = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ()}


class OfCheckpoint(Described):
    """What a checkpoint of Lightning's can tell: a module, or its data."""

    def save_hyperparameters(self, *args: Any, **options: Any) -> None:
        """Lightning's, of values by name. Arguments are told already, a subclass's too, in plain values."""
        if args and not isinstance(args[0], str):
            super().save_hyperparameters(*args, **options)  # type: ignore[misc]

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """The one of a checkpoint, trained by the command line or from Python. No code in it is run.

        Args:
            checkpoint_path: the file.
            map_location: the device to put a module on; by default the CPU.
            hparams_file: not needed, as the checkpoint tells what it was made with.
            strict: every weight has to fit, whatever is given.
            weights_only: only they are read, whatever is given.
            **kwargs: take the place of the arguments it was made with.

        Raises:
            InputError: no such file, it does not fit, or does not tell one of its arguments.
        """
        checkpoint, path = read_checkpoint(checkpoint_path), str(checkpoint_path)
        told = cls._told(checkpoint, path, kwargs)
        own = {name: value for name, value in told.items() if name not in kwargs}
        made: Any = cls(**remade(cls, own, path, kwargs), **kwargs)
        made.save_hyperparameters(own, logger=False)  # its own checkpoints tell the same
        return cast(Self, made._with_weights(checkpoint, map_location))

    @classmethod
    def _told(cls, checkpoint: Mapping[str, Any], path: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Its arguments in plain values, all but those that are given."""
        raise NotImplementedError

    def _with_weights(self, checkpoint: dict[str, Any], device: Any) -> Self:
        return self


class CocoDataModule(OfCheckpoint, LightningDataModule):  # type: ignore[misc]
    """Images and annotations in COCO's format.

    Args:
        root: Folder of the data set, in a layout that is known: it holds what the splits do not name.
        train: Training images. Default: those that the layout of root has.
        val: Validation images. Default: those that the layout of root has.
        test: Test images. Default: those that the layout of root has, or else those of validation.
        val_share: Share of the training images that is set aside for validation, where there are no others.
        images: How images are resized, normalised and mirrored.
        batch_size: Training images per process and step.
        eval_batch_size: Validation and test images per process and step.
        num_workers: Processes that load images, for each process that trains; 0 loads in that process itself.
        load_timeout: Seconds that a batch may take to come from those processes. A run that waits longer
            ends and names its files; 0 waits for ever.
        keep_empty_images: Train on images without objects too; otherwise they are left out and counted.
        max_unreadable: Share of the training images whose files may turn out unreadable: missing,
            broken, or of another size than stated. Another image takes the place of each, which is
            named in a warning; a file more ends the run, as does the first where the share is below
            one image. A resumed run counts anew. Images to score must all be readable.
        repeat_threshold: Images of classes that fewer than this share of the training images have come
            several times in an epoch, the more often the rarer (LVIS's repeat factors); 0 repeats none.
        label_gaps: Number the classes by category id, with classes of no object in the gaps, as
            torchvision's references do: 90 for COCO's 80.
        trust_boxes: Take boxes as they are written also where so many are empty, smaller than a pixel or
            past their image that they look like another convention's.
        crowds: What annotations of iscrowd 1 are: regions of many objects, as in COCO, or objects, as
            brush tools write each of theirs.
        seed: Determines the order of the training images and what is drawn for each.
    """

    takes_settings_over = True
    """In a configuration, from the data module whose place it takes."""
    while_waiting: Callable[[float], None] | None = None
    """Called as long as a batch does not come, with the seconds of the wait, which ends by what it raises."""

    def __init__(
        self,
        root: str = "datasets/coco",
        train: Split = Split(),
        val: Split = Split(),
        test: Split = Split(),
        val_share: Share | None = None,
        images: ImageOptions = ImageOptions(),
        batch_size: PositiveInt = 2,
        eval_batch_size: PositiveInt = 1,
        num_workers: NonNegativeInt = 4,
        load_timeout: NonNegativeInt = 600,
        keep_empty_images: bool = False,
        max_unreadable: Share = 0.001,
        repeat_threshold: Share = 0.0,
        label_gaps: bool = False,
        trust_boxes: bool = False,
        crowds: Crowds = "regions",
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(self.made_of, logger=False)
        self.image_settings = images.settings
        self._images, self.exif = images, images.exif
        # Plain numbers, for a checkpoint that keeps one of NumPy's could not be read back.
        self.batch_size, self.seed = int(batch_size), int(seed)
        self.eval_batch_size, self.num_workers = eval_batch_size, num_workers
        self.load_timeout = load_timeout
        self.keep_empty_images, self.label_gaps = keep_empty_images, label_gaps
        self.repeat_threshold = repeat_threshold
        self.max_unreadable, self.trust_boxes = max_unreadable, trust_boxes
        self.crowds: Crowds = crowds
        self._given = {"train": train, "val": val, "test": test}
        self._splits = Splits(Path(root), self._given, val_share)
        self._read: dict[Path, Annotations] = {}
        self._datasets: dict[str, CocoDataset] = {}
        self._listed: Categories | None = None

    @classmethod
    def _told(cls, checkpoint: Mapping[str, Any], path: str, given: Mapping[str, Any]) -> dict[str, Any]:
        kept = checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_KEY)
        untold = checkpoint.get("fpn", {}).get("untold_of_data", ())
        if kept is None or (untold := [name for name in untold if name.partition(".")[0] not in given]):
            raise InputError(
                f"{path} does not tell {', '.join(untold) or 'anything'} of its data: give it here"
            )
        return dict(kept)

    @property
    def categories(self) -> Categories:
        """The classes: those of the training annotations, or of the others where there are none.

        Raises:
            InputError: if neither file can be read.
        """
        known = self._classes
        return labels_as_ids(known, self.source(self._reference)[0]) if self.label_gaps else known

    def source(self, split: str) -> tuple[Path, Path]:
        """The annotation file and the image folder of a split: train, val or test.

        Raises:
            InputError: neither is it given nor has the root a layout with such a split.
        """
        given = self._splits[split]
        return Path(str(given.annotations)), Path(str(given.images))

    @property
    def reads_proposals(self) -> bool:
        """Whether a proposal file is given for any split."""
        return any(split.proposals is not None for split in self._given.values())

    @property
    def train_images(self) -> int:
        """How many images a pass over the training images has, once they are read."""
        return picks_of(self._repeats)

    @property
    def _repeats(self) -> NDArray[np.float64]:
        return self._datasets["train"].annotations.repeat_factors(self.repeat_threshold)

    def setup(self, stage: str) -> None:
        """Read what a stage needs: "fit", "validate" or "test".

        Raises:
            InputError: if a file or folder is missing or wrong, or more image files than may be, or two
                splits list other categories; if no training image has an object; if proposals are of other
                annotations, or given for only one of the splits of "fit".
        """
        without = [split for split in _STAGES[stage] if self._splits[split].proposals is None]
        if 0 < len(without) < len(_STAGES[stage]):
            raise InputError(
                f"data.{without[0]}.proposals is not given: a run that trains and validates needs both "
                "data.train.proposals and data.val.proposals, or neither"
            )
        missing = [split for split in _STAGES[stage] if split not in self._datasets]
        counts = [f"{split} {self._annotations(split).counted}" for split in missing]
        if missing and (line := self._splits.told(counts)):
            rank_zero_info(line)
        for split in missing:
            self._datasets[split] = self._dataset(split)
        if missing and (line := room_told(self._under_way(stage))):
            rank_zero_warn(line)

    def _called(self, split: str) -> str:
        """A split's name for its user, whose test may be on no other images than validation is."""
        own = split != "test" or self._given["test"].annotations
        same = not own and self.source("test") == self.source("val")
        return f"{split} (on the validation images)" if same else split

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
        batches = AspectRatioBatches(
            widths / heights,
            self.batch_size,
            *self._place(),
            seed=self.seed,
            reshuffle=not overfits,
            repeats=self._repeats,
        )
        return TrainLoader(dataset, batches, self._position, name=dataset.file_of, **self._loading())

    def on_after_batch_transfer(self, batch: Batches, dataloader_idx: int) -> Batches:
        """Normalise what has come to the device as bytes."""
        if isinstance(batch, Batch):
            return normalise(batch, self.image_settings)
        return [normalise(one, scale) for one, scale in zip(batch, self._images.testing, strict=True)]

    def val_dataloader(self) -> DataLoader[Sample]:
        """The validation images of this process, each once."""
        return self._evaluation("val")

    def test_dataloader(self) -> DataLoader[Sample]:
        """The test images of this process, each once.

        With `images.test_scales`, what it yields is not a batch but a list of batches of the same
        images, one for each scale.
        """
        return self._evaluation("test")

    @property
    def _reference(self) -> str:
        for split in ("train", "val", "test"):
            with suppress(InputError):
                if self.source(split)[0].is_file():
                    return split
        return "val"

    @property
    def _classes(self) -> Categories:
        if self._listed is None:
            path, _ = self.source(self._reference)
            if path not in self._read and path.is_file():
                self._listed = read_categories(path)  # COCO's training file is large
            self._listed = self._listed or self._annotations(self._reference).categories
        return self._listed

    def _annotations(self, split: str) -> Annotations:
        path, folder = self.source(split)
        if path not in self._read:
            _refuse_absent(path.is_file(), path, "annotation file", f"{split}.annotations")
            self._read[path] = read_annotations(
                path, trust_boxes=self.trust_boxes, image_folder=folder, crowds=self.crowds
            )
        return self._read[path]

    def _dataset(self, split: str) -> CocoDataset:
        annotations, (_, folder) = self._annotations(split), self.source(split)
        annotations = annotations.classed_as(self._classes, self.source(self._reference)[0])
        if self.label_gaps:
            annotations = annotations.labelled_by_id()
        _refuse_absent(folder.is_dir(), folder, "image folder", f"{split}.images")
        transform: Transform = EvalTransform(self.image_settings)
        if split == "test" and self._images.test_scales:
            transform = as_stored
        without, fate, allowed = int((~annotations.has_objects()).sum()), "kept", None
        if split == "train":
            transform = self._images.training
            if not self.keep_empty_images:
                annotations, fate = annotations.with_objects(), "left out"
            allowed = tolerated(self.max_unreadable, len(annotations))
            if (most := annotations.repeat_factors(self.repeat_threshold).max()) > 1:
                rank_zero_info(
                    f"{split}: images of rare classes come more often, up to {most:.3g} times an epoch"
                )
        annotations = annotations.found_in(folder, allowed, lambda line: rank_zero_info(f"{split}: {line}"))
        if line := turned_line(annotations, folder, self.exif):
            rank_zero_info(f"{split}: {line}")
        proposals = None
        if path := self._splits[split].proposals:
            proposals = Proposals(path)
            proposals.check(annotations.path, annotations.image_ids)
        rank_zero_info(
            f"{self._called(split)}: {annotations.counted}, {int(annotations.crowd.sum()):,} crowd regions;"
            f" {without:,} images without objects {fate}, {annotations.degenerate:,} degenerate boxes dropped"
            + (f"; proposals of {path}" if path else "")
        )
        for line in annotations.told:
            rank_zero_info(f"{split}: {annotations.path}: {line}")
        if split != "train" and annotations.crowd.all():
            rank_zero_warn(
                f"{annotations.path} has no object to find: there will be no score, and no best checkpoint; "
                f"data.{split}.annotations names another file"
            )
        return CocoDataset(annotations, folder, transform, proposals, allowed, self.exif)

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
            loading["collate"] = partial(collate_scales, scales=self._images.testing)
        shard = ExactShards(len(dataset), self.eval_batch_size, rank, world_size)
        return Loader(dataset, shard, name=dataset.file_of, **loading)

    def _loading(self) -> dict[str, Any]:
        return {
            "collate": partial(collate, settings=self.image_settings),
            "workers": self.num_workers,
            "patience": self.load_timeout,
            "on_wait": self._on_wait,
        }

    def _on_wait(self, seconds: float) -> None:
        if self.while_waiting is not None:
            self.while_waiting(seconds)

    def _under_way(self, stage: str) -> int:
        """Bytes of the images that all workers of this machine together may have loaded ahead."""
        processes = self.trainer.num_devices if self.trainer is not None else 1
        images = {
            "train": self.batch_size * max(scale.most_bytes for scale in self._images.training_scales),
            "val": self.eval_batch_size * self.image_settings.most_bytes,
            "test": self.eval_batch_size
            * sum(scale.most_bytes for scale in self._images.testing or [self.image_settings]),
        }
        return AHEAD * self.num_workers * processes * sum(images[split] for split in _STAGES[stage])

    def _place(self) -> tuple[int, int]:
        """Rank and world size."""
        if self.trainer is None:
            return 0, 1
        if shards_again(self.trainer):
            raise InputError("set trainer.use_distributed_sampler to false: the data module shards by itself")
        return self.trainer.global_rank, self.trainer.world_size

    def _position(self) -> tuple[int, int]:
        """The epoch, and how many of its batches are done."""
        if self.trainer is None:
            return 0, 0
        return self.trainer.current_epoch, batches_of_epoch(self.trainer)


def _refuse_absent(there: bool, path: Path, what: str, option: str) -> None:
    if not there:
        raise InputError(f"{path}: no such {what}; data.root or data.{option} names it")


class ShapesDataModule(CocoDataModule):
    """The embedded data set: pictures of shapes, drawn on first use.

    No argument shares its name but not its default with one of `CocoDataModule`: where this class takes the
    other's place in a configuration, what has the same name keeps its value.

    Args:
        folder: Folder of the data set; it is made there when missing.
        train_count: Training images to draw.
        val_count: Validation images to draw.
        drawing_seed: Determines what is drawn.
        long_side: Pixels of the long side of what is drawn.
        scene: What is drawn: plain, or framed, where a shape is an object only if it lies within a frame.
        images: How images are resized, normalised and mirrored. Without short_side their long side becomes
            `long_side`, of training images times one of train_scales.
        **kwargs: Arguments of `CocoDataModule` about batches and loading.
    """

    def __init__(
        self,
        folder: str = "datasets/shapes",
        train_count: PositiveInt = 2000,
        val_count: PositiveInt = 200,
        drawing_seed: NonNegativeInt = 0,
        long_side: PositiveInt = 256,
        scene: Scene = "plain",
        images: ImageOptions = ImageOptions(),
        **kwargs: Any,
    ) -> None:
        if images.short_side is None:
            # The long side decides the size of these images, so that it is what has to change with a scale.
            side = images.max_side or long_side
            images = replace(images, short_side=long_side, max_side=side, scale_max_side=True)
        super().__init__(root=folder, images=images, **kwargs)
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
    def _classes(self) -> Categories:
        """Known before any is drawn."""
        return self._drawn

    def prepare_data(self) -> None:
        """Draw the images unless they are there."""
        if not Path(self._draw.args[0]).exists():
            rank_zero_info(f"drawing the shapes into {self._draw.args[0]}")
        self._draw()
