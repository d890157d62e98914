"""Exported files against the detector they are of: the same detections, and how long each takes."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse.typing import PositiveInt
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.comparison import DisagreementError, Run, Work
from benchmarks.infer import Found, over_batches
from benchmarks.infer import ours as eager
from benchmarks.inputs import CLASSES, NetworkRun, load_ours, weights_and_files
from benchmarks.stages import Seen, pairs
from fpn import Categories, InputError
from fpn.checkpoints import Trained
from fpn.data.transforms import ImageSettings
from fpn.deploy import OnnxPredictor
from fpn.deploy.export import write

BOXES, SCORES = 1e-2, 1e-4
"""Pixels, and difference of scores, within which two detections are the same."""
MATCHED = 0.98
"""The least share of them: of two boxes with nearly the same score, either may stay."""
SIDES = ("ONNX Runtime", "OpenVINO", "torch.export")


def export(
    number: PositiveInt = 4, compared: PositiveInt = 4, sides: Sequence[str] = SIDES, **options: Any
) -> Run:
    """What `fpn export` writes against `Predictor`, from decoded images to boxes in their pixels.

    Args:
        number: images in a timed repetition, rounded up to whole batches.
        compared: images on which detections are compared before.
        sides: of ONNX Runtime, OpenVINO and torch.export.
        **options: of `NetworkRun`, on a CPU in fp32.
    """
    run = NetworkRun(**options)
    if run.precision != "fp32" or run.device != "cpu":
        raise InputError("exported files are measured on a CPU in fp32")
    if unknown := sorted(set(sides) - set(SIDES)):
        raise InputError(f"sides: there is no {unknown[0]!r}; there are {', '.join(SIDES)}")
    number = -(-number // run.batch) * run.batch
    with weights_and_files(run.images, max(number, compared)) as (weights, files):
        ids = tuple(range(1, CLASSES))
        settings = ImageSettings(run.short_side, run.max_side)
        trained = Trained(load_ours(weights), Categories(ids, tuple(map(str, ids))), settings)
        paths = {"onnx": weights.with_suffix(".onnx"), "torch_export": weights.with_suffix(".pt2")}
        for format, path in paths.items():
            write(trained, path, format)  # type: ignore[arg-type]
        known: dict[str, Callable[[], Work]] = {
            "ONNX Runtime": partial(_both, with_onnx, run, paths["onnx"], files, number),
            "OpenVINO": partial(_both, with_openvino, run, paths["onnx"], files, number),
            "torch.export": partial(_both, with_torch, run, paths["torch_export"], files, number),
        }
        chosen = {name: known[name] for name in sides} | {
            "ours": partial(_both, eager, run, weights, files, number)
        }
        title = f"inference, batch {run.batch}"
        run.compare(title, chosen, same_detections, number=number, allocators=False)
    return run


def same_detections(theirs: list[Seen], ours: list[Seen]) -> str:
    """See that nearly all detections match pairwise."""
    found = [
        pair
        for one, other in zip(theirs, ours, strict=True)
        for pair in zip(one.found, other.found, strict=True)
    ]
    matched = sum(len(pairs(one, other, BOXES, SCORES)) for one, other in found)
    most = sum(max(len(one[0]), len(other[0])) for one, other in found)
    line = f"{matched} of {most} detections matched (boxes within {BOXES:g} px, scores within {SCORES:g})"
    if not most or matched < MATCHED * most:
        raise DisagreementError(line)
    return line


def _both(
    make: Callable[[NetworkRun, Path, Sequence[Path]], Work],
    run: NetworkRun,
    path: Path,
    files: Sequence[Path],
    number: int,
) -> Work:
    """A repetition on the first files, and on all that are compared."""
    whole, timed = make(run, path, files), make(run, path, files[:number])
    return lambda compared: whole(True) if compared else timed(False)


def unwatched(_: Seen) -> AbstractContextManager[None]:
    """Their stages are not seen."""
    return nullcontext()


def with_onnx(run: NetworkRun, path: Path, files: Sequence[Path]) -> Work:
    """`OnnxPredictor`."""
    predictor = OnnxPredictor(path, threads=run.threads)

    def detect(images: list[Tensor], short_side: int, max_side: int) -> Found:
        found = predictor([image.permute(1, 2, 0).numpy() for image in images])
        return [[torch.from_numpy(part) for part in one[:3]] for one in found]

    return over_batches(detect, unwatched, run, files)


def with_openvino(run: NetworkRun, path: Path, files: Sequence[Path]) -> Work:
    """OpenVINO on the ONNX file."""
    import openvino

    network = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    run_it = partial(_padded, lambda images, sizes: network([images, sizes]).values())
    return over_batches(run_it, unwatched, run, files)


def with_torch(run: NetworkRun, path: Path, files: Sequence[Path]) -> Work:
    """The exported program, run by PyTorch."""
    network = torch.export.load(path).module()
    run_it = partial(_padded, lambda *given: [one.numpy() for one in network(*map(torch.from_numpy, given))])
    return over_batches(run_it, unwatched, run, files)


def _padded(network: Callable[..., Any], images: list[Tensor], short_side: int, max_side: int) -> Found:
    """What a network finds that takes pixels and sizes."""
    sizes = np.array([image.shape[1:] for image in images])
    batch: NDArray[np.uint8] = np.zeros((len(images), 3, *sizes.max(axis=0)), np.uint8)
    for padded, image in zip(batch, images, strict=True):
        padded[:, : image.shape[1], : image.shape[2]] = image.numpy()
    *found, counts = (torch.from_numpy(np.array(part)) for part in network(batch, sizes))
    return [[part[i, :count] for part in found] for i, count in enumerate(counts.tolist())]
