"""The memory that a process frees and takes again."""

import ctypes
import os

#: Numbers of two settings of glibc, as in its malloc.h.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
#: Bytes of free memory to keep; the smallest piece to take from the system by itself, of which older
#: versions of glibc take the second at most.
KEPT, PIECES = 2**30, (2**30, 2**25)


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, if its C library can; says whether it can.

    A network frees its activations after each batch. By default, glibc gives large pieces back to the
    system, which clears them page by page when the next batch takes them: up to 30 % of the time
    of a prediction (`python -m benchmarks freed_memory`). With this, the resident memory stays at its
    largest. Every command of Stepwell does this at its start, and a program of your own may.
    """
    if "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", ()):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None or not any(mallopt(MMAP_THRESHOLD, piece) for piece in PIECES):
        return False
    return bool(mallopt(TRIM_THRESHOLD, KEPT))
