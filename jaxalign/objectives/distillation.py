"""Distillation of a teacher's next-token distributions, from its logits or from stored log-probabilities of its top tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxalign.errors import UserError
from jaxalign.losses.distillation import forward_kl, student_buckets, teacher_buckets
from jaxalign.networks.distributions import TokenDistributions, map_distributions
from jaxalign.networks.protocols import PolicyNetwork, TokenPolicy
from jaxalign.objectives.base import Batch, LossOutput, Metric, Objective, Params
from jaxalign.objectives.token_weighted import (
    check_normalization,
    divisor,
    likelihood_metrics,
    num_tokens,
    token_mask,
    token_sum,
)

_STORED_FIELDS = ("teacher_top_ids", "teacher_top_log_probs")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation(Objective):
    """A student policy fitted to a teacher at every position of the logged responses.

    The data decide which responses these are: the teacher's, logged ones, or a seqio mixture of both. Fine-tuning on the
    teacher's responses alone ("hard" distillation) is `objectives.sft.SFT`.

    Attributes:
      policy: the student.
      divergence: between teacher and student log-probabilities ``[..., vocab]``; see `jaxalign.losses.distillation`.
      teacher: the teacher's network, with the student's vocabulary; None for one like the policy.
      teacher_path: run folder, or one of its checkpoints, whose policy the teacher is; None for the policy at the start of the run.
      source: 'live' keeps the teacher in memory, in the frozen role ``teacher``. 'stored' reads ``teacher_top_ids`` (int) and
        ``teacher_top_log_probs`` (float, nats), both ``[rows, length, k]``, the teacher's k top tokens at every target position, as
        `jaxalign score --top_tokens=K` stores them; all other tokens count as one token.
      hard_weight: share of the negative log-probability of the target token in the loss, in [0, 1]; the divergence gets the rest.
      normalization: what the summed losses are divided by: the number of 'responses' or of 'tokens' in the step's batch.
    """

    policy: TokenPolicy
    divergence: Callable[..., Any] = forward_kl
    teacher: TokenPolicy | None = None
    teacher_path: str | None = None
    source: str = "live"
    hard_weight: float = 0.0
    normalization: str = "responses"

    name: ClassVar[str] = "distillation"

    def __post_init__(self) -> None:
        check_normalization("Distillation", self.normalization)
        if self.source not in ("live", "stored"):
            raise UserError(f"Distillation.source must be 'live' or 'stored', not {self.source!r}")
        if not 0 <= self.hard_weight <= 1:
            raise UserError(f"Distillation.hard_weight must lie in [0, 1], not {self.hard_weight}")
        teacher = self.teacher if self.source == "live" and self.teacher_path is None else None
        if teacher is not None and teacher.abstract_params() != self.policy.abstract_params():
            raise UserError(
                "Distillation.teacher has another network than the policy, so it cannot start as a copy of it: set "
                "Distillation.teacher_path"
            )

    def frozen_roles(self) -> tuple[str, ...]:
        return ("teacher",) if self.source == "live" else ()

    def frozen_sources(self) -> dict[str, tuple[PolicyNetwork, str]]:
        if self.source != "live" or self.teacher_path is None:
            return {}
        return {"teacher": (self.teacher or self.policy, self.teacher_path)}

    def required_fields(self) -> tuple[str, ...]:
        return _STORED_FIELDS if self.source == "stored" else ()

    def check_batch(self, batch: Batch) -> None:
        super().check_batch(batch)
        if self.source == "live":
            return
        tokens = np.asarray(batch["decoder_target_tokens"]).shape
        shapes = [np.asarray(batch[field]).shape for field in _STORED_FIELDS]
        if shapes[0] != shapes[1] or shapes[0][:2] != tokens or len(shapes[0]) != 3:
            raise UserError(
                f"objective {self.name} needs {' and '.join(_STORED_FIELDS)} of one shape [rows, length, k] with {tokens} rows and "
                f"length; this batch has {shapes[0]} and {shapes[1]}"
            )

    def loss(self, params: Params, batch: Batch, rng: Array | None) -> LossOutput:
        student = self.policy
        hidden = student.decode(params["policy"], batch, rng=rng)
        distribution = student.distributions(params["policy"], hidden)
        if self.source == "live":
            read: Callable[..., Any] = self._read_live
            distributions = [distribution, self._teacher_distribution(params, batch)]
            stored: list[Array] = []
        else:
            read = self._read_stored
            distributions = [distribution]
            # Padding gets a uniform distribution.
            exists = token_mask(batch)[:, :, None]
            ids, log_probs = (jnp.asarray(batch[field]) for field in _STORED_FIELDS)
            uniform = -jnp.log(jnp.float32(student.vocab_size))
            stored = [jnp.where(exists, ids, 0), jnp.where(exists, log_probs, uniform)]
        log_probs, divergences = map_distributions(
            read,
            distributions,
            jnp.asarray(batch["decoder_target_tokens"]),
            *stored,
            chunk_size=student.logits_chunk_size,
        )
        losses = (1 - self.hard_weight) * divergences - self.hard_weight * log_probs
        loss_sum, weight = token_sum(losses, batch), divisor(batch, self.normalization)
        return LossOutput(
            loss_sum,
            weight,
            {
                "loss": Metric(loss_sum, weight),
                "divergence_per_token": Metric(token_sum(divergences, batch), num_tokens(batch)),
                **likelihood_metrics(log_probs, batch),
            },
        )

    def _teacher_distribution(self, params: Params, batch: Batch) -> TokenDistributions:
        teacher = self.teacher or self.policy
        frozen = jax.lax.stop_gradient(params["teacher"])
        return teacher.distributions(frozen, teacher.decode(frozen, batch))

    def _read_live(self, student: Array, teacher: Array, targets: Array) -> tuple[Array, Array]:
        return _chosen(student, targets), self.divergence(teacher, student)

    def _read_stored(
        self, student: Array, targets: Array, top_ids: Array, top_log_probs: Array
    ) -> tuple[Array, Array]:
        buckets = teacher_buckets(top_log_probs), student_buckets(student, top_ids)
        return _chosen(student, targets), self.divergence(*buckets)


def top_log_probs(
    policy: TokenPolicy, params: Any, batch: Batch, count: int
) -> tuple[Array, Array]:
    """A teacher's most probable tokens at every target position and their log-probabilities, which ``source='stored'`` reads.

    Args:
      policy: the teacher's network.
      params: its parameters.
      batch: as the data pipeline makes it.
      count: k.

    Returns:
      Ids (int32) and log-probabilities (float32, nats), ``[rows, length, k]``.
    """

    def read(log_probs: Array) -> tuple[Array, Array]:
        values, ids = jax.lax.top_k(log_probs, count)
        return ids.astype(jnp.int32), values

    hidden = policy.decode(params, batch)
    return map_distributions(
        read, [policy.distributions(params, hidden)], chunk_size=policy.logits_chunk_size
    )


def _chosen(log_probs: Array, targets: Array) -> Array:
    return jnp.take_along_axis(log_probs, targets[..., None], axis=-1, mode="clip")[..., 0]
