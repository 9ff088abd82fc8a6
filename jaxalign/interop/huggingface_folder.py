"""Reads and writes Hugging Face folders with ``config.json`` and safetensors, tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from jaxalign.errors import UserError
from jaxalign.interop import (
    huggingface,
    huggingface_config,
    huggingface_t5gemma,
    huggingface_t5gemma2,
    safetensors,
    storage,
)
from jaxalign.interop.arrays import LazyArray, reading_order, transposed
from jaxalign.interop.huggingface import Pair
from jaxalign.networks.config import T5Config
from jaxalign.networks.network_config import NetworkConfig
from jaxalign.networks.t5gemma2_config import T5Gemma2Config
from jaxalign.networks.t5gemma_config import T5GemmaConfig

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack")
_ROWS = 4096  # the number of table rows that are compared at a time
# Prefixes that tools add to all names, and the names of these tools.
_WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "module.": "DistributedDataParallel",
    "pretrained_model.": "TRL's model with a value head",
}


class _Family(Protocol):
    """The module of a family besides T5."""

    MODEL_TYPE: str
    TOKEN_IDS: dict[str, int]

    def pairs(self, config: Any) -> Iterator[Pair]: ...

    def copies(self, config: Any) -> dict[str, str]: ...

    def config_from_huggingface(
        self, fields: Mapping[str, Any], **changes: Any
    ) -> NetworkConfig: ...

    def config_to_huggingface(self, config: Any, dtype: str) -> dict[str, Any]: ...

    def check_token_ids(self, fields: Mapping[str, Any]) -> None: ...


_FAMILIES: dict[type[NetworkConfig], _Family] = {
    T5GemmaConfig: huggingface_t5gemma,
    T5Gemma2Config: huggingface_t5gemma2,
}
_MODEL_TYPES = {module.MODEL_TYPE: module for module in _FAMILIES.values()}
_VALUE_HEAD = ("v_head.summary.weight", "v_head.summary.bias")


def refuse_pickle(path: str, names: set[str]) -> None:
    """Refuses a folder that has only files of other frameworks, and explains how to get safetensors.

    Raises:
      UserError: the folder has only such files.
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


def read(folder: str) -> tuple[dict[str, LazyArray], NetworkConfig, list[str]]:
    """Reads the parameters with T5X's names, layer by layer, their configuration, and a list of unused contents of the folder.

    Raises:
      UserError: the folder holds no T5, T5Gemma or T5Gemma 2 in safetensors, or its tensors do not match its configuration.
    """
    path = storage.join(folder, CONFIG)
    fields = storage.read_json(folder, CONFIG)
    if fields is None:
        raise UserError(f"{path} is missing")
    tensors, unused = safetensors.read_folder(folder)
    tensors = _without_wrappers(folder, tensors, unused)
    model_type = fields.get("model_type")
    family = _MODEL_TYPES.get(model_type) if isinstance(model_type, str) else None
    _check_generation(folder, family or huggingface_config)
    if family is huggingface_t5gemma2:
        tensors = huggingface_t5gemma2.text_tensors(folder, tensors, unused)
    config: NetworkConfig
    if family is None:
        config = _t5_tables(folder, fields, tensors, unused)
    else:
        config = _parsed(folder, family.config_from_huggingface, fields)
        _drop_copies(folder, family.copies(config), tensors, unused)
    params = {}
    for pair in pairs(config):
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


def pairs(config: NetworkConfig) -> Iterable[Pair]:
    """Returns the path in jaxalign and the name in transformers of every parameter.

    Raises:
      UserError: transformers has no such network.
    """
    family = _FAMILIES.get(type(config))
    return family.pairs(config) if family else huggingface.pairs(_require_t5(config))


def config_fields(config: NetworkConfig, dtype: str = "float32") -> dict[str, Any]:
    """Returns the content of a ``config.json``.

    Raises:
      UserError: transformers has no such network.
    """
    try:
        if family := _FAMILIES.get(type(config)):
            return family.config_to_huggingface(config, dtype)
        return huggingface_config.config_to_huggingface(_require_t5(config), dtype)
    except ValueError as error:
        raise UserError(str(error)) from error


def _require_t5(config: NetworkConfig) -> T5Config:
    if type(config) is not T5Config:
        raise UserError(f"a {config.family} has no form in transformers that jaxalign knows")
    return config


def _parsed(
    folder: str, parse: Callable[..., Any], fields: Mapping[str, Any], **options: Any
) -> Any:
    try:
        return parse(fields, **options)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{storage.join(folder, CONFIG)}: {reason}") from error


def _drop_copies(
    folder: str, copies: Mapping[str, str], tensors: dict[str, LazyArray], unused: list[str]
) -> None:
    """Takes tensors that must equal others out of a folder's. `copies` are names, and the names of what they equal."""
    for name, table in copies.items():
        copy = tensors.pop(name, None)
        if copy is not None and table in tensors:
            _require_equal(folder, name, copy, table, tensors[table])
            unused.append(f"{name} (the same as {table})")


def _t5_tables(
    folder: str, fields: Mapping[str, Any], tensors: dict[str, LazyArray], unused: list[str]
) -> NetworkConfig:
    """Returns the configuration of a T5, and leaves one tensor for each of its tables."""
    head_differs = _head_differs(tensors)
    parse = huggingface_config.config_from_huggingface
    config = _parsed(folder, parse, fields, head_differs=head_differs)
    if tensors.pop(huggingface.UNUSED, None) is not None:
        unused.append(f"{huggingface.UNUSED} (no T5 reads it)")
    copies = [*huggingface.ALIASES, *([huggingface.HEAD] if config.logits_via_embedding else [])]
    for name in copies:
        copy = tensors.pop(name, None)
        if copy is not None and huggingface.SHARED in tensors:
            _require_equal(folder, name, copy, huggingface.SHARED, tensors[huggingface.SHARED])
            unused.append(f"{name} (the same as {huggingface.SHARED})")
        elif copy is not None and huggingface.SHARED not in tensors:
            # Some files have the shared table only under the name of a module that uses it.
            tensors[huggingface.SHARED] = copy
    if huggingface_config.is_tied(fields, head_differs) and huggingface.SHARED in tensors:
        if not config.logits_via_embedding:
            # Tied logits without scaling equal the logits of a separate head that is a copy of the table.
            tensors.setdefault(huggingface.HEAD, tensors[huggingface.SHARED])
    elif huggingface.HEAD not in tensors:
        raise UserError(
            f"{folder} has no {huggingface.HEAD}, and its {CONFIG} says that the head is not the embedding table "
            "(tie_word_embeddings false); is it a model with a head, and downloaded completely?"
        )
    return config


def write(
    folder: str,
    params: Mapping[str, LazyArray],
    config: NetworkConfig,
    dtype: str,
    generation: Mapping[str, Any],
) -> None:
    """Writes a folder that transformers can load.

    Args:
      folder: an existing, empty folder.
      params: the checked parameters with T5X's names, layer by layer, all of one dtype.
      config: the configuration of the network.
      dtype: the dtype of the parameters.
      generation: the defaults of generation; if there are none, no configuration of generation is written.
    """
    fields = config_fields(config, dtype)
    names = {".".join(pair.path): pair for pair in pairs(config)}
    tensors = {}
    for name in reading_order(params):
        pair = names[name]
        tensors[pair.name] = transposed(params[name]) if pair.transposed else params[name]
    safetensors.write_folder(folder, tensors, list(tensors))
    if generation:
        family = _FAMILIES.get(type(config))
        ids = family.TOKEN_IDS if family else huggingface_config.TOKEN_IDS
        content = json.dumps({**ids, **generation}, indent=2) + "\n"
        storage.write(folder, GENERATION_CONFIG, content.encode())
    storage.write(folder, CONFIG, (json.dumps(fields, indent=2) + "\n").encode())


def _without_wrappers(
    folder: str, tensors: dict[str, LazyArray], unused: list[str]
) -> dict[str, LazyArray]:
    """Returns the tensors under T5's own names, without the prefix that a tool may have added to all of them."""
    stripped: list[str] = []
    while prefix := _wrapper_of(tensors):
        inside = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        others = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
        unused += [f"{name} (of the wrapper {prefix})" for name in others if name in _VALUE_HEAD]
        clashing = sorted(name for name in others if name in inside)
        if clashing:
            raise UserError(f"{folder} has {clashing[0]} with and without the prefix {prefix}")
        tensors = inside | {n: t for n, t in others.items() if n not in _VALUE_HEAD}
        stripped.append(f"{prefix} ({_WRAPPERS[prefix]})")
    if stripped:
        unused.append(f"the prefix {' and '.join(stripped)} of tensors' names")
    return tensors


def _wrapper_of(tensors: Mapping[str, LazyArray]) -> str | None:
    for prefix in _WRAPPERS:
        stacks = ("shared.", "encoder.", "decoder.", "model.encoder.", "model.decoder.")
        inside = tuple(f"{prefix}{stack}" for stack in stacks)
        nested = tuple(f"{prefix}{other}" for other in _WRAPPERS)
        if any(name.startswith((*inside, *nested)) for name in tensors):
            return prefix
    return None


def _head_differs(tensors: Mapping[str, LazyArray]) -> bool:
    """Returns whether there is a head that differs from the embedding table."""
    head = tensors.get(huggingface.HEAD)
    tables = [tensors[n] for n in (huggingface.SHARED, *huggingface.ALIASES) if n in tensors]
    return head is not None and bool(tables) and not _equal(head, tables[0])


def _check_generation(folder: str, family: Any) -> None:
    content = storage.read_json(folder, GENERATION_CONFIG)
    if content is None:
        return
    path = storage.join(folder, GENERATION_CONFIG)
    try:
        family.check_token_ids(content)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def _equal(copy: LazyArray, table: LazyArray) -> bool:
    if copy.shape != table.shape:
        return False
    starts = range(0, table.shape[0], _ROWS) if table.shape else ()
    rows = [
        (slice(first, first + _ROWS), *[slice(None)] * len(table.shape[1:])) for first in starts
    ]
    return all(np.array_equal(copy.read(part), table.read(part)) for part in rows)


def _require_equal(
    folder: str, name: str, copy: LazyArray, table_name: str, table: LazyArray
) -> None:
    if not _equal(copy, table):
        raise UserError(
            f"{folder}: {name} differs from {table_name}, but its {CONFIG} has one table for both"
        )
