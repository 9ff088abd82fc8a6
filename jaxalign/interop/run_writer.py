"""Writes run folders from checkpoints, and completes them if a vocabulary or lengths are given later."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxalign import files
from jaxalign.data.recorded_vocabulary import RecordedVocabulary
from jaxalign.data.vocabularies import FileVocabulary
from jaxalign.errors import UserError
from jaxalign.interop import orbax_writer, storage
from jaxalign.interop.arrays import LazyArray
from jaxalign.interop.checkpoint_sources import Source
from jaxalign.interop.parameters import nest
from jaxalign.networks.network_config import NetworkConfig
from jaxalign.networks.policy import Policy
from jaxalign.runs import checkpoints, manifests
from jaxalign.runs.description import read_description, write_description
from jaxalign.runs.folder import Run
from jaxalign.version import __version__


def describe(
    source: Source,
    config: NetworkConfig,
    vocabulary: RecordedVocabulary | None,
    lengths: dict[str, int],
) -> dict[str, Any]:
    """Returns the content of ``networks.json``.

    Args:
      source: the checkpoint that is converted.
      config: the configuration of its network.
      vocabulary: its vocabulary, if it is known.
      lengths: the lengths of ``inputs`` and ``targets`` in tokens, as given by the user; 0 takes the length that the source records.
    """
    described = {} if source.run is None else source.run.description.networks
    value_token = described.get("policy", {}).get("value_token")
    description: dict[str, Any] = {
        # The parameters have the same values, so this is the same reference policy.
        "run_id": source.run_id(),
        "converted_from": {"format": source.format, "path": source.path, "step": source.step},
        "jaxalign": __version__,
        "networks": {"policy": Policy(config, value_token=value_token).description()},
        "objective": "converted",
        "reward": None,
        "manifests": True,
        "feature_lengths": {
            **source.reading.lengths,
            **{name: length for name, length in lengths.items() if length},
        },
    }
    if source.reading.long_prompts is not None:
        description["long_prompts"] = source.reading.long_prompts
    if vocabulary is not None:
        description["vocabulary"] = _spec(vocabulary)
    return description


def write(
    path: str,
    arrays: Mapping[str, LazyArray],
    step: int,
    description: Mapping[str, Any],
    vocabulary: RecordedVocabulary | None,
) -> None:
    """Writes a run folder with one checkpoint of a policy. The checkpoint has a manifest, as in training."""
    if storage.is_remote(path):
        raise UserError(f"{path}: run folders are local, like MODEL_DIR")
    with storage.new_folder(path) as folder:
        checkpoint = Path(folder) / checkpoints.CHECKPOINTS / str(step)
        orbax_writer.write(str(checkpoint / "params"), {"policy": nest(arrays)})
        manifests.write_manifest(checkpoint, step=step, run_id=description["run_id"])
        _copy_model(Path(folder), vocabulary)
        write_description(Path(folder), description)


def complete(
    path: str, description: Mapping[str, Any], vocabulary: RecordedVocabulary | None
) -> list[str]:
    """Adds information to a run folder of the same checkpoint that was not known when the folder was made.

    Returns:
      A description of what was added.

    Raises:
      UserError: the folder records another vocabulary or other lengths.
    """
    there = dict(read_description(Path(path)).content)
    added = []
    if vocabulary is not None:
        if not there.get("vocabulary"):
            _copy_model(Path(path), vocabulary)
            there["vocabulary"] = _spec(vocabulary)
            added.append("vocabulary")
        elif not (recorded := Run(path).recorded_vocabulary or vocabulary).agrees_with(vocabulary):
            raise UserError(
                f"{path} exists already, with {recorded.describe()} and not {vocabulary.describe()}; choose another output"
            )
    lengths = dict(there.get("feature_lengths") or {})
    for name, length in description["feature_lengths"].items():
        if lengths.get(name, length) != length:
            raise UserError(
                f"{path} exists already, with {lengths[name]} tokens of {name} and not {length}; choose another output"
            )
        if name not in lengths:
            added.append(f"length of {name}")
            lengths[name] = length
    long_prompts = description.get("long_prompts")
    recorded_cut = there.get("long_prompts")
    if long_prompts is not None and recorded_cut is None:
        added.append("treatment of long prompts")
        there["long_prompts"] = long_prompts
    elif long_prompts not in (None, recorded_cut):
        raise UserError(
            f"{path} exists already, with long_prompts {recorded_cut!r} and not {long_prompts!r}; choose another output"
        )
    if added:
        there["feature_lengths"] = lengths
        write_description(Path(path), there)
    return added


def lacking(description: Mapping[str, Any]) -> list[str]:
    """Returns the flags that supply the values which a folder does not record."""
    flags = {"inputs": "--max_input_length", "targets": "--max_target_length"}
    missing = [] if description.get("vocabulary") else ["--vocabulary"]
    known = description.get("feature_lengths") or {}
    return missing + [flag for name, flag in flags.items() if name not in known]


def _spec(vocabulary: RecordedVocabulary) -> dict[str, Any]:
    spec = dict(vocabulary.spec)
    if "path" in spec:
        spec["path"] = Path(spec["path"]).name
    return spec


def _copy_model(folder: Path, vocabulary: RecordedVocabulary | None) -> None:
    if vocabulary is None or "path" not in vocabulary.spec:
        return
    loaded = vocabulary.load()
    assert isinstance(loaded, FileVocabulary)
    files.write_bytes(folder / Path(vocabulary.spec["path"]).name, loaded.model)
