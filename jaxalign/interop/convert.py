"""`jaxalign convert`: a checkpoint of a policy from one format into another, one array in memory at a time."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from jaxalign import __version__
from jaxalign.errors import UserError
from jaxalign.interop import huggingface, huggingface_folder, orbax_writer, storage, t5x
from jaxalign.interop.arrays import DTYPES, LazyArray, cast
from jaxalign.interop.parameters import in_layout, nest
from jaxalign.interop.sources import FORMATS, HUGGING_FACE, RUN, T5X, Source, open_source
from jaxalign.networks.config import T5Config
from jaxalign.runs import checkpoints, loading

T5_EXTRA_IDS = 100  # sentinels that T5's tokenizers add to their SentencePiece model


def convert(
    *,
    checkpoint: str,
    output: str,
    to: str = RUN,
    step: str = "",
    role: str = "policy",
    model: T5Config | None = None,
    dtype: str = "",
    scan_layers: bool | None = None,
    vocabulary: str = "",
    extra_ids: int = 0,
    max_input_length: int = 0,
    max_target_length: int = 0,
) -> dict[str, Any]:
    """Converts a policy between run folders of jaxalign, T5X checkpoints (legacy and Orbax) and Hugging Face folders.

    Every parameter is used exactly once, or the command stops and names it. Values are only renamed, transposed and stacked; they
    change if --dtype rounds them. Optimizer states and networks other than the policy are left out, and the command says so.

    Args:
      checkpoint: a run folder, a T5X checkpoint or a folder of several, or a Hugging Face folder with config.json and safetensors;
        local or gs://.
      output: the new folder; for T5X, checkpoint_<step> inside it unless it has such a name itself.
      to: jaxalign, t5x (msgpack and zarr, which every version of T5X reads), t5x_orbax, or huggingface.
      step: which checkpoint, where there are several: a number, 'latest' or (of runs) 'best'.
      role: the network of a run to convert.
      model: what the checkpoint is taken for; from gin: --gin_file=models/FILE.
      dtype: float32 or bfloat16; by default as it is, and float32 in a run folder.
      scan_layers: whether a run folder has its layers stacked; by default as the model says.
      vocabulary: a SentencePiece model or 'bytes', for a run folder; by default the checkpoint's own where it has one.
      extra_ids: sentinels after the vocabulary's own pieces; 100 for T5's.
      max_input_length: tokens of a prompt, which a run folder records for generating and scoring.
      max_target_length: tokens of a response, likewise.

    Returns:
      ``message``, ``output``, ``step``, ``arrays``, ``parameters``, ``left_out`` and ``assumed``.

    Raises:
      UserError: the checkpoint is malformed, does not fit the model, or something is at `output` already.
    """
    if to not in FORMATS:
        raise UserError(f"--to={to} is not a format; there are {', '.join(FORMATS)}")
    if dtype and dtype not in ("float32", "bfloat16"):
        raise UserError(f"--dtype={dtype} is refused; T5's parameters are float32 or bfloat16")
    source = open_source(checkpoint, int(step) if step.isdigit() else step or None, role=role)
    config, assumed = source.configured(model)
    if to == RUN:
        if dtype == "bfloat16":
            raise UserError(
                "a run folder's parameters are float32; ACTIVATION_DTYPE is another matter"
            )
        dtype = "float32"
        if scan_layers is not None:
            config = config.replace(scan_layers=scan_layers)
    elif scan_layers or vocabulary or extra_ids or max_input_length or max_target_length:
        raise UserError(
            "--scan_layers, --vocabulary, --extra_ids and the lengths are for run folders (--to=jaxalign)"
        )
    dtype = dtype or _common_dtype(source.params)
    notes: list[str] = []
    path, new_step = _place(storage.absolute(output), to, source.step)
    if to == RUN:
        description = _describe(source, config, vocabulary, extra_ids)
        lengths = {"inputs": max_input_length, "targets": max_target_length}
        recorded = dict(source.info.get("feature_lengths") or {})
        description["feature_lengths"] = recorded | {k: v for k, v in lengths.items() if v}
        laid_out = in_layout(source.params, config)
        arrays = {name: cast(array, DTYPES[dtype]) for name, array in laid_out.items()}
        lacking = [
            *([] if description["vocabulary"] else ["--vocabulary"]),
            *(
                f"--max_{'input' if name == 'inputs' else 'target'}_length"
                for name in lengths
                if name not in description["feature_lengths"]
            ),
        ]
        if lacking:
            notes = [f"not recorded: {', '.join(lacking)}; generate, evaluate and score need them"]
        _write_run(path, arrays, new_step, description)
    else:
        arrays = {name: cast(array, DTYPES[dtype]) for name, array in source.params.items()}
        _write_foreign(path, to, arrays, new_step, config, dtype, source)
    return _result(source, path, new_step, arrays, dtype, assumed, notes)


def _place(output: str, to: str, step: int) -> tuple[str, int]:
    """Where the checkpoint goes, and its step."""
    if to in (RUN, HUGGING_FACE):
        return output, step
    named = t5x.step_of(output)
    if named is not None:
        return output, named
    return storage.join(output, f"checkpoint_{step}"), step


def _common_dtype(params: dict[str, LazyArray]) -> str:
    """bfloat16 where everything is; float32, which holds the others' values exactly, otherwise."""
    only = {array.dtype.name for array in params.values()} == {"bfloat16"}
    return "bfloat16" if only else "float32"


def _write_foreign(
    path: str,
    to: str,
    arrays: dict[str, LazyArray],
    step: int,
    config: T5Config,
    dtype: str,
    source: Source,
) -> None:
    if to == HUGGING_FACE:
        try:
            huggingface.config_to_huggingface(config)
        except ValueError as error:
            raise UserError(str(error)) from error
        with storage.new_folder(path, huggingface_folder.CONFIG) as folder:
            recorded = _vocabulary(source, "", 0)
            _check_size(recorded, config)
            file = recorded.get("source")
            if file is not None:
                content = storage.read(*_split(file)) or b""
                storage.write(folder, huggingface_folder.SENTENCEPIECE, content)
            huggingface_folder.write(folder, arrays, config, dtype)
        return
    marker = t5x.INDEX if to == T5X else f"{t5x.ORBAX_ITEM}/_METADATA"
    with storage.new_folder(path, marker) as folder:
        (t5x.write_legacy if to == T5X else t5x.write_orbax)(folder, arrays, step)


def _write_run(
    path: str, arrays: dict[str, LazyArray], step: int, description: dict[str, Any]
) -> None:
    if storage.is_remote(path):
        raise UserError(f"{path}: run folders are local, like MODEL_DIR")
    source_file = description["vocabulary"].pop("source", None)
    with storage.new_folder(path) as folder:
        item = Path(folder) / checkpoints.CHECKPOINTS / str(step) / "params"
        orbax_writer.write(str(item), {"policy": nest(arrays)})
        if source_file is not None:
            content = storage.read(*_split(source_file))
            (Path(folder) / description["vocabulary"]["path"]).write_bytes(content or b"")
        if not description["vocabulary"]:
            del description["vocabulary"]
        text = json.dumps(description, indent=2) + "\n"
        (Path(folder) / loading.NETWORKS_FILE).write_text(text, encoding="utf-8")


def _describe(source: Source, config: T5Config, vocabulary: str, extra_ids: int) -> dict[str, Any]:
    """The content of ``networks.json``; in ``vocabulary.source``, the file to copy."""
    origin = {"format": source.format, "path": source.path, "step": source.step}
    description: dict[str, Any] = {
        # The same numbers, so the same reference policy.
        "run_id": source.run_id(),
        "converted_from": origin,
        "jaxalign": __version__,
        "networks": {"policy": config.to_dict()},
        "objective": "converted",
        "vocabulary": _vocabulary(source, vocabulary, extra_ids),
        "reward": None,
    }
    if source.info.get("value_token") is not None:
        description["value_token"] = source.info["value_token"]
    _check_size(description["vocabulary"], config)
    return description


def _vocabulary(source: Source, given: str, extra_ids: int) -> dict[str, Any]:
    if given == "bytes":
        return {"kind": "bytes", "extra_ids": extra_ids}
    if given:
        file = storage.absolute(given)
    elif "vocabulary" in source.info:
        recorded = dict(source.info["vocabulary"])
        if "path" in recorded:
            recorded["source"] = str(Path(source.path) / recorded["path"])
            recorded["path"] = Path(recorded["path"]).name
        return recorded
    elif source.format == HUGGING_FACE and storage.read(
        source.path, huggingface_folder.SENTENCEPIECE
    ):
        file = storage.join(source.path, huggingface_folder.SENTENCEPIECE)
        extra_ids = extra_ids or T5_EXTRA_IDS
    else:
        return {}
    content = storage.read(*_split(file))
    if content is None:
        raise UserError(f"the vocabulary {file} is missing")
    return {
        "kind": "sentencepiece",
        "path": _split(file)[1],
        "extra_ids": extra_ids,
        "sha256": hashlib.sha256(content).hexdigest(),
        "source": file,
    }


def _check_size(vocabulary: dict[str, Any], config: T5Config) -> None:
    """Refuses a vocabulary that the embedding table has no rows for."""
    from jaxalign.data.vocabularies import vocabulary_from_dict

    if not vocabulary or storage.is_remote(vocabulary.get("source", "")):
        return
    described = {**vocabulary, "path": vocabulary.get("source", "")}
    try:
        size = vocabulary_from_dict(described).size
    except ValueError as error:
        raise UserError(str(error)) from error
    if size > config.vocab_size:
        raise UserError(
            f"the vocabulary has {size} tokens with its sentinels, but the embedding table {config.vocab_size} rows"
        )


def _split(file: str) -> tuple[str, str]:
    folder, _, name = file.rpartition("/")
    return folder, name


def _result(
    source: Source,
    path: str,
    step: int,
    arrays: dict[str, LazyArray],
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
