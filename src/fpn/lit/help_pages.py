"""What --help says of commands whose parser has hundreds of options: a page to begin with, and topics."""

from argparse import Action, RawDescriptionHelpFormatter
from collections.abc import Iterable, Sequence
from typing import Any

from fpn.errors import InputError

TOPICS = ("all", "model", "data", "trainer")
"""What follows --help, for the parser's own help or a part of it."""

_MORE = """
more:
  fpn {command} --help model    the detector: bottom-up, neck, RPN, head, schedule, optimiser
  fpn {command} --help data     files, sizes of images, loading
  fpn {command} --help trainer  devices, precision, callbacks, loggers: Lightning's Trainer
  fpn {command} --help all      every option{and_names}
  fpn {command} --model.detector.neck.help FeaturePyramid
                          the options of one class; so of any part
  fpn configs             the configurations that come with fpn; --copy NAME to change one
Several files may be given, each a difference to those before; options win over files."""

_FIT = """usage: fpn fit [--config NAME] ... [options]

Train a detector, validating as it goes. A folder of its own under runs/ gets the checkpoints
best.ckpt and last.ckpt, the scores and losses in metrics.csv, and the configuration.

examples:
  see a small one learn shapes that it draws itself, in minutes on a CPU
    fpn fit --config quickstart
  your own images, from a detector of COCO
    fpn fit --config finetune --data.root DIR --epochs 20
  the paper's detector on COCO, on 8 GPUs
    fpn fit --config base --data.root /data/coco --trainer.devices 8
  a row of the paper's tables, here without the top-down pathway
    fpn fit --config base --config table1/d --data.root /data/coco
  go on with an interrupted run, if there is one
    fpn fit --config base --data.root /data/coco --ckpt_path last

options used most:
  --config NAME                  a file, or one that `fpn configs` lists
  --epochs N                     passes over your training images; the schedule is stretched to them
  --data.root DIR                the data: COCO's layout, or that of a labelling tool
  --data.val_share SHARE         set aside for validation where there are no such images: 0.2
  --data.batch_size B            images a step and process; learning rate and steps follow it
  --data.images.short_side PX    size that images are resized to: smaller is faster
  --model.start_from FILE        weights to begin with: a checkpoint, torchvision's, Detectron2's
  --model.optimizer.lr RATE      learning rate, for model.schedule.reference_images (16) a step
  --trainer.devices N            GPUs or processes; --trainer.accelerator cpu for the CPU
  --trainer.precision bf16-mixed faster on a GPU
  --ckpt_path FILE               the run to go on with; last: the newest below runs/
"""

_SCORE = """usage: fpn {command} --ckpt_path FILE [options]

Score a checkpoint on the {images} images.{writes}

examples:
  on the data it was trained with
    fpn {command} --ckpt_path best.ckpt
  on other images with the same categories
    fpn {command} --ckpt_path best.ckpt --data.{split}.annotations more.json --data.{split}.images more/
  torchvision's published detector, on COCO
    fpn {command} --config interop/torchvision_coco_v1 --data.root /data/coco
  at another size, on two GPUs
    fpn {command} --ckpt_path best.ckpt --data.images.short_side 1000 --trainer.devices 2
  {last}

options used most:
  --ckpt_path FILE               what is scored; it remembers its model and data; best: the newest
  --config NAME                  a file, or one that `fpn configs` lists
  --data.root DIR                the data
  --data.{split}.annotations FILE  other annotations; with --data.{split}.images, their folder
  --data.images.short_side PX    size that images are resized to
  --data.eval_batch_size B       images at a time and process
  --data.num_workers N           processes that load images
  --model.start_from FILE        in place of a checkpoint: weights of torchvision or Detectron2
  --model.engine pycocotools     score by the slower reference
  --trainer.devices N            GPUs or processes; --trainer.accelerator cpu for the CPU
  --stage_times                  print at the end how long each stage took
"""

PAGES = {
    "fit": _FIT + _MORE.format(command="fit", and_names=", and the names that callbacks may watch"),
    "validate": _SCORE.format(
        command="validate",
        images="validation",
        split="val",
        writes="",
        last="by the reference\n    fpn validate --ckpt_path best.ckpt --model.engine pycocotools",
    )
    + _MORE.format(command="validate", and_names=""),
    "test": _SCORE.format(
        command="test",
        images="test",
        split="test",
        writes=" Beside its run it writes all tables, a report\n"
        "(report.html) and the results in COCO's format. --report false leaves the report out.",
        last="at three sizes, whose boxes are merged\n"
        "    fpn test --ckpt_path best.ckpt --data.images.test_scales '[0.75, 1, 1.25]'",
    )
    + _MORE.format(command="test", and_names=""),
}
"""The pages to begin with."""


def of_options() -> type[RawDescriptionHelpFormatter]:
    """What writes the help of a command that is a function: its docstring, then its options.

    Only a default that tells something is told, and no type.
    """
    from jsonargparse import DefaultHelpFormatter

    class Help(RawDescriptionHelpFormatter, DefaultHelpFormatter):
        def __init__(self, prog: str) -> None:
            super().__init__(prog, max_help_position=32)

        def add_usage(self, usage: str | None, actions: Iterable[Action], *args: Any, **named: Any) -> None:
            needed = [self._format_action_invocation(action) for action in actions if action.required]
            super().add_usage(" ".join(["%(prog)s", *needed, "[options]"]), actions, *args, **named)

        def add_argument(self, action: Action) -> None:
            if action.dest not in ("help", "print_config"):
                super().add_argument(action)

        def _format_action_invocation(self, action: Action) -> str:
            first, *_ = str(super()._format_action_invocation(action)).split(", -")
            return action.option_strings[0] if action.default is False else first

        def _get_default_metavar_for_optional(self, action: Action) -> str:
            return action.dest.rpartition("_")[2].upper()

        def _get_help_string(self, action: Action) -> str:
            plain = action.required or action.default is None or action.default is False
            return f"{action.help}" + ("" if plain else f" (default: {action.default})")

    return Help


def topic_asked(command: str, words: Sequence[str]) -> str | None:
    """What help is asked for: one of TOPICS, "" for the page to begin with, None for none.

    Raises:
        InputError: there is no such topic.
    """
    for number, word in enumerate(words):
        option, _, topic = word.partition("=")
        if option not in ("-h", "--help"):
            continue
        topic = topic or next((after for after in words[number + 1 :][:1] if not after.startswith("-")), "")
        if topic and topic not in TOPICS:
            raise InputError(f"fpn {command} --help has no {topic!r}; it has {', '.join(TOPICS)}")
        return topic
    return None
