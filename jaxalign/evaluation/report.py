"""`jaxalign report`: Markdown tables from evaluations and run folders, averaged over seeds.

Names that differ only in a trailing seed (`dro-seed0`, `dro_seed1`, `dro/seed2`, `dro-s3`) are one
row, as is the same policy name in several evaluations.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign import files
from jaxalign.errors import UserError
from jaxalign.evaluation.ranking import OWN_METHODS
from jaxalign.evaluation.tables import format_spread, markdown_table

EVALUATION, SUMMARY = "evaluation.json", "summary.json"
_SEED = re.compile(r"[-_/.]?(?:seed|s)[-_=]?(\d+)$")
# Written by a report before its tables, so that a reader knows where the numbers come from.
_HEADER = "<!-- Written by `jaxalign report`; do not edit by hand. -->"


def report(
    runs: list[str],
    output: str = "",
    *,
    title: str = "",
    columns: list[str] | None = None,
    judge: str = "",
    digits: int = 3,
) -> str:
    """Writes Markdown tables of evaluations and training runs.

    Args:
      runs: evaluation folders or evaluation.json files, run folders (with a summary.json), or
        folders that hold any of these at any depth.
      output: Markdown file; empty prints the tables.
      title: heading of the page.
      columns: metrics to show, by the names in the tables; by default all, but for runs those of
        training (`train/...`).
      judge: whose scores are shown as reward and win rate; each evaluation's first by default.
      digits: decimals.

    Returns:
      The Markdown text.

    Raises:
      UserError: nothing to report, or a file that is not what it should be.
    """
    evaluations, summaries = find_results(runs)
    blocks = [f"# {title}"] if title else []
    records = [r for path in evaluations for r in evaluation_records(path, judge=judge)]
    policies = aggregate(records, by="policy", digits=digits)
    trained = aggregate([summary_record(path) for path in summaries], by="run", digits=digits)
    _check_columns(columns, [*policies, *trained])
    if policies:
        blocks.append(markdown_table(policies, _chosen(policies, "policy", columns)))
        blocks += _win_matrix(evaluations, judge, digits)
        blocks += _ranking_tables(evaluations, digits)
    if trained:
        blocks.append(markdown_table(trained, _chosen(trained, "run", columns)))
    text = "\n\n".join([_HEADER, *blocks]) + "\n"
    if output:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        files.write_text(output, text)
        print(f"wrote {output}")
    else:
        print(text)
    return text


def find_results(paths: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """The evaluation.json and summary.json files named by, or lying under, the paths, sorted.

    Raises:
      UserError: a path does not exist, or holds neither.
    """
    evaluations: list[Path] = []
    summaries: list[Path] = []
    for name in paths:
        path = Path(name)
        if not path.exists():
            raise UserError(f"{path}: no such file or folder.")
        found = [path] if path.is_file() else sorted(path.rglob("*.json"))
        evaluations += (own := [p for p in found if p.name == EVALUATION])
        summaries += (runs := [p for p in found if p.name == SUMMARY])
        if not own and not runs:
            raise UserError(f"{path}: holds neither {EVALUATION} nor {SUMMARY}.")
    return list(dict.fromkeys(evaluations)), list(dict.fromkeys(summaries))


def without_seed(name: str) -> str:
    """The name of a run without its trailing seed; the name itself where it has none."""
    return _SEED.sub("", name) or name


def evaluation_records(path: Path, *, judge: str = "") -> list[dict[str, Any]]:
    """One flat record a policy of an evaluation.json: `policy` and its metrics."""
    content = _read(path)
    judges = content["settings"]["judges"]
    judge = judge or (judges[0] if judges else "")
    if judges and judge not in judges:
        raise UserError(f"{path}: has no judge '{judge}', only {', '.join(judges)}.")
    first = next(iter(content["policies"]))
    records = []
    for name, policy in content["policies"].items():
        record: dict[str, Any] = {"policy": without_seed(name)}
        if judge in policy.get("rewards", {}):
            record["reward"] = policy["rewards"][judge]["mean"]
        record["slot error"] = policy.get("slot_error_rate")
        rate = content["win_rates"].get(judge, {}).get(name, {}).get(first)
        record[f"win rate vs {without_seed(first)}"] = rate and rate["mean"]
        record["KL"] = policy.get("kl", {}).get("mean")
        record["tokens"] = policy.get("length")
        record["distinct-1"] = policy.get("distinct_1")
        record["distinct-2"] = policy.get("distinct_2")
        record["V correlation"] = policy.get("value", {}).get("correlation")
        record["mean residual"] = policy.get("value", {}).get("mean_residual")
        records.append(record)
    return records


def summary_record(path: Path) -> dict[str, Any]:
    """One flat record of a training run: its name, step, time, and last evaluation metrics."""
    content = _read(path)
    record: dict[str, Any] = {"run": without_seed(path.parent.name)}
    for key in ("objective", "step", "examples", "seconds"):
        if key in content:
            record[key] = content[key]
    for part in ("train", "evaluation"):
        for key, value in _flat(content.get(part) or {}, f"{part}/"):
            record[key] = value
    return record


def aggregate(
    records: Iterable[Mapping[str, Any]], *, by: str, digits: int = 3
) -> list[dict[str, Any]]:
    """One row a value of `by`, in order of appearance; numbers as mean ± sample deviation.

    `seeds` counts the records of a row. Text is kept where all records agree, and is a dash
    otherwise.
    """
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault(record[by], []).append(record)
    rows = []
    for name, members in groups.items():
        row: dict[str, Any] = {by: name, "seeds": len(members)}
        for key in dict.fromkeys(key for member in members for key in member if key != by):
            row[key] = _spread([m[key] for m in members if m.get(key) is not None], digits)
        rows.append(row)
    return rows


def _spread(values: Sequence[Any], digits: int) -> Any:
    if not values or any(isinstance(v, (str, bool)) for v in values):
        return values[0] if values and len(set(values)) == 1 else None
    if len(set(values)) == 1 and isinstance(values[0], int):
        return values[0]
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return format_spread(float(np.mean(values)), spread, digits)


def _known(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Columns in which some row has a value."""
    keys = dict.fromkeys(name for row in rows for name in row)
    return [name for name in keys if any(row.get(name) is not None for row in rows)]


def _check_columns(columns: Sequence[str] | None, rows: Sequence[Mapping[str, Any]]) -> None:
    known = _known(rows)
    missing = [name for name in columns or () if name not in known]
    if missing:
        raise UserError(f"no column {', '.join(missing)}; there are {', '.join(known)}.")


def _chosen(
    rows: Sequence[Mapping[str, Any]], key: str, columns: Sequence[str] | None
) -> list[str]:
    """The columns of a table: those asked for, or all but the many training metrics."""
    known = _known(rows)
    if columns:
        return [key, *(name for name in dict.fromkeys(columns) if name in known and name != key)]
    return [name for name in known if not name.startswith("train/")]


def _win_matrix(paths: Sequence[Path], judge: str, digits: int) -> list[str]:
    """Head-to-head win rates of the row over the column, where more than two policies met."""
    rates: dict[str, dict[str, list[float]]] = {}
    for path in paths:
        content = _read(path)
        chosen = judge or next(iter(content["win_rates"]), "")
        for first, opponents in content["win_rates"].get(chosen, {}).items():
            for second, estimate in opponents.items():
                row = rates.setdefault(without_seed(first), {})
                row.setdefault(without_seed(second), []).append(estimate["mean"])
    if len(rates) < 3:
        return []
    rows = [
        {
            "row over column": first,
            **{second: _spread(rates[first].get(second, []), digits) for second in rates},
        }
        for first in rates
    ]
    return [markdown_table(rows)]


def _ranking_tables(paths: Sequence[Path], digits: int) -> list[str]:
    """Agreement with feedback; a baseline, which no policy changes, once an evaluation."""
    records = []
    for path in paths:
        shown = set()
        for name, policy in _read(path)["policies"].items():
            for method, result in policy.get("ranking", {}).items():
                own = method.startswith(OWN_METHODS)
                label = f"{without_seed(name)}: {method}" if own else method
                if (label if not own else name + method) in shown:
                    continue
                shown.add(label if not own else name + method)
                records.append(
                    {
                        "ranking": label,
                        "Spearman": result["spearman"],
                        "within prompts": result["within_prompt_spearman"],
                        "AUC": result["auc"],
                        "pairwise accuracy": result["pairwise_accuracy"],
                        "pairs": result["pairs"],
                    }
                )
    return [markdown_table(aggregate(records, by="ranking", digits=digits))] if records else []


def _flat(values: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield prefix + key, value


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not JSON: {error}.") from None
    wanted = ("settings", "policies", "win_rates") if path.name == EVALUATION else ()
    if not isinstance(content, dict) or any(key not in content for key in wanted):
        raise UserError(f"{path}: is not an evaluation; it lacks {', '.join(wanted)}.")
    return content
