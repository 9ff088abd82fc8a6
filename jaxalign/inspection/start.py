"""The checkpoint that a run on an inspected file starts from: its address, its network as gin, and its vocabulary."""

from __future__ import annotations

import dataclasses

from jaxalign.data.rejections import DataError
from jaxalign.data.vocabularies import Vocabulary
from jaxalign.interop import parameters
from jaxalign.interop.checkpoint_sources import open_source
from jaxalign.interop.source_vocabulary import own_vocabulary
from jaxalign.networks.config import T5Config

_LARGE = 1024  # the width from which layers are stacked and recomputed, as in gin_configs/models


@dataclasses.dataclass(frozen=True)
class Start:
    """A checkpoint to start from.

    Attributes:
      address: INITIAL_CHECKPOINT_PATH.
      network: the lines of the gin file that describe its network.
      vocabulary: its vocabulary; None if it records none.
    """

    address: str
    network: tuple[str, ...]
    vocabulary: Vocabulary | None


def read_start(checkpoint: str) -> Start:
    """Reads the network and the vocabulary of a checkpoint, and none of its arrays (of a run with adapters, all).

    Args:
      checkpoint: a run folder, a Hugging Face folder, ``hf://OWNER/NAME[@REVISION]``, or a T5X checkpoint.

    Raises:
      UserError: there is no such checkpoint, or it is malformed.
      DataError: it is no T5, or a T5 with parts of its own that a gin file of its own describes.
    """
    source = open_source(checkpoint)
    config, _ = source.configured(None)
    if not isinstance(config, T5Config) or config != config.stock():
        raise DataError(
            f"{checkpoint} is another network than a T5; give --model=FILE of gin_configs/models, or write the gin file of its run again"
        )
    recorded = own_vocabulary(source)
    # A run folder is given with the step that is chosen by itself, as train chooses it.
    address = checkpoint if source.run is not None else source.address
    return Start(address, _network(config), None if recorded is None else recorded.load())


def _network(config: T5Config) -> tuple[str, ...]:
    large = config.emb_dim >= _LARGE
    macros = {
        "VOCAB_SIZE": config.vocab_size,
        # A laptop's processor has no bfloat16 arithmetic.
        "ACTIVATION_DTYPE": "bfloat16" if large else "float32",
        "SCAN_LAYERS": large,
        "REMAT_POLICY": "minimal" if large else "none",
    }
    return (
        *(f"{name} = {value!r}" for name, value in macros.items()),
        "",
        "config.T5Config:",
        # VOCAB_SIZE is a macro, as dtype, dropout and layout of the layers are.
        *(
            f"  {name} = {getattr(config, name)!r}"
            for name in parameters.identity(config)
            if name != "vocab_size"
        ),
    )
