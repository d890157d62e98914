"""The page: what `Reported` holds and `diagnosis` says of it, in HTML that loads nothing."""

import math
import platform
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from html import escape
from importlib.metadata import version
from pathlib import Path

import numpy as np
from torch import Tensor

from fpn.data.coco import Annotations
from fpn.data.transforms import ImageSettings, resized_size
from fpn.evaluation.diagnosis import (
    Confusion,
    DetectionDiagnosis,
    Errors,
    OfObjects,
    ProposalDiagnosis,
    Pyramid,
    diagnose,
    diagnose_proposals,
)
from fpn.evaluation.engines import class_agnostic
from fpn.evaluation.inputs import GroundTruth, Results
from fpn.evaluation.scoring import BoxScores
from fpn.evaluation.tables import OF_CATEGORY, box_rows, percent
from fpn.files import replacing
from fpn.report import figures
from fpn.report.examples import Example, Shown, example, extremes

_SHOWN = 100
"""The most categories of a confusion matrix."""
_PROPOSALS_DRAWN = 10
_DETECTIONS_DRAWN = 100


@dataclass(frozen=True)
class Reported:
    """What is reported on."""

    title: str
    truth: GroundTruth
    detections: Results | None = None
    scores: BoxScores | None = None
    """Of the detections."""
    proposals: Results | None = None
    scales: np.ndarray | None = None
    """(I, 2) factors along x and y from an image to the network's input, by ascending image id."""
    pyramid: Pyramid = Pyramid()
    pictures: Mapping[int, Callable[[], Tensor]] = field(default_factory=dict)
    """Images by id, of which some are shown."""
    history: Path | None = None
    """The metrics.csv of the training, if there is such a file."""
    settings: str = ""
    score: float = 0.5
    """From which on a detection counts in the confusion matrix and is drawn."""


def input_scales(truth: GroundTruth, annotations: Annotations, settings: ImageSettings) -> np.ndarray:
    """`Reported.scales` of images that go through these settings."""
    order = np.argsort(annotations.image_ids)
    sizes = annotations.sizes[order[np.searchsorted(annotations.image_ids[order], truth.image_ids)]]
    sides = settings.short_side, settings.max_side, settings.rounding
    resized = np.array([resized_size((h, w), *sides) for h, w in sizes.tolist()]).reshape(-1, 2)
    return (resized / sizes)[:, ::-1]


def write_report(tested: Reported, page: Path, curves: Path) -> None:
    """Writes the page and its curves as PNG.

    Raises:
        InputError: an image that is to be shown cannot be read.
    """
    sections: list[str] = []
    panels: list[figures.Panel] = []
    about = tested.truth, tested.scales, tested.pyramid
    shown: Shown | None = None
    if tested.detections is not None and tested.scores is not None:
        found = diagnose(about[0], tested.detections, *about[1:], tested.score)
        shown = Shown(tested.truth, tested.detections, found.by_image, tested.score, _DETECTIONS_DRAWN)
        drawn = [
            partial(figures.precision_by_iou, tested.scores),
            partial(figures.precision_by_category, tested.scores),
            partial(figures.by_objects, found.groups, "detections by size and level (%)"),
        ]
        panels += drawn
        sections += _detections(tested, tested.scores, found, drawn)
    if tested.proposals is not None:
        proposed = diagnose_proposals(about[0], tested.proposals, *about[1:])
        if shown is None:
            agnostic = class_agnostic(tested.truth, tested.proposals)
            shown = Shown(*agnostic, proposed.by_image, -math.inf, _PROPOSALS_DRAWN)
        drawn = [
            partial(figures.recall_by_limit, proposed),
            partial(figures.recall_by_iou, proposed),
            partial(figures.by_objects, proposed.groups, "proposals by size and level (%)"),
        ]
        panels += drawn
        sections.append(_proposals(proposed, drawn))
    if tested.pictures and shown is not None:
        sections.append(_examples(tested, shown))
    if tested.history is not None and tested.history.is_file() and (told := figures.training(tested.history)):
        sections.append(_section("Training", "From the run's metrics.csv.", *map(figures.svg, told)))
    sections.append(_settings(tested))
    if panels:
        figures.write_png(panels, curves)
    with replacing(page) as part:
        part.write_text(_page(tested.title, sections), encoding="utf-8")


def _detections(
    tested: Reported, scores: BoxScores, found: DetectionDiagnosis, drawn: Sequence[figures.Panel]
) -> Iterable[str]:
    truth = tested.truth
    single = truth.category[~truth.crowd]
    yield _section(
        "Scores",
        f"{len(truth.image_ids):,} images, {len(single):,} objects, {int(truth.crowd.sum()):,} crowd regions,"
        f" {len(truth.categories):,} categories. COCO's twelve numbers (cocodataset.org/#detection-eval) in"
        " percent: AP is the mean over ten IoUs from .5 to .95, recalls and categories; AR is at 1, 10 and"
        " 100 detections of an image and category. Small is below 32², large above 96² pixels of area.",
        _table(("", "all", "small", "medium", "large"), box_rows(scores.overall)),
    )
    counts, rows = np.bincount(single, minlength=len(truth.categories)), []
    for k, (name, one) in enumerate(scores.categories.items()):
        numbers = (percent(one[key]) for key in OF_CATEGORY)
        rows.append([name, f"{counts[k]:,}", *numbers, _Raw(_spark(scores.precision[:, :, k]))])
    yield _section(
        "Categories",
        "AP in percent. Precision over recall at an IoU of .5 (solid), .75 (dashed) and .9 (dotted)."
        " A heading sorts.",
        _table(("category", "objects", *OF_CATEGORY.values(), "precision over recall"), rows, sortable=True),
    )
    yield _section("Precision and recall", "As COCO interpolates it.", *map(figures.svg, drawn[:2]))
    yield _errors(found.errors)
    yield _confusion(found.confusion, list(truth.categories.values()))
    yield _section("Sizes and levels", _OF_GROUPS, _groups(found.groups), figures.svg(drawn[2]))


def _proposals(found: ProposalDiagnosis, drawn: Sequence[figures.Panel]) -> str:
    at = dict(zip(found.limits, found.average, strict=True))
    overall = OfObjects("all", "", 0, {f"AR@{limit}": at[limit] for limit in (10, 100, 1000)})
    return _section(
        "Proposals",
        "Average recall over ten IoUs from .5 to .95, in percent, of the best 10, 100 and 1000 class-agnostic"
        " proposals of each image (Lin et al., Feature Pyramid Networks, CVPR 2017, Sec. 5.1). " + _OF_GROUPS,
        _groups(found.groups, overall),
        *map(figures.svg, drawn),
    )


_OF_GROUPS = (
    "Sizes are COCO's, of the annotated area in the original image, or of that area at the network's input."
    " The level is the one that Eq. 1 of Feature Pyramid Networks reads an object's box from at the input."
)
_WHERE = {"all": "all", "image": "size in the image", "input": "size at the input", "level": "level"}


def _groups(groups: Sequence[OfObjects], overall: OfObjects | None = None) -> str:
    rows = []
    for one in [*([overall] if overall else []), *groups]:
        objects = f"{one.objects:,}" if one is not overall else ""
        rows.append([_WHERE[one.by], one.name, objects, *map(percent, one.scores.values())])
    return _table(("by", "", "objects", *groups[0].scores), rows)


_MEANING = {
    "classification": "IoU ≥ .5 with an object of another category",
    "localisation": "IoU from .1 to .5 with an object of its category",
    "both": "IoU from .1 to .5 with an object of another category",
    "duplicate": "IoU ≥ .5 with an object that a better detection has found",
    "background": "IoU ≤ .1 with every object",
    "missed": "objects that nothing found, and none of the first two kinds of error means",
    "false positives": "all detections that are wrong",
    "false negatives": "all objects that nothing found",
}


def _errors(errors: Errors) -> str:
    most, rows = max(errors.points.values(), default=0) or 1, []
    for kind, points in errors.points.items():
        number = f"{errors.counts[kind]:,}" if kind in errors.counts else ""
        bar = _Raw(f'<i class="bar" style="width:{max(points, 0) / most * 8:.2f}em"></i>')
        rows.append([kind, number, percent(points), bar, _MEANING[kind]])
    return _section(
        "Errors",
        f"AP at an IoU of .5 is {percent(errors.AP50) or '–'}. dAP is by how many points it would rise if all"
        " errors of a kind were mended and no other: TIDE (Bolya et al., ECCV 2020). They do not add up.",
        _table(("error", "number", "dAP", "", "what it is"), rows),
    )


def _confusion(confusion: Confusion, names: Sequence[str]) -> str:
    counts = np.array(confusion.counts)
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    # Of many categories, those with most errors; the background stays.
    busy = np.argsort(-(wrong.sum(axis=0) + wrong.sum(axis=1))[:-1], kind="stable")[:_SHOWN]
    shown = [*np.sort(busy).tolist(), len(names)]
    every = [*names, "background"]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    head = "".join(f"<th><span>{escape(every[k])}</span>" for k in shown)
    rows = ""
    for i in shown:
        rows += f"<tr><th>{escape(every[i])}"
        for k in shown:
            rows += f"<td class=s{10 * shares[i, k]:.0f}>{counts[i, k]}" if counts[i, k] else "<td>"
    worst = np.argsort(-wrong[:-1, :-1], axis=None, kind="stable")[:10]
    pairs = (divmod(int(place), len(names)) for place in worst)
    mistaken = [[names[i], names[k], str(wrong[i, k])] for i, k in pairs if wrong[i, k]]
    left_out = f" The {_SHOWN} categories with most errors of {len(names):,}." if len(names) > _SHOWN else ""
    return _section(
        "Confusion",
        f"Rows are what is there, columns what was found, with scores from {confusion.score:g} on at an IoU"
        " of .5 or more. Each object and each detection is matched at most once: pairs of one category first,"
        " then by IoU."
        f" Shades are shares of a row.{left_out}",
        f'<div class="wide"><table class="confusion"><tr><th>{head}{rows}</table></div>',
        _table(("is", "found as", "times"), mistaken) if mistaken else "",
    )


def _examples(tested: Reported, shown: Shown) -> str:
    pictures = []
    ids = shown.truth.image_ids.tolist()
    there = [one if id_ in tested.pictures else None for id_, one in zip(ids, shown.by_image, strict=True)]
    for kind, places in zip(("Best", "Worst"), extremes(shown.truth, there), strict=True):
        reads = (tested.pictures[int(shown.truth.image_ids[place])] for place in places)
        made = [example(shown, place, read) for place, read in zip(places, reads, strict=True)]
        pictures.append(f"<h3>{kind}</h3>" + "".join(map(_figure, made)))
    told = (
        f"By panoptic quality of the boxes with scores from {shown.least:g} on: the IoUs of right ones, over"
        " right ones plus half of the wrong and the missed (Kirillov et al., CVPR 2019, Eq. 1)."
        if tested.detections is not None
        else f"By average recall of 100 proposals; the best {shown.most} are drawn."
    )
    return _section("Images", f"{told} Left what is there, right what was found.", *pictures)


def _figure(one: Example) -> str:
    about = f"image {escape(str(one.image_id))}: {percent(one.score)}"
    return (
        f'<figure><img alt="{about}, truth and findings" src="data:image/jpeg;base64,{one.jpeg}">'
        f"<figcaption>{about}</figcaption></figure>"
    )


def _settings(tested: Reported) -> str:
    packages = ("fpn", "torch", "torchvision", "lightning", "pycocotools", "faster-coco-eval", "numpy")
    versions = [("Python", platform.python_version()), *((name, version(name)) for name in packages)]
    p = tested.pyramid
    levels = f"P{p.lowest} to P{p.highest}, {p.canonical_size:g} pixels on level {p.canonical_level}"
    settings = f"<details><summary>Settings</summary><pre>{escape(tested.settings)}</pre></details>"
    return _section(
        "Settings and versions",
        f"Scored against {tested.truth.source}." + f" Levels: {levels}." * (tested.scales is not None),
        _table(("", "version"), versions),
        settings if tested.settings else "",
    )


class _Raw(str):
    """HTML, not to be escaped."""


def _section(title: str, note: str, *content: str) -> str:
    return f"<section><h2>{escape(title)}</h2><p>{escape(note)}</p>{''.join(content)}</section>\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], sortable: bool = False) -> str:
    rows = list(rows)
    words = {i for row in rows for i, cell in enumerate(row) if re.fullmatch(r"[-–\d.,]*", cell) is None}
    kinds = [" class=word" if i in words else "" for i in range(len(head))]
    heads = (f"<button>{escape(one)}</button>" if sortable else escape(one) for one in head)
    lines = ((cell if isinstance(cell, _Raw) else escape(cell) for cell in row) for row in rows)
    body = "".join(f"<tr>{_cells('td', kinds, line)}" for line in lines)
    kind = ' class="sortable"' if sortable else ""
    return (
        f'<div class="wide"><table{kind}><thead><tr>{_cells("th", kinds, heads)}</thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cells(tag: str, kinds: Sequence[str], contents: Iterable[str]) -> str:
    return "".join(f"<{tag}{kind}>{content}" for kind, content in zip(kinds, contents, strict=True))


def _spark(precision: np.ndarray) -> str:
    """Curves (T, R) of one category, in a line."""
    if precision[0, 0] < 0:
        return ""
    lines = []
    for t, dashes in ((0, ""), (5, "4 2"), (8, "1 2")):
        points = " ".join(f"{x:g},{24 - 23 * precision[t, x]:.1f}" for x in range(0, 101, 5))
        lines.append(f'<polyline points="{points}" stroke-dasharray="{dashes}"/>')
    return f'<svg class="spark" viewBox="0 0 100 25" width="100" height="25">{"".join(lines)}</svg>'


def _page(title: str, sections: Iterable[str]) -> str:
    style, script = (Path(__file__).with_suffix(kind).read_text(encoding="utf-8") for kind in (".css", ".js"))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>\n{''.join(sections)}<script>{script}</script></body></html>\n"
    )
