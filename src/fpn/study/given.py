"""What a user gives to all runs of a study.

It is refused where the study sets it itself, and told where it makes another row than the paper's.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

from fpn.errors import InputError

Settings = Mapping[str, Any]
"""Values by their names on the command line, as model.detector.neck.lateral, without init_args."""

_OWN = (
    "ckpt_path",
    "seed_everything",
    "data.seed",
    "data.train_proposals",
    "data.val_proposals",
    "data.test_proposals",
    "model.start_from",
    "trainer.default_root_dir",
    "trainer.enable_checkpointing",
    "trainer.fast_dev_run",
    "trainer.logger",
)
_SAME_ROW = (
    "data.root",
    "data.folder",
    "data.train_images",
    "data.val_images",
    "data.test_images",
    "data.batch_size",  # the schedule is scaled to it
    "data.eval_batch_size",
    "data.num_workers",
    "data.max_unreadable",
    "model.engine",
    "trainer.accelerator",
    "trainer.benchmark",
    "trainer.check_val_every_n_epoch",
    "trainer.deterministic",
    "trainer.devices",
    "trainer.enable_model_summary",
    "trainer.enable_progress_bar",
    "trainer.limit_val_batches",
    "trainer.log_every_n_steps",
    "trainer.num_nodes",
    "trainer.num_sanity_val_steps",
    "trainer.precision",
    "trainer.profiler",
    "trainer.strategy",
    "trainer.val_check_interval",
)
"""What may differ without making another row: where the data lie, how a machine is used, what is shown.

Of trainer.callbacks, some of which end a training early or change its weights, only those of `_SHOWING`.
"""
_SHOWING = ("fpn.lit.", "DeviceStatsMonitor", "lightning.pytorch.callbacks.DeviceStatsMonitor")
"""How the names of callbacks begin that watch and save."""
_ANNOTATIONS = ("data.train_annotations", "data.val_annotations", "data.test_annotations")
_COCOS = ("instances_train2017.json", "instances_val2017.json")
"""Of any other name they are taken for other data."""


def settings_of(words: Sequence[str]) -> dict[str, Any]:
    """What these arguments of `fpn fit` set, those of the configuration files they name included.

    Raises:
        InputError: a configuration file cannot be read.
    """
    settings: dict[str, Any] = {}
    for name, text in _options(words):
        if name in ("config", "c"):
            settings |= dict(_flat(_content(Path(text))))
        elif name.endswith("+"):
            plain = name.removesuffix("+")
            settings[plain] = [*_listed(settings.get(plain)), _value(text)]
        else:
            settings |= dict(_flat(_value(text), name.replace(".init_args", "")))
    return settings


def refuse_own(settings: Settings) -> None:
    """Raise an InputError where something is set that each run of a study has of its own."""
    for name in settings:
        if _is_of(name, _OWN):
            raise InputError(
                f"{name} is what a study sets for each run: leave it out (--seeds and --wandb are options of "
                "its own)"
            )


def altered(settings: Settings) -> list[str]:
    """The settings that make another row than the paper's, as options; no report may pass over them."""
    callbacks = [_class(one) for one in _listed(settings.get("trainer.callbacks"))]
    callbacks += _listed(settings.get("trainer.callbacks.class_path"))
    shown = all(name.startswith(_SHOWING) for name in callbacks)
    same = (*_SAME_ROW, "trainer.callbacks") if shown else _SAME_ROW
    return [
        f"--{name} {_text(value)}"
        for name, value in settings.items()
        if not _is_of(name, same) and not (name in _ANNOTATIONS and Path(str(value)).name in _COCOS)
    ]


def part_of(settings: Settings, name: str) -> dict[str, Any]:
    """What is set below a name, by what follows it: of model.detector.neck as {"lateral": False}."""
    return {key[len(name) + 1 :]: value for key, value in settings.items() if key.startswith(f"{name}.")}


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Names, without their dashes, and values; true where none follows."""
    for word, after in zip_longest(words, words[1:], fillvalue="-"):
        if word.startswith("-") and not _is_number(word):
            name, equals, value = word.lstrip("-").partition("=")
            alone = after.startswith("-") and not _is_number(after)
            yield name, value if equals else "true" if alone else after


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _content(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from None


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict) or not value:
        yield name, value
        return
    for key, inner in value.items():
        yield from _flat(inner, name if key == "init_args" else f"{name}.{key}".lstrip("."))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _class(callback: Any) -> str:
    """The name of a callback's class."""
    return str(callback.get("class_path", "") if isinstance(callback, dict) else callback)


def _is_of(name: str, known: Sequence[str]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in known)


def _is_number(word: str) -> bool:
    return word[1:2].isdigit()


def _text(value: Any) -> str:
    return " ".join(yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").split())
