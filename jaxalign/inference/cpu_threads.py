"""Runs several parts of a computation at the same time on a CPU.

A step of decoding is too small for the threads of XLA on a CPU, which runs it on one core. Parts of the prompts are therefore decoded
in threads of their own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

import jax

Work = tuple[Hashable, Callable[[], None]]  # the shapes of its programs, and what to do

_compiled: set[Hashable] = set()


def count() -> int:
    """Returns the number of parts that run at the same time: two on a CPU with one device and two cores or more, else one.

    A mesh is set for one thread only.
    """
    on_cpu = jax.default_backend() == "cpu" and jax.device_count() == 1
    return max(1, min(2, len(os.sched_getaffinity(0)))) if on_cpu else 1


def run(parts: Iterable[Work]) -> None:
    """Runs all parts, and raises the first error.

    The first part of each shape runs alone, so that two threads do not compile the same programs.
    """
    threads = count()
    if threads == 1:
        for _, work in parts:
            work()
        return
    running: set[Future[None]] = set()
    with ThreadPoolExecutor(threads) as pool:
        for shape, work in parts:
            new = shape not in _compiled
            running = _finished(running, 0 if new else threads - 1)
            running.add(pool.submit(work))
            if new:
                running = _finished(running, 0)
                _compiled.add(shape)
        _finished(running, 0)


def _finished(running: set[Future[None]], most: int) -> set[Future[None]]:
    """Waits until at most so many parts are running, and returns these."""
    while len(running) > most:
        done, running = wait(running, return_when=FIRST_COMPLETED)
        for each in done:
            each.result()
    return running
