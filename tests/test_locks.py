"""One process at a time writes a folder or a file; what a dead one held is taken over."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from jaxalign import locks
from jaxalign.errors import UserError
from jaxalign.locks import Lock

HOLDER = """
import sys, time
from pathlib import Path
from jaxalign.locks import Lock
lock = Lock(Path(sys.argv[1]), "the folder")
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def other_process(tmp_path, repository):
    """A process that holds the lock, by its Popen object."""
    environment = os.environ | {"PYTHONPATH": str(repository)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / ".lock")],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_told_who_holds_it_and_a_killed_one_holds_nothing(
    tmp_path, other_process, capsys
):
    who = f"the folder is being written by process {other_process.pid} on {socket.gethostname()}"
    with pytest.raises(UserError, match=who):
        Lock(tmp_path / ".lock", "the folder")
    other_process.kill()
    other_process.wait()
    Lock(tmp_path / ".lock", "the folder").release()
    assert f"took over the lock of process {other_process.pid}" in capsys.readouterr().err
    assert not (tmp_path / ".lock").exists()


def test_this_process_may_take_it_twice_and_gives_it_back_at_last(tmp_path):
    path = tmp_path / ".lock"
    first = Lock(path, "x")
    with Lock(path, "x"):
        pass
    assert path.exists()
    first.release()
    first.release()
    assert not path.exists()


def test_a_lock_that_is_forgotten_is_given_back(tmp_path):
    """So that an error in the middle of training leaves none behind."""
    Lock(tmp_path / ".lock", "x")
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": 5, "pid": "x"}'])
def test_a_torn_lock_is_taken_over(tmp_path, content, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE_SECONDS", 0.1)
    (tmp_path / ".lock").write_text(content)
    Lock(tmp_path / ".lock", "x").release()


def other_host(path):
    path.write_text(json.dumps({"host": "elsewhere", "pid": 7, "started": "1"}))
    return path


def test_an_owner_on_another_machine_is_alive_while_its_heart_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE_SECONDS", 1.0)
    path = other_host(tmp_path / ".lock")
    stop = threading.Event()

    def beat():
        while not stop.wait(0.05):
            os.utime(path)

    heart = threading.Thread(target=beat)
    heart.start()
    try:
        with pytest.raises(UserError, match="process 7 on elsewhere"):
            Lock(path, "x")
    finally:
        stop.set()
        heart.join()
    Lock(path, "x").release()


def test_the_owner_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 0.05)
    with Lock(tmp_path / ".lock", "x"):
        os.utime(tmp_path / ".lock", (1, 1))
        time.sleep(0.5)
        assert (tmp_path / ".lock").stat().st_mtime > 2


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "other").write_text("kept")
    (tmp_path / ".lock").symlink_to(tmp_path / "other")
    with pytest.raises(OSError):
        Lock(tmp_path / ".lock", "x")
    assert (tmp_path / "other").read_text() == "kept"
