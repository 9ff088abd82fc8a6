"""Policies of which only low-rank adapters are trained (LoRA, Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from jaxalign.errors import UserError, require_one_of, require_range
from jaxalign.networks import adapters
from jaxalign.networks.leaves import merge_leaves
from jaxalign.networks.network_config import DTYPES
from jaxalign.networks.policy import Policy
from jaxalign.networks.shapes import AnyArray, Hidden, Params, SourceTokens

QUERY_AND_VALUE = r"/(query|value)/"  # of every attention, as in the paper
_SHOWN = 6  # paths in a message


@dataclasses.dataclass(frozen=True)
class Lora:
    """Settings of low-rank adapters ``W + scale A B``.

    Attributes:
      rank: columns of A and rows of B.
      alpha: the scale is ``alpha / rank``.
      targets: a regular expression; a linear map of the encoder's and the decoder's layers has an adapter if it is found in the path of its
        kernel, such as ``encoder/layers_0/attention/query/kernel`` or, if layers are stacked, ``decoder/layers/mlp/wi_0/kernel``.
      dropout: probability of dropping an element of the adapters' inputs in training.
      rank_stabilized: the scale is ``alpha / sqrt(rank)`` (rsLoRA, Kalajdzievski 2023, arXiv 2312.03732).
      base_dtype: how the frozen parameters are stored in memory, ``float32`` or ``bfloat16``; adapters are always float32.
      paths: the paths of the kernels in place of `targets`, as a run folder records them.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: str = QUERY_AND_VALUE
    dropout: float = 0.0
    rank_stabilized: bool = False
    base_dtype: str = "float32"
    paths: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_range("Lora", "[1, inf)", rank=self.rank)
        if self.rank != int(self.rank):
            raise UserError(f"Lora.rank is {self.rank}; it must be a whole number")
        require_range("Lora", "(0, inf)", alpha=self.alpha)
        require_range("Lora", "[0, 1)", dropout=self.dropout)
        require_one_of("Lora", DTYPES, base_dtype=self.base_dtype)
        try:
            re.compile(self.targets)
        except re.error as error:
            raise UserError(
                f"Lora.targets {self.targets!r} is no regular expression: {error}"
            ) from error

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Lora:
        """Returns the settings that a run folder records, with the paths of kernels in place of a pattern."""
        others = {name: value for name, value in fields.items() if name != "targets"}
        return cls(**others, paths=tuple(fields.get("targets", ())))

    @property
    def scale(self) -> float:
        """The factor on the product of A and B."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)

    def kernels(self, shapes: Params) -> tuple[str, ...]:
        """The paths of the kernels that have an adapter.

        Raises:
          UserError: there is none.
        """
        maps = sorted(adapters.linear_maps(shapes))
        if self.paths:
            chosen = tuple(path for path in maps if path in self.paths)
        else:
            chosen = tuple(path for path in maps if re.search(self.targets, path))
        if not chosen or len(chosen) < len(self.paths):
            more = f" and {len(maps) - _SHOWN} more" if len(maps) > _SHOWN else ""
            raise UserError(
                f"Lora.targets {self.paths or self.targets!r} names no linear map of this network; it has {', '.join(maps[:_SHOWN])}{more}"
            )
        return chosen


@dataclasses.dataclass(frozen=True)
class LoraPolicy(Policy):
    """A policy whose parameters are frozen, with trained adapters beside some of its linear maps.

    Without adapters in its parameters it is the policy that it started from, so a reference in memory needs no second copy.

    Attributes:
      lora: the settings of the adapters.
    """

    lora: Lora = Lora()

    kind: ClassVar[str] = "lora_policy"

    @property
    def base(self) -> Policy:
        return Policy(self.config, self.logits_chunk_size, self.value_token)

    @property
    def dropout_rate(self) -> float:
        return max(self.config.dropout_rate, self.lora.dropout)

    @property
    def holds_start(self) -> bool:
        return True

    def start_params(self, params: Params) -> Params:
        return adapters.without(params)

    def init(self, rng: PRNGKeyArray) -> Params:
        """Random parameters, and fresh adapters."""
        base_rng, adapter_rng = jax.random.split(rng)
        return self.from_policy(adapter_rng, self.base.init(base_rng))

    def from_policy(self, rng: PRNGKeyArray, policy_params: Params) -> Params:
        """A policy's parameters, in the dtype in which they are stored, and fresh adapters, which change nothing yet."""
        stored = jax.tree.map(lambda leaf: leaf.astype(self.lora.base_dtype), policy_params)
        return merge_leaves(stored, self._fresh(rng))

    def abstract_params(self) -> Params:
        return jax.eval_shape(self.from_policy, jax.random.key(0), _shapes(self.base))

    def logical_axes(self) -> Params:
        logical = self.base.logical_axes()
        own = adapters.axes(logical, _shapes(self.base), self._kernels, self._axis)
        return merge_leaves(logical, own)

    def trained_leaves(self) -> Params:
        shapes = self.abstract_params()
        frozen = jax.tree.map(lambda _: False, self.start_params(shapes))
        return merge_leaves(frozen, jax.tree.map(lambda _: True, adapters.only(shapes)))

    def merge(self, base: Params, own: Params) -> Params:
        """The parameters of a policy without adapters that computes the same.

        Args:
          base: the frozen parameters, which are rounded to ``lora.base_dtype`` as in training.
          own: the adapters, with their paths.
        """
        base = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), base)
        if self.lora.base_dtype == "bfloat16":
            base = jax.tree.map(lambda leaf: jax.lax.reduce_precision(leaf, 8, 7), base)
        return adapters.merged(base, own, self.lora.scale, self._axis)

    def description(self) -> dict[str, Any]:
        # A run folder holds paths in place of a pattern: whoever reads it runs no regular expression of a stranger.
        described = {**dataclasses.asdict(self.lora), "targets": list(self._kernels)}
        del described["paths"]
        return {**self.base.description(), "kind": self.kind, "lora": described}

    def read_prompts(
        self, params: Params, encoder_input_tokens: SourceTokens, max_decode_len: int
    ) -> Any:
        bound = adapters.bound(params, self.lora.scale, 0.0)
        return super().read_prompts(bound, encoder_input_tokens, max_decode_len)

    def _apply(
        self,
        params: Params,
        *inputs: AnyArray | None,
        method: str,
        rng: PRNGKeyArray | None,
    ) -> Hidden:
        dropout = 0.0 if rng is None else self.lora.dropout
        bound = adapters.bound(params, self.lora.scale, dropout)
        return super()._apply(bound, *inputs, method=method, rng=rng)

    def _fresh(self, rng: PRNGKeyArray) -> Params:
        return adapters.fresh(_shapes(self.base), self._kernels, self.lora.rank, self._axis, rng)

    @property
    def _axis(self) -> int:
        return self.config.param_scan_axis

    @property
    def _kernels(self) -> tuple[str, ...]:
        return _kernels(self.base, self.lora)


# Tracing a network takes seconds, and its shapes are asked for often.
@functools.lru_cache(maxsize=16)
def _shapes(base: Policy) -> Params:
    return base.abstract_params()


@functools.lru_cache(maxsize=64)
def _kernels(base: Policy, lora: Lora) -> tuple[str, ...]:
    return lora.kernels(_shapes(base))
