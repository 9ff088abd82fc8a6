"""The part of a report that compares policies across evaluations: averages over seeds, reward against KL and against length."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.evaluation.page import plots
from jaxalign.evaluation.page.elements import Html, element, section, table
from jaxalign.evaluation.page.evaluations import Evaluation
from jaxalign.evaluation.report_records import (
    CHECKPOINT,
    CONDITIONS,
    NUMBER,
    aggregate,
    conditions,
    evaluation_records,
    run_folder,
)

_SEED_NOTE = (
    "seeds: the number of distinct checkpoints in a row; ± is the sample deviation over them, which a single seed does not have. "
    "Evaluations by different judges, on other prompts or at another temperature are never averaged."
)
# What a record keeps beside its metrics; the run and the step are no columns.
_RUN, _STEP = "run folder", "evaluated step"
_KEYS = ("policy", *CONDITIONS, CHECKPOINT, _RUN, _STEP)


def comparison_section(evaluations: Sequence[Evaluation], digits: int) -> Html:
    """Returns averages over seeds where there are several evaluations, and plots of reward against KL and length by judge."""
    parts = []
    judges = list(dict.fromkeys(judge for each in evaluations for judge in each.judges))
    if len(evaluations) > 1:
        parts = [_scores(evaluations, judge, digits) for judge in judges]
        parts.append(_without_judge(evaluations, digits))
    for judge in judges:
        for described, members in _alike(evaluations, judge).items():
            figures = [
                _against_kl(members, judge, described),
                _against_length(members, judge, described),
                *(_by_length(each, judge, described) for each in members),
            ]
            drawn = [figure for figure in figures if figure]
            if drawn:
                parts.append(element("div", *drawn, class_="figures"))
    return section("comparison", "Reward, distance and length", *parts) if any(parts) else Html("")


def _scores(evaluations: Sequence[Evaluation], judge: str, digits: int) -> Html:
    """Returns the scores and win rates by one judge, averaged over seeds."""
    records = [
        {name: value for name, value in record.items() if _is_score(name) or name in _KEYS}
        for each in evaluations
        if judge in each.judges
        for record in _records(each, judge)
    ]
    rows = aggregate(_apart_by_step(records), by=("policy",), digits=digits)
    caption = f"Policies over all evaluations by judge {judge}"
    return table(caption, rows, digits=digits, after=[_SEED_NOTE])


def _without_judge(evaluations: Sequence[Evaluation], digits: int) -> Html:
    records = [
        {name: value for name, value in record.items() if not _is_score(name) and name != "judge"}
        for each in evaluations
        for record in _records(each, "")
    ]
    rows = aggregate(_apart_by_step(records), by=("policy",), digits=digits)
    caption = "Policies over all evaluations: distance, length and value"
    return table(caption, rows, digits=digits, after=[_SEED_NOTE])


def _records(evaluation: Evaluation, judge: str) -> list[dict[str, Any]]:
    records = evaluation_records(evaluation.path, judge=judge)
    for record, report in zip(records, evaluation.policies.values(), strict=True):
        record[_RUN] = run_folder(report["checkpoint"]) if "checkpoint" in report else None
        record[_STEP] = report.get("step")
    return records


def _apart_by_step(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Gives several steps of one run rows of their own: they are no seeds."""
    steps: dict[tuple[str, Any], set[Any]] = {}
    for record in records:
        steps.setdefault((record["policy"], record[_RUN]), set()).add(record[_STEP])
    several = {policy for (policy, run), found in steps.items() if run and len(found) > 1}
    named = [
        {**record, "policy": f"{record['policy']}, step {record[_STEP]}"}
        if record["policy"] in several
        else record
        for record in records
    ]
    hidden = (_RUN, _STEP)
    return [{key: value for key, value in each.items() if key not in hidden} for each in named]


def _is_score(name: str) -> bool:
    return name in ("reward", "slot error") or name.startswith("win rate")


def _alike(evaluations: Sequence[Evaluation], judge: str) -> dict[str, list[Evaluation]]:
    """Returns the evaluations that may share a plot, by what they have in common."""
    groups: dict[str, list[Evaluation]] = {}
    for each in evaluations:
        if judge in each.judges:
            _, common = conditions(each.path, each.content, judge)
            count = common.pop(NUMBER)
            if common["judge"] == judge:
                del common["judge"]
            told = [f"n = {count} prompts"] if count is not None else []
            told += [f"{name} {value}" for name, value in common.items() if value is not None]
            described = ", ".join(told)
            groups.setdefault(described, []).append(each)
    return groups


def _points(
    evaluations: Sequence[Evaluation],
    judge: str,
    place: Callable[[Mapping[str, Any]], tuple[float, float | None] | None],
) -> list[plots.Point]:
    """Returns a point for each evaluated checkpoint that has the quantity of the other axis, which `place` returns with its error."""
    points: dict[tuple[str, int, str], plots.Point] = {}
    for each in evaluations:
        for name, report in each.policies.items():
            found = place(report)
            if found is None:
                continue
            line, step = _line(each, name, report), int(report.get("step") or 0)
            reward = report["rewards"][judge]
            # The same checkpoint in several evaluations is one point.
            points.setdefault(
                (line, step, name),
                plots.Point(
                    name=name,
                    line=line,
                    step=step,
                    label=f"step {step}",
                    x=found[0],
                    x_error=found[1],
                    reward=reward["mean"],
                    low=reward.get("low"),
                    high=reward.get("high"),
                ),
            )
    return _named_by_run(list(points.values()))


def _named_by_run(points: Sequence[plots.Point]) -> list[plots.Point]:
    """Names a line by its run where its points have names of their own, which become their labels."""
    names: dict[str, set[str]] = {}
    for point in points:
        names.setdefault(point.line, set()).add(point.name)
    return [
        point._replace(name=Path(point.line).name, label=point.name)
        if len(names[point.line]) > 1
        else point
        for point in points
    ]


def _line(evaluation: Evaluation, name: str, report: Mapping[str, Any]) -> str:
    return run_folder(report.get("checkpoint", f"{evaluation.path}:{name}"))


def _against_kl(evaluations: Sequence[Evaluation], judge: str, described: str) -> Html:
    def place(report: Mapping[str, Any]) -> tuple[float, float | None] | None:
        kl = report.get("kl")
        if kl is None:
            return None
        known = kl.get("standard_error") and kl.get("count", 0) > 1
        return float(kl["mean"]), float(kl["standard_error"]) if known else None

    points = _points(evaluations, judge, place)
    if not points:
        return Html("")
    return plots.reward_against(
        f"Reward against KL, judge {judge}",
        points,
        "KL from the reference, nats a response\n(left: closer to the reference)",
        judge,
        f"{described}. Vertical bars: intervals of the score, where there are any; horizontal: one standard error.",
    )


def _against_length(evaluations: Sequence[Evaluation], judge: str, described: str) -> Html:
    points = _points(
        evaluations,
        judge,
        lambda report: None if report.get("length") is None else (float(report["length"]), None),
    )
    if not points:
        return Html("")
    return plots.reward_against(
        f"Reward against length, judge {judge}",
        points,
        "mean length (tokens; neither end is better)",
        judge,
        f"{described}.",
    )


def _by_length(evaluation: Evaluation, judge: str, described: str) -> Html:
    if evaluation.responses is None:
        return Html("")
    found = {
        name: evaluation.responses.reward_by_length(judge, name) for name in evaluation.policies
    }
    found = {name: bins for name, bins in found.items() if len(bins) > 1}
    if not found:
        return Html("")
    counts = [count for bins in found.values() for _, _, count in bins]
    return plots.reward_by_length(
        f"Reward by length of the responses, judge {judge} ({evaluation.title})",
        {name: [(x, y) for x, y, _ in bins] for name, bins in found.items()},
        judge,
        f"Bins by quantiles of each policy's own lengths, n = {min(counts)} to {max(counts)} responses a bin. {described}.",
    )
