"""Distributions over the vocabulary at every target position, which are computed a chunk of positions at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from jaxalign.networks import chunks
from jaxalign.networks.chunks import Copies
from jaxalign.networks.shapes import AnyArray, Hidden, Kernel, Logits, Vectors

FORBIDDEN = -1e10  # logit of a token that is taken out of the softmax; its probability is exactly 0

_Arrays = tuple[AnyArray, ...]
Outputs = TypeVar("Outputs")  # an array, or a tuple of arrays


class Projection(NamedTuple):
    """From decoder states to logits ``scale * hidden @ kernel``.

    Attributes:
      kernel: the projection; for tied embeddings the transposed table.
      scale: factor on the logits.
      soft_cap: logits are squashed into (-cap, cap) by tanh; None for no cap.
    """

    kernel: Kernel
    scale: float = 1.0
    soft_cap: float | None = None


class TokenDistributions(NamedTuple):
    """One distribution over the vocabulary per position, the softmax of ``scale * hidden @ kernel``, before it is computed.

    Attributes:
      hidden: decoder states before the vocabulary projection.
      kernel: the projection.
      scale: factor on the logits.
      forbidden_token: a token taken out of the softmax.
      soft_cap: as in `Projection`.
    """

    hidden: Hidden
    kernel: Kernel
    scale: float = 1.0
    forbidden_token: int | None = None
    soft_cap: float | None = None


def map_distributions(
    function: Callable[..., Outputs],
    distributions: Sequence[TokenDistributions],
    *per_token: AnyArray,
    chunk_size: int | None,
) -> Outputs:
    """`map_logits` where the function reads log-probabilities, the log-softmax of the logits, in nats."""

    def of_log_probs(*arguments: AnyArray) -> Outputs:
        logits, others = arguments[: len(distributions)], arguments[len(distributions) :]
        return function(*[jax.nn.log_softmax(each, axis=-1) for each in logits], *others)

    return map_logits(of_log_probs, distributions, *per_token, chunk_size=chunk_size)


def map_logits(
    function: Callable[..., Outputs],
    distributions: Sequence[TokenDistributions],
    *per_token: AnyArray,
    chunk_size: int | None,
) -> Outputs:
    """``function`` of the logits at every position, without float32 logits of the whole batch.

    For quantities that `scoring.token_statistics` does not give: divergences between two networks, the most probable tokens.
    Differentiable with respect to states and projections; the backward pass projects each chunk again.

    Args:
      function: of the logits ``[rows, positions, vocab]`` (float32) of each of the distributions, and of the slices of ``per_token``;
        returns arrays ``[rows, positions, ...]``, each position of which depends on that position only.
      distributions: over the same vocabulary, at the same positions.
      *per_token: further arrays ``[rows, length, ...]``.
      chunk_size: tokens at once, as in `scoring.token_statistics`.

    Raises:
      ValueError: vocabularies or positions differ.
    """
    shapes = {(item.hidden.shape[:2], item.kernel.shape[1]) for item in distributions}
    if len(shapes) != 1:
        found = ", ".join(f"{shape} positions of {vocab} tokens" for shape, vocab in sorted(shapes))
        raise ValueError(f"distributions do not fit each other: {found}.")
    (((rows, length), _),) = shapes
    hiddens = tuple(item.hidden for item in distributions)

    count = chunks.num_chunks(rows, length, chunk_size)
    if count == 1:
        return function(*map(project, distributions), *per_token)
    # Every device has a copy of the projections, made before the first chunk, and a sum of their gradients, added up after the last one.
    # Otherwise each chunk would gather the projections again and end in an all-reduce as large as they are.
    copies = tuple(chunks.copies(item.kernel, chunks.num_shards(rows)) for item in distributions)

    def evaluate(hiddens: _Arrays, others: _Arrays) -> Outputs:
        logits = [
            _finished(_products(hidden, kernels), *item[2:])
            for hidden, kernels, item in zip(hiddens, copies, distributions, strict=True)
        ]
        return function(*logits, *others)

    # Chunks as the scan's own inputs: their gradients are stacked, and only the projections' gradients are accumulated.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def chunk(_: None, here: tuple[_Arrays, _Arrays]) -> tuple[None, Outputs]:
        return None, evaluate(*here)

    stacked = jax.tree.map(lambda array: chunks.split(array, count), (hiddens, per_token))
    _, outputs = jax.lax.scan(chunk, None, stacked)
    return jax.tree.map(lambda array: chunks.join(array, length), outputs)


def project(distributions: TokenDistributions) -> Logits:
    """Float32 logits at every position, all at once."""
    return logits_of(*distributions)


def soft_capped(values: jax.Array, cap: float | None) -> jax.Array:
    """Values squashed into (-cap, cap), almost unchanged near 0; as they are without a cap."""
    return values if cap is None else cap * jnp.tanh(values / cap)


def logits_of(
    hidden: Vectors,
    kernel: Kernel,
    scale: float = 1.0,
    forbidden_token: int | None = None,
    soft_cap: float | None = None,
) -> Logits:
    """Float32 logits ``scale * hidden @ kernel``, under the soft cap."""
    products = jnp.dot(hidden.astype(jnp.float32), kernel.astype(jnp.float32))
    return _finished(products, scale, forbidden_token, soft_cap)


def _products(hidden: Hidden, kernels: Copies) -> jax.Array:
    """Products of states and the copy of the projection on their device."""
    states = hidden.reshape(kernels.shape[0], -1, *hidden.shape[1:])
    found = jnp.einsum("srte,sev->srtv", states.astype(jnp.float32), kernels.astype(jnp.float32))
    return found.reshape(*hidden.shape[:2], -1)


def _finished(
    logits: jax.Array, scale: float, forbidden_token: int | None, soft_cap: float | None
) -> Logits:
    if scale != 1.0:
        logits = logits * scale
    logits = soft_capped(logits, soft_cap)
    if forbidden_token is not None:
        is_forbidden = jnp.arange(logits.shape[-1]) == forbidden_token
        logits = jnp.where(is_forbidden, FORBIDDEN, logits)
    return logits
