"""Runs resumable job graphs. Each job writes one ``result.json``, and several worker processes share the jobs of a folder."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxalign import files
from jaxalign.errors import UserError
from jaxalign.locks import Lock

RESULT = "result.json"
_CLAIM = "claim"
_POLL_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class Job:
    """One unit of work.

    Attributes:
      name: the job's folder within the folder of the graph.
      run: a function from the job's folder to a JSON object.
      needs: the names of the jobs that must finish first.
    """

    name: str
    run: Callable[[Path], dict[str, Any]]
    needs: tuple[str, ...] = ()


def read_result(folder: Path, name: str) -> dict[str, Any] | None:
    """Returns the result of a finished job, or None."""
    path = folder / name / RESULT
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def work(folder: Path, jobs: Sequence[Job]) -> None:
    """Runs jobs that no other process has claimed, until all jobs are finished or every remaining job depends on a failed one.

    Raises:
      RuntimeError: if a job failed. The jobs that do not depend on it run first.
    """
    failed: set[str] = set()
    while True:
        unfinished = [job for job in jobs if read_result(folder, job.name) is None]
        blocked = _blocked(unfinished, failed)
        pending = [job for job in unfinished if job.name not in blocked]
        if not pending:
            break
        ready = [
            job
            for job in pending
            if all(read_result(folder, need) is not None for need in job.needs)
        ]
        claimed = ((job, claim) for job in ready if (claim := _claim(folder / job.name)))
        job, claim = next(claimed, (None, None))
        if job is None or claim is None:
            time.sleep(_POLL_SECONDS)
            continue
        started = time.time()
        print(f"[{os.getpid()}] {job.name} ...", flush=True)
        try:
            result = job.run(folder / job.name)
            result["seconds"] = round(time.time() - started, 1)
            # Before the claim ends: otherwise another process could claim the job in between.
            files.write_text(folder / job.name / RESULT, json.dumps(result, indent=1) + "\n")
        except Exception:
            traceback.print_exc()
            failed.add(job.name)
            continue
        finally:
            claim.release()
        print(f"[{os.getpid()}] {job.name}: {result['seconds']:.0f} s", flush=True)
    if failed:
        raise RuntimeError(f"jobs failed: {', '.join(sorted(failed))}")


def run_workers(jobs: Sequence[Job], folder: Path, workers: int, *, only: str = "") -> None:
    """Runs the jobs in this process and ``workers - 1`` forked processes, each on its own core.

    One process per core is faster than one process with all cores, because small models do not parallelise. The processes are forked
    before JAX starts. They share compiled programs through the folder.

    Args:
      jobs: all jobs of the graph.
      folder: folder of the results.
      workers: number of processes.
      only: run only jobs whose name starts with this, and the jobs that they need.

    Raises:
      RuntimeError: if a job failed.
    """
    jobs = [job for job in jobs if job.name in _closure(jobs, only)]
    cores = sorted(os.sched_getaffinity(0))
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("fork")
    others = [
        context.Process(target=_worker, args=(folder, jobs, cores[index % len(cores)]))
        for index in range(1, workers)
    ]
    for process in others:
        process.start()
    _worker(folder, jobs, cores[0] if workers > 1 else None)
    for process in others:
        process.join()
    missing = [job.name for job in jobs if read_result(folder, job.name) is None]
    if missing:
        raise RuntimeError(f"unfinished jobs: {', '.join(missing)}")


def _worker(folder: Path, jobs: Sequence[Job], core: int | None) -> None:
    if core is not None:
        os.sched_setaffinity(0, {core})
    import jax

    jax.config.update("jax_compilation_cache_dir", str((folder / "compiled").absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    work(folder, jobs)


def _closure(jobs: Sequence[Job], prefix: str) -> set[str]:
    by_name = {job.name: job for job in jobs}
    wanted = [name for name in by_name if name.startswith(prefix)]
    found: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name not in found:
            found.add(name)
            wanted.extend(by_name[name].needs)
    return found


def _blocked(jobs: Sequence[Job], failed: set[str]) -> set[str]:
    """Returns the failed jobs and those that need one of them, directly or through other unfinished jobs."""
    blocked = set(failed)
    while more := {job.name for job in jobs if blocked & set(job.needs)} - blocked:
        blocked |= more
    return blocked


def _claim(folder: Path) -> Lock | None:
    """Claims a job; returns None if it is finished or another running process has claimed it."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        claim = Lock(folder / _CLAIM, f"job {folder}")
    except UserError:
        return None
    if (folder / RESULT).exists():
        claim.release()
        return None
    return claim
