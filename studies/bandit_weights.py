"""Several objectives in a bandit: MODPO reaches the closed-form optimum of every weighting, loss weighting does not."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxalign.losses import multi_objective, pairwise
from jaxalign.objectives.responses import Pairwise
from jaxalign.training.optimizers import adamw
from studies.bandit_methods import weighted
from studies.bandit_problem import Bandit, TabularPolicy, batch_of, divergence, softmax, solve

ARMS, BETA, STEPS = 40, 0.5, 6000
WEIGHTS = (0.1, 0.25, 0.5, 0.75, 0.9)


class TwoRewards(NamedTuple):
    """One prompt with `ARMS` responses: log pi_ref and two conflicting rewards, each ``[1, ARMS]``."""

    reference_log_probs: np.ndarray
    first: np.ndarray
    second: np.ndarray

    def optimum(self, weight: float) -> np.ndarray:
        """Returns log of pi_ref exp((w r1 + (1 - w) r2) / beta) / Z."""
        mixed = weight * self.first + (1 - weight) * self.second
        return np.log(softmax(self.reference_log_probs + mixed / BETA))

    def value(self, log_policy: np.ndarray, weight: float) -> float:
        """``E[w r1 + (1 - w) r2] - beta KL(pi || pi_ref)``."""
        policy = np.exp(log_policy)
        mixed = weight * self.first + (1 - weight) * self.second
        return float(np.sum(policy * (mixed - BETA * (log_policy - self.reference_log_probs))))


def make_problem() -> TwoRewards:
    """Draws a problem whose rewards have correlation -0.6."""
    generator = np.random.default_rng(0)
    first, noise, logits = generator.normal(size=(3, 1, ARMS))
    return TwoRewards(np.log(softmax(logits)), first, -0.6 * first + 0.8 * noise)


def pairs(problem: TwoRewards, rewards: np.ndarray) -> dict[str, np.ndarray]:
    """Makes a batch of every ordered pair, weighted by the Bradley-Terry probability of its label under ``rewards``."""
    first, second = np.nonzero(~np.eye(ARMS, dtype=bool))
    actions = np.stack([first, second], axis=1)
    chance = 1 / (1 + np.exp(rewards[0, second] - rewards[0, first]))
    bandit = Bandit(problem.reference_log_probs, np.full((1, ARMS), 1 / ARMS), problem.first)
    prompts = np.zeros(len(first), np.int64)
    return batch_of(
        bandit,
        prompts,
        actions,
        density_ratios=np.repeat(2 * chance[:, None], 2, axis=1),
        margin_rewards=problem.second[0, actions],
    )


def train(
    problem: TwoRewards, loss_function: Callable[..., Any], batch: dict[str, np.ndarray]
) -> np.ndarray:
    """Trains until convergence and returns the log-policy ``[1, ARMS]``."""
    policy = TabularPolicy(tuple(map(tuple, problem.reference_log_probs.tolist())))
    objective = Pairwise(policy=policy, loss_function=weighted(loss_function, pairs=True))
    optimizer = adamw(0.05, schedule="cosine", total_steps=STEPS)
    bandit = Bandit(problem.reference_log_probs, problem.first, problem.first)
    found = solve(bandit, objective, steps=STEPS, batch=batch, optimizer=optimizer)
    return np.asarray(found, np.float64)


def modpo(problem: TwoRewards, weight: float) -> np.ndarray:
    """Trains MODPO with pairs of the first objective and margins of the second."""
    loss = functools.partial(
        multi_objective.modpo_rewards_loss, beta=BETA, weight=weight, margin_weight=1 - weight
    )
    return train(problem, loss, pairs(problem, problem.first))


def loss_weighting(problem: TwoRewards, weight: float) -> np.ndarray:
    """Trains ``w DPO(pairs of 1) + (1 - w) DPO(pairs of 2)``, which is DPO on the same pairs with mixed label weights."""
    one, two = pairs(problem, problem.first), pairs(problem, problem.second)
    mixed = weight * one["density_ratios"] + (1 - weight) * two["density_ratios"]
    loss = functools.partial(pairwise.dpo_loss, beta=BETA)
    return train(problem, loss, one | {"density_ratios": mixed})


def total_variation(one: np.ndarray, other: np.ndarray) -> float:
    """Returns half the sum of absolute differences of probabilities."""
    return float(0.5 * np.abs(np.exp(one) - np.exp(other)).sum())


def section() -> str:
    """Trains both methods for five weights and returns a Markdown section."""
    problem = make_problem()
    lines = [
        "## Two objectives\n",
        f"One prompt, {ARMS} responses, rewards with correlation -0.6, beta {BETA}, Bradley-Terry pairs of either",
        "reward in exact expectation,",
        f"{STEPS:,} steps of Adam. For a weight w the optimum is pi_ref exp((w r1 + (1 - w) r2) / beta) / Z. `distance` is the total "
        "variation",
        "distance from the optimum, `KL` is KL(optimum || pi), and `value` is `E[w r1 + (1 - w) r2] - beta KL(pi || pi_ref)`, which the "
        "optimum",
        "maximises. MODPO reaches the optimum; the sum of weighted losses does not, although its value is close.\n",
        "| w | MODPO: distance | KL | value | loss weighting: distance | KL | value | optimum: value |",
        "|---" * 8 + "|",
    ]
    for weight in WEIGHTS:
        best = problem.optimum(weight)
        cells = []
        for method in (modpo, loss_weighting):
            found = method(problem, weight)
            far = divergence(best, found)
            cells += [
                f"{total_variation(best, found):.4f}",
                "< 1e-6" if far < 1e-6 else f"{far:.2g}",
                f"{problem.value(found, weight):.4f}",
            ]
        lines.append(f"| {weight:g} | {' | '.join(cells)} | {problem.value(best, weight):.4f} |")
    return "\n".join(lines) + "\n"
