"""The command `jaxalign report`: Markdown tables from evaluations and run folders, averaged over seeds.

Names that differ only in a trailing seed (`dro-seed0`, `dro_seed1`, `dro/seed2`, `dro-s3`) share one
row, and so does the same policy name in several evaluations. Evaluations by different judges, on other prompts or at another
temperature are never averaged, and a checkpoint that is evaluated twice counts as one seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign import files
from jaxalign.errors import UserError, require_range
from jaxalign.evaluation.report_records import (
    CONDITIONS,
    EVALUATION,
    SUMMARY,
    aggregate,
    evaluation_records,
    ranking_records,
    summary_record,
    win_records,
)
from jaxalign.evaluation.tables import markdown_table

# A report writes this before its tables to tell a reader where the numbers come from.
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
      output: the Markdown file; if empty, the tables are printed.
      title: heading of the page.
      columns: metrics to show, by the names in the tables; by default all, except the training metrics of
        runs (`train/...`).
      judge: the judge whose scores are shown as reward and win rate; the first judge of each evaluation by default.
      digits: number of decimals.

    Returns:
      The Markdown text.

    Raises:
      UserError: there is nothing to report, or a file does not have the expected content.
    """
    require_range("report", "[0, 10]", digits=digits)
    evaluations, summaries = find_results(runs)
    blocks = [f"# {title}"] if title else []
    records = [r for path in evaluations for r in evaluation_records(path, judge=judge)]
    policies = aggregate(records, by=("policy",), digits=digits)
    trained = aggregate([summary_record(path) for path in summaries], by=("run",), digits=digits)
    _check_columns(columns, [*policies, *trained])
    if policies:
        blocks.append(markdown_table(policies, _chosen(policies, "policy", columns)))
        blocks += _win_tables(evaluations, judge, digits)
        rankings = [record for path in evaluations for record in ranking_records(path)]
        if rankings:
            blocks.append(markdown_table(aggregate(rankings, by=("ranking",), digits=digits)))
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
    """Returns the evaluation.json and summary.json files that are given or lie under the given folders, sorted.

    Raises:
      UserError: a path does not exist, or contains neither file.
    """
    evaluations: list[Path] = []
    summaries: list[Path] = []
    for name in paths:
        path = Path(name).expanduser()
        if not path.exists():
            raise UserError(f"{path}: no such file or folder.")
        found = [path] if path.is_file() else sorted(path.rglob("*.json"))
        evaluations += (own := [p for p in found if p.name == EVALUATION])
        summaries += (runs := [p for p in found if p.name == SUMMARY])
        if not own and not runs:
            raise UserError(f"{path}: holds neither {EVALUATION} nor {SUMMARY}.")
    return list(dict.fromkeys(evaluations)), list(dict.fromkeys(summaries))


def _known(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the columns in which some row has a value."""
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
    """Returns the columns of a table: the requested ones, or all except the many training metrics."""
    known = _known(rows)
    if columns:
        return [key, *(name for name in dict.fromkeys(columns) if name in known and name != key)]
    return [name for name in known if not name.startswith("train/")]


def _win_tables(paths: Sequence[Path], judge: str, digits: int) -> list[str]:
    """Returns win rates of the row over the column if more than two policies were compared; one table for each set of conditions."""
    records = [record for path in paths for record in win_records(path, judge=judge)]
    tables: dict[str, list[dict[str, Any]]] = {}
    for row in aggregate(records, by=("row", "column"), digits=digits):
        conditions = ", ".join(f"{name} {row[name]}" for name in CONDITIONS if name in row)
        tables.setdefault(conditions, []).append(row)
    return [
        markdown_table(rows)
        for conditions, cells in tables.items()
        if len(rows := _win_matrix(cells, conditions)) > 2
    ]


def _win_matrix(cells: Sequence[Mapping[str, Any]], conditions: str) -> list[dict[str, Any]]:
    names = list(dict.fromkeys(cell["row"] for cell in cells))
    known = {(cell["row"], cell["column"]): cell["win rate"] for cell in cells}
    corner = f"row over column ({conditions})" if conditions else "row over column"
    return [
        {corner: first, **{second: known.get((first, second)) for second in names}}
        for first in names
    ]
