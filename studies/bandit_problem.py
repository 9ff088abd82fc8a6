"""A tabular bandit whose optimum is known in closed form, and training of policies on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxalign.losses.dro import optimal_policy_log_probs
from jaxalign.networks.protocols import PolicyNetwork, PromptValuePredictor
from jaxalign.objectives.base import Objective
from jaxalign.training.optimizers import Optimizer, sgd
from jaxalign.training.state import build_transformations, create_state
from jaxalign.training.step import make_train_step

PROMPTS = 6
RESPONSES = 5
SAMPLES = 400


class Bandit(NamedTuple):
    """The problem: log pi_ref, mu and rewards, each ``[prompts, responses]``; pi_ref and mu are multiples of 1/SAMPLES."""

    reference_log_probs: np.ndarray
    behaviour: np.ndarray
    rewards: np.ndarray


class TabularScores(NamedTuple):
    """Scores of a table: log-probabilities and lengths (1)."""

    log_probs: Array
    lengths: Array


@dataclasses.dataclass(frozen=True)
class TabularPolicy(PolicyNetwork):
    """A softmax over a table of logits; prompts are ``example_ids``, responses ``actions``."""

    initial_logits: tuple[tuple[float, ...], ...]

    def init(self, rng: Array) -> dict[str, Array]:
        """Returns the table with its initial values, ``initial_logits``."""
        del rng
        return {"logits": jnp.asarray(self.initial_logits, jnp.float32)}

    def score(
        self, params: Mapping[str, Array], batch: Mapping[str, Array], *, rng: Array | None = None
    ) -> TabularScores:
        """Returns the log-probability of every logged response."""
        del rng
        log_probs = jax.nn.log_softmax(params["logits"])[batch["example_ids"][:, 0]]
        chosen = jnp.take_along_axis(log_probs, batch["actions"][:, 0], axis=-1)
        return TabularScores(chosen, jnp.ones_like(chosen))


@dataclasses.dataclass(frozen=True)
class TabularValue(PromptValuePredictor):
    """One value per prompt, initially 0."""

    def init(self, rng: Array) -> dict[str, Array]:
        """Returns the table of values."""
        del rng
        return {"table": jnp.zeros((PROMPTS,), jnp.float32)}

    def values(
        self, params: Mapping[str, Array], batch: Mapping[str, Array], *, rng: Array | None = None
    ) -> Float[Array, " examples"]:
        """Returns V of every row's prompt."""
        del rng
        return params["table"][batch["example_ids"][:, 0]]


def make_bandit() -> Bandit:
    """Draws the reference policy, the behaviour policy and the rewards; rewards have a large prompt-dependent part."""
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(PROMPTS, RESPONSES))
    behaviour = softmax(generator.normal(size=(PROMPTS, RESPONSES)))
    rewards = generator.normal(size=(PROMPTS, RESPONSES)) + 1.5 * generator.normal(
        size=(PROMPTS, 1)
    )
    reference = np.stack([largest_remainder(row, SAMPLES) for row in softmax(logits)])
    counts = np.stack([largest_remainder(row, SAMPLES) for row in behaviour])
    return Bandit(np.log(reference / SAMPLES), counts / SAMPLES, rewards)


def bandit_batch(bandit: Bandit) -> dict[str, np.ndarray]:
    """Makes one batch of the whole data set, in which responses occur in proportion to mu; fields are ``[prompts, 1, SAMPLES]``."""
    counts = np.rint(bandit.behaviour * SAMPLES).astype(int)
    actions = np.stack([np.repeat(np.arange(RESPONSES), row) for row in counts])
    return batch_of(bandit, np.arange(PROMPTS), actions)


def batch_of(
    bandit: Bandit, prompts: np.ndarray, actions: np.ndarray, **fields: np.ndarray
) -> dict[str, np.ndarray]:
    """Makes a batch of the given responses.

    Args:
      bandit: the problem.
      prompts: ``[rows]``.
      actions: ``[rows, responses]``.
      fields: further per-response fields ``[rows, responses]``, or replacements of the default fields.
    """
    rows = prompts[:, None]
    per_response = {
        "rewards": bandit.rewards[rows, actions],
        "feedback": bandit.rewards[rows, actions],
        "reference_log_probs": bandit.reference_log_probs[rows, actions],
        "response_mask": np.ones_like(actions),
        **fields,
    }
    batch = {name: values[:, None].astype(np.float32) for name, values in per_response.items()}
    batch["actions"] = actions[:, None].astype(np.int32)
    batch["example_ids"] = rows.astype(np.int32)
    batch["prompt_ids"] = (rows + 1).astype(np.int32)
    return batch


def solve(
    bandit: Bandit,
    objective: Objective,
    *,
    steps: int,
    batch: Mapping[str, Any] | None = None,
    optimizer: Optimizer | None = None,
) -> Float[Array, "prompts responses"]:
    """Trains a method on the whole data set, by default with gradient descent, and returns its log-policy."""
    optimizers = {role: optimizer or sgd(1.2) for role in objective.trained()}
    transformations = build_transformations(optimizers, objective.update_scales())
    params = {role: net.init(jax.random.key(0)) for role, net in objective.trained().items()}
    statistics = objective.initial_statistics()
    if statistics:
        params["statistics"] = statistics
    step = make_train_step(objective, transformations)
    data = jax.tree.map(jnp.asarray, dict(bandit_batch(bandit) if batch is None else batch))

    @jax.jit
    def run(state: Any) -> Any:
        return jax.lax.fori_loop(0, steps, lambda _, carry: step(carry, {}, data)[0], state)

    state = run(create_state(params, transformations))
    return jax.nn.log_softmax(state.params["policy"]["logits"])


class Outcome(NamedTuple):
    """The distance from the optimum, KL(pi* || pi) in nats averaged over prompts, and the lost share of the attainable gain in J."""

    divergence: float
    lost: float


def divergence(target: Any, log_policy: Any) -> float:
    """Returns KL(target || policy) in nats averaged over prompts, from log-probabilities; responses of target probability 0 count 0."""
    target, found = np.asarray(target, np.float64), np.asarray(log_policy, np.float64)
    possible = target > -np.inf
    terms = np.where(possible, np.exp(target) * (np.where(possible, target, 0.0) - found), 0.0)
    return float(np.mean(np.sum(terms, axis=-1)))


def judge(bandit: Bandit, log_policy: Any, temperature: float) -> Outcome:
    """Compares a policy with the closed-form optimum of ``J = E_pi[r] - tau KL(pi || pi_ref)``."""
    optimal, _ = optimal_policy_log_probs(
        jnp.asarray(bandit.reference_log_probs),
        jnp.asarray(bandit.rewards),
        temperature=temperature,
    )
    best, found = np.asarray(optimal, np.float64), np.asarray(log_policy, np.float64)

    def objective(log_probs: np.ndarray) -> float:
        ratio = log_probs - bandit.reference_log_probs
        return float(
            np.mean(np.sum(np.exp(log_probs) * (bandit.rewards - temperature * ratio), axis=-1))
        )

    gain = objective(best) - objective(bandit.reference_log_probs)
    return Outcome(divergence(best, found), (objective(best) - objective(found)) / gain)


def cell(outcome: Outcome) -> str:
    """Formats ``divergence / lost share`` for a table."""
    if not np.isfinite(outcome.divergence):
        return "diverges"
    # Training in float32 does not resolve smaller differences.
    shown = "< 1e-6" if outcome.divergence < 1e-6 else f"{outcome.divergence:.2g}"
    return f"{shown} / {max(outcome.lost, 0.0):.1%}"


def softmax(logits: np.ndarray) -> np.ndarray:
    """Computes the softmax along the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def largest_remainder(probabilities: np.ndarray, total: int) -> np.ndarray:
    """Returns integer counts of at least one that sum to ``total`` and are closest to the probabilities."""
    counts = np.maximum(np.floor(probabilities * total), 1)
    remainders = probabilities * total - counts
    for index in np.argsort(-remainders)[: int(total - counts.sum())]:
        counts[index] += 1
    counts[np.argmax(counts)] += total - counts.sum()
    return counts
