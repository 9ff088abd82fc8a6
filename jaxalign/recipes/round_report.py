"""The result of rounds: every measure by round as JSON, as a table and as plots."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxalign import files
from jaxalign.evaluation.plots import plot_by_round
from jaxalign.evaluation.tables import markdown_table
from jaxalign.recipes.stages import Stage, is_finished, result_of, seconds_of

NAME = "rounds"
# Measures of the policy, in the order of the table.
_POLICY = (
    "reward",
    "length",
    "kl_to_start",
    "label_accuracy",
    "label_ties",
    "unfinished",
    "distinct_2",
)
_TRAINING = ("loss", "accuracy", "margin", "suspects", "log_ratio")
_ERRORS = {"reward": "reward_error", "kl_to_start": "kl_error"}


def write_report(folder: Path, stages: Sequence[Stage]) -> dict[str, Any]:
    """Writes ``rounds.json``, ``rounds.md`` and ``rounds.png`` from the finished stages, and returns the content of the first."""
    rounds = [_round(folder, name, group) for name, group in _by_round(folder, stages).items()]
    seconds = _seconds(rounds)
    content: dict[str, Any] = {"rounds": rounds, "seconds": seconds}
    files.write_text(folder / f"{NAME}.json", json.dumps(content, indent=1) + "\n")
    files.write_text(folder / f"{NAME}.md", _page(rounds, seconds))
    series = {
        measure: [
            (entry["round"], entry[measure], entry.get(_ERRORS.get(measure, "")))
            for entry in measured
        ]
        for measure in _measures(rounds)
        if (measured := [entry for entry in rounds if measure in entry])
    }
    if series:
        plot_by_round(series, folder / f"{NAME}.png")
    return content


def _by_round(folder: Path, stages: Sequence[Stage]) -> dict[str, list[Stage]]:
    groups: dict[str, list[Stage]] = {}
    for stage in stages:
        if is_finished(folder, stage):
            groups.setdefault(stage.name.partition("/")[0], []).append(stage)
    return groups


def _round(folder: Path, name: str, stages: Sequence[Stage]) -> dict[str, Any]:
    """Returns the numbers of one round, and the seconds of its stages under ``seconds``."""
    found: dict[str, Any] = {"round": name.removeprefix("round")}
    seconds: dict[str, float] = {}
    for stage in stages:
        result = result_of(folder, stage.name)
        part = stage.kind.partition("/")[0]
        seconds[part] = round(seconds.get(part, 0.0) + seconds_of(folder, stage.name), 2)
        if part == "sample":
            found |= {"prompts": result["prompts"], "responses": result["responses"]}
        elif part == "select":
            found |= {"selected": result["selected"]}
            found |= {f"select {key}": value for key, value in result["measures"].items()}
        elif part == "cache":
            found["examples"] = result["examples"]
        elif part == "train":
            found["steps"] = result["train_steps"]
            found |= {
                f"train {key}": result["train"][key] for key in _TRAINING if key in result["train"]
            }
        elif part == "measure":
            found |= {key: value for key, value in result.items() if key != "prompts"}
            found["measured_prompts"] = result["prompts"]
    return {
        key: value
        for key, value in found.items()
        if not isinstance(value, float) or math.isfinite(value)
    } | {"seconds": seconds}


def _measures(rounds: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the names of the measures that some round has, the policy's first."""
    errors = set(_ERRORS.values())
    names = dict.fromkeys(
        key
        for entry in rounds
        for key, value in entry.items()
        if isinstance(value, float) and key not in errors
    )
    return sorted(names, key=lambda name: _POLICY.index(name) if name in _POLICY else len(_POLICY))


def _seconds(rounds: Sequence[dict[str, Any]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for entry in rounds:
        for part, seconds in entry["seconds"].items():
            total[part] = round(total.get(part, 0.0) + seconds, 2)
    return total


def _page(rounds: Sequence[dict[str, Any]], seconds: dict[str, float]) -> str:
    measures = _measures(rounds)
    counts = [
        name
        for name in ("prompts", "responses", "selected", "examples", "steps")
        if any(name in entry for entry in rounds)
    ]
    policy = [name for name in measures if name in _POLICY]
    others = [name for name in measures if name not in _POLICY]
    total = sum(seconds.values()) or 1.0
    shares = ", ".join(f"{part} {value / total:.0%}" for part, value in seconds.items())
    measured = [
        "Measures of the policy after each round, on held-out prompts; `±` is the standard error over prompts.\n",
        markdown_table([_row(entry, policy) for entry in rounds], ["round", *policy]) + "\n",
    ]
    unmeasured = [
        "The policy was not measured: there are no held-out prompts (MEASURE_PROMPTS, MEASURE_COUNT).\n"
    ]
    parts = [
        "# Rounds\n",
        *(measured if policy else unmeasured),
        "![Measures by round](rounds.png)\n",
        "What each round was trained on:\n",
        markdown_table(
            [_row(entry, [*counts, *others]) for entry in rounds], ["round", *counts, *others]
        ),
        f"\nTime: {sum(seconds.values()):.0f} s, of which {shares}.\n",
    ]
    return "\n".join(parts)


def _row(entry: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    row: dict[str, Any] = {"round": entry["round"]}
    for name in names:
        value, error = entry.get(name), entry.get(_ERRORS.get(name, ""))
        row[name] = value if error is None or value is None else f"{value:.3f} ± {error:.3f}"
    return row
