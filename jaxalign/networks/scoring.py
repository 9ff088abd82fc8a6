"""From decoder states to log-probabilities of tokens and of responses, without float32 logits of the whole batch.

The vocabulary projection and the log-softmax run over chunks of target positions. The forward pass keeps the states and one
log-normaliser per token; the backward pass projects each chunk again. Everything is float32 for every dtype of the states.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxalign.networks import chunks
from jaxalign.networks.chunks import Copies
from jaxalign.networks.distributions import logits_of
from jaxalign.networks.shapes import (
    AnyArray,
    Batch,
    Hidden,
    Kernel,
    Logits,
    PerResponseOutputs,
    Scalars,
    TokenOutputs,
    Tokens,
    TokenValues,
    Vectors,
)


class TokenStatistics(NamedTuple):
    """Statistics of each target token that the losses read, in nats.

    Attributes:
      log_probs: log-probability of the target token; 0 in the sums, but not here, on padding.
      log_normalizers: log of the softmax's denominator, for z-loss.
      mean_log_probs: mean over the vocabulary of the log-probabilities, for label smoothing; None unless asked for.
    """

    log_probs: TokenOutputs
    log_normalizers: TokenOutputs
    mean_log_probs: TokenOutputs | None


class ResponseScores(NamedTuple):
    """Per response: the sum of its tokens' log-probabilities (nats, EOS included) and its number of tokens, both float32.

    Both are 0 for responses that do not exist.
    """

    log_probs: PerResponseOutputs
    lengths: PerResponseOutputs


# Log-probabilities, log-normalisers and means over the vocabulary, at every position.
_Statistics = tuple[Float[Array, "*batch"], Float[Array, "*batch"], Float[Array, "*batch"]]


class _Form(NamedTuple):
    """What is known when the computation is traced."""

    num_chunks: int
    scale: float
    forbidden: int | None
    with_mean: bool
    soft_cap: float | None

    def logits(self, hidden: Vectors, kernel: Kernel) -> Logits:
        return logits_of(hidden, kernel, self.scale, self.forbidden, self.soft_cap)


class _Residuals(NamedTuple):
    """What the backward pass keeps. Logits are None where it computes them again."""

    hidden: Hidden
    kernel: Kernel
    targets: Tokens
    log_normalizers: TokenValues
    logits: Logits | None


def token_statistics(
    hidden: Hidden,
    kernel: Kernel,
    targets: Tokens,
    *,
    chunk_size: int | None,
    scale: float = 1.0,
    with_mean_log_probs: bool = False,
    forbidden_token: int | None = None,
    soft_cap: float | None = None,
) -> TokenStatistics:
    """Log-softmax of ``scale * hidden @ kernel`` read at `targets`.

    Args:
      hidden: decoder states before the vocabulary projection.
      kernel: the projection; for tied embeddings the transposed table.
      targets: token ids; values on padding are arbitrary and have to be masked later.
      chunk_size: tokens whose logits may exist at once on a device. Chunks run along `length`, so that sharding over rows survives;
        at least one position of every row is projected at a time. None: all at once, and kept for the backward pass.
      scale: factor on the logits, 1/sqrt(emb) for tied embeddings.
      with_mean_log_probs: also return the mean over the vocabulary.
      forbidden_token: a token to take out of the softmax.
      soft_cap: of the logits, as in `distributions.Projection`.

    Raises:
      ValueError: shapes do not fit, or `chunk_size` is not positive.
    """
    if hidden.shape[:2] != targets.shape or hidden.shape[2] != kernel.shape[0]:
        raise ValueError(
            f"hidden {hidden.shape}, kernel {kernel.shape} and targets {targets.shape} do not fit; they must be "
            "[rows, length, emb], [emb, vocab] and [rows, length]."
        )
    rows, length = targets.shape
    num_chunks = chunks.num_chunks(rows, length, chunk_size)
    form = _Form(num_chunks, float(scale), forbidden_token, with_mean_log_probs, soft_cap)
    log_probs, log_normalizers, mean_log_probs = _statistics(hidden, kernel, targets, form)
    return TokenStatistics(
        log_probs, log_normalizers, mean_log_probs if with_mean_log_probs else None
    )


def statistics_of_logits(
    logits: Logits,
    targets: Int[AnyArray, "*batch"],
    *,
    with_mean_log_probs: bool = False,
    forbidden_token: int | None = None,
) -> TokenStatistics:
    """`token_statistics` of logits that exist already, for functions that `distributions.map_logits` calls chunk by chunk."""
    log_probs, log_normalizers, means = _read(logits, targets, forbidden_token, with_mean_log_probs)
    return TokenStatistics(log_probs, log_normalizers, means if with_mean_log_probs else None)


def response_scores(statistics: TokenStatistics, batch: Batch) -> ResponseScores:
    """Sums of token log-probabilities, and lengths, per response."""
    _, num_examples, num_responses = batch["response_mask"].shape
    weights = batch["decoder_loss_weights"].astype(jnp.float32)
    segments = batch["decoder_segment_ids"]
    # `where` keeps values on padding, NaN included, out of the sum.
    log_probs = jnp.where(weights > 0, statistics.log_probs * weights, 0.0)
    return ResponseScores(
        per_response_sum(log_probs, segments, num_examples, num_responses),
        per_response_sum(weights, segments, num_examples, num_responses),
    )


def per_response_sum(
    token_values: TokenValues,
    decoder_segment_ids: Tokens,
    num_examples: int,
    num_responses: int,
) -> PerResponseOutputs:
    """Sums of token values per response, ``[rows * num_examples, num_responses]`` in float32.

    Args:
      token_values: one value per token, already 0 where it must not count.
      decoder_segment_ids: response ``(p, k)`` of a row is segment ``p * num_responses + k + 1``; 0 is padding.
      num_examples: examples a row can hold.
      num_responses: responses an example can hold.
    """
    # A masked sum instead of a matmul: exact float32 on every backend, and no one-hot array.
    segments = jnp.arange(1, num_examples * num_responses + 1)
    member = decoder_segment_ids[:, :, None] == segments
    values = jnp.where(member, token_values.astype(jnp.float32)[:, :, None], 0.0)
    return jnp.sum(values, axis=1).reshape(-1, num_responses)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _statistics(hidden: Hidden, kernel: Kernel, targets: Tokens, form: _Form) -> _Statistics:
    outputs, _ = _forward(hidden, kernel, targets, form)
    return outputs


def _read(
    logits: Logits, targets: Int[AnyArray, "*batch"], forbidden: int | None, with_mean: bool
) -> _Statistics:
    log_normalizers = jax.nn.logsumexp(logits, axis=-1)
    target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1, mode="clip")[..., 0]
    mean = jnp.zeros_like(log_normalizers)
    if with_mean:
        if forbidden is not None:
            logits = jnp.where(jnp.arange(logits.shape[-1]) == forbidden, 0.0, logits)
        mean = jnp.sum(logits, axis=-1) / _num_allowed(logits, forbidden) - log_normalizers
    return target_logits - log_normalizers, log_normalizers, mean


def _num_allowed(logits: Logits, forbidden: int | None) -> int:
    return logits.shape[-1] - (forbidden is not None)


def _forward(
    hidden: Hidden, kernel: Kernel, targets: Tokens, form: _Form
) -> tuple[_Statistics, _Residuals]:
    num_chunks, forbidden, with_mean = form.num_chunks, form.forbidden, form.with_mean
    if num_chunks == 1:
        logits = form.logits(hidden, kernel)
        outputs = _read(logits, targets, forbidden, with_mean)
        return outputs, _Residuals(hidden, kernel, targets, outputs[1], logits)

    whole = chunks.gathered(kernel)

    def chunk(_: None, index: Int[Array, ""]) -> tuple[None, _Statistics]:
        logits = form.logits(chunks.one_chunk(hidden, index, num_chunks), whole)
        here = chunks.one_chunk(targets, index, num_chunks)
        return None, _read(logits, here, forbidden, with_mean)

    _, stacked = jax.lax.scan(chunk, None, jnp.arange(num_chunks))
    log_probs, log_normalizers, means = (chunks.join(each, targets.shape[1]) for each in stacked)
    return (log_probs, log_normalizers, means), _Residuals(
        hidden, kernel, targets, log_normalizers, None
    )


def _backward(
    form: _Form, residuals: _Residuals, cotangents: _Statistics
) -> tuple[Hidden, Kernel, None]:
    num_chunks, scale, forbidden, with_mean, soft_cap = form
    hidden, kernel, targets, log_normalizers, logits = residuals
    whole = chunks.gathered(kernel)
    d_log_probs, d_log_normalizers, d_mean = cotangents
    # With p = softmax: d log_prob = onehot - p, d log_normalizer = p, d mean_log_prob = 1/V - p.
    d_softmax = d_log_normalizers - d_log_probs - d_mean

    def d_logits(
        logits: Logits,
        targets: Int[AnyArray, "*batch"],
        log_normalizers: Scalars,
        d_target: Scalars,
        d_softmax: Scalars,
        d_mean: Scalars,
    ) -> Logits:
        vocabulary = jnp.arange(logits.shape[-1])
        grad = jnp.exp(logits - log_normalizers[..., None]) * d_softmax[..., None]
        grad += jnp.where(vocabulary == targets[..., None], d_target[..., None], 0.0)
        if with_mean:
            grad += d_mean[..., None] / _num_allowed(logits, forbidden)
        if soft_cap is not None:
            grad = grad * (1.0 - jnp.square(logits / soft_cap))
        if forbidden is not None:
            grad = jnp.where(vocabulary == forbidden, 0.0, grad)
        return grad * scale if scale != 1.0 else grad

    # One sum per device, added up after the last chunk: otherwise every chunk ends in an all-reduce as large as the projection.
    shards = chunks.num_shards(targets.shape[0])

    def pull_back(grad: Logits, hidden: Hidden) -> tuple[Hidden, Copies]:
        d_hidden = jnp.dot(grad, whole.astype(jnp.float32).T).astype(hidden.dtype)
        states, grad = (
            x.astype(jnp.float32).reshape(shards, -1, *x.shape[1:]) for x in (hidden, grad)
        )
        return d_hidden, per_shard(jnp.einsum("srte,srtv->sev", states, grad))

    def per_shard(d_kernel: Copies) -> Copies:
        return nn.with_logical_constraint(d_kernel, ("batch", None, "vocab"))

    def total(d_kernel: Copies) -> Kernel:
        d_kernel = nn.with_logical_constraint(jnp.sum(d_kernel, axis=0), ("embed", "vocab"))
        return d_kernel.astype(kernel.dtype)

    per_token = (targets, log_normalizers, d_log_probs, d_softmax, d_mean)
    if logits is not None:
        d_hidden, d_kernel = pull_back(d_logits(logits, *per_token), hidden)
        return d_hidden, total(d_kernel), None

    def chunk(d_kernel: Copies, index: Int[Array, ""]) -> tuple[Copies, Hidden]:
        states = chunks.one_chunk(hidden, index, num_chunks)
        logits = form.logits(states, whole)
        here = (chunks.one_chunk(values, index, num_chunks) for values in per_token)
        d_states, d_kernel_here = pull_back(d_logits(logits, *here), states)
        return per_shard(d_kernel + d_kernel_here), d_states

    zeros = per_shard(jnp.zeros((shards, *kernel.shape), jnp.float32))
    d_kernel, d_hidden = jax.lax.scan(chunk, zeros, jnp.arange(num_chunks))
    return chunks.join(d_hidden, targets.shape[1]), total(d_kernel), None


_statistics.defvjp(_forward, _backward)
