"""Freed memory that stays with the process."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from stepwell.memory import keep_freed_memory

if sys.argv[1] == "keeps" and not keep_freed_memory():
    raise SystemExit(77)

def fill():
    np.full(10_000_000, 1, np.uint8)

fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip("this C library has no such setting")
    return int(done.stdout)


def test_freed_memory_is_taken_again_without_page_faults():
    assert page_faults("keeps") < page_faults("default") / 10
