"""Locks for folders and files that one process at a time writes. A lock names its owner. The lock of a dead process is taken over."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import socket
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

from jaxalign import untrusted
from jaxalign.errors import UserError

# The period at which the owner touches its lock. On another machine this is the only sign that the owner is alive.
HEARTBEAT_SECONDS = 10.0
PATIENCE_SECONDS = 35.0


@dataclasses.dataclass
class _Held:
    """A lock of this process, and the number of `Lock` objects that share it."""

    path: str
    descriptor: int
    stop: threading.Event
    process: int
    owners: int = 1


_held: dict[str, _Held] = {}


class Lock:
    """A lock that this process holds until it is released or garbage-collected, or until the process ends.

    The file holds the host, process and start time of its owner. On the same machine, an owner that is alive holds the ``flock`` of the
    file. An owner on another machine is alive if the file's time changes during a wait. The same process may take a lock twice.

    Args:
      path: the lock file.
      what: the name of the locked object for messages, such as ``MODEL_DIR /runs/x``.

    Raises:
      UserError: another process holds it.
    """

    def __init__(self, path: Path, what: str) -> None:
        key = os.path.realpath(path)
        if key in _held:
            _held[key].owners += 1
        else:
            descriptor, stop = _take(path, what), threading.Event()
            threading.Thread(target=_beat, args=(descriptor, stop), daemon=True).start()
            _held[key] = _Held(str(path), descriptor, stop, os.getpid())
        self._release = weakref.finalize(self, _release, key)

    def release(self) -> None:
        """Releases the lock."""
        self._release()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


def _take(path: Path, what: str) -> int:
    """Opens and locks the file; returns its descriptor."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            if _taken(descriptor, path, what):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _taken(descriptor: int, path: Path, what: str) -> bool:
    """Locks the open file; returns False if its former owner has removed it in the meantime."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _refusal(what, path, _owner(path)) from None
    except OSError:
        pass  # a file system without flock: only the content of the file is checked
    try:
        if os.stat(path).st_ino != os.fstat(descriptor).st_ino:
            return False
    except FileNotFoundError:
        return False
    owner = _owner(path)
    if owner and _alive(owner, path, what):
        raise _refusal(what, path, owner)
    if owner:
        print(
            f"jaxalign: {what}: took over the lock of process {owner.get('pid')} on {owner.get('host')}, which has ended",
            file=sys.stderr,
        )
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(_myself()).encode(), 0)
    os.fsync(descriptor)
    return True


def _myself() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}


def _started(pid: int) -> str | None:
    """Returns the start time of a local process in clock ticks since boot; None if it does not run or its start time is unknown."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return None
    # The name in parentheses may contain any characters.
    return status.rpartition(")")[2].split()[19]


def _owner(path: Path) -> dict[str, Any]:
    """Returns the owner that the file records; an empty dict if the file is empty or incomplete."""
    try:
        return untrusted.read_json_object(path, limit=4096)
    except UserError:
        return {}


def _alive(owner: dict[str, Any], path: Path, what: str) -> bool:
    if owner.get("host") == socket.gethostname():
        # With flock the owner is known to be dead. Without it, the process is looked up.
        pid = owner.get("pid")
        started = _started(pid) if isinstance(pid, int) else None
        return pid != os.getpid() and started is not None and started == owner.get("started")
    print(
        f"jaxalign: {what} was locked by process {owner.get('pid')} on {owner.get('host')}; waiting {PATIENCE_SECONDS:.0f} s to see "
        "whether that one is alive",
        file=sys.stderr,
    )
    with contextlib.suppress(FileNotFoundError):
        before = os.stat(path).st_mtime_ns
        until = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < until:
            time.sleep(min(1.0, PATIENCE_SECONDS / 10))
            if os.stat(path).st_mtime_ns != before:
                return True
    return False


def _refusal(what: str, path: Path, owner: dict[str, Any]) -> UserError:
    who = f"process {owner.get('pid')} on {owner.get('host')}" if owner else "another process"
    return UserError(
        f"{what} is being written by {who} (see {path}); wait until it ends, or choose another"
    )


def _beat(descriptor: int, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(descriptor)


def _release(key: str) -> None:
    held = _held[key]
    held.owners -= 1
    # A forked child has copies of its parent's locks, but it does not own them.
    if held.owners or held.process != os.getpid():
        return
    del _held[key]
    held.stop.set()
    with contextlib.suppress(OSError):
        os.unlink(held.path)
    with contextlib.suppress(OSError):
        os.close(held.descriptor)
