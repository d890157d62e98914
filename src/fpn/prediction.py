"""What a `Predictor` finds in an image, with what the labels mean."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from fpn.data.decoding import read_image
from fpn.data.results import results_of
from fpn.errors import InputError
from fpn.types import Categories, Detections


class Prediction(Detections):
    """Detections that know their image and categories: `boxes, scores, labels = prediction`."""

    categories: Categories | None
    """What labels mean; None for a detector that does not tell."""
    image: Tensor | str | Path
    """The file, or the image, (3, H, W) uint8 or floating point in [0, 1], which stays in memory."""

    @classmethod
    def of(cls, found: Detections, categories: Categories | None, image: Tensor | str | Path) -> "Prediction":
        """One of detections; the arguments are its attributes."""
        prediction = cls(*found)
        prediction.categories, prediction.image = categories, image
        return prediction

    def _replace(self, **parts: Any) -> "Prediction":
        return Prediction.of(super()._replace(**parts), self.categories, self.image)

    @property
    def names(self) -> list[str]:
        """(D,) the name of each box's category; its label where there are no names."""
        known = self._categories().names
        return [known[label - 1] for label in self.labels.tolist()]

    def above(self, score: float) -> "Prediction":
        """What has this score, or a better one."""
        kept = self.scores >= score
        return self._replace(boxes=self.boxes[kept], scores=self.scores[kept], labels=self.labels[kept])

    def plot(self, score_threshold: float = 0.5) -> Image.Image:
        """The image with the boxes of this score, and of a better one, drawn."""
        from fpn.pictures import draw  # whose letters are those of matplotlib, slow to import

        image = self.image if isinstance(self.image, Tensor) else read_image(Path(self.image))
        if image.is_floating_point():
            image = (image * 255).round().clamp(0, 255).byte()
        drawn = draw(image, self, self._categories(), score_threshold)
        return Image.fromarray(drawn.permute(1, 2, 0).numpy())

    def to_coco(self, image_id: int | str = 1) -> list[dict[str, Any]]:
        """Entries of a COCO results file: image_id, category_id, bbox as x, y, width, height, and score."""
        return [*results_of(image_id, self, self._categories().ids)]

    def to_supervision(self) -> Any:
        """A `supervision.Detections`, its classes counted from 0, with names as `data["class_name"]`.

        Raises:
            InputError: the package is not installed.
        """
        try:
            from supervision import Detections as Theirs  # type: ignore[import-not-found]
        except ImportError:
            raise InputError("supervision is not installed: pip install supervision") from None
        boxes, scores, labels = (part.numpy() for part in self)
        names = {"class_name": np.array(self.names, dtype=np.str_)}
        return Theirs(xyxy=boxes, confidence=scores, class_id=labels - 1, data=names)

    def _categories(self) -> Categories:
        if self.categories is not None:
            return self.categories
        labels = range(1, int(self.labels.max()) + 1 if len(self.labels) else 1)
        return Categories((*labels,), (*map(str, labels),))
