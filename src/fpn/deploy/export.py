"""`fpn export`: a checkpoint's detector as a file that other programs run."""

import json
import warnings
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from fpn.checkpoints import Trained, check_categories, load
from fpn.console import say
from fpn.deploy.network import Deployed, Input
from fpn.deploy.onnx_file import OPSET, to_onnx
from fpn.errors import InputError
from fpn.files import replacing

Format = Literal["onnx", "torch_export"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch_export": ".pt2"}


def export(
    ckpt_path: str, format: Format = "onnx", output: str | None = None, input: Input = "pixels"
) -> None:
    """Write a trained detector as a file for other programs.

    examples:
      best.onnx, which ONNX Runtime and OpenVINO run without this package
        fpn export best.ckpt
      a program of PyTorch's, which needs torch, torchvision and this package's `fpn.ops.suppression`
        fpn export best.ckpt --format torch_export --output street.pt2

    The file takes images (N, 3, H, W), of any number and size, and their sizes (N, 2), heights and
    widths without padding. It gives boxes (N, D, 4) in pixels of these images, scores (N, D), labels
    (N, D) and count (N): how many of the D places of each image hold a detection. Of a ProposalNetwork
    there are no labels. Names and ids of the categories, how images are prepared and the score
    threshold stand in the file as JSON, under "fpn". In Python, `fpn.deploy.OnnxPredictor` runs an
    ONNX file.

    Args:
        ckpt_path: a checkpoint written by `fpn fit`, or whatever else `fpn predict` takes.
        format: onnx, of opset 18, or torch_export, as `torch.export.load` reads it.
        output: the file to write; by default the checkpoint's name, with .onnx or .pt2, in this folder.
        input: pixels are uint8 RGB images as decoded, resized and normalised inside; normalised ones are
            float32, prepared by whoever calls, and padded with zeros to multiples of 32.
    """
    path = Path(output or Path(ckpt_path).with_suffix(SUFFIXES[format]).name)
    if path.suffix != SUFFIXES[format]:
        known = ", ".join(f"{ending} of {name}" for name, ending in SUFFIXES.items())
        raise InputError(f"output {path}: --format {format} makes a file with its own ending ({known})")
    write(load(ckpt_path), path, format, input)
    say(f"{path.stat().st_size / 2**20:,.0f} MB written to {path}")


def write(trained: Trained, path: str | Path, format: Format = "onnx", input: Input = "pixels") -> None:
    """Write a detector as `export` does, of whatever weights.

    Args:
        trained: of `fpn.load`, or put together, as of `fpn.load_torchvision` or `fpn.load_detectron2`.
        path: the file.
        format: onnx or torch_export.
        input: pixels or normalised.

    Raises:
        InputError: the detector cannot be exported, or not to this format, or has other classes.
    """
    check_categories(trained.detector, trained.categories)
    network = Deployed(trained.detector, trained.image, input)
    opset = {"opset": OPSET} if format == "onnx" else {}
    about = json.dumps(described(trained, network) | opset, ensure_ascii=False)
    program = network.program()
    written = to_onnx(program, network.outputs, about) if format == "onnx" else None
    with replacing(Path(path)) as part:
        if written is not None:
            written.save(part, external_data=False)
        else:
            with part.open("wb") as file, warnings.catch_warnings():
                # Said of weights whose channels lie last; all of their bytes are written.
                warnings.filterwarnings("ignore", "No complete tensor found in the group", UserWarning)
                torch.export.save(program, file, extra_files={"fpn.json": about})


def described(trained: Trained, network: Deployed) -> dict[str, Any]:
    """What a file tells of its detector."""
    finds = network.detector.finds_objects
    names, ids = (trained.categories.names, trained.categories.ids) if finds else (("object",), (1,))
    return {
        "fpn": version("fpn"),
        "detector": type(trained.detector).__name__,
        "names": names,
        "category_ids": ids,
        "input": network.input,
        "image": asdict(trained.image),
        "score_threshold": network.detector.detections.score_threshold if finds else None,
        "outputs": network.outputs,
    }
