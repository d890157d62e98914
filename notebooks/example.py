"""What the notebooks begin with: the project's root as working directory, a detector, and its data."""

import os
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from cycler import cycler
from matplotlib_inline.backend_inline import set_matplotlib_formats

from fpn.checkpoints import load
from fpn.lit.cli import main
from fpn.models.detectors import FasterRCNN
from fpn.palette import LINES
from fpn.weights import read_checkpoint

ROOT = Path(__file__).resolve().parents[1]
# `figures`, wherever one works from, and the measures of `scripts/questions.py`.
sys.path += [str(ROOT / "notebooks"), str(ROOT / "scripts")]

from aliasing import smooths_a_sum  # noqa: E402

SHORT = "--data.train_count 500 --data.val_count 60 --model.schedule.steps 240 --trainer.limit_val_batches 0"
LOGGER = "{class_path: fpn.lit.metrics_file.MetricsFile, init_args: {save_dir: runs, name: notebooks}}"


def begin() -> None:
    """Work from the project's root; figures are small JPEG files, which keeps the notebooks small."""
    os.chdir(ROOT)
    set_matplotlib_formats("jpeg", pil_kwargs={"quality": 45, "optimize": True})
    plt.rcParams |= {"figure.dpi": 68, "figure.constrained_layout.use": True}
    plt.rcParams |= {"font.size": 8, "axes.titlesize": 9, "axes.prop_cycle": cycler(color=LINES)}


def detector_and_data() -> tuple[Path, Path]:
    """The checkpoint of `make quickstart` and its data; without it, of one trained here for a minute.

    Passed over are an ablation of it, as the notebooks speak of the whole pyramid, and a training cut short.
    """
    for name, data in (("quickstart", "shapes"), ("notebooks", "notebooks")):
        found = Path("runs", name).glob("version_*/checkpoints/last.ckpt")
        for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True):
            detector = load(path).detector
            whole = isinstance(detector, FasterRCNN) and smooths_a_sum(detector.neck)
            if whole and is_finished(read_checkpoint(path)):
                return path, Path("datasets", data)
    words = ["--data.folder", "datasets/notebooks", "--trainer.logger", LOGGER, *SHORT.split()]
    main(["fit", "--config", "configs/quickstart.yaml", *words])
    return detector_and_data()


def is_finished(checkpoint: dict[str, Any]) -> bool:
    """Whether a training has done all of its steps."""
    return checkpoint["global_step"] >= checkpoint["fpn"]["config"]["model"]["schedule"]["steps"]
