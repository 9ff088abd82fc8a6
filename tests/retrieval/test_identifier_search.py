"""Constrained beam search: only items come out, and with enough beams the ranking is that of scoring every identifier."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxalign.errors import UserError
from jaxalign.inference.rows import EOS, score_responses
from jaxalign.retrieval.identifier_search import items_of, search, trie_of
from jaxalign.retrieval.items import Items


@pytest.fixture(scope="module")
def queries(small_index):
    texts = ["a red star", "blue", "a green cross on the left"]
    return [[*tokens, EOS] for tokens in small_index.vocabulary.encode_batch(texts)]


@pytest.fixture(scope="module")
def exhaustive(retriever, small_index, queries):
    """The log-probability of every identifier for every query."""
    policy, params = retriever
    identifiers = [[*row, EOS] for row in small_index.tokens.tolist()]
    return score_responses(policy, params, queries, [identifiers] * len(queries))[0]


def test_with_as_many_beams_as_items_the_ranking_is_that_of_all_identifiers(
    retriever, small_index, queries, exhaustive
):
    found = search(*retriever, queries, small_index, num_beams=12, listed=12)
    order = np.argsort(-exhaustive, axis=1)
    np.testing.assert_array_equal(found.ranked, order)
    expected = np.take_along_axis(exhaustive, order, axis=1)
    np.testing.assert_allclose(found.log_probs, expected, atol=1e-3)


def test_every_result_is_another_item_of_the_index(retriever, small_index, queries):
    for beams in (3, 50):
        found = search(*retriever, queries, small_index, num_beams=beams, listed=3)
        assert found.validity == 1
        assert all(len(set(row)) == 3 for row in found.ranked.tolist())


def test_probabilities_among_allowed_tokens_rank_as_their_exhaustive_scores(
    retriever, small_index, queries
):
    policy, params = retriever
    found = search(policy, params, queries, small_index, num_beams=12, listed=12, renormalize=True)
    # A chain of forced tokens adds nothing: an index of one item has only one ranking.
    one = dataclasses.replace(
        small_index,
        items=Items(["only"], [{}]),
        arrays={name: array[:1] for name, array in small_index.arrays.items()},
    )
    alone = search(policy, params, queries, one, num_beams=4, listed=2, renormalize=True)
    assert sorted(found.ranked[0]) == list(range(12))
    assert alone.ranked.tolist() == [[0]] * 3


def test_without_the_trie_responses_may_be_no_items(retriever, small_index, queries):
    found = search(*retriever, queries, small_index, num_beams=6, listed=6, constrained=False)
    assert found.validity < 1
    assert np.isneginf(found.log_probs[found.ranked < 0]).all()


def test_responses_name_items_only_with_their_end(small_index):
    ended = np.concatenate([small_index.tokens, np.ones((12, 1), np.int32)], axis=1)
    assert items_of(ended, small_index).tolist() == list(range(12))
    assert (items_of(np.zeros_like(ended), small_index) == -1).all()
    padded = np.pad(ended, ((0, 0), (0, 2)))
    assert items_of(padded[:, None], small_index).tolist() == [[i] for i in range(12)]


def test_an_index_without_items_has_no_trie(small_index):
    arrays = {name: array[:0] for name, array in small_index.arrays.items()}
    empty = dataclasses.replace(small_index, items=Items([], []), arrays=arrays)
    with pytest.raises(UserError, match="no responses, so it allows nothing"):
        trie_of(empty, 64)


def test_a_network_with_fewer_tokens_than_the_index_is_refused(small_index):
    with pytest.raises(UserError, match="token"):
        trie_of(small_index, small_index.blocks[0].first)


def test_samples_obey_the_trie(retriever, small_index, queries):
    from jaxalign.inference.sampling import DecodingSettings, generate_tokens
    from jaxalign.networks.decoding_hooks import Hooks

    settings = DecodingSettings(max_target_length=4, num_samples=4, temperature=1.0)
    hooks = Hooks(allowed=trie_of(small_index, retriever[0].vocab_size))
    tokens, _ = generate_tokens(*retriever, queries, settings, hooks=hooks)
    assert (items_of(tokens, small_index) >= 0).all()
    assert jax.numpy.asarray(tokens).shape == (3, 4, 4)


def test_a_policy_that_gives_nan_ranks_nothing(retriever, small_index, queries):
    policy, params = retriever
    spoiled = jax.tree.map(lambda leaf: leaf * np.nan, params)
    with pytest.raises(UserError, match="gives NaN log-probabilities"):
        search(policy, spoiled, queries, small_index, num_beams=3, listed=3)
