"""The command `jaxalign sweep`: `jaxalign train` with many values of macros and parameters, a table, a plot, and the best values."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from jaxalign import files, untrusted
from jaxalign.errors import UserError, require_one_of, require_range
from jaxalign.locks import Lock
from jaxalign.parallel.processes import EXIT_PREEMPTED
from jaxalign.recipes.sweep_report import write_report
from jaxalign.recipes.sweep_trials import (
    Trial,
    has_ended,
    join_values,
    last_line,
    measured,
    parse_values,
    run_trial,
    trials_of,
)


def sweep(
    output_dir: str,
    values: list[str],
    *,
    metric: str = "validation/loss",
    mode: str = "min",
    trials: int = 0,
    workers: int = 1,
    seed: int = 0,
    train_arguments: list[str] | None = None,
) -> dict[str, Any]:
    """Trains with every combination of values, or with random ones, and ranks the runs by a metric of validation.

    Each trial is a run of `jaxalign train` with its own folder and log. The same command continues an interrupted sweep: finished trials
    are not repeated, and a trial that had begun goes on from its last checkpoint. All other flags are those of `train`.

    Args:
      output_dir: the folder of the sweep: `trials/`, `sweep.json`, `sweep.md` and `sweep.png`.
      values: `NAME=a,b,c` for a macro or gin parameter, once for each; or `NAME=uniform(low, high)` or `NAME=log_uniform(low, high)`, from
        which random trials draw. `RANDOM_SEED` as a name gives seeds: rows of the table are averaged over them.
      metric: `<split>/<metric>` of metrics.jsonl; the best evaluated step of a run counts.
      mode: `min` or `max`.
      trials: the number of random trials; 0 trains all combinations.
      workers: how many trials run at a time; with several, each has one processor core.
      seed: of random trials.
      train_arguments: the flags of `train` that all trials share (from the command line).

    Returns:
      The content of sweep.json, with `report`.

    Raises:
      UserError: values that cannot be read, a folder of another sweep, a metric that was not measured, or no trial that ended well.
    """
    require_one_of("sweep", ("min", "max"), mode=mode)
    require_range("sweep", "[0, inf)", trials=trials, seed=seed)
    require_range("sweep", f"[1, {os.cpu_count() or 1}]", workers=workers)
    parsed = [parse_values(text) for text in join_values(values)]
    names = [name for name, _ in parsed]
    if len(set(names)) < len(names):
        raise UserError(f"--values names {max(names, key=names.count)} twice")
    if "MODEL_DIR" in names:
        raise UserError("--values=MODEL_DIR: every trial has a folder of its own in --output_dir")
    chosen = trials_of(dict(parsed), trials, seed)
    folder = Path(output_dir).expanduser()
    files.make_writable_folder(folder, "--output_dir")
    lock = Lock(folder / ".sweep.lock", f"sweep {folder}")
    try:
        _require_same(folder, metric, mode, train_arguments or [])
        failed = _run_all(folder, chosen, train_arguments or [], workers)
        found = {trial: measured(folder, trial, metric, mode) for trial in chosen}
        content = write_report(folder, found, failed, metric, mode)
    finally:
        lock.release()
    if not any(found.values()):
        trial, told = next(iter(failed.items()))
        raise UserError(f"no trial ended well; {folder / 'trials' / trial.name}: {told}")
    return content


def _require_same(folder: Path, metric: str, mode: str, arguments: Sequence[str]) -> None:
    """Refuses to mix trials of other flags, and notes the flags of a new sweep."""
    now = {"metric": metric, "mode": mode, "train_arguments": list(arguments)}
    path = folder / "sweep_settings.json"
    if path.exists():
        before = untrusted.read_json_object(path, inside=folder)
        other = [name for name, value in now.items() if before.get(name) != value]
        # Trials that never began to train, because a flag was wrong, bind nothing.
        if other and any((folder / "trials").glob("*/networks.json")):
            raise UserError(
                f"{folder} holds a sweep with other {' and '.join(other)}; choose another --output_dir"
            )
    elif (folder / "trials").exists():
        raise UserError(f"{folder} has a folder trials that no sweep wrote; choose another")
    files.write_text(path, json.dumps(now, indent=1) + "\n")


def _run_all(
    folder: Path, trials: Sequence[Trial], arguments: Sequence[str], workers: int
) -> dict[Trial, str]:
    """Runs the trials that have not ended; returns the last line of those that failed."""
    cores: SimpleQueue[int | None] = SimpleQueue()
    available = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    for index in range(workers):
        cores.put(available[index % len(available)] if workers > 1 and available else None)
    failed: dict[Trial, str] = {}
    open_trials = [trial for trial in trials if not has_ended(folder, trial)]
    if len(open_trials) < len(trials):
        print(f"{len(trials) - len(open_trials)} of {len(trials)} trials have ended already", file=sys.stderr)  # fmt: skip

    def one(number: int, trial: Trial) -> None:
        core = cores.get()
        try:
            print(f"trial {number} of {len(open_trials)}: {trial.name}", file=sys.stderr, flush=True)  # fmt: skip
            code = run_trial(folder, trial, arguments, core)
        finally:
            cores.put(core)
        if code == EXIT_PREEMPTED:
            raise UserError(
                f"{folder}: trial {trial.name} was told to stop and has saved; the same command goes on from there"
            )
        if code:
            failed[trial] = last_line(folder, trial)
            print(f"trial {number} failed: {failed[trial]}", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(workers) as pool:
        running = [pool.submit(one, number, trial) for number, trial in enumerate(open_trials, 1)]
        try:
            for each in running:
                each.result()
        except BaseException:
            # Otherwise Ctrl-C would end one trial and begin the next.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed
