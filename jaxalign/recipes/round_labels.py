"""From candidates to training records: the annotators and selectors of a round, in the order in which a recipe names them."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign import files
from jaxalign.annotation import annotate as annotating
from jaxalign.annotation.annotators import Annotator, LabelsWanted, apply, get_annotator
from jaxalign.annotation.flat import file_identity
from jaxalign.annotation.labels_wanted import labels_missing, labels_wanted
from jaxalign.data.candidates import Candidates, read_candidates
from jaxalign.data.json_lines import read_json_objects
from jaxalign.errors import UserError
from jaxalign.plugins import parse_spec
from jaxalign.recipes.round_prompts import file_digest
from jaxalign.recipes.round_sampling import CANDIDATES, ROLES
from jaxalign.selection.select import apply_selector, write_selection
from jaxalign.selection.selectors import Selection, get_selector

RECORDS = "records.jsonl"
SELECT = "select "
LABELS = "labels"
_OF_ORIGIN = ("id", "round", "sources")
_PLACE = re.compile(r"\{(\w*)\}")


def filled_in(spec: str, runs: Mapping[str, str], number: int) -> str:
    """Returns a specification with the roles in braces replaced by run folders, and ``{round}`` by its number.

    The roles are ``{previous}``, ``{before}`` (what the previous policy was trained from), ``{start}`` and ``{teacher}``.

    Raises:
      UserError: another name in braces, or a role that the recipe has no run for.

    >>> filled_in("implicit_reward:policy={previous}", {"previous": "r/round1/train/run"}, 2)
    'implicit_reward:policy=r/round1/train/run'
    """

    def replace(match: re.Match[str]) -> str:
        name = match.group(1)
        if name == "round":
            return str(number)
        if name not in (*ROLES, "before"):
            known = ", ".join(f"{{{role}}}" for role in (*ROLES, "before", "round"))
            raise UserError(f"{spec!r} names {{{name}}}; known: {known}")
        if name not in runs:
            raise UserError(
                f"{spec!r} names {{{name}}}, and the recipe has none: set {name.upper()}"
            )
        return runs[name]

    return _PLACE.sub(replace, spec)


def annotate(folder: Path, before: Path, spec: str, name: str) -> dict[str, Any]:
    """Adds an annotation to a file of candidates; an interrupted call continues after the last block of prompts.

    Raises:
      UserError: the annotator fails, or gives no number at all.
      LabelsWanted: a person has to label something first.
    """
    candidates = read_candidates(before)
    _want_labels(candidates, spec)
    annotator = get_annotator(spec)
    path = folder / CANDIDATES
    found = annotating.annotate_candidates(annotator, candidates, path, name)
    values = read_candidates(path).annotation(name).values
    # The diagonal of preferences is missing by definition.
    known = sum(int(np.isfinite(array).sum()) for array in values)
    if not known:
        raise UserError(
            f"{before}: annotator {name!r} ({spec}) gave no number for any response (all are NaN); check its setting in ANNOTATORS, and "
            f"delete {folder}"
        )
    return {
        "known": known,
        "missing": found["missing"],
        "counts": found["counts"],
        "identity": json.loads(json.dumps(annotator.identity(), default=str)),
        "candidates": file_digest(str(path)),
        "files": files_of(spec),
    }


def waits_for_labels(spec: str) -> bool:
    """Returns whether a specification is that of human labels, whose file may not exist yet."""
    return spec.partition(":")[0] == LABELS


def _want_labels(candidates: Candidates, spec: str) -> None:
    """Writes what a person is to label, unless the file of labels is there and complete.

    Raises:
      LabelsWanted: labels are missing.
    """
    if not waits_for_labels(spec):
        return
    parts = parse_spec(spec)
    path = Path(parts.argument or parts.settings.get("file", "")).expanduser()
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        form = "pairs" if parts.settings.get("kind") == "preferences" else "scores"
        labels_wanted(candidates, path, form=form)
    missing = labels_missing(path)
    if missing:
        raise LabelsWanted(
            str(path),
            missing,
            f"{path} has {missing} labels that are null: fill them in, or delete the lines that you leave out",
        )


def select(folder: Path, before: Path, spec: str, *, last: bool) -> dict[str, Any]:
    """Applies a selector to a file of candidates; the last selector of a round gives records, an earlier one candidates.

    Raises:
      UserError: the selector fails, selects nothing, or gives the other of the two.
    """
    candidates = read_candidates(before)
    selection = apply_selector(get_selector(spec), candidates, spec)
    _check_kind(selection, spec, last)
    path = folder / (RECORDS if last else CANDIDATES)
    write_selection(path, selection, {"input": str(before), "selector": spec})
    return {
        "kind": selection.kind,
        "selected": len(selection.lines),
        "dropped": {reason: count for reason, count in selection.dropped.items() if count},
        "measures": {name: float(value) for name, value in selection.measures.items()},
        "output": file_digest(str(path)),
        "files": files_of(spec),
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
            compared = {key: line[key] for key in sorted(line) if key not in _OF_ORIGIN}
            if "comparison" in line:
                # Two lines are one comparison, whose number counts within its file. None may be left out alone.
                compared["part"] = name
            text = json.dumps(compared)
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
        # A negative margin says that `rejected` is the better one, see `data.records`.
        exchanged = isinstance(margin, (int, float)) and margin < 0
        pairs.append([second, first] if exchanged else [first, second])
    annotated = apply(truth, Candidates(prompts, pairs, path=str(path)), "truth")
    values = np.array([array[:2] for array in annotated.annotations["truth"].values])
    difference = values[:, 0] - values[:, 1]
    known = np.isfinite(difference)
    differs = known & (difference != 0)
    return {
        "label_accuracy": float((difference[differs] > 0).mean()) if differs.any() else 0.5,
        "label_ties": float(1 - differs.sum() / max(known.sum(), 1)),
    }


def files_of(spec: str) -> list[dict[str, Any]]:
    """Returns the path and digest of every file that a specification names, so that a finished stage knows if one changes.

    Such files are templates of questions, labels of people, labelled candidates, logged pairs and measured mixes.
    """
    parts = parse_spec(spec)
    named = [*parts.settings.values(), parts.argument]
    return [file_identity(value) for value in named if os.path.isfile(os.path.expanduser(value))]


def _check_kind(selection: Selection, spec: str, last: bool) -> None:
    if last and selection.kind == "candidates":
        raise UserError(
            f"selector {spec!r} gives candidates that are still to be labelled, and SELECTOR must give training records; put it into "
            f"ANNOTATORS, as 'select {spec}', with an annotator after it"
        )
    if not last and selection.kind != "candidates":
        raise UserError(
            f"selector {spec!r} gives records of kind {selection.kind}, so nothing can be annotated after it; name it in SELECTOR"
        )


def _write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    with files.replacing(path) as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
