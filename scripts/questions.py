"""Measure what a reader of the paper asks next, of the detectors of a study.

Of each run of a feature pyramid with an RPN: the aliasing of its merged maps, before and after the 3×3; how
its finest map and its boxes change when the picture moves by 1 to 8 pixels; how alike its levels are.
"""

import argparse
import csv
import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from torch import Tensor

from aliasing import bilinear, block_edges, drifts, merged_maps, smoothing, smooths_a_sum, spectrum
from fpn.checkpoints import load, remembered
from fpn.console import mistakes
from fpn.data.coco import CocoDataset, read_annotations
from fpn.data.samplers import Pick
from fpn.data.transforms import EvalTransform, collate, normalise
from fpn.errors import InputError
from fpn.files import replacing
from fpn.models.detectors import ProposalNetwork
from fpn.models.necks import FeaturePyramid
from fpn.study.results import read_runs
from likeness import likenesses

ABOUT = ("data", "family", "row", "name", "seed", "images")
"""What the first columns tell of a run."""


def main() -> None:
    """Measure, write, print; a user's mistake ends in one line and exit status 2."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python scripts/questions.py runs/framed --data datasets/framed "
        "--rows c c_no_smoothing d",
    )
    parser.add_argument("runs", metavar="RUNS", help="folder of a study")
    parser.add_argument(
        "--data", required=True, type=Path, help="a data set in COCO's layout, whose val2017 is read"
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        default=["c", "c_no_smoothing", "d"],
        help="rows of Table 1 with P2 to P5 (default: %(default)s)",
    )
    parser.add_argument("--images", type=int, default=32, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument(
        "--out", default="questions.csv", type=Path, help="the file to write (default: %(default)s)"
    )
    given = parser.parse_args()
    with mistakes("questions.py"):
        told = measured(given.runs, given.data, given.rows, given.images, given.out)
    shown = {
        "P2 changes": "drifts/4/map",
        "boxes lost": "drifts/4/lost",
        "an octave alike": "likeness/2-3/octave",
        "objectness alike": "likeness/2-3/objectness",
    }
    table = Table(title="P2 when the picture moves by 4 pixels, and how alike P2 and P3 are")
    for name in ("data", "row", "seed", *shown):
        table.add_column(name)
    for one in told:
        table.add_row(one["data"], one["row"], one["seed"], *(one[key][:5] or "-" for key in shown.values()))
    Console().print(table)
    print(f"written to {given.out}")


def measured(runs: str, data: Path, rows: Sequence[str], images: int, out: Path) -> list[dict[str, str]]:
    """What is found of each finished run: a row of a CSV file, which is written anew after each.

    Raises:
        InputError: there is no finished run of a row, runs are of several data sets, one is no feature
            pyramid on P2 to P5 or of other categories than the data, or the file to write is a folder.
    """
    if out.is_dir():
        raise InputError(f"{out} is a folder: give a file to write, as --out {out / 'questions.csv'}")
    found = [r for r in read_runs([runs]) if r.table == "table1" and r.row in rows and r.scores is not None]
    if missing := set(rows) - {run.row for run in found}:
        raise InputError(f"{runs} has no finished run of table1, row {', '.join(sorted(missing))}")
    if len(sets := {run.data for run in found}) > 1:
        raise InputError(f"{runs} has runs on {' and on '.join(sorted(sets))}: give one study's")
    out.parent.mkdir(parents=True, exist_ok=True)
    told = []
    for run in found:
        number, means = answers(run.folder / "last.ckpt", data, images)
        about = (run.data, run.family, run.row, run.name, run.seed, number)
        numbers = {key: "" if math.isnan(value) else f"{value:.6g}" for key, value in means.items()}
        told.append(dict(zip(ABOUT, map(str, about), strict=True)) | numbers)
        columns = dict.fromkeys(key for one in told for key in one)
        with replacing(out) as file, file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(columns), lineterminator="\n")
            writer.writeheader()
            writer.writerows(told)
    return told


def answers(checkpoint: Path, data: Path, number: int = 32) -> tuple[int, dict[str, float]]:
    """The measures of `aliasing` and `likeness`, on the first validation images of a data set.

    Args:
        checkpoint: of a detector with an RPN on all of P2 to P5 of a feature pyramid.
        data: a folder in COCO's layout.
        number: of images, each by itself.

    Returns:
        How many images there were, and means over those of them where a number is finite; NaN where none is.

    Raises:
        InputError: a file cannot be read, the detector is of another kind or has other categories than the
            data, or there is no image to read.
    """
    trained = load(checkpoint)
    detector = trained.detector.eval()
    if (
        not isinstance(detector, ProposalNetwork)
        or not isinstance(detector.neck, FeaturePyramid)
        or detector.neck.levels != (2, 3, 4, 5)
        or not {2, 3, 4, 5} <= set(detector.rpn.levels)
    ):
        raise InputError(f"{checkpoint} has no RPN on P2 to P5 of a feature pyramid: give one that has")
    if number < 1:
        raise InputError(f"images is {number}: give 1 at least")
    annotations = read_annotations(data / "annotations" / "instances_val2017.json")
    if difference := remembered(checkpoint).categories.listed().difference(annotations.categories):
        raise InputError(f"{checkpoint} and {data} have other categories: {difference}; give data of the run")
    images = CocoDataset(annotations, data / "val2017", EvalTransform(trained.image))
    found = []
    for index in range(min(number, len(annotations))):
        batch = normalise(collate([images[Pick(index, 0)]], trained.image), trained.image)
        found.append(of_image(detector, batch.images))
    means = {}
    for key in found[0]:
        finite = [one[key] for one in found if math.isfinite(one[key])]
        means[key] = sum(finite) / len(finite) if finite else math.nan
    return len(found), means


def of_image(detector: ProposalNetwork, images: Tensor) -> dict[str, float]:
    """All numbers of a prepared image, their names being paths."""
    told: dict[str, float] = {}
    for name, maps in merged_maps(detector, images).items():
        for k in (2, 3):  # the coarser have too few cells for a spectrum
            shape = spectrum(maps[k])
            told |= {f"spectra/{k}/{name}/{band}": x for band, x in enumerate(shape.power.tolist())}
            told[f"above_quarter/{k}/{name}"] = shape.above(0.25)
            told[f"block_edges/{k}/{name}"] = block_edges(maps[k])
    if smooths_a_sum(detector.neck):
        for kind in ("trained", "random"):
            for k, by in smoothing(detector, images, random=kind == "random").items():
                told |= {f"smoothing/{kind}/{k}/{key}": value for key, value in by._asdict().items()}
    for drift in drifts(detector, images):
        told |= {
            f"drifts/{drift.shift}/{key}": value for key, value in drift._asdict().items() if key != "shift"
        }
    for drift in drifts(detector, images, (4, 8), upsample=bilinear):
        told[f"drifts/{drift.shift}/map_bilinear"] = drift.map
    for (low, high), octave, objectness, across in likenesses(detector, images):
        told |= {f"likeness/{low}-{high}/octave": octave, f"likeness/{low}-{high}/objectness": objectness}
        told[f"likeness/{low}-{high}/across"] = across
    return told


if __name__ == "__main__":
    main()
