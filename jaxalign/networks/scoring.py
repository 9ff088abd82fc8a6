"""From decoder states to log-probabilities of tokens and of responses, without float32 logits of the whole batch.

The vocabulary projection and the log-softmax run over chunks of target positions. The forward pass keeps the states and one
log-normaliser per token; the backward pass projects each chunk again. Everything is float32 for every dtype of the states.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxalign.networks.shapes import (
    Hidden,
    Kernel,
    Logits,
    PerResponseOutputs,
    TokenOutputs,
    Tokens,
    TokenValues,
)

FORBIDDEN = -1e10  # logit of a token that is taken out of the softmax; its probability is exactly 0


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


class TokenDistributions(NamedTuple):
    """One distribution over the vocabulary per position, the softmax of ``scale * hidden @ kernel``, before it is computed.

    Attributes:
      hidden: decoder states before the vocabulary projection.
      kernel: the projection.
      scale: factor on the logits.
      forbidden_token: a token taken out of the softmax.
    """

    hidden: Hidden
    kernel: Kernel
    scale: float = 1.0
    forbidden_token: int | None = None


class ResponseScores(NamedTuple):
    """Per response: the sum of its tokens' log-probabilities (nats, EOS included) and its number of tokens, both float32.

    Both are 0 for responses that do not exist.
    """

    log_probs: PerResponseOutputs
    lengths: PerResponseOutputs


def token_statistics(
    hidden: Hidden,
    kernel: Kernel,
    targets: Tokens,
    *,
    chunk_size: int | None,
    scale: float = 1.0,
    with_mean_log_probs: bool = False,
    forbidden_token: int | None = None,
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

    Raises:
      ValueError: shapes do not fit, or `chunk_size` is not positive.
    """
    if hidden.shape[:2] != targets.shape or hidden.shape[2] != kernel.shape[0]:
        raise ValueError(
            f"hidden {hidden.shape}, kernel {kernel.shape} and targets {targets.shape} do not fit; they must be "
            "[rows, length, emb], [emb, vocab] and [rows, length]."
        )
    rows, length = targets.shape
    num_chunks = _num_chunks(rows, length, chunk_size)
    log_probs, log_normalizers, mean_log_probs = _statistics(
        hidden, kernel, targets, num_chunks, float(scale), forbidden_token, with_mean_log_probs
    )
    return TokenStatistics(
        log_probs, log_normalizers, mean_log_probs if with_mean_log_probs else None
    )


def map_distributions(
    function: Callable[..., Any],
    distributions: Sequence[TokenDistributions],
    *per_token: Any,
    chunk_size: int | None,
) -> Any:
    """`map_logits` where the function reads log-probabilities, the log-softmax of the logits, in nats."""

    def of_log_probs(*arguments: Any) -> Any:
        logits, others = arguments[: len(distributions)], arguments[len(distributions) :]
        return function(*[jax.nn.log_softmax(each, axis=-1) for each in logits], *others)

    return map_logits(of_log_probs, distributions, *per_token, chunk_size=chunk_size)


def map_logits(
    function: Callable[..., Any],
    distributions: Sequence[TokenDistributions],
    *per_token: Any,
    chunk_size: int | None,
) -> Any:
    """``function`` of the logits at every position, without float32 logits of the whole batch.

    For quantities that `token_statistics` does not give: divergences between two networks, the most probable tokens.
    Differentiable with respect to states and projections; the backward pass projects each chunk again.

    Args:
      function: of the logits ``[rows, positions, vocab]`` (float32) of each of the distributions, and of the slices of ``per_token``;
        returns arrays ``[rows, positions, ...]``, each position of which depends on that position only.
      distributions: over the same vocabulary, at the same positions.
      *per_token: further arrays ``[rows, length, ...]``.
      chunk_size: tokens at once, as in `token_statistics`.

    Raises:
      ValueError: vocabularies or positions differ.
    """
    shapes = {(item.hidden.shape[:2], item.kernel.shape[1]) for item in distributions}
    if len(shapes) != 1:
        found = ", ".join(f"{shape} positions of {vocab} tokens" for shape, vocab in sorted(shapes))
        raise ValueError(f"distributions do not fit each other: {found}.")
    (((rows, length), _),) = shapes
    kernels = tuple(item.kernel for item in distributions)
    slices = (tuple(item.hidden for item in distributions), per_token)

    def evaluate(kernels: Any, slices: Any) -> Any:
        hiddens, others = slices
        logits = [
            project(item._replace(hidden=hidden, kernel=kernel))
            for hidden, kernel, item in zip(hiddens, kernels, distributions, strict=True)
        ]
        return function(*logits, *others)

    num_chunks = _num_chunks(rows, length, chunk_size)
    if num_chunks == 1:
        return evaluate(kernels, slices)

    # Chunks as the scan's own inputs: their gradients are stacked, and only the projections' gradients are accumulated.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def chunk(carry: Any, here: Any) -> Any:
        return carry, evaluate(kernels, here)

    width = math.ceil(length / num_chunks)
    _, chunks = jax.lax.scan(
        chunk, None, jax.tree.map(lambda x: _split(x, num_chunks, width), slices)
    )
    return jax.tree.map(lambda x: _join(x, length), chunks)


def project(distributions: TokenDistributions) -> Logits:
    """Float32 logits at every position, all at once."""
    return _project(*distributions)


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


def _num_chunks(rows: int, length: int, chunk_size: int | None) -> int:
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; it must be at least 1, or None.")
    local_rows = rows // _num_shards(rows)
    positions = length if chunk_size is None else max(1, chunk_size // max(local_rows, 1))
    return max(1, math.ceil(length / positions))


def _num_shards(rows: int) -> int:
    """Over how many devices the rows of a batch are spread, by the mesh and the axis rules in force; 1 without them."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = nn.logical_to_mesh_axes(("batch",))
    if mesh.empty or axes is None or axes[0] is None:
        return 1
    names = (axes[0],) if isinstance(axes[0], str) else axes[0]
    shards = math.prod(mesh.shape[name] for name in names)
    return shards if rows % shards == 0 else 1


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def _statistics(
    hidden: Any,
    kernel: Any,
    targets: Any,
    num_chunks: Any,
    scale: Any,
    forbidden: Any,
    with_mean: Any,
) -> Any:
    outputs, _ = _forward(hidden, kernel, targets, num_chunks, scale, forbidden, with_mean)
    return outputs


def _project(hidden: Any, kernel: Any, scale: Any, forbidden: Any) -> Any:
    logits = jnp.dot(hidden.astype(jnp.float32), kernel.astype(jnp.float32))
    if scale != 1.0:
        logits = logits * scale
    if forbidden is not None:
        is_forbidden = jnp.arange(kernel.shape[1]) == forbidden
        logits = jnp.where(is_forbidden, FORBIDDEN, logits)
    return logits


def _read(logits: Any, targets: Any, forbidden: Any, with_mean: Any) -> Any:
    log_normalizers = jax.nn.logsumexp(logits, axis=-1)
    target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1, mode="clip")[..., 0]
    mean = jnp.zeros_like(log_normalizers)
    if with_mean:
        if forbidden is not None:
            logits = jnp.where(jnp.arange(logits.shape[-1]) == forbidden, 0.0, logits)
        mean = jnp.sum(logits, axis=-1) / _num_allowed(logits, forbidden) - log_normalizers
    return target_logits - log_normalizers, log_normalizers, mean


def _num_allowed(logits: Any, forbidden: Any) -> Any:
    return logits.shape[-1] - (forbidden is not None)


def _forward(
    hidden: Any,
    kernel: Any,
    targets: Any,
    num_chunks: Any,
    scale: Any,
    forbidden: Any,
    with_mean: Any,
) -> Any:
    if num_chunks == 1:
        logits = _project(hidden, kernel, scale, forbidden)
        outputs = _read(logits, targets, forbidden, with_mean)
        return outputs, (hidden, kernel, targets, outputs[1], logits)

    def chunk(_: Any, index: Any) -> Any:
        logits = _project(_slice(hidden, index, num_chunks), kernel, scale, forbidden)
        return None, _read(logits, _slice(targets, index, num_chunks), forbidden, with_mean)

    _, chunks = jax.lax.scan(chunk, None, jnp.arange(num_chunks))
    outputs = tuple(_join(values, targets.shape[1]) for values in chunks)
    return outputs, (hidden, kernel, targets, outputs[1], None)


def _backward(
    num_chunks: Any, scale: Any, forbidden: Any, with_mean: Any, residuals: Any, cotangents: Any
) -> Any:
    hidden, kernel, targets, log_normalizers, logits = residuals
    d_log_probs, d_log_normalizers, d_mean = cotangents
    # With p = softmax: d log_prob = onehot - p, d log_normalizer = p, d mean_log_prob = 1/V - p.
    d_softmax = d_log_normalizers - d_log_probs - d_mean

    def d_logits(
        logits: Any, targets: Any, log_normalizers: Any, d_target: Any, d_softmax: Any, d_mean: Any
    ) -> Any:
        vocabulary = jnp.arange(logits.shape[-1])
        grad = jnp.exp(logits - log_normalizers[..., None]) * d_softmax[..., None]
        grad += jnp.where(vocabulary == targets[..., None], d_target[..., None], 0.0)
        if with_mean:
            grad += d_mean[..., None] / _num_allowed(logits, forbidden)
        if forbidden is not None:
            grad = jnp.where(vocabulary == forbidden, 0.0, grad)
        return grad * scale if scale != 1.0 else grad

    # One sum per device, added up after the last chunk: otherwise every chunk ends in an all-reduce as large as the projection.
    shards = _num_shards(targets.shape[0])

    def pull_back(grad: Any, hidden: Any) -> Any:
        d_hidden = jnp.dot(grad, kernel.astype(jnp.float32).T).astype(hidden.dtype)
        states, grad = (
            x.astype(jnp.float32).reshape(shards, -1, *x.shape[1:]) for x in (hidden, grad)
        )
        return d_hidden, per_shard(jnp.einsum("srte,srtv->sev", states, grad))

    def per_shard(d_kernel: Any) -> Any:
        return nn.with_logical_constraint(d_kernel, ("batch", None, "vocab"))

    def total(d_kernel: Any) -> Any:
        d_kernel = nn.with_logical_constraint(jnp.sum(d_kernel, axis=0), ("embed", "vocab"))
        return d_kernel.astype(kernel.dtype)

    per_token = (targets, log_normalizers, d_log_probs, d_softmax, d_mean)
    if num_chunks == 1:
        d_hidden, d_kernel = pull_back(d_logits(logits, *per_token), hidden)
        return d_hidden, total(d_kernel), None

    def chunk(d_kernel: Any, index: Any) -> Any:
        states = _slice(hidden, index, num_chunks)
        logits = _project(states, kernel, scale, forbidden)
        grad = d_logits(logits, *(_slice(values, index, num_chunks) for values in per_token))
        d_states, d_kernel_here = pull_back(grad, states)
        return per_shard(d_kernel + d_kernel_here), d_states

    zeros = per_shard(jnp.zeros((shards, *kernel.shape), jnp.float32))
    d_kernel, d_hidden = jax.lax.scan(chunk, zeros, jnp.arange(num_chunks))
    return _join(d_hidden, targets.shape[1]), total(d_kernel), None


def _slice(values: Any, index: Any, num_chunks: Any) -> Any:
    """Chunk `index` of `num_chunks` along axis 1; the last ones overlap their neighbours' end by padding."""
    width = math.ceil(values.shape[1] / num_chunks)
    padding = num_chunks * width - values.shape[1]
    if padding:
        values = jnp.pad(values, [(0, 0), (0, padding)] + [(0, 0)] * (values.ndim - 2))
    return jax.lax.dynamic_slice_in_dim(values, index * width, width, axis=1)


def _split(values: Any, num_chunks: Any, width: Any) -> Any:
    """All chunks along axis 1, stacked on axis 0; the last ones end in zeros."""
    padding = num_chunks * width - values.shape[1]
    values = jnp.pad(values, [(0, 0), (0, padding)] + [(0, 0)] * (values.ndim - 2))
    return jnp.moveaxis(values.reshape(values.shape[0], num_chunks, width, *values.shape[2:]), 1, 0)


def _join(chunks: Any, length: Any) -> Any:
    """Inverse of `_slice` over all chunks, stacked on axis 0."""
    joined = jnp.moveaxis(chunks, 0, 1)
    joined = joined.reshape(joined.shape[0], -1, *joined.shape[3:])
    return joined[:, :length]


_statistics.defvjp(_forward, _backward)
