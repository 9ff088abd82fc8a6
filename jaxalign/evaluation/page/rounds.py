"""The section of a report about the rounds of a recipe, from the rounds.json that `jaxalign rounds` writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.evaluation.page import plots
from jaxalign.evaluation.page.elements import Html, element, section, table
from jaxalign.evaluation.report_records import read_json

ROUNDS = "rounds.json"
# Measures of the policy on held-out prompts, and which end is better.
_MEASURES = {
    "reward": "higher is better",
    "kl_to_start": "smaller is closer to the start",
    "log_ratio_to_start": "smaller is closer to the start",
    "length": "tokens; neither end is better",
    "unfinished": "share of responses; lower is better",
    "distinct_2": "higher is more varied",
    "label_accuracy": "of the round's labels; higher is better",
    "label_ties": "share of labels; neither end is better",
}
_ERRORS = {
    "reward": "reward_error",
    "kl_to_start": "kl_error",
    "log_ratio_to_start": "log_ratio_error",
}
_COUNT = "measured_prompts"
_NOTE = "± is one standard error over held-out prompts. A round has one run, so nothing here says how far another seed would move it."


def rounds_section(path: Path, title: str, identity: str) -> Html:
    """Returns what a recipe measured after each of its rounds.

    Args:
      path: the rounds.json.
      title: the name under which the page shows it.
      identity: the section's id in the page.
    """
    rounds: Sequence[Mapping[str, Any]] = read_json(path)["rounds"]
    measured = [_measures(entry) for entry in rounds]
    skipped = {*_MEASURES, *_ERRORS.values(), _COUNT, "seconds"}
    trained = [
        {name: value for name, value in entry.items() if name not in skipped} for entry in rounds
    ]
    counts = sorted({entry[_COUNT] for entry in rounds if _COUNT in entry})
    after = (
        [_NOTE] if counts else [_NOTE, "These rounds do not record the number of held-out prompts."]
    )
    figures = [
        plots.by_round(
            f"{name} by round ({title})",
            [(str(entry["round"]), entry[name], _error(entry, name)) for entry in known],
            name,
            direction,
            f"n = {', '.join(map(str, counts))} prompts." if counts else "",
        )
        for name, direction in _MEASURES.items()
        if len(known := [entry for entry in rounds if entry.get(name) is not None]) > 1
    ]
    if against := _against_kl(rounds, title, counts):
        figures.insert(0, against)
    return section(
        identity,
        f"Rounds: {title}",
        table("The policy after each round, on held-out prompts", measured, after=after),
        element("div", *figures, class_="figures small") if figures else Html(""),
        table("What each round was trained on, and its metrics in training", trained),
    )


def _against_kl(
    rounds: Sequence[Mapping[str, Any]], title: str, counts: Sequence[int]
) -> Html | None:
    """Returns the reward against the distance from the start, round after round; None if either was not measured."""
    known = [entry for entry in rounds if {"reward", "kl_to_start"} <= entry.keys()]
    points = []
    for place, entry in enumerate(known):
        reward, error = entry["reward"], _error(entry, "reward")
        points.append(
            plots.Point(
                name=title,
                line=title,
                step=place,
                label=str(entry["round"]),
                x=entry["kl_to_start"],
                x_error=_error(entry, "kl_to_start"),
                reward=reward,
                low=None if error is None else reward - error,
                high=None if error is None else reward + error,
            )
        )
    if len(points) < 2:
        return None
    told = f"n = {', '.join(map(str, counts))} prompts. " if counts else ""
    return plots.reward_against(
        f"Reward against KL by round ({title})",
        points,
        "KL from the start, nats a response\n(left: closer to the start)",
        "the recipe's judge",
        f"{told}Bars are one standard error.",
    )


def _measures(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the row of a round; a measure with a standard error is a text."""
    row: dict[str, Any] = {"round": str(entry["round"]), "n (prompts)": entry.get(_COUNT)}
    for name in _MEASURES:
        value, error = entry.get(name), _error(entry, name)
        row[name] = value if value is None or error is None else f"{value:.3f} ± {error:.3f}"
    return row


def _error(entry: Mapping[str, Any], name: str) -> float | None:
    """Returns the standard error of a measure; that of a single prompt is unknown, and recorded as 0."""
    return None if entry.get(_COUNT) == 1 else entry.get(_ERRORS.get(name, ""))
