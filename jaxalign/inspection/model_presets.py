"""The pretrained checkpoint and the vocabulary that a file of `gin_configs/models` names in its comments."""

from __future__ import annotations

import dataclasses
import difflib
import re
from pathlib import Path

from jaxalign import files
from jaxalign.data.rejections import DataError

_INCLUDED = re.compile(r"^include '(models/\w+\.gin)'", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Preset:
    """A model of `gin_configs/models`.

    Attributes:
      checkpoint: the address of its pretrained checkpoint; None for a model that is trained from random weights.
      vocabulary: the vocabulary of that checkpoint, in words.
    """

    checkpoint: str | None = None
    vocabulary: str = ""

    @property
    def reads_bytes(self) -> bool:
        """Whether the vocabulary of the checkpoint is that of bytes."""
        return "byte vocabulary" in self.vocabulary


def read_preset(model: str) -> Preset:
    """Returns what the file of a model says.

    Raises:
      DataError: there is no such file; the message lists the known models.
    """
    text = _text("models", model)
    checkpoint = _comment("Checkpoint", text)
    vocabulary = _comment("Vocabulary", text)
    if checkpoint and not vocabulary:
        # Flan-T5 is described by the file of T5 1.1, which has the same vocabulary.
        for included in _INCLUDED.findall(text):
            vocabulary = vocabulary or read_preset(Path(included).stem).vocabulary
    return Preset(checkpoint, vocabulary or "")


def check_objective(objective: str) -> None:
    """Raises DataError, which lists the known objectives, if `gin_configs/objectives` has no such file."""
    _text("objectives", objective)


def _text(folder: str, name: str) -> str:
    configs = files.gin_configs()
    if configs is None:
        return ""
    known = sorted(path.stem for path in (configs / folder).glob("*.gin"))
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        said = f"did you mean {' or '.join(close)}?" if close else f"it has {', '.join(known)}"
        raise DataError(
            f"--{folder[:-1]}={name}: gin_configs/{folder} has no file {name}.gin; {said}"
        )
    return (configs / folder / f"{name}.gin").read_text(encoding="utf-8")


def _comment(name: str, text: str) -> str | None:
    found = re.search(rf"^# {name}: (.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else None
