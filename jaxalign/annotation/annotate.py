"""Implements `jaxalign annotate`, which adds a named annotation to candidates or logged records. It can be resumed.

The lines are written beside the output, in blocks of prompts, and take its name when all are there; so the output may be the input, and
nobody reads half a file. To resume an interrupted command, give it again. OUTPUT.annotations.json records what made each annotation.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from jaxalign.annotation.annotated_output import Output, annotations_digest, lock_of
from jaxalign.annotation.annotators import Annotator, annotator_names, apply, get_annotator
from jaxalign.annotation.judge_calibration import calibration
from jaxalign.data.candidates import TOP_LEVEL, Candidates, read_candidates
from jaxalign.data.logged_responses import read_responses
from jaxalign.errors import UserError, require_range
from jaxalign.inference.resumable_output import resume

_NAME = re.compile(r"[\w-]+")
_PROGRESS_SECONDS = 30.0


def annotate(
    input: str,
    annotator: str,
    output: str,
    *,
    name: str = "",
    kind: str = "",
    layout: str = "",
    fields: str = "",
    join_prompts: bool = False,
    truth: str = "",
    block_size: int = 64,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Adds a named annotation to the responses of a file.

    Args:
      input: candidates (of `jaxalign generate`, `annotate` or `select`), or logged records of any kind and layout. Each line of
        records becomes a prompt with its responses, and its feedback becomes the annotation `feedback`.
      annotator: what annotates: `name`, `name:argument`, `name:key=value,key=value` or `module:function` (docs/annotation.md).
      output: the candidates with the annotation; may be the input, which is then replaced at the end.
      name: the name of the annotation; by default the annotator's name.
      kind, layout, fields: how to read logged records; recognised by default.
      join_prompts: whether the lines of one prompt become one line.
      truth: an annotation of kind `scores` that is true, with which preferences are compared: accuracy and calibration.
      block_size: the number of prompts that are annotated and written together.
      overwrite: whether to replace an existing annotation of this name, or an output that was made otherwise.

    Returns:
      `output`, `name`, `kind`, `prompts`, `new` (lines annotated by this call), `missing` (values of these lines that the annotator
      could not determine), `counts` (what the annotator counted), `rejected` (records by reason) and `report`, all of this in words.

    Raises:
      UserError: a malformed input, an annotator that cannot be used, or an output that was made from another input or otherwise.
    """
    require_range("annotate", "[1, inf)", block_size=block_size)
    # An annotator that cannot be used is reported before a large file is read.
    made = get_annotator(annotator)
    name = name or default_name(annotator)
    # Locked before it is read: the input may be the output, to which another process may be adding an annotation.
    with lock_of(output):
        candidates, log = read_responses(
            input,
            kind=kind,
            layout=layout,
            fields=fields,
            join_prompts=join_prompts,
            side_file=f"{output}.rejected.jsonl",
        )
        result = annotate_candidates(
            made, candidates, output, name, truth=truth, block_size=block_size, overwrite=overwrite
        )
    if log.counts:
        result["rejected"] = log.counts
        reasons = ", ".join(f"{count} {reason}" for reason, count in log.counts.items())
        result["report"] += f"; records left out: {reasons}"
    return result


def default_name(spec: str) -> str:
    """Returns the name of a specification's annotation: the plug-in's name, or the function of `module:function`."""
    name, _, rest = spec.partition(":")
    own = rest.isidentifier() and name not in annotator_names()
    return re.sub(r"[^\w-]", "_", rest if own else name)


def annotate_candidates(
    annotator: Annotator,
    candidates: Candidates,
    output: str | Path,
    name: str,
    *,
    truth: str = "",
    block_size: int = 64,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Does the work of `annotate` for candidates that are read already; `candidates.path` may be the output."""
    _check_name(name, annotator.kind)
    if truth and annotator.kind == "preferences":
        candidates.annotation(truth, "scores")
    job = Output(candidates, Path(output).expanduser(), name, dict(annotator.identity()))
    with lock_of(output):
        new, missing = (
            (0, 0) if job.is_finished(overwrite) else _write(annotator, job, block_size, overwrite)
        )
    counts = {key: value for key, value in _counts(annotator).items() if value}
    told = "".join(f"; {key}: {value}" for key, value in counts.items())
    report = (
        f"{job.output} holds {len(candidates)} prompts with the annotation {name!r} ({annotator.kind}), {new} of them new; "
        f"missing values: {missing}{told}"
    )
    lacking = job.newer_annotations() if not new else []
    if lacking:
        report += f"; it lacks what {candidates.path} got since ({', '.join(lacking)}): --overwrite writes it anew"
    if truth and annotator.kind == "preferences":
        annotated = read_candidates(job.output)
        truths = annotated.annotation(truth, "scores").values
        found = calibration(annotated.annotation(name).values, truths)
        report += f"; against {truth!r}, {found.describe()}"
    return {
        "output": str(job.output),
        "name": name,
        "kind": annotator.kind,
        "prompts": len(candidates),
        "new": new,
        "missing": missing,
        "counts": counts,
        "rejected": {},
        "report": report,
    }


def _write(annotator: Annotator, job: Output, block_size: int, overwrite: bool) -> tuple[int, int]:
    """Annotates and writes all lines that are not written yet; returns their number and that of their missing values."""
    candidates = job.candidates
    check = getattr(annotator, "check", None)
    if check is not None:
        check(candidates)
    size = len(candidates) if annotator.whole_file else block_size
    settings = {**job.record, "block_size": size, "annotations": annotations_digest(candidates)}
    done = resume(
        job.unfinished,
        json.loads(json.dumps(settings)),
        list(candidates.prompts),
        overwrite,
        ids=[fields.get("id") for fields in candidates.fields],
    )
    missing, first, started, told = 0, done, time.monotonic(), time.monotonic()
    with job.unfinished.open("ab") as file:
        for start in range(done - done % size, len(candidates), size):
            part = candidates.take(range(start, min(start + size, len(candidates))))
            annotated = apply(annotator, part, job.name)
            rest = annotated.take(range(max(done - start, 0), len(part)))
            for line in rest.lines():
                file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            missing += rest.annotations[job.name].missing
            done = start + len(part)
            if time.monotonic() - told > _PROGRESS_SECONDS:
                told = time.monotonic()
                rate = (done - first) / (told - started)
                print(
                    f"annotate: {done} of {len(candidates)} prompts, {rate:.3g} prompts/s",
                    file=sys.stderr,
                )
    job.finish()
    return len(candidates) - first, missing


def _check_name(name: str, kind: str) -> None:
    if not _NAME.fullmatch(name):
        raise UserError(
            f"annotate.name is {name!r}; use letters, digits, underscores and hyphens only"
        )
    if name in TOP_LEVEL and kind != "scores":
        raise UserError(f"annotate.name: {name!r} holds scores, and this annotator gives {kind}")


def _counts(annotator: Annotator) -> dict[str, int]:
    counts = getattr(annotator, "counts", None)
    return dict(counts()) if callable(counts) else {}
