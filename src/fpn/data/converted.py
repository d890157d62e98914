"""A data set of another format on its way into COCO's."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fpn.data.decoding import shown_size
from fpn.data.file_names import few
from fpn.errors import InputError
from fpn.types import Size

MAX_LEFT_OUT = 3, 0.01
"""So many images without a readable size, or the share, may be left out; of more the set is at fault."""


class Converted:
    """Images and objects, numbered from 1 as they are added.

    Args:
        source: what messages call the set.
        names: of the categories, which are numbered from 1 too.
    """

    def __init__(self, source: Path, names: Iterable[str]) -> None:
        self._source, self._names = source, [*names]
        self._images, self._annotations = list[dict[str, Any]](), list[dict[str, Any]]()
        self._unread = list[Path]()

    def add_image(self, path: Path, folder: Path, size: Size | None = None) -> bool:
        """Add an image, and say whether its size is known: else it is left out.

        Args:
            path: its file.
            folder: what its name shall be relative to.
            size: height and width; by default as viewers show it.
        """
        size = size or shown_size(path)
        if size is None:
            self._unread.append(path)
            return False
        name = path.relative_to(folder).as_posix()
        height, width = size
        entry = {"id": len(self._images) + 1, "file_name": name, "width": width, "height": height}
        self._images.append(entry)
        return True

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the image that was added last."""
        return self._images[-1]["width"], self._images[-1]["height"]

    def add_object(self, kind: int, corners: tuple[float, float, float, float], crowd: bool = False) -> None:
        """Add an object of the image that was added last.

        Args:
            kind: the place of its name, from 0.
            corners: left, top, right and bottom in pixels.
            crowd: whether it is a region that is neither object nor background.
        """
        x1, y1, x2, y2 = corners
        box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": int(crowd)}
        place = {"id": len(self._annotations) + 1, "image_id": len(self._images), "category_id": kind + 1}
        self._annotations.append(place | box)

    def content(self) -> tuple[dict[str, Any], list[str]]:
        """All of it in COCO's format, and what there is to say of it.

        Raises:
            InputError: too many images are unreadable, or all.
        """
        unread, every = len(self._unread), len(self._unread) + len(self._images)
        few_may_be, share = MAX_LEFT_OUT
        if not self._images or unread > max(few_may_be, share * every):
            raise InputError(
                f"{self._source}: {unread:,} of {every:,} images cannot be read; save them again, or remove"
                f" them and their annotations: {few(self._unread)}"
            )
        categories = [{"id": place, "name": name} for place, name in enumerate(self._names, 1)]
        content = {"images": self._images, "annotations": self._annotations, "categories": categories}
        note = f"{unread:,} images cannot be read and are left out: {few(self._unread)}"
        return content, [note] if unread else []
