"""What the words of a command set, its configuration files included: compared, refused and told by name."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

from fpn.errors import InputError
from fpn.shipped import config_file

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
"""What a study sets for each run."""
_MACHINE = (
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
    "trainer",
    *("out", "device", "precision"),  # of `fpn predict`
)
"""Where the data lie, how a machine is used, what is shown: it makes no other result."""
_LEARNING = ("callbacks", "max_", "min_", "limit_t", "overfit_", "accumulate_", "gradient_clip")
"""How those names of `trainer` begin that do."""
_COCOS = ("instances_train2017.json", "instances_val2017.json")
"""Annotation files of any other name are taken for other data."""


def settings_of(words: Sequence[str]) -> dict[str, Any]:
    """What these words set, the later ones over the earlier.

    Raises:
        InputError: a configuration file cannot be read.
    """
    settings: dict[str, Any] = {}
    for name, text in _options(words):
        if name in ("config", "c"):
            settings |= dict(_flat(_content(config_file(text))))
        elif name.endswith("+"):
            before = settings.get(name[:-1]) or []
            settings[name[:-1]] = [*(before if isinstance(before, list) else [before]), _value(text)]
        else:
            settings |= dict(_flat(_value(text), name.replace(".init_args", "")))
    return settings


def refuse_own(settings: Settings) -> None:
    """Raise an InputError where something is set that each run of a study has of its own."""
    for name in settings:
        if _is_of(name, _OWN):
            raise InputError(
                f"{name} is what a study sets for each run: leave it out "
                "(--seeds and --wandb are options of its own)"
            )


def result_settings(settings: Settings) -> dict[str, Any]:
    """Those on which a result depends, besides what a study sets itself; as JSON gives them back."""
    counted = {name: value for name, value in settings.items() if _counts(name, value)}
    plain: dict[str, Any] = json.loads(json.dumps(counted, default=str))
    return plain


def difference(then: Settings, now: Settings) -> str | None:
    """The first setting in which two runs differ, in words; None where there is none."""
    for name in {**then, **now}:
        if then.get(name) != now.get(name):
            one, other = (told(of[name]) if name in of else "not given" for of in (then, now))
            return f"{name} was {one}, now {other}"
    return None


def part_of(settings: Settings, name: str) -> dict[str, Any]:
    """What is set below a name, by what follows it: of model.detector.neck as {"lateral": False}."""
    return {key[len(name) + 1 :]: value for key, value in settings.items() if key.startswith(f"{name}.")}


def told(value: Any) -> str:
    """A value in one line, as it would be given."""
    return " ".join(yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").split())


def _counts(name: str, value: Any) -> bool:
    if _is_of(name, _OWN) or (name.endswith("annotations") and Path(str(value)).name in _COCOS):
        return False
    learning = name.startswith("trainer.") and name.partition(".")[2].startswith(_LEARNING)
    return learning or not _is_of(name, _MACHINE)


def _is_of(name: str, known: Sequence[str]) -> bool:
    return any(name == one or name.startswith((f"{one}.", f"{one}+")) for one in known)


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Names, without their dashes, and values; true where none follows."""
    for word, after in zip_longest(words, words[1:], fillvalue="-"):
        if _is_option(word):
            name, equals, value = word.lstrip("-").partition("=")
            yield name, value if equals else "true" if _is_option(after) else after


def _is_option(word: str) -> bool:
    return word.startswith("-") and not word[1:2].isdigit()


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _content(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from None


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict) or not value:
        if name:
            yield name, value
        return
    for key, inner in value.items():
        yield from _flat(inner, name if key == "init_args" else f"{name}.{key}".lstrip("."))
