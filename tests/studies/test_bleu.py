"""Corpus BLEU-4: values worked out by hand."""

import math

import pytest

from studies.bleu import corpus_bleu


def test_a_perfect_corpus_has_100_and_one_without_common_4_grams_0():
    assert corpus_bleu(["a b c d e"], [["x", "A b c d e"]]) == pytest.approx(100)
    assert corpus_bleu(["a b c x d e"], [["a b c d e"]]) == 0


def test_precisions_are_clipped_and_pooled_and_short_responses_penalised():
    # Of 5 + 4 tokens, the repeated "a" counts once; lengths are 9 against 6 + 4.
    found = corpus_bleu(["a b c d a", "e f g h"], [["a b c d x y"], ["e f g h"]])
    precisions = (8 / 9, 6 / 7, 4 / 5, 2 / 3)
    expected = math.exp(sum(map(math.log, precisions)) / 4 + 1 - 10 / 9)
    assert found == pytest.approx(100 * expected)
