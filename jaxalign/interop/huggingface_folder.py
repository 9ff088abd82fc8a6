"""Hugging Face folders: ``config.json`` and safetensors, read and written tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from jaxalign.errors import UserError
from jaxalign.interop import huggingface, safetensors, storage
from jaxalign.interop.arrays import LazyArray, reading_order, transposed
from jaxalign.networks.config import T5Config

CONFIG = "config.json"
SENTENCEPIECE = "spiece.model"
_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack")
_ROWS = 4096  # of a table, compared at a time


def refuse_pickle(path: str, names: set[str]) -> None:
    """Says how to get safetensors where there are only files of other frameworks.

    Raises:
      UserError: there are.
    """
    others = sorted(
        name for name in names if name.endswith(_PICKLED) and "training_args" not in name
    )
    if others and not any(name.endswith(".safetensors") for name in names):
        raise UserError(
            f"{storage.join(path, others[0])} is not read, because such files can run code when they are loaded; download the "
            "model.safetensors that most repositories have, or write one where the file is trusted: "
            "T5ForConditionalGeneration.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER, safe_serialization=True)"
        )


def read(folder: str) -> tuple[dict[str, LazyArray], T5Config, list[str]]:
    """The parameters, under T5X's names and layer by layer, their configuration, and what of the folder no network uses.

    Raises:
      UserError: the folder holds no T5 in safetensors, or other tensors than its configuration says.
    """
    content = storage.read(folder, CONFIG)
    path = storage.join(folder, CONFIG)
    if content is None:
        raise UserError(f"{path} is missing")
    try:
        config = huggingface.config_from_huggingface(safetensors.parse_json(content, path))
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path}: {reason}") from error
    tensors = safetensors.read_folder(folder)
    unused = []
    if tensors.pop(huggingface.UNUSED, None) is not None:
        unused.append(f"{huggingface.UNUSED} (no T5 reads it)")
    copies = [*huggingface.ALIASES, *([huggingface.HEAD] if config.logits_via_embedding else [])]
    for name in copies:
        copy = tensors.pop(name, None)
        if copy is not None and huggingface.SHARED in tensors:
            _require_equal(folder, name, copy, tensors[huggingface.SHARED])
            unused.append(f"{name} (the same as {huggingface.SHARED})")
        elif copy is not None and huggingface.SHARED not in tensors:
            # Some files have the shared table only under the name of one of its users.
            tensors[huggingface.SHARED] = copy
    if not config.logits_via_embedding and huggingface.SHARED in tensors:
        # Tied logits that are not scaled are those of a head that equals the table.
        tensors.setdefault(huggingface.HEAD, tensors[huggingface.SHARED])
    params = {}
    for pair in huggingface.pairs(config):
        name = ".".join(pair.path)
        if pair.name not in tensors:
            raise UserError(f"{folder} has no {pair.name}, which {name} needs")
        tensor = tensors.pop(pair.name)
        params[name] = transposed(tensor) if pair.transposed else tensor
    if tensors:
        raise UserError(
            f"{folder} has {len(tensors)} tensors that its {CONFIG} does not: {', '.join(sorted(tensors)[:3])}"
        )
    return params, config, unused


def write(folder: str, params: Mapping[str, LazyArray], config: T5Config, dtype: str) -> None:
    """Writes a folder that transformers loads.

    Args:
      folder: an existing, empty folder.
      params: under T5X's names and layer by layer, checked, of one dtype.
      config: of the network.
      dtype: theirs.
    """
    fields = huggingface.config_to_huggingface(config, dtype)
    names = {".".join(pair.path): pair for pair in huggingface.pairs(config)}
    tensors = {}
    for name in reading_order(params):
        pair = names[name]
        tensors[pair.name] = transposed(params[name]) if pair.transposed else params[name]
    safetensors.write_folder(folder, tensors, list(tensors))
    storage.write(folder, CONFIG, (json.dumps(fields, indent=2) + "\n").encode())


def _require_equal(folder: str, name: str, copy: LazyArray, table: LazyArray) -> None:
    equal = copy.shape == table.shape
    for first in range(0, table.shape[0] if equal else 0, _ROWS):
        rows = (slice(first, first + _ROWS), slice(None))
        equal = equal and np.array_equal(copy.read(rows), table.read(rows))
    if not equal:
        raise UserError(
            f"{folder}: {name} differs from {huggingface.SHARED}, but its {CONFIG} has one table for both"
        )
