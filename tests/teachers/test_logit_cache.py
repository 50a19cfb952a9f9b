"""Logits on disk: found by what a batch holds, whole or not believed."""

import errno
import json
import os
import random
import re
import signal
import sys
from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from forking import Forked
from stepwell.teachers import CachedLogits, LogitCache
from stepwell.teachers.logit_cache import RECORD
from stepwell.types import Exit

FOR = {"teacher": "t", "augmentation": {"pad": 1}, "mean": (0.5, 0.25)}


class Counting(nn.Module):
    """A teacher that counts its runs."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.dtype, self.runs = dtype, 0

    def forward(self, x):
        self.runs += 1
        return Exit(x.flatten(1)[:, :5].mul(3).to(self.dtype))


def batches(count=4, size=6):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size - (i == count - 1), 3, 4, 4, generator=generator) for i in range(count)]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def filled(folder, teacher=None):
    with LogitCache(folder, 5, FOR) as cache:
        cached = CachedLogits(teacher or Counting(), cache)
        return [cached(x).logits for x in batches()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_second_student_needs_no_teacher(folder, dtype):
    expected = filled(folder, Counting(dtype))
    teacher = Counting(dtype)
    with LogitCache(folder, 5, FOR) as cache:
        assert len(cache) == 4
        cached = CachedLogits(teacher, cache)
        for x, logits in zip(batches(), expected, strict=True):
            found = cached(x.to(memory_format=torch.channels_last)).logits
            assert found.dtype == dtype
            assert_close(found, logits, rtol=0, atol=0)
    assert (teacher.runs, cached.read, cached.computed) == (0, 23, 0)


def test_other_pixels_are_never_taken_for_these(folder):
    filled(folder)
    teacher = Counting()
    x = batches()[0]
    changed = x.clone()
    changed[3, 1, 2, 0] = torch.nextafter(changed[3, 1, 2, 0], torch.tensor(9.0))
    others = [changed, x.flip(0), x[:5], x.reshape(6, 3, 2, 8), x.reshape(9, 2, 4, 4)]
    with LogitCache(folder, 5, FOR) as cache:
        for runs, other in enumerate(others, 1):
            CachedLogits(teacher, cache)(other)
            assert teacher.runs == runs


def test_images_that_come_unchanged_are_found_however_they_are_batched(folder):
    x = torch.cat(batches())
    teacher = Counting()
    with LogitCache(folder, 5, FOR) as cache:
        cached = CachedLogits(teacher, cache, by_image=True)
        cached(x[:12])
        order = torch.randperm(12)
        assert_close(cached(x[:12][order]).logits, x[:12][order].flatten(1)[:, :5].mul(3))
        assert teacher.runs == 1
        cached(x[10:14])  # two of them are new, so the teacher runs on all, and two are kept
        assert (teacher.runs, len(cache)) == (2, 14)


def test_a_copy_for_an_average_of_weights_is_the_cache_itself(folder):
    with LogitCache(folder, 5, FOR) as cache:
        cached = CachedLogits(Counting(), cache)
        assert deepcopy(nn.ModuleDict({"a": cached}))["a"] is cached


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    cut_index=st.integers(0, 200),
    cut_logits=st.integers(0, 200),
)
def test_whatever_a_killed_process_left_is_read_right(tmp_path_factory, sizes, cut_index, cut_logits):
    """Any prefix of both files: what is found is right, and what is added after it is kept."""
    folder = tmp_path_factory.mktemp("cut")
    generator = torch.Generator().manual_seed(0)
    rows = {bytes([i]) * 16: torch.randn(n, 5, generator=generator) for i, n in enumerate(sizes)}
    with LogitCache(folder, 5, FOR) as cache:
        for key, row in rows.items():
            cache.put(key, row)
    for name, cut in (("index", cut_index), ("logits", cut_logits)):
        file = folder / name
        os.truncate(file, max(0, file.stat().st_size - cut))
    for _ in range(2):  # the second time, what the first one added is there
        with LogitCache(folder, 5, FOR) as cache:
            kept = len(cache)
            for key, row in rows.items():
                found = cache.get(key)
                if found is None:
                    cache.put(key, row)
                else:
                    assert_close(found, row, rtol=0, atol=0)
                assert_close(cache.get(key), row, rtol=0, atol=0)
    assert kept == len(rows)


def test_rows_that_a_crash_of_the_machine_damaged_are_made_again(folder):
    expected = filled(folder)
    data = bytearray((folder / "logits").read_bytes())
    data[7] ^= 1
    (folder / "logits").write_bytes(data)
    for runs in (1, 0):
        teacher = Counting()
        again = filled(folder, teacher)
        assert teacher.runs == runs
        for a, b in zip(again, expected, strict=True):
            assert_close(a, b, rtol=0, atol=0)


def test_beside_a_writer_one_reads_and_runs_the_teacher_for_the_rest(folder):
    filled(folder)
    new = torch.ones(2, 3, 4, 4)
    with LogitCache(folder, 5, FOR) as writer, LogitCache(folder, 5, FOR) as reader:
        assert (writer.writes, reader.writes) == (True, False)
        teacher = Counting()
        cached = CachedLogits(teacher, reader)
        cached(batches()[0])
        assert teacher.runs == 0
        cached(new)
        cached(new)
        assert teacher.runs == 2
        CachedLogits(teacher, writer)(new)
        assert len(writer) == 5
    with LogitCache(folder, 5, FOR) as later:
        assert later.writes
        assert len(later) == 5


@pytest.mark.parametrize(
    ("change", "classes", "message"),
    [
        ({"teacher": "u"}, 5, "made with teacher t, not u: use another --cache"),
        ({"augmentation": None}, 5, 'with augmentation {"pad": 1}, not null'),
        ({"precision": "bf16"}, 5, "made with precision null, not bf16"),
        ({}, 6, "made with classes 5, not 6"),
    ],
)
def test_a_cache_made_for_something_else(folder, change, classes, message):
    filled(folder)
    with pytest.raises(ValueError, match=re.escape(message)):
        LogitCache(folder, classes, FOR | change)
    with LogitCache(folder, 5, FOR) as cache:  # the lock was given back
        assert cache.writes


def test_who_came_before_the_header_takes_no_rows_for_its_own(folder, tmp_path, monkeypatch):
    original = LogitCache._check_header

    def then_another_writes(self, *arguments):
        seen = original(self, *arguments)
        for file in (tmp_path / "other").iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        return seen

    filled(tmp_path / "other")
    with LogitCache(folder, 5, FOR):
        (folder / "cache.json").unlink()  # it has the lock and did not get further yet
        monkeypatch.setattr(LogitCache, "_check_header", then_another_writes)
        beside = LogitCache(folder, 5, FOR | {"teacher": "another"})
        assert not beside.writes
        teacher = Counting()
        for x in batches():
            CachedLogits(teacher, beside)(x)
        assert (len(beside), teacher.runs) == (0, 4)


def test_folders_that_are_no_cache(folder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file: name a directory"):
        LogitCache(tmp_path / "file", 5, FOR)
    folder.mkdir()
    (folder / "photo.png").touch()
    with pytest.raises(ValueError, match="holds other files and no cache"):
        LogitCache(folder, 5, FOR)
    (folder / "cache.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged .* use another --cache"):
        LogitCache(folder, 5, FOR)


def test_double_precision_is_not_cut(folder):
    with LogitCache(folder, 5, FOR) as cache, pytest.raises(ValueError, match="single precision"):
        cache.put(b"k" * 16, torch.zeros(1, 5, dtype=torch.float64))


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the size of files")
def test_a_full_disk_says_where_and_what_was_there_stays(folder):
    import resource

    expected = filled(folder)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (folder / "logits").stat().st_size
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 30, before[1]))
    try:
        with LogitCache(folder, 5, FOR) as cache:
            with pytest.raises(OSError, match="cannot write .*logits: File too large"):
                cache.put(b"k" * 16, torch.ones(3, 5))
            assert cache.get(b"k" * 16) is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    teacher = Counting()
    for a, b in zip(filled(folder, teacher), expected, strict=True):
        assert_close(a, b, rtol=0, atol=0)
    assert teacher.runs == 0


def refused(monkeypatch, number):
    """Nothing can be written: for a superuser, whom no permissions stop, as the lock would say it."""

    def acquire(self, **_):
        raise OSError(number, os.strerror(number), str(self.lock_file))

    monkeypatch.setattr("stepwell.teachers.logit_cache.FileLock.acquire", acquire)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_cache_that_cannot_be_written_is_read(folder, monkeypatch, number):
    expected = filled(folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    refused(monkeypatch, number)
    teacher = Counting()
    with pytest.warns(UserWarning, match=r"cannot be written \(.*\): reading it only"):
        found = filled(folder, teacher)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, rtol=0, atol=0)
    assert teacher.runs == 0
    with pytest.warns(UserWarning, match="cannot be written"):
        cache = LogitCache(folder, 5, FOR)
    cache.put(b"k" * 16, torch.ones(3, 5))
    assert cache.get(b"k" * 16) is None
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    with pytest.raises(OSError, match="cannot be written .*: name another folder"):
        LogitCache(folder / "new", 5, FOR)


WRITER = """
import sys, torch
from pathlib import Path
from stepwell.teachers import LogitCache
cache = LogitCache(Path(sys.argv[1]), 5, {})
for i in range(len(cache), 10**9):
    cache.put(i.to_bytes(16, "big"), torch.full((1 + i % 7, 5), float(i)))
    if i % 50 == 0:
        print(i, flush=True)
"""


def test_a_process_killed_while_it_writes_leaves_a_whole_cache(folder):
    rng = random.Random(0)
    kept = 0
    for _ in range(2):
        with Forked("-c", WRITER, folder) as process:
            for _ in range(rng.randrange(2, 5)):
                assert process.stdout.readline()
            process.kill()
        with LogitCache(folder, 5, {}) as cache:
            assert len(cache) > kept
            kept = len(cache)
            for i in range(kept):
                rows = cache.get(i.to_bytes(16, "big"))
                assert_close(rows, torch.full((1 + i % 7, 5), float(i)), rtol=0, atol=0)
    assert (folder / "index").stat().st_size == kept * RECORD.size
    assert json.loads((folder / "cache.json").read_text())["classes"] == 5
