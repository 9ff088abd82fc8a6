"""Losses on tokens."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxalign.losses.masking import as_float32

PerToken = Float[Array, "rows length"]


def cross_entropy(
    log_probs: PerToken,
    log_normalizers: PerToken,
    mean_log_probs: PerToken | None = None,
    *,
    vocab_size: int,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> PerToken:
    """Cross entropy with T5X's label smoothing and z-loss, from quantities that need no logits.

    With smoothing ``s`` the target puts ``1 - s`` on the label and ``s / (vocab_size - 1)`` on every other token; the entropy of that
    target is subtracted, so the minimum is 0. The z-loss ``z_loss * log(Z)^2`` keeps the softmax normaliser near 1 (Mesh TensorFlow;
    T5X, `losses.cross_entropy_with_logits`).

    Args:
      log_probs: log-probability of each target token, in nats.
      log_normalizers: ``log Z``, the log-sum-exp of each token's logits.
      mean_log_probs: mean over the vocabulary of the log-probabilities; needed only with smoothing.
      vocab_size: number of tokens in the softmax.
      z_loss: coefficient of the z-loss.
      label_smoothing: ``s``, in [0, 1).

    Raises:
      ValueError: if smoothing is asked for without ``mean_log_probs``.
    """
    log_probs, log_normalizers = as_float32(log_probs, log_normalizers)
    losses = -log_probs
    if label_smoothing:
        if mean_log_probs is None:
            raise ValueError("label smoothing needs mean_log_probs")
        (mean_log_probs,) = as_float32(mean_log_probs)
        confidence = 1.0 - label_smoothing
        low = label_smoothing / (vocab_size - 1)
        entropy = -(
            confidence * jnp.log(confidence) + (vocab_size - 1) * low * jnp.log(low + 1e-20)
        )
        smoothed = (confidence - low) * log_probs + low * vocab_size * mean_log_probs
        losses = -smoothed - entropy
    if z_loss:
        losses = losses + z_loss * jnp.square(log_normalizers)
    return losses
