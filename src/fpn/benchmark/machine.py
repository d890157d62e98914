"""What is measured on: versions, hardware, and how fast it multiplies matrices."""

import os
import platform
import statistics
import time
from pathlib import Path

import torch
import torchvision

from fpn.devices import device_named
from fpn.errors import InputError


def check_device(device: str) -> None:
    """Raise InputError for a device that is not cpu, nor a GPU that can be used."""
    if device_named(device).type not in ("cpu", "cuda"):
        raise InputError(f"device {device}: only cpu and cuda are measured")


def described(device: str, threads: int | None) -> dict[str, str]:
    """Hardware and versions, by name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.processor() or platform.machine()
    machine = {
        "CPU": f"{cpu}, {os.cpu_count()} cores ({torch.backends.cpu.get_cpu_capability()})",
        "threads": str(threads or torch.get_num_threads()),
        "system": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }
    if torch.device(device).type == "cuda":
        machine["GPU"] = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return machine


def peak_gflops(device: str, precision: str, threads: int | None) -> float:
    """GFLOP/s of a product of two square matrices, the median of 5 after one that is not counted.

    On a GPU float32 products are taken in TF32, as its convolutions are by default.

    Args:
        device: cpu or cuda.
        precision: fp32 or bf16.
        threads: as the work will have.
    """
    on_gpu = torch.device(device).type == "cuda"
    side = 8192 if on_gpu else 2048
    a = torch.rand(side, side, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    usual_threads, usual_tf32 = torch.get_num_threads(), torch.backends.cuda.matmul.allow_tf32
    torch.set_num_threads(threads or usual_threads)
    torch.backends.cuda.matmul.allow_tf32 = True
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        torch.mm(a, a)
        if on_gpu:
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    torch.set_num_threads(usual_threads)
    torch.backends.cuda.matmul.allow_tf32 = usual_tf32
    return 2 * side**3 / statistics.median(seconds[1:]) / 1e9
