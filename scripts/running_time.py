"""Time detectors on this machine: the paper's, `running_time` (Sec. 5.2), `fig1` (the four ways of Fig. 1)
and `fig1_proposals` (the same as RPNs alone), and one with each neck, `neck_times`.

    python scripts/running_time.py                                  # all tables
    python scripts/running_time.py --table fig1 --device cuda --repeats 50

Prints seconds and peak memory for an image, and writes them where `fpn report` finds them. Weights and
images are random.
"""

from pathlib import Path
from typing import Literal

import torch
from jsonargparse import auto_cli
from jsonargparse.typing import PositiveInt
from rich.console import Console
from rich.table import Table

from benchmarks import timing
from benchmarks.comparison import described
from fpn.console import mistakes
from fpn.devices import device_named
from fpn.errors import InputError


def main(
    table: Literal["running_time", "fig1", "fig1_proposals", "neck_times"] | None = None,
    rows: list[str] | None = None,
    repeats: PositiveInt = 5,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    factor: float = 1.0,
    out: str = "runs/study",
) -> None:
    """Time detectors on this machine, one image at a time, the rows of a table taking turns.

    Args:
        table: running_time (Sec. 5.2), fig1, fig1_proposals or neck_times; by default one after the other.
        rows: of the table named, as '[resnet50_fpn]'; all by default.
        repeats: images timed, after one that is not.
        device: as cpu or cuda.
        factor: multiplies the sides of the images, 800 × 1067 pixels; times of others are only printed.
        out: folder of the study to write to.
    """
    if rows and table is None:
        raise InputError("rows are of one table: give --table too")
    device_named(device)
    machine = described(device, None)
    hardware = machine.get("GPU", machine["CPU"])
    setting = f"{hardware}, threads: {machine['threads']}, torch {machine['torch']}"
    if factor == 1:
        Path(out).mkdir(parents=True, exist_ok=True)  # or what is measured would be lost
    for name in [table] if table else timing.TABLES:
        measured = timing.measure(name, rows or (), repeats, device, factor)
        shown = Table(title=f"{name}, {800 * factor:g} × {800 * factor * timing.LONG_OVER_SHORT:.0f} pixels")
        for heading in ("row", "s / image", "min - max", "peak MB"):
            shown.add_column(heading, justify="left" if heading == "row" else "right")
        for key, numbers in measured.items():
            spread = f"{numbers['seconds_min']:.3f} - {numbers['seconds_max']:.3f}"
            row = timing.TABLES[name][key]
            shown.add_row(
                f"{key}: {row.name}", f"{numbers['seconds']:.3f}", spread, f"{numbers['peak_memory_mb']:,.0f}"
            )
        Console().print(shown, setting)
        if factor == 1:
            about = {"data": hardware, "setting": setting, "machine": machine, "repeats": repeats}
            timing.write_runs(name, measured, Path(out), about)


if __name__ == "__main__":
    with mistakes("running_time.py"):
        auto_cli(main, as_positional=False)
