"""Detectors from files: our own checkpoints, and whole ones or parts to start from."""

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fpn.data.transforms import ImageSettings
from fpn.errors import InputError
from fpn.files import replacing
from fpn.importing import asked_for, import_asked
from fpn.interop.files import read_weights
from fpn.interop.peers import TrainedWeights, from_peer
from fpn.interop.settings import detector_settings, differences
from fpn.models.detectors import Detector, FasterRCNN
from fpn.parsing import Parser, as_word
from fpn.trust import check_classes, check_remembered, only_installed
from fpn.types import Categories
from fpn.upgrade import upgraded
from fpn.weights import check_weights, read_checkpoint

_SPLITS = ("train", "val", "test")
_PREFIX = "detector."
"""Of the detector's weights in our checkpoints."""


class Trained(NamedTuple):
    """A detector from one of our checkpoints, and what is needed to use it."""

    detector: Detector
    """In evaluation mode, on the CPU."""
    categories: Categories
    """What its labels mean."""
    image: ImageSettings
    """How its images were prepared."""


def load(path: str | Path) -> Trained:
    """The detector of a checkpoint that `fpn fit` wrote.

    Args:
        path: the `.ckpt` file.

    Raises:
        InputError: no such file, or not a checkpoint of this project, or one whose parts do not fit.
    """
    checkpoint = read_checkpoint(path)
    kept = _kept(checkpoint, path)
    categories = remembered_categories(kept, path)
    if not kept["config"]:
        raise InputError(f"{path} was not trained from the command line and does not tell its model")
    detector = _detector(kept["config"], len(categories.ids), path)
    state = _weights(checkpoint)
    check_weights(detector.state_dict(), state, str(path))
    detector.load_state_dict(state)
    return Trained(detector.eval(), categories, _image(kept, path))


def remembered_config(path: str | Path, parts: Sequence[str] = ("model", "data")) -> dict[str, Any] | None:
    """What a checkpoint was trained with, as a configuration for the command line.

    Args:
        path: the `.ckpt` file.
        parts: what to take of it; whatever else it holds is left out.

    Returns:
        None where the checkpoint was not trained from the command line.

    Raises:
        InputError: no such file, not a checkpoint of this project, or one that names what it may not
            (`fpn.trust`).
    """
    config = _kept(read_checkpoint(path), path)["config"]
    if not config:
        return None
    remembered = {name: _part(config, name, path) for name in parts}
    check_remembered(remembered, str(path))
    return remembered


def remembered_categories(kept: Mapping[str, Any], path: str | Path) -> Categories:
    """The categories that a checkpoint was trained for.

    Args:
        kept: what it holds under `fpn`.
        path: how to name it.

    Raises:
        InputError: it does not tell them.
    """
    part = _part(kept, "categories", path)
    ids, names = part.get("ids"), part.get("names")
    if not isinstance(ids, list) or not isinstance(names, list) or len(ids) != len(names):
        raise InputError(f"{path} does not tell its categories: a list of ids and one of their names")
    return Categories(tuple(ids), tuple(names))


def remembered_version(path: str | Path, logger: str) -> str | None:
    """What the logger of that class called the run that wrote a checkpoint; None without such a logger."""
    kept = _kept(read_checkpoint(path), path)
    version = _part({"loggers": {}} | kept, "loggers", path).get(logger)
    return None if version is None else str(version)


class Start(NamedTuple):
    """What a detector has started from."""

    path: str
    copied: list[str]
    """Parts whose weights were copied."""
    new: list[str]
    """Parts that were not."""
    other: dict[str, tuple[Any, Any]]
    """Settings of the copied parts, as `rpn.grid`, that the weights are not for: ours and theirs."""
    remedy: str
    """How to have the same settings."""
    ours: bool
    """Whether it is a checkpoint of this project."""

    def __str__(self) -> str:
        new = f"; {', '.join(self.new)}: new" if self.new else ""
        return f"{', '.join(self.copied)}: weights of {self.path}{new}"

    @property
    def warning(self) -> str:
        """What `other` means to a user."""
        listed = ", ".join(
            f"{key} {ours!r} instead of {theirs!r}" for key, (ours, theirs) in self.other.items()
        )
        return (
            f"{self.path} was trained with other settings of the detector: {listed}; {self.remedy} has them"
        )


def start_from(detector: Detector, path: str | Path, parts: Sequence[str] | None = None) -> Start:
    """Copy into a detector the weights of those of its parts that a checkpoint or a peer's detector has too.

    Parts are the detector's own: bottom_up, neck, rpn, roi_head.

    Args:
        detector: changed in place.
        path: a checkpoint of any detector of this project, a file of torchvision's or Detectron2's, or the
            name of weights that torchvision publishes.
        parts: only these; None for all that both have.

    Raises:
        InputError: no such file, one of nobody known, no part in common, a part that differs or that one of
            them lacks.
    """
    content = read_weights(path)
    peers = from_peer(content, str(path))
    trained = peers or _ours(content, path)
    theirs = trained.weights
    if peers is not None and parts is None:
        known = ("bottom_up.", "neck.", "rpn.", "roi_head.")
        if surplus := [key for key in theirs if not key.startswith(known)]:
            raise InputError(
                f"{path} is of another detector, with {surplus[0]}: name the parts to take, as "
                "start_parts [bottom_up, neck]"
            )
    names = {
        part: {key for key in theirs if key.startswith(f"{part}.")} for part, _ in detector.named_children()
    }
    copied = [part for part, keys in names.items() if keys and (parts is None or part in parts)]
    if lacking := [part for part in parts or () if part not in copied]:
        raise InputError(f"start_parts: {path} and this detector do not both have weights of {lacking[0]!r}")
    if not copied:
        raise InputError(f"{path} has none of the parts of this detector ({', '.join(names)}) to start from")
    for part in copied:
        state = {key.removeprefix(f"{part}."): theirs[key] for key in names[part]}
        module = detector.get_submodule(part)
        check_weights(module.state_dict(), state, f"{part} of {path}")
        module.load_state_dict(state)
    ours = {
        key: value for key, value in detector_settings(detector).items() if key.partition(".")[0] in copied
    }
    new = [part for part in names if part not in copied and detector.get_submodule(part).state_dict()]
    return Start(str(path), copied, new, differences(ours, trained.settings), trained.remedy, peers is None)


def join(rpn: str | Path, fast_rcnn: str | Path, out: str | Path) -> None:
    """Make one Faster R-CNN of the two halves of alternating training that share their features (Table 5).

    Args:
        rpn: checkpoint of the ProposalNetwork.
        fast_rcnn: checkpoint of the FastRCNN trained on its proposals.
        out: checkpoint to write, as one of a jointly trained FasterRCNN.

    Raises:
        InputError: a file is missing or of another detector, or the two do not share their features.
    """
    halves = {path: read_checkpoint(path) for path in (rpn, fast_rcnn)}
    kept = {path: _kept(checkpoint, path) for path, checkpoint in halves.items()}
    for path, name in ((rpn, "ProposalNetwork"), (fast_rcnn, "FastRCNN")):
        found = _part(_part(kept[path]["config"], "model", path), "detector", path).get("class_path")
        if str(found).rpartition(".")[2] != name:
            raise InputError(f"{path} holds no {name} but {found}: the halves are one of each")
    if kept[rpn]["categories"] != kept[fast_rcnn]["categories"]:
        raise InputError(f"{rpn} and {fast_rcnn} were trained for different categories")
    one, other = _weights(halves[rpn]), _weights(halves[fast_rcnn])
    for name in sorted(key for key in one.keys() | other.keys() if key.startswith(("bottom_up.", "neck."))):
        if name not in one or name not in other or not torch.equal(one[name], other[name]):
            raise InputError(
                f"{rpn} and {fast_rcnn} do not share their features ({name} differs): "
                "train them with model.frozen_parts [bottom_up, neck] from one checkpoint"
            )
    config = copy.deepcopy(kept[fast_rcnn]["config"])
    mine, theirs = (
        config["model"]["detector"]["init_args"],
        kept[rpn]["config"]["model"]["detector"]["init_args"],
    )
    parts = {key: value for key, value in mine.items() if not key.endswith("_top_n")}
    selection = theirs["testing_proposals"]
    number = min(selection["post_nms_top_n"], mine["testing_top_n"])
    parts["testing_proposals"] = selection | {"post_nms_top_n": number}
    config["model"]["detector"] = {"class_path": "fpn.FasterRCNN", "init_args": theirs | parts}
    config["model"] |= {"start_from": None, "start_parts": None, "frozen_parts": []}
    settings = config["data"].get("init_args", config["data"])
    settings |= {
        key: split | {"proposals": None} for key, split in settings.items() if key in _SPLITS and split
    }
    # Not to be resumed: there is no state of an optimiser that fits the whole.
    joined = {
        key: value
        for key, value in halves[fast_rcnn].items()
        if key not in ("optimizer_states", "lr_schedulers", "callbacks", "loops")
    }
    joined["state_dict"] = {f"{_PREFIX}{key}": value for key, value in (one | other).items()}
    joined["fpn"] = kept[fast_rcnn] | {"config": config, "loggers": {}}
    save_whole(joined, out)


def save_whole(content: Mapping[str, Any], path: str | Path) -> None:
    """Write a checkpoint beside the one it replaces, whose name it takes once it is whole and on the disk.

    Args:
        content: what `torch.save` takes.
        path: the file; its folder is made if it is missing.

    Raises:
        OSError: the file, which it names, cannot be written; what was there before still is.
    """
    try:
        with replacing(Path(path)) as part, part.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:
        # When writing fails, torch fails once more in closing its archive.
        if not isinstance(cause := error.__context__, OSError):
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from error


def _ours(checkpoint: dict[str, Any], path: str | Path) -> TrainedWeights:
    """A checkpoint of this project; without settings where it does not tell its model."""
    if "fpn" not in checkpoint:
        raise InputError(
            f"{path} holds neither a checkpoint of this project nor a detector of torchvision's or "
            "Detectron2's; weights of a bottom-up alone go to model.detector.bottom_up.weights"
        )
    kept = _kept(checkpoint, path)
    settings = {}
    if kept["config"]:
        with torch.device("meta"):
            settings = detector_settings(
                _detector(kept["config"], len(remembered_categories(kept, path).ids), path)
            )
    return TrainedWeights(_weights(checkpoint), settings, "the configuration files it was trained with")


def _weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The detector's, under its own names."""
    return {
        key.removeprefix(_PREFIX): value
        for key, value in checkpoint["state_dict"].items()
        if key.startswith(_PREFIX)
    }


def _kept(checkpoint: dict[str, Any], path: str | Path) -> dict[str, Any]:
    kept = checkpoint.get("fpn")
    needed = {"config", "categories", "image"}
    if not isinstance(kept, dict) or not needed <= kept.keys() or "state_dict" not in checkpoint:
        raise InputError(f"{path} is not a checkpoint of this project: `fpn fit` did not write it")
    config = kept["config"]
    return kept | {"config": upgraded(config) if isinstance(config, dict) else config}


def _image(kept: Mapping[str, Any], path: str | Path) -> ImageSettings:
    part = _part(kept, "image", path)
    settings: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in part.items()}
    try:
        return ImageSettings(**settings)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path} does not tell how its images are prepared: {error}") from error


class _Given:
    """Takes a detector as the command line's module does."""

    def __init__(self, detector: Callable[[int], Detector] = FasterRCNN) -> None:
        self.detector = detector


def build_detector(configs: Sequence[Mapping[str, Any]], classes: int) -> Detector:
    """The detector of some configurations, with random weights.

    It is read as `fpn fit` reads it.

    Args:
        configs: what configuration files have under `model.detector`, each a difference to those before.
        classes: K.

    Raises:
        jsonargparse.ArgumentError: they do not make a detector.
    """
    parser = Parser(exit_on_error=False)
    parser.add_class_arguments(_Given, fail_untyped=False, sub_configs=True)
    config = parser.parse_args([f"--detector={as_word(config)}" for config in configs])
    check_classes(config.as_dict())
    factory: Callable[[int], Detector] = parser.instantiate(config).detector
    return factory(classes)


def _part(config: Any, name: str, path: str | Path) -> Mapping[str, Any]:
    part = config.get(name) if isinstance(config, Mapping) else None
    if not isinstance(part, Mapping):
        raise InputError(f"{path} does not tell its {name}: that is {part!r} there, no mapping of settings")
    return part


def _detector(config: Any, classes: int, path: str | Path) -> Detector:
    part = _part(_part(config, "model", path), "detector", path)
    import_asked(asked_for())  # the command line has done so, a program of the user's has not
    check_remembered(part, str(path))
    try:
        with only_installed():
            return build_detector([part], classes)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f"{path}: its model cannot be built by this version ({first})") from error
