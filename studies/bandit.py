"""Exact optimum: a tabular bandit, trained to convergence with the package's objectives, optimizers and step function.

Run ``python -m studies.bandit``. The bandit has six prompts, five responses, and a behaviour policy mu that is not the reference policy.
The optimum of KL-regularised reward is known in closed form, so that the study can test whether a method reaches it. This module compares
DRO with different values; `bandit_methods` has the other methods, `bandit_weights` several objectives.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from jaxalign.networks.value_variants import ScalarValue, ZeroValue
from jaxalign.objectives.base import Objective
from jaxalign.objectives.dro import DROP, DROV
from studies.bandit_problem import (
    Bandit,
    TabularPolicy,
    TabularValue,
    cell,
    judge,
    make_bandit,
    solve,
)


def methods(bandit: Bandit, temperature: float) -> dict[str, Objective]:
    """Returns the methods of the table, all with the same class of policies."""
    policy = TabularPolicy(tuple(map(tuple, bandit.reference_log_probs.tolist())))
    shared: dict[str, Any] = {"policy": policy, "temperature": temperature}
    return {
        "DRO-V": DROV(value=TabularValue(), **shared),
        "DRO-V, printed 1/2 for tau/2": DROV(value=TabularValue(), rescale="literal", **shared),
        "V = 0": DROV(value=ZeroValue(), **shared),
        "one learned constant V": DROV(value=ScalarValue(), **shared),
        "batch mean of V": DROV(value=TabularValue(), values_per_batch="single", **shared),
        "DRO-P": DROP(**shared),
    }


def table(temperatures: tuple[float, ...], steps: int) -> str:
    """Trains every method at every temperature and returns a Markdown table."""
    bandit = make_bandit()
    header = (
        "| method | "
        + " | ".join(f"tau {tau:g}: KL(pi* \\|\\| pi) / gain lost" for tau in temperatures)
        + " |"
    )
    lines = [header, "|---" * (len(temperatures) + 1) + "|"]
    names = methods(bandit, 1.0)
    for name in names:
        cells = []
        for tau in temperatures:
            outcome = judge(bandit, solve(bandit, methods(bandit, tau)[name], steps=steps), tau)
            cells.append(cell(outcome))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    from studies import bandit_methods, bandit_weights

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("docs/results/exact_optimum.md"))
    parser.add_argument("--steps", type=int, default=60_000)
    arguments = parser.parse_args()
    temperatures = (0.3, 1.0, 5.0)
    text = (
        "# Exact optimum: which methods reach the optimal policy\n\n"
        "    python -m studies.bandit\n\n"
        "A bandit whose optimum is known in closed form: six prompts with five possible responses each, whose probabilities are the\n"
        "policy's parameters. Logged responses come from a behaviour policy mu that is not the reference policy pi_ref, and rewards r\n"
        "have no noise. Each method trains on all data in every step, with the same step function as a T5.\n"
        "\n"
        "DRO maximises `E r - tau KL(pi || pi_ref)`, and the maximum is at pi* = pi_ref exp(r / tau) / Z (Z normalises). A cell shows two\n"
        "numbers. The first is the distance of the trained policy from pi*: KL(pi* || pi) in nats, averaged over prompts (0: pi* is\n"
        "reached). The second is the share of the attainable gain in the maximised quantity that was lost (0 %: nothing; 100 %: the\n"
        "policy is no better than the untrained one; more: it is worse).\n"
        "\n"
        "## DRO and its values\n\n"
        f"{arguments.steps:,} steps of gradient descent. The rows differ in the value V(x) of a prompt.\n\n"
        + table(temperatures, arguments.steps)
        + "\n"
        + bandit_methods.section(temperatures)
        + "\n"
        + bandit_weights.section()
    )
    arguments.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
