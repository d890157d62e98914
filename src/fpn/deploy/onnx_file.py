"""An exported program as an ONNX file."""

import re
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from fpn.errors import InputError

OPSET = 18
_UNKNOWN = re.compile(
    r"(?:No ONNX function found for <OpOverload\(op='|translating node .*target=torch\.ops\.)([\w.:]+)"
)
_NO_LIMIT = 2**31 - 1
_BELOW_ALL_SCORES = -1.0
"""Of scores in [0, 1]; what is no box has -inf."""


def to_onnx(program: torch.export.ExportedProgram, outputs: Sequence[str], about: str) -> Any:
    """The ONNX model of a program, whose `save` writes a file.

    Args:
        program: as of `Deployed.program`.
        outputs: names of its outputs.
        about: the value of `fpn` in the file's metadata.

    Raises:
        InputError: onnx or onnxscript is not installed, or the program has an operator that ONNX has not.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError:
        raise InputError("ONNX files are written by onnxscript: pip install 'fpn[onnx]'") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's, of its own parts
            written = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=["images", "sizes"],
                output_names=list(outputs),
                custom_translation_table={
                    torch.ops.fpn.suppress.default: _suppress,
                    torch.ops.torchvision.roi_pool.default: _roi_pool,
                },
                verbose=False,
            )
        assert written is not None  # of this kind of export
        onnx.checker.check_model(written.model_proto)
    except (torch.onnx.errors.OnnxExporterError, onnx.checker.ValidationError) as error:
        found = _UNKNOWN.findall(f"{error} {error.__cause__}")
        unknown = sorted({name.removesuffix(".default") for name in found})  # the same one, told twice
        what = f"ONNX has nothing for {', '.join(unknown)}" if unknown else str(error).splitlines()[0]
        raise InputError(
            f"this detector cannot be exported to ONNX: {what}; try --format torch_export"
        ) from error
    for node in written.model.graph.all_nodes():
        node.metadata_props.clear()  # whence it came, as paths of this machine
    written.model.metadata_props.clear()
    written.model.metadata_props["fpn"] = about
    return written


def _suppress(boxes: Any, scores: Any, iou: float) -> Any:
    """`fpn::suppress`: groups are the batch of ONNX's operator."""
    from onnxscript import opset18

    op: Any = opset18  # whose types leave out what it makes of numbers and lists

    chosen = op.NonMaxSuppression(
        boxes,
        op.Unsqueeze(scores, [1]),
        op.Constant(value_int=_NO_LIMIT),
        op.Constant(value_float=iou),
        op.Constant(value_float=_BELOW_ALL_SCORES),
    )
    places = op.Gather(chosen, [0, 2], axis=1)
    none = op.Expand(op.Constant(value_float=0.0), op.Shape(scores))
    ones = op.Expand(op.Constant(value_float=1.0), op.Shape(places, start=0, end=1))
    return op.Cast(op.ScatterND(none, places, ones), to=9)


def _roi_pool(x: Any, rois: Any, scale: float, height: int, width: int) -> tuple[Any, Any]:
    """`torchvision::roi_pool`, without the places of the greatest values, which nobody reads."""
    from onnxscript import opset18

    pooled = opset18.MaxRoiPool(x, rois, pooled_shape=[height, width], spatial_scale=scale)
    return pooled, opset18.Shape(pooled)
