"""The sections of a report about evaluations: policies, win rates, distance from the reference, V, and ranking."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.errors import UserError
from jaxalign.evaluation import summary
from jaxalign.evaluation.page import plots
from jaxalign.evaluation.page.elements import (
    Html,
    details,
    element,
    fields,
    join,
    notes,
    section,
    table,
)
from jaxalign.evaluation.page.logged import (
    judge_agreement_part,
    logged_section,
    ranking_part,
    values_part,
)
from jaxalign.evaluation.page.responses import (
    SIMILAR,
    LoggedResponse,
    Responses,
    read_logged,
    read_responses,
)
from jaxalign.evaluation.report_records import read_json

_KL_NOTE = (
    "KL is summed exactly over the vocabulary at every position along responses sampled at temperature 1, in nats a response, "
    "against {reference}; ± is one standard error over prompts."
)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """An evaluation folder as it was read.

    Attributes:
      path: its evaluation.json.
      title: the name under which the page shows it.
      content: the content of evaluation.json.
      judges: the judges that the page shows.
      responses: the responses, if they lie beside it.
      logged: by policy, logged responses with their log-ratios, if they lie beside it.
    """

    path: Path
    title: str
    content: Mapping[str, Any]
    judges: list[str]
    responses: Responses | None
    logged: Mapping[str, Sequence[LoggedResponse]]

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings of the evaluation."""
        return self.content["settings"]

    @property
    def policies(self) -> Mapping[str, Any]:
        """What is known about each policy."""
        return self.content["policies"]

    @property
    def first(self) -> str:
        """The policy with which the others are compared."""
        return next(iter(self.policies))


def read_evaluation(path: Path, title: str, judge: str = "") -> Evaluation:
    """Reads an evaluation.json and the files beside it.

    Args:
      path: the evaluation.json.
      title: the name under which the page shows it.
      judge: the only judge to show; all if empty.

    Raises:
      UserError: a file is malformed, or there is no such judge.
    """
    content = read_json(path)
    judges = [str(each) for each in content["settings"]["judges"]]
    if judge and judges and judge not in judges:
        raise UserError(f"{path}: has no judge '{judge}', only {', '.join(judges)}.")
    shown = [judge] if judge and judges else judges
    policies = content["policies"]
    return Evaluation(
        path,
        title,
        content,
        shown,
        read_responses(path.parent, policies, shown) if shown else None,
        read_logged(path.parent, policies),
    )


def evaluation_section(evaluation: Evaluation, identity: str) -> Html:
    """Returns everything about one evaluation, except plots that may compare several."""
    settings = evaluation.settings
    facts = f"{settings.get('num_prompts')} prompts of {settings.get('prompts')}"
    if settings.get("split"):
        facts += f", split {settings['split']}"
    facts += f"; responses at temperature {settings.get('temperature')}"
    cautions = [
        line for block in summary.cautions(evaluation.content) for line in block.splitlines()
    ]
    parts = [element("p", facts, class_="facts"), notes(cautions)]
    parts += [_judge_part(evaluation, judge) for judge in evaluation.judges]
    parts += [_judges_side_by_side(evaluation), _lengths_and_distance(evaluation)]
    parts += [values_part(evaluation.policies), ranking_part(evaluation.policies)]
    order = list(evaluation.policies)
    parts += [logged_section(evaluation.logged, order, evaluation.title), _settings(evaluation)]
    return section(identity, f"Evaluation: {evaluation.title}", *parts)


def _judge_part(evaluation: Evaluation, judge: str) -> Html:
    """Returns the tables and bars of one judge; scores of judges are never pooled."""
    settings, first = evaluation.settings, evaluation.first
    rates = evaluation.content["win_rates"].get(judge, {})
    rows = []
    for name, report in evaluation.policies.items():
        reward = report["rewards"][judge]
        row: dict[str, Any] = {
            "policy": name,
            "n (prompts)": reward.get("count"),
            "mean score": reward,
        }
        row[f"win rate over {first}"] = rates.get(name, {}).get(first)
        if "slot_error_rate" in report and judge == "slot_error":
            row["slot error (lower is better)"] = report["slot_error_rate"]
        rows.append(row)
    after = [
        "Mean score: higher is better. Win rate: share of prompts on which the policy scores higher, ties count half; above 0.5 is better.",
        f"{summary.interval_note(settings).capitalize()}.",
    ]
    parts = [element("h3", f"Judge {judge}"), table(f"Policies, judge {judge}", rows, after=after)]
    over_first = {
        name: rates[name][first] for name in rates if name != first and first in rates[name]
    }
    if over_first:
        note = f"{summary.interval_note(settings).capitalize()}."
        parts.append(
            plots.win_rate_bars(f"Win rates over {first}, judge {judge}", over_first, first, note)
        )
    if len(rates) > 2:
        matrix = [
            {"row over column": name, **{other: rates[name].get(other) for other in rates}}
            for name in rates
        ]
        count = settings.get("num_prompts")
        parts.append(table(f"Win rates of all pairs, judge {judge} (n = {count} prompts)", matrix))
    parts.append(_at_equal_length(evaluation, judge))
    agreement = evaluation.content.get("judge_agreement", {}).get(judge)
    if agreement:
        parts.append(judge_agreement_part(judge, agreement))
    return join(*parts)


def _lengths_and_distance(evaluation: Evaluation) -> Html:
    """Returns what is known about the responses without a judge, and how far each policy is from the reference."""
    count = evaluation.settings.get("num_prompts")
    rows = [
        {
            "policy": name,
            "n (prompts)": count,
            "KL (nats a response)": _kl(report),
            "tokens": report.get("length"),
            "unfinished": report.get("unfinished"),
            "distinct-1": report.get("distinct_1"),
            "distinct-2": report.get("distinct_2"),
            "prompts cut": report.get("cut_prompts"),
            "unknown pieces": report.get("unknown_pieces"),
        }
        for name, report in evaluation.policies.items()
    ]
    after = ["Unfinished, cut and unknown are shares; distinct-n is the share of distinct n-grams."]
    if any("kl" in report for report in evaluation.policies.values()):
        after.insert(0, _KL_NOTE.format(reference=_reference(evaluation)))
    made = table("Responses and distance from the reference", rows, after=after)
    return join(element("h3", "Lengths and distance"), made)


def _kl(report: Mapping[str, Any]) -> str | Html | None:
    if report.get("is_reference"):
        return "0 (the reference)" if "kl" in report else None
    if "kl" not in report:
        return None
    kl = report["kl"]
    shown = element("data", f"{kl['mean']:.3f}", value=repr(kl["mean"]))
    # The error of a single prompt is unknown, and recorded as 0.
    error = f" ± {kl['standard_error']:.3f}" if kl.get("standard_error") and kl["count"] > 1 else ""
    return join(shown, error, f" (n = {kl['count']})" if "count" in kl else "")


def _reference(evaluation: Evaluation) -> str:
    names = [name for name, report in evaluation.policies.items() if report.get("is_reference")]
    return names[0] if names else str(evaluation.settings.get("reference", "the reference"))


def _at_equal_length(evaluation: Evaluation, judge: str) -> Html:
    """Returns win rates among responses of about equal length, which a preference for long responses cannot explain."""
    responses, settings = evaluation.responses, evaluation.settings
    if responses is None:
        return Html("")
    rows = []
    for name in evaluation.policies:
        if name == evaluation.first:
            continue
        rate, count = responses.at_equal_length(
            judge,
            name,
            evaluation.first,
            bootstrap=int(settings.get("bootstrap", 0)),
            seed=int(settings.get("seed", 0)),
        )
        rows.append(
            {"policy": name, "n (prompts)": count, f"win rate over {evaluation.first}": rate}
        )
    share = f"{SIMILAR:.0%}"
    return table(
        f"Win rates where both responses are of about equal length, judge {judge}",
        rows if any(row["n (prompts)"] for row in rows) else [],
        after=[
            f"Only prompts on which the shorter response has at least {share} of the longer one's tokens; these prompts were not drawn "
            "at random, so the rate describes them alone."
        ],
    )


def _judges_side_by_side(evaluation: Evaluation) -> Html:
    if len(evaluation.judges) < 2:
        return Html("")
    rows = [
        {"policy": name, **{judge: report["rewards"][judge] for judge in evaluation.judges}}
        for name, report in evaluation.policies.items()
    ]
    count = evaluation.settings.get("num_prompts")
    return table(f"Mean scores of all judges, each on its own scale (n = {count} prompts)", rows)


def _settings(evaluation: Evaluation) -> Html:
    shown = {"file": str(evaluation.path), **evaluation.settings}
    rows = [
        {
            "policy": name,
            "checkpoint": report.get("checkpoint"),
            "step": report.get("step"),
            "objective": report.get("objective"),
        }
        for name, report in evaluation.policies.items()
    ]
    request = evaluation.content.get("request") or {}
    wanted = request.get("settings") or {}
    return details(
        "Settings and data of this evaluation",
        table("Checkpoints", rows),
        fields("Settings (the records left out stand under `rejected`)", shown),
        fields("All settings as given", {k: v for k, v in wanted.items() if k not in shown}),
    )
