"""The checkpoint that a run on an inspected file starts from: its address, its network as gin, and its vocabulary."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from jaxalign.data.rejections import DataError
from jaxalign.data.vocabularies import Vocabulary
from jaxalign.interop import parameters
from jaxalign.interop.checkpoint_sources import open_source
from jaxalign.interop.source_vocabulary import own_vocabulary
from jaxalign.networks.config import T5Config
from jaxalign.networks.gemma_config import GemmaConfig
from jaxalign.networks.network_config import NetworkConfig

_LARGE = 1024  # the width from which layers are stacked and recomputed, as in gin_configs/models


@dataclasses.dataclass(frozen=True)
class GinNetwork:
    """A network in the terms of a gin file.

    Attributes:
      included: the file of gin_configs/models with the common part of its family.
      module: the module of jaxalign.networks that has its configuration.
      lines: the bindings that describe it.
    """

    included: str
    module: str
    lines: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Start:
    """A checkpoint to start from.

    Attributes:
      address: INITIAL_CHECKPOINT_PATH.
      network: its network.
      vocabulary: its vocabulary; None if it records none.
    """

    address: str
    network: GinNetwork
    vocabulary: Vocabulary | None


def read_start(checkpoint: str) -> Start:
    """Reads the network and the vocabulary of a checkpoint, and none of its arrays (of a run with adapters, all).

    Args:
      checkpoint: a run folder, a Hugging Face folder, ``hf://OWNER/NAME[@REVISION]``, or a T5X checkpoint.

    Raises:
      UserError: there is no such checkpoint, or it is malformed.
      DataError: it is of no known family, or a T5 with parts of its own that a gin file of its own describes.
    """
    source = open_source(checkpoint)
    config, _ = source.configured(None)
    if isinstance(config, GemmaConfig):
        network = _gemma(config)
    elif isinstance(config, T5Config) and config == config.stock():
        network = _t5(config)
    else:
        raise DataError(
            f"{checkpoint} is another network than a T5, T5Gemma or T5Gemma 2; give --model=FILE of gin_configs/models, or write "
            "the gin file of its run again"
        )
    recorded = own_vocabulary(source)
    # A run folder is given with the step that is chosen by itself, as train chooses it.
    address = checkpoint if source.run is not None else source.address
    return Start(address, network, None if recorded is None else recorded.load())


def _macros(config: NetworkConfig, width: int, scannable: bool = True) -> tuple[str, ...]:
    large = width >= _LARGE
    macros = {
        "VOCAB_SIZE": config.vocab_size,
        # A laptop's processor has no bfloat16 arithmetic.
        "ACTIVATION_DTYPE": "bfloat16" if large else "float32",
        "SCAN_LAYERS": large and scannable,
        "REMAT_POLICY": "minimal" if large else "none",
    }
    return (*(f"{name} = {value!r}" for name, value in macros.items()), "")


def _t5(config: T5Config) -> GinNetwork:
    # VOCAB_SIZE is a macro, as dtype, dropout and layout of the layers are.
    names = [name for name in parameters.identity(config) if name != "vocab_size"]
    lines = _bindings("config.T5Config", {name: getattr(config, name) for name in names})
    return GinNetwork("t5", "config", _macros(config, config.emb_dim) + lines)


def _gemma(config: GemmaConfig) -> GinNetwork:
    module = f"{config.family}_config"
    stacks = {"encoder": config.encoder, "decoder": config.decoder}
    cycle = max(1, len(config.LAYER_CYCLE))
    whole = not any(stack.num_layers % cycle for stack in stacks.values())
    lines = _macros(config, max(stack.emb_dim for stack in stacks.values()), whole)
    for name, stack in stacks.items():
        sizes = dataclasses.asdict(stack)
        lines += (*_bindings(f"{name}/{module}.{config.STACK.__name__}", sizes), "")
    names = [name for name in config.COMPUTATION if name not in ("vocab_size", *stacks)]
    of_both = {name: getattr(config, name) for name in names}
    lines += _bindings(f"{module}.{type(config).__name__}", of_both)
    return GinNetwork(config.family, module, lines)


def _bindings(selector: str, values: Mapping[str, object]) -> tuple[str, ...]:
    return (f"{selector}:", *(f"  {name} = {value!r}" for name, value in values.items()))
