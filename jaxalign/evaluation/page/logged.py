"""The part of a report about logged responses: distribution of log-ratios, and the worst and best residuals with their texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxalign.evaluation.page import plots
from jaxalign.evaluation.page.elements import Html, element, join, table
from jaxalign.evaluation.page.responses import LoggedResponse

_EXAMPLES = 5


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
