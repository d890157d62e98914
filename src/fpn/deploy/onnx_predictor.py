"""Images in, boxes in the pixels of these images out: with ONNX Runtime, NumPy and Pillow alone.

Symbols: D detections of an image.
"""

import json
import math
from collections.abc import Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, cast, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fpn.errors import InputError
from fpn.files import LEFT_TO_OTHERS

Picture = NDArray[Any] | Image.Image | bytes | str | Path
Pixels = NDArray[np.uint8]
_NO_CATEGORY = "(no category)"
_ROUNDING = 1e-3
"""How far a floating-point image may leave [0, 1]."""
_DEEP = ("I", "I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's names of grey of more than 8 bits."""


class OnnxPrediction(NamedTuple):
    """What is found in one image, best first."""

    boxes: NDArray[np.float32]
    """(D, 4) x1, y1, x2, y2 in pixels of the image as given, or of a file as viewers show it."""
    scores: NDArray[np.float32]
    """(D,) in [0, 1]."""
    labels: NDArray[np.int64]
    """(D,) in 1…K; of proposals 1."""
    names: list[str]
    """(D,) of the categories."""


class OnnxPredictor:
    """A detector of a file that `fpn export --format onnx` has written.

    Args:
        path: the file.
        providers: ONNX Runtime's, best first, as CUDAExecutionProvider; None for the CPU.
        threads: on the CPU; None for as many as it has cores.

    Attributes:
        about: what the file tells of itself: names, category_ids, image, score_threshold and more.

    Raises:
        InputError: ONNX Runtime is not installed, there is no such file, or it is no export of pixels.
    """

    def __init__(
        self, path: str | Path, providers: Sequence[str] | None = None, threads: int | None = None
    ) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise InputError("OnnxPredictor needs ONNX Runtime: pip install onnxruntime") from None
        options = onnxruntime.SessionOptions()
        if threads is not None:
            options.intra_op_num_threads = threads
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file")
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=list(providers or ["CPUExecutionProvider"])
            )
        except Exception as error:  # its own classes, which are not public
            raise InputError(f"{path}: {str(error).splitlines()[0]}") from None
        there = self._session.get_providers()  # which are fewer than were asked for, without an error
        if lacking := {*(providers or ())} - {*there}:
            raise InputError(
                f"ONNX Runtime has no {min(lacking)} here, but {', '.join(there)}: for NVIDIA's GPUs"
                " pip install onnxruntime-gpu, in place of onnxruntime"
            )
        told = self._session.get_modelmeta().custom_metadata_map.get("fpn")
        try:
            self.about: dict[str, Any] = json.loads(told or "")
            takes = self.about["input"]
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path} was not written by `fpn export`") from None
        if takes != "pixels":
            raise InputError(f"{path} takes normalised images: export it with --input pixels")

    @overload
    def __call__(self, images: Picture) -> OnnxPrediction: ...  # type: ignore[overload-overlap]  # a str is both

    @overload
    def __call__(self, images: Sequence[Picture]) -> list[OnnxPrediction]: ...

    def __call__(self, images: Picture | Sequence[Picture]) -> OnnxPrediction | list[OnnxPrediction]:
        """What is found in an image, or in each image of a list, best first.

        The images of a list make one batch, as of `Predictor`.

        Args:
            images: paths of files; their bytes; PIL images; or arrays (H, W, 3), RGB, or grey (H, W), of
                uint8, 16 bits, which are scaled by their range, or floating point in [0, 1], which is rounded
                to 8 bits. The first three are taken as viewers show them, turned by their EXIF orientation.

        Raises:
            InputError: an image cannot be read, or has another shape, type or range.
        """
        if not isinstance(images, list | tuple):
            return self([cast(Picture, images)])[0]
        if not images:
            return []
        pixels = [_pixels(image) for image in images]
        sizes = np.array([one.shape[:2] for one in pixels], np.int64)
        batch = np.zeros((len(pixels), 3, *sizes.max(axis=0)), np.uint8)
        for padded, one in zip(batch, pixels, strict=True):
            padded[:, : one.shape[0], : one.shape[1]] = one.transpose(2, 0, 1)
        found = self._session.run(self.about["outputs"], {"images": batch, "sizes": sizes})
        by_name = dict(zip(self.about["outputs"], found, strict=True))
        labels = by_name.get("labels", np.ones(by_name["scores"].shape, np.int64))
        parts = zip(by_name["boxes"], by_name["scores"], labels, by_name["count"], strict=True)
        return [self._named(*(part[:number] for part in one)) for *one, number in parts]

    def _named(self, *found: Any) -> OnnxPrediction:
        names = self.about["names"]
        real = np.array([name != _NO_CATEGORY for name in names])
        boxes, scores, labels = (part[real[found[2] - 1]] for part in found)
        return OnnxPrediction(boxes, scores, labels, [names[label - 1] for label in labels])


def _pixels(image: Picture) -> Pixels:
    """(H, W, 3) RGB."""
    if isinstance(image, np.ndarray):
        return _of_array(image)
    if isinstance(image, Image.Image):
        return _of_picture(image, "a PIL image")
    if not isinstance(image, str | Path | bytes):
        raise InputError(
            f"OnnxPredictor takes paths, bytes, PIL images and arrays, one or a list, not a"
            f" {type(image).__name__}"
        )
    name = "the bytes of an image" if isinstance(image, bytes) else str(image)
    try:
        with Image.open(BytesIO(image) if isinstance(image, bytes) else image, formats=_formats()) as picture:
            return _of_picture(picture, name)
    except FileNotFoundError:
        raise InputError(f"{name}: no such image file") from None
    except InputError:
        raise
    except Exception as error:  # Pillow's plugins raise anything at all on broken files
        raise InputError(f"{name}: cannot be decoded: {error}") from None


@cache
def _formats() -> list[str]:
    Image.init()
    return [name for name in Image.ID if name not in LEFT_TO_OTHERS]


def _of_picture(picture: Image.Image, name: str) -> Pixels:
    if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":
        raise InputError(f"{name}: holds several images; give each a file of its own")
    if picture.mode == "F" or (picture.mode == "I" and picture.format != "PNG"):
        raise InputError(f"{name}: its colours are numbers of no stated range; save it with 8 or 16 bits")
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in _DEEP:
        return _of_array(np.asarray(picture).astype(np.uint16))
    if picture.mode == "La":
        picture = picture.convert("LA")  # from which alone Pillow goes on
    return np.asarray(picture.convert("RGB"))


def _of_array(image: NDArray[Any]) -> Pixels:
    if not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)) or 0 in image.shape:
        raise InputError(
            f"an image array has the shape (height, width, 3), or (height, width) in grey, not {image.shape}:"
            " several go into a list, and transpose(1, 2, 0) puts the colours last"
        )
    if image.ndim == 2:
        image = np.repeat(image[:, :, None], 3, axis=2)
    if image.dtype == np.uint8:
        return image
    if image.dtype.kind == "u" and image.dtype.itemsize == 2:
        return np.round(image.astype(np.float32) / 257).astype(np.uint8)
    if image.dtype.kind != "f":
        raise InputError(f"an image array is uint8 or floating point in [0, 1], not {image.dtype}")
    low, high = float(image.min()), float(image.max())
    if not (math.isfinite(low + high) and low >= -_ROUNDING and high <= 1 + _ROUNDING):
        raise InputError(
            f"a floating-point image is in [0, 1], not from {low:g} to {high:g}: divide it by 255, or give it"
            " without normalisation"
        )
    return np.round(image * 255).clip(0, 255).astype(np.uint8)
