"""Reads the responses and the logged records beside an evaluation.json, by the bounded readers for files of others."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign import untrusted
from jaxalign.errors import UserError
from jaxalign.evaluation.results import LOGGED, RESPONSES
from jaxalign.evaluation.statistics import win_rate

_FILE_BYTES = 256 << 20
# Two responses are of about equal length if the shorter one has at least this share of the longer one's tokens.
SIMILAR = 0.9


@dataclasses.dataclass(frozen=True)
class Responses:
    """The responses of an evaluation's policies to its prompts.

    Attributes:
      prompts: [prompts] texts.
      texts: policy -> `[prompts][samples]`.
      lengths: policy -> [prompts] numbers of tokens, None where it is not recorded.
      scores: judge -> policy -> [prompts], None where a judge gave no finite score.
    """

    prompts: list[str]
    texts: dict[str, list[list[str]]]
    lengths: dict[str, list[int | None]]
    scores: dict[str, dict[str, list[float | None]]]

    def to_json(self, title: str) -> dict[str, Any]:
        """Returns what the page holds for its reader of responses."""
        return {"title": title, **dataclasses.asdict(self)}

    def at_equal_length(
        self, judge: str, policy: str, first: str, *, bootstrap: int, seed: int
    ) -> tuple[dict[str, Any] | None, int]:
        """Returns the win rate over the first policy where both responses have about equal length, and the number of these prompts."""
        kept = [
            (mine, theirs)
            for mine, theirs, a, b in zip(
                self.scores[judge][policy],
                self.scores[judge][first],
                self.lengths[policy],
                self.lengths[first],
                strict=True,
            )
            if a and b and min(a, b) >= SIMILAR * max(a, b)
            if mine is not None and theirs is not None
        ]
        if not kept:
            return None, 0
        mine, theirs = np.array(kept, np.float64).T
        rate = win_rate(mine, theirs, samples=bootstrap, seed=seed).to_dict()
        return {key: None if value != value else value for key, value in rate.items()}, len(kept)

    def reward_by_length(
        self, judge: str, policy: str, bins: int = 5
    ) -> list[tuple[float, float, int]]:
        """Returns mean length, mean score and count of a policy's responses in quantile bins of their length, at most `bins`."""
        pairs = [
            (length, score)
            for length, score in zip(self.lengths[policy], self.scores[judge][policy], strict=True)
            if length is not None and score is not None
        ]
        if not pairs:
            return []
        lengths, scores = np.array(pairs, np.float64).T
        edges = np.unique(np.quantile(lengths, np.linspace(0, 1, bins + 1)))
        place = np.searchsorted(edges[1:-1], lengths, side="right")
        return [
            (float(lengths[inside].mean()), float(scores[inside].mean()), int(inside.sum()))
            for inside in (place == index for index in np.unique(place))
        ]


@dataclasses.dataclass(frozen=True)
class LoggedResponse:
    """A logged response with what a policy makes of it: its log-ratio, and V and DRO's residual if the run has a value network."""

    prompt: str
    response: str
    feedback: float
    log_ratio: float
    value: float | None
    residual: float | None


def read_responses(
    folder: Path, policies: Mapping[str, Any], judges: list[str]
) -> Responses | None:
    """Returns the responses of all policies; None if the folder holds none.

    Raises:
      UserError: a file is malformed, lacks a prompt or a score, or does not fit the other policies' files.
    """
    found = {name: path for name in policies if (path := _file(folder, RESPONSES, name)).exists()}
    if not found:
        return None
    if lacking := [name for name in policies if name not in found]:
        raise UserError(
            f"{folder / RESPONSES} lacks the responses of {', '.join(lacking)}; copy the whole folder of the evaluation"
        )
    prompts: list[str] = []
    texts, lengths = {}, {}
    scores: dict[str, dict[str, list[float | None]]] = {judge: {} for judge in judges}
    for name, path in found.items():
        lines = list(_lines(path, folder))
        own = [_text(line.get("prompt"), where) for where, line in lines]
        if prompts and own != prompts:
            raise UserError(f"{path} answers other prompts than the first policy's file")
        prompts = own
        texts[name] = [_texts(line.get("responses"), where) for where, line in lines]
        lengths[name] = [_length(line.get("length"), where) for where, line in lines]
        for judge in judges:
            scores[judge][name] = [_score(line, judge, where) for where, line in lines]
    return Responses(prompts, texts, lengths, scores)


def read_logged(folder: Path, policies: Mapping[str, Any]) -> dict[str, list[LoggedResponse]]:
    """Returns the logged responses by policy, as far as the folder holds them.

    Raises:
      UserError: a file is malformed.
    """
    return {
        name: [
            LoggedResponse(
                _text(line.get("prompt"), where),
                _text(line.get("response"), where),
                _number(line.get("feedback"), where, "feedback"),
                _number(line.get("log_ratio"), where, "log_ratio"),
                None if line.get("value") is None else _number(line["value"], where, "value"),
                None
                if line.get("residual") is None
                else _number(line["residual"], where, "residual"),
            )
            for where, line in _lines(path, folder)
        ]
        for name in policies
        if (path := _file(folder, LOGGED, name)).exists()
    }


def _file(folder: Path, subfolder: str, policy: str) -> Path:
    name = untrusted.file_name(f"{policy}.jsonl")
    if name is None:
        raise UserError(f"{folder}: a policy has the name {policy[:60]!r}, which names no file")
    return folder / subfolder / name


def _lines(path: Path, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the objects of a JSON Lines file, each with its place for messages."""
    content = untrusted.read_bytes(path, _FILE_BYTES, inside=folder).decode("utf-8", "replace")
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is not valid JSON: {error}") from error
        if not isinstance(value, dict):
            raise UserError(f"{where} must hold a JSON object")
        yield where, value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where} lacks a text where one is expected (prompt, response)")
    return value


def _texts(value: Any, where: str) -> list[str]:
    if not isinstance(value, list) or not value:
        raise UserError(f"{where} must hold a list of responses")
    return [_text(each, where) for each in value]


def _length(value: Any, where: str) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 40:
        raise UserError(f"{where}: length must be a number of tokens")
    return value


def _number(value: Any, where: str, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"{where}: {name} must be a finite number")
    return float(value)


def _score(line: Mapping[str, Any], judge: str, where: str) -> float | None:
    scores = line.get("scores")
    value = scores.get(judge) if isinstance(scores, dict) else None
    # A judge's score may be NaN, which JSON of other programs writes as null.
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return None if value is None else _number(value, where, f"the score of {judge}")
