"""Implements `jaxalign select`: annotated candidates become training records, or candidates that are to be labelled."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxalign import files
from jaxalign.data.candidates import Candidates, read_candidates
from jaxalign.data.rejections import DataError
from jaxalign.data.stored_fields import sha256_of
from jaxalign.errors import UserError
from jaxalign.selection.selectors import Selection, Selector, get_selector
from jaxalign.selection.usable import DUPLICATE, EMPTY, MISSING, SMALL_MARGIN, TIE, TOO_FEW

# What to do if nothing remains, by the most frequent reason.
_REMEDIES = {
    SMALL_MARGIN: "lower min_margin",
    TIE: "every pair ties: take a judge that tells these responses apart, or sample responses that differ more (a higher temperature)",
    TOO_FEW: "sample more responses per prompt (jaxalign generate --num_samples=K, with a temperature above 0)",
    DUPLICATE: "the responses repeat each other: sample with a higher temperature",
    MISSING: "the annotation has no values: look at what its annotator reported",
}
_REMEDY = "give other candidates, or change the selector's settings"


def select(*, input: str, selector: str, output: str) -> None:
    """Makes training records of annotated candidates, or chooses what is to be labelled.

    The output is written atomically. What was done (settings, counts, measures) is written to OUTPUT.selection.json.

    Args:
      input: the file of candidates, as `jaxalign generate` and `jaxalign annotate` write it.
      selector: how to select: a name with settings, such as `best_worst:annotation=judge,min_margin=0.1` (see docs/selection.md), or
        `module:function`.
      output: the JSON Lines file of the records. It replaces an earlier selection, and no other file.
    """
    chosen = get_selector(selector)
    if Path(output).expanduser().resolve() == Path(input).expanduser().resolve():
        raise UserError(f"--output is the input {input}; give another file")
    place = Path(output).expanduser()
    files.refuse_other_output(place, side_file_of(place), "select")
    candidates = read_candidates(input)
    selection = apply_selector(chosen, candidates, selector)
    write_selection(
        output,
        selection,
        {
            "input": str(input),
            "input_sha256": sha256_of(input),
            "selector": selector,
            "settings": settings_of(chosen),
            "prompts": len(candidates),
            "responses": sum(map(len, candidates.responses)),
        },
    )
    print(describe(selection, candidates, output))


def apply_selector(selector: Selector, candidates: Candidates, spec: str) -> Selection:
    """Returns what a selector selects.

    Raises:
      DataError: it is empty; the message names the file, the counts by reason, and what to do.
      UserError: the selector of a user gives something other than a `Selection`.
    """
    selection = selector(candidates)
    if not isinstance(selection, Selection):
        raise UserError(
            f"selector {spec!r} gave a {type(selection).__name__}, and it must give a jaxalign.selection.selectors.Selection"
        )
    if not selection.lines:
        counts = {reason: count for reason, count in selection.dropped.items() if count}
        reasons = ", ".join(f"{count} x {reason}" for reason, count in counts.items()) or "nothing"
        main = max(counts, key=lambda reason: (_rank(reason), counts[reason]), default="")
        raise DataError(
            f"{candidates.path}: selector {spec!r} selects nothing of {len(candidates)} prompts (left out: {reasons}); "
            f"{_REMEDIES.get(main, _REMEDY)}"
        )
    return selection


def write_selection(path: str | Path, selection: Selection, facts: Mapping[str, Any]) -> None:
    """Writes the lines of a selection atomically, and beside them what was done as `PATH.selection.json`.

    An old side file is removed before the records change, so that it never describes other records.
    """
    path = Path(path).expanduser()
    side_file = side_file_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        side_file.unlink(missing_ok=True)
        with files.replacing(path) as file:
            for line in selection.lines:
                file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        description = {
            **facts,
            "kind": selection.kind,
            "records": len(selection.lines),
            "dropped": {reason: count for reason, count in selection.dropped.items() if count},
            "measures": dict(selection.measures),
        }
        files.write_text(side_file, json.dumps(description, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def side_file_of(path: str | Path) -> Path:
    """Returns the path of the description of a file of records."""
    return Path(f"{path}.selection.json")


def settings_of(selector: Selector) -> dict[str, Any]:
    """Returns a selector's settings; none for a user's function."""
    if dataclasses.is_dataclass(selector) and not isinstance(selector, type):
        return dataclasses.asdict(selector)
    return {}


def describe(selection: Selection, candidates: Candidates, output: str) -> str:
    """Returns the table of counts that the command prints."""
    what = (
        "prompts with candidates" if selection.kind == "candidates" else f"{selection.kind} records"
    )
    responses = sum(map(len, candidates.responses))
    rows = [
        f"{output}: {len(selection.lines)} {what} of {len(candidates)} prompts with {responses} responses"
    ]
    dropped = {reason: count for reason, count in selection.dropped.items() if count}
    width = max((len(name) for name in [*dropped, *selection.measures]), default=0)
    rows += [f"  left out  {reason:<{width}}  {count:>8}" for reason, count in dropped.items()]
    rows += [
        f"  measure   {name:<{width}}  {value:>8.4g}" for name, value in selection.measures.items()
    ]
    return "\n".join(rows)


def _rank(reason: str) -> int:
    """Returns how much a reason explains: pairs were compared in vain, or responses were unusable, or too few remained for that."""
    return 0 if reason == TOO_FEW else 1 if reason in (EMPTY, DUPLICATE, MISSING) else 2
