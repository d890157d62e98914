"""The command line: `fpn fit | validate | test` are Lightning's, the rest is in commands.py."""

import argparse
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from jsonargparse import ArgumentError, Namespace
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from fpn.allocator import keep_freed_memory
from fpn.checkpoints import (
    forget_imagenet,
    forget_initial_weights,
    remembered_config,
    remembered_version,
)
from fpn.console import refused
from fpn.data.datamodule import CocoDataModule
from fpn.errors import InputError
from fpn.lit.callbacks import Bar, PlainProgress, PrintStageTimes, Scores, Throughput
from fpn.lit.checkpointing import BestCheckpoint, LastCheckpoint, WholeCheckpoints
from fpn.lit.module import DetectionModule
from fpn.lit.run_folder import OwnFolder, led_by_a_file
from fpn.lit.stopping import EndOnSignal, EndTogether
from fpn.lit.together import StepError
from fpn.trust import check_classes

_SWITCHES = ("--proposals", "--pictures", "--decode", "--stage_times")
"""Options that mean true where no value follows."""

COMMANDS = {
    "fit": "train a detector, validating as it goes",
    "validate": "score a checkpoint on the validation images",
    "test": "score a checkpoint on the test images: all tables, results in COCO's format",
    "predict": "find objects in images with a checkpoint: COCO results and pictures",
    "evaluate": "score a saved COCO results file",
    "audit": "look at a COCO data set: what is wrong or odd, and whether training would take it",
    "proposals": "convert COCO results to a proposal file, which Fast R-CNN reads, or back",
    "join": "make one Faster R-CNN of an RPN and a Fast R-CNN that share their features",
    "shapes": "make the embedded data set of generated shapes",
}


class DetectionCLI(LightningCLI):
    """LightningCLI for a DetectionModule on a CocoDataModule.

    What a checkpoint remembers of its model and data takes the place of the defaults: whatever is
    given on the command line or in a configuration file wins over it.
    """

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Those of Lightning's commands that need a data module."""
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"},
            "validate": {"model", "dataloaders", "datamodule"},
            "test": {"model", "dataloaders", "datamodule"},
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Read COCO unless told otherwise, and take the number of classes from the data."""
        parser.set_defaults({"data": {"class_path": "fpn.data.datamodule.CocoDataModule"}})
        metrics = ("fpn.evaluation.BoxAP", "fpn.evaluation.ProposalRecall")
        # Told here too, so that --model.metrics+= adds one to them.
        parser.set_defaults({"model.metrics": [{"class_path": metric} for metric in metrics]})
        parser.link_arguments("data", "model.classes", _number_of_classes, apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, on top of what the checkpoint remembers where one is given."""
        assert isinstance(args, list)
        for name in ("validate", "test"):
            own = self._subcommand_parsers[name]
            own.set_defaults({"verbose": False})  # our own tables say it better
            own.add_argument(
                "--stage_times",
                type=bool,
                default=False,
                help="print at the end how much time each stage took, from loading to scoring",
            )
        for own in self._subcommand_parsers.values():
            own.set_defaults({"weights_only": True})
        subcommand, *rest = args
        path, asked = _given_checkpoint(rest)
        kinds = {"model": DetectionModule, "data": CocoDataModule}
        remembered = remembered_config(path, kinds, asked) if path is not None else None
        if remembered is not None:
            rest = ["--config", remembered, *rest]
        self.config = parser.parse_args([subcommand, *rest])
        if path is None and subcommand != "fit" and self.config[subcommand].model.start_from is None:
            raise InputError(
                f"fpn {subcommand} needs --ckpt_path, the checkpoint to be scored, or --model.start_from"
            )

    def _parse_ckpt_path(self) -> None:
        # Lightning's own would let the checkpoint's values win over those the user gives.
        pass

    def before_instantiate_classes(self) -> None:
        """Only classes are made; with a checkpoint at hand, weights it would only replace are not loaded."""
        config = self.config[self.subcommand]
        check_classes(config.as_dict())
        every = config.trainer.check_val_every_n_epoch
        if every is not None and every < 1:
            raise InputError(
                f"trainer.check_val_every_n_epoch is {every}: give 1 at least; "
                "trainer.limit_val_batches 0 leaves validation out"
            )
        if config.get("ckpt_path"):
            forget_initial_weights(config.model)
            if self.subcommand == "fit":
                _go_on_with_dashboard(config)
        elif config.model.start_from and "bottom_up" in (config.model.start_parts or ["bottom_up"]):
            forget_imagenet(config.model)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer with the callbacks of every run, less those that the user's flags rule out.

        A callback that the user gives takes the place of the one of its class.
        """
        given = self.config_init[self.subcommand]["trainer"]
        callbacks: list[Callback] = [Throughput(), Scores(), EndOnSignal(), EndTogether()]
        if given["enable_checkpointing"] is not False:
            callbacks += [BestCheckpoint(), LastCheckpoint()]
        if given["enable_progress_bar"] is not False:
            callbacks.append(Bar() if sys.stdout.isatty() else PlainProgress())
        if given["logger"] is not False and not given["fast_dev_run"]:
            callbacks.append(LearningRateMonitor())
        if self.config[self.subcommand].get("stage_times"):
            callbacks.append(PrintStageTimes())
        own = given["callbacks"] or []
        own = own if isinstance(own, list) else [own]
        kinds = [ProgressBar if isinstance(default, ProgressBar) else type(default) for default in callbacks]
        self.trainer_defaults["callbacks"] = [
            default
            for default, kind in zip(callbacks, kinds, strict=True)
            if not any(isinstance(callback, kind) for callback in own)
        ]
        trainer: Any = super().instantiate_trainer(**kwargs)
        if trainer.loggers and not trainer.fast_dev_run:
            trainer.loggers = led_by_a_file(trainer.loggers)
        # The last checkpoint tells of the best one, wherever the user puts it.
        trainer.callbacks.sort(key=lambda callback: isinstance(callback, LastCheckpoint))
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeCheckpoints()
        return cast(Trainer, trainer)

    def after_instantiate_classes(self) -> None:
        """Let the module keep its configuration, for its checkpoints."""
        config = self.config[self.subcommand]
        self.model.config = {"model": _plain(config.model), "data": _plain(config.data)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; a user's mistake ends in one line on standard error and exit status 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _quiet()
    keep_freed_memory()
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(_usage())  # noqa: T201
            return
        command, *rest = _with_values(arguments)
        if command not in COMMANDS:
            raise InputError(f"fpn has no command {command!r}; it has {', '.join(COMMANDS)}")
        if command in DetectionCLI.subcommands():
            _run_lightning([command, *rest])
        else:
            from fpn.lit.commands import run

            run(command, rest)
    except SIGTERMException as error:
        number = signal.Signals(error.args[0] if error.args else signal.SIGTERM)
        if _first_process():
            line = f"fpn: ended by {number.name}; a fit goes on with --ckpt_path of its last.ckpt"
            print(line, file=sys.stderr)  # noqa: T201
        sys.exit(128 + number)
    except Exception as error:
        message = _mistake(error)
        if message is None:
            raise
        if _first_process() or not isinstance(error, StepError):
            print(f"fpn: {message}", file=sys.stderr)  # noqa: T201
        sys.exit(2)


def _mistake(error: BaseException | None) -> str | None:
    """The message of a user's mistake, wherever in a chain of errors it lies; None if it is our fault."""
    while error is not None:
        if isinstance(error, InputError):
            # From a loading process comes that process's traceback; its last line is the message.
            line = str(error).rpartition(f"{InputError.__module__}.{InputError.__name__}: ")[2].strip()
            return "; ".join([line, *getattr(error, "__notes__", [])])
        if isinstance(error, ArgumentError):
            # What the parser got is a long listing, and no news to who gave it.
            return " ".join(str(error).partition("Got value:")[0].split())
        if isinstance(error, MisconfigurationException) or _refused_by_lightning(error):
            return " ".join(str(error).split())
        if isinstance(error, OSError) and (told := refused(error)) is not None:
            return told
        error = error.__cause__
    return None


def _refused_by_lightning(error: BaseException) -> bool:
    """Whether Lightning itself raised a ValueError: so it refuses most of what cannot be set."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return isinstance(error, ValueError) and frames[-1].f_globals["__name__"].startswith("lightning.")


def _with_values(words: Sequence[str]) -> list[str]:
    following = [*words[1:], ""]
    return [
        f"{word}=true" if word in _SWITCHES and (not after or after.startswith("-")) else word
        for word, after in zip(words, following, strict=True)
    ]


def _first_process() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0


def _run_lightning(arguments: list[str]) -> None:
    commands = DetectionCLI.subcommands()
    DetectionCLI(
        DetectionModule,
        CocoDataModule,
        save_config_callback=OwnFolder,
        subclass_mode_data=True,
        seed_everything_default=0,
        trainer_defaults={
            "max_epochs": -1,
            "use_distributed_sampler": False,
            "logger": {
                "class_path": "fpn.lit.metrics_file.MetricsFile",
                "init_args": {"save_dir": "runs", "name": "fpn"},
            },
        },
        parser_kwargs={"prog": "fpn", "exit_on_error": False}
        | {name: {"description": _description(name), "exit_on_error": False} for name in commands},
        auto_configure_optimizers=False,
        args=arguments,
    )


def _go_on_with_dashboard(config: Namespace) -> None:
    """Give a W&B run that has no id the one of the checkpoint."""
    loggers = config.trainer.logger
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        arguments = getattr(logger, "init_args", None)
        if arguments is not None and logger.class_path.endswith(".Dashboard") and arguments.id is None:
            arguments.id = remembered_version(config.ckpt_path, "Dashboard")


def _given_checkpoint(arguments: Sequence[str]) -> tuple[str | None, str]:
    """The checkpoint named on the command line, or else in the last configuration file to name one.

    Besides, all that the user says, there and in configuration files.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--ckpt_path")
    finder.add_argument("--config", "-c", action="append", default=[])
    given, _ = finder.parse_known_args(arguments)
    path: str | None = given.ckpt_path
    texts = [*arguments]
    for file in reversed([file for file in given.config if Path(file).is_file()]):
        try:
            texts.append(Path(file).read_text())
            content = yaml.safe_load(texts[-1])
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).replace('in "<unicode string>", ', "at ").split())
            raise InputError(f"{file}: not a YAML file: {reason}") from None
        if path is None and isinstance(content, dict):
            path = content.get("ckpt_path")
    return path, "\n".join(texts)


def _number_of_classes(data: CocoDataModule) -> int:
    return len(data.categories.ids)


def _plain(value: Any) -> Any:
    """Namespaces as dictionaries, tuples as lists: what a checkpoint may hold."""
    if isinstance(value, Namespace):
        return {key: _plain(item) for key, item in vars(value).items()}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _description(command: str) -> str:
    text = COMMANDS[command]
    return (
        f"{text[0].upper()}{text[1:]}. "
        f"The options of a detector are listed by `fpn {command} --model.detector.help FasterRCNN` "
        f"(or ProposalNetwork), "
        f"those of its parts by `--model.detector.neck.help FeaturePyramid` and the like, "
        f"those of the data by `fpn {command} --data.help CocoDataModule`."
    )


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: fpn COMMAND [options]",
            "",
            "Feature Pyramid Networks for object detection.",
            "",
            "commands:",
            *lines,
            "",
            "fpn COMMAND --help lists a command's options.",
        ]
    )


def _quiet() -> None:
    """Keep Lightning's advertising and its known false alarms off the terminal."""
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning's, not the user's
    rank_zero = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    rank_zero.addFilter(lambda record: "💡" not in record.getMessage())
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*The dirpath has changed.*")
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
