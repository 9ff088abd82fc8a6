"""Computes the length of the rows of a batch, and checks that a split's examples fit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

from jaxalign.data.cached_split import CachedSplit
from jaxalign.data.rejections import DataError

FEATURES = ("inputs", "targets")


def row_lengths_of(
    feature_lengths: Mapping[str, int],
    row_lengths: Mapping[str, int] | None,
    responses: int,
    *,
    pack: bool,
) -> dict[str, int]:
    """Returns the encoder and decoder tokens of a row.

    Args:
      feature_lengths: the lengths of a prompt and of one response.
      row_lengths: the lengths of packed rows, if given.
      responses: the number of responses of an example.
      pack: whether rows hold several examples.
    """
    for name in FEATURES:
        if name not in feature_lengths:
            raise ValueError(
                f"feature_lengths needs 'inputs' and 'targets', got {dict(feature_lengths)}."
            )
    lengths = {
        "inputs": feature_lengths["inputs"],
        "targets": responses * feature_lengths["targets"],
    }
    if row_lengths is not None:
        if not pack:
            raise ValueError(
                "row_lengths is for pack=True; unpacked rows are as long as feature_lengths."
            )
        lengths.update(row_lengths)
    return lengths


def check_lengths(
    data: CachedSplit,
    feature_lengths: Mapping[str, int],
    row_lengths: Mapping[str, int],
    example_lengths: Int[np.ndarray, "examples 2"],
) -> None:
    """Raises DataError unless every example fits. Otherwise training would stop at the longest example, perhaps hours later.

    Args:
      data: the split.
      feature_lengths: the lengths of a prompt and of one response.
      row_lengths: the lengths of a row, which holds a whole example.
      example_lengths: the number of tokens that an example puts into the encoder and decoder rows.
    """
    facts = data.facts
    for feature, what, longest in (
        ("inputs", "prompt", int(facts.prompt_lengths.max)),
        ("targets", "response", int(facts.response_lengths.max)),
    ):
        limit = feature_lengths[feature]
        if longest > limit:
            option = "input" if feature == "inputs" else "target"
            raise DataError(
                f"The longest {what} of {data.split!r} in {data.path} has {longest} tokens with EOS, but "
                f"feature_lengths[{feature!r}] allows {limit}. Raise it to {longest} (TASK_FEATURE_LENGTHS in gin), or make "
                f"the cache with --max_{option}_length={limit}."
            )
    widest = {name: int(example_lengths[:, i].max()) for i, name in enumerate(FEATURES)}
    for feature, what in (("inputs", "prompt"), ("targets", "responses together")):
        if widest[feature] > row_lengths[feature]:
            needed = {name: max(widest[name], row_lengths[name]) for name in FEATURES}
            raise DataError(
                f"An example of {data.split!r} in {data.path} has {widest[feature]} tokens ({what}), but a row has "
                f'row_lengths[{feature!r}] = {row_lengths[feature]}. Give longer rows: --gin.ROW_LENGTHS="{needed}".'
            )


def covering(data: CachedSplit, recorded: Mapping[str, int] | None) -> dict[str, int] | None:
    """Returns the recorded lengths of packed rows, longer if an example of this split needs it; None if none are recorded."""
    if recorded is None:
        return None
    longest = data.lengths().max(axis=0)
    return {name: max(recorded.get(name, 0), int(longest[i])) for i, name in enumerate(FEATURES)}
