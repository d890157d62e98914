"""Draws what a W&B run holds: `python scripts/dashboard_picture.py RUNS/wandb/offline-run-… OUT.png`.

An offline run's records are read as they lie on the disk; nothing is sent or asked. This is the only place
that knows how W&B writes them.
"""

import argparse
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

_BLOCK, _HEADER = 32768, 7
"""Of the format of LevelDB's logs: bytes of a block, and of what stands before each piece of a record."""


_SURE = 0.7
"""Predictions with lower scores are left out, as the slider of W&B's own pictures can have it."""


class WandbRun(NamedTuple):
    """What an offline run would send."""

    folder: Path
    about: dict[str, Any]
    """id, name, group, tags, job_type and commit; and exit, once the run has ended."""
    config: dict[str, Any]
    summary: dict[str, Any]
    history: list[dict[str, Any]]

    def table(self, name: str) -> dict[str, list[Any]]:
        """The last table of that name, columns by name."""
        content = json.loads((self.folder / "files" / self.summary[name]["path"]).read_text())
        return {
            column: [row[place] for row in content["data"]] for place, column in enumerate(content["columns"])
        }

    def curves(self, name: str) -> dict[str, tuple[list[float], list[float]]]:
        """x and y of each line of the last chart of that name."""
        table = self.table(f"{name}_table")
        lines: dict[str, tuple[list[float], list[float]]] = {}
        for x, line, y in zip(*table.values(), strict=True):
            xs, ys = lines.setdefault(line, ([], []))
            xs.append(x)
            ys.append(y)
        return lines

    def pictures(self, name: str) -> list[tuple[Image.Image, dict[str, list[dict[str, Any]]]]]:
        """The last images of that name, with the boxes of each layer."""
        told, files = self.summary[name], self.folder / "files"
        return [
            (
                Image.open(files / file),
                {
                    layer: json.loads((files / one["path"]).read_text())["box_data"]
                    for layer, one in boxes.items()
                },
            )
            for file, boxes in zip(told["filenames"], told["all_boxes"], strict=True)
        ]

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """Steps and values of a number."""
        rows = [row for row in self.history if name in row and row[name] != "NaN"]
        return [row["trainer/global_step"] for row in rows], [row[name] for row in rows]


def read_run(folder: Path) -> WandbRun:
    """A run from its folder, `offline-run-DATE-ID`."""
    (path,) = folder.glob("*.wandb")
    run = WandbRun(folder, {}, {}, {}, [])
    for record in _records(path.read_bytes()):
        if record.HasField("run"):
            told = record.run
            _update(run.config, told.config.update)
            run.about.update(
                id=told.run_id, project=told.project, name=told.display_name, group=told.run_group
            )
            run.about.update(tags=list(told.tags), job_type=told.job_type, commit=told.git.commit)
        elif record.HasField("config"):
            _update(run.config, record.config.update)
        elif record.HasField("summary"):
            _update(run.summary, record.summary.update)
        elif record.HasField("history"):
            run.history.append({})
            _update(run.history[-1], record.history.item)
        elif record.HasField("exit"):
            run.about["exit"] = record.exit.exit_code
    return run


def _records(content: bytes) -> Iterator[Record]:
    place, parts = _HEADER, b""  # the file's own header is as long
    while place + _HEADER <= len(content):
        left = _BLOCK - place % _BLOCK
        if left < _HEADER:
            place += left
            continue
        _, size, kind = struct.unpack_from("<IHB", content, place)
        place += _HEADER + size
        parts += content[place - size : place]
        if kind in (1, 4):  # whole, or the last piece
            yield Record.FromString(parts)
            parts = b""


def _update(content: dict[str, Any], items: Any) -> None:
    for item in items:
        *path, last = item.nested_key or [item.key]
        inner = content
        for key in path:
            inner = inner.setdefault(key, {})
        inner[last] = json.loads(item.value_json)


def draw(run: WandbRun, split: str = "val") -> Figure:
    """Losses, scores, AP by category, precision over recall, and images with boxes."""
    figure = Figure(figsize=(11, 7.2), layout="constrained", dpi=90)
    figure.suptitle(
        "   ".join([run.about["name"] or f"run {run.about['id']}", *run.about["tags"]]), fontsize=10
    )
    halves: Any = figure.subfigures(2, 1, height_ratios=(1, 1.15))  # an array, which their types do not tell
    above, below = halves
    losses, scores, precision = above.subplots(1, 3)
    for name in sorted({name for row in run.history for name in row if name.startswith("train/r")}):
        losses.plot(*run.series(name), label=name)
    losses.set(title="losses", xlabel="trainer/global_step", ylim=(0, 1.35 * losses.get_ylim()[1]))
    for name in ("AP", "AP50", "AP75"):
        scores.plot(*run.series(f"val/{name}"), marker="o", markersize=3, label=f"val/{name}")
    scores.axhline(run.summary["val/AP"], color="grey", linestyle=":", label="val/AP of the summary")
    scores.set(title="scores", xlabel="trainer/global_step", ylim=(0, None))
    for label, line in run.curves(f"{split}/pr").items():
        precision.plot(*line, label=label)
    precision.set(title=f"{split}/pr", xlabel="recall", ylabel="precision", ylim=(0, 1.02))
    for axes in (losses, scores, precision):
        axes.legend(fontsize=7, ncols=2 if axes is losses else 1)
        axes.grid(alpha=0.3)
    left, right = below.subfigures(1, 2, width_ratios=(1, 1.25))
    _draw_table(left.subplots(), run.table(f"{split}/categories"), f"{split}/categories")
    grid = list(right.subplots(2, 3).flat)
    for axes in grid:
        axes.axis("off")
    right.suptitle(f"{split}/pictures: truth dashed, predictions of at least {_SURE} solid", fontsize=9)
    for axes, (image, layers) in zip(grid, run.pictures(f"{split}/pictures"), strict=False):
        _draw_picture(axes, image, layers)
    return figure


def _draw_table(axes: Axes, table: dict[str, list[Any]], title: str) -> None:
    rows = [
        ["" if cell is None else cell if isinstance(cell, str) else f"{cell:.3f}" for cell in row]
        for row in zip(*table.values(), strict=True)
    ]
    axes.axis("off")
    axes.set_title(title, fontsize=9)
    drawn = axes.table(rows, colLabels=list(table), loc="center", edges="horizontal")
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(7)
    drawn.scale(1, 1.1)


def _draw_picture(axes: Axes, image: Image.Image, layers: dict[str, list[dict[str, Any]]]) -> None:
    axes.imshow(np.asarray(image))
    for layer, style in (("truth", "--"), ("predictions", "-")):
        for box in layers[layer]:
            if layer == "predictions" and box["scores"]["score"] < _SURE:
                continue
            x1, y1, x2, y2 = (box["position"][side] for side in ("minX", "minY", "maxX", "maxY"))
            colour = colormaps["tab10"](box["class_id"] % 10)
            axes.add_patch(
                Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linestyle=style)
            )
            if layer == "predictions":
                axes.text(
                    x1,
                    y1,
                    box["box_caption"],
                    fontsize=5,
                    va="bottom",
                    bbox={"color": colour, "pad": 0.5},
                    clip_on=True,
                )


def main() -> None:
    """Draw one run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the folder of an offline run")
    parser.add_argument("out", type=Path, help="the picture to write")
    parser.add_argument("--split", default="val", choices=("val", "test"), help="whose tables and pictures")
    options = parser.parse_args()
    draw(read_run(options.run), options.split).savefig(options.out)
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
