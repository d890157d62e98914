"""`fpn audit`: a data set on one screen."""

import json as json_format
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Column, Table
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
        short_side: pixels of an image's short side at the network's input, as data.images.short_side.
        max_side: most pixels of its long side, as data.images.max_side.
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
    console.print(Group(*_screen(found)))
    if found.refusal:
        sys.exit(1)


def _verdict(found: Audit) -> str:
    if found.refusal:
        return f"Training would refuse this: {found.refusal}"
    looked = "whole files" if found.decoded else "headers alone; --decode reads whole files"
    if found.image_folder is None:
        looked = "no images; --images names their folder"
    refused = f"; validation would refuse it: {found.validation_refusal}" if found.validation_refusal else ""
    return f"Training would take this (looked at: annotations, {looked}){refused}"


def _screen(found: Audit) -> Iterator[RenderableType]:
    """Below the verdict: what is wrong, what is good to know, what there is none of, sizes."""
    counts = ", ".join(f"{number:,} {name}" for name, number in found.listed.items())
    yield Text(f"{found.annotation_file}: {counts}", overflow="fold")
    every = [(name, key, one) for name, section in found.findings.items() for key, one in section.items()]
    table = Table(*(Column(no_wrap=True, justify=side) for side in ("left", "right", "left", "left")))
    table.box, table.show_header, table.pad_edge = None, False, False
    for name, _, one in sorted(every, key=lambda row: not row[2].wrong):
        if one.items:
            items = ", ".join(map(_plain, one.items[:5])) + ", …" * (len(one.items) > 5)
            words = (name, f"{len(one.items):,}", one.what, items)
            table.add_row(*map(Text, words), style="red" if one.wrong else None)
    yield table
    none = [key.replace("_", " ") for _, key, one in every if not one.items]
    looked = f"none of {len(none)} other kinds: {', '.join(dict.fromkeys(none))}"
    yield Text(looked, style="dim", overflow="ellipsis", no_wrap=True)
    ranked = sorted(found.by_category, key=lambda one: -one.objects)
    shown = [f"{_plain(one.name)} {one.objects:,} ({one.images:,})" for one in ranked]
    if len(shown) > 5:
        shown[3:-2] = ["…"]
    sizes, total = found.sizes, found.sizes.overall["objects"]
    yield Text(f"{total:,} objects (and images with one): {', '.join(shown)}")
    areas = (f"{_percent(number / max(1, total))} % {name}" for name, number in sizes.by_area.items())
    yield Text("by COCO's area: " + ", ".join(areas))
    ious = " or ".join(map(str, REACHED))
    yield Text(f"% of objects, and of those whose best anchor has an IoU of {ious}:")
    columns, reached = [sizes.overall, *sizes.octaves], {f"IoU ≥ {iou}": f"iou_{iou}" for iou in REACHED}
    shares = [one | {"share": one["objects"] / max(1, total)} for one in columns]
    octaves = ["all", *(_octave(one["from"], one["to"]) for one in sizes.octaves)]
    yield _grid(
        f"√wh at {sizes.short_side}/{sizes.max_side}", octaves, shares, {"objects": "share"} | reached
    )
    anchors = [f"P{one['level']}: {'/'.join(f'{size:g}' for size in one['sizes'])}" for one in sizes.levels]
    yield _grid("anchors of", anchors, sizes.levels, {"fit best": "fits_best"} | reached)


def _grid(
    corner: str, names: Sequence[str], columns: Sequence[dict[str, Any]], rows: dict[str, str]
) -> Table:
    """A table of shares in percent, a row for each key."""
    headings = (Column(name, justify="right", no_wrap=True) for name in names)
    table = Table(
        Column(corner, no_wrap=True), *headings, box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0)
    )
    table.pad_edge = False
    for name, key in rows.items():
        table.add_row(name, *(_percent(one[key]) for one in columns))
    return table


def _octave(start: float, end: float | None) -> str:
    if end is None:
        return f"≥{start:g}"
    return f"{start:g}–{end:g}" if start else f"<{end:g}"


def _plain(value: object) -> str:
    """Some of a name that may be anything."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(value)[:100])


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"
