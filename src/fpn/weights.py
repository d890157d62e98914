"""Reading files of tensors without running any code that may lie in them."""

import argparse
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torchvision.models import WeightsEnum, get_model_weights, list_models

from fpn.errors import InputError


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What `torch.save` wrote: tensors, numbers, texts and containers of these, nothing else.

    Args:
        path: the file. Tensors are read to the CPU.

    Raises:
        InputError: there is no such file, it is truncated or no checkpoint, or it wants to run code.
    """

    def read(file: Path) -> Any:
        # Plain values, which torchvision's training reference writes beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location="cpu", weights_only=True)

    return _read(path, read)


def read_pickle(path: str | Path) -> dict[str, Any]:
    """What `pickle.dump` wrote, Python 2's too: arrays, numbers, texts and containers of these, nothing else.

    Args:
        path: the file.

    Raises:
        InputError: there is no such file, it is truncated or no pickle, or it wants to run code.
    """

    def read(file: Path) -> Any:
        with file.open("rb") as stream:
            return _plain(_PlainUnpickler(stream, encoding="latin1").load(), {})

    return _read(path, read)


def read_any(path: str | Path) -> dict[str, Any]:
    """What lies in a file of PyTorch's, or in a `.pkl` of Detectron's or Detectron2's.

    Raises:
        InputError: as `read_checkpoint` and `read_pickle`.
    """
    # Some give a file of PyTorch's that ending too.
    plain = Path(path).suffix == ".pkl" and not zipfile.is_zipfile(path)
    return read_pickle(path) if plain else read_checkpoint(path)


def state_dict(content: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """The weights of a file's content: all of it, or what it holds as `model` (Detectron: `blobs`).

    Args:
        content: of the file.
        source: where that comes from, for the message.

    Raises:
        InputError: as `as_tensors`, or `model` holds something else than weights.
    """
    key = next((key for key in ("model", "blobs") if key in content), None)
    inner = content if key is None else content[key]
    if not isinstance(inner, Mapping):
        raise InputError(f"{source} is not a state dict: {key!r} holds a {type(inner).__name__}")
    return as_tensors(inner, source)


def as_tensors(content: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """Tensors by name, those that are NumPy arrays made into tensors.

    Args:
        content: arrays or tensors by name.
        source: where they come from, for the message.

    Raises:
        InputError: something is neither.
    """
    tensors = {}
    for key, value in content.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and value.dtype.itemsize <= 8:
            # In the machine's own order of bytes, and its own memory.
            value = torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
        if not isinstance(value, Tensor):
            raise InputError(f"{source} is not a state dict: {key!r} is not a tensor")
        tensors[str(key)] = value
    return tensors


def download(weights: WeightsEnum, instead: str) -> dict[str, Tensor]:
    """Weights that torchvision publishes, from its cache or the network; what is downloaded is checked.

    Args:
        weights: which.
        instead: what to do where they cannot be had, for the message.

    Raises:
        InputError: they cannot be downloaded, or are damaged.
    """
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except OSError as error:
        raise InputError(f"{weights.url} could not be downloaded ({error}); {instead}") from error
    except Exception as error:  # a damaged file can lead a reader anywhere
        cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        raise InputError(
            f"weights {weights} cannot be read ({_first_line(error)}): delete {cached}, "
            "which is then downloaded again"
        ) from error
    return state


def published(network: str, weights: str) -> dict[str, Tensor]:
    """Weights of a bottom-up that torchvision publishes under a name.

    Args:
        network: torchvision's name of it, or one that it does not have.
        weights: their name, as IMAGENET1K_V1.

    Raises:
        InputError: there are none of this name, or they cannot be had.
    """
    names = list(get_model_weights(network).__members__) if network in list_models() else []
    if weights not in names:
        there = f"there are {', '.join(names)}, or" if names else "none are published:"
        raise InputError(f"{network} has no weights {weights!r}; {there} give a file")
    instead = "set model.detector.bottom_up.weights to a file, or to null with norm: batch (or group) "
    return download(get_model_weights(network)[weights], instead + "and frozen_stages: 0")


def check_weights(
    wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str, network: str = "this detector"
) -> None:
    """See that every weight has its place and its shape.

    Args:
        wanted: the network's own state.
        state: what is to be loaded.
        source: where that comes from, for the message.
        network: what it is to be loaded into, for the message.

    Raises:
        InputError: a missing or surplus weight, or one of another shape.
    """
    # Counters of a BatchNorm's batches are read by no inference, and older files lack them.
    names = sorted(name for name in wanted.keys() | state.keys() if not name.endswith("num_batches_tracked"))
    for name in names:
        if name not in state:
            raise InputError(f"{source} does not fit {network}: it has no {name}")
        if name not in wanted:
            raise InputError(f"{source} does not fit {network}, which has no {name}")
        if wanted[name].shape != state[name].shape:
            shapes = f"{tuple(state[name].shape)}, not {tuple(wanted[name].shape)}"
            raise InputError(f"{source} does not fit {network}: {name} has a shape of {shapes}")


class _DType:
    """Stands in for numpy.dtype, which would believe a file that some bytes are pointers."""

    def __init__(self, code: str, *_: Any) -> None:
        if not re.fullmatch(r"[iu][1248]|f[248]|b1", code):
            what = "objects" if code.startswith("O") else f"type {code!r}"
            raise pickle.UnpicklingError(f"it holds an array of {what}")
        self.value = np.dtype(code)

    def __setstate__(self, state: Sequence[Any]) -> None:
        if state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])


class _Array:
    """Stands in for numpy.ndarray: numbers alone, from as many bytes as they need."""

    value: np.ndarray[Any, Any]

    def __setstate__(self, state: Sequence[Any]) -> None:
        _, shape, dtype, transposed, content = state
        # Python 2's bytes come as text.
        content = content.encode("latin1") if isinstance(content, str) else content
        self.value = np.frombuffer(content, dtype.value).reshape(shape, order="F" if transposed else "C")


def _array_from_buffer(content: Any, dtype: _DType, shape: Sequence[int], order: str) -> _Array:
    if not isinstance(content, bytes | bytearray):
        raise pickle.UnpicklingError("it holds an array without its bytes")
    array = _Array()
    array.__setstate__((None, shape, dtype, order == "F", bytes(content)))
    return array


def _number(dtype: _DType, content: str | bytes) -> Any:
    return _array_from_buffer(_bytes(content, "latin1"), dtype, (), "C").value.item()


def _bytes(content: str | bytes, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it holds text as {encoding}")
    return content.encode("latin1") if isinstance(content, str) else content


class _PlainUnpickler(pickle.Unpickler):
    """Makes nothing but what is listed: whatever else a pickle names could run code."""

    known: ClassVar[dict[tuple[str, str], Any]] = {
        ("collections", "OrderedDict"): OrderedDict,
        # As Python 3 writes bytes for Python 2.
        ("_codecs", "encode"): _bytes,
        ("numpy", "dtype"): _DType,
        ("numpy", "ndarray"): _Array,
        # Under the names of old and new NumPy.
        **{
            (f"numpy.{core}.{module}", name): made
            for core in ("core", "_core")
            for module, name, made in (
                ("multiarray", "_reconstruct", lambda *_: _Array()),
                ("multiarray", "scalar", _number),
                ("numeric", "_frombuffer", _array_from_buffer),
            )
        },
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.known:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        made = self.known[module, name]
        # A function for this once: a pickle may set attributes of what it names.
        return lambda *arguments: made(*arguments)


def _plain(value: Any, done: dict[int, Any]) -> Any:
    """Stand-ins replaced by what they stand for; what occurs twice is `done` once."""
    if not isinstance(value, _Array | dict | list | tuple):
        return value
    if id(value) not in done:
        if isinstance(value, _Array):
            done[id(value)] = value.value
        elif isinstance(value, dict):
            done[id(value)] = {key: _plain(item, done) for key, item in value.items()}
        else:
            done[id(value)] = [_plain(item, done) for item in value]
    return done[id(value)]


def _read(path: str | Path, read: Callable[[Path], Any]) -> dict[str, Any]:
    path = Path(path)
    if not path.is_file():
        if path.is_dir():
            raise InputError(f"checkpoint {path} is a folder: name a file in it")
        raise InputError(f"checkpoint {path} does not exist")
    try:
        content = read(path)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"checkpoint {path} is refused: it is damaged or holds more than tensors and plain values "
            f"({_first_line(error)})"
        ) from error
    except Exception as error:  # a damaged file can lead a reader anywhere
        raise InputError(f"checkpoint {path} cannot be read: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"checkpoint {path} holds a {type(content).__name__}, not a dictionary")
    return content


def _first_line(error: BaseException) -> str:
    if named := re.search(r"(?i)unsupported global:? (?:GLOBAL )?(\S+)", str(error)):
        return f"it names {named[1]}"
    if "weights_only" in str(error):  # advice that nobody should follow
        return "it is no file of torch.save"
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
