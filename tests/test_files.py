"""A file is replaced whole or not at all; a full disk is recognised whoever reports it, and a full accelerator is not a disk."""

import errno
import os
from pathlib import Path

import pytest

from jaxalign import files
from jaxalign.cli.main import run_with_one_line_errors
from jaxalign.errors import UserError

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x"
    files.write_text(path, "old")
    with pytest.raises(KeyError), files.replacing(path) as file:
        file.write(b"half")
        raise KeyError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    files.write_bytes(path, b"new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (FULL, "No space left on device"),
        (OSError(errno.EFBIG, "File too large", "a/b"), "File too large (a/b)"),
        (
            ValueError("RESOURCE_EXHAUSTED: x: No space left on device [y]"),
            "No space left on device",
        ),
        (RuntimeError("Disk quota exceeded"), "Disk quota exceeded"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8 bytes"), None),
        (UserError("no space left on device"), None),
        (KeyError("x"), None),
    ],
)
def test_what_a_disk_says(error, problem):
    assert files.disk_problem(error) == problem


def test_a_command_tells_it_in_one_line(capsys):
    def run():
        raise FULL

    assert run_with_one_line_errors(run) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "No space left on device; make room" in said


def test_a_path_with_two_dots_becomes_one_without(tmp_path):
    (tmp_path / "a").mkdir()
    assert files.absolute_path(tmp_path / "a" / ".." / "run") == (tmp_path / "run").resolve()
    assert files.absolute_path("run") == Path.cwd() / "run"


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    path, finished = tmp_path / "cache", tmp_path / ".cache.unfinished"
    for content in ("first", "second"):
        finished.mkdir(mode=0o700)
        (finished / "file").write_text(content)
        files.replace_folder(finished, path)
        assert (path / "file").read_text() == content
    assert path.stat().st_mode & 0o777 == 0o755
    with pytest.raises(OSError, match="not_there"):
        files.replace_folder(tmp_path / "not_there", path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["cache"]
