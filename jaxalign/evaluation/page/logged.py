"""The parts of a report about logged responses: calibration of V, ranking, log-ratios, and the worst and best residuals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxalign.evaluation import summary
from jaxalign.evaluation.page import plots
from jaxalign.evaluation.page.elements import Html, element, join, table
from jaxalign.evaluation.page.responses import LoggedResponse
from jaxalign.evaluation.ranking import OWN_METHODS

_EXAMPLES = 5


def values_part(policies: Mapping[str, Any]) -> Html:
    """Returns the calibration of value networks; nothing if there are none. `policies` is that part of an evaluation.json."""
    rows, drawn = [], []
    for name, report in policies.items():
        by_responses = report.get("value", {})
        for where, found in by_responses.items():
            rows.append(
                {
                    "policy, logged responses": f"{name}, {where}",
                    "n": found["count"],
                    "prompts": found.get("prompts"),
                    "mean V": found["mean_value"],
                    "mean target": found["mean_target"],
                    "correlation": found.get("correlation"),
                    "by prompt": found.get("prompt_correlation"),
                    "slope": found.get("slope"),
                    "R²": found.get("r_squared"),
                    "mean residual": found.get("mean_residual"),
                    "rms residual": found.get("rms_residual"),
                }
            )
        binned = {where: found for where, found in by_responses.items() if found.get("bins")}
        if binned:
            tau = next(iter(binned.values())).get("tau")
            note = f"Bins of equal numbers of responses by V; bars are one standard error; tau = {tau}."
            drawn.append(plots.calibration(f"Calibration of V: {name}", binned, note))
    if not rows:
        return Html("")
    after = [
        "V against its target, r - tau * log-ratio. At the optimum: equal means, slope 1, mean residual 0. R² < 0: worse than a constant."
    ]
    made = table("Value networks on logged responses", rows, after=after)
    return join(element("h3", "Value networks"), made, _grid(drawn))


def _grid(figures: Sequence[Html]) -> Html:
    return element("div", *figures, class_="figures") if figures else Html("")


def ranking_part(policies: Mapping[str, Any]) -> Html:
    """Returns how well each quantity ranks logged responses; nothing if that was not measured."""
    rows: list[dict[str, Any]] = []
    reasons: list[str] = []
    shown = set()
    for name, report in policies.items():
        for method, result in report.get("ranking", {}).items():
            own = method.startswith(OWN_METHODS)
            label = f"{name}: {method}" if own else method
            if label in shown:
                continue
            shown.add(label)
            reasons += summary.interval_notes(result)
            rows.append(
                {
                    "method": label,
                    "n (responses)": result.get("responses"),
                    **_agreement_columns(result),
                    "order": own,
                }
            )
    if not rows:
        return Html("")
    # The baselines, which are equal for all policies, come last.
    rows.sort(key=lambda row: not row.pop("order"))
    after = [
        "How well each quantity orders logged responses by their feedback; higher is better, 0.5 is chance for AUC and pairs in order.",
        *reasons,
    ]
    return join(element("h3", "Ranking of logged responses"), table("Ranking", rows, after=after))


def judge_agreement_part(judge: str, agreement: Mapping[str, Any]) -> Html:
    """Returns how far a judge agrees with the feedback of logged responses."""
    after = [
        f"How well judge {judge} orders logged responses by the feedback that people gave; 0.5 is chance for AUC and pairs in order. A "
        "judge near chance says little about what people prefer, however clear its win rates are.",
        *summary.interval_notes(agreement),
    ]
    row = {"n (responses)": agreement.get("responses"), **_agreement_columns(agreement)}
    return table(f"Agreement of judge {judge} with logged feedback", [row], after=after)


def _agreement_columns(result: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "good": result.get("good"),
        "Spearman": _bounds(result, "spearman"),
        "AUC": _bounds(result, "auc"),
        "within prompts": result["within_prompt_spearman"],
        "pairs in order": result["pairwise_accuracy"],
        "pairs": result.get("pairs"),
    }


def _bounds(result: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    if result.get(name) is None:
        return None
    return {
        "mean": result[name],
        "low": result.get(f"{name}_low"),
        "high": result.get(f"{name}_high"),
    }


def logged_section(
    logged: Mapping[str, Sequence[LoggedResponse]], order: Sequence[str], title: str
) -> Html:
    """Returns the plots and tables, as far as an evaluation stored log-ratios and residuals; nothing if it did not.

    Args:
      logged: by policy, the logged responses.
      order: all policies of the evaluation in their order, which gives them their colours.
      title: the name of the evaluation.
    """
    # The reference's own log-ratios are 0 everywhere.
    moved = {
        name: [each.log_ratio for each in responses]
        for name, responses in logged.items()
        if any(each.log_ratio for each in responses)
    }
    parts = []
    if moved:
        note = "Logged responses of the evaluated data; the dashed line is the reference."
        caption = f"Log-ratios of logged responses ({title})"
        parts.append(plots.log_ratio_distribution(caption, moved, order, note))
    for name, responses in logged.items():
        known = [each for each in responses if each.residual is not None]
        if known:
            parts.append(_residuals(name, known))
    return join(element("h3", "Log-ratios and residuals"), *parts) if parts else Html("")


def _residuals(name: str, responses: Sequence[LoggedResponse]) -> Html:
    ordered = sorted(responses, key=lambda each: abs(each.residual or 0.0))
    best, worst = ordered[:_EXAMPLES], ordered[::-1][:_EXAMPLES]
    count = f"n = {len(responses)}"
    return join(
        table(
            f"{name}: the largest residuals r - V - tau * log-ratio ({count})",
            [_row(each) for each in worst],
            after=[
                "0 is best. Positive: the response is better than V and the policy say; negative: worse."
            ],
        ),
        table(f"{name}: the residuals nearest 0 ({count})", [_row(each) for each in best]),
    )


def _row(each: LoggedResponse) -> dict[str, Any]:
    return {
        "prompt": element("span", each.prompt, dir="auto", class_="text"),
        "logged response": element("span", each.response, dir="auto", class_="text"),
        "feedback": each.feedback,
        "log-ratio": each.log_ratio,
        "V": each.value,
        "residual": each.residual,
    }
