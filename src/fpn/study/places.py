"""Where the runs of a study find room on this machine: its GPUs, or a share of its CPU cores."""

import os

import torch

from fpn.devices import cpu_cores
from fpn.errors import InputError


def places(jobs: int | None = None, devices_per_run: int = 1) -> list[dict[str, str]]:
    """Room for runs on this machine: the environment variables that give each run its share.

    GPUs are those that CUDA_VISIBLE_DEVICES leaves visible. Without any, or with none asked for, the runs
    share the CPU cores among them.

    Args:
        jobs: runs at a time; None for as many as the GPUs suffice for, on the CPU one.
        devices_per_run: GPUs of each run; 0 keeps it off the GPUs.

    Raises:
        InputError: there are not so many GPUs, or a number makes no sense.
    """
    check_room(jobs, devices_per_run)
    devices = _visible_devices()
    if devices_per_run > 1 and len(devices) < devices_per_run:
        raise InputError(f"--devices_per_run {devices_per_run}, but {len(devices)} GPUs are visible")
    if not devices or devices_per_run == 0:
        jobs = jobs or 1
        shared = {"CUDA_VISIBLE_DEVICES": ""} if devices else {}
        if jobs > 1 and "OMP_NUM_THREADS" not in os.environ:
            shared["OMP_NUM_THREADS"] = str(max(cpu_cores() // jobs, 1))
        return [shared.copy() for _ in range(jobs)]
    jobs = jobs or len(devices) // devices_per_run
    if jobs * devices_per_run > len(devices):
        raise InputError(
            f"--jobs {jobs} of {devices_per_run} GPUs each need {jobs * devices_per_run}, "
            f"but {len(devices)} are visible"
        )
    starts = range(0, jobs * devices_per_run, devices_per_run)
    return [{"CUDA_VISIBLE_DEVICES": ",".join(devices[start:][:devices_per_run])} for start in starts]


def check_room(jobs: int | None, devices_per_run: int) -> None:
    """Raise an InputError where these make no sense on any machine."""
    if devices_per_run < 0 or (jobs is not None and jobs < 1):
        raise InputError("--jobs must be at least 1 and --devices_per_run at least 0")


def _visible_devices() -> list[str]:
    count = torch.cuda.device_count()
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given is not None else [str(index) for index in range(count)]
    return [name.strip() for name in names[:count]]
