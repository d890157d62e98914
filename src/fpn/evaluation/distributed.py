"""Boxes that come batch by batch on several processes, gathered and scored once.

Symbols: I images seen, D detections of one image, M detections of all of them. Boxes of the states are
float32 (x1, y1, x2, y2) in pixels of the original images, as in `fpn.types.Detections`.

The states are a few flat tensors, gathered once; process 0 scores them and sends the numbers to the others.
"""

import copy
import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from fpn.errors import InputError
from fpn.evaluation.inputs import GroundTruth, Results, read_truth
from fpn.evaluation.metric import Metric, Truth
from fpn.types import Batch, Detections, Inference

_ENTRIES_AT_ONCE = 100_000


class COCOMetric(Metric):
    """Collects boxes on every process and scores them on process 0, over the images seen.

    The annotation file is read at the first `compute`, on process 0 only. `options` are those of every
    torchmetrics Metric.
    """

    higher_is_better = True

    on: Truth
    """What is scored against."""
    images: list[Tensor] | Tensor
    """(I,) ids of the images seen, as numbers, with or without detections."""
    counts: list[Tensor] | Tensor
    """(I,) number of detections of each."""
    boxes: list[Tensor] | Tensor
    """(M, 4)."""
    scores: list[Tensor] | Tensor
    """(M,)."""

    _empties: ClassVar[dict[str, Tensor]] = {
        "images": torch.empty(0, dtype=torch.int64),
        "counts": torch.empty(0, dtype=torch.int64),
        "boxes": torch.empty(0, 4, dtype=torch.float32),
        "scores": torch.empty(0, dtype=torch.float32),
    }

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._truth: GroundTruth | None = None
        self._gathered: tuple[GroundTruth, Results] | None = None
        for name in self._empties:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def score_on(self, truth: Truth) -> None:
        """Remembers what is scored against; an annotation file is read when it is needed."""
        self.on, self._truth = truth, None

    def update(self, batch: Batch, found: Inference) -> None:
        """Adds what was found in a batch."""
        detections = self._scored_boxes(found)
        self._gathered = None
        self._append("images", torch.tensor(batch.image_ids, dtype=torch.int64))
        self._append("counts", torch.tensor([len(one.scores) for one in detections], dtype=torch.int64))
        if detections:
            for name in self._empties.keys() & set(Detections._fields):
                self._append(name, torch.cat([getattr(one, name) for one in detections]))

    def compute(self) -> dict[str, float]:
        """The numbers over the images seen by all processes, the same on every process.

        Raises InputError for annotations that cannot be scored, image ids or categories they do not have;
        RuntimeError for images seen twice, boxes or scores that are not finite, labels out of range.
        """
        if not self._is_synced:
            return self._scored(self._score())
        group: Any = self.process_group or dist.group.WORLD
        message: list[Any] = [None]
        failure: Exception | None = None
        if dist.get_rank(group) == 0:
            try:
                message = [self._score()]
            except Exception as error:
                # The other processes wait for the numbers: without a message they would hang.
                failure = error
                kind = InputError if isinstance(error, InputError) else RuntimeError
                message = [kind(str(error))]
        dist.broadcast_object_list(message, src=dist.get_global_rank(group, 0), group=group)
        failure = failure or (message[0] if isinstance(message[0], Exception) else None)
        if failure is not None:
            # torchmetrics leaves the gathered states in place when `compute` fails, and cannot reset them.
            self.unsync()
            raise failure
        return self._scored(message[0])

    def undefined(self) -> set[str]:
        """Those of which the annotation file has no object."""
        blank = copy.deepcopy(self)
        blank.reset()
        blank._truth = self._read()
        blank._append("images", torch.tensor(blank._truth.image_ids))
        blank._append("counts", torch.zeros(len(blank._truth.image_ids)))
        return {name for name, value in blank._scored(blank._score()).items() if math.isnan(value)}

    def results(self) -> Iterator[dict[str, Any]]:
        """Entries of a COCO results file, by ascending image id: boxes (x, y, width, height) in pixels.

        After `compute`, process 0 has the results of all processes, under the annotation file's own ids;
        otherwise each has its own, under the numbers of images.
        """
        gathered = self._flat() if self._gathered is None else self._gathered[1]
        images = {} if self._truth is None else self._truth.images_as_written
        categories = self._categories_as_written()
        # Part by part: five million entries are 2 GB of Python's objects.
        for start in range(0, len(gathered.scores), _ENTRIES_AT_ONCE):
            columns = (column[start : start + _ENTRIES_AT_ONCE].tolist() for column in gathered)
            for image, category, box, score in zip(*columns, strict=True):
                yield {
                    "image_id": images.get(image, image),
                    "category_id": categories.get(category, category),
                    "bbox": box,
                    "score": score,
                }

    def seen(self) -> tuple[GroundTruth, Results]:
        """Ground truth and results of the images seen: of all processes on process 0, after `compute`."""
        if self._gathered is None:
            image_ids = self._joined("images").tolist()
            if twice := [id_ for id_, times in Counter(image_ids).items() if times > 1]:
                raise RuntimeError(
                    f"{len(twice)} image(s) seen more than once, the first of id {twice[0]}: "
                    "a sampler that repeats images changes the scores"
                )
            self._gathered = self._read().restricted_to(image_ids), self._flat()
        return self._gathered

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gathers the states of all processes, of which some may have seen no image."""
        # For a state without entries torchmetrics gathers a flat float32 tensor, which fits neither (M, 4)
        # boxes nor integers.
        for name, empty in self._empties.items():
            state = getattr(self, name)
            if isinstance(state, list) and not state:
                state.append(empty.to(self.device))
        self._gathered = None
        super().sync(*args, **kwargs)

    def reset(self) -> None:
        """Forgets all images."""
        super().reset()
        self._gathered = None

    @abstractmethod
    def _scored_boxes(self, found: Inference) -> list[Detections]:
        """Those of what was found that are scored."""

    @abstractmethod
    def _score(self) -> Any:
        """What process 0 sends to the others."""

    @abstractmethod
    def _scored(self, scores: Any) -> dict[str, float]:
        """What `compute` gives, from what process 0 sent."""

    @abstractmethod
    def _category_ids(self) -> np.ndarray:
        """(M,) numbers of the annotation file's categories, in the order of the states."""

    def _categories_as_written(self) -> Mapping[int, int | str]:
        """Ids of categories by their numbers, where those are others."""
        return {}

    def _read(self) -> GroundTruth:
        if self._truth is None:
            self._truth = read_truth(self.on.annotations, tell=lambda line: None, crowds=self.on.crowds)
        return self._truth

    def _flat(self) -> Results:
        image_ids = np.repeat(self._joined("images"), self._joined("counts"))
        order = np.argsort(image_ids, kind="stable")
        image_ids = image_ids[order]
        scores = self._joined("scores")[order].astype(np.float64)
        x1, y1, x2, y2 = self._joined("boxes")[order].astype(np.float64).T
        boxes = np.stack((x1, y1, x2 - x1, y2 - y1), axis=1)
        bad = ~(np.isfinite(boxes).all(axis=1) & np.isfinite(scores))
        if bad.any():
            raise RuntimeError(
                f"{bad.sum()} boxes or scores are not finite, the first in image {image_ids[bad][0]}"
            )
        return Results(image_ids, self._category_ids()[order], boxes, scores)

    def _joined(self, name: str) -> np.ndarray:
        state = getattr(self, name)
        if isinstance(state, list):
            state = dim_zero_cat(state) if state else self._empties[name]
        return state.cpu().numpy()

    def _append(self, name: str, values: Tensor) -> None:
        getattr(self, name).append(values.detach().to(self.device, self._empties[name].dtype))
