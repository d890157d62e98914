import os
import subprocess
import sys

import pytest

TRIAL = """
import resource, torch
from fpn.allocator import keep_freed_memory
print(keep_freed_memory())
for _ in range(16):  # the first are new in any case: what is small and lasting may settle behind each
    torch.ones(2**24)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
"""


def faults(**environment: str) -> tuple[str, int]:
    """What it said, and how often memory was faulted in while 64 MiB were taken and freed eight times."""
    done = subprocess.run(
        [sys.executable, "-c", TRIAL],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    kept, number = done.stdout.split()
    return kept, int(number)


def test_freed_memory_is_used_again_unless_it_is_switched_off() -> None:
    kept, few = faults()
    if kept == "False":
        pytest.skip("not glibc")
    off, many = faults(FPN_ALLOCATOR="system")
    assert off == "False"
    assert few < many / 4
