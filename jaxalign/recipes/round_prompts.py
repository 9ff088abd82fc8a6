"""The prompts of rounds: read from a file once, set aside for measuring, and divided among the rounds."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.data import bundled_sources
from jaxalign.data.encoding import TextEncoder
from jaxalign.data.evaluation_records import read_evaluation_records
from jaxalign.data.records import Record
from jaxalign.errors import UserError, require_range


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt with the distinct responses that its file has for it, the best first where the file says so."""

    text: str
    logged: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptSource:
    """The prompts of all rounds.

    Attributes:
      file: a data file of any layout, the folder of a cache, or a bundled task such as synthetic_pairs. Prompts that repeat are joined.
      split: the split of a cache or of a bundled task.
      layout: the layout of a file, see `jaxalign.data.layouts`.
      fields: the names of a file's fields, such as ``prompt=question``.
      per_round: the number of prompts of a round, or of each round in order (the last one holds for further rounds); 0 for all.
      fresh: whether every round has prompts that no earlier round had; otherwise all rounds have the same ones.
      seed: the seed of the order in which rounds take prompts.
    """

    file: str
    split: str = "train"
    layout: str = "records"
    fields: str = ""
    per_round: int | Sequence[int] = 0
    fresh: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        counts = [self.per_round] if isinstance(self.per_round, int) else list(self.per_round)
        if not counts:
            raise UserError("PromptSource.per_round is empty; give a number of prompts")
        for count in counts:
            require_range("PromptSource", "[0, inf)", per_round=count)
        require_range("PromptSource", "[0, 4294967295]", seed=self.seed)

    def count(self, number: int) -> int:
        """Returns the number of prompts of round ``number``, from 1."""
        if isinstance(self.per_round, int):
            return self.per_round
        return self.per_round[min(number, len(self.per_round)) - 1]

    def read(self, side_file: str = "") -> list[Prompt]:
        """Returns all prompts in the order of the file.

        Raises:
          UserError: the file cannot be read, or too many of its lines are unusable.
        """
        logged: dict[str, dict[str, None]] = {}
        for record in self._records(side_file):
            found = logged.setdefault(record.prompt, {})
            found |= dict.fromkeys(record.responses)
        return [Prompt(text, tuple(found)) for text, found in logged.items()]

    def _records(self, side_file: str) -> Sequence[Record]:
        if self.file in bundled_sources.BUNDLED and not Path(self.file).exists():
            return list(bundled_sources.BUNDLED[self.file]().records(self.split))
        return read_evaluation_records(
            Path(self.file).expanduser(),
            side_file=side_file,
            split=self.split,
            layout=self.layout,
            fields=self.fields,
            duplicates="keep",
        ).records


@dataclasses.dataclass(frozen=True)
class DividedPrompts:
    """The prompts that a policy can read, in the order of rounds.

    Attributes:
      source: how they are divided.
      held_out: the prompts for measuring, which no round uses.
      others: the prompts for rounds.
      unreadable: the number of prompts left out, because they are too long for a policy that rejects such prompts, or unknown to it.
    """

    source: PromptSource
    held_out: Sequence[Prompt]
    others: Sequence[Prompt]
    unreadable: int = 0

    def of_round(self, number: int) -> Sequence[Prompt]:
        """Returns the prompts of round ``number``, from 1.

        Raises:
          UserError: the file has too few prompts.
        """
        source = self.source
        count = source.count(number)
        if source.fresh and not count:
            raise UserError(
                "fresh prompts need PROMPTS_PER_ROUND, a number of prompts; or set FRESH_PROMPTS = False"
            )
        start = sum(source.count(before) for before in range(1, number)) if source.fresh else 0
        end = start + count if count else len(self.others)
        if end > len(self.others) or not self.others:
            aside = (
                f" after {len(self.held_out)} are set aside for measuring" if self.held_out else ""
            )
            raise UserError(
                f"{source.file} has {len(self.others)} prompts{aside}, and round {number} needs the first {end or 1} of them; lower "
                "PROMPTS_PER_ROUND or ROUNDS, or set FRESH_PROMPTS = False"
            )
        return self.others[start:end]


def divide(
    source: PromptSource, encoder: TextEncoder, *, held_out: int = 0, side_file: str = ""
) -> DividedPrompts:
    """Reads the prompts and puts them in random order.

    Raises:
      UserError: the file cannot be read, or holds no usable prompt.
    """
    prompts = source.read(side_file)
    readable = [prompt for prompt in prompts if encoder.problem(prompt.text, ()) is None]
    if not readable:
        raise UserError(
            f"{source.file} holds no prompt that the start's policy can read ({len(prompts)} are too long or unknown)"
        )
    order = np.random.default_rng(source.seed).permutation(len(readable))
    shuffled = [readable[index] for index in order]
    return DividedPrompts(
        source, shuffled[:held_out], shuffled[held_out:], len(prompts) - len(readable)
    )


def reference_fields(prompt: Prompt) -> dict[str, Any]:
    """Returns the fields of a line of candidates that hold the logged responses, for judges that compare with references."""
    return {"references": list(prompt.logged)} if prompt.logged else {}


def digest_of(prompts: Sequence[Prompt]) -> str:
    """Returns a digest of prompts and their logged responses, which identifies them in the settings of a stage."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(repr((prompt.text, prompt.logged)).encode())
    return digest.hexdigest()[:16]


def file_digest(path: str) -> str:
    """Returns a digest of a file's content.

    Raises:
      UserError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(Path(path).expanduser(), "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()[:16]
