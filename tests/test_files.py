import errno
import os

import pytest

from stepwell.files import read_json, write_whole


def test_writes_what_it_is_given_with_ordinary_permissions(tmp_path):
    path = tmp_path / "a"
    write_whole(path, b"one")
    write_whole(path, b"two")
    assert path.read_bytes() == b"two"
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert path.stat().st_mode == plain.stat().st_mode


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_whole(path, b"old")

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        OSError, match=r"cannot write .*/a: No space left on device; the file is unchanged"
    ):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    path = tmp_path / "nowhere" / "a"
    with pytest.raises(FileNotFoundError, match=r"cannot write .*/a: there is no folder .*nowhere; "):
        write_whole(path, b"new")


@pytest.mark.parametrize("content", [b'{"a": ', b"[1]", b"\xff"])
def test_json_that_is_no_object_is_named_with_what_to_do(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json is damaged \(.*\): copy it again") as caught:
        read_json(path, "copy it again")
    assert "\n" not in str(caught.value)
    path.write_text('{"é": 1}', encoding="utf-8")
    assert read_json(path, "") == {"é": 1}


def test_a_link_stays_and_a_pipe_is_written_to(tmp_path):
    (tmp_path / "there").mkdir()
    target, link, pipe = tmp_path / "there" / "a", tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(target)
    write_whole(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_whole(pipe, b"said")
        assert os.read(reader, 10) == b"said"
    finally:
        os.close(reader)
    assert not pipe.is_file()
