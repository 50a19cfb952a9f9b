"""The memory that a process frees and takes again."""

import ctypes
import os

#: Numbers of two settings of glibc, as in its malloc.h.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
#: Bytes of free memory to keep, and the smallest piece to take from the system by itself.
MOST = 2**30


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, if its C library can; says whether it can.

    A network frees its activations after each batch. By default, glibc gives large pieces back to the
    system, which clears them page by page when the next batch takes them: up to a quarter of the time
    of a prediction (`python -m benchmarks freed_memory`). With this, the resident memory stays at its
    largest. Every command of Stepwell does this at its start, and a program of your own may.
    """
    if "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", ()):
        return False
    library = ctypes.CDLL(None)
    return all(library.mallopt(setting, MOST) for setting in (TRIM_THRESHOLD, MMAP_THRESHOLD))
