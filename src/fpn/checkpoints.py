"""Detectors from files: our own checkpoints, and torchvision's weights put into ours."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser, Namespace
from torch import Tensor

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
    prefix = "detector."
    state = {
        key.removeprefix(prefix): value
        for key, value in checkpoint["state_dict"].items()
        if key.startswith(prefix)
    }
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


def forget_imagenet(model: Namespace) -> None:
    """Take the ImageNet weights out of a model's configuration: a checkpoint's own replace them anyway."""
    bottom_up = "detector.init_args.bottom_up.init_args.weights"
    if model.get(bottom_up) is not None:
        model[bottom_up] = None


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


def _detector(model: dict[str, Any], classes: int, path: str | Path) -> Detector:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--detector", type=Callable[[int], Detector])
    try:
        config = parser.parse_object({"detector": model["detector"]})
    except Exception as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f"{path}: its model cannot be built by this version ({first})") from error
    forget_imagenet(config)
    factory: Callable[[int], Detector] = parser.instantiate(config).detector
    return factory(classes)
