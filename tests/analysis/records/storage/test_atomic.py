"""Files are written whole, each writer has its own temporary file, and nobody else's file is touched."""

import multiprocessing
import os
import stat

import pytest

from deltaw.adapters.errors import WriteError
from deltaw.analysis.records.storage import atomic
from deltaw.analysis.records.storage.atomic import (
    append_line,
    atomic_write,
    make_folder,
    overwrite,
    remove_leftovers,
    write_text,
)


def test_two_writers_of_one_file_do_not_tear_it(tmp_path):
    path = tmp_path / "table.csv"
    with atomic_write(path) as first, atomic_write(path) as second:
        first.write_text("first")
        second.write_text("second, which is longer")
    assert path.read_text() == "first"  # the last to be renamed
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]


def write_long(path, letter, start):
    start.wait(30)
    for _ in range(20):
        write_text(path, letter * 500_000)


def test_processes_that_write_at_once_leave_one_of_their_texts(tmp_path):
    context = multiprocessing.get_context("fork")
    start = context.Event()
    writers = [context.Process(target=write_long, args=(tmp_path / "t", letter, start)) for letter in "ab"]
    for writer in writers:
        writer.start()
    start.set()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    assert set((tmp_path / "t").read_text()) in ({"a"}, {"b"})
    assert len((tmp_path / "t").read_text()) == 500_000


def test_a_users_own_partial_file_and_what_a_link_points_to_stay(tmp_path):
    own, victim = tmp_path / "x.csv.partial", tmp_path / "precious"
    own.write_text("my own")
    victim.write_text("precious")
    write_text(tmp_path / "x.csv", "table")
    assert own.read_text() == "my own"
    own.unlink()
    own.symlink_to(victim)
    write_text(tmp_path / "x.csv", "another")
    assert victim.read_text() == "precious"
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["precious", "x.csv", "x.csv.partial"]


def test_a_link_put_at_the_temporary_name_is_not_followed(tmp_path):
    victim = tmp_path / "precious"
    victim.write_text("precious")

    def swapped():
        with atomic_write(tmp_path / "x.csv") as temporary:
            temporary.unlink()
            temporary.symlink_to(victim)

    with pytest.raises(WriteError, match=r"x\.csv"):
        swapped()
    assert not (tmp_path / "x.csv").exists()
    (tmp_path / "log").symlink_to(victim)
    with pytest.raises(WriteError, match="log"):
        append_line(tmp_path / "log", "line\n", durable=False)
    assert victim.read_text() == "precious"


def test_what_is_no_regular_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, words in ((tmp_path / "pipe", "no regular file"), (tmp_path, "a folder")):
        with pytest.raises(WriteError, match=words):
            write_text(path, "text")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_only_leftovers_are_removed(tmp_path):
    for name in ("a.0123456789abcdef.partial", "b.partial", "c.0123.partial"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.partial", "c.0123.partial"]


def test_folders_are_synced_after_files_are_made_in_them(tmp_path, monkeypatch):
    synced = []
    original = atomic.sync_folder
    monkeypatch.setattr(atomic, "sync_folder", lambda folder: synced.append(folder) or original(folder))
    make_folder(tmp_path / "a" / "b")
    assert synced == [tmp_path, tmp_path / "a"]
    append_line(tmp_path / "a" / "log", "1\n", durable=True)
    append_line(tmp_path / "a" / "log", "2\n", durable=True)
    assert synced[2:] == [tmp_path / "a"]


def test_writing_over_a_few_bytes_is_whole_or_undone(tmp_path, monkeypatch):
    path, original, calls = tmp_path / "log", os.write, []
    path.write_text("a check b\n")

    def short(descriptor, data):
        calls.append(bytes(data))
        if fails and len(calls) == 2:
            raise OSError("input or output")
        return original(descriptor, data[:2])

    monkeypatch.setattr(os, "write", short)
    fails = True
    with pytest.raises(WriteError, match="log"):
        overwrite(path, len("check b\n"), b"final")
    assert path.read_text() == "a check b\n"
    fails = False
    overwrite(path, len("check b\n"), b"final")
    assert path.read_text() == "a final b\n"


def test_the_files_have_the_users_own_mode(tmp_path):
    (tmp_path / "plain").touch()
    with atomic_write(tmp_path / "private") as temporary:
        temporary.write_text("x")
        temporary.chmod(0o600)
    assert (tmp_path / "private").stat().st_mode == (tmp_path / "plain").stat().st_mode
