"""What the words of a command set, its configuration files included: compared, refused and told by name."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fpn.errors import InputError
from fpn.shipped import config_file
from fpn.words import options_of, read_yaml, value_of

Settings = Mapping[str, Any]
"""Values by their names on the command line, as model.detector.neck.lateral, without init_args."""

_SPLITS = ("train", "val", "test")
_OWN = (
    *("ckpt_path", "seed_everything", "data.seed", "model.start_from"),
    *(f"data.{split}.proposals" for split in _SPLITS),
    *(f"trainer.{name}" for name in ("default_root_dir", "enable_checkpointing", "fast_dev_run", "logger")),
    "trainer.num_nodes",
)
"""What a study sets for each run."""
_MACHINE = (
    # The schedule is scaled to batch_size, and to trainer.accumulate_grad_batches.
    *(f"data.{name}" for name in ("root", "folder", "batch_size", "eval_batch_size", "num_workers")),
    *(f"data.{split}.images" for split in _SPLITS),
    *("data.max_unreadable", "data.load_timeout", "model.engine", "model.metrics", "trainer"),
    *("out", "root", "device", "devices"),  # of `fpn predict`
)
"""Where the data lie, how a machine is used, what is shown: it makes no other result."""
_LEARNING = (
    *("callbacks", "max_", "min_", "limit_t", "overfit_", "gradient_clip"),
    *("precision", "sync_batchnorm"),
)
"""How those names of `trainer` begin that do."""
_COCOS = ("instances_train2017.json", "instances_val2017.json")
"""Annotation files of any other name are taken for other data."""


def settings_of(words: Sequence[str]) -> dict[str, Any]:
    """What these words set, the later ones over the earlier.

    Raises:
        InputError: a configuration file cannot be read.
    """
    settings: dict[str, Any] = {}
    for name, given in options_of(words):
        text = "true" if given is None else given
        if name in ("config", "c"):
            pairs = _flat(read_yaml(config_file(text)) or {})
        else:
            pairs = _flat(value_of(text), name.replace(".init_args", ""))
        for inner, value in pairs:
            if inner.endswith("+"):  # which adds to a list
                lists = (settings.get(inner[:-1]) or [], value)
                value = [one for of in lists for one in (of if isinstance(of, list) else [of])]
            settings[inner.removesuffix("+")] = value
    return settings


def detectors_in(*files: str | Path) -> list[Any]:
    """What configuration files have under `model.detector`, of those that have it; names as of `--config`.

    Raises:
        InputError: there is no such file, or it is none of YAML.
    """
    models = [(read_yaml(config_file(str(file))) or {}).get("model", {}) for file in files]
    return [model["detector"] for model in models if "detector" in model]


def refuse_own(settings: Settings) -> None:
    """Raise an InputError where something is set that each run of a study has of its own."""
    if own := [name for name in settings if _is_of(name, _OWN)]:
        raise InputError(
            f"{own[0]} is what a study sets for each run: leave it out (see its --seeds and --wandb)"
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


def told(value: Any) -> str:
    """A value in one line, as it would be given."""
    return " ".join(yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").split())


def _counts(name: str, value: Any) -> bool:
    if _is_of(name, _OWN) or (name.endswith(".annotations") and Path(str(value)).name in _COCOS):
        return False
    return name.removeprefix("trainer.").startswith(_LEARNING) or not _is_of(name, _MACHINE)


def _is_of(name: str, known: Sequence[str]) -> bool:
    return any(f"{name}.".startswith(f"{one}.") for one in known)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value and not name.endswith("+"):
        for key, inner in value.items():
            yield from _flat(inner, name if key == "init_args" else f"{name}.{key}".lstrip("."))
    elif name:
        yield name, value
