"""Seconds and memory of detectors for an image: Sec. 5.2's running time, Fig. 1's four ways, and necks."""

import json
import math
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from fpn.checkpoints import build_detector
from fpn.errors import InputError
from fpn.files import strict_json
from fpn.models.detectors import Detector
from fpn.models.optimized import optimized
from fpn.models.rpn import RPNHead
from fpn.study.rows import TABLES as ROWS
from fpn.study.settings import detectors_in
from fpn.types import Batch

LONG_OVER_SHORT = 4 / 3
"""Of the images timed, as of most of COCO's."""


class Timed(NamedTuple):
    """A detector to be timed."""

    name: str
    files: tuple[str, ...]
    """Below configs/."""
    short_sides: tuple[int, ...] = (800,)
    """Of the image; several for an image pyramid."""


PYRAMID = (400, 600, 800, 1000, 1200)
RPN = "paper/rpn.yaml"
TABLES: dict[str, dict[str, Timed]] = {
    "running_time": {
        "resnet50_fpn": Timed("FPN, ResNet-50", ("table5/resnet50.yaml",)),
        "resnet101_fpn": Timed("FPN, ResNet-101", ("table5/resnet101.yaml",)),
        "resnet50_c4_baseline": Timed("baseline on C4, ResNet-50", ("table3/a_conv4.yaml",)),
    },
    "fig1": {
        "a": Timed("featurized image pyramid", ("fig1/b_single_map.yaml",), PYRAMID),
        "b": Timed("single feature map", ("fig1/b_single_map.yaml",)),
        "c": Timed("pyramidal feature hierarchy", ("fig1/c_feature_hierarchy.yaml",)),
        "d": Timed("feature pyramid network", ("fig1/d_fpn.yaml",)),
    },
    "fig1_proposals": {
        "a": Timed("featurized image pyramid", ("table1/a_conv4.yaml", RPN), PYRAMID),
        "b": Timed("single feature map", ("table1/a_conv4.yaml", RPN)),
        "c": Timed("pyramidal feature hierarchy", ("table1/d_bottom_up_pyramid.yaml", RPN)),
        "d": Timed("feature pyramid network", ("table1/c_fpn.yaml", RPN)),
    },
    "neck_times": {key: Timed(row.name, (row.file,)) for key, row in ROWS["necks"].items()},
}
"""Whole detectors, the four ways of Fig. 1 also as RPNs alone, and the detector with each neck."""


def measure(
    table: str, rows: Sequence[str] = (), repeats: int = 5, device: str = "cpu", factor: float = 1.0
) -> dict[str, dict[str, float]]:
    """Time the rows of a table, one image at a time, the rows taking turns.

    What is timed is the detector from a prepared image to its boxes. Weights and images are random: the time
    of all but the suppressions does not depend on them. Proposals are anchors, of which enough survive for
    there to be 1000 of each image at these sizes.

    Args:
        table: one of TABLES.
        rows: keys of that table; none for all.
        repeats: images, after one that is not counted.
        device: as cpu or cuda.
        factor: multiplies the images' sides.

    Returns:
        For each row `seconds` (the median), `seconds_min`, `seconds_max` and `peak_memory_mb`: on a GPU of
        its allocations, on the CPU (of Linux) the largest size of a process that does nothing else.

    Raises:
        InputError: there is no such row, or no image.
    """
    known = TABLES[table]
    if unknown := [row for row in rows if row not in known]:
        raise InputError(f"{table} has no row {unknown[0]!r}; it has {', '.join(known)}")
    if factor * min(min(row.short_sides) for row in known.values()) < 32:
        raise InputError(f"factor is {factor:g}: an image needs 32 pixels at least, give more")
    chosen = {key: known[key] for key in rows or known}
    runs = {key: _prepared(row, device, factor) for key, row in chosen.items()}
    seconds: dict[str, list[float]] = {key: [] for key in runs}
    for _ in range(repeats + 1):
        for key, run in runs.items():
            seconds[key].append(_timed(run, device))
    del runs
    return {
        key: {
            "seconds": statistics.median(times[1:]),
            "seconds_min": min(times[1:]),
            "seconds_max": max(times[1:]),
            "peak_memory_mb": _peak_memory(chosen[key], device, factor),
        }
        for key, times in seconds.items()
    }


def write_runs(table: str, measured: dict[str, dict[str, float]], out: Path, about: dict[str, Any]) -> None:
    """Write measurements as a report reads them: run.json and scores.json, a folder for each row and machine.

    `about` has the machine as `data`.
    """
    machine = re.sub(r"[^a-z0-9]+", "_", str(about["data"]).lower())
    for key, scores in measured.items():
        folder = out / table / key / machine
        folder.mkdir(parents=True, exist_ok=True)
        row = {"table": table, "row": key, "name": TABLES[table][key].name, "seed": 0, "family": "paper"}
        (folder / "run.json").write_text(json.dumps(row | about, indent=2))
        (folder / "scores.json").write_text(strict_json(scores))


def detector_of(*files: str) -> Detector:
    """That of configuration files, by the names that `--config` takes, of COCO's 80 classes and random."""
    return build_detector(detectors_in(*files), 80)


def _prepared(row: Timed, device: str, factor: float) -> Callable[[], object]:
    detector = optimized(detector_of("base", *row.files).to(device))
    for module in detector.modules():
        if isinstance(module, RPNHead):
            nn.init.zeros_(module.deltas.weight)
    generator = torch.Generator().manual_seed(0)
    batches = []
    for short in row.short_sides:
        size = (round(factor * short), round(factor * short * LONG_OVER_SHORT))
        padded = [-(-side // 32) * 32 for side in size]
        image = torch.randn(1, 3, *padded, generator=generator).to(device)
        batches.append(Batch(image, [size], [size], [0]))
    if len(batches) == 1:
        return lambda: detector(batches[0])
    return lambda: detector.over_scales(batches)


@torch.inference_mode()
def _timed(run: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    run()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _peak_memory(row: Timed, device: str, factor: float) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_of_one, (row, device, factor))


def _peak_of_one(row: Timed, device: str, factor: float) -> float:
    _timed(_prepared(row, device, factor), device)
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return status_mb("VmHWM")


def status_mb(key: str) -> float:
    """A line of /proc/self/status in MB, as VmHWM (the peak) or VmRSS; NaN where there is none."""
    # getrusage would tell the parent's peak too, where that is greater.
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith(f"{key}:")), math.nan)
