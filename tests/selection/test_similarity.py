"""REAL's choice of pairs by the similarity of embeddings."""

import numpy as np
import pytest

from jaxalign.selection.selectors import get_selector
from jaxalign.selection.similarity import centred_normalised, similar_pair


@pytest.fixture
def vectors():
    return np.random.default_rng(1).normal(size=(6, 5))


def chosen(vectors, mode, seed=0):
    (normalised,) = centred_normalised([vectors], centre=False)
    return similar_pair(normalised, mode, np.random.default_rng(seed))


def cosine(vectors, pair):
    a, b = vectors[list(pair)]
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_no_pair_is_less_similar_than_easy_or_more_similar_than_hard(vectors):
    all_pairs = [cosine(vectors, (i, j)) for i in range(6) for j in range(i + 1, 6)]
    assert cosine(vectors, chosen(vectors, "easy")) == pytest.approx(min(all_pairs))
    assert cosine(vectors, chosen(vectors, "hard")) == pytest.approx(max(all_pairs))


@pytest.mark.parametrize("mode", ["easy", "hard", "centroid"])
def test_the_order_of_the_responses_does_not_matter(vectors, mode):
    order = np.array([3, 1, 5, 0, 2, 4])
    assert {int(order[k]) for k in chosen(vectors[order], mode)} == set(chosen(vectors, mode))


@pytest.mark.parametrize("mode", ["easy", "hard", "centroid", "random"])
def test_two_responses_leave_no_choice(vectors, mode):
    assert chosen(vectors[:2], mode) == (0, 1)


@pytest.mark.parametrize("mode", ["easy", "hard"])
def test_lengths_of_vectors_do_not_matter_without_centring(vectors, mode):
    scales = np.array([1, 7, 0.1, 3, 2, 5.0])[:, None]
    assert chosen(vectors * scales, mode) == chosen(vectors, mode)


def test_equal_and_opposite_vectors():
    one = np.array([[1.0, 0], [1, 0], [-1, 0]])
    assert chosen(one, "hard") == (0, 1)
    assert chosen(one, "easy") == (0, 2)


def test_centroids_take_one_sample_of_each_cluster():
    generator = np.random.default_rng(0)
    clusters = np.concatenate(
        [centre + 0.05 * generator.normal(size=(3, 2)) for centre in ([1, 0], [0, 1])]
    )
    i, j = chosen(clusters, "centroid")
    assert i < 3 <= j


def test_centring_makes_the_shared_direction_irrelevant(vectors):
    shifted = centred_normalised([vectors + 100])[0]
    np.testing.assert_allclose(shifted, centred_normalised([vectors])[0], atol=1e-8)


def test_removed_lengths_leave_no_dependence(vectors):
    lengths = np.array([1.0, 2, 4, 8, 16, 32])
    dependent = vectors + np.outer(np.log(lengths), np.ones(5)) * 10
    (without,) = centred_normalised([dependent], lengths=[lengths])
    (same,) = centred_normalised([vectors], lengths=[lengths])
    np.testing.assert_allclose(without, same, atol=1e-8)


def test_random_pairs_are_uniform_draws(vectors):
    (normalised,) = centred_normalised([vectors])
    generator = np.random.default_rng(0)
    drawn = {similar_pair(normalised, "random", generator) for _ in range(300)}
    assert len(drawn) == 15


def test_candidates_with_two_responses_keep_their_labels(make):
    found = get_selector("similar_pairs")(
        make(
            {
                "embedding": ("vectors", [[[1, 0], [1, 0.1], [-1, 0]]]),
                "human": ("scores", [[3, 2, 1]]),
                "judge": ("preferences", [np.full((3, 3), 0.5)]),
            }
        )
    )
    (line,) = found.lines
    assert found.kind == "candidates"
    # Centring moves the origin to (1/3, 1/30).
    assert line["responses"] in (["r0", "r2"], ["r1", "r2"])
    assert line["annotations"]["human"]["scores"][1] == 1.0
    assert np.shape(line["annotations"]["judge"]["preferences"]) == (2, 2)
    assert "embedding" not in line["annotations"] and -1 <= line["similarity"] < 0


def test_empty_and_repeated_responses_are_never_chosen(make):
    for mode in ("easy", "random", "hard", "centroid", "length"):
        found = get_selector(f"similar_pairs:mode={mode}")(
            make(
                {"embedding": ("vectors", [[[1, 0], [-9, 0], [0, 1], [1, 0]]])},
                [["a", " ", "bb", "a"]],
            )
        )
        assert [line["responses"] for line in found.lines] == [["a", "bb"]]


def test_length_mode_needs_no_embeddings(make):
    judged = make({"human": ("scores", [[1, 2, 3]])}, [["aa", "a", "aaaa"]])
    (line,) = get_selector("similar_pairs:mode=length")(judged).lines
    assert line["responses"] == ["a", "aaaa"] and line["length_difference"] == 3
