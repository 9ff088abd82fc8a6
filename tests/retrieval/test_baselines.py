"""The baselines and the measures: a lexical index, two towers, recall."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.evaluation.retrieve import Training, measure
from jaxalign.losses.in_batch_contrast import in_batch_contrast_loss
from jaxalign.networks.two_tower import TwoTower
from jaxalign.retrieval import recall
from jaxalign.retrieval.items import Items
from jaxalign.retrieval.lexical import LexicalIndex
from jaxalign.retrieval.two_tower_training import TwoTowerSettings, fit_towers


def test_measures_by_hand():
    ranked = recall.padded([[4, 0, 2, 7, 1, 9], [3], []], 10)
    found = recall.per_query(ranked, np.array([9, 3, 0]))
    assert found["R@1"].tolist() == [0, 1, 0]
    assert found["R@5"].tolist() == [0, 1, 0]
    assert found["R@10"].tolist() == [1, 1, 0]
    np.testing.assert_allclose(found["MRR"], [1 / 6, 1, 0])


def test_the_recall_of_the_cluster_looks_at_the_first_item_and_at_all():
    clusters = np.array([0, 0, 1, 1])
    found = recall.cluster_recall(np.array([[0, 2], [3, -1]]), np.array([3, 1]), clusters)
    assert found == {"cluster@1": pytest.approx([0, 0]), "cluster@2": pytest.approx([1, 0])}


def test_the_lexical_index_finds_words_and_lists_no_item_without_a_common_word():
    index = LexicalIndex(["a red star", "blue moon", "red moon"], [0, 1, 1], 3)
    ranked = index.ranked(["the blue one", "star", "unknown"], 3)
    assert ranked.tolist() == [[1, -1, -1], [0, -1, -1], [-1, -1, -1]]


def test_a_second_query_for_an_item_is_not_a_wrong_one():
    vectors = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    losses = in_batch_contrast_loss(vectors, vectors, jnp.array([5, 5, 7]), jnp.float32(2.0))
    one_against_two = -jax.nn.log_softmax(jnp.array([2.0, 0.0]))[0]
    np.testing.assert_allclose(losses[0], one_against_two, rtol=1e-5)
    wrong = jax.nn.log_softmax(2.0 * jnp.array([0.0, 0.6, 1.0]))[2]
    np.testing.assert_allclose(losses[2], -wrong, rtol=1e-5)
    gradients = jax.grad(
        lambda v: in_batch_contrast_loss(v, v, jnp.array([5, 5, 7]), jnp.float32(2.0)).sum()
    )
    assert np.isfinite(gradients(vectors)).all()


def test_two_towers_learn_which_item_a_query_names(retriever, small_index):
    training = Training.of(small_index)
    queries = small_index.vocabulary.encode_batch(training.queries)
    tokens = [[*query, 1] for query in queries]
    settings = TwoTowerSettings(steps=60, batch_size=16, learning_rate=1e-2)
    towers = fit_towers(retriever[0], tokens, training.items, small_index.vectors, settings, seed=0)
    found = recall.per_query(
        towers.ranked(tokens, small_index.vectors, 5), np.array(training.items)
    )
    # Two of the twelve items have equal vectors; by chance 5 of 12 would be among the first five.
    assert found["R@5"].mean() > 0.7


def test_the_query_tower_has_no_decoder_and_starts_from_a_policy(retriever):
    policy, params = retriever
    made = TwoTower(policy, 6).from_policy(jax.random.key(0), params)
    assert "decoder" not in made["encoder"]
    found = TwoTower(policy, 6).query_vectors(made, jnp.array([[4, 5, 1, 0], [4, 5, 1, 0]]))
    np.testing.assert_allclose(jnp.linalg.norm(found, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(found[0], found[1])


def test_intervals_and_the_cluster_are_measured_for_every_method(small_index):
    right = np.arange(12)
    ranked = {"generative": right[:, None], "tf_idf": np.full((12, 1), -1)}
    found = measure(ranked, right, small_index, samples=50)
    assert found["generative"]["R@1"].mean == found["generative"]["cluster@1"].mean == 1
    assert found["tf_idf"]["MRR"].high == 0
    assert measure(ranked, None, small_index) == {}


@pytest.mark.parametrize(("listed", "measured"), [(3, {"R@1"}), (5, {"R@1", "R@5"})])
def test_recall_is_measured_no_farther_than_items_are_listed(small_index, listed, measured):
    ranked = {"generative": np.tile(np.arange(listed), (2, 1))}
    found = measure(ranked, np.array([0, 11]), small_index, samples=10)["generative"]
    assert {name for name in found if name.startswith("R@")} == measured
    few = dataclasses.replace(small_index, items=Items(["a"] * listed, [{}] * listed))
    assert "R@10" in measure(ranked, np.array([0, 1]), few, samples=10)["generative"]
