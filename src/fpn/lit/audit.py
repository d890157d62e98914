"""`fpn audit`: a data set on one screen."""

import json as json_format
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from fpn.data.audit import Audit, look_at
from fpn.data.object_sizes import REACHED
from fpn.files import replacing
from fpn.models.rpn import ANCHOR_SIZES
from fpn.settings import NonNegativeInt, PositiveInt, Share


def audit(
    annotations: str,
    images: str | None = None,
    decode: bool = False,
    json: str | None = None,
    num_workers: NonNegativeInt | None = None,
    short_side: PositiveInt = 800,
    max_side: PositiveInt = 1333,
    max_unreadable: Share = 0.001,
) -> None:
    """Look at a data set in COCO's format, and say whether training would take it.

    Counts what is wrong or odd with its images, annotations and categories, the sizes of its
    objects, and how many of these the RPN's anchors can reach. Without --decode only the headers of
    the image files are read: a file that breaks off further on is not found.

    Exit status: 0 if training takes the data, 1 if it would refuse them, 2 if they cannot be read
    at all.

    Args:
        annotations: a COCO instances file.
        images: the folder in which its file names start; by default no file is looked at.
        decode: read all images wholly, as training does.
        json: a file to write everything to: besides counts, the ids and files that are counted.
        num_workers: processes that read images, 0 for none; by default one for each core.
        short_side: pixels of an image's short side at the network's input, as data.short_side.
        max_side: most pixels of its long side, as data.max_side.
        max_unreadable: share of the training images that training does without, as
        data.max_unreadable.
    """
    found = look_at(
        Path(annotations),
        None if images is None else Path(images),
        anchor_sizes=ANCHOR_SIZES,
        short_side=short_side,
        max_side=max_side,
        decode=decode,
        num_workers=num_workers,
        max_unreadable=max_unreadable,
    )
    if json is not None:
        with replacing(Path(json)) as part:
            part.write_text(json_format.dumps(found.as_json(), indent=1, allow_nan=False))
    console = Console(highlight=False)
    console.print(Text(_verdict(found), "bold red" if found.refusal else "bold green"), soft_wrap=True)
    for part_of_screen in _screen(found, console.width):
        console.print(part_of_screen)
    if found.refusal:
        sys.exit(1)


def _screen(found: Audit, width: int) -> Iterator[RenderableType]:
    """Below the verdict: what is wrong, what is good to know, what there is none of, sizes."""
    counts = ", ".join(f"{number:,} {name}" for name, number in found.listed.items())
    if ids := [one.id for one in found.by_category]:
        gaps = max(ids) - min(ids) + 1 - len(set(ids))
        counts += f" (ids {min(ids)}…{max(ids)}" + (f", {gaps:,} of them unused)" if gaps else ")")
    yield Text(f"{found.annotation_file}: {counts}", overflow="fold")
    every = [(name, key, one) for name, section in found.findings.items() for key, one in section.items()]
    shown = sorted((row for row in every if row[2].items), key=lambda row: not row[2].wrong)
    lines = [(name, f"{len(one.items):,}", one.what, _first(one.items)) for name, _, one in shown]
    widths = [max((len(line[column]) for line in lines), default=0) for column in range(3)]
    for (name, count, what, items), (_, _, one) in zip(lines, shown, strict=True):
        line = Text(f"{name:{widths[0]}}  {count:>{widths[1]}}  {what:{widths[2]}}  {items}")
        line.stylize("red" if one.wrong else "")
        line.truncate(width, overflow="ellipsis")
        yield line
    none = [f"{key.replace('_', ' ')} ({name})" for name, key, one in every if one.wrong and not one.items]
    yield Text("none: " + ", ".join(none), style="dim", overflow="ellipsis", no_wrap=True)
    yield Text(_by_category(found))
    yield from _sizes(found)


def _sizes(found: Audit) -> Iterator[RenderableType]:
    sizes = found.sizes
    areas = (
        f"{_percent(number / max(1, sizes.overall['objects']))} % {name}"
        for name, number in sizes.by_area.items()
    )
    yield Text("by COCO's area: " + ", ".join(areas))
    yield Text(
        f"% of objects, and of those whose best anchor has an IoU of {' or '.join(map(str, REACHED))}:"
    )
    by_octave = _table(f"√wh at {sizes.short_side}/{sizes.max_side}")
    columns = [sizes.overall, *sizes.octaves]
    for one in columns:
        ends = one.get("from"), one.get("to")
        by_octave.add_column("all" if ends == (None, None) else _octave(*ends), justify="right", no_wrap=True)
    total = max(1, sizes.overall["objects"])
    by_octave.add_row("objects", *(_percent(one["objects"] / total) for one in columns))
    for iou in REACHED:
        by_octave.add_row(f"IoU ≥ {iou}", *(_percent(one[f"iou_{iou}"]) for one in columns))
    by_level = _table("anchors of")
    for one in sizes.levels:
        side = "/".join(f"{size:g}" for size in one["sizes"])
        by_level.add_column(f"P{one['level']}: {side}", justify="right", no_wrap=True)
    rows = {"fit best": "fits_best"} | {f"IoU ≥ {iou}": f"iou_{iou}" for iou in REACHED}
    for name, key in rows.items():
        by_level.add_row(name, *(_percent(one[key]) for one in sizes.levels))
    yield by_octave
    yield by_level


def _table(heading: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column(heading, no_wrap=True)
    return table


def _octave(start: float | None, end: float | None) -> str:
    if end is None:
        return f"≥{start:g}"
    return f"{start:g}–{end:g}" if start else f"<{end:g}"


def _first(items: Sequence[Any]) -> str:
    return ", ".join(map(_plain, items[:5])) + (", …" if len(items) > 5 else "")


def _plain(value: object) -> str:
    """Some of a name that may be anything."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(value)[:100])


def _by_category(found: Audit) -> str:
    ranked = sorted(found.by_category, key=lambda one: -one.objects)
    shown = [f"{_plain(one.name)} {one.objects:,} ({one.images:,})" for one in ranked]
    if len(shown) > 5:
        shown[3:-2] = ["…"]
    return f"{found.sizes.overall['objects']:,} objects (and images with one): " + ", ".join(shown)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _verdict(found: Audit) -> str:
    if found.refusal:
        return f"Training would refuse this: {found.refusal}"
    looked = "whole files" if found.decoded else "headers alone; --decode reads whole files"
    if found.image_folder is None:
        looked = "no images; --images names their folder"
    verdict = f"Training would take this (looked at: annotations, {looked})"
    return verdict + (
        f"; validation would refuse it: {found.validation_refusal}" * bool(found.validation_refusal)
    )
