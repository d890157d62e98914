"""Image files to RGB bytes: by torchvision where its decoders can, by Pillow where they cannot.

A photo may be stored turned or mirrored, and say so in its EXIF orientation: 1 for one that is not, 2 to 8 as
in CIPA DC-008, 4.6.4 A. It is shown upright, as viewers do, unless asked otherwise. TIFF files always are.
"""

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Literal

import numpy as np
import torch
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2.functional import pil_to_tensor

from fpn.errors import InputError
from fpn.files import LEFT_TO_OTHERS
from fpn.types import Size

Exif = Literal["apply", "ignore"]

READERS = {"AVIF": "Pillow 11.3", "HEIC": "the package pillow-heif"}
"""What it takes to read the formats that not every Pillow can."""
_FAST = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"RIFF")
"""How the files begin that torchvision decodes."""
DEEP = ("I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's names of grey of 16 bits."""
_EMPTY = "cannot be decoded: the file is empty"
_NO_IMAGE = "cannot be decoded: no image of a kind that torchvision or Pillow reads"
SIDEWAYS = range(5, 9)
"""EXIF orientations that change height for width."""
_HEAD = 2**16
"""Bytes from a file's beginning within which the EXIF data of JPEG and PNG begin."""
_BITS_PER_SAMPLE = 258
_LOCK = Lock()


def read_image(path: Path, exif: Exif = "apply", size: Size | None = None) -> Tensor:
    """Decode an image file to (3, H, W) uint8 RGB.

    Grey, CMYK and palettes become RGB, transparency is dropped. 16 bits a colour are scaled by their range,
    so that 65535 becomes 255.

    Args:
        path: the file.
        exif: apply turns the image as its EXIF orientation says, ignore leaves it as stored.
        size: height and width that are stated of it: it is also left as stored if it has these only so.

    Raises:
        InputError: if the file is missing, broken, no image, or holds several.
    """
    try:
        if not path.is_file():  # but a folder, a device that has no end, or a pipe
            raise FileNotFoundError
        image, orientation = _decoded(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: no such image file") from None
    except (OSError, ValueError) as error:  # the first as of such a long name that no file can have it
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    stored = (image.shape[-2], image.shape[-1])
    if exif == "apply" and is_turned(orientation, stored, size):
        return upright(image, orientation)
    return image


def read_bytes(content: bytes) -> Tensor:
    """Decode what an image file holds, with the result of `read_image`.

    Raises:
        InputError: it is broken, no image, or several.
    """
    try:
        image, orientation = _decoded(content)
    except ValueError as error:
        raise InputError(f"the bytes of an image: {error}") from None
    return upright(image, orientation)


def is_turned(orientation: int, stored: Size, stated: Size | None) -> bool:
    """Whether an image of this EXIF orientation is to be turned or mirrored.

    It is, unless its size is stated, and is that of the image as stored alone.
    """
    shown = stored[::-1] if orientation in SIDEWAYS else stored
    return orientation > 1 and (stated is None or shown == stated or stored != stated)


def upright(image: Tensor, orientation: int) -> Tensor:
    """An image (3, H, W) turned and mirrored as its EXIF orientation says; its memory is used anew."""
    if orientation in SIDEWAYS:
        image = image.transpose(-1, -2)
    for dim, mirrored in ((-1, (2, 3, 6, 7)), (-2, (3, 4, 7, 8))):
        if orientation in mirrored:
            # Some rows or columns at a time: a second copy of a large photo is too much.
            for part in image.split(64, dim=-3 - dim):
                part.copy_(part.flip(dim))
    return image


def header_of(path: Path) -> tuple[Size, int] | None:
    """Height and width as stored, and EXIF orientation; None for what is no image."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL's, of huge images and broken EXIF data
            with opened(str(path)) as picture:
                return (picture.height, picture.width), orientation_of(picture)
    except (OSError, ValueError):
        return None


def orientation_of(picture: Image.Image) -> int:
    """The EXIF orientation that one of Pillow's images is still to be turned by, without decoding it."""
    exif = Image.Exif()
    with suppress(Exception):  # as below
        if data := picture.info.get("exif"):  # picture.getexif() would decode a PNG file
            exif.load(data)
    orientation = exif.get(ExifTags.Base.Orientation, 1)
    return orientation if orientation in range(2, 9) else 1


def shown_size(path: Path) -> Size | None:
    """Height and width of an image as viewers show it, by its header; None of what is no image."""
    if (header := header_of(path)) is None:
        return None
    size, orientation = header
    return size[::-1] if orientation in SIDEWAYS else size


def _decoded(content: bytes) -> tuple[Tensor, int]:
    """The image as stored, and its EXIF orientation, of a file's bytes; ValueError where there is none."""
    begin = content[:_HEAD]
    if begin.startswith(_FAST):
        with suppress(RuntimeError):
            data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            image = decode_image(data, mode=ImageReadMode.RGB)
            if image.dim() == 3:
                image = image if image.dtype == torch.uint8 else eight_bits(image)
                if not _may_turn(begin):
                    return image, 1
                with opened(BytesIO(content)) as picture:
                    return image, orientation_of(picture)
    with opened(BytesIO(content)) as picture:
        return rgb_of(picture), orientation_of(picture)


def _may_turn(begin: bytes) -> bool:
    """Whether a file that begins so may have an EXIF orientation."""
    if begin.startswith(b"RIFF"):
        return begin[12:16] == b"VP8X" and bool(begin[20] & 0x08)
    return (b"eXIf" if begin.startswith(b"\x89PNG") else b"Exif\0") in begin


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
    if picture.mode == "La":
        picture = picture.convert("LA")  # from which alone Pillow goes on
    if picture.mode not in ("I", *DEEP):
        return pil_to_tensor(picture.convert("RGB"))
    bits = 16
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        bits = int(picture.tag_v2.get(_BITS_PER_SAMPLE, (16,))[0])
    grey = np.asarray(picture).astype(np.float32) * (255 / (2**bits - 1))
    return torch.from_numpy(np.round(grey).astype(np.uint8)).expand(3, -1, -1).clone()


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
        with _LOCK:
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:  # without Pillow's limit, which photos of today's telephones exceed
                picture = Image.open(file, formats=formats())
            finally:
                Image.MAX_IMAGE_PIXELS = limit
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
    """Those that Pillow reads, HEIC among them where pillow-heif is installed; it tries them in turn."""
    with suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    Image.init()
    read = [name for name in Image.ID if name not in LEFT_TO_OTHERS]
    return sorted(read, key=lambda name: name not in ("JPEG", "PNG"))


def is_image(path: Path) -> bool:
    """Whether a file is an image: by its first bytes, or by its name where it may be a broken one."""
    try:
        with opened(str(path)):
            return True
    except ValueError as error:
        return str(error) not in (_EMPTY, _NO_IMAGE) or path.suffix.lower() in image_endings()
    except OSError:
        return False


@cache
def image_endings() -> frozenset[str]:
    """How the names of image files end, in small letters: also of formats that take another reader."""
    known = {*formats(), "MPO"}  # which is read as JPEG
    endings = {ending for ending, name in Image.registered_extensions().items() if name in known}
    return frozenset({*endings, ".avif", ".heic", ".heif"})


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


def eight_bits(image: Tensor) -> Tensor:
    """Colours of 16 bits as uint8, by their range: 65535 becomes 255."""
    return (image.to(torch.float32) / 257).round().to(torch.uint8)
