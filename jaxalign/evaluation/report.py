"""The command `jaxalign report`: Markdown tables, or one HTML page, from evaluations and run folders, averaged over seeds.

Names that differ only in a trailing seed (`dro-seed0`, `dro_seed1`, `dro/seed2`, `dro-s3`) share one
row, and so does the same policy name in several evaluations. Evaluations by different judges, on other prompts or at another
temperature are never averaged, and a checkpoint that is evaluated twice counts as one seed.

There is a table for each question that a reader has: how good the responses are, who wins, how long they are, how far a policy is from
its reference, and how well it ranks logged responses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign import files, untrusted
from jaxalign.errors import UserError, require_range
from jaxalign.evaluation.page import page
from jaxalign.evaluation.page.rounds import ROUNDS
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
# The tables of policies: title -> columns.
_POLICY_TABLES = {
    "Quality": ("reward", "slot error"),
    "Length and diversity": (
        "tokens",
        "unfinished",
        "distinct-1",
        "distinct-2",
        "cut prompts",
        "unknown pieces",
    ),
    "Distance from the reference (KL in nats a response), and value network": (
        "KL",
        "V correlation",
        "mean residual",
    ),
}
_RUN = ("objective", "step", "examples", "seconds")
# These columns begin every table.
_KEYS = ("policy", "run", *CONDITIONS, "seeds", "evaluations")
_WIDEST = 8  # the largest number of metrics in a table
_WIDEST_MATRIX = 6  # the largest number of policies in a table of all pairs


def report(
    runs: list[str],
    output: str = "",
    *,
    title: str = "",
    columns: list[str] | None = None,
    judge: str = "",
    digits: int = 3,
) -> str:
    """Writes Markdown tables of evaluations and training runs, or one HTML page with plots, curves and all responses.

    Args:
      runs: evaluation folders or evaluation.json files, run folders (with a summary.json), or
        folders that hold any of these at any depth. A page also shows the rounds of recipes (rounds.json) in these folders.
      output: the file; a name that ends in `.html` asks for the page, any other for Markdown. If empty, the tables are printed.
      title: heading of the page.
      columns: metrics to show in one table, by their names in the tables, such as `KL` or `win rate vs NAME`; a run's metrics begin
        with the title of their table, such as `evaluation/validation/loss`. By default all are shown in several tables, except the
        training metrics of runs (`train/...`). The page has no such choice.
      judge: the judge whose scores are shown as reward and win rate; by default the first judge of each evaluation, and in a page all
        judges, each by itself.
      digits: number of decimals.

    Returns:
      The text of the file.

    Raises:
      UserError: there is nothing to report, a file does not have the expected content, or `output` is a file that is not a report.
    """
    require_range("report", "[0, 10]", digits=digits)
    if page.is_page(output):
        return _write_page(runs, Path(output).expanduser(), title, columns, judge, digits)
    if output:
        _require_report_or_nothing(Path(output))
    evaluations, summaries = find_results(runs)
    blocks = [f"# {title}"] if title else []
    policies = _policies(evaluations, judge, digits)
    trained = aggregate([summary_record(path) for path in summaries], by=("run",), digits=digits)
    _check_columns(columns, [*policies, *trained])
    if columns:
        blocks += [
            markdown_table(rows, [key, *(name for name in dict.fromkeys(columns) if name in known)])
            for key, rows in (("policy", policies), ("run", trained))
            if rows and (known := set(_known(rows)) - {key})
        ]
    else:
        blocks += evaluation_tables(evaluations, judge, digits)
        blocks += _run_tables(trained)
    text = "\n\n".join([_HEADER, *blocks]) + "\n"
    if output:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        files.write_text(output, text)
        print(f"wrote {output}")
    else:
        print(text)
    return text


def evaluation_tables(evaluations: Sequence[Path], judge: str = "", digits: int = 3) -> list[str]:
    """Returns the Markdown tables of evaluations by their evaluation.json, each with a heading of the second level."""
    return [
        *_policy_tables(_policies(evaluations, judge, digits)),
        *_win_tables(evaluations, judge, digits),
        *_ranking_table(evaluations, digits),
    ]


def _policies(evaluations: Sequence[Path], judge: str, digits: int) -> list[dict[str, Any]]:
    records = [r for path in evaluations for r in evaluation_records(path, judge=judge)]
    return aggregate(records, by=("policy",), digits=digits)


def _write_page(
    runs: list[str], output: Path, title: str, columns: list[str] | None, judge: str, digits: int
) -> str:
    if columns:
        raise UserError("columns chooses columns of a Markdown report; leave it out for a page")
    found = find_results(runs)
    folders = [path for name in runs if (path := Path(name).expanduser()).is_dir()]
    rounds = dict.fromkeys(each for path in folders for each in sorted(path.rglob(ROUNDS)))
    text = page.write_page(output, *found, [*rounds], title=title, judge=judge, digits=digits)
    print(f"wrote {output}")
    return text


def _require_report_or_nothing(output: Path) -> None:
    """Refuses to replace a file that somebody wrote by hand, or a table that stands in a page."""
    if not output.exists():
        return
    with untrusted.open_regular(output) as file:
        if file.read(len(_HEADER.encode())) != _HEADER.encode():
            raise UserError(
                f"{output} exists already and was not written by `jaxalign report`; give another --output"
            )


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


def _titled(title: str, table: str) -> str:
    return f"## {title}\n\n{table}"


def _tables(
    title: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], prefix: str = ""
) -> list[str]:
    """Returns a table with the columns that have values, or several if it would be too wide; each begins with the key columns.

    Args:
      title: the heading.
      rows: the rows by column.
      columns: the columns; in the heads of the table they have no prefix.
      prefix: the common beginning of the columns' names.
    """
    known = _known(rows)
    keys = [name for name in _KEYS if name in known]
    columns = [name for name in columns if name in known]
    blocks = []
    parts = -(-len(columns) // _WIDEST)
    width = -(-len(columns) // max(parts, 1))
    for first in range(0, len(columns), max(width, 1)):
        part = columns[first : first + width]
        shown = [
            {name: row.get(name) for name in keys}
            | {name.removeprefix(prefix): row.get(name) for name in part}
            for row in rows
            if any(row.get(name) is not None for name in part)
        ]
        blocks.append(markdown_table(shown))
    return [_titled(title, "\n\n".join(blocks))] if blocks else []


def _policy_tables(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    blocks = [_tables(title, rows, columns) for title, columns in _POLICY_TABLES.items()]
    if any(row.get("KL") == "reference" for row in rows):
        blocks.append(["A policy whose KL is given as `reference` is the reference itself."])
    return [block for table in blocks for block in table]


def _run_tables(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns a table of the runs, and one of the metrics of each of their evaluations."""
    blocks = _tables("Runs", rows, _RUN)
    by_title: dict[str, list[str]] = {}
    for name in _known(rows):
        title, _, metric = name.rpartition("/")
        if metric and title and not name.startswith("train/"):
            by_title.setdefault(title, []).append(name)
    for title, columns in by_title.items():
        blocks += _tables(f"`{title}`", rows, columns, f"{title}/")
    return blocks


def _ranking_table(paths: Sequence[Path], digits: int) -> list[str]:
    records = [record for path in paths for record in ranking_records(path)]
    rows = aggregate(records, by=("ranking",), digits=digits)
    return [_titled("Ranking of logged responses", markdown_table(rows))] if rows else []


def _win_tables(paths: Sequence[Path], judge: str, digits: int) -> list[str]:
    """Returns a table of win rates over the first policies of the evaluations, and a matrix of all pairs where there are a few policies.

    There is one matrix for each set of conditions.
    """
    records = [record for path in paths for record in win_records(path, judge=judge)]
    tables: dict[str, list[dict[str, Any]]] = {}
    for row in aggregate(records, by=("row", "column"), digits=digits):
        conditions = ", ".join(f"{name} {row[name]}" for name in CONDITIONS if name in row)
        tables.setdefault(conditions, []).append(row)
    over_first = [r for path in paths for r in win_records(path, judge=judge, over_first=True)]
    rows = [
        {"policy": row.pop("row"), "over": row.pop("column"), **row}
        for row in aggregate(over_first, by=("row", "column"), digits=digits)
    ]
    blocks = [markdown_table(rows)] if rows else []
    blocks += [
        markdown_table(matrix)
        for conditions, cells in tables.items()
        if 2 < len(matrix := _win_matrix(cells, conditions)) <= _WIDEST_MATRIX
    ]
    return [_titled("Win rates", "\n\n".join(blocks))] if blocks else []


def _win_matrix(cells: Sequence[Mapping[str, Any]], conditions: str) -> list[dict[str, Any]]:
    names = list(dict.fromkeys(cell["row"] for cell in cells))
    known = {(cell["row"], cell["column"]): cell["win rate"] for cell in cells}
    corner = f"row over column ({conditions})" if conditions else "row over column"
    return [
        {corner: first, **{second: known.get((first, second)) for second in names}}
        for first in names
    ]
