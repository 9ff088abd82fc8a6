"""Features and reward heads of the studies without trained networks."""

import numpy as np
import pytest

from studies.text_features import accuracy, fit_heads, tfidf, word_features


@pytest.fixture
def pairs():
    generator = np.random.default_rng(0)
    differences = generator.normal(size=(80, 4))
    margins = differences @ np.array([2.0, -1.0, 0.5, 0.0])
    labels = (generator.random((3, 80)) < 1 / (1 + np.exp(-margins))).astype(float)
    return differences, labels


def test_heads_are_stationary_points_of_the_penalised_loss(pairs):
    differences, labels = pairs
    weights = fit_heads(differences, labels, penalty=1.0)
    probabilities = 1 / (1 + np.exp(-weights @ differences.T))
    gradients = (probabilities - labels) @ differences + weights
    np.testing.assert_allclose(gradients, 0, atol=1e-3)


def test_a_head_alone_equals_the_head_among_others(pairs):
    differences, labels = pairs
    together = fit_heads(differences, labels, penalty=1.0)
    alone = fit_heads(differences, labels[1:2], penalty=1.0)
    np.testing.assert_allclose(alone[0], together[1], atol=1e-5)


def test_heads_order_most_pairs_and_a_zero_head_half(pairs):
    differences, labels = pairs
    weights = np.concatenate([fit_heads(differences, labels, penalty=1.0), np.zeros((1, 4))])
    found = accuracy(weights, differences, labels[0])
    assert found[0] > 0.7 and found[-1] == 0.5


def test_texts_with_common_words_are_closer():
    texts = ["the red hotel", "the red hotel is cheap", "a laptop with a battery"] * 2
    vectors = tfidf(texts, word_features, width=3)
    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert near > 0.3 > far
