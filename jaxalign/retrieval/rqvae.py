"""An RQ-VAE: an autoencoder whose latent vectors are sums of codes, one of each level (Lee et al. 2022, arXiv 2203.01941).

With a = x - mu_k, z = enc(a), r_0 = z and z_q = sum_m c_m^{v_m}:

    L = |a - dec(z_q)|^2 + sum_m ( |sg[r_{m-1}] - c_m^{v_m}|^2 + lambda |r_{m-1} - sg[c_m^{v_m}]|^2 )

where the decoder reads z + sg[z_q - z]. The first term of a level trains its codebook and nothing else, the second trains the encoder
and nothing else; so the residual of the next level holds the codes constant.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxalign.errors import UserError, require_range
from jaxalign.retrieval.residual_quantization import Vectors, fit_residual_kmeans, quantize


@dataclasses.dataclass(frozen=True)
class RQVAESettings:
    """The networks and the training of an RQ-VAE. The defaults are those of a public implementation for recommender systems.

    Attributes:
      latent: numbers of a latent vector.
      hidden: widths of the encoder's hidden layers; the decoder has them in the opposite order.
      commitment: lambda, the weight of the commitment.
      learning_rate, weight_decay: of AdamW.
      batch_size: vectors of an update.
      steps: updates.
      reseed_period: updates after which codes that were not used are moved to random residuals.
    """

    latent: int = 32
    hidden: tuple[int, ...] = (512, 256, 128)
    commitment: float = 0.25
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    batch_size: int = 640
    steps: int = 1000
    reseed_period: int = 50

    def __post_init__(self) -> None:
        sizes = {"latent": self.latent, "batch_size": self.batch_size, "steps": self.steps}
        require_range("rqvae", "[1, inf)", **sizes, reseed_period=self.reseed_period)
        require_range("rqvae", "[1, inf)", hidden=min(self.hidden, default=1))
        require_range("rqvae", "[0, inf)", commitment=self.commitment)
        require_range("rqvae", "[0, inf)", weight_decay=self.weight_decay)
        require_range("rqvae", "(0, inf)", learning_rate=self.learning_rate)


class Perceptron(nn.Module):
    """Dense layers with ReLU between them."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, inputs: Any) -> Any:
        """Returns the outputs of the last layer."""
        for width in self.widths[:-1]:
            inputs = nn.relu(nn.Dense(width)(inputs))
        return nn.Dense(self.widths[-1])(inputs)


class RQVAE(nn.Module):
    """The encoder, the codebooks and the decoder.

    Attributes:
      size: numbers of a vector.
      levels, codes: levels, and codes of each.
      settings: widths.
    """

    size: int
    levels: int
    codes: int
    settings: RQVAESettings

    def setup(self) -> None:
        hidden, latent = self.settings.hidden, self.settings.latent
        self.encoder = Perceptron((*hidden, latent))
        self.decoder = Perceptron((*hidden[::-1], self.size))
        self.codebooks = self.param(
            "codebooks", nn.initializers.normal(), (self.levels, self.codes, latent)
        )

    def encode(self, vectors: Any) -> Any:
        """Returns latent vectors."""
        return self.encoder(vectors)

    def decode(self, latents: Any) -> Any:
        """Returns vectors of latent vectors."""
        return self.decoder(latents)

    def __call__(self, vectors: Any) -> Losses:
        """Returns the terms of the loss."""
        latents = self.encoder(vectors)
        residual, total = latents, jnp.zeros_like(latents)
        codebook_loss = commitment_loss = jnp.float32(0.0)
        codes = []
        stop = jax.lax.stop_gradient
        for level in range(self.levels):
            book = self.codebooks[level]
            distances = jnp.sum(jnp.square(residual[:, None] - book), axis=-1)
            code = jnp.argmin(distances, axis=-1)
            chosen = book[code]
            codebook_loss += jnp.mean(jnp.sum(jnp.square(stop(residual) - chosen), axis=-1))
            commitment_loss += jnp.mean(jnp.sum(jnp.square(residual - stop(chosen)), axis=-1))
            residual, total = residual - stop(chosen), total + chosen
            codes.append(code)
        decoded = self.decoder(latents + stop(total - latents))
        reconstruction = jnp.mean(jnp.sum(jnp.square(vectors - decoded), axis=-1))
        return Losses(reconstruction, codebook_loss, commitment_loss, jnp.stack(codes, axis=1))


class Losses(NamedTuple):
    """Terms of the loss, means over vectors of squared distances, and the codes."""

    reconstruction: Float[Array, ""]
    codebook: Float[Array, ""]
    commitment: Float[Array, ""]
    codes: Int[Array, "items levels"]

    def total(self, commitment: float) -> Any:
        """Returns the loss."""
        return self.reconstruction + self.codebook + commitment * self.commitment


class Fitted(NamedTuple):
    """A trained RQ-VAE.

    Attributes:
      params: its parameters, numpy arrays.
      reseeded: how many codes were moved because nothing used them.
      loss: the loss of all vectors at the end.
    """

    params: Any
    reseeded: int
    loss: float


def fit(vectors: Vectors, levels: int, codes: int, settings: RQVAESettings, *, seed: int) -> Fitted:
    """Trains an RQ-VAE. The codebooks start as residual k-means of the untrained encoder's latent vectors.

    Raises:
      UserError: the loss is not finite.
    """
    network = RQVAE(vectors.shape[1], levels, codes, settings)
    params = network.init(jax.random.key(seed), jnp.asarray(vectors[:1]))["params"]
    latents = np.asarray(encode(network, params, vectors))
    params["codebooks"] = jnp.asarray(fit_residual_kmeans(latents, levels, codes, seed=seed))
    optimizer = optax.adamw(settings.learning_rate, weight_decay=settings.weight_decay)
    state = optimizer.init(params)
    rng = np.random.default_rng(seed)
    rows = min(settings.batch_size, len(vectors))
    used = np.zeros((levels, codes), bool)
    reseeded = 0
    for step in range(1, settings.steps + 1):
        batch = vectors[rng.choice(len(vectors), rows, replace=False)]
        params, state, found = _update(network, optimizer, params, state, batch)
        for level in range(levels):
            used[level, np.asarray(found)[:, level]] = True
        # Not at the end: a code that has just been moved would not be trained.
        if step % settings.reseed_period == 0 and step < settings.steps:
            moved, count = _reseed(network, params, vectors, used, rng)
            params = {**params, "codebooks": moved}
            reseeded += count
            used[:] = False
    loss = float(_loss(network, params, vectors)[0])
    if not np.isfinite(loss):
        raise UserError(
            f"the RQ-VAE's loss is {loss} after {settings.steps} steps; lower its learning rate, or use --quantizer=kmeans"
        )
    return Fitted(jax.tree.map(np.asarray, params), reseeded, loss)


def _reseed(
    network: RQVAE, params: Any, vectors: Vectors, used: np.ndarray, rng: np.random.Generator
) -> tuple[Any, int]:
    """Moves the codes that were not used to residuals of random vectors at their level; returns all codebooks and their number."""
    books = np.array(params["codebooks"])
    residuals = quantize(np.asarray(encode(network, params, vectors)), books).residuals
    for level, code in zip(*np.nonzero(~used), strict=True):
        books[level, code] = residuals[rng.integers(len(vectors)), level]
    return jnp.asarray(books), int((~used).sum())


@functools.partial(jax.jit, static_argnums=0)
def encode(network: RQVAE, params: Any, vectors: Any) -> Any:
    """Returns latent vectors, [items, latent]."""
    return network.apply({"params": params}, vectors, method="encode")


@functools.partial(jax.jit, static_argnums=0)
def decode(network: RQVAE, params: Any, latents: Any) -> Any:
    """Returns the vectors of latent vectors, [items, size]."""
    return network.apply({"params": params}, latents, method="decode")


def _loss(network: RQVAE, params: Any, vectors: Any) -> tuple[Any, Any]:
    losses = network.apply({"params": params}, vectors)
    return losses.total(network.settings.commitment), losses.codes


@functools.partial(jax.jit, static_argnums=(0, 1))
def _update(network: RQVAE, optimizer: Any, params: Any, state: Any, vectors: Any) -> Any:
    gradients, codes = jax.grad(lambda params: _loss(network, params, vectors), has_aux=True)(
        params
    )
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, codes
