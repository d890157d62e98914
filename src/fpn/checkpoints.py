"""Detectors from files: our own checkpoints, and torchvision's weights put into ours."""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor

from fpn.data.proposals import replacing
from fpn.data.transforms import ImageSettings
from fpn.errors import InputError
from fpn.models.detectors import Detector, FasterRCNN
from fpn.models.postprocess import DetectionSelection
from fpn.models.resnet import ResNet
from fpn.types import Categories
from fpn.weights import read_checkpoint, read_tensors

# Beginnings of parameter names, torchvision's and ours. Its pyramid counts from 0, the paper's levels from 2.
_NAMES = {
    "backbone.body.": "bottom_up.",
    **{f"backbone.fpn.inner_blocks.{i}.0.": f"neck.laterals.{i + 2}.0." for i in range(4)},
    **{f"backbone.fpn.layer_blocks.{i}.0.": f"neck.smooths.{i + 2}.0." for i in range(4)},
    "rpn.head.conv.0.0.": "rpn.head.shared.conv.",
    "rpn.head.cls_logits.": "rpn.head.shared.objectness.",
    "rpn.head.bbox_pred.": "rpn.head.shared.deltas.",
    "roi_heads.box_head.": "roi_head.head.shared.",
    "roi_heads.box_predictor.cls_score.": "roi_head.head.shared.scores.",
    "roi_heads.box_predictor.bbox_pred.": "roi_head.head.shared.deltas.",
}
# Files of torchvision before 0.13.
_OLD_NAMES = {
    **{f"backbone.fpn.inner_blocks.{i}.": f"neck.laterals.{i + 2}.0." for i in range(4)},
    **{f"backbone.fpn.layer_blocks.{i}.": f"neck.smooths.{i + 2}.0." for i in range(4)},
    "rpn.head.conv.": "rpn.head.shared.conv.",
}

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
    categories = Categories(tuple(kept["categories"]["ids"]), tuple(kept["categories"]["names"]))
    if not kept["config"]:
        raise InputError(f"{path} was not trained from the command line and does not tell its model")
    detector = _detector(kept["config"]["model"], len(categories.ids), path)
    state = _weights(checkpoint)
    check_weights(detector.state_dict(), state, str(path))
    detector.load_state_dict(state)
    image: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in kept["image"].items()}
    return Trained(detector.eval(), categories, ImageSettings(**image))


def remembered_config(path: str | Path) -> str | None:
    """The model and data that a checkpoint was trained with, as a JSON configuration for the command line.

    Args:
        path: the `.ckpt` file.

    Returns:
        None where the checkpoint was not trained from the command line.

    Raises:
        InputError: no such file, or not a checkpoint of this project.
    """
    config = _kept(read_checkpoint(path), path)["config"]
    return json.dumps(config) if config else None


def remembered_version(path: str | Path, logger: str) -> str | None:
    """What the logger of that class called the run that wrote a checkpoint; None without such a logger."""
    version = _kept(read_checkpoint(path), path).get("loggers", {}).get(logger)
    return None if version is None else str(version)


def forget_initial_weights(model: Namespace) -> None:
    """Take out of a model's configuration what it starts from: a checkpoint's weights replace it anyway."""
    forget_imagenet(model)
    for key in ("start_from", "start_parts"):
        if model.get(key) is not None:
            model[key] = None


def forget_imagenet(model: Namespace) -> None:
    """Take the bottom-up's weights out of a model's configuration, where others replace them anyway."""
    key = "detector.init_args.bottom_up.init_args.weights"
    if model.get(key) is not None:
        model[key] = None


def start_from(
    detector: Detector, path: str | Path, parts: Sequence[str] | None = None
) -> tuple[list[str], list[str]]:
    """Copy into a detector the weights of those of its parts that a checkpoint has too.

    Parts are the detector's own: bottom_up, neck, rpn, roi_head.

    Args:
        detector: changed in place.
        path: a checkpoint of any detector of this project.
        parts: only these; None for all that both have.

    Returns:
        The parts that were copied, and those that were not.

    Raises:
        InputError: no such file, not a checkpoint of this project, no part in common, a part that differs or
            that one of them lacks.
    """
    checkpoint = read_checkpoint(path)
    _kept(checkpoint, path)
    theirs = _weights(checkpoint)
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
    return copied, [
        part for part in names if part not in copied and detector.get_submodule(part).state_dict()
    ]


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
        found = (kept[path]["config"] or {"model": {"detector": {"class_path": "none"}}})["model"]["detector"]
        if found["class_path"].rpartition(".")[2] != name:
            raise InputError(f"{path} holds no {name} but {found['class_path']}: the halves are one of each")
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
    loss = {"loss": mine["loss"] | {"rpn_beta": theirs["loss"]["rpn_beta"]}}
    selection = theirs["testing_proposals"]
    number = min(selection["post_nms_top_n"], mine["testing_top_n"])
    parts["testing_proposals"] = selection | {"post_nms_top_n": number}
    config["model"]["detector"] = {"class_path": "fpn.FasterRCNN", "init_args": theirs | parts | loss}
    config["model"] |= {"start_from": None, "start_parts": None, "frozen_parts": []}
    settings = config["data"].get("init_args", config["data"])
    settings |= {key: None for key in settings if key.endswith("_proposals")}
    # Not to be resumed: there is no state of an optimiser that fits the whole.
    joined = {
        key: value
        for key, value in halves[fast_rcnn].items()
        if key not in ("optimizer_states", "lr_schedulers", "callbacks", "loops")
    }
    joined["state_dict"] = {f"{_PREFIX}{key}": value for key, value in (one | other).items()}
    joined["fpn"] = kept[fast_rcnn] | {"config": config, "loggers": {}}
    with replacing(Path(out)) as part:
        torch.save(joined, part)


def load_torchvision(
    weights: str | Path | Mapping[str, Tensor],
    score_threshold: float = 0.05,
    norm_eps: float | None = None,
    **faster_rcnn: Any,
) -> FasterRCNN:
    """Our detector with the weights of torchvision's `fasterrcnn_resnet50_fpn`.

    The number of classes is read from the weights. Labels are numbered as torchvision's: for its COCO weights
    they are COCO's own category ids, 1…90.

    Args:
        weights: a file or a state dict of torchvision's model.
        score_threshold: only detections with a higher score are given.
        norm_eps: epsilon of the BatchNorm, which no file tells. None takes 1e-5, torchvision's default, where
            the weights count batches, as an ordinary BatchNorm does, and 0 where they do not: its published
            COCO weights were trained with a frozen BatchNorm of epsilon 0. (A frozen one of another origin
            has 1e-5 and must be named.)
        **faster_rcnn: further arguments of `FasterRCNN`.

    Returns:
        The detector, in evaluation mode.

    Raises:
        InputError: no such file, or the weights are not those of this model.
    """
    source = str(weights) if isinstance(weights, str | Path) else "the state dict"
    state = read_tensors(weights) if isinstance(weights, str | Path) else weights
    counters = {name for name in state if name.endswith("num_batches_tracked")}
    if norm_eps is None:
        norm_eps = 1e-5 if counters else 0.0
    renamed = {_rename(name): value for name, value in state.items() if name not in counters}
    predictor = renamed.get("roi_head.head.shared.scores.bias")
    if predictor is None:
        raise InputError(
            f"{source} is no fasterrcnn_resnet50_fpn of torchvision's: "
            "it has no roi_heads.box_predictor.cls_score.bias"
        )
    arguments: dict[str, Any] = {
        "bottom_up": partial(ResNet, "resnet50", norm="frozen", norm_eps=norm_eps),
        "detections": DetectionSelection(score_threshold=score_threshold),
    }
    detector = FasterRCNN(len(predictor) - 1, **(arguments | faster_rcnn))
    check_weights(detector.state_dict(), renamed, source)
    detector.load_state_dict(renamed)
    return detector.eval()


def check_weights(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str) -> None:
    """See that every weight has its place and its shape.

    Args:
        wanted: the network's own state.
        state: what is to be loaded.
        source: where that comes from, for the message.

    Raises:
        InputError: a missing or surplus weight, or one of another shape.
    """
    for name in sorted(wanted.keys() | state.keys()):
        if name not in state:
            raise InputError(f"{source} does not fit this detector: it has no {name}")
        if name not in wanted:
            raise InputError(f"{source} does not fit this detector, which has no {name}")
        if wanted[name].shape != state[name].shape:
            shapes = f"{tuple(state[name].shape)}, not {tuple(wanted[name].shape)}"
            raise InputError(f"{source} does not fit this detector: {name} has a shape of {shapes}")


def _weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The detector's, under its own names."""
    return {
        key.removeprefix(_PREFIX): value
        for key, value in checkpoint["state_dict"].items()
        if key.startswith(_PREFIX)
    }


def _rename(name: str) -> str:
    for table in (_NAMES, _OLD_NAMES):
        for theirs, ours in table.items():
            if name.startswith(theirs):
                return ours + name.removeprefix(theirs)
    return name


def _kept(checkpoint: dict[str, Any], path: str | Path) -> dict[str, Any]:
    kept = checkpoint.get("fpn")
    if not isinstance(kept, dict) or "state_dict" not in checkpoint:
        raise InputError(f"{path} is not a checkpoint of this project: `fpn fit` did not write it")
    return kept


def build_detector(configs: Sequence[Mapping[str, Any]], classes: int) -> Detector:
    """The detector of some configurations, without weights to start from.

    Args:
        configs: what configuration files have under `model.detector`, each a difference to those before.
        classes: K.

    Raises:
        jsonargparse.ArgumentError: they do not make a detector.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--detector", type=Callable[[int], Detector])
    # What the command line assumes too: a detector without a class is a Faster R-CNN.
    words = ["fpn.FasterRCNN", *map(json.dumps, configs)]
    config = parser.parse_args([f"--detector={word}" for word in words])
    forget_initial_weights(config)
    factory: Callable[[int], Detector] = parser.instantiate(config).detector
    return factory(classes)


def _detector(model: dict[str, Any], classes: int, path: str | Path) -> Detector:
    try:
        return build_detector([model["detector"]], classes)
    except InputError:
        raise
    except Exception as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f"{path}: its model cannot be built by this version ({first})") from error
