"""Reading files of tensors without running any code that may lie in them."""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fpn.errors import InputError


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What `torch.save` wrote: tensors, numbers, texts and containers of these, nothing else.

    Args:
        path: the file. Tensors are read to the CPU.

    Raises:
        InputError: there is no such file, it is truncated or no checkpoint, or it wants to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"checkpoint {path} does not exist")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"checkpoint {path} is refused: it is damaged or holds more than tensors and plain values "
            f"({_first_line(error)})"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise InputError(f"checkpoint {path} cannot be read: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"checkpoint {path} holds a {type(content).__name__}, not a dictionary")
    return content


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """A plain state dict: tensors by name.

    Raises:
        InputError: as `read_checkpoint`, or something in the file is not a tensor.
    """
    content = read_checkpoint(path)
    strange = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if strange:
        raise InputError(f"{path} is not a state dict: {strange[0]!r} is not a tensor")
    return content


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
