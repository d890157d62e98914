"""`fpn audit`: a data set on one screen."""

import json as json_format
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from fpn.data.audit import Audit, compare, look_at
from fpn.data.file_names import locate
from fpn.data.layouts import Splits
from fpn.data.object_sizes import REACHED
from fpn.data.twins import twins as twins_of
from fpn.errors import InputError
from fpn.files import replacing
from fpn.models.rpn import ANCHOR_SIZES
from fpn.settings import Share

_GROUPS = 20
"""Of photos that are alike, as many are shown."""


def audit(
    root: str | None = None,
    annotations: str | None = None,
    images: str | None = None,
    json: str | None = None,
    against: str | None = None,
    against_images: str | None = None,
    val_share: Share | None = None,
    twins: bool = False,
    **kwargs: Any,
) -> None:
    """Look at a data set, and say whether training would take it.

    examples:
      what `fpn fit --data.root ROOT` trains and validates on, in any layout that is known
        fpn audit ROOT
      one file in COCO's format, its images read wholly
        fpn audit --annotations train.json --images train/ --decode
      two files that have to agree, and photos that are there twice
        fpn audit --annotations train.json --against val.json --images photos/ --twins

    Counts what is wrong or odd with images, annotations and categories, the sizes of objects, and how
    many of these the RPN's anchors can reach. Without --decode it reads the headers of image files
    only, and does not find a file that breaks off further on.

    Exit status: 0 if training takes the data, 1 if it refuses them, 2 if they cannot be read at all.

    Args:
        root: folder of a data set.
        annotations: a COCO instances file, in place of a root.
        images: the folder in which its file names start; by default no file is looked at.
        json: a file to write everything to, with the ids and files that are counted.
        against: the annotation file of the validation images, which has to agree with the first.
        against_images: the folder in which its file names start; by default that of images.
        val_share: as data.val_share, of a root.
        twins: look for photos that are alike too, mirrored, turned or darkened; needs fpn[audit].
        **kwargs: as of `look_at`.
    """
    if (root is None) == (annotations is None) or (root and against):
        raise InputError("give the root of a data set, or --annotations, --against and --images, not both")
    sources, told, lacking = list[tuple[str, Path, Path | None]](), "", ""
    if annotations is not None:
        sources.append(("train" if against else "", Path(annotations), Path(images) if images else None))
    if against is not None:
        folder = against_images or images
        sources.append(("val", Path(against), Path(folder) if folder else None))
    if root is not None:
        splits = Splits(Path(root), {}, val_share)
        sources, lacking = _sources(splits)
        told = splits.told(name for name, *_ in sources)
    found = {
        name: look_at(file, images_of_it, anchor_sizes=ANCHOR_SIZES, **kwargs)
        for name, file, images_of_it in sources
    }
    if len(found) == 2:
        compare(found["train"], found["val"])
    pairs = _twins(found, kwargs.get("num_workers")) if twins else None
    if json is not None:
        every = {name: one.as_json() for name, one in found.items()}
        if pairs is not None:
            every.get("", every)["twins"] = [
                ["/".join(filter(None, photo)) for photo in group] for group in pairs
            ]
        with replacing(Path(json)) as part:
            part.write_text(json_format.dumps(every.get("", every), indent=1, allow_nan=False))
    console = Console(highlight=False)
    if told:
        console.print(Text(told), soft_wrap=True)
    if lacking:
        console.print(Text(f"Training would refuse this: {lacking}", "bold red"), soft_wrap=True)
    refused = bool(lacking)
    for name, one in found.items():
        refusal = one.validation_refusal if name == "val" else one.refusal
        refused |= bool(refusal)
        words = f"{name}: " * bool(name) + _verdict(one, name == "val")
        console.print(Text(words, "bold red" if refusal else "bold green"), soft_wrap=True)
        console.print(Group(*_findings(one), *_objects(one)))
    if pairs is not None:
        console.print(Group(*_alike(pairs)))
    if refused:
        sys.exit(1)


def _twins(found: Mapping[str, Audit], num_workers: int | None) -> list[list[tuple[str, str]]]:
    """Groups of photos that are alike, each by its split and name."""
    if any(one.image_folder is None for one in found.values()):
        raise InputError("--twins looks at photos: --images names their folder")
    photos = [(split, name) for split, one in found.items() for name in one.file_names]
    folders = {split: Path(str(one.image_folder)) for split, one in found.items()}
    located = [name for split, one in found.items() for name in locate(folders[split], one.file_names).names]
    paths = [folders[split] / name for (split, _), name in zip(photos, located, strict=True)]
    return [[photos[place] for place in group] for group in twins_of(paths, num_workers)]


def _alike(groups: list[list[tuple[str, str]]]) -> Iterator[Text]:
    """How many photos are alike within a split and across, and which."""
    across = [group for group in groups if len({split for split, _ in group}) > 1]
    yield Text(f"{len(groups):,} groups of photos that are alike", "bold")
    for split in dict.fromkeys(split for group in across for split, _ in group):
        number = sum(one == split for group in across for one, _ in group)
        yield Text(f"{number:>9,} of {split} have a twin in another split", "red")
    for group in (*across, *(one for one in groups if one not in across))[:_GROUPS]:
        yield _line("  ".join(_plain("/".join(filter(None, photo))) for photo in group), "")
    if len(groups) > _GROUPS:
        yield Text("…; --json has them all", "dim")


def _sources(splits: Splits) -> tuple[list[tuple[str, Path, Path | None]], str]:
    """What a root has to train and validate on, and what it lacks, in fit's words."""
    found, lacking = list[tuple[str, Path, Path | None]](), ""
    for name in ("train", "val"):
        try:
            split = splits[name]
        except InputError as error:
            if "layout" not in vars(splits) or (name == "val" and not found):
                raise
            lacking = str(error)
        else:
            found.append((name, Path(str(split.annotations)), Path(str(split.images))))
    return found, lacking


def _verdict(found: Audit, validates: bool) -> str:
    """Whether it would be taken: to validate on, or to train on."""
    if validates and found.validation_refusal:
        return f"Validation would refuse this: {found.validation_refusal}"
    if found.refusal and not validates:
        return f"Training would refuse this: {found.refusal}"
    looked = "whole files" if found.decoded else "headers alone; --decode reads whole files"
    if found.image_folder is None:
        looked = "no images; --images names their folder"
    verdict = f"Training would take this (looked at: annotations, {looked})"
    if validates and not any(one.objects for one in found.by_category):
        verdict += "; it has no object to find: there will be no score, and no best checkpoint"
    if found.validation_refusal:
        verdict += f"; validation would refuse it: {found.validation_refusal}"
    return verdict


def _findings(found: Audit) -> Iterator[Text]:
    """What is wrong, then what is good to know, then what there is none of."""
    counts = ", ".join(f"{number:,} {name}" for name, number in found.listed.items())
    yield Text(f"{found.annotation_file}: {counts}", overflow="fold")
    every = [(name, key, one) for name, section in found.findings.items() for key, one in section.items()]
    for name, _, one in sorted(every, key=lambda row: not row[2].wrong):
        if one.items:
            items = ", ".join(map(_plain, one.items[:5])) + ", …" * (len(one.items) > 5)
            yield _line(f"{len(one.items):>9,} {name}: {one.what}: {items}", "red" if one.wrong else "")
    for line in found.taken.told if found.taken else ():
        yield _line(f"          {line}", "")
    none = [key.replace("_", " ") for _, key, one in every if not one.items]
    if none:
        yield _line(f"none of {len(none)} other kinds: {', '.join(dict.fromkeys(none))}", "dim")


def _objects(found: Audit) -> Iterator[RenderableType]:
    """The objects by category and size, and what of them anchors reach."""
    ranked = sorted(found.by_category, key=lambda one: -one.objects)
    shown = [f"{_plain(one.name)} {one.objects:,} ({one.images:,})" for one in ranked]
    if len(shown) > 5:
        shown[3:-2] = ["…"]
    sizes, total = found.sizes, max(1, found.sizes.overall["objects"])
    yield Text(f"{sizes.overall['objects']:,} objects (and images with one): {', '.join(shown)}")
    areas = (f"{_percent(number / total)} % {name}" for name, number in sizes.by_area.items())
    yield Text(f"by COCO's area: {', '.join(areas)}")
    yield Text(
        f"% of objects, and of those whose best anchor has an IoU of {' or '.join(map(str, REACHED))}:"
    )
    rows = [sizes.overall, *sizes.octaves]
    names = ["all", *(f"{one['from']:g}–" + (f"{one['to']:g}" if one["to"] else "") for one in sizes.octaves)]
    shares = [one["objects"] / total for one in rows]
    yield _grid(f"√wh at {sizes.short_side}/{sizes.max_side}", names, {"objects": shares} | _reached(rows))
    names = [f"P{one['level']}: {'/'.join(f'{size:g}' for size in one['sizes'])}" for one in sizes.levels]
    fittest = [one["fits_best"] for one in sizes.levels]
    yield _grid("anchors of", names, {"fit best": fittest} | _reached(sizes.levels))


def _line(words: str, style: str) -> Text:
    return Text(words, style, overflow="ellipsis", no_wrap=True)


def _reached(columns: list[dict[str, Any]]) -> dict[str, list[float | None]]:
    return {f"IoU ≥ {iou}": [one[f"iou_{iou}"] for one in columns] for iou in REACHED}


def _grid(corner: str, names: list[str], rows: dict[str, list[float | None]]) -> Table:
    """A table of shares in percent."""
    headings = (Column(name, justify="right", no_wrap=True) for name in names)
    table = Table(
        Column(corner, no_wrap=True), *headings, box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0)
    )
    for name, shares in rows.items():
        table.add_row(name, *map(_percent, shares))
    return table


def _plain(value: object) -> str:
    """Some of a name that may be anything."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(value)[:100])


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"
