"""Detectors from files: our own checkpoints, and whole ones or parts to start from."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jsonargparse import ArgumentError, Namespace
from torch import Tensor

from fpn.data.transforms import ImageSettings
from fpn.described import remade
from fpn.errors import InputError
from fpn.files import replacing
from fpn.interop.files import filled, read_weights
from fpn.interop.peers import TrainedWeights, detector_of, from_peer
from fpn.interop.settings import detector_settings, differences, image_settings
from fpn.models.detectors import Detector, FasterRCNN
from fpn.parsing import Parser, as_word
from fpn.trust import check_classes, check_remembered
from fpn.types import OBJECTS, Categories
from fpn.weights import check_weights, read_checkpoint

_SPLITS = ("train", "val", "test")
_OF_A_RUN = (
    *("optimizer_states", "lr_schedulers", "callbacks", "loops"),
    *("hyper_parameters", "datamodule_hyper_parameters"),
    *("current_model_state", "averaging_state"),
)
_PREFIX = "detector."
"""Of the detector's weights in our checkpoints."""


class Trained(NamedTuple):
    """A detector from one of our checkpoints, or a peer's, and what is needed to use it."""

    detector: Detector
    """In evaluation mode, on the CPU."""
    categories: Categories
    """What its labels mean."""
    image: ImageSettings
    """How its images were prepared."""
    turns_photos: bool = True
    """Whether they were turned as their EXIF orientation says, where their annotations are of that."""


def load(path: str | Path) -> Trained:
    """The detector of a checkpoint that `fpn fit` wrote, or torchvision's or Detectron2's.

    Args:
        path: the `.ckpt` file; or what `load_torchvision` and `load_detectron2` read, whose images are
            prepared as there, and whose labels have names where the weights are published ones.

    Raises:
        InputError: no such file, or one of none of them, or of a detector whose parts do not fit.
    """
    checkpoint = read_weights(path)
    if "fpn" not in checkpoint:
        if (peers := detector_of(checkpoint, path)) is None:
            raise InputError(_of_nobody(path))
        theirs, categories, image = peers
        return Trained(theirs, categories if theirs.finds_objects else OBJECTS, image)
    kept = kept_in(checkpoint, path)
    detector = filled(_detector(kept, path), _weights(checkpoint), str(path))
    images = kept.config.get("data", {}).get("init_args", {}).get("images")
    turns = not isinstance(images, Mapping) or images.get("exif") != "ignore"
    return Trained(detector, kept.categories if detector.finds_objects else OBJECTS, kept.image, turns)


def check_categories(detector: Detector, categories: Categories | None) -> None:
    """Raise InputError unless there is a category for each class of a detector that finds objects."""
    if categories is None or not detector.finds_objects:
        return
    number, classes = len(categories.ids), detector.made_of.get("classes")
    if number != (classes or number):
        raise InputError(f"{number} categories for a detector of {classes} classes without the background")


class Kept(NamedTuple):
    """What one of our checkpoints keeps beside its weights."""

    config: dict[str, Any]
    """`model` and `data`, as in a configuration file; empty if it does not tell its detector."""
    categories: Categories
    image: ImageSettings
    loggers: Mapping[str, Any]
    """What each logger called the run, by its class."""
    seed: int | None
    """Of what is drawn, `seed_everything`."""


def kept_in(checkpoint: Mapping[str, Any], path: str | Path) -> Kept:
    """What a checkpoint keeps.

    Args:
        checkpoint: its content.
        path: how to name it.

    Raises:
        InputError: it is not one of this project, or lacks what it must tell.
    """
    kept = checkpoint.get("fpn")
    if not isinstance(kept, dict) or "state_dict" not in checkpoint:
        raise InputError(f"{path} is not a checkpoint of this project: `fpn fit` did not write it")
    try:
        given = kept["config"] if "detector" in kept["config"].get("model", {}) else {}
        config = {part: given[part] for part in ("model", "data") if given}
        mappings = [config["data"], config["model"]["detector"]] if config else []
        loggers = kept.get("loggers", {})
        if wrong := [one for one in (*mappings, loggers) if not isinstance(one, Mapping)]:
            raise TypeError(f"{wrong[0]!r} is no mapping of settings")
        pairs = dict(zip(kept["categories"]["ids"], kept["categories"]["names"], strict=True))
        categories = Categories(tuple(pairs), tuple(pairs.values()))
        settings: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in kept["image"].items()
        }
        return Kept(config, categories, ImageSettings(**settings), loggers, kept.get("seed"))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} does not tell how it was trained: {error!r}") from error


def remembered(path: str | Path) -> Kept:
    """What a checkpoint keeps, for the command line to go by.

    Args:
        path: the `.ckpt` file.

    Raises:
        InputError: no such file, as `kept_in`, or it names what it may not (`fpn.trust`).
    """
    kept = kept_in(read_checkpoint(path), path)
    check_remembered(kept.config, str(path))
    return kept


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
        differ = in_words(self.other)
        return (
            f"{self.path} was trained with other settings of the detector: {differ}; {self.remedy} has them"
        )


def in_words(other: Mapping[str, tuple[Any, Any]]) -> str:
    """What differs, ours and theirs by name."""
    return ", ".join(f"{key} {ours!r} instead of {theirs!r}" for key, (ours, theirs) in other.items())


def start_from(
    detector: Detector,
    path: str | Path,
    parts: Sequence[str] | None = None,
    image: ImageSettings | None = None,
) -> Start:
    """Copy into a detector the weights of those of its parts that a checkpoint or a peer's detector has too.

    Parts are the detector's own: bottom_up, neck, rpn, roi_head.

    Args:
        detector: changed in place.
        path: a checkpoint of any detector of this project, a file of torchvision's or Detectron2's, or the
            name of weights that torchvision publishes.
        parts: only these; None for all that both have.
        image: how its images are prepared, to be compared with what the weights were trained on.

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
    if image is not None and "bottom_up" in copied:
        ours |= image_settings(image)
    new = [part for part in names if part not in copied and detector.get_submodule(part).state_dict()]
    return Start(str(path), copied, new, differences(ours, trained.settings), trained.remedy, peers is None)


def join(rpn: str | Path, fast_rcnn: str | Path, out: str | Path) -> None:
    """Make one Faster R-CNN of the two halves of alternating training.

    The two share their features, as in the paper's Table 5.

    examples:
        fpn join rpn.ckpt fast_rcnn.ckpt faster_rcnn.ckpt

    Args:
        rpn: checkpoint of the ProposalNetwork.
        fast_rcnn: checkpoint of the FastRCNN trained on its proposals.
        out: checkpoint to write, as one of a jointly trained FasterRCNN.

    Raises:
        InputError: a file is missing or of another detector, or the two do not share their features.
    """
    halves = {path: read_checkpoint(path) for path in (rpn, fast_rcnn)}
    kept = {path: kept_in(checkpoint, path) for path, checkpoint in halves.items()}
    for path, name in ((rpn, "ProposalNetwork"), (fast_rcnn, "FastRCNN")):
        found = kept[path].config["model"]["detector"].get("class_path") if kept[path].config else None
        if str(found).rpartition(".")[2] != name:
            raise InputError(f"{path} holds no {name} but {found}: the halves are one of each")
    if kept[rpn].categories != kept[fast_rcnn].categories:
        raise InputError(f"{rpn} and {fast_rcnn} were trained for different categories")
    one, other = _weights(halves[rpn]), _weights(halves[fast_rcnn])
    for name in sorted(key for key in one.keys() | other.keys() if key.startswith(("bottom_up.", "neck."))):
        if name not in one or name not in other or not torch.equal(one[name], other[name]):
            raise InputError(
                f"{rpn} and {fast_rcnn} do not share their features ({name} differs): "
                "train them with model.frozen_parts [bottom_up, neck] from one checkpoint"
            )
    # Not to be resumed: there is no state of an optimiser that fits the whole.
    joined = {key: value for key, value in halves[fast_rcnn].items() if key not in _OF_A_RUN}
    joined["state_dict"] = {f"{_PREFIX}{key}": value for key, value in (one | other).items()}
    joined["fpn"] |= {"config": _joined_config(kept[rpn].config, kept[fast_rcnn].config), "loggers": {}}
    save_whole(joined, out)


def _joined_config(rpn: dict[str, Any], fast_rcnn: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the second half, changed in place to that of the whole."""
    mine, theirs = (config["model"]["detector"]["init_args"] for config in (fast_rcnn, rpn))
    parts = {key: value for key, value in mine.items() if not key.endswith("_top_n")}
    selection = theirs["testing_proposals"]
    number = min(selection["post_nms_top_n"], mine["testing_top_n"])
    parts["testing_proposals"] = selection | {"post_nms_top_n": number}
    detector = {"class_path": "fpn.FasterRCNN", "init_args": theirs | parts}
    fast_rcnn["model"] |= {"detector": detector, "start_from": None, "start_parts": None, "frozen_parts": []}
    settings = fast_rcnn["data"].get("init_args", fast_rcnn["data"])
    settings |= {split: settings[split] | {"proposals": None} for split in _SPLITS if settings.get(split)}
    return fast_rcnn


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
            f"{_of_nobody(path)}; weights of a bottom-up alone go to model.detector.bottom_up.weights"
        )
    settings = settings_kept(kept_in(checkpoint, path), path)
    return TrainedWeights(_weights(checkpoint), settings, "the configuration files it was trained with")


def settings_kept(kept: Kept, path: str | Path) -> dict[str, Any]:
    """What the detector of a checkpoint did with its weights and images, as far as it tells."""
    settings = image_settings(kept.image)
    # A part of a user's own may need numbers to be made.
    with suppress(RuntimeError, TypeError), torch.device("meta"):
        settings |= detector_settings(_detector(kept, path)) if kept.config else {}
    return settings


def _of_nobody(path: str | Path) -> str:
    return f"{path} is neither a checkpoint of this project nor a detector of torchvision's or Detectron2's"


def _weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The detector's, under its own names."""
    return {
        key.removeprefix(_PREFIX): value
        for key, value in checkpoint["state_dict"].items()
        if key.startswith(_PREFIX)
    }


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
    parser, config = _parsed(configs)
    check_classes(config.as_dict())
    factory: Callable[[int], Detector] = parser.instantiate(config).detector
    return factory(classes)


def read_detector(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What `build_detector` reads in these configurations, all classes by name; None if it would refuse."""
    try:
        config: dict[str, Any] = _parsed(configs)[1].as_dict()
    except (ArgumentError, InputError):
        return None
    return config


def _parsed(configs: Sequence[Mapping[str, Any]]) -> tuple[Parser, Namespace]:
    parser = Parser(exit_on_error=False)
    parser.add_class_arguments(_Given, fail_untyped=False, sub_configs=True)
    return parser, parser.parse_args([f"--detector={as_word(config)}" for config in configs])


def _detector(kept: Kept, path: str | Path) -> Detector:
    if not kept.config:
        raise InputError(
            f"{path} does not tell its detector, which a function made, or a class of no module: give "
            "detector= to DetectionModule.load_from_checkpoint, and where it is trained make it of a class "
            "in a module, or functools.partial of one"
        )
    made = remade(_Given, {"detector": kept.config["model"]["detector"]}, str(path))
    detector: Detector = made["detector"](len(kept.categories.ids))
    return detector
