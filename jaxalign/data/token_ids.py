"""The ids that every vocabulary shares, as in T5: 0 is PAD (and the decoder's start token), 1 is EOS."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

PAD_ID = 0
EOS_ID = 1


def until_eos(ids: Iterable[int]) -> list[int]:
    """Returns the ids before the first EOS, without PAD, as Python integers."""
    found = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids)).reshape(-1).tolist()
    if EOS_ID in found:
        found = found[: found.index(EOS_ID)]
    return [int(token) for token in found if token != PAD_ID]
