"""What ends a run: signals, and failures of one process among several."""

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from subprocess import Popen
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from fpn import lightning_private
from fpn.console import leave_terminal
from fpn.data.datamodule import CocoDataModule
from fpn.errors import InputError
from fpn.lit.together import StepError, first_process
from fpn.types import Batch


class EndOnSignal(Callback):
    """Ends training after the same step in all processes, whichever of them got a signal to end.

    These are SIGTERM, SIGUSR1, SIGHUP and Ctrl-C, a second of which ends at once; not those that are ignored
    when training begins, as nohup has it. Lightning's own handler of SIGTERM broadcasts from within the
    signal, where other processes may be in the midst of another exchange, and each process ends where it
    is: together they hang. That of a SLURM job saves in the midst of a step and puts the job back in the
    queue, where it goes on with what it finds. Here that is left to the job's script, which is told
    by the exit status.

    A process that waits for its images, which may never come, ends at once; where there are several, only
    after a while, and without a checkpoint, for the others wait for this one meanwhile.

    Args:
        every_n_steps: several processes ask each other so often, and at the end of every epoch.
        patience: seconds that one of several processes waits for its images before it ends alone.
    """

    def __init__(self, every_n_steps: int = 8, patience: float = 20.0) -> None:
        self.every_n_steps, self.patience = every_n_steps, patience
        self.asked = 0
        """The number of the signal, or 0."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep Lightning from putting SLURM jobs back, and look in while images are waited for."""
        self.asked = 0
        lightning_private.keep_out_of_queue(trainer)
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, CocoDataModule):
            data.while_waiting = partial(self._end_wait, trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen."""
        if not self.asked:
            self._listen()

    on_sanity_check_start = on_train_start  # and end after the first step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """End between two steps of the optimiser; what ends an epoch or the run is validated first."""
        done = 0 < trainer.max_steps <= trainer.global_step
        last = lightning_private.in_last_batch(trainer)
        if last or done or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if trainer.world_size == 1 or trainer.global_step % self.every_n_steps == 0:
            self._end_if_asked(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """End at once, where no other process waits for this one's boxes."""
        if trainer.world_size == 1 and not trainer.sanity_checking:
            self._end_if_asked(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End, unless the run does anyway."""
        if not trainer.should_stop and trainer.global_step != trainer.max_steps:
            self._end_if_asked(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Tell the command line which signal it was."""
        if isinstance(exception, SIGTERMException) and self.asked:
            exception.args = (self.asked,)

    def _listen(self) -> None:
        """Take the place of handlers that Lightning itself restores at the end."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = number
        if number == signal.SIGHUP:
            leave_terminal()
        elif number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if first_process():
                with suppress(OSError):  # of an output that is closed
                    # Not by print, in the midst of which the signal may have come.
                    os.write(2, b"\nfpn: ending after this step; again to stop at once\n")

    def _end_wait(self, trainer: Trainer, seconds: float) -> None:
        """End a process that has waited so long for its images."""
        # Lightning's own handler is the one of a test.
        asked = self.asked or (signal.SIGTERM if trainer.received_sigterm else 0)
        if asked and trainer.world_size == 1:
            raise SIGTERMException(asked)
        if asked and seconds >= self.patience:
            raise InputError(
                f"ended by {signal.Signals(asked).name} without a checkpoint: this process waits for images "
                "that do not come, and the others for it"
            )

    def _end_if_asked(self, trainer: Trainer) -> None:
        asked = self.asked
        if trainer.world_size > 1:
            number = torch.tensor(asked, device=trainer.strategy.root_device)
            asked = int(trainer.strategy.reduce(number, reduce_op="max"))
        if asked:
            # Only now: a signal may have come during the exchange, and counts at the next.
            self.asked = asked
            lightning_private.end_as_if_asked(trainer)


class EndTogether(Callback):
    """Ends the processes that a command has started when one of them has failed alone.

    The others may wait for it for ever. The one that failed tells why, and its exit status becomes the
    command's. Lightning's own observer kills the command from within, whatever it is writing just then.

    Args:
        patience: seconds for the first process to find out and end by itself.
    """

    def __init__(self, patience: float = 5.0) -> None:
        self.patience = patience
        self._started: list[Popen[bytes]] = []
        self._over = threading.Event()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the place of Lightning's observer, in the process that has started the others."""
        if not self._started:
            self._started = lightning_private.take_over_processes(trainer)
            if self._started:
                threading.Thread(target=self._watch, daemon=True).start()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the others, unless they end at the same step."""
        self._over.set()
        if not self._started or isinstance(exception, StepError | SIGTERMException | KeyboardInterrupt):
            return
        # What a process says whose partner is gone is not worth hearing, and it takes a moment to be gone.
        status = (
            None
            if isinstance(exception, InputError | OSError)
            else self._status(time.monotonic() + self.patience)
        )
        self._kill()
        if status is not None:
            sys.exit(status)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The run has ended well."""
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            status = self._status()
            if status is not None and not self._over.wait(self.patience):
                self._kill()
                sys.stdout.flush()
                os._exit(status)

    def _status(self, until: float = 0.0) -> int | None:
        """The exit status of the first process to have failed, waiting for one for a while."""
        while True:
            for rank, process in enumerate(self._started, start=1):
                if process.poll():
                    return _told(rank, process.returncode)
            if time.monotonic() >= until:
                return None
            time.sleep(0.05)

    def _kill(self) -> None:
        for process in self._started:
            process.kill()


def _told(rank: int, status: int) -> int:
    """The exit status of a process, which is named if it could not tell anything itself."""
    if status > 0:
        return status
    name = signal.Signals(-status).name
    print(f"fpn: process {rank} of this machine was ended by {name}", file=sys.stderr)  # noqa: T201
    return 128 - status
