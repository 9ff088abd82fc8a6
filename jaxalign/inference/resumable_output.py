"""Resumes an interrupted JSON Lines output file. Complete lines are kept, and an incomplete last line is dropped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxalign import files, untrusted
from jaxalign.data.json_lines import read_json_objects
from jaxalign.errors import UserError


def resume(
    output: Path,
    fingerprint: dict[str, Any],
    prompts: list[str],
    overwrite: bool,
    *,
    ids: Sequence[Any] | None = None,
) -> int:
    """Prepares the output file and returns the number of complete lines that it already holds.

    Args:
      output: the file.
      fingerprint: the settings of the file, which are stored beside it.
      prompts: the prompts of all lines.
      overwrite: whether to start again from an empty file.
      ids: the field `id` of all lines; their indices by default.

    Raises:
      UserError: the file was written with other settings or from other prompts, or its settings cannot be read.
    """
    side_file = output.with_name(output.name + ".settings.json")
    if overwrite:
        output.unlink(missing_ok=True)
    done = 0
    if output.exists() and output.stat().st_size:
        _check_settings(output, side_file, fingerprint)
        _drop_torn_line(output)
        done = _check_lines(output, prompts, ids or range(len(prompts)))
    files.write_text(side_file, json.dumps(fingerprint, indent=1) + "\n")
    return done


def _check_settings(output: Path, side_file: Path, fingerprint: dict[str, Any]) -> None:
    advice = "give another --output, or --overwrite."
    if not side_file.is_file():
        raise UserError(
            f"{output} exists without {side_file.name}, so it cannot be resumed; {advice}"
        )
    try:
        before = untrusted.read_json_object(side_file)
    except UserError as error:
        raise UserError(f"{error}; {advice}") from error
    changed = [
        f"{key}: {before.get(key)!r} then, {fingerprint.get(key)!r} now"
        for key in sorted({*before, *fingerprint})
        if before.get(key) != fingerprint.get(key)
    ]
    if changed:
        raise UserError(
            f"{output} was written with other settings ({'; '.join(changed)}); {advice}"
        )


def _drop_torn_line(output: Path) -> None:
    """Removes the text after the last newline, which is a line that was being written when the run ended."""
    content = output.read_bytes()
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        with output.open("rb+") as file:
            file.truncate(complete)


def _check_lines(output: Path, prompts: list[str], ids: Sequence[Any]) -> int:
    done = 0
    for number, record in read_json_objects(output):
        if done >= len(prompts):
            raise UserError(
                f"{output}:{number}: more lines than the input has prompts ({len(prompts)}); "
                "give another --output, or --overwrite."
            )
        if record.get("id") != ids[done] or record.get("prompt") != prompts[done]:
            raise UserError(
                f"{output}:{number}: its prompt is not prompt {done} of the input; "
                "give another --output, or --overwrite."
            )
        done += 1
    return done


def count_unfinished(output: Path) -> int:
    """Returns the number of responses in an output of `generate` that did not end before the length limit.

    Raises:
      UserError: a line does not say whether its responses ended.
    """
    unfinished = 0
    for number, record in read_json_objects(output):
        finished = record.get("finished")
        if not isinstance(finished, list) or not all(isinstance(each, bool) for each in finished):
            raise UserError(
                f"{output}:{number}: has no list of truth values 'finished', so it is not a line of this version; give another --output, "
                "or --overwrite."
            )
        unfinished += finished.count(False)
    return unfinished
