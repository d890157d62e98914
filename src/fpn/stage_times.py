"""Where the time of a detector goes: seconds by stage, measured from outside the network."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fpn.models.detectors import Detector
from fpn.types import Batch, Inference

Stage = Literal[
    "load", "bottom-up", "neck", "RPN", "proposals", "RoI head", "post-processing", "losses", "results"
]

_STAGES: dict[str, tuple[Stage, ...]] = {
    "bottom_up": ("bottom-up",),
    "neck": ("neck",),
    "rpn": ("RPN", "proposals"),
    "roi_head": ("RoI head", "post-processing"),
    "later_heads": ("RoI head", "post-processing"),
}
"""Of each part of a detector: its own forward, and what is done with its output if no part takes it."""


class StageTimes:
    """A context that times the stages of all that its detector finds in it.

        with StageTimes(detector) as times:
            for batch in loader:
                detector(batch)
                times.begin("load")
        Console().print(times.table())

    `bottom-up`, `neck`, `RPN` and `RoI head` are the forwards of these parts. `proposals` is from the
    RPN's end to the RoI head's start, or to the end of a detector without one; `post-processing`
    from the RoI head's end to the detector's. What follows, keeping and writing the results, is
    `results` until the caller begins `load`, which ends when the detector starts. The context
    begins with `load`. Of a validation that asks for them, `losses` are all that they take besides. So each
    moment in it belongs to one stage, and together they are all of it.

    On an accelerator each start and end waits for the device, which costs a little time.

    Args:
        detector: the one that runs; training is not timed.
        clock: tells the time in seconds.
    """

    seconds: dict[Stage, float]
    """By stage, in the order of their coming; a detector without a part has not its stages."""
    batches: int
    """How often the detector ran …"""
    images: int
    """… and on how many images; at several sizes they count once."""

    def __init__(self, detector: Detector, clock: Callable[[], float] = time.perf_counter) -> None:
        self.detector, self.clock = detector, clock
        self._parts = [name for name in _STAGES if hasattr(detector, name)]
        stages: list[Stage] = [stage for part in self._parts for stage in _STAGES[part]]
        self.seconds = dict.fromkeys(["load", *stages, "results"], 0.0)
        self.batches = self.images = 0
        self._first: tuple[dict[Stage, float], int] | None = None
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> "StageTimes":
        stages = list(self.seconds)
        for name in self._parts:
            part, own = self.detector.get_submodule(name), _STAGES[name][0]
            # The next stage begins at once: the little that lies between two parts belongs to the later.
            following = stages[stages.index(own) + 1]
            for module in part if isinstance(part, nn.ModuleList) else [part]:
                self._hooks.append(module.register_forward_pre_hook(partial(self._at, own)))
                self._hooks.append(module.register_forward_hook(partial(self._at, following)))
        self._hooks.append(self.detector.register_forward_pre_hook(partial(self._at, "bottom-up")))
        self._hooks.append(self.detector.register_forward_hook(self._end))
        # Plain methods, for which there are no hooks; the detector's own are not called from them.
        vars(self.detector).update(over_scales=self._over_scales, losses=self._losses)
        self._in_losses = False
        self._stage: Stage = "load"
        self._since = self._now()
        return self

    def __exit__(self, *error: object) -> None:
        for name in ("over_scales", "losses"):
            del vars(self.detector)[name]
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self.begin("results")

    def begin(self, stage: Stage) -> None:
        """End the stage under way and begin another."""
        now = self._now()
        self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + now - self._since
        self._stage, self._since = stage, now
        if stage == "load" and self.batches == 1:
            self._first = dict(self.seconds), self.images

    def table(self, of: str = "") -> Table:
        """All of it for a terminal; the time for an image is without the first batch where there are three.

        Args:
            of: what was timed, for the title.
        """
        begun, done = self._first if self._first and self.batches >= 3 else ({}, 0)
        images = self.images - done
        title = f"Time by stage{of} (images: {self.images:,}, batches: {self.batches:,})"
        if begun:
            title += "\nms per image without the first batch"
        table = Table(title=title)
        table.add_column("stage")
        for heading in ("seconds", "%", "ms per image"):
            table.add_column(heading, justify="right", no_wrap=True)
        whole = sum(self.seconds.values())
        for stage, seconds in self.seconds.items():
            ms = f"{1000 * (seconds - begun.get(stage, 0.0)) / images:,.1f}" if images else "–"
            table.add_row(stage, f"{seconds:,.2f}", f"{100 * seconds / whole:.1f}", ms)
        table.add_section()
        ms = f"{1000 * (whole - sum(begun.values())) / images:,.1f}" if images else "–"
        table.add_row("all", f"{whole:,.2f}", "100.0", ms)
        return table

    def _at(self, stage: Stage, *_: Any) -> None:
        if not self._in_losses:
            self.begin(stage)

    def _end(self, _: nn.Module, arguments: tuple[Batch], found: Inference) -> None:
        self.begin("results")
        self.batches += 1
        self.images += len(arguments[0].images)

    def _over_scales(self, batches: Sequence[Batch]) -> Inference:
        self.begin("bottom-up")
        found = type(self.detector).over_scales(self.detector, batches)
        self._end(self.detector, (batches[0],), found)
        return found

    def _losses(self, *arguments: Any) -> dict[str, Tensor]:
        self.begin("losses")
        self._in_losses = True
        try:
            return type(self.detector).losses(self.detector, *arguments)
        finally:
            self._in_losses = False
            self.begin("results")

    def _now(self) -> float:
        device = next(self.detector.parameters()).device
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return self.clock()
