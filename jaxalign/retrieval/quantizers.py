"""The two ways to fit residual codes: plain residual k-means, and an RQ-VAE. What they fitted is arrays by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NoReturn, Protocol

import flax.traverse_util
import jax
import numpy as np

from jaxalign.errors import UserError
from jaxalign.plugins import Registry
from jaxalign.retrieval import rqvae
from jaxalign.retrieval.residual_quantization import (
    Codebooks,
    Codes,
    Vectors,
    fit_residual_kmeans,
    quantize,
)

Arrays = Mapping[str, np.ndarray]
CODEBOOKS, SCALE = "codebooks", "scale"


class Quantizer(Protocol):
    """Fits residual codes of vectors, encodes vectors and decodes codes."""

    def settings(self) -> Mapping[str, Any]:
        """Returns the settings as JSON."""

    def fit(self, vectors: Vectors, levels: int, codes: int, *, seed: int) -> dict[str, np.ndarray]:
        """Returns the fitted arrays, `codebooks` [levels, codes, ...] among them."""

    def encode(self, arrays: Arrays, vectors: Vectors) -> Codes:
        """Returns the codes of vectors."""

    def decode(self, arrays: Arrays, codes: Codes) -> Vectors:
        """Returns the vectors that the codes stand for."""


def _no_function(name: str, function: Callable[..., Any]) -> NoReturn:
    raise UserError(
        f"{name!r}: --quantizer takes kmeans or rqvae, not a function; --features=module:function gives vectors of your own"
    )


_REGISTRY: Registry[Quantizer] = Registry("quantizer", _no_function)


def get_quantizer(spec: str) -> Quantizer:
    """Returns the quantizer of a specification, `kmeans` or `rqvae:latent=32,steps=1000`.

    Raises:
      UserError: an unknown name or setting.
    """
    return _REGISTRY.build(spec)


@_REGISTRY.register("kmeans")
class ResidualKMeans:
    """K-means of what the levels before leave."""

    def settings(self) -> Mapping[str, Any]:
        return {"kind": "kmeans"}

    def fit(self, vectors: Vectors, levels: int, codes: int, *, seed: int) -> dict[str, np.ndarray]:
        return {CODEBOOKS: fit_residual_kmeans(vectors, levels, codes, seed=seed)}

    def encode(self, arrays: Arrays, vectors: Vectors) -> Codes:
        size = arrays[CODEBOOKS].shape[2]
        if size != vectors.shape[1]:
            raise UserError(
                f"the codebooks have vectors of {size} numbers, and the vectors have {vectors.shape[1]}; make the index again"
            )
        return quantize(vectors, arrays[CODEBOOKS]).codes

    def decode(self, arrays: Arrays, codes: Codes) -> Vectors:
        return _sums(arrays[CODEBOOKS], codes)


@_REGISTRY.register("rqvae")
@dataclasses.dataclass(frozen=True)
class ResidualVAE:
    """An RQ-VAE; see `rqvae.RQVAESettings`. Vectors are divided by their standard deviation, one number for all of them.

    Attributes:
      latent, commitment, learning_rate, weight_decay, batch_size, steps, reseed_period: see there.
      hidden: widths of the encoder's hidden layers, such as 512-256-128.
    """

    latent: int = 32
    hidden: str = "512-256-128"
    commitment: float = 0.25
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    batch_size: int = 640
    steps: int = 1000
    reseed_period: int = 50

    kind: ClassVar[str] = "rqvae"

    def __post_init__(self) -> None:
        _ = self._training

    @property
    def _training(self) -> rqvae.RQVAESettings:
        widths = [width for width in self.hidden.split("-") if width]
        if not all(width.isdecimal() and int(width) < 1 << 20 for width in widths):
            raise UserError(
                f"rqvae.hidden is {self.hidden!r}; it must be widths such as 512-256-128"
            )
        fields = dataclasses.asdict(self) | {"hidden": tuple(map(int, widths))}
        return rqvae.RQVAESettings(**fields)

    def settings(self) -> Mapping[str, Any]:
        return {"kind": self.kind, **dataclasses.asdict(self)}

    def fit(self, vectors: Vectors, levels: int, codes: int, *, seed: int) -> dict[str, np.ndarray]:
        scale = np.float32(max(float(vectors.std()), 1e-12))
        if not levels:
            return {
                CODEBOOKS: np.zeros((0, codes, self.latent), np.float32),
                SCALE: np.array([scale]),
            }
        fitted = rqvae.fit(vectors / scale, levels, codes, self._training, seed=seed)
        flat = flax.traverse_util.flatten_dict(fitted.params, sep=".")
        return {**{name: np.asarray(leaf) for name, leaf in flat.items()}, SCALE: np.array([scale])}

    def encode(self, arrays: Arrays, vectors: Vectors) -> Codes:
        if not len(arrays[CODEBOOKS]):
            return np.zeros((len(vectors), 0), np.int32)
        network, params = self._network(arrays, vectors.shape[1])
        latents = np.asarray(rqvae.encode(network, params, vectors / arrays[SCALE]))
        return quantize(latents, arrays[CODEBOOKS]).codes

    def decode(self, arrays: Arrays, codes: Codes) -> Vectors:
        latents = _sums(arrays[CODEBOOKS], codes)
        size = arrays[f"decoder.Dense_{len(self._training.hidden)}.bias"].shape[0]
        network, params = self._network(arrays, size)
        return np.asarray(rqvae.decode(network, params, latents)) * arrays[SCALE]

    def _network(self, arrays: Arrays, size: int) -> tuple[rqvae.RQVAE, Any]:
        levels, codes, _ = arrays[CODEBOOKS].shape
        network = rqvae.RQVAE(size, levels, codes, self._training)
        expected = jax.eval_shape(network.init, jax.random.key(0), np.zeros((1, size), np.float32))
        leaves = flax.traverse_util.flatten_dict(expected["params"], sep=".")
        shapes = {name: leaf.shape for name, leaf in leaves.items()}
        for name, wanted in {**shapes, SCALE: (1,)}.items():
            if name not in arrays or arrays[name].shape != wanted:
                raise UserError(
                    f"the array {name} of the RQ-VAE does not have the shape {list(wanted)} of its settings; make the index again"
                )
        params = flax.traverse_util.unflatten_dict({name: arrays[name] for name in shapes}, sep=".")
        return network, params


def _sums(codebooks: Codebooks, codes: Codes) -> Vectors:
    found = np.zeros((len(codes), codebooks.shape[2]), np.float32)
    for level, codebook in enumerate(codebooks):
        found += codebook[codes[:, level]]
    return found
