"""Whenever the machine stops, a file or folder is whole: the new one, or the one before."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.power import Disk, PowerCut

from common import files
from common.errors import DataError, UserError
from common.files import (
    CHECKSUMS,
    check_name,
    fault_of,
    flush,
    latest_complete,
    lock_file,
    parse_json,
    read_json,
    read_text,
    remove_leftovers,
    replace_file,
    replace_files,
    replace_folder,
    sha256_of,
    write_json,
)

MOST_CHANGES = 60  # of the disk, in one save


def write_folder(folder: Path, number: int) -> None:
    """Save a folder of two files that belong together."""
    with replace_folder(folder) as fresh:
        (fresh / "deep").mkdir()
        for name in ("weights.safetensors", "deep/moments.safetensors"):
            (fresh / name).write_text(f"{number}" * 5000)


def number_in_folder(folder: Path) -> int:
    """Which save is found; both of its files must be of it."""
    found = latest_complete(folder)
    texts = {(found / name).read_text() for name in ("weights.safetensors", "deep/moments.safetensors")}
    assert len(texts) == 1
    text = texts.pop()
    assert len(text) == 5000
    return int(text[0])


def write_file(file: Path, number: int) -> None:
    replace_file(file, f"{number}" * 5000)


def number_in_file(file: Path) -> int:
    text = file.read_text()
    assert len(text) == 5000
    return int(text[0])


KINDS = {"folder": (write_folder, number_in_folder), "file": (write_file, number_in_file)}


def cut_everywhere(
    root: Path, write: Callable[[Path, int], None], number_in: Callable[[Path], int], undo: bool
) -> int:
    """Cut the power before every change of the disk; the number of cuts."""
    cuts = 0
    for stop_at in range(1, MOST_CHANGES):
        target = root / f"{undo}-{stop_at}" / "LAST"
        disk = Disk(target.parent, stop_at)
        with pytest.MonkeyPatch.context() as monkeypatch:
            disk.left = MOST_CHANGES * 10
            disk.watch(monkeypatch)
            write(target, 1)
            disk.left = stop_at
            try:
                write(target, 2)
            except PowerCut:
                cuts += 1
        disk.lose(undo_renames=undo)
        assert number_in(target) in (1, 2)
        write(target, 3)  # what was left behind is in nobody's way
        assert number_in(target) == 3
    return cuts


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs to know which file a descriptor is")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("undo", [False, True], ids=["renames kept", "renames lost"])
def test_whenever_the_power_is_cut_the_new_or_the_old_one_is_whole(
    tmp_path: Path, kind: str, undo: bool
) -> None:
    cuts = cut_everywhere(tmp_path, *KINDS[kind], undo)
    assert (7 if kind == "folder" else 3) <= cuts < MOST_CHANGES - 2  # every change was the last one once


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs to know which file a descriptor is")
@pytest.mark.parametrize(
    ("kind", "missing"), [("file", "of the file"), ("folder", "of the files"), ("folder", "of the names")]
)
def test_the_power_cut_shows_a_missing_fsync(
    tmp_path: Path, kind: str, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above can fail: without one of the syncs something is lost."""
    if missing == "of the file":
        monkeypatch.setattr(files, "_write", lambda path, content: path.write_text(content))
    elif missing == "of the files":
        monkeypatch.setattr(files, "_flush_tree", lambda folder: None)
    else:
        monkeypatch.setattr(files, "flush", lambda path: None if path.is_dir() else flush(path))
    with pytest.raises((AssertionError, ValueError, IndexError, OSError, TypeError)):
        for undo in (False, True):
            cut_everywhere(tmp_path, *KINDS[kind], undo)


def test_a_folder_is_found_only_when_whole_and_an_error_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "LAST"
    assert latest_complete(folder) is None
    with pytest.raises(ArithmeticError), replace_folder(folder) as fresh:
        (fresh / "weights").write_text("half")
        raise ArithmeticError
    assert latest_complete(folder) is None
    assert not any(folder.parent.iterdir())
    write_folder(folder, 1)
    assert [path.name for path in folder.parent.iterdir()] == ["LAST"]


def test_a_folder_is_as_readable_as_the_umask_says_whatever_wrote_its_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with replace_folder(tmp_path / "BEST") as fresh:
            (fresh / "weights").touch(mode=0o600)
        replace_file(tmp_path / "file", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "BEST" / "weights").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_several_files_are_replaced_together_and_stale_ones_go(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("")
    replace_files(tmp_path, {"a/b": ["1", "2"], "c": b"3"}, stale=["old"])
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()} == {"a/b", "c"}
    assert (tmp_path / "a" / "b").read_text() == "12"

    def broken() -> Any:
        yield "4"
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        replace_files(tmp_path, {"c": "new", "a/b": broken()})
    assert (tmp_path / "c").read_bytes() == b"3" and (tmp_path / "a" / "b").read_text() == "12"
    assert len([p for p in tmp_path.rglob("*") if p.is_file()]) == 2


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "the disk is full"), (errno.EIO, "Input/output error")]
)
def test_a_disk_that_refuses_is_one_sentence_and_leaves_what_was_there(
    tmp_path: Path, number: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "LAST", 1)
    write_file(tmp_path / "result", 1)

    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(UserError, match=f"LAST cannot be written: {words}"):
            write_folder(tmp_path / "LAST", 2)
        with pytest.raises(UserError, match=f"cannot be written: {words}"):
            write_file(tmp_path / "result", 2)
    assert number_in_folder(tmp_path / "LAST") == number_in_file(tmp_path / "result") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"LAST", "result"}


def test_a_file_where_a_folder_should_be_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "snap").write_text("")
    for write in (lambda path: replace_file(path / "f", ""), lambda path: write_folder(path / "LAST", 1)):
        with pytest.raises(UserError, match=r"cannot be written: (Not a directory|File exists)"):
            write(tmp_path / "snap")


def test_json_comes_back_and_what_is_none_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    write_json(file, {"größe": [1, 0.1, None]})
    assert read_json(file) == {"größe": [1, 0.1, None]}
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ValueError, match="Circular"):
        write_json(file, endless)
    assert read_json(file) == {"größe": [1, 0.1, None]}
    for text, words in (
        ("", "line 1, character 0 of 0"),
        ('{"a": 1', "not valid JSON"),
        ('{"a": NaN}', "NaN is not a number"),
        ("[" * 100_000, "nested too deeply|not valid JSON"),
    ):
        with pytest.raises(DataError, match=words):
            parse_json(text, "here", error=DataError)
    assert parse_json('[{"a": 1}]', "here", lambda record: record | {"b": 2}) == [{"a": 1, "b": 2}]


def test_text_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none is missing"):
        read_text(tmp_path / "none")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_text(tmp_path)
    (tmp_path / "binary").write_bytes(b"ab\xff")
    with pytest.raises(UserError, match=r"is not UTF-8 text \(byte 2\)"):
        read_text(tmp_path / "binary")


def test_a_checksum_is_that_of_the_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"questions" * 200_000)  # more than is read at once
    assert sha256_of(file) == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "/etc", "a/b", "-a", ".a", "a b", "a\n", "ä", "a\x1b[1m"]
)
def test_a_name_that_could_lead_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"the split name .* may hold letters, digits"):
        check_name("split", name)


@pytest.mark.parametrize("name", ["a", "vqav2", "my_run-1.b", "_x", "0"])
def test_a_plain_name_is_a_name(name: str) -> None:
    assert check_name("version", name) == name


def test_a_name_that_no_disk_can_hold_is_refused_and_the_longest_fits(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the split name a{20}\.\.\. has 201 characters; 200 are allowed"):
        check_name("split", "a" * 201)
    replace_file(tmp_path / f"{check_name('split', 'a' * 200)}.safetensors", "text")  # and its file aside


@pytest.mark.parametrize("refusal", ["ENOLCK", "ENOSYS", "EOPNOTSUPP", "EINVAL", "EIO", "EPERM"])
@pytest.mark.parametrize("wait", [True, False])
def test_a_disk_without_locks_says_neither_yes_nor_no(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: str, wait: bool
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(getattr(errno, refusal), "refused")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with (tmp_path / ".lock").open("w") as file:
        assert lock_file(file, wait=wait) is None


def test_a_lock_that_somebody_has_is_not_given_twice(tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("w") as mine, (tmp_path / ".lock").open("w") as other:
        assert lock_file(mine) is True
        assert lock_file(other) is False


def test_what_a_test_of_files_needs_is_really_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"epoch": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"epoch": 1}
    shutil.rmtree(tmp_path)


def test_what_a_killed_process_left_unfinished_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in ("LAST", ".LAST.new", ".LAST.old", ".BEST.old", "predictions"):
        (tmp_path / name / "inside").mkdir(parents=True)
    for name in (".usage.npz.new", ".lock", "a.new", "b.old"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    kept = {"LAST", ".BEST.old", "predictions", ".lock", "a.new", "b.old"}  # BEST has no other copy
    assert {path.name for path in tmp_path.iterdir()} == kept


@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "flipped"])
@pytest.mark.parametrize("name", ["one.bin", "inside/two.json", CHECKSUMS])
def test_every_damaged_file_of_a_folder_is_named(tmp_path: Path, name: str, damage: str) -> None:
    folder = tmp_path / "BEST"
    with replace_folder(folder) as fresh:
        (fresh / "inside").mkdir()
        (fresh / "one.bin").write_bytes(bytes(range(256)))
        (fresh / "inside" / "two.json").write_text('{"three": 4}')
    assert fault_of(folder) is None
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    changed = {"gone": None, "empty": b"", "cut": content[: len(content) // 2], "flipped": content}[damage]
    (folder / name).unlink()
    if changed is not None:
        (folder / name).write_bytes(changed)
    assert str(folder) in fault_of(folder) if name == CHECKSUMS else str(folder / name) in fault_of(folder)


@pytest.mark.parametrize(
    ("message", "words"), [("(os error 28)", "disk is full"), ("(os error 27)", "too large")]
)
def test_a_full_disk_is_one_sentence_whoever_finds_it(tmp_path: Path, message: str, words: str) -> None:
    """A library in Rust raises an error of its own, with the system's number in its words."""
    with pytest.raises(UserError, match=rf"LAST cannot be written: .*{words}"):  # noqa: SIM117
        with replace_folder(tmp_path / "LAST"):
            raise Exception(f"Error while serializing: I/O error: something {message}")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ZeroDivisionError), replace_folder(tmp_path / "LAST"):
        _ = 1 / 0


def test_a_replaced_folder_may_be_kept_under_another_name(tmp_path: Path) -> None:
    for number in range(3):
        with replace_folder(tmp_path / "LAST", tmp_path / "LAST-1") as fresh:
            (fresh / "number").write_text(str(number))
    assert {path.name: (path / "number").read_text() for path in tmp_path.iterdir()} == {
        "LAST": "2",
        "LAST-1": "1",
    }
