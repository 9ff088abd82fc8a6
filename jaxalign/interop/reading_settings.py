"""How a run reads text, recorded beside its parameters in the formats of other programs: ``jaxalign.json``.

Without this file, a run that is exported and imported again would lose the lengths in tokens for which it was trained, and the end at which
it cuts long prompts. Other programs ignore the file. A Hugging Face folder says the same also in its own files, where they have a place
for it; these are read if a folder comes from another program.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from jaxalign.interop import storage
from jaxalign.runs.description import LONG_PROMPTS, MAX_LENGTH
from jaxalign.runs.folder import Run
from jaxalign.runs.typed_json import JsonReader

FILE = "jaxalign.json"
TOKENIZER_CONFIG, GENERATION_CONFIG = "tokenizer_config.json", "generation_config.json"
_FEATURES = ("inputs", "targets")


@dataclasses.dataclass(frozen=True)
class ReadingSettings:
    """How a run reads text.

    Attributes:
      lengths: the lengths of ``inputs`` and ``targets`` in tokens, EOS included, as far as they are known.
      long_prompts: 'truncate', 'truncate_left' or 'reject'; None if it is not known.
    """

    lengths: Mapping[str, int] = dataclasses.field(default_factory=dict)
    long_prompts: str | None = None

    def __bool__(self) -> bool:
        return bool(self.lengths) or self.long_prompts is not None

    def for_tokenizer(self) -> dict[str, Any]:
        """Returns the fields of transformers' ``tokenizer_config.json``."""
        fields: dict[str, Any] = {}
        if "inputs" in self.lengths:
            fields["model_max_length"] = self.lengths["inputs"]
        if self.long_prompts in ("truncate", "truncate_left"):
            fields["truncation_side"] = "left" if self.long_prompts == "truncate_left" else "right"
        return fields

    def for_generation(self) -> dict[str, Any]:
        """Returns the fields of transformers' ``generation_config.json``."""
        return {"max_new_tokens": self.lengths["targets"]} if "targets" in self.lengths else {}


def of_run(run: Run) -> ReadingSettings:
    """Returns what a run folder records."""
    recorded = run.description.feature_lengths
    lengths = {name: recorded[name] for name in _FEATURES if name in recorded}
    return ReadingSettings(lengths, run.description.long_prompts)


def write(folder: str, settings: ReadingSettings) -> None:
    """Writes ``jaxalign.json``, unless nothing is known."""
    if settings:
        content = {"feature_lengths": settings.lengths, "long_prompts": settings.long_prompts}
        storage.write(folder, FILE, (json.dumps(content, indent=2) + "\n").encode())


def read(folder: str) -> ReadingSettings:
    """Returns the settings in a folder's ``jaxalign.json``; unknown settings if there is none.

    Raises:
      UserError: ``jaxalign.json`` is malformed; the message names the key.
    """
    content = storage.read_json(folder, FILE)
    if content is None:
        return ReadingSettings()
    reader = JsonReader(content, storage.join(folder, FILE))
    lengths = reader.whole_numbers("feature_lengths", MAX_LENGTH) or {}
    return ReadingSettings(
        {name: lengths[name] for name in _FEATURES if name in lengths},
        reader.text("long_prompts", None, LONG_PROMPTS),
    )


def of_transformers(folder: str) -> ReadingSettings:
    """Returns the settings in transformers' own files; values that say nothing, such as its largest integer, are passed over."""
    tokenizer = storage.read_json(folder, TOKENIZER_CONFIG) or {}
    generation = storage.read_json(folder, GENERATION_CONFIG) or {}
    targets = _length(generation.get("max_new_tokens"))
    if targets is None and (longest := _length(generation.get("max_length"))) is not None:
        # It counts the start token too.
        targets = _length(longest - 1)
    found = {"inputs": _length(tokenizer.get("model_max_length")), "targets": targets}
    return ReadingSettings(
        {name: length for name, length in found.items() if length is not None},
        "truncate_left" if tokenizer.get("truncation_side") == "left" else None,
    )


def _length(value: Any) -> int | None:
    return value if type(value) is int and 1 < value <= MAX_LENGTH else None
