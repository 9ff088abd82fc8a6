"""From candidates to training records: the annotators and selectors of a round, in the order in which a recipe names them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign import files
from jaxalign.annotation import annotators as annotating
from jaxalign.annotation.annotators import Annotator
from jaxalign.data.candidates import Candidates, read_candidates, write_candidates
from jaxalign.data.json_lines import read_json_objects
from jaxalign.errors import UserError
from jaxalign.recipes.round_prompts import file_digest
from jaxalign.recipes.round_sampling import CANDIDATES, ROLES
from jaxalign.selection.selectors import Selection, get_selector

RECORDS = "records.jsonl"
SELECT = "select "
_PLACE = re.compile(r"\{(\w*)\}")


def filled_in(spec: str, runs: Mapping[str, str], number: int) -> str:
    """Returns a specification with ``{previous}``, ``{start}`` and ``{teacher}`` replaced by run folders, and ``{round}`` by its number.

    Raises:
      UserError: another name in braces, or a role that the recipe has no run for.

    >>> filled_in("implicit_reward:policy={previous}", {"previous": "r/round1/train/run"}, 2)
    'implicit_reward:policy=r/round1/train/run'
    """

    def replace(match: re.Match[str]) -> str:
        name = match.group(1)
        if name == "round":
            return str(number)
        if name not in ROLES:
            raise UserError(
                f"{spec!r} names {{{name}}}; known: {', '.join(f'{{{role}}}' for role in (*ROLES, 'round'))}"
            )
        if name not in runs:
            raise UserError(
                f"{spec!r} names {{{name}}}, and the recipe has none: set {name.upper()}"
            )
        return runs[name]

    return _PLACE.sub(replace, spec)


def annotate(folder: Path, before: Path, annotator: Annotator, name: str) -> dict[str, Any]:
    """Adds an annotation to a file of candidates.

    Raises:
      UserError: the annotator fails, or gives no number at all.
      LabelsWanted: a person has to label something first.
    """
    candidates = read_candidates(before)
    check = getattr(annotator, "check", None)
    if check is not None:
        check(candidates)
    annotated = annotating.apply(annotator, candidates, name)
    known = total = 0
    for array in annotated.annotations[name].values:
        values = (
            array[~np.eye(len(array), dtype=bool)] if annotator.kind == "preferences" else array
        )
        known, total = known + int(np.isfinite(values).sum()), total + values.size
    if not known:
        raise UserError(
            f"{before}: annotator {name!r} gave no number for any response (all are NaN); check its setting in ANNOTATORS"
        )
    path = folder / CANDIDATES
    write_candidates(path, annotated)
    counts = getattr(annotator, "counts", None)
    return {
        "annotated": known,
        "missing": total - known,
        **({"counts": dict(counts())} if counts is not None else {}),
        "identity": json.loads(json.dumps(annotator.identity(), default=str)),
        "candidates": file_digest(str(path)),
    }


def select(folder: Path, before: Path, spec: str, *, last: bool) -> dict[str, Any]:
    """Applies a selector to a file of candidates; the last selector of a round gives records, an earlier one candidates.

    Raises:
      UserError: the selector fails, selects nothing, or gives the other of the two.
    """
    candidates = read_candidates(before)
    selection = get_selector(spec)(candidates)
    _check_selection(selection, candidates, spec, last)
    path = folder / (RECORDS if last else CANDIDATES)
    _write_lines(path, selection.lines)
    return {
        "kind": selection.kind,
        "selected": len(selection.lines),
        "dropped": {reason: count for reason, count in selection.dropped.items() if count},
        "measures": {name: float(value) for name, value in selection.measures.items()},
        "output": file_digest(str(path)),
    }


def mix(
    folder: Path, parts: Mapping[str, Path], kinds: Mapping[str, str]
) -> tuple[Path, str, dict[str, int]]:
    """Writes the training records of a round: those of its own selection, of earlier rounds, and labelled ones, without repetitions.

    Args:
      folder: where the file is written.
      parts: the files of records by name, in order.
      kinds: the kind of each part.

    Returns:
      The file, its kind, and the numbers of records by part.

    Raises:
      UserError: the parts are of different kinds.
    """
    kind = next(iter(kinds.values()))
    for name, other in kinds.items():
        if other != kind:
            first = next(iter(kinds))
            raise UserError(
                f"{parts[name]} holds records of kind {other}, and {parts[first]} records of kind {kind}; they cannot be mixed"
            )
    lines: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    seen: set[str] = set()
    for name, path in parts.items():
        for _, line in read_json_objects(path):
            text = json.dumps(
                {key: line[key] for key in sorted(line) if key not in ("id", "round", "sources")}
            )
            if text in seen:
                counts["repeated"] += 1
                continue
            seen.add(text)
            lines.append(line)
            counts[name] += 1
    path = folder / RECORDS
    _write_lines(path, lines)
    return path, kind, dict(counts)


def label_accuracy(path: Path, kind: str, truth: Annotator) -> dict[str, float]:
    """Compares the order of the first two responses of pairs or ranked records with a truth; empty for records of other kinds.

    Returns:
      ``label_accuracy``, the share of pairs with the better response first among those that differ, and ``label_ties``, the share that
      do not differ.
    """
    if kind not in ("pair", "ranked"):
        return {}
    prompts, pairs = [], []
    for _, line in read_json_objects(path):
        prompts.append(str(line["prompt"]))
        texts = line["responses"] if kind == "ranked" else [line["chosen"], line["rejected"]]
        first, second = texts[:2]
        margin = line.get("margin")
        soft = isinstance(margin, (int, float)) and margin < 0
        pairs.append([second, first] if soft else [first, second])
    annotated = annotating.apply(truth, Candidates(prompts, pairs, path=str(path)), "truth")
    values = np.array([array[:2] for array in annotated.annotations["truth"].values])
    difference = values[:, 0] - values[:, 1]
    known = np.isfinite(difference)
    differs = known & (difference != 0)
    return {
        "label_accuracy": float((difference[differs] > 0).mean()) if differs.any() else 0.5,
        "label_ties": float(1 - differs.sum() / max(known.sum(), 1)),
    }


def _check_selection(selection: Any, candidates: Candidates, spec: str, last: bool) -> None:
    if not isinstance(selection, Selection):
        raise UserError(
            f"selector {spec!r} gave a {type(selection).__name__}, and it must give a jaxalign.selection.selectors.Selection"
        )
    if last and selection.kind == "candidates":
        raise UserError(
            f"selector {spec!r} gives candidates that are still to be labelled, and SELECTOR must give training records; put it into "
            f"ANNOTATORS, as 'select {spec}', with an annotator after it"
        )
    if not last and selection.kind != "candidates":
        raise UserError(
            f"selector {spec!r} gives records of kind {selection.kind}, so nothing can be annotated after it; name it in SELECTOR"
        )
    if not selection.lines:
        reasons = ", ".join(
            f"{count} x {reason}" for reason, count in selection.dropped.items() if count
        )
        raise UserError(
            f"{candidates.path}: selector {spec!r} selects nothing of {len(candidates)} prompts (left out: {reasons or 'nothing'}); sample "
            "more responses (NUM_SAMPLES) at a higher SAMPLE_TEMPERATURE, or take another judge or selector"
        )


def _write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    with files.replacing(path) as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
