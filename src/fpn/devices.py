"""Where a network can run."""

import os

import torch

from fpn.errors import InputError


def cpu_cores() -> int:
    """How many this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # which macOS lacks
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def device_named(name: torch.device | str) -> torch.device:
    """The device of a name, as cpu or cuda:1, if this machine can compute on it.

    Raises:
        InputError: there is no such device here.
    """
    try:
        device = torch.device(name)
        # Only at work does a device show that it is there; a meta tensor has no numbers to give.
        torch.ones(1, device=device).tolist()
    except (RuntimeError, AssertionError) as error:  # an AssertionError where torch is built without it
        here = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        here += ["mps"] if torch.backends.mps.is_available() else []
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise InputError(
            f"device {str(name)!r} cannot be used ({reason}): this machine has {', '.join(here)}"
        ) from None
    return device
