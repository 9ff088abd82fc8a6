"""Implements `jaxalign convert`, which converts a policy checkpoint to another format with one array in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.data.recorded_vocabulary import RecordedVocabulary
from jaxalign.errors import UserError
from jaxalign.interop import (
    huggingface_folder,
    reading_settings,
    run_writer,
    storage,
    t5x,
    tokenizer_files,
)
from jaxalign.interop.arrays import DTYPES, LazyArray, cast, reading_order
from jaxalign.interop.checkpoint_sources import FORMATS, HUGGING_FACE, RUN, T5X, Source, open_source
from jaxalign.interop.parameters import in_layout, require_stock, require_t5x, same_architecture
from jaxalign.interop.reading_settings import ReadingSettings
from jaxalign.interop.source_vocabulary import choose_vocabulary, own_vocabulary
from jaxalign.networks.network_config import NetworkConfig
from jaxalign.runs.description import read_description


def convert(
    *,
    checkpoint: str,
    output: str,
    to: str = RUN,
    step: str = "",
    role: str = "policy",
    model: NetworkConfig | None = None,
    dtype: str = "",
    scan_layers: bool | None = None,
    vocabulary: str = "",
    extra_ids: int | None = None,
    max_input_length: int = 0,
    max_target_length: int = 0,
) -> dict[str, Any]:
    """Converts a policy between run folders of jaxalign, T5X checkpoints (legacy and Orbax) and Hugging Face folders.

    Every parameter is used exactly once; otherwise the command stops and names the parameter. Arrays are only renamed, transposed and
    stacked. Values change only if --dtype rounds them. Optimizer states and networks other than the policy are left out and reported.

    The lengths of a run and its treatment of long prompts are written beside the parameters (``jaxalign.json``) and read back.

    The new folder gets its final name when it is complete. If the command is repeated, it recognises its existing output. It then adds
    the vocabulary and the lengths to a run folder if they were not given before.

    Args:
      checkpoint: a run folder, a T5X checkpoint or a folder of several, or a Hugging Face folder with config.json and safetensors;
        local or gs://.
      output: the new folder; for T5X, checkpoint_<step> inside it, unless the folder itself has such a name.
      to: jaxalign, t5x (msgpack and zarr, which every version of T5X reads), t5x_orbax, or huggingface.
      step: the checkpoint, if there are several: a number, 'latest' or (for runs) 'best'.
      role: the network of a run to convert.
      model: the model configuration of the checkpoint, from gin: --gin_file=models/FILE.
      dtype: float32 or bfloat16; by default the dtype of the checkpoint, and float32 in a run folder.
      scan_layers: whether a run folder has its layers stacked; by default the setting of the model.
      vocabulary: a SentencePiece model, a tokenizer.json or 'bytes', for a run folder or a Hugging Face folder; by default the
        checkpoint's own vocabulary, if it has one.
      extra_ids: the number of sentinels after the vocabulary's own pieces; 100 for T5. By default the number that the checkpoint records.
      max_input_length: the maximum number of tokens of a prompt, which a run folder records for generation and scoring; by default the
        length that the checkpoint records, if any.
      max_target_length: the maximum number of tokens of a response, which is recorded likewise.

    Returns:
      ``message``, ``output``, ``step``, ``arrays``, ``parameters``, ``left_out`` and ``assumed``.

    Raises:
      UserError: the checkpoint is malformed or damaged, does not fit the model or the vocabulary, or something else is at `output`.
    """
    if to not in FORMATS:
        raise UserError(f"--to={to} is not a format; there are {', '.join(FORMATS)}")
    if dtype and dtype not in ("float32", "bfloat16"):
        raise UserError(f"--dtype={dtype} is refused; T5's parameters are float32 or bfloat16")
    lengths = {"inputs": max_input_length, "targets": max_target_length}
    if to != RUN and (scan_layers or any(lengths.values())):
        raise UserError("--scan_layers and the lengths are for run folders (--to=jaxalign)")
    if to not in (RUN, HUGGING_FACE) and (vocabulary or extra_ids is not None):
        raise UserError(
            "T5X's checkpoints hold no vocabulary; --vocabulary and --extra_ids are for --to=jaxalign and --to=huggingface"
        )
    source = open_source(checkpoint, step or None, role=role)
    config, assumed = source.configured(model)
    if to != RUN:
        (require_stock if to == HUGGING_FACE else require_t5x)(source.path, config)
    if to == RUN:
        if dtype == "bfloat16":
            raise UserError(
                "a run folder's parameters are float32; ACTIVATION_DTYPE is another matter"
            )
        dtype = "float32"
        if scan_layers is not None:
            config = config.replace(scan_layers=scan_layers)
    dtype = dtype or _common_dtype(source.params)
    path, new_step = _place(storage.absolute(output), to, source.step)
    chosen = None
    if to in (RUN, HUGGING_FACE):
        chosen = choose_vocabulary(source, config, vocabulary, extra_ids)
    arrays = {name: cast(array, DTYPES[dtype]) for name, array in source.params.items()}
    is_there = not storage.is_remote(path) and storage.occupied(path)
    if is_there:
        _require_same(path, to, arrays, new_step, config, source)
    notes = [f"{path} was there already, with the same parameters"] if is_there else []
    if to == RUN:
        description = run_writer.describe(source, config, chosen, lengths)
        if is_there:
            added = run_writer.complete(path, description, chosen)
            notes += [f"added: {', '.join(added)}"] if added else []
            description = dict(read_description(Path(path)).content)
        else:
            laid_out = in_layout(source.params, config)
            stored = {name: cast(array, DTYPES[dtype]) for name, array in laid_out.items()}
            run_writer.write(path, stored, new_step, description, chosen)
        lacking = run_writer.lacking(description)
        if lacking:
            notes.append(
                f"not recorded: {', '.join(lacking)}; generate, evaluate and score need them: give this command again with them, which "
                "adds them"
            )
    elif is_there:
        _require_same_texts(path, to, chosen, source.reading)
    else:
        notes += _write_foreign(path, to, arrays, new_step, config, dtype, chosen, source.reading)
    return _result(source, path, new_step, arrays, dtype, assumed, notes)


def _place(output: str, to: str, step: int) -> tuple[str, int]:
    """Returns the path of the new checkpoint, and its step."""
    if to in (RUN, HUGGING_FACE):
        return output, step
    named = t5x.step_of(output)
    if named is not None:
        return output, named
    return storage.join(output, f"checkpoint_{step}"), step


def _common_dtype(params: dict[str, LazyArray]) -> str:
    """Returns bfloat16 if all arrays have it; otherwise float32, which represents the values of the other types exactly."""
    only = {array.dtype.name for array in params.values()} == {"bfloat16"}
    return "bfloat16" if only else "float32"


def _write_foreign(
    path: str,
    to: str,
    arrays: dict[str, LazyArray],
    step: int,
    config: NetworkConfig,
    dtype: str,
    vocabulary: RecordedVocabulary | None,
    reading: ReadingSettings,
) -> list[str]:
    """Writes a folder for another program, and returns notes for its user."""
    if to != HUGGING_FACE:
        marker = t5x.INDEX if to == T5X else f"{t5x.ORBAX_ITEM}/_METADATA"
        with storage.new_folder(path, marker) as folder:
            reading_settings.write(folder, reading)
            (t5x.write_legacy if to == T5X else t5x.write_orbax)(folder, arrays, step)
        return []
    huggingface_folder.config_fields(config)
    with storage.new_folder(path, huggingface_folder.CONFIG) as folder:
        notes = ["no tokenizer is in it, for the checkpoint has no vocabulary: give --vocabulary"]
        if vocabulary is not None:
            notes = tokenizer_files.write(folder, vocabulary.load(), reading.for_tokenizer())
        reading_settings.write(folder, reading)
        huggingface_folder.write(folder, arrays, config, dtype, reading.for_generation())
    return notes


def _require_same(
    path: str,
    to: str,
    arrays: Mapping[str, LazyArray],
    step: int,
    config: NetworkConfig,
    source: Source,
) -> None:
    """Refuses an existing output unless every value equals what this command would write.

    Raises:
      UserError: the output has other content.
    """
    refused = UserError(f"{path} exists already; choose another output")
    try:
        there = open_source(path)
    except UserError:
        raise refused from None
    same = there.format == to and there.params.keys() == arrays.keys()
    if to == RUN:
        same = same and there.config == config and there.run_id() == source.run_id()
        same = same and there.run is not None and there.run.description.method == "converted"
    if to != HUGGING_FACE:
        same = same and there.step == step
    if not same:
        raise refused
    if there.config is not None:
        same_architecture(path, there.config, config)
    for name in reading_order(there.params):
        one, other = there.params[name], arrays[name]
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            raise refused
        # Values are compared as bytes, so that a NaN equals itself.
        if not np.array_equal(_bytes(one), _bytes(other)):
            raise refused


def _bytes(array: LazyArray) -> np.ndarray:
    return np.ascontiguousarray(array.read()).reshape(-1).view(np.uint8)


def _require_same_texts(
    path: str, to: str, vocabulary: RecordedVocabulary | None, reading: ReadingSettings
) -> None:
    """Refuses an existing output of the same parameters that reads text in another way."""
    output = open_source(path)
    if output.reading != reading:
        raise UserError(
            f"{path} exists already, with other lengths or another treatment of long prompts; choose another output"
        )
    there = own_vocabulary(output) if to == HUGGING_FACE else None
    if (there is None) != (vocabulary is None) or (
        there is not None and vocabulary is not None and not there.agrees_with(vocabulary)
    ):
        raise UserError(f"{path} exists already, with another vocabulary; choose another output")


def _result(
    source: Source,
    path: str,
    step: int,
    arrays: Mapping[str, LazyArray],
    dtype: str,
    assumed: str,
    notes: list[str],
) -> dict[str, Any]:
    count = sum(math.prod(array.shape) for array in arrays.values())
    wider = {array.dtype.name for array in source.params.values()} - {dtype}
    lines = [
        f"{path} holds {count:,} parameters in {len(arrays)} arrays ({dtype}) of {source.path}, step {step}",
        *(["rounded to bfloat16"] if dtype == "bfloat16" and wider else []),
        *([f"left out: {', '.join(source.left_out)}"] if source.left_out else []),
        *([assumed] if assumed else []),
        *notes,
    ]
    return {
        "message": "\n".join(lines),
        "output": path,
        "step": step,
        "arrays": len(arrays),
        "parameters": count,
        "left_out": source.left_out,
        "assumed": assumed,
    }
