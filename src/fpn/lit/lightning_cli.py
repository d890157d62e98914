"""`fpn fit | validate | test`, which are Lightning's, with a configuration that a checkpoint may bring."""

import argparse
import itertools
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import yaml
from jsonargparse import Namespace
from jsonargparse._util import import_object
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ProgressBar, WeightAveraging
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

from fpn import lightning_private
from fpn.checkpoints import remembered
from fpn.console import told, warnings_in_a_line
from fpn.data.datamodule import CocoDataModule
from fpn.errors import InputError
from fpn.evaluation import BoxAP, ProposalRecall
from fpn.lightning_private import failed_in
from fpn.lit.callbacks import (
    Bar,
    BestCheckpoint,
    Ending,
    LastCheckpoint,
    Panels,
    PlainProgress,
    PrintStageTimes,
    Report,
    Scores,
    Throughput,
)
from fpn.lit.checkpointing import WholeCheckpoints
from fpn.lit.cli import COMMANDS
from fpn.lit.finding import Finder, find
from fpn.lit.lengths import displaced_epochs
from fpn.lit.module import DetectionModule
from fpn.lit.run_folder import OwnFolder, beside_its_run, led_by_a_file, newest_of_runs
from fpn.lit.starting import look_ahead
from fpn.lit.stopping import EndOnSignal, EndTogether
from fpn.lit.together import StepError, first_process
from fpn.lit.watching import names
from fpn.models.detectors import FasterRCNN
from fpn.parsing import Parser, as_word
from fpn.trust import check_classes, import_named, only_imported, only_installed
from fpn.words import options_of, read_yaml, spelled_out, value_of

_PACKAGES = {
    "TensorBoardLogger": ("tensorboard", "'fpn[tensorboard]'"),
    "MLFlowLogger": ("mlflow", "mlflow"),
    "CometLogger": ("comet_ml", "comet-ml"),
    "LitLogger": ("litlogger", "litlogger"),
}
"""What Lightning's loggers, and those that derive from them, need besides: module, and what pip calls it."""


class _Parser(Parser, LightningArgumentParser):
    """Lightning's, with what is ours."""

    listed = ""
    """How the options begin that help lists, with nothing else; empty for all."""

    def format_help(self, *args: Any) -> str:
        """As argparse's, or only the groups of options that are asked for."""
        if not self.listed:
            return str(super().format_help(*args))
        groups, self.usage, self.description = self._action_groups, argparse.SUPPRESS, None
        self._action_groups = [
            group
            for group in groups
            if any(
                name.startswith(self.listed)
                for action in group._group_actions
                for name in action.option_strings
            )
        ]
        return str(super().format_help(*args))


class DetectionCLI(LightningCLI):
    """LightningCLI for a DetectionModule on a CocoDataModule.

    What a checkpoint remembers of its model and data takes the place of the defaults: whatever is
    given on the command line or in a configuration file wins over it.
    """

    def __init__(self, arguments: list[str], **options: Any) -> None:
        self._asked = arguments[0]
        super().__init__(DetectionModule, CocoDataModule, args=arguments, **options)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The one that is asked for: the options of others take time to look up."""
        return {self._asked: super().subcommands()[self._asked]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Read COCO unless told otherwise, and take the number of classes from the data."""
        parser.set_defaults({"data": {"class_path": "fpn.CocoDataModule"}})
        metrics = ("fpn.evaluation.BoxAP", "fpn.evaluation.ProposalRecall")
        # Told here too, so that --model.metrics+= adds one to them.
        parser.set_defaults({"model.metrics": [{"class_path": metric} for metric in metrics]})
        if self._asked != "fit":
            stages = "print at the end how much time each stage took, from loading to scoring"
            parser.add_argument("--stage_times", type=bool, default=False, help=stages)
        if self._asked == "test":
            page = "write report.html and curves.png beside the scores"
            parser.add_argument("--report", type=bool, default=True, help=page)
        parser.link_arguments(
            "data", "model.classes", lambda data: len(data.categories.ids), apply_on="instantiate"
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, on top of what the checkpoint remembers where one is given."""
        assert isinstance(args, list)
        subcommand, *rest = args
        if subcommand == "fit":
            rest = spelled_out(rest)
        rest, contents = _read_files(rest)
        path = _last_word("ckpt_path", contents, rest)
        if path in ("best", "last"):
            root = _last_word("trainer.default_root_dir", contents, rest)
            path = newest_of_runs(path, root, must_be=subcommand != "fit" or path == "best")
            rest.append(f"--ckpt_path={path or 'null'}")
        configs: list[dict[str, Any]] = [{"weights_only": True}]
        if subcommand != "fit":
            configs.append({"verbose": False})  # our own tables say it better
        if path is not None:
            import_named([*contents, *_values(rest)])  # what is named here may be the checkpoint's too
            before = remembered(path)
            seed = _last_word("seed_everything", contents, rest)
            if subcommand == "fit" and str(seed).isdigit() and int(seed) != before.seed:
                raise InputError(
                    f"{path} was trained with seed_everything {before.seed}, this run has {seed}: leave it as"
                    " it was, or give each run a trainer.default_root_dir of its own"
                )
            configs.append(before.config)
        if subcommand == "fit" and (epochs := displaced_epochs([*configs, *contents], rest)) is not None:
            rank_zero_info(f"this run counts steps, which are given last, and not its {epochs} epochs")
            rest.append("--model.schedule.epochs=null")
        first = [word for config in configs for word in ("--config", as_word(config))]
        with only_installed() if path is not None else nullcontext():
            self.config = parser.parse_args([subcommand, *first, *rest])
            config = self.config[subcommand]
            check_classes(config.as_dict())  # which imports what texts of a checkpoint have become
        root = config.trainer.default_root_dir
        if root is not None and "://" not in str(root):
            for logger in _loggers(config):  # unless theirs is absolute
                if (folder := logger.init_args.get("save_dir")) is not None and "://" not in str(folder):
                    logger.init_args.save_dir = str(Path(root).absolute() / folder)
        if path is None and subcommand != "fit" and config.model.start_from is None:
            raise InputError(
                f"fpn {subcommand} needs --ckpt_path, the checkpoint to be scored, or --model.start_from"
            )
        if path is None:
            return
        placed = root is not None or any(word.startswith("--trainer.logger") for word in args)
        for logger in _loggers(config):
            kind, given = logger.class_path.rpartition(".")[2], logger.init_args
            if subcommand != "validate" and kind == "Dashboard" and given.id is None and given.go_on:
                given.id = before.loggers.get(kind)
            elif subcommand != "fit" and kind == "MetricsFile" and given.version is None and not placed:
                given.update(Namespace(beside_its_run(path, subcommand)))

    def _parse_ckpt_path(self) -> None:
        # Lightning's own would let the checkpoint's values win over those the user gives.
        pass

    def before_instantiate_classes(self) -> None:
        """See to what a run needs before any data are read: classes, packages, weights to begin with."""
        config = self.config[self.subcommand]
        every = config.trainer.check_val_every_n_epoch
        if every is not None and every < 1:
            raise InputError(
                f"trainer.check_val_every_n_epoch is {every}: give 1 at least; "
                "trainer.limit_val_batches 0 leaves validation out"
            )
        if config.trainer.barebones:
            config.trainer.logger = False  # unless it is given, this is ours
        # Of an error in making one the parser makes one of no list of loggers.
        for kind in (import_object(logger.class_path) for logger in _loggers(config)):
            for base in _PACKAGES.keys() & {base.__name__ for base in kind.__mro__}:
                package, wanted = _PACKAGES[base]
                if find_spec(package) is None:
                    raise InputError(
                        f"{kind.__name__} needs {package}, which is not installed: pip install {wanted}"
                    )

        if config.ckpt_path is None and first_process():
            look_ahead(self._plain_config()["model"], bottom_up=self._asked == "fit")

    def _plain_config(self) -> dict[str, Any]:
        """The whole configuration as a file has it."""
        plain = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        return cast(dict[str, Any], plain[self.subcommand])

    def instantiate_classes(self) -> None:
        """Make all; what a callback has to find is found first, and all is made anew with it."""
        going_on = self.config[self.subcommand].ckpt_path is not None
        with only_imported() if going_on else nullcontext():  # once more a text may be taken for a name
            super().instantiate_classes()
        config, given = self.config[self.subcommand], self.config_init[self.subcommand]
        callbacks, named = _listed(given.trainer.callbacks), _listed(config.trainer.callbacks)
        finders = [number for number, one in enumerate(callbacks) if isinstance(one, Finder)]
        if not finders:
            return
        first = finders[0]
        kind = type(callbacks[first]).__name__
        config.trainer.callbacks = [one for number, one in enumerate(named) if number != first] or None
        if self._asked != "fit":
            raise InputError(f"{kind} looks for what a training needs: leave it out of fpn {self._asked}")
        if config.ckpt_path is None:
            find(callbacks[first], config, given.trainer, self.model, self.datamodule)
        else:
            rank_zero_info(f"{kind} is left out: a run goes on with what its checkpoint was trained with")
        self._set_seed()
        self.instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer with the callbacks of every run, less those that the user's flags rule out.

        A callback that the user gives takes the place of the one of its class.
        """
        given = self.config_init[self.subcommand]["trainer"]
        own = _listed(given["callbacks"])

        def replaced(default: Callback) -> bool:
            kind = ProgressBar if isinstance(default, ProgressBar) else type(default)
            return any(isinstance(callback, kind) for callback in own)

        self.trainer_defaults["callbacks"] = [one for one in self._callbacks(given) if not replaced(one)]
        trainer: Any = super().instantiate_trainer(**kwargs)
        if trainer.loggers and not trainer.fast_dev_run:
            trainer.loggers = led_by_a_file(trainer.loggers)
        # The last checkpoint tells of the best one, wherever the user puts it.
        # What averages weights puts them in place when no other callback can fail before it takes them out.
        trainer.callbacks.sort(
            key=lambda one: (isinstance(one, LastCheckpoint), isinstance(one, WeightAveraging))
        )
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeCheckpoints()
        return cast(Trainer, trainer)

    def _callbacks(self, given: Namespace) -> list[Callback]:
        if given["barebones"]:
            return [Scores(), EndOnSignal(), EndTogether()]
        callbacks: list[Callback] = [Throughput(), Scores(), Panels(), Ending(), EndOnSignal(), EndTogether()]
        if given["enable_checkpointing"] is not False:
            callbacks += [BestCheckpoint(), LastCheckpoint()]
        if given["enable_progress_bar"] is not False:
            callbacks.append(Bar() if sys.stdout.isatty() else PlainProgress())
        if given["logger"] is not False and not given["fast_dev_run"]:
            callbacks.append(LearningRateMonitor())
        if self.config[self.subcommand].get("report"):
            callbacks.append(Report())
        if self.config[self.subcommand].get("stage_times"):
            callbacks.append(PrintStageTimes())
        return callbacks

    def after_instantiate_classes(self) -> None:
        """Let the module and its data keep their configuration, for checkpoints."""
        config = self._plain_config()
        self.model.save_hyperparameters(config["model"], logger=False)
        self.datamodule.save_hyperparameters(config["data"].get("init_args", {}), logger=False)


def show_help(command: str, topic: str) -> None:
    """Print the parser's own help of a command.

    Args:
        command: one of Lightning's.
        topic: which part of it (`fpn.lit.help_pages.TOPICS`).
    """
    pages = [["--help"]]
    pages += [["--model.detector.help", "FasterRCNN"]] * (topic == "model")
    pages += [["--data.help", "CocoDataModule"]] * (topic == "data")
    for words in pages:
        with suppress(SystemExit):
            run_lightning([command, *words], listed="" if topic == "all" else f"--{topic}")


def run_lightning(arguments: list[str], listed: str = "") -> None:
    """Run one of Lightning's commands.

    Args:
        arguments: the command and its options; each `--config` and the path of its file are two words.
        listed: how the options begin that help lists; empty for all.
    """
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning's, not the user's
    lightning_private.quiet()
    warnings_in_a_line()
    command = arguments[0]
    try:
        DetectionCLI(
            arguments,
            save_config_callback=OwnFolder,
            subclass_mode_data=True,
            parser_class=type("Parser", (_Parser,), {"listed": listed}),
            seed_everything_default=0,
            trainer_defaults={
                "max_epochs": -1,
                "use_distributed_sampler": False,
                "enable_model_summary": False,  # which counts no FLOPs of a detector, and says 0
                "logger": {
                    "class_path": "fpn.lit.metrics_file.MetricsFile",
                    "init_args": {"save_dir": "runs", "name": "fpn"},
                },
            },
            parser_kwargs={"prog": "fpn", "exit_on_error": False, "allow_abbrev": False}
            | {command: {"description": _description(command), "exit_on_error": False}},
            auto_configure_optimizers=False,
        )
    except SIGTERMException as error:
        number = signal.Signals(error.args[0] if error.args else signal.SIGTERM)
        if first_process():
            line = f"fpn: ended by {number.name}; a fit goes on with --ckpt_path of its last.ckpt"
            print(line, file=sys.stderr)  # noqa: T201
        sys.exit(128 + number)
    except StepError:
        if first_process():
            raise
        sys.exit(2)  # the first process tells it
    except Exception as error:
        if told(error) is not None or (failed := failed_in(error)) is None:
            raise
        what = "logger" if isinstance(failed, Logger) else "callback"
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        line = f"the {what} {type(failed).__name__} failed: {reason}"
        raise InputError("; ".join([line, *getattr(error, "__notes__", [])])) from error


def _listed(given: Any) -> list[Any]:
    """None, one or several of them as a list."""
    return given if isinstance(given, list) else [] if given is None else [given]


def _loggers(config: Namespace) -> list[Namespace]:
    """What a configuration says of each logger."""
    return [one for one in _listed(config.trainer.logger) if isinstance(one, Namespace)]


def _last_word(name: str, contents: Sequence[Any], words: Sequence[str]) -> Any:
    """What an option is set to by configuration files or, which goes before, the command line; else None."""
    first, _, second = name.partition(".")
    given = [content.get(first) for content in contents if isinstance(content, dict)]
    if second:
        given = [within.get(second) for within in given if isinstance(within, dict)]
    given.append(dict(options_of(words)).get(name))
    return next((value for value in reversed(given) if value is not None), None)


def _read_files(words: Sequence[str]) -> tuple[list[str], list[Any]]:
    """The words, and what each of the configuration files that they name holds.

    What a file adds to the trainer's lists, as `logger+`, is added to what all files give.
    """
    words, contents = list(words), []
    added: list[str] = []
    for number, (option, file) in enumerate(itertools.pairwise(words), 1):
        if option != "--config":
            continue
        content = read_yaml(Path(file))
        contents.append(content)
        trainer = content.get("trainer") if isinstance(content, dict) else None
        if isinstance(trainer, dict) and (more := {k: v for k, v in trainer.items() if k.endswith("+")}):
            rest = {key: value for key, value in trainer.items() if key not in more}
            words[number] = as_word({**content, "trainer": rest})
            added += ["--config", as_word({"trainer": more})]
    end = max((number for number, word in enumerate(words) if word == "--config"), default=-2) + 2
    return [*words[:end], *added, *words[end:]], contents


def _values(words: Sequence[str]) -> Iterator[Any]:
    """What options of the model, the data and the trainer are set to, names of classes as in a file.

    Only a name that ends as classes' do is one: the file train.json is no reason to run a train.py.
    """
    for option, text in options_of(words):
        if option.startswith(("model", "data", "trainer")):
            content = value_of(text or "")
            yield content
            for name in content if isinstance(content, list) else [content]:
                if isinstance(name, str) and re.fullmatch(r"(\w+\.)+[A-Z]\w*", name):
                    yield {"class_path": name}


def _description(command: str) -> str:
    text = COMMANDS[command]
    watched = ", ".join(names(FasterRCNN, (BoxAP, ProposalRecall)))
    return (
        f"{text[0].upper()}{text[1:]}. "
        f"The options of a detector are listed by `fpn {command} --model.detector.help FasterRCNN` "
        f"(or ProposalNetwork), "
        f"those of its parts by `--model.detector.neck.help FeaturePyramid` and the like, "
        f"those of the data by `fpn {command} --data.help CocoDataModule`."
    ) + (f" --epochs is model.schedule.epochs. Callbacks may watch {watched}." if command == "fit" else "")
