"""Divergences between a teacher's and a student's distribution over the next token.

Each function returns one number per position, in nats, from log-probabilities over the vocabulary; the gradient reaches the student only.
Forward KL, reverse KL and generalised Jensen-Shannon are separate functions: the last is 0 at both ends of its parameter, so it tends to
the KLs only after division by the parameter.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxalign.errors import UserError
from jaxalign.losses.masking import as_float32

Distributions = Float[Array, "*positions vocab"]
Divergences = Float[Array, "*positions"]

# Float32 sums of probabilities near 1 have about this error, so a smaller remaining mass cannot be distinguished from 0.
_SMALLEST_REST = 1e-7


def forward_kl(teacher_log_probs: Distributions, student_log_probs: Distributions) -> Divergences:
    """``KL(P || Q) = sum_v P log(P / Q)``, P the teacher and Q the student (arXiv 2502.02671; the usual distillation loss).

    Its gradient with respect to the student's logits is ``Q - P``. In expectation over the teacher's tokens it is the gradient of
    supervised fine-tuning on them, with less variance.

    Args:
      teacher_log_probs: log P, normalised, in nats; a constant.
      student_log_probs: log Q, normalised, in nats.
    """
    teacher, student = _inputs(teacher_log_probs, student_log_probs)
    return _kl(teacher, student)


def reverse_kl(teacher_log_probs: Distributions, student_log_probs: Distributions) -> Divergences:
    """``KL(Q || P) = sum_v Q log(Q / P)``, which a student minimises on few of the teacher's modes. Arguments as in `forward_kl`.

    Its gradient with respect to the student's logits is ``Q (log(Q / P) - KL(Q || P))``.
    """
    teacher, student = _inputs(teacher_log_probs, student_log_probs)
    return _kl(student, teacher)


def jensen_shannon(
    teacher_log_probs: Distributions, student_log_probs: Distributions, *, beta: float
) -> Divergences:
    """Generalised Jensen-Shannon, ``beta KL(P || M) + (1 - beta) KL(Q || M)`` with ``M = beta P + (1 - beta) Q`` (GKD, arXiv 2306.13649).

    Symmetric at ``beta = 1/2``; at most ``-beta log beta - (1 - beta) log(1 - beta)``. Divided by beta it tends to the forward KL as
    beta -> 0, divided by ``1 - beta`` to the reverse KL as beta -> 1.

    Args:
      teacher_log_probs: log P, as in `forward_kl`.
      student_log_probs: log Q.
      beta: strictly between 0 and 1.

    Raises:
      UserError: if beta is 0 or 1, where the divergence is 0 for every student, or outside.
    """
    if not 0 < beta < 1:
        raise UserError(
            f"jensen_shannon.beta must be strictly between 0 and 1, not {beta}; use forward_kl or reverse_kl for its limits"
        )
    teacher, student = _inputs(teacher_log_probs, student_log_probs)
    mixture = jnp.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


def teacher_buckets(
    top_log_probs: Float[Array, "*positions k"],
) -> Float[Array, "*positions buckets"]:
    """A distribution over k + 1 buckets from stored log-probabilities of the k likeliest tokens: the last bucket holds all other tokens.

    Args:
      top_log_probs: of the teacher, in nats.

    Returns:
      Log-probabilities; the last is at least ``log 1e-7``, float32's resolution of a sum near 1.
    """
    (top_log_probs,) = as_float32(top_log_probs)
    rest = 1 - jnp.sum(jnp.exp(top_log_probs), axis=-1, keepdims=True)
    return jnp.concatenate([top_log_probs, jnp.log(jnp.maximum(rest, _SMALLEST_REST))], axis=-1)


def student_buckets(
    log_probs: Distributions, top_ids: Int[Array, "*positions k"]
) -> Float[Array, "*positions buckets"]:
    """The student's distribution over the same k + 1 buckets, exact for any size of the last one.

    A divergence between buckets is at most that between the distributions (they forget which of the other tokens it was), and equal to it
    if k covers all tokens but one.

    Args:
      log_probs: of the student over the vocabulary, in nats.
      top_ids: the teacher's k likeliest tokens, all different.
    """
    (log_probs,) = as_float32(log_probs)
    top = jnp.take_along_axis(log_probs, top_ids, axis=-1, mode="clip")
    is_top = jnp.zeros(log_probs.shape, bool)
    is_top = jnp.put_along_axis(is_top, top_ids, True, axis=-1, inplace=False, mode="drop")
    # If every token is among the k, the last bucket has probability 0; its log-probability stays finite.
    covered = jnp.all(is_top, axis=-1, keepdims=True)
    others = jnp.where(is_top & ~covered, -jnp.inf, log_probs)
    rest = jax.nn.logsumexp(others, axis=-1, keepdims=True)
    rest = jnp.where(covered, math.log(_SMALLEST_REST), rest)
    return jnp.concatenate([top, rest], axis=-1)


def _inputs(teacher_log_probs: Array, student_log_probs: Array) -> tuple[Array, Array]:
    teacher, student = as_float32(teacher_log_probs, student_log_probs)
    return jax.lax.stop_gradient(teacher), student


def _kl(first: Array, second: Array) -> Array:
    """KL of the first from the second; tokens of probability 0 under the first contribute 0, also where both are impossible."""
    possible = first > -jnp.inf
    ratios = jnp.where(possible, first, 0) - jnp.where(possible, second, 0)
    return jnp.sum(jnp.where(possible, jnp.exp(first) * ratios, 0), axis=-1)
