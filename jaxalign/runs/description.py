"""Reads and writes ``networks.json``, the typed description of a run folder, with bounds for every number. Only this module does."""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxalign import files, untrusted
from jaxalign.errors import UserError
from jaxalign.networks.architecture import config_class, config_from_dict
from jaxalign.networks.network_config import NetworkConfig
from jaxalign.runs.bases import Base, check_lora, parse_base
from jaxalign.runs.typed_json import JsonReader

NETWORKS_FILE = "networks.json"
LONG_PROMPTS = ("truncate", "truncate_left", "reject")
MAX_LENGTH = 1 << 17  # tokens; attention over more tokens does not fit on any device
MAX_STEP = 10**12
_MAX_ROLES = 32
_MAX_SCORES, _MAX_SCORE_NAME = 4096, 1024
_MAX_HIDDEN_LAYERS, _MAX_SIZE = 64, 1 << 24
# The fields of networks besides their configuration.
_WHOLE = ("value_token", "max_length", "num_features")
_NUMBERS = ("max_value", "scale")
_MAX_EXTRA_IDS = 1 << 16
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_CONFIG_LIMITS = {
    "vocab_size": 1 << 24,
    "emb_dim": 1 << 16,
    "num_heads": 1 << 12,
    "head_dim": 1 << 14,
    "mlp_dim": 1 << 20,
    "num_encoder_layers": 512,
    "num_decoder_layers": 512,
    "num_layers": 512,
    "num_kv_heads": 1 << 12,
    "relative_attention_num_buckets": 1 << 12,
    "relative_attention_max_distance": 1 << 24,
    "param_scan_axis": 1,
    "image_size": 1 << 14,
    "patch_size": 1 << 14,
}
_MAY_BE_0 = ("param_scan_axis", "image_size", "patch_size", "start_token")


@dataclasses.dataclass(frozen=True)
class VocabularyDescription:
    """A vocabulary as a run or cache folder records it.

    Attributes:
      kind: 'bytes', 'sentencepiece' or 'tokenizer'.
      extra_ids: the number of sentinels after the vocabulary's own pieces.
      file: the name of the SentencePiece model or tokenizer.json in the folder; None for bytes.
      sha256: the digest of that file, if it is recorded.
    """

    kind: str
    extra_ids: int = 0
    file: str | None = None
    sha256: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the JSON that `jaxalign.data.vocabularies.vocabulary_from_dict` reads."""
        described: dict[str, Any] = {"kind": self.kind, "extra_ids": self.extra_ids}
        if self.file is not None:
            described |= {"path": self.file, "sha256": self.sha256}
        return described


@dataclasses.dataclass(frozen=True)
class RewardStatistics:
    """The mean and deviation of the training split's feedback, which standardise rewards."""

    mean: float = 0.0
    std: float = 1.0


@dataclasses.dataclass(frozen=True)
class RunDescription:
    """The description that a run records of itself.

    Attributes:
      networks: role -> the JSON from which its network is built; checked when it is built.
      vocabulary: None for a checkpoint that was converted without one.
      feature_lengths: the lengths of ``inputs`` and ``targets`` in tokens, EOS included; a converted checkpoint may lack them.
      long_prompts: the treatment of prompts that are too long; None if it is not recorded.
      row_lengths: the lengths of packed rows, if they differ from ``feature_lengths``.
      method: the objective's name.
      temperature: the tau or beta of the objective, if it has one.
      hyperparameters: all of the objective's options by name.
      reward: the statistics that standardise rewards; None if rewards are not standardised.
      units: 'rewards' or 'feedback', the unit of a value network.
      run_id: the id of the run.
      score_names: the names of the scores of the run's task, in the order in which a reward of scores reads them.
      manifests: whether every checkpoint of this run has a manifest, so that one without is damaged.
      base: the base of this run's adapters, if the run does not hold it.
      content: the whole checked JSON object.
    """

    networks: Mapping[str, Mapping[str, Any]]
    vocabulary: VocabularyDescription | None = None
    feature_lengths: Mapping[str, int] = dataclasses.field(default_factory=dict)
    long_prompts: str | None = None
    row_lengths: Mapping[str, int] | None = None
    method: str | None = None
    temperature: float | None = None
    hyperparameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    reward: RewardStatistics | None = None
    units: str = "rewards"
    run_id: str = "unnamed"
    score_names: tuple[str, ...] = ()
    manifests: bool = False
    base: Base | None = None
    content: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)


def read_description(run: Path) -> RunDescription:
    """Reads and checks a run folder's ``networks.json``.

    Raises:
      UserError: the file is missing or invalid; the message names the file and the key.
    """
    file = run / NETWORKS_FILE
    return parse_description(untrusted.read_json_object(file, inside=run), str(file))


def write_description(run: Path, content: Mapping[str, Any]) -> None:
    """Checks and writes ``networks.json``.

    Raises:
      UserError: the content is invalid; the message names the key that could not be read back.
    """
    file = run / NETWORKS_FILE
    text = json.dumps(content, indent=2) + "\n"
    parse_description(json.loads(text), str(file))
    files.write_text(file, text)


def parse_description(content: Mapping[str, Any], where: str) -> RunDescription:
    """Parses the description in a JSON object.

    Args:
      content: the object.
      where: the file, for messages.

    Raises:
      UserError: the content is invalid; the message names the file and the key.
    """
    read = JsonReader(content, where)
    networks = read.objects("networks", required=True)
    for role in networks:
        if not _NAME.fullmatch(role) or len(networks) > _MAX_ROLES:
            raise read.wrong("networks", f"names of roles, at most {_MAX_ROLES}")
    for key in ("initial_checkpoint", "teacher_tokens"):
        read.optional_object(key)
    _check_origin(read, "initial_checkpoint", content.get("initial_checkpoint"))
    for role, origin in read.objects("frozen_checkpoints").items():
        _check_origin(read, f"frozen_checkpoints, {role}", origin)
    units = read.text("units", "rewards", ("rewards", "feedback"))
    return RunDescription(
        networks=networks,
        vocabulary=_vocabulary(read),
        feature_lengths=read.whole_numbers("feature_lengths", MAX_LENGTH) or {},
        long_prompts=read.text("long_prompts", None, LONG_PROMPTS),
        row_lengths=read.whole_numbers("row_lengths", MAX_LENGTH),
        method=read.text("objective", None),
        temperature=read.number("temperature"),
        hyperparameters=read.optional_object("hyperparameters") or {},
        reward=_reward(read),
        units=str(units),
        run_id=read.text("run_id", "unnamed") or "unnamed",
        score_names=_score_names(read, content.get("score_names")),
        manifests=read.truth("manifests"),
        base=parse_base(read),
        content=content,
    )


def check_network(described: Mapping[str, Any], where: str, *, nested: bool = False) -> None:
    """Checks the types and sizes of the arguments of `jaxalign.networks.registry.build`.

    Raises:
      UserError: a value is invalid; the message names the file, the network and the key.
    """
    read = JsonReader(described, where)
    read.text("kind", None, required=True)
    for key, value in described.items():
        if key == "config":
            parse_config(value, where)
        elif key == "lora":
            check_lora(value, where)
        elif key == "policy" and isinstance(value, Mapping) and not nested:
            check_network(value, f"{where}, policy", nested=True)
        elif key in _WHOLE:
            read.integer(key, 0, _MAX_SIZE)
        elif key in _NUMBERS:
            read.number(key)
        elif isinstance(value, Mapping):
            raise read.wrong(key, "no object")
        sizes = value if isinstance(value, list) else [value]
        if len(sizes) > _MAX_HIDDEN_LAYERS or any(
            isinstance(size, int) and size > _MAX_SIZE for size in sizes
        ):
            raise read.wrong(key, f"at most {_MAX_SIZE}")


def parse_config(fields: Any, where: str) -> NetworkConfig:
    """Returns the configuration of an encoder-decoder that a JSON object describes.

    Raises:
      UserError: a value is invalid; the message names the file, the network and the key.
    """
    if not isinstance(fields, Mapping):
        raise UserError(f"{where}: must be an object")
    try:
        _check_fields(config_class(fields), fields, where)
        return config_from_dict(fields)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from error


def _check_fields(kind: type[Any], fields: Any, where: str) -> None:
    """Checks the types of the fields of a dataclass, and the limits of its numbers."""
    if not isinstance(fields, Mapping):
        raise UserError(f"{where}: must be an object")
    read = JsonReader(fields, where)
    types = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if field.name not in fields:
            continue
        value, wanted = fields[field.name], types[field.name]
        if value is None and type(None) in typing.get_args(wanted):
            continue
        wanted = next(iter(typing.get_args(wanted)), wanted)
        if isinstance(wanted, type) and dataclasses.is_dataclass(wanted):
            _check_fields(wanted, value, f"{where}, {field.name}")
        elif wanted is int:
            least = 0 if field.name in _MAY_BE_0 else 1
            limit = _CONFIG_LIMITS.get(field.name, _MAX_SIZE)
            if read.integer(field.name, least, limit) is None:
                raise read.wrong(field.name, "a whole number")
        elif wanted is float:
            if read.number(field.name) is None:
                raise read.wrong(field.name, "a number")
        elif wanted is bool:
            read.truth(field.name)
        elif field.name == "mlp_activations":
            plain = isinstance(value, (list, tuple)) and len(value) <= 4
            if not plain or not all(isinstance(each, str) for each in value):
                raise read.wrong(field.name, "a list of names")
        elif not isinstance(value, str):
            raise read.wrong(field.name, "text")


def _vocabulary(read: JsonReader) -> VocabularyDescription | None:
    described = read.optional_object("vocabulary")
    if not described:
        return None
    inner = JsonReader(described, f"{read.where}, vocabulary")
    kind = inner.text("kind", None, ("bytes", "sentencepiece", "tokenizer"), required=True)
    extra_ids = inner.integer("extra_ids", 0, _MAX_EXTRA_IDS) or 0
    file = untrusted.file_name(described.get("path"))
    if "path" in described and file is None:
        raise inner.wrong("path", "the name of a file in the run folder")
    if (kind != "bytes") != (file is not None):
        raise inner.wrong("path", f"a file name for {kind!r}, and absent for 'bytes'")
    return VocabularyDescription(str(kind), extra_ids, file, inner.text("sha256", None))


def _reward(read: JsonReader) -> RewardStatistics | None:
    described = read.optional_object("reward")
    if not described:
        return None
    inner = JsonReader(described, f"{read.where}, reward")
    mean, std = inner.number("mean"), inner.number("std", above_zero=True)
    if mean is None or std is None:
        raise read.wrong("reward", "an object with the numbers 'mean' and 'std'")
    return RewardStatistics(mean, std)


def _score_names(read: JsonReader, names: Any) -> tuple[str, ...]:
    if names is None:
        return ()
    plain = isinstance(names, list) and all(
        isinstance(name, str) and len(name) <= _MAX_SCORE_NAME for name in names
    )
    if not plain or len(names) > _MAX_SCORES:
        raise read.wrong("score_names", f"a list of at most {_MAX_SCORES} names")
    return tuple(names)


def _check_origin(read: JsonReader, key: str, origin: Any) -> None:
    if origin is None:
        return
    inner = JsonReader(origin, f"{read.where}, {key}")
    inner.text("run_id", None, required=True)
    inner.text("path", None)
    if inner.integer("step", 0, MAX_STEP) is None:
        raise inner.wrong("step", "a whole number")
