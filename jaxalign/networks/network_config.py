"""What the package reads of the configuration of an encoder-decoder, whatever its family."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import jax.numpy as jnp

DTYPES = ("float32", "bfloat16")
REMAT_POLICIES = ("none", "minimal", "full")
Config = TypeVar("Config", bound="NetworkConfig")


class StackSizes(NamedTuple):
    """The sizes of an encoder or a decoder.

    Attributes:
      emb_dim: width of the residual stream.
      num_heads, num_kv_heads, head_dim: of attention; fewer heads of keys and values than queries share them.
      mlp_dim: hidden width of the feed-forward block.
      mlp_branches: matrices into that width, 2 for a gated block.
      num_layers: layers.
    """

    emb_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    mlp_branches: int
    num_layers: int


class NetworkConfig:
    """Base of the configurations of all families. A subclass is a frozen dataclass, and `networks.architecture` names its modules.

    Attributes:
      family: the name of the family in run folders.
      EXTENSIONS: fields of parts that no released checkpoint of the family has, with the values that switch them off.
      COMPUTATION: names of the fields that determine what the network computes; the others determine how.
      LAYER_CYCLE: names of the layers that repeat in a stack, if they differ. Scanned layers are stacked by these names.
      vocab_size: rows of an embedding table, padding rows included.
      emb_dim: width of the decoder's residual stream.
      num_encoder_layers, num_decoder_layers: layers.
      dropout_rate: probability of dropping.
      dtype: dtype of activations, ``float32`` or ``bfloat16``; parameters and log-probabilities are always float32.
      scan_layers: stacked layers under `jax.lax.scan` (short compile) instead of unrolled layers.
      remat_policy: what the backward pass recomputes: ``none``; ``minimal``, all but weight matmuls; ``full``, whole layers.
      param_scan_axis: position of the layer axis in stacked parameters.
      image_size: pixels of the side of an image in a prompt; 0 for a network that reads text only.
    """

    family: ClassVar[str]
    EXTENSIONS: ClassVar[dict[str, Any]] = {}
    COMPUTATION: ClassVar[tuple[str, ...]] = ()
    LAYER_CYCLE: ClassVar[tuple[str, ...]] = ()

    if TYPE_CHECKING:  # subclasses have them as fields or as properties

        @property
        def vocab_size(self) -> int: ...
        @property
        def emb_dim(self) -> int: ...
        @property
        def num_encoder_layers(self) -> int: ...
        @property
        def num_decoder_layers(self) -> int: ...
        @property
        def dropout_rate(self) -> float: ...
        @property
        def dtype(self) -> str: ...
        @property
        def scan_layers(self) -> bool: ...
        @property
        def remat_policy(self) -> str: ...
        @property
        def param_scan_axis(self) -> int: ...
        @property
        def image_size(self) -> int: ...
        @property
        def patch_size(self) -> int: ...
        @property
        def one_hot_embedding(self) -> bool: ...
    else:
        image_size = 0
        patch_size = 0
        one_hot_embedding = False

    def check_numerics(self) -> None:
        """Raises ValueError if a field that every family has is out of range."""
        name = type(self).__name__
        if self.dtype == "float16":
            raise ValueError(
                f"{name}.dtype='float16' is refused: T5's activations overflow float16 and training turns to NaN. "
                "Use 'bfloat16' (same memory, float32's range) or 'float32'."
            )
        self.check_choice("dtype", DTYPES)
        self.check_choice("remat_policy", REMAT_POLICIES)
        self.check_choice("param_scan_axis", (0, 1))
        if not 0.0 <= self.dropout_rate < 1.0:
            raise ValueError(f"{name}.dropout_rate is {self.dropout_rate}; it must be in [0, 1).")

    def check_choice(self, field: str, allowed: tuple[Any, ...]) -> None:
        """Raises ValueError if a field has none of the allowed values."""
        one_of(f"{type(self).__name__}.{field}", getattr(self, field), allowed)

    @property
    def activation_dtype(self) -> Any:
        """`dtype` as a JAX dtype."""
        return jnp.dtype(self.dtype)

    @property
    def encoder_width(self) -> int:
        """Width of the encoder's states."""
        return self.emb_dim

    @property
    def num_patches(self) -> int:
        """Patches of an image."""
        return (self.image_size // self.patch_size) ** 2 if self.image_size else 0

    @property
    def patch_values(self) -> int:
        """Numbers of a patch: red, green and blue of its pixels."""
        return 3 * self.patch_size**2

    @property
    def fuses_encoder_layers(self) -> bool:
        """Whether the decoder reads the outputs of all encoder layers."""
        return False

    @property
    def merges_attention(self) -> bool:
        """Whether a decoder layer has one attention over its own positions and the prompt, with the same queries."""
        return False

    def stack_sizes(self, stack: str) -> StackSizes:
        """The sizes of the ``encoder`` or the ``decoder``."""
        raise NotImplementedError

    def stock(self: Config) -> Config:
        """The network of the family's released checkpoints in this one, without the parts that they do not have."""
        return self.replace(**self.EXTENSIONS)

    def replace(self: Config, **changes: Any) -> Config:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    def described(self) -> dict[str, Any]:
        """What a run folder holds of it, read back by `architecture.config_from_dict`. T5 is described without its family."""
        family = {} if self.family == "t5" else {"family": self.family}
        return {**family, **self.to_dict()}

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary of the fields."""
        raise NotImplementedError

    @classmethod
    def from_dict(cls: type[Config], fields: dict[str, Any]) -> Config:
        """Inverse of `to_dict`.

        Raises:
          ValueError: a key is unknown, or a required one is missing.
        """
        raise NotImplementedError


def check_keys(cls: Any, fields: dict[str, Any], where: str) -> None:
    """Raises ValueError if a dictionary lacks a required field of a dataclass, or has a key that is no field."""
    known = {field.name: field for field in dataclasses.fields(cls)}
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise ValueError(f"{where} has no field {', '.join(unknown)}; known: {sorted(known)}.")
    required = {
        name for name, field in known.items() if field.default is field.default_factory
    }  # both are MISSING
    missing = sorted(required - set(fields))
    if missing:
        raise ValueError(f"{where} needs {', '.join(missing)}.")


def one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raises ValueError if a value is none of the allowed ones."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, allowed))}.")
