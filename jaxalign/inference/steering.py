"""Steers decoding by another run: by what a reward model reads of a prefix, by the state of a good response, or by a policy's log-ratio."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxalign.data.images import image_format
from jaxalign.errors import UserError, require_range
from jaxalign.inference.encoders import encoder_of
from jaxalign.inference.goals import goal_vector, good_responses
from jaxalign.interop.opening import open_run
from jaxalign.losses.goal_conditioning import cosine
from jaxalign.networks.decoding_scores import (
    DecodingScore,
    PolicyLogRatio,
    PrefixValue,
    reward_score,
)
from jaxalign.networks.reward import DecoderRewardNetwork
from jaxalign.networks.shapes import AnyArray, Params
from jaxalign.runs.folder import Run, TrainedNetwork

# The least number of valued candidates of a sequence.
LEAST_CANDIDATES = 8


class Steering(NamedTuple):
    """A score for decoding.

    Attributes:
      score: what is added to the log-probabilities of candidates.
      identity: all that the score depends on, for records.
    """

    score: DecodingScore
    identity: Mapping[str, Any]


def steering(
    run: str,
    policy: TrainedNetwork,
    *,
    weight: float,
    reference: str = "",
    goal: str = "",
    num_candidates: int = LEAST_CANDIDATES,
) -> Steering:
    """Returns the score of another run.

    Args:
      run: a run folder or checkpoint of a reward model on decoder states, whose head values prefixes, or of a policy p, whose log-ratio
        ``log p - log q`` is added.
      policy: the policy that decodes.
      weight: nats per unit of reward, of cosine or of log-ratio; a negative one steers away.
      reference: for a policy: the run q; by default the policy that decodes.
      goal: for a reward model: a file whose good responses make a goal. Prefixes are then valued by the cosine of their state with it.
      num_candidates: for a reward model: the most probable tokens of a sequence that are valued; no others are chosen.

    Raises:
      UserError: the run is of no such kind or has another vocabulary, or an argument does not belong to it.
    """
    require_range("steering", "(-inf, inf)", weight=weight)
    opened = open_run(run)
    kind = "reward" if "reward" in opened.description.networks else "policy"
    foreign = {"reward": ("reference", reference), "policy": ("goal", goal)}[kind]
    if foreign[1]:
        raise UserError(
            f"steer_{foreign[0]} is given, but {run} is a {kind} run; leave it out, or steer by another run"
        )
    runs = {"run": opened}
    if reference:
        runs["reference"] = open_run(reference)
    for each in runs.values():
        _require_vocabulary(each, policy.run)
    identity: dict[str, Any] = {
        name: {"run_id": each.description.run_id, "step": each.step} for name, each in runs.items()
    }
    identity["weight"] = weight
    if kind == "policy":
        own = opened.policy()
        other = runs["reference"].policy() if reference else None
        score: DecodingScore = PolicyLogRatio(
            own.params,
            jnp.float32(weight),
            own.network,
            None if other is None else other.params,
            None if other is None else other.network,
        )
        return Steering(score, identity)
    reward = opened.reward()
    if not isinstance(reward.network, DecoderRewardNetwork):
        raise UserError(
            f"run {run}: its reward network ({reward.network.kind!r}) does not value prefixes; train one with "
            "objectives/goal_conditioned_reward_model.gin"
        )
    identity["num_candidates"] = num_candidates
    if not goal:
        return Steering(
            reward_score(reward.network, reward.params, weight, num_candidates), identity
        )
    vector = _goal_of(reward, goal)
    identity["goal"] = hashlib.sha256(Path(goal).expanduser().read_bytes()).hexdigest()[:12]
    return Steering(
        goal_score(reward.network, reward.params, vector, weight, num_candidates), identity
    )


def steering_of_flags(
    policy: TrainedNetwork,
    *,
    steer_by: str,
    steer_weight: float,
    steer_reference: str,
    steer_goal: str,
    steer_candidates: int,
    num_beams: int,
) -> Steering | None:
    """Returns what the flags of `jaxalign generate` ask for; None without ``steer_by``.

    ``steer_candidates`` 0 is `LEAST_CANDIDATES`, or two a beam if these are more: beam search lacks continuations with fewer.

    Raises:
      UserError: as `steering`, the policy reads images, or flags lack ``steer_by``.
    """
    if not steer_by:
        if steer_goal or steer_reference or steer_candidates or steer_weight != 1.0:
            raise UserError(
                "steer_weight, steer_reference, steer_goal and steer_candidates need --steer_by"
            )
        return None
    if image_format(policy.network) is not None:
        raise UserError("--steer_by reads text alone, and the policy reads images; leave it out")
    least = max(2, 2 * num_beams)
    if steer_candidates:
        require_range("generate", f"[{least}, inf)", steer_candidates=steer_candidates)
    return steering(
        steer_by,
        policy,
        weight=steer_weight,
        reference=steer_reference,
        goal=steer_goal,
        num_candidates=steer_candidates or max(LEAST_CANDIDATES, least),
    )


def goal_score(
    network: DecoderRewardNetwork,
    params: Params,
    goal: Float[AnyArray, " emb"],
    weight: float,
    num_candidates: int,
) -> PrefixValue:
    """Returns the decoding score ``cos(state of the prefix, goal)`` (goal-conditioned reward models, arXiv 2407.13887).

    Args:
      network, params: the reward model; its head is not read.
      goal: from `inference.goals.goal_vector`.
      weight: nats per unit of cosine.
      num_candidates: the most probable tokens of each sequence whose prefixes are valued; see `decoding_scores.PrefixValue`.
    """
    return PrefixValue(
        params, jnp.float32(weight), jnp.asarray(goal), network.config, _cosine, num_candidates
    )


def _cosine(goal: Any, states: Any) -> Any:
    return cosine(states, goal)


def _goal_of(reward: TrainedNetwork, path: str) -> np.ndarray:
    prompts, responses = good_responses(path)
    encoder = encoder_of(reward, long_prompts="truncate" if reward.long_prompts == "reject" else "")
    tokens = encoder.prompts(prompts).tokens, encoder.responses(responses).tokens
    vector = goal_vector(reward.network, reward.params, *tokens)
    if not np.isfinite(vector).all():
        raise UserError(
            f"run {reward.run.folder} gives a goal that is not finite; its parameters are not usable, choose another run"
        )
    return vector


def _require_vocabulary(run: Run, policy: Run) -> None:
    ours, theirs = policy.recorded_vocabulary, run.recorded_vocabulary
    if ours is None or theirs is None:
        _ = policy.vocabulary, run.vocabulary  # the one that is missing says so
    elif not ours.agrees_with(theirs):
        raise UserError(
            f"{run.folder} steers {policy.folder} and has another vocabulary ({theirs.describe()}; {ours.describe()}); give a run whose "
            "tokens are the same"
        )
