"""Identities of HyPER's routing between human and model labels."""

import json

import numpy as np
import pytest

from jaxalign.data.rejections import DataError
from jaxalign.errors import UserError
from jaxalign.selection import label_routing as routing
from jaxalign.selection.routed import pair_tags
from jaxalign.selection.selectors import get_selector


@pytest.fixture
def tags():
    generator = np.random.default_rng(0)
    found = generator.random((60, 5)) < 0.4
    found[:, 0] |= ~found.any(axis=1)
    return found


@pytest.fixture
def mixes(tags):
    return routing.candidate_mixes(tags, 40, seed=1)


def fitted(tags, mixes, kind, ridge=1.0, performance=None):
    counts = routing.mix_counts(mixes, tags)
    weights = np.arange(1.0, 6.0)
    values = counts @ weights if performance is None else performance(counts)
    return routing.fit_performance_model(counts, values, kind=kind, ridge=ridge), counts, values


def test_counts_are_zero_without_human_labels_and_column_sums_with_all(tags, mixes):
    counts = routing.mix_counts(mixes, tags)
    np.testing.assert_array_equal(counts[0], tags.sum(axis=0))
    np.testing.assert_array_equal(counts[1], 0)


def test_counts_of_disjoint_masks_add_up(tags, mixes):
    one = mixes[5]
    parts = np.stack([one, ~one, np.ones(60, bool)])
    counts = routing.mix_counts(parts, tags)
    np.testing.assert_array_equal(counts[0] + counts[1], counts[2])


@pytest.mark.parametrize("budget", [0, 1, 31, 60])
def test_a_mix_has_exactly_the_budget(tags, budget):
    assert routing.draw_mix(np.random.default_rng(3), tags, budget).sum() == budget


def test_a_mix_takes_tags_whole(tags):
    """All pairs of the first tag are in before any pair without it."""
    mask = routing.draw_mix(np.random.default_rng(3), tags, 30)
    assert any(mask[tag].all() for tag in tags.T)


def test_a_budget_beyond_the_pairs_is_refused(tags):
    with pytest.raises(UserError, match="61 human labels"):
        routing.draw_mix(np.random.default_rng(0), tags, 61)


def test_linear_gains_add_up_to_the_prediction(tags, mixes):
    model, counts, _ = fitted(tags, mixes, "linear")
    gains = model.gains(tags)
    zero = model.predict(np.zeros((1, 5)))[0]
    np.testing.assert_allclose(model.predict(counts) - zero, mixes @ gains, atol=1e-8)


def test_the_largest_linear_gains_are_the_best_mix_of_a_budget(tags, mixes):
    model, _, _ = fitted(tags, mixes, "linear")
    routed = routing.route_by_gain(model, tags, 20)
    others = routing.candidate_mixes(tags, 200, seed=7, budget=20)[2:]
    best = model.predict(routing.mix_counts(routed[None], tags))[0]
    assert best >= model.predict(routing.mix_counts(others, tags)).max() - 1e-9


def test_quadratic_predictions_are_gains_and_interactions(tags, mixes):
    model, counts, _ = fitted(tags, mixes, "quadratic", performance=lambda c: c[:, 0] * c[:, 1])
    # The matrix Q of the model in raw counts, by second differences of its prediction.
    unit = np.eye(5)
    predict = lambda v: model.predict(v[None])[0]  # noqa: E731
    zero = predict(np.zeros(5))
    second = np.array(
        [[predict(a + b) - predict(a) - predict(b) + zero for b in unit] for a in unit]
    )
    interactions = tags @ (second / 2) @ tags.T
    np.fill_diagonal(interactions, 0)
    for mask, value in zip(mixes[:6], model.predict(counts[:6]), strict=True):
        expected = mask @ model.gains(tags) + mask @ interactions @ mask
        assert value - zero == pytest.approx(expected, rel=1e-6)


def test_a_planted_linear_performance_is_recovered(tags, mixes):
    model, counts, values = fitted(tags, mixes, "linear", ridge=1e-9)
    raw = model.weights[1:] / model.deviation
    np.testing.assert_allclose(raw, np.arange(1.0, 6.0), atol=1e-6)
    predicted = routing.cross_validated(counts, values, kind="linear", ridge=1e-9)
    np.testing.assert_allclose(predicted, values, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("tags_number,columns", [(10, 66), (90, 4186)])
def test_number_of_quadratic_columns(tags_number, columns):
    found = routing.quadratic_columns(np.zeros((2, tags_number)), "quadratic")
    assert found.shape == (2, columns)


def test_routing_follows_a_permutation_of_the_pairs(tags, mixes):
    model, _, _ = fitted(tags, mixes, "quadratic")
    order = np.random.default_rng(4).permutation(60)
    np.testing.assert_array_equal(
        routing.route_by_gain(model, tags[order], None),
        routing.route_by_gain(model, tags, None)[order],
    )


def test_a_tag_of_every_pair_counts_the_budget(tags):
    everywhere = np.concatenate([tags, np.ones((60, 1), bool)], axis=1)
    mixes = routing.candidate_mixes(everywhere, 5, seed=0)
    np.testing.assert_array_equal(routing.mix_counts(mixes, everywhere)[:, -1], mixes.sum(axis=1))


def test_a_tag_with_one_count_in_all_measured_mixes_is_ignored(tags, mixes):
    constant = np.concatenate([tags, np.zeros((60, 1), bool)], axis=1)
    model, _, _ = fitted(constant, mixes, "quadratic", performance=lambda c: c[:, 0])
    assert np.isfinite(model.predict(np.full((1, 6), 9.0))).all()


def test_thirds_are_half_open():
    tags = routing.third_tags(np.array([0.0, 1 / 3, 2 / 3, 1.0]), ranked=False)
    np.testing.assert_array_equal(tags.argmax(axis=1), [0, 1, 2, 2])
    ranked = routing.third_tags(np.arange(30.0))
    np.testing.assert_array_equal(ranked.sum(axis=0), 10)


@pytest.fixture
def labelled(make):
    generator = np.random.default_rng(0)
    texts = [
        [" ".join(["w"] * int(generator.integers(1, 20))) + f" {side}{i}" for side in "ab"]
        for i in range(30)
    ]
    scores = {
        name: ("scores", [*generator.permuted([[0, 1]] * 29, axis=1), tie])
        for name, tie in (("human", [1, 1]), ("judge", [0, 1]))
    }
    return make(scores, texts)


@pytest.mark.parametrize("mode", ["human", "model"])
def test_one_source_labels_everything(labelled, mode):
    found = get_selector(f"routed:mode={mode}")(labelled)
    assert {line["is_human"] for line in found.lines} == {mode == "human"}
    name = {"human": "human", "model": "judge"}[mode]
    for line in found.lines:
        i = line["id"]
        scores = dict(zip(labelled.responses[i], labelled.annotations[name].values[i], strict=True))
        assert scores[line["chosen"]] > scores[line["rejected"]]
    assert found.dropped["tie of the human labels"] == 1 and len(found.lines) == 29


@pytest.mark.parametrize("mode", ["random", "simulated", "gain"])
def test_a_budget_of_human_labels_is_kept(labelled, tmp_path, mode):
    places = [(i, [0, 1]) for i in range(29)]
    tags, names = pair_tags(labelled, places)
    mixes = routing.candidate_mixes(tags, 8, seed=0)
    counts = routing.mix_counts(mixes, tags)
    rows = {
        "tags": names,
        "mixes": [{"counts": list(row), "performance": float(row[0])} for row in counts],
    }
    (tmp_path / "mixes.json").write_text(json.dumps(rows))
    spec = f"routed:mode={mode},budget=0.4,mixes={tmp_path / 'mixes.json'}"
    found = get_selector(spec)(labelled)
    assert found.measures["human_labels"] == 12
    # The planted performance counts human labels of pairs with short prompts.
    assert get_selector(spec)(labelled) == found


def test_mixes_of_another_pool_are_refused(labelled, tmp_path):
    rows = {"tags": ["x"], "mixes": [{"counts": [i], "performance": 0.5} for i in range(4)]}
    (tmp_path / "mixes.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match=r"mixes\.json has 1 tags"):
        get_selector(f"routed:mode=gain,mixes={tmp_path / 'mixes.json'}")(labelled)


@pytest.mark.parametrize("text", ["{", "{}", '{"tags": ["x"], "mixes": [{"counts": [1, 2]}]}'])
def test_malformed_mixes_are_named(labelled, tmp_path, text):
    (tmp_path / "mixes.json").write_text(text)
    with pytest.raises(UserError, match=r"mixes\.json"):
        get_selector(f"routed:mode=gain,mixes={tmp_path / 'mixes.json'}")(labelled)
