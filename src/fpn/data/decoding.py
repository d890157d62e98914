"""Image files to RGB bytes: by torchvision where its decoders can, by Pillow where they cannot."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from io import BytesIO
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from PIL import Image, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image, read_file
from torchvision.transforms.v2.functional import pil_to_tensor

from fpn.errors import InputError

READERS = {"AVIF": "Pillow 11.3", "HEIC": "the package pillow-heif"}
"""What it takes to read the formats that not every Pillow can."""
_OPENED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
"""Formats that Pillow tells and cannot read by itself."""
_FAST = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"RIFF")
"""How the files begin that torchvision decodes."""
DEEP = ("I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's names of grey of 16 bits."""
_EMPTY = "cannot be decoded: the file is empty"
_NO_IMAGE = "cannot be decoded: no image of a kind that torchvision or Pillow reads"
_BITS_PER_SAMPLE = 258
_LOCK = Lock()


def read_image(path: Path) -> Tensor:
    """Decode an image file to (3, H, W) uint8 RGB as stored.

    Grey, CMYK and palettes become RGB, transparency is dropped. 16 bits a colour are scaled by their range,
    so that 65535 becomes 255.

    Raises:
        InputError: if the file is missing, broken, no image, or holds several.
    """
    data = _content(path)
    begin = data[:8].numpy().tobytes()
    if begin.startswith(_FAST):
        with suppress(RuntimeError):
            image = decode_image(data, mode=ImageReadMode.RGB)
            if image.dim() == 3:
                return image if image.dtype == torch.uint8 else _eight_bits(image)
    try:
        with opened(BytesIO(data.numpy().data)) as picture:
            return rgb_of(picture)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def rgb_of(picture: Image.Image) -> Tensor:
    """(3, H, W) uint8 RGB of one of Pillow's images, as stored.

    Raises:
        ValueError: it cannot be decoded, holds several, or has colours of no known range.
    """
    if reason := refusal_of(picture):
        raise ValueError(reason)
    try:
        picture.load()
    except Exception:  # Pillow's plugins raise anything at all on broken files
        raise ValueError("cannot be decoded: it is damaged, or ends too early") from None
    if picture.mode not in ("I", *DEEP):
        return pil_to_tensor(picture.convert("RGB"))
    bits = 16
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        bits = int(picture.tag_v2.get(_BITS_PER_SAMPLE, (16,))[0])
    grey = np.asarray(picture).astype(np.float32) * (255 / (2**bits - 1))
    return torch.from_numpy(np.round(grey).astype(np.uint8)).expand(3, -1, -1)


def refusal_of(picture: Image.Image) -> str:
    """Why an image of Pillow's is not taken, by its header; empty if it is."""
    several = getattr(picture, "n_frames", 1)
    if several > 1 and picture.format != "MPO":
        return f"holds {several} images; give each a file of its own"
    if picture.mode == "F" or (picture.mode == "I" and picture.format != "PNG"):
        return "its colours are numbers of no stated range; save it with 8 or 16 bits"
    return ""


@contextmanager
def opened(file: BytesIO | str) -> Iterator[Image.Image]:
    """An image whose header is read.

    Raises:
        ValueError: it is none that can be read, with the reason.
    """
    try:
        with _of_any_size():
            picture = Image.open(file, formats=formats())
    except UnidentifiedImageError:
        with Path(file).open("rb") if isinstance(file, str) else file as stream:
            stream.seek(0)
            raise ValueError(_unknown(stream.read(16))) from None
    except Exception:  # as above
        raise ValueError("cannot be decoded: its header is damaged") from None
    with picture:
        yield picture


@cache
def formats() -> list[str]:
    """Those that Pillow reads, HEIC among them where pillow-heif is installed."""
    with suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    Image.init()
    return [name for name in Image.ID if name not in _OPENED]


def is_image(path: Path) -> bool:
    """Whether a file is an image: by its first bytes, or by its name where it may be a broken one."""
    try:
        with opened(str(path)):
            return True
    except ValueError as error:
        return str(error) not in (_EMPTY, _NO_IMAGE) or path.suffix.lower() in _suffixes()
    except OSError:
        return False


@cache
def _suffixes() -> frozenset[str]:
    known = formats()
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in known)


def _unknown(begin: bytes) -> str:
    """Why a file is not read that begins so."""
    if not begin:
        return _EMPTY
    if begin[4:8] == b"ftyp":
        for name, brands in (("AVIF", (b"avif", b"avis")), ("HEIC", (b"heic", b"heix", b"mif1", b"hevc"))):
            if begin[8:12] in brands:
                return f"cannot be decoded: it is {name}, which takes {READERS[name]}; or save it as JPEG"
    if begin.startswith(_FAST[:3]):
        return "cannot be decoded: it is damaged, or ends too early"
    return _NO_IMAGE


def _content(path: Path) -> Tensor:
    try:
        if not path.is_file():
            raise InputError(f"{path}: no such image file")
        if path.stat().st_size == 0:
            raise InputError(f"{path}: {_EMPTY}")
        return read_file(str(path))
    except OSError as error:  # as such a long name that no file can have it
        raise InputError(f"{path}: {error.strerror}") from None
    except RuntimeError:
        raise InputError(f"{path}: cannot be read") from None


def _eight_bits(image: Tensor) -> Tensor:
    return (image.to(torch.float32) / 257).round().to(torch.uint8)


@contextmanager
def _of_any_size() -> Iterator[None]:
    """Pillow without its limit, which photos of today's telephones exceed."""
    with _LOCK:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit
