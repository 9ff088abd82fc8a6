"""Settings become machines, and texts that are forced or banned become tokens."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from jaxalign.data.vocabularies import ByteVocabulary
from jaxalign.errors import UserError
from jaxalign.inference.constraints import prefix_tokens, read_bad_words
from jaxalign.inference.generate import _recorded
from jaxalign.inference.sampling import DecodingSettings, generate_tokens
from tests.fixtures.prefix_policy import PrefixPolicy

PLAIN = DecodingSettings(8, num_samples=3, temperature=1.0)
SETTINGS = dataclasses.replace(
    PLAIN, min_target_length=5, no_repeat_ngram=2, forced_prefix=(4, 2), bad_words=((3,), (4, 5))
)


@pytest.mark.parametrize("beams", [0, 4])
def test_responses_obey_all_settings_together(beams):
    policy = PrefixPolicy(12)
    prompts = [[3, 1], [2, 2, 2, 1], [7, 1], [4, 5, 1], [9, 1]]
    settings = SETTINGS
    if beams:  # the best one: others may have nothing to end with
        settings = dataclasses.replace(SETTINGS, num_beams=beams, num_samples=1, temperature=0.0)
    tokens, log_probs = generate_tokens(
        policy, jax.numpy.asarray(policy.table(0)), prompts, settings, batch_size=2
    )
    assert np.isfinite(log_probs).all()
    for row in tokens.reshape(-1, 8).tolist():
        words = [token for token in row if token]
        bigrams = list(itertools.pairwise(words))
        assert words[:2] == [4, 2]
        assert 1 not in words[:4]
        assert 3 not in words and (4, 5) not in bigrams
        assert len(set(bigrams)) == len(bigrams)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"forced_prefix": (2, 4, 5)}, r"contains the tokens \[4, 5\], which bad_words forbids"),
        ({"forced_prefix": (2, 4, 2, 4)}, "repeats a sequence of 2 tokens"),
        ({"forced_prefix": tuple(range(2, 11)), "bad_words": ()}, "are cut after 8"),
        ({"no_repeat_ngram": 1 << 40}, r"no_repeat_ngram is \d+; it must lie in \[0, 8\]"),
    ],
)
def test_constraints_with_which_no_response_could_end_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SETTINGS, **change)


def test_files_record_only_the_constraints_that_are_on():
    assert _recorded(PLAIN).keys() == {
        "max_target_length", "num_samples", "temperature", "top_k", "top_p", "num_beams", "alpha",
    }  # fmt: skip
    assert _recorded(SETTINGS)["bad_words"] == [[3], [4, 5]]


def test_bad_words_are_read_line_by_line(tmp_path):
    path = tmp_path / "words.txt"
    # As some editors write it: with a byte order mark, which is no part of the first word.
    path.write_text("ab\n\n c \nab\n", encoding="utf-8-sig")
    vocabulary = ByteVocabulary()
    assert read_bad_words(str(path), vocabulary) == (
        tuple(vocabulary.encode("ab")),
        tuple(vocabulary.encode("c")),
    )
    assert prefix_tokens("ab", vocabulary) == tuple(vocabulary.encode("ab"))
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(UserError, match="has no words"):
        read_bad_words(str(path), vocabulary)
    with pytest.raises(UserError, match="cannot be read"):
        read_bad_words(str(tmp_path / "none.txt"), vocabulary)
