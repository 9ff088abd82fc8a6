"""Ranking of held-out responses: oracles, baselines, the TF-IDF model."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxalign.evaluation import ranking
from jaxalign.evaluation.tfidf import TfidfRidge

PROMPTS = ["a", "a", "a", "b", "b", "c"]
FEEDBACK = np.array([1.0, 2.0, 3.0, 5.0, 4.0, 9.0])


def test_feedback_itself_ranks_perfectly():
    result = ranking.rank_responses(FEEDBACK, FEEDBACK, PROMPTS, bootstrap=20)
    assert result.spearman == result.auc == pytest.approx(1)
    assert result.within_prompt_spearman == result.pairwise_accuracy == pytest.approx(1)
    assert (result.responses, result.good, result.prompts, result.pairs) == (6, 3, 2, 4)


def test_an_interval_needs_ten_prompts_and_ten_responses_of_each_class():
    def result(prompts, good):
        feedback = (np.arange(prompts) < good).astype(float)
        return ranking.rank_responses(feedback, feedback, range(prompts), bootstrap=20)

    assert result(20, 10).auc_low == result(20, 10).spearman_low == pytest.approx(1)
    few_good = result(20, 9)
    assert np.isnan(few_good.auc_low) and few_good.spearman_low == pytest.approx(1)
    few_prompts = result(9, 4)
    assert np.isnan(few_prompts.auc_low) and np.isnan(few_prompts.spearman_low)


def test_the_right_order_inside_prompts_need_not_show_across_them():
    # Each prompt's scores are shifted so that the easy prompt scores lowest.
    scores = FEEDBACK - np.array([0, 0, 0, 10, 10, 20])
    result = ranking.rank_responses(scores, FEEDBACK, PROMPTS, bootstrap=0)
    assert result.pairwise_accuracy == 1
    assert result.spearman < 0


def test_constant_scores_are_chance():
    result = ranking.rank_responses(np.zeros(6), FEEDBACK, PROMPTS, bootstrap=0)
    assert result.auc == result.pairwise_accuracy == 0.5
    assert result.within_prompt_spearman == 0
    assert np.isnan(result.spearman)


@given(
    hnp.arrays(float, 9, elements=st.integers(0, 3).map(float)),
    hnp.arrays(float, 9, elements=st.integers(0, 3).map(float)),
    st.lists(st.sampled_from("xyz"), min_size=9, max_size=9),
)
def test_pairwise_accuracy_equals_brute_force(scores, feedback, prompts):
    points = []
    for i, j in itertools.combinations(range(9), 2):
        if prompts[i] == prompts[j] and feedback[i] != feedback[j]:
            agreement = (scores[i] - scores[j]) * (feedback[i] - feedback[j])
            points.append(1.0 if agreement > 0 else 0.5 if agreement == 0 else 0.0)
    result = ranking.rank_responses(scores, feedback, prompts, bootstrap=0)
    assert result.pairs == len(points)
    if points:
        assert result.pairwise_accuracy == pytest.approx(np.mean(points))


def test_good_means_thumbs_up_or_above_the_median():
    np.testing.assert_array_equal(
        ranking.good_responses(np.array([0.0, 1.0, 1.0, 1.0])), [False, True, True, True]
    )
    np.testing.assert_array_equal(
        ranking.good_responses(np.array([1.0, 2.0, 3.0])), [False, False, True]
    )
    # Most responses have no error: those are the good ones.
    np.testing.assert_array_equal(
        ranking.good_responses(np.array([-0.5, 0.0, 0.0, -1.0, 0.0])),
        [False, True, True, False, True],
    )


def test_methods_and_baselines_for_the_same_responses():
    methods = ranking.ranking_scores(
        np.array([-1.0, -2.0]),
        np.array([-2.0, -1.0]),
        ["xxx", "x"],
        tau=0.5,
        values=np.array([10.0, 20.0]),
        linear=np.array([7.0, 8.0]),
    )
    assert {name: list(value) for name, value in methods.items()} == {
        "tau * log-ratio": [0.5, -0.5],
        "tau * log-ratio + V": [10.5, 19.5],
        "V (prompt only)": [10.0, 20.0],
        "policy log-prob": [-1.0, -2.0],
        "reference log-prob": [-2.0, -1.0],
        "longer wins": [3.0, 1.0],
        "TF-IDF linear": [7.0, 8.0],
    }
    ranked = ranking.rank_methods(methods, np.array([1.0, 0.0]), ["p", "p"], bootstrap=0)
    assert ranked["longer wins"].pairwise_accuracy == 1
    assert ranked["reference log-prob"].pairwise_accuracy == 0


def test_tfidf_model_learns_which_words_are_good_and_ignores_unknown_ones():
    rng = np.random.default_rng(0)
    words = np.array(["good", "bad", "tea", "cup", "milk"])
    texts = [" ".join(rng.choice(words, 4)) for _ in range(200)]
    feedback = np.array([t.count("good") - t.count("bad") for t in texts], float)
    model = TfidfRidge(penalty=0.1).fit(["p"] * 150, texts[:150], feedback[:150])
    predicted = model.predict(["p"] * 50, texts[150:])
    assert ranking.rank_responses(predicted, feedback[150:], range(50), bootstrap=0).spearman > 0.9
    unknown = model.predict(["q", "q"], ["zzz", "yyy"])
    assert unknown[0] == unknown[1] == pytest.approx(feedback[:150].mean())


def test_tfidf_model_equals_dense_ridge_regression():
    texts = ["a b", "a c", "b c", "a a b"]
    target = np.array([1.0, 2.0, 0.0, 3.0])
    model = TfidfRidge(penalty=2.0, min_count=1).fit([""] * 4, texts, target)
    documents = [["r:" + w for w in t.split()] for t in texts]
    assert all(set(d) <= set(model._columns) for d in documents)
    from jaxalign.evaluation.tfidf import text_features

    x = model._matrix([text_features("", t) for t in texts]).toarray()
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1)
    weights = np.linalg.solve(x.T @ x + 2.0 * np.eye(x.shape[1]), x.T @ (target - target.mean()))
    np.testing.assert_allclose(
        model.predict([""] * 4, texts), x @ weights + target.mean(), rtol=1e-5
    )
