"""The pages of the studies of rounds, from their run folders: ``python -m studies.rounds_report spa --runs runs/rounds``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.evaluation.plots import plot_front
from jaxalign.evaluation.tables import markdown_table
from jaxalign.recipes.jobs import read_result
from studies import rounds_iterative, rounds_selm, rounds_spa
from studies.formatting import spread
from studies.rounds_arms import SEEDS, Arm

STUDIES: dict[str, tuple[str, Mapping[str, Arm], str]] = {
    "spa": (
        "Rounds of self-labelled preferences (SPA)",
        rounds_spa.ARMS,
        rounds_spa.__doc__ or "",
    ),
    "selm": ("Rounds of optimistic DPO (SELM)", rounds_selm.ARMS, rounds_selm.__doc__ or ""),
    "iterative": (
        "Three rounds or one, for DPO and DRO",
        rounds_iterative.ARMS,
        rounds_iterative.__doc__ or "",
    ),
}
# Columns of the table, their digits, and their name in the result of a round.
_COLUMNS = (
    ("reward", 3, "reward"),
    ("log-ratio to start, nats", 2, "log_ratio_to_start"),
    ("length", 1, "length"),
    ("label accuracy", 3, "label_accuracy"),
    ("pairs that tie", 2, "label_ties"),
    ("records", 0, "examples"),
    ("log pi of the start's responses", 2, rounds_selm.START_LOG_PROBS),
)


def report(name: str, folder: Path, plot: Path) -> str:
    """Returns the page of a study, and draws its plot; arms that have not run with all seeds are named.

    Args:
      name: the study.
      folder: its run folder.
      plot: the PNG to write.
    """
    title, arms, text = STUDIES[name]
    question, _, details = text.partition("\n\n")
    found = {arm: _results(folder, arm) for arm in arms}
    known = {key for runs in found.values() for run in runs for entry in run for key in entry}
    rows, series = [], {}
    for arm, results in found.items():
        rounds = _by_round(results)
        rows += [
            {"arm": f"`{arm}`", "round": number, **_cells(entries, known), "seeds": len(entries)}
            for number, entries in rounds.items()
        ]
        points = [
            [_mean(entries, key) for key in ("log_ratio_to_start", "reward")]
            for entries in rounds.values()
        ]
        if points:
            series[arm] = points
    parts = [f"# {title}\n", f"{question.strip()}\n", details.strip() + "\n"]
    if series:
        plot_front(series, ("log-ratio to the start, nats", "reward"), plot)
        parts += [
            markdown_table(rows),
            "\nMean and standard deviation over seeds; 200 test acts, one sample at temperature 1 each; the reward is minus the share of "
            "wrong slots.\n",
            f"![Reward against the distance from the start, round after round]({plot.name})\n",
        ]
    missing = [f"`{arm}` ({len(each)})" for arm, each in found.items() if len(each) < len(SEEDS)]
    if missing:
        parts.append(
            f"**Not finished with all {len(SEEDS)} seeds** (finished seeds in brackets): {', '.join(missing)}.\n"
        )
    return "\n".join(parts)


def _results(folder: Path, arm: str) -> list[list[dict[str, Any]]]:
    found = []
    for seed in SEEDS:
        result = read_result(folder, f"{arm}/seed{seed}")
        if result is None:
            continue
        name = rounds_selm.START_LOG_PROBS
        scored = read_result(folder, f"{name}/{arm}/seed{seed}") or {"log_probs": {}}
        found.append(
            [
                {**entry, name: scored["log_probs"][entry["round"]]}
                if entry["round"] in scored["log_probs"]
                else entry
                for entry in map(_named, result["rounds"])
            ]
        )
    return found


def _named(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entry with the name of its round as text."""
    return {**entry, "round": str(entry["round"])}


def _by_round(results: Sequence[Sequence[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Returns the entries of every round over seeds."""
    rounds: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        for entry in result:
            rounds.setdefault(str(entry["round"]), []).append(entry)
    return rounds


def _cells(entries: Sequence[dict[str, Any]], known: set[str]) -> dict[str, str]:
    """Returns the columns of which some round of the study has a measure."""
    return {
        title: spread([entry[key] for entry in entries if key in entry], digits)
        for title, digits, key in _COLUMNS
        if key in known
    }


def _mean(entries: Sequence[dict[str, Any]], key: str) -> float:
    return sum(entry[key] for entry in entries) / len(entries)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", choices=sorted(STUDIES))
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    output = arguments.output or Path("docs/results") / f"rounds_{arguments.study}.md"
    output.parent.mkdir(parents=True, exist_ok=True)
    text = report(arguments.study, arguments.runs, output.with_suffix(".png"))
    output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
