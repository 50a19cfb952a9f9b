"""A live graph on the disk: what is acknowledged is never lost, an update is whole or absent."""

import json
import os
import signal
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load, save

import stepwell
from kg.graphs import FACTS, NEW, QUICK, assert_same, everything
from stepwell.kg import Online
from stepwell.kg import graph as live
from stepwell.kg import update_report as outcome
from stepwell.kg.graph_file import metadata, read_state
from stepwell.kg.journal import Journal


def test_a_full_disk_changes_nothing(run, monkeypatch):
    with stepwell.kg.open(run) as graph:
        graph.add(NEW[:2])
        before = everything(graph)
        real, size = os.fsync, (run / "journal").stat().st_size

        def full(handle):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device; nothing was changed$"):
            graph.add([("p", "r0", "q")])
        waits = "No space left .* nothing was changed by this update; its changes wait for another"
        with pytest.raises(OSError, match=waits):
            graph.update(QUICK)
        monkeypatch.setattr(os, "fsync", real)
        assert (run / "journal").stat().st_size == size
        assert everything(graph)[3] == before[3]
        # names that the failed update gave numbers are the next one's
        graph.remove([NEW[0]])
        graph.add([("p", "r0", "q")])
        graph.update(QUICK)
        seen = everything(graph)
    with stepwell.kg.open(run) as graph:
        assert_same(everything(graph), seen)


def test_damage_is_said_and_a_part_of_a_record_is_dropped(run):
    journal = run / "journal"
    with stepwell.kg.open(run) as graph:
        graph.add([NEW[0]])
        first = journal.stat().st_size
        graph.add([NEW[1]])
        whole = journal.read_bytes()
    for cut in range(first, len(whole)):  # killed while the second was written, at any byte
        journal.write_bytes(whole[:cut])
        with stepwell.kg.open(run) as graph:
            assert list(graph._pending.changes) == [NEW[0]]
    journal.write_bytes(whole[: first + 20] + bytes(len(whole) - first - 20))  # not all on the disk
    with pytest.warns(UserWarning, match=f"damaged at byte {first}: its last change is dropped"):
        graph = stepwell.kg.open(run)
    with graph:
        assert list(graph._pending.changes) == [NEW[0]]
        graph.add([NEW[2]])
    with stepwell.kg.open(run) as graph:
        assert list(graph._pending.changes) == [NEW[0], NEW[2]]
    for at in (
        first,
        first + 25,
        len(whole) - 1,
    ):  # in the last record: its mark, checksum, content
        broken = bytearray(whole)
        broken[at] ^= 1
        journal.write_bytes(broken)
        with pytest.warns(UserWarning, match="its last change is dropped"):
            stepwell.kg.open(run, write=False)
    broken = bytearray(whole)
    broken[30] ^= 1  # in the first record, which was acknowledged
    journal.write_bytes(broken)
    with pytest.raises(ValueError, match="journal is damaged at byte 0"):
        stepwell.kg.open(run)
    journal.unlink()
    (run / "net.safetensors").write_bytes(b"no file of tensors")
    with pytest.raises(ValueError, match="is damaged"):
        stepwell.kg.open(run)


def test_a_long_journal_becomes_a_snapshot_and_a_kill_between_the_two_is_harmless(run, monkeypatch):
    monkeypatch.setattr(live, "COMPACT_BYTES", 0)
    monkeypatch.setattr(live, "COMPACT_SHARE", 0)
    with stepwell.kg.open(run) as graph:
        graph.add(NEW)
        records = (run / "journal").read_bytes()
        graph.update(QUICK)
        assert (run / "journal").read_bytes() == b""
        seen = everything(graph)
    (run / "journal").write_bytes(records)  # the snapshot was written, the journal not yet
    with stepwell.kg.open(run) as graph:
        assert_same(everything(graph), seen)
        graph.add([("more", "r0", "e1")])
    with stepwell.kg.open(run) as graph:
        assert list(graph._pending.changes) == [("more", "r0", "e1")]


def test_a_lost_snapshot_is_not_papered_over(run):
    old = (run / "net.safetensors").read_bytes()
    with stepwell.kg.open(run) as graph:
        graph.add(NEW)
        graph.update(QUICK)
        graph.compact()
        graph.add([("more", "r0", "e1")])
    (run / "net.safetensors").write_bytes(old)
    with pytest.raises(ValueError, match="lack the changes before number 3"):
        stepwell.kg.open(run)


def test_a_snapshot_that_a_writer_replaces_is_read_from_one_file(run, monkeypatch):
    file = run / "net.safetensors"
    old = file.read_bytes()
    with stepwell.kg.open(run) as graph:
        graph.add(NEW)
        graph.update(QUICK)
        graph.compact()
    new, real = file.read_bytes(), Path.read_bytes
    file.write_bytes(old)

    def replaced_before(path):
        path.write_bytes(new)
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", replaced_before)
    state = read_state(file)
    assert (state.applied, state.updates) == (2, 1)
    assert state.holds("entity", "new")


def test_a_reader_misses_nothing_that_a_snapshot_takes_from_the_journal(run, monkeypatch):
    real = read_state
    with stepwell.kg.open(run) as graph:
        graph.add(NEW)
        graph.update(QUICK)
        seen = everything(graph)

        def snapshot_after(path):
            state = real(path)
            if state.applied == 0:  # the journal is emptied between the reader's two files
                graph.compact()
            return state

        monkeypatch.setattr(live, "read_state", snapshot_after)
        with stepwell.kg.open(run, write=False) as reader:
            assert_same(everything(reader), seen)
        monkeypatch.setattr(live, "applied_in", lambda path: -1)
        with pytest.raises(OSError, match="replaces .*net.safetensors all the time: try again"):
            stepwell.kg.open(run, write=False)


def test_an_update_that_diverges_changes_nothing(run):
    with stepwell.kg.open(run) as graph:
        gone = [f for f in FACTS if "e7" in f]
        graph.remove(gone)
        graph.update(QUICK)
        graph.add([*NEW, gone[0]])  # an element that returns has a row already
        before, journal = everything(graph), (run / "journal").read_bytes()
        for lr in (100, 1e6, 1e20, 1e30):
            with pytest.raises(ValueError, match="diverged; nothing was changed: lower --lr"):
                graph.update(Online(epochs=2, lr=lr))
            assert_same(everything(graph), before)
        assert (run / "journal").read_bytes() == journal
        graph.remove([("e5", "r9", "new")])  # the numbers that were given are given again
        graph.add([("e5", "r8", "other")])
        graph.update(QUICK)
        seen = everything(graph)
    with stepwell.kg.open(run) as graph:
        assert_same(everything(graph), seen)
        assert graph.rank("e5", "r8", k=1)


@pytest.mark.parametrize("broken", ["picture_of", "evaluate", "compact"])
def test_what_fails_after_an_update_does_not_undo_it(run, monkeypatch, broken):
    def fails(*_, **__):
        raise {"picture_of": RuntimeError, "evaluate": ValueError, "compact": OSError}[broken]("x")

    monkeypatch.setattr(outcome if broken == "picture_of" else live.KnowledgeGraph, broken, fails)
    monkeypatch.setattr(live, "COMPACT_BYTES", 0)
    monkeypatch.setattr(live, "COMPACT_SHARE", 0)
    with stepwell.kg.open(run) as graph:
        graph.add(NEW)
        with pytest.warns(UserWarning, match="not recorded|nothing was ranked|not compacted"):
            assert graph.update(QUICK, test=[FACTS[0]]).added == len(NEW)
        seen = everything(graph)
    with stepwell.kg.open(run, write=False) as graph:
        assert_same(everything(graph), seen)


def test_an_interrupt_while_a_record_is_written_closes_the_graph(run, monkeypatch):
    real = os.fsync

    def interrupted(handle):
        real(handle)
        raise KeyboardInterrupt

    with stepwell.kg.open(run) as graph:
        graph.add(NEW[:1])
        monkeypatch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            graph.add(NEW[1:])
        monkeypatch.setattr(os, "fsync", real)
        with pytest.raises(ValueError, match="is closed: open it again"):
            graph.add(NEW[1:])
    with stepwell.kg.open(run) as graph:
        assert set(graph.waiting[0]) == set(NEW)


def test_every_bit_of_the_file_counts(run):
    file = run / "net.safetensors"
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    header = int.from_bytes(whole[:8], "little")
    places = [*rng.integers(0, 8 + header, 60), *rng.integers(8 + header, len(whole), 60)]
    for at in places:
        broken = bytearray(whole)
        broken[at] ^= 1 << rng.integers(8)
        file.write_bytes(broken)
        with pytest.raises(ValueError, match=r"net\.safetensors (is damaged|holds no|has format)"):
            stepwell.kg.open(run, write=False)


def test_a_file_of_the_first_format_is_read_still(run):
    file = run / "net.safetensors"
    tensors = load(file.read_bytes())
    about = json.loads(metadata(file.read_bytes())["stepwell"])
    del about["sha256"]
    with stepwell.kg.open(run) as graph:
        seen = everything(graph)
    file.write_bytes(save(tensors, {"stepwell": json.dumps(about | {"format": 1})}))
    with stepwell.kg.open(run) as graph:
        assert_same(everything(graph), seen)
    file.write_bytes(save(tensors, {"stepwell": json.dumps(about | {"format": 3})}))
    with pytest.raises(ValueError, match="has format 3; this version of Stepwell reads up to 2"):
        stepwell.kg.open(run)


def test_vectors_of_another_shape_are_refused_by_name(run):
    file = run / "net.safetensors"
    tensors = load(file.read_bytes())
    about = json.loads(metadata(file.read_bytes())["stepwell"])
    del about["sha256"]
    tensors["joint.entity"] = tensors["joint.entity"][:0]
    file.write_bytes(save(tensors, {"stepwell": json.dumps(about | {"format": 1})}))
    with pytest.raises(ValueError, match=r"is damaged \(joint\.entity has the shape \(0, 8\)\)"):
        stepwell.kg.open(run)


def write_until_killed(run, start, said):
    """Add one triple after the other, and say each that is acknowledged; update now and then."""
    live.COMPACT_BYTES = live.COMPACT_SHARE = 0  # in a process of its own: every update
    with stepwell.kg.open(run) as graph:
        for i in range(start, 10**6):
            graph.add([(f"k{i}", "r0", f"e{i % 30}")])
            os.write(said, f"{i}\n".encode())
            if i % 5 == 4:
                graph.update(Online(epochs=1))


def killed_after(seconds, run, start):
    """Have a process write for so long, kill it, and give the last triple that it said."""
    hear, said = os.pipe()
    with warnings.catch_warnings():  # newer Pythons warn that threads do not survive a fork
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            write_until_killed(run, start, said)
        finally:
            os._exit(1)
    os.close(said)
    with os.fdopen(hear) as heard:
        last = int(heard.readline())  # it is at work
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return max([last, *map(int, heard.read().split())])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_at_any_moment_loses_nothing_acknowledged(run):
    start = 0
    for seconds in np.random.default_rng(0).uniform(0, 0.25, 10):
        last = killed_after(seconds, run, start)
        with stepwell.kg.open(run) as graph:
            there = [i for i in range(last + 3) if (f"k{i}", "r0", f"e{i % 30}") in graph]
            # the one after the last that was said may be on the disk, too
            assert there in ([*range(last + 1)], [*range(last + 2)])
            assert all(vector.isfinite().all() for vector in graph._state.vectors().values())
        start = len(there)
    with stepwell.kg.open(run) as graph:
        graph.update(Online(epochs=1))
        assert graph.pending == (0, 0)
        assert len(graph.rank(f"k{start - 1}", "r0")) == 10


def test_a_journal_of_another_graph_is_refused(base, run):
    with stepwell.kg.open(run) as graph:
        graph.add([(f"x{i}", "r0", f"y{i}") for i in range(20)])
        graph.update(QUICK)
        graph.add([("x1", "r1", "y2")])
        graph.update(QUICK)
    records = Journal(run / "journal").records[2:]  # of a graph that has more entities
    (run / "journal").unlink()
    (run / "net.safetensors").write_bytes((base / "net.safetensors").read_bytes())
    journal = Journal(run / "journal")
    for number, record in enumerate(records, start=1):
        journal.append(record._replace(number=number))
    with pytest.raises(ValueError, match="does not belong to"):
        stepwell.kg.open(run)


def test_an_update_is_noted_before_its_test_triples_are_ranked(run, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(live.KnowledgeGraph, "evaluate", stopped)
    with stepwell.kg.open(run) as graph:
        graph.add(NEW)
        with pytest.raises(KeyboardInterrupt):
            graph.update(QUICK, test=[FACTS[0]])
        monkeypatch.undo()
        graph.add([("later", "r0", "e1")])
        graph.update(QUICK, test=[FACTS[0]])
    updates = json.loads((run / "updates.json").read_text())["updates"]
    assert [bool(update["measures"]) for update in updates] == [False, True]


def test_what_a_killed_process_left_is_removed(run):
    leftovers = [run / ".journal.abc.part", run / ".net.safetensors.def.part"]
    for file in leftovers:
        file.write_bytes(b"half")
    stepwell.kg.open(run, write=False).close()
    assert all(file.exists() for file in leftovers)  # of a process that may still write
    stepwell.kg.open(run).close()
    assert not any(file.exists() for file in leftovers)
