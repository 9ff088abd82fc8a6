"""Stages of a recipe: each one turns inputs and settings into a folder with ``result.json``, once.

A finished stage is kept. If it is asked for with other settings, or if one of its inputs was made anew, it is refused in one line. An
unfinished stage is run again in the same folder, and continues there as far as its function can.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign import files, untrusted
from jaxalign.data.stored_fields import sha256_of
from jaxalign.errors import UserError

RESULT = "result.json"
STARTED = "started.json"
EXIT_WAITING = 3


class Wait(Exception):
    """Raised by a stage that cannot go on before somebody has done something; the message says what."""


class Waiting(SystemExit):
    """The recipe has stopped until somebody has done something; the same command continues it. Its exit code is 3."""

    def __init__(self, message: str) -> None:
        super().__init__(EXIT_WAITING)
        self.message = message


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a recipe.

    Attributes:
      name: its folder within the folder of the recipe, such as ``round1/annotate/judge``.
      run: a function from the stage's folder to its result, a JSON object that describes its output (with digests of files).
      settings: everything that the output depends on besides the inputs, as JSON.
      needs: the names of the stages whose output it reads.
    """

    name: str
    run: Callable[[Path], dict[str, Any]]
    settings: Mapping[str, Any]
    needs: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """The name without the round, which stages of other rounds share."""
        return self.name.partition("/")[2] or self.name

    @property
    def title(self) -> str:
        """The name in words, for messages."""
        return f"{self.name.partition('/')[0]}, {self.kind.replace('/', ' ')}"


def run_stages(folder: Path, stages: Sequence[Stage]) -> None:
    """Runs the unfinished stages in order, with a line of progress for each.

    Raises:
      UserError: a finished stage does not agree with its settings or inputs, or a stage failed; the message names the stage.
      Waiting: a stage waits for somebody.
    """
    check_finished(folder, stages)
    started = time.monotonic()
    for number, stage in enumerate(stages):
        if is_finished(folder, stage):
            continue
        place = f"[{number + 1}/{len(stages)}] {stage.title}"
        _say(f"{place} ...")
        seconds = _run(folder, stage)
        elapsed = time.monotonic() - started
        _say(f"{place}: {seconds:.0f} s; {_remaining(folder, stages, number + 1, elapsed)}")


def result_of(folder: Path, name: str) -> dict[str, Any]:
    """Returns the result of a finished stage.

    Raises:
      UserError: the stage is not finished.
    """
    return dict(_written(folder, name)["result"])


def seconds_of(folder: Path, name: str) -> float:
    """Returns the processing time of a finished stage, in the launch that finished it."""
    return float(_written(folder, name)["seconds"])


def is_finished(folder: Path, stage: Stage) -> bool:
    """Returns whether a stage has a result."""
    return (folder / stage.name / RESULT).exists()


def check_finished(folder: Path, stages: Sequence[Stage]) -> None:
    """Refuses finished and begun stages whose settings or inputs have changed.

    Raises:
      UserError: the message names the stage, the change, and the folders to delete.
    """
    for stage in stages:
        place = folder / stage.name
        if not is_finished(folder, stage):
            _check_begun(folder, stage)
            continue
        written = _written(folder, stage.name)
        _check_settings(folder, stage, written.get("settings", {}), "finished")
        for path, digest in _files(written.get("result")):
            if Path(path).expanduser().is_file() and sha256_of(Path(path).expanduser()) != digest:
                raise UserError(
                    f"{stage.title} is finished, but the file {path} that it has read was changed since; restore it, or delete {place} and "
                    "the stages after it, and give the command again"
                )
        missing = [need for need in stage.needs if not (folder / need / RESULT).exists()]
        changed = [
            need
            for need in stage.needs
            if need not in missing
            and written.get("inputs", {}).get(need) != _written(folder, need)["fingerprint"]
        ]
        if missing or changed:
            need = (missing or changed)[0]
            state = "is no longer there" if missing else "was made anew since"
            raise UserError(
                f"{stage.title} is finished, but its input {folder / need} {state}; delete {place} and the stages after it, "
                "and give the command again"
            )


def _run(folder: Path, stage: Stage) -> float:
    place = folder / stage.name
    inputs = {need: _written(folder, need)["fingerprint"] for need in stage.needs}
    started = time.monotonic()
    place.mkdir(parents=True, exist_ok=True)
    files.write_text(place / STARTED, _dump(settings=stage.settings, inputs=inputs))
    try:
        result = stage.run(place)
    except Wait as wait:
        _say(f"jaxalign: {stage.title}: {wait}")
        raise Waiting(str(wait)) from wait
    except UserError as error:
        raise UserError(
            f"{stage.title}: {error} (the stages before it are kept in {folder})"
        ) from error
    seconds = time.monotonic() - started
    content = {"settings": stage.settings, "inputs": inputs, "result": result}
    digest = hashlib.sha256(_dump(**content).encode()).hexdigest()[:16]
    text = _dump(**content, fingerprint=digest, seconds=round(seconds, 2))
    files.write_text(place / RESULT, text)
    (place / STARTED).unlink(missing_ok=True)
    return seconds


def _check_begun(folder: Path, stage: Stage) -> None:
    """Refuses to continue partial output of other settings. A stage that left nothing begins anew."""
    place = folder / stage.name
    begun = place / STARTED
    if not begun.exists() or all(path.name == STARTED for path in place.iterdir()):
        return
    written = untrusted.read_json_object(begun, inside=folder)
    _check_settings(folder, stage, written.get("settings", {}), "begun")
    for need, before in written.get("inputs", {}).items():
        result = folder / need / RESULT
        if not result.exists() or _written(folder, need)["fingerprint"] != before:
            raise UserError(
                f"{stage.title} was begun with an input {folder / need} that has changed since; delete {place} and the stages after it, "
                "and give the command again"
            )


def _check_settings(folder: Path, stage: Stage, before: Mapping[str, Any], state: str) -> None:
    found = _difference(before, json.loads(json.dumps(stage.settings)))
    if found is not None:
        name, then, now = found
        raise UserError(
            f"{stage.title} was {state} with {name} = {_short(then)}, and this command says {_short(now)}; choose "
            f"another OUTPUT_DIR, or delete {folder / stage.name} and the stages after it"
        )


def _difference(before: Any, now: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """Returns the name and both values of the first setting that differs, inside nested ones too; None if all are equal."""
    if before == now:
        return None
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        inner = [(f".{key}", before.get(key), now.get(key)) for key in sorted({*before, *now})]
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = enumerate(zip(before, now, strict=True))
        inner = [(f"[{i}]", then, later) for i, (then, later) in pairs]
    else:
        return name, before, now
    for part, then, later in inner:
        found = _difference(then, later, f"{name}{part}".removeprefix("."))
        if found is not None:
            return found
    # A setting that is None and one that an earlier version did not have are the same.
    return None


def _written(folder: Path, name: str) -> dict[str, Any]:
    return untrusted.read_json_object(folder / name / RESULT, inside=folder)


def _dump(**content: Any) -> str:
    return json.dumps(content, indent=1) + "\n"


def _files(result: Any) -> Iterator[tuple[str, str]]:
    """Yields the paths and digests of the files that a result names, anywhere, as {"file": path, "sha256": digest}."""
    if isinstance(result, dict):
        if isinstance(result.get("file"), str) and isinstance(result.get("sha256"), str):
            yield result["file"], result["sha256"]
        result = list(result.values())
    for each in result if isinstance(result, list) else ():
        yield from _files(each)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _remaining(folder: Path, stages: Sequence[Stage], done: int, elapsed: float) -> str:
    """Returns the expected time of the stages after the first ``done``, from finished stages of the same kind."""
    rest = stages[done:]
    if not rest:
        return f"all stages are finished, in {_time(elapsed)}"
    known: dict[str, list[float]] = {}
    for stage in stages[:done]:
        known.setdefault(stage.kind, []).append(seconds_of(folder, stage.name))
    times = [known.get(stage.kind) for stage in rest]
    total = sum(sum(found) / len(found) for found in times if found)
    unknown = sum(found is None for found in times)
    left = f"{len(rest)} stage{'s' if len(rest) > 1 else ''} left"
    if unknown == len(rest):
        return f"{left}, {_time(elapsed)} so far"
    return f"{left}, {'at least' if unknown else 'about'} {_time(total)}; {_time(elapsed)} so far"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
