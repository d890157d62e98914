"""Reading files of tensors without running any code that may lie in them."""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.models import WeightsEnum

from fpn.errors import InputError

# What a pickle of arrays is made of, under the names of old and new NumPy and of Python 2.
_PLAIN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): None,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{
        (f"numpy.{core}.{module}", name): None
        for core in ("core", "_core")
        for module, name in (
            ("multiarray", "_reconstruct"),
            ("multiarray", "scalar"),
            ("numeric", "_frombuffer"),
        )
    },
}


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What `torch.save` wrote: tensors, numbers, texts and containers of these, nothing else.

    Args:
        path: the file. Tensors are read to the CPU.

    Raises:
        InputError: there is no such file, it is truncated or no checkpoint, or it wants to run code.
    """
    return _read(path, lambda file: torch.load(file, map_location="cpu", weights_only=True))


def read_pickle(path: str | Path) -> dict[str, Any]:
    """What `pickle.dump` wrote, Python 2's too: arrays, numbers, texts and containers of these, nothing else.

    Args:
        path: the file.

    Raises:
        InputError: there is no such file, it is truncated or no pickle, or it wants to run code.
    """

    def read(file: Path) -> Any:
        with file.open("rb") as stream:
            return _PlainUnpickler(stream, encoding="latin1").load()

    return _read(path, read)


def read_any(path: str | Path) -> dict[str, Any]:
    """What lies in a file of PyTorch's, or in a `.pkl` of Detectron's or Detectron2's.

    Raises:
        InputError: as `read_checkpoint` and `read_pickle`.
    """
    # Some give a file of PyTorch's that ending too.
    plain = Path(path).suffix == ".pkl" and not zipfile.is_zipfile(path)
    return read_pickle(path) if plain else read_checkpoint(path)


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
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            value = torch.from_numpy(np.array(value))
        if not isinstance(value, Tensor):
            raise InputError(f"{source} is not a state dict: {key!r} is not a tensor")
        tensors[str(key)] = value
    return tensors


def download(weights: WeightsEnum, instead: str) -> dict[str, Tensor]:
    """Weights that torchvision publishes, from its cache or the network, their hash checked.

    Args:
        weights: which.
        instead: what to do where they cannot be had, for the message.

    Raises:
        InputError: they cannot be downloaded.
    """
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=True, check_hash=True)
    except OSError as error:
        raise InputError(f"weights {weights} could not be downloaded ({error}); {instead}") from error
    return state


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
    for name in sorted(wanted.keys() | state.keys()):
        if name not in state:
            raise InputError(f"{source} does not fit {network}: it has no {name}")
        if name not in wanted:
            raise InputError(f"{source} does not fit {network}, which has no {name}")
        if wanted[name].shape != state[name].shape:
            shapes = f"{tuple(state[name].shape)}, not {tuple(wanted[name].shape)}"
            raise InputError(f"{source} does not fit {network}: {name} has a shape of {shapes}")


class _PlainUnpickler(pickle.Unpickler):
    """Makes nothing but what `_PLAIN` lists: whatever else a pickle names could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PLAIN:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return _PLAIN[module, name] or super().find_class(module, name)


def _read(path: str | Path, read: Callable[[Path], Any]) -> dict[str, Any]:
    path = Path(path)
    if not path.is_file():
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
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
