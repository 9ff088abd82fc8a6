"""Writes the files of an evaluation: win rates as JSON, responses, plots."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign import files
from jaxalign.data.evaluation_set import EvaluationSet
from jaxalign.evaluation import plots
from jaxalign.evaluation.comparison import Comparison
from jaxalign.evaluation.statistics import win_rate
from jaxalign.runs.folder import learning_curve

# Subfolders of an evaluation, with one JSON Lines file for each policy.
RESPONSES, LOGGED = "responses", "logged"


def win_rates(
    scores: dict[str, dict[str, np.ndarray]], *, bootstrap: int, seed: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns judge -> first policy -> second policy -> win rate of the first over the second."""
    return {
        judge: {
            first: {
                second: win_rate(
                    by_policy[first], by_policy[second], samples=bootstrap, seed=seed
                ).to_dict()
                for second in by_policy
                if second != first
            }
            for first in by_policy
        }
        for judge, by_policy in scores.items()
    }


def finite_json(value: Any) -> Any:
    """Returns the same nested value with NaN and infinity replaced by null, which JSON can hold."""
    if isinstance(value, dict):
        return {key: finite_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_json(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_responses(folder: Path, session: Comparison, data: EvaluationSet) -> None:
    """Writes every policy's responses with their scores to ``responses/<name>.jsonl``."""
    for name, answers in session.answers.items():
        path = folder / RESPONSES / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path, "w") as file:
            for i, prompt in enumerate(data.prompts):
                line = {
                    "id": i,
                    "prompt": prompt,
                    "responses": [answers.responses[i]],
                    "length": int(answers.lengths[i]),
                    "scores": {j: float(by[name][i]) for j, by in session.scores.items()},
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def write_logged(folder: Path, session: Comparison, data: EvaluationSet) -> None:
    """Writes what every policy makes of each logged response to ``logged/<name>.jsonl``: its log-ratio, and V and residual if known."""
    for name, columns in session.logged.items():
        path = folder / LOGGED / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path, "w") as file:
            for i, record in enumerate(data.feedback):
                line = {
                    "prompt": record.prompt,
                    "response": record.response,
                    "feedback": float(record.feedback),
                    **{column: float(values[i]) for column, values in columns.items()},
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def draw(folder: Path, named: Mapping[str, str], session: Comparison) -> list[str]:
    """Draws all plots for which there are results, and returns their paths."""
    paths: list[str | None] = []
    panel = session.panel
    if panel and session.kl_samples:
        points = [
            {
                "name": name,
                "kl": report["kl"]["mean"],
                "kl_error": report["kl"]["standard_error"],
                "reward": report["rewards"][panel[0].name]["mean"],
                "low": report["rewards"][panel[0].name]["low"],
                "high": report["rewards"][panel[0].name]["high"],
            }
            for name, report in session.reports.items()
        ]
        paths.append(plots.plot_reward_against_kl(points, folder / "reward_against_kl.png"))
    curves = {name: learning_curve(path) for name, path in named.items()}
    curves = {name: records for name, records in curves.items() if records}
    paths.append(plots.plot_learning_curves(curves, folder / "learning_curves.png"))
    if session.calibrations:
        paths.append(plots.plot_calibration(session.calibrations, folder / "calibration.png"))
    return [path for path in paths if path]
