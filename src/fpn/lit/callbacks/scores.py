"""The scores of a validation or test, for the eye and in files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from rich import get_console

from fpn.console import say
from fpn.data.results import write_results
from fpn.files import replacing, strict_json


class Scores(Callback):
    """Prints scores after every validation, and all tables after a test.

    A test writes `scores.json` to the run's folder, and what its metrics keep besides. Those of COCO write
    `curves.json` (recall of the proposals by their number, the objects' size and the IoU) and, as COCO
    results, `detections.json`, or `proposals.json` of a proposal network; in scores.json they add AP by
    category. A number is null where there is no such object. Each file is there when it is whole. With
    trainer.fast_dev_run nothing is written.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """One line: the main scores, and the loss."""
        if trainer.sanity_checking:
            return
        lines = [metric.line(scores) for metric, scores in pl_module.by_metric()]
        if "val/loss" in trainer.callback_metrics:
            lines.append(f"loss {trainer.callback_metrics['val/loss']:.4g}")
        if trainer.is_global_zero:
            step = f"step {trainer.global_step:,}: " if trainer.state.fn == TrainerFn.FITTING else ""
            say(step + "  ".join(lines))

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        """All tables, and the files."""
        found = pl_module.by_metric()
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        if not trainer.is_global_zero:
            return
        report: dict[str, Any] = {}
        for metric, scores in found:
            get_console().print(*metric.tables(scores))
            report |= scores
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        names = ["scores.json"]
        for metric, _ in found:
            files = metric.files()
            report |= files.pop("scores.json", {})
            for name, content in files.items():
                _write(folder / name, content)
            names += files
        _write(folder / "scores.json", report)
        if sum(trainer.num_test_batches) < len(trainer.test_dataloaders or ()):
            say("only a part of the images was scored, as trainer.limit_test_batches says")
        say(f"written to {folder}: {', '.join(names)}")


def _write(path: Path, content: Any) -> None:
    if isinstance(content, Iterator):
        write_results(path, content)
        return
    with replacing(path) as part:
        part.write_text(strict_json(content))
