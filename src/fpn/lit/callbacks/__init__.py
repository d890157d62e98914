"""What tells of a run, saves it and ends it, a file each; the command line gives every run those it needs."""

from fpn.lit.callbacks.best_checkpoint import BestCheckpoint as BestCheckpoint
from fpn.lit.callbacks.ema import EMA as EMA
from fpn.lit.callbacks.ending import Ending as Ending
from fpn.lit.callbacks.last_checkpoint import LastCheckpoint as LastCheckpoint
from fpn.lit.callbacks.panels import Panels as Panels
from fpn.lit.callbacks.progress import Bar as Bar
from fpn.lit.callbacks.progress import PlainProgress as PlainProgress
from fpn.lit.callbacks.progress import Throughput as Throughput
from fpn.lit.callbacks.published import Published as Published
from fpn.lit.callbacks.report import Report as Report
from fpn.lit.callbacks.scores import Scores as Scores
from fpn.lit.callbacks.stage_times import PrintStageTimes as PrintStageTimes
