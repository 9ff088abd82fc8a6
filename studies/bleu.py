"""Corpus BLEU-4 against several references, as Papineni et al. (2002) define it.

It agrees with sacrebleu's ``corpus_bleu(..., tokenize='none', smooth_method='none')`` on lower-cased texts with spaces between tokens. The
shared data are tokenised, so that no tokenizer of sacrebleu is needed; numbers are comparable within a study only.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

ORDER = 4


def corpus_bleu(responses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Returns BLEU-4 in 0 to 100: clipped precisions of the whole corpus, and a brevity penalty by the closest reference's length."""
    matched, found = [0] * ORDER, [0] * ORDER
    length = closest = 0
    for response, texts in zip(responses, references, strict=True):
        tokens = response.lower().split()
        others = [text.lower().split() for text in texts]
        length += len(tokens)
        # The shorter one of two references that are equally close.
        closest += min((abs(len(other) - len(tokens)), len(other)) for other in others)[1]
        for order in range(1, ORDER + 1):
            most: Counter[tuple[str, ...]] = Counter()
            for other in others:
                most |= _ngrams(other, order)
            counts = _ngrams(tokens, order)
            matched[order - 1] += sum((counts & most).values())
            found[order - 1] += sum(counts.values())
    if not all(matched):
        return 0.0
    precision = sum(math.log(m / n) for m, n in zip(matched, found, strict=True)) / ORDER
    return 100 * math.exp(precision + min(0.0, 1 - closest / length))


def _ngrams(tokens: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[start : start + order]) for start in range(len(tokens) - order + 1))
