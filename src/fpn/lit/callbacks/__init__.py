"""What tells of a run, saves it and ends it, a file each; the command line gives every run those it needs."""

from fpn.lit.callbacks.best_checkpoint import BestCheckpoint
from fpn.lit.callbacks.ema import EMA
from fpn.lit.callbacks.ending import Ending
from fpn.lit.callbacks.last_checkpoint import LastCheckpoint
from fpn.lit.callbacks.panels import Panels
from fpn.lit.callbacks.progress import Bar, PlainProgress, Throughput
from fpn.lit.callbacks.published import Published
from fpn.lit.callbacks.report import Report
from fpn.lit.callbacks.scores import Scores
from fpn.lit.callbacks.stage_times import PrintStageTimes

__all__ = [
    "EMA",
    "Bar",
    "BestCheckpoint",
    "Ending",
    "LastCheckpoint",
    "Panels",
    "PlainProgress",
    "PrintStageTimes",
    "Published",
    "Report",
    "Scores",
    "Throughput",
]
