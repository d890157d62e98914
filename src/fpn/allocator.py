"""How the C library keeps freed memory, which decides a third of the time of a large network on a CPU.

By default glibc maps every large tensor anew from the operating system and gives it back when it is
freed: each page of it is faulted in and zeroed once more.
"""

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4
"""glibc's malloc.h."""


def keep_freed_memory() -> bool:
    """Have this process, and those it forks, keep the memory that it frees and use it again.

    The environment variable `FPN_ALLOCATOR=system` leaves everything as it is.

    Returns:
        Whether it could be done: with glibc only.
    """
    return _set({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_TOP_PAD: 64 * 2**20})


def give_back_large_blocks() -> bool:
    """Have this process give back blocks of 32 MiB and more as they are freed, whatever else it keeps.

    One that loads images needs such for large photos alone, and would keep several times their memory.

    Returns:
        As `keep_freed_memory` does.
    """
    return _set({M_MMAP_MAX: 65536, M_MMAP_THRESHOLD: 32 * 2**20})


def _set(settings: dict[int, int]) -> bool:
    if os.environ.get("FPN_ALLOCATOR") == "system" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(name, value) == 1 for name, value in settings.items())
