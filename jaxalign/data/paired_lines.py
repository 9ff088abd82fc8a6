"""Comparisons that two consecutive lines of a file make: their examples are drawn together and stand side by side in a batch.

A record has one prompt, so that a comparison between responses to different prompts needs two records.
"""

from __future__ import annotations

from typing import Any

import grain

from jaxalign.data.cached_split import CachedSplit
from jaxalign.data.rejections import DataError
from jaxalign.errors import UserError


def check(batch_size: int, *, packed: bool, sampled: bool) -> None:
    """Refuses settings that would separate the two examples of a comparison.

    Raises:
      UserError: the batch size is odd, or examples are packed or drawn by weight.
    """
    if batch_size % 2:
        raise UserError(
            f"BATCH_SIZE {batch_size} is odd, and two consecutive lines are one comparison: set an even one"
        )
    if packed:
        raise UserError("packing would separate the two lines of a comparison: set PACK = False")
    if sampled:
        raise UserError(
            "sampling by weight would separate the two lines of a comparison: set SAMPLING = 'uniform'"
        )


def pairs_of(data: CachedSplit) -> list[tuple[int, int]]:
    """Returns the indices of the examples of lines 1 and 2, 3 and 4, and so on.

    A comparison is left out if one of its lines was rejected.

    Raises:
      DataError: no comparison is complete, or single responses are not in the order winner, loser.
    """
    places = {(example.file, example.line): i for i, example in enumerate(data)}
    found = [
        (index, places[file, line + 1])
        for (file, line), index in places.items()
        if line % 2 and (file, line + 1) in places
    ]
    if not found:
        raise DataError(
            f"The split {data.split!r} of {data.path} has no two consecutive lines, so no comparison: make the file with "
            "`jaxalign select --selector=joint_pairs`, and give a validation_file of the same form"
        )
    if data.metadata.responses_per_example == 1:
        feedback = [example.feedback for example in data.without_text()]
        for one, other in found:
            a, b = feedback[one], feedback[other]
            if a is not None and b is not None and not a[0] > b[0]:
                example = data[one]
                raise DataError(
                    f"{example.file}:{example.line}: this line and the next are not a comparison, for the first has the feedback "
                    f"{a[0]:g} and the second {b[0]:g}: the better response must come first, with no blank lines between"
                )
    return found


class Flattened(grain.MapDataset):
    """The members of pairs one after the other."""

    def __init__(self, pairs: grain.MapDataset) -> None:
        super().__init__(pairs)

    def __len__(self) -> int:
        return 2 * len(self._parent)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        pair = self._parent[index // 2]
        return None if pair is None else int(pair[index % 2])
