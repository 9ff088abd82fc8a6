"""The data of the benchmarks, the same for both sides: dense rows, and examples with the lengths of real tasks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

MIX_EXAMPLES = 2048


@dataclasses.dataclass(frozen=True)
class Mix:
    """A length mix.

    Attributes:
      name: name of the data.
      kind: record kind of the file.
      file: file name in the data folder.
      max_lengths: the largest numbers of tokens of a prompt and of a response; longer prompts keep their end.
      examples: examples per step of the padded side.
      rows: rows of a packed batch, chosen so that it holds about the same number of examples.
      row_lengths: encoder and decoder tokens of a packed row.
      examples_per_row: the largest number of examples in a packed row.
    """

    name: str
    kind: str
    file: str
    max_lengths: tuple[int, int]
    examples: int
    rows: int
    row_lengths: tuple[int, int]
    examples_per_row: int = 16


MIXES = {
    mix.name: mix
    for mix in (
        Mix("rnnlg", "seq2seq", "rnnlg.seq2seq.train.jsonl", (128, 128), 32, 7, (128, 128)),
        Mix(
            "taskmaster3",
            "triplet",
            "taskmaster3.triplets.train.jsonl",
            (1024, 128),
            16,
            8,
            (1024, 128),
        ),
        # Log-normal lengths similar to those of rnnlg, for a machine without the data.
        Mix("synthetic", "", "", (128, 128), 32, 7, (128, 128)),
    )
}


@dataclasses.dataclass(frozen=True)
class Examples:
    """Token ids of prompts and responses, which end in EOS, with rewards and reference log-probabilities."""

    inputs: list[np.ndarray]
    targets: list[np.ndarray]
    rewards: np.ndarray
    reference_log_probs: np.ndarray

    @property
    def tokens(self) -> np.ndarray:
        """The number of encoder and decoder tokens of every example."""
        return np.asarray([len(x) + len(y) for x, y in zip(self.inputs, self.targets, strict=True)])

    def take(self, indices: Any) -> Examples:
        """Returns a subset of the examples."""
        return Examples(
            [self.inputs[i] for i in indices],
            [self.targets[i] for i in indices],
            self.rewards[indices],
            self.reference_log_probs[indices],
        )


def dense(rows: int, length: int, vocab_size: int) -> Examples:
    """Makes examples that fill their rows: prompts and responses of `length` tokens."""
    return _random([length] * rows, [length] * rows, vocab_size, np.random.default_rng(0))


def mixed(mix: Mix, data_dir: Path, work_dir: Path, vocab_size: int) -> Examples | None:
    """Draws `MIX_EXAMPLES` examples of a length mix at random; returns None if its file is missing.

    Real tasks are tokenised with a SentencePiece model of 1,000 pieces, trained on the file.
    """
    rng = np.random.default_rng(0)
    if not mix.file:
        prompts = np.clip(np.exp(rng.normal(3.2, 0.45, MIX_EXAMPLES)), 3, 128).astype(int)
        responses = np.clip(np.exp(rng.normal(3.1, 0.5, MIX_EXAMPLES)), 2, 128).astype(int)
        return _random(prompts.tolist(), responses.tolist(), vocab_size, rng)
    if not (data_dir / mix.file).exists():
        return None
    from jaxalign.data import cache, sources, train_vocabulary, vocabularies
    from jaxalign.data.task_cache import TaskCache

    file = str(data_dir / mix.file)
    model = work_dir / f"{mix.name}.model"
    if not model.exists():
        train_vocabulary.train_vocabulary(file, str(model), vocab_size=1000, kind=mix.kind)
    folder = str(work_dir / f"{mix.name}-{'-'.join(map(str, mix.max_lengths))}")
    cache.cache_source(
        sources.JsonlSource({"train": file}, mix.kind, duplicates="keep"),
        folder,
        name=mix.name,
        vocabulary=vocabularies.vocabulary_from_spec(str(model)),
        splits=("train",),
        limits=cache.Limits(*mix.max_lengths, long_prompts="truncate_left", duplicates="keep"),
    )
    split = TaskCache(folder).split("train")
    chosen = rng.permutation(len(split))[:MIX_EXAMPLES]
    examples = split.read(chosen.tolist())
    responses = [example.target(0) for example in examples]
    return Examples(
        [example.inputs for example in examples],
        responses,
        rng.normal(size=len(chosen)).astype(np.float32),
        np.asarray([-3.0 * len(response) for response in responses], np.float32),
    )


def _random(
    prompts: list[int], responses: list[int], vocab_size: int, rng: np.random.Generator
) -> Examples:
    def tokens(length: int) -> np.ndarray:
        return np.append(rng.integers(3, vocab_size, length - 1), 1).astype(np.int32)

    return Examples(
        [tokens(length) for length in prompts],
        [tokens(length) for length in responses],
        rng.normal(size=len(prompts)).astype(np.float32),
        np.asarray([-3.0 * length for length in responses], np.float32),
    )


def save(examples: Examples, path: Path) -> None:
    """Writes examples for the workers as plain arrays, without pickle."""
    np.savez(
        path,
        inputs=np.concatenate(examples.inputs),
        targets=np.concatenate(examples.targets),
        lengths=np.asarray(
            [
                [len(x) for x in examples.inputs],
                [len(y) for y in examples.targets],
            ]
        ),
        rewards=examples.rewards,
        reference_log_probs=examples.reference_log_probs,
    )


def load(path: str) -> Examples:
    """Reads what `save` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        prompts, responses = np.cumsum(arrays["lengths"], axis=1)
        return Examples(
            np.split(arrays["inputs"], prompts[:-1]),
            np.split(arrays["targets"], responses[:-1]),
            arrays["rewards"],
            arrays["reference_log_probs"],
        )
