"""How much time the stages of finding objects take."""

from contextlib import ExitStack
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich import get_console

from fpn.errors import InputError
from fpn.stage_times import StageTimes


class PrintStageTimes(Callback):
    """Prints how much time each stage of a validation or test took, in the first process.

    To the results belong collecting and scoring them, and what a test writes.
    """

    def __init__(self) -> None:
        self._clock = ExitStack()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a training, in whose validations averaged weights come after the clock has to start.

        Raises:
            InputError: it is one.
        """
        if stage == "fit":
            raise InputError("PrintStageTimes is for validations and tests: leave it out of a training")

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Start the clock."""
        self.times = self._clock.enter_context(StageTimes(pl_module.finder))

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        """The next batch is waited for."""
        self.times.begin("load")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """There is none; scoring begins."""
        self.times.begin("results")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print."""
        self._clock.close()
        if trainer.is_global_zero:
            of = f" of the first of {trainer.world_size} processes" if trainer.world_size > 1 else ""
            get_console().print(self.times.table(of))

    # A test is timed as a validation is.
    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end
    on_test_end = on_validation_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the detector as it was."""
        self._clock.close()
