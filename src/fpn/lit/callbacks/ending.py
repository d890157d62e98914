"""What a fit leaves: its best score, its folder, and what comes next."""

import shlex
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from fpn.console import say
from fpn.lit.callbacks.best_checkpoint import BestCheckpoint
from fpn.lit.callbacks.last_checkpoint import LastCheckpoint
from fpn.lit.resuming import config_of
from fpn.trust import flags_for
from fpn.weights import read_checkpoint


class Ending(Callback):
    """Tells at the end of a fit, in a few lines, what came of it."""

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        """The best score and its checkpoint, the folder, and the command that scores a checkpoint."""
        folder = trainer.log_dir  # which all processes have to ask together
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        newest = ""
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, LastCheckpoint) and callback.saved >= 0:
                newest = newest or str(callback.path)
            if isinstance(callback, BestCheckpoint) and (best := callback.told()):
                newest = callback.best_model_path
                step = read_checkpoint(newest)["global_step"]
                say(f"best {best} at step {step:,}: {_short(newest)}")
        for stopping in trainer.early_stopping_callbacks:
            if trainer.should_stop and stopping.stopping_reason_message:
                say(f"ended early: {stopping.stopping_reason_message}")
        if trainer.loggers and folder:
            say(f"the run's folder: {_short(folder)}")
        if newest:
            flags = flags_for(config_of(pl_module))
            say(" ".join(["next: fpn test --ckpt_path", shlex.quote(_short(newest)), *flags]))


def _short(path: str) -> str:
    """From the working directory, if it lies in it."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path
