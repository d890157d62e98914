"""Ground truth and results in flat arrays, checked before any number is computed.

Symbols: I images, B annotated objects, M results (detections or proposals of all images together). Boxes of
files are (x, y, width, height) in pixels of the original images, as in COCO's data format
(cocodataset.org/#format-data, #format-results). Ids are the numbers of `fpn.data.coco_file`: those of the
annotation file wherever they are 64-bit integers.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fpn.data.coco_file import CocoFile, Crowds, read_json
from fpn.data.entries import Entries, places_in
from fpn.data.fields import BOX, NUMBER, identity
from fpn.errors import InputError

AnnotationSource = str | Path | Mapping[str, Any]
ResultSource = str | Path | list[dict[str, Any]]


class Results(NamedTuple):
    """Detections or proposals of many images, in the order of their file."""

    image_ids: np.ndarray
    """(M,) int64."""
    category_ids: np.ndarray
    """(M,) int64; of proposals, which need not name one, any in the order of the ids."""
    boxes: np.ndarray
    """(M, 4) float64 (x, y, width, height) in pixels."""
    scores: np.ndarray
    """(M,) float64."""


class GroundTruth(NamedTuple):
    """What scoring needs of an annotation file; objects in the order of the file."""

    source: str
    """The file's name, for messages."""
    image_ids: np.ndarray
    """(I,) int64, ascending."""
    categories: dict[int, str]
    """Names by ascending id; a name that several categories share is followed by the id."""
    image: np.ndarray
    """(B,) int64, the place of an object's image in `image_ids`."""
    category: np.ndarray
    """(B,) int64, the place of its category in `categories`."""
    boxes: np.ndarray
    """(B, 4) float64 (x, y, width, height) in pixels."""
    areas: np.ndarray
    """(B,) float64, square pixels."""
    crowd: np.ndarray
    """(B,) bool."""
    images_as_written: Mapping[int, int | str] = {}
    """The file's own ids of images, by number, where that is another."""
    categories_as_written: Mapping[int, int | str] = {}
    """Likewise of categories."""

    def restricted_to(self, image_ids: Iterable[int]) -> "GroundTruth":
        """The same ground truth with only these images; InputError where one is not in the file."""
        wanted = np.unique(np.array(list(image_ids), dtype=np.int64))
        if len(unknown := np.setdiff1d(wanted, self.image_ids)):
            raise self.refusal("image ids to score", unknown.tolist(), "images")
        return self.at(np.searchsorted(self.image_ids, wanted))

    def category_numbers(self, ids: Iterable[int | str]) -> list[int | None]:
        """The numbers of categories by the file's own ids; None where one is not in the file."""
        numbers = np.array([*self.categories])
        known = dict(zip(_keys(numbers, self.categories_as_written).tolist(), numbers.tolist(), strict=True))
        return [known.get(identity(id_)) for id_ in ids]

    def refusal(self, what: str, unknown: list[Any], whose: str) -> InputError:
        """Says '3 (5, 8, 9)', or '12 (1, 2, 3, …)': how many, and the first of them."""
        return InputError(
            f"{what}: {_some(unknown)} not in {self.source}; give the annotation file of these {whose}"
        )

    def at(self, places: np.ndarray) -> "GroundTruth":
        """The same ground truth with only the images of these places, ascending."""
        new = np.full(len(self.image_ids), -1)
        new[places] = np.arange(len(places))
        part = self._replace(image_ids=self.image_ids[places], image=new[self.image])
        return part.with_objects(part.image >= 0)

    def with_objects(self, which: np.ndarray) -> "GroundTruth":
        """The same images with these objects, by a mask (B,) or places."""
        names = ("image", "category", "boxes", "areas", "crowd")
        return self._replace(**{name: getattr(self, name)[which] for name in names})


def read_truth(
    annotations: AnnotationSource,
    *,
    tell: Callable[[str], object] = warnings.warn,
    crowds: Crowds = "regions",
) -> GroundTruth:
    """Reads and checks an annotation file, or a dict of the same form, which is left as it is.

    Boxes and areas have to be finite; annotation ids and the names and sizes of images are not used, so
    they may be absent. What takes the place of an area of 0 or less, that of the box, is told in a line.

    Raises InputError for a missing file, one that is not COCO, and entries that cannot be scored.
    """
    file = CocoFile(*_load(annotations, "annotations"), crowds=crowds)
    file.images.refuse("id")
    file.annotations.refuse()
    file.categories.refuse("id", "name")
    file.annotations.refuse(
        *("image_id", "category_id", "bbox", "bbox finite", "iscrowd", "area", "area finite")
    )
    if number := int(file.areas_replaced.sum()):
        tell(f"{file.source}: {number:,} areas are 0 or less: those of the boxes take their place")
    by_id, categories_by_id = np.argsort(file.image_ids), np.argsort(file.category_ids)
    ids, names = (c[categories_by_id].tolist() for c in (file.category_ids, file.category_names))
    times = Counter(names)
    return GroundTruth(
        str(file.source),
        file.image_ids[by_id],
        {id_: f"{name} ({id_})" if times[name] > 1 else name for id_, name in zip(ids, names, strict=True)},
        np.argsort(by_id)[file.image],
        np.argsort(categories_by_id)[file.category],
        file.bbox,
        file.area,
        file.crowd,
        file.listed_images.as_written,
        file.listed_categories.as_written,
    )


def read_results(
    results: ResultSource,
    truth: GroundTruth,
    *,
    with_categories: bool,
    tell: Callable[[str], object] = warnings.warn,
) -> Results:
    """Reads and checks a results file, or a list of the same form, which is left as it is.

    `truth` is the whole annotation file. Without categories (proposals), `category_id` may be absent. Results
    of images or categories that the annotation file does not list are left out, as pycocotools leaves out
    such categories, and counted in a line that goes to `tell`.

    Raises InputError for a missing file, one that is not a list of results, entries that cannot be scored,
    and where all results would be left out.
    """
    source, data = _load(results, "results")
    entries = Entries(source, "results", data)
    given = {"image": entries.keys("image_id")}
    categories = entries.keys("category_id")
    if with_categories:
        given["category"] = categories
    boxes, scores = entries.column("bbox", BOX), entries.column("score", NUMBER)
    entries.refuse(*(f"{key}_id" for key in given), "bbox", "bbox finite", "score", "score finite")
    listed = {
        "image": (truth.image_ids, truth.images_as_written),
        "category": (np.array([*truth.categories], dtype=np.int64), truth.categories_as_written),
    }
    # The order of proposals' categories settles equal scores, be they listed or not.
    numbers = {
        "category": np.unique(categories, return_inverse=True)[1]
        if categories.dtype == np.int64
        else np.zeros(len(entries), dtype=np.int64)
    }
    kept = np.ones(len(entries), dtype=bool)
    for name, keys in given.items():
        known = _keys(*listed[name])
        places = places_in(known, keys)
        numbers[name] = np.append(listed[name][0], 0)[places]
        unlisted = places < 0
        if unlisted.any():
            what, whose = f"{source}: {name} ids", "results"
            ids = list(dict.fromkeys(keys[unlisted].tolist()))
            if unlisted.all():
                raise truth.refusal(what, ids, whose)
            tell(
                f"{what}: {_some(ids)} not in {truth.source}: {unlisted.sum():,} of {len(entries):,} results "
                "are left out"
            )
        kept &= ~unlisted
    found = Results(numbers["image"], numbers["category"], boxes, scores)
    return Results(*(column[kept] for column in found))


def _load(given: object, name: str) -> tuple[str, Any]:
    """(name for messages, parsed JSON) of a path; (name, the object itself) of anything else."""
    if not isinstance(given, str | Path):
        return name, given
    return str(given), read_json(Path(given), name)


def _keys(numbers: np.ndarray, as_written: Mapping[int, int | str]) -> np.ndarray:
    """(E,) what the ids of these numbers are equal to, as in `Ids.keys`."""
    if not as_written:
        return numbers
    keys = [identity(as_written.get(number, number)) for number in numbers.tolist()]
    whole = all(isinstance(key, int) and -(2**63) <= key < 2**63 for key in keys)
    return np.array(keys, dtype=np.int64 if whole else np.object_)


def _some(ids: list[Any]) -> str:
    return f"{len(ids)} ({', '.join(map(str, ids[:3]))}{', …' if len(ids) > 3 else ''})"
