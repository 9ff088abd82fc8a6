"""Scores prefixes of responses with the Q-values and with the reward head of a goal-conditioned reward model.

If the reward head at a prefix is as accurate as Q, the goal adds no information, so compare both (arXiv 2407.13887).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from jaxalign.annotation.reward_judges import judging_encoder
from jaxalign.errors import UserError
from jaxalign.inference.goals import goal_vector, good_responses
from jaxalign.inference.rows import Tokens, outputs
from jaxalign.interop.opening import open_run
from jaxalign.losses import goal_conditioning
from jaxalign.networks.protocols import PrefixRewardPredictor

# A vocabulary that lacks so large a share of the pieces is not that of these texts.
_MAX_UNKNOWN = 0.2


class PrefixScores(NamedTuple):
    """The scores of every prefix of every response; entry t belongs to the first t tokens.

    Attributes:
      values: Q-values, which are cosines with the goal.
      rewards: the outputs of the reward head.
      mask: marks the prefixes that exist; the last prefix of a response lacks only its EOS.
    """

    values: Float[np.ndarray, "responses length"]
    rewards: Float[np.ndarray, "responses length"]
    mask: Bool[np.ndarray, "responses length"]


def score_prefixes(
    network: Any,
    params: Any,
    goal: Float[np.ndarray, " emb"],
    prompts: Sequence[Tokens],
    responses: Sequence[Tokens],
    *,
    batch_size: int = 32,
) -> PrefixScores:
    """Computes Q and the reward of every prefix; arguments as in `inference.goals.goal_vector`."""
    shape = (len(responses), max((len(response) for response in responses), default=0))
    values, rewards = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    mask = np.arange(shape[1]) < np.array([len(response) for response in responses])[:, None]
    groups = [[response] for response in responses]
    for index, found in outputs(network, "prefix_states", params, prompts, groups, batch_size):
        states = found[0][: len(index), 0, : shape[1]]
        length = states.shape[1]
        values[index, :length] = goal_conditioning.prefix_values(states, jnp.asarray(goal))
        rewards[index, :length] = network.head(params, states)
    return PrefixScores(np.where(mask, values, 0), np.where(mask, rewards, 0), mask)


def lowest_scores(
    values: Float[np.ndarray, "responses length"],
    mask: Bool[np.ndarray, "responses length"],
    ignored_tokens: int,
) -> Float[np.ndarray, " responses"]:
    """Returns each response's least score behind its first tokens, infinity if there is none.

    `jaxalign.losses.goal_conditioning.prefix_filter` drops a response if this is below its threshold.
    """
    read = mask & (np.arange(mask.shape[1]) > ignored_tokens)
    return np.where(read, values, np.inf).min(axis=1, initial=np.inf)


def threshold_that_drops(lowest: Float[np.ndarray, " responses"], count: int) -> float:
    """Returns a finite threshold that drops `count` responses, or fewer if several have the same lowest score.

    Responses whose lowest score is infinite have no token that could drop them.
    """
    ordered = np.sort(lowest[np.isfinite(lowest)])
    if count < len(ordered):
        return float(ordered[count])
    return float(np.nextafter(np.float32(ordered[-1]), np.float32(np.inf))) if len(ordered) else 0.0


class PrefixScorer:
    """A run's reward network with a goal, which scores the prefixes of texts.

    Args:
      run: a run folder or checkpoint of a reward on decoder states (`goal_conditioned_reward_model`).
      goal: logged records or candidates whose good responses make the goal: those with feedback above the file's mean, or all if the file
        has no feedback. The pairs that the run was trained on are the usual choice.
      batch_size: responses that are scored together.

    Attributes:
      cut: the number of responses that were cut at the run's limit so far.

    Raises:
      UserError: the run has no such reward or gives NaN, or the goal's file has no good response or another vocabulary.
    """

    def __init__(self, run: str, goal: str, *, batch_size: int = 32) -> None:
        opened = open_run(run).reward()
        if not isinstance(opened.network, PrefixRewardPredictor):
            raise UserError(
                f"run {run}: its reward network ({opened.network.kind!r}) has no states of prefixes; train one with "
                "objectives/goal_conditioned_reward_model.gin"
            )
        self._run, self._batch_size = run, batch_size
        self._network = (opened.network, opened.params)
        self._encoder = judging_encoder(opened)
        prompts, responses = good_responses(goal)
        self.cut = 0
        tokens = self._encoded(prompts, responses, goal)
        self._goal = goal_vector(*self._network, *tokens, batch_size=batch_size)
        self._require_finite(self._goal)
        self.cut = 0

    def score(self, prompts: Sequence[str], responses: Sequence[str], source: str) -> PrefixScores:
        """Scores one response per prompt; `source` is their file, for messages."""
        tokens = self._encoded(prompts, responses, source)
        found = score_prefixes(*self._network, self._goal, *tokens, batch_size=self._batch_size)
        self._require_finite(found.values, found.rewards)
        return found

    def _require_finite(self, *arrays: np.ndarray) -> None:
        # NaN is below no threshold: a filter would keep everything.
        if not all(np.isfinite(array).all() for array in arrays):
            raise UserError(
                f"run {self._run} gives NaN or infinite scores of prefixes; its parameters are not usable, choose another run"
            )

    def _encoded(
        self, prompts: Sequence[str], responses: Sequence[str], source: str
    ) -> tuple[list[list[int]], list[list[int]]]:
        answers = self._encoder.responses(responses)
        if answers.unknown_fraction > _MAX_UNKNOWN:
            raise UserError(
                f"{source}: {answers.unknown_fraction:.0%} of the pieces of its responses are unknown to the vocabulary of {self._run}; "
                "give a reward run whose vocabulary holds this text"
            )
        self.cut += answers.cut
        return self._encoder.prompts(prompts).tokens, answers.tokens
