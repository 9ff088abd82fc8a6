"""Studies of the field: Frozen Lake and Intuitive Fine-Tuning, and rewards from expert features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.networks.feature_reward import FeatureReward
from jaxalign.objectives.reward_modelling import FeatureRewardModel
from studies import (
    feature_reward,
    feature_reward_models,
    feature_reward_report,
    frozen_lake,
    intuitive_fine_tuning,
    intuitive_fine_tuning_report,
)


def test_the_lake_is_that_of_gymnasium():
    gymnasium = pytest.importorskip("gymnasium")
    lake = gymnasium.make("FrozenLake-v1", map_name="4x4", is_slippery=False).unwrapped
    table = frozen_lake.next_states()
    for state, actions in lake.P.items():
        for action, ((_, reached, _, _),) in actions.items():
            assert table[state, action] == reached


def test_both_paths_reach_the_goal_and_only_one_is_optimal():
    table, optimal = frozen_lake.next_states(), frozen_lake.optimal_policy()
    assert [i for i in range(16) if not frozen_lake.LIVE[i]] == [5, 7, 11, 12, 15]
    for path in (intuitive_fine_tuning.OPTIMAL, intuitive_fine_tuning.SUB_OPTIMAL):
        reached = [table[state, action] for state, action in path]
        assert reached == [*(state for state, _ in path[1:]), frozen_lake.GOAL]
    assert all(optimal[state, action] > 0 for state, action in intuitive_fine_tuning.OPTIMAL)
    assert not all(
        optimal[state, action] > 0 for state, action in intuitive_fine_tuning.SUB_OPTIMAL
    )
    # Two ways are equally good at the start and below the first hole.
    np.testing.assert_allclose(optimal[[0, 9]].max(axis=1), 0.5)


def test_the_optimal_policy_has_no_error_and_the_value_of_its_paths():
    optimal = frozen_lake.optimal_policy()
    assert frozen_lake.squared_error(optimal)[frozen_lake.LIVE].max() == 0
    distances = {0: 6, 1: 5, 2: 4, 3: 5, 4: 5, 6: 3, 8: 4, 9: 3, 10: 2, 13: 2, 14: 1}
    expected = np.mean([0.9 ** (steps - 1) for steps in distances.values()])
    np.testing.assert_allclose(frozen_lake.success(optimal), expected)
    uniform = np.full((16, 4), 0.25)
    assert frozen_lake.success(uniform) < 0.2


def test_mixed_inputs_are_the_true_states_for_a_policy_that_follows_the_path():
    params = intuitive_fine_tuning.initial_params(jax.random.PRNGKey(0))
    path = intuitive_fine_tuning.OPTIMAL
    plain = intuitive_fine_tuning.path_losses(params, path)
    assert not np.allclose(intuitive_fine_tuning.path_losses(params, path, 0.5), plain)
    # One hidden unit per state is enough for a table of the path's actions.
    table = np.zeros((16, 4), np.float32)
    for state, action in path:
        table[state, action] = 5
    perfect = {
        "first": 5 * jnp.eye(16, 32),
        "first_bias": jnp.zeros(32),
        "second": jnp.concatenate([jnp.asarray(table), jnp.zeros((16, 4))]),
        "second_bias": jnp.zeros(4),
    }
    np.testing.assert_allclose(
        intuitive_fine_tuning.path_losses(perfect, path, 1.0),
        intuitive_fine_tuning.path_losses(perfect, path),
    )


def test_early_and_late_weights_add_up_to_equal_weights():
    losses = jnp.array([[0.3, 1.0, 0.2, 2.0]])
    total = sum(
        intuitive_fine_tuning.imitation_loss(losses, intuitive_fine_tuning.Arm(form))
        for form in ("early", "equation_21")
    )
    np.testing.assert_allclose(total, 5 * losses.mean(), rtol=1e-6)


def test_orpo_of_equal_paths_is_cross_entropy_and_weight_times_ln_2():
    loss = intuitive_fine_tuning.orpo_loss(jnp.array(-2.0), jnp.array(-2.0), weight=0.5)
    np.testing.assert_allclose(loss, 2 + 0.5 * np.log(2), rtol=1e-6)


def test_the_loss_of_phi_is_that_of_the_objective():
    generator = np.random.default_rng(0)
    scores = generator.uniform(0, 5, (6, 2, 3)).astype(np.float32)
    network = FeatureReward(3, (2,), scale=5.0)
    params = network.init(jax.random.PRNGKey(1))
    ours = feature_reward_models.phi_loss(network, params, scores, np.ones(6, np.float32), l2=0.1)
    batch = {
        "scores": scores[:, None],
        "feedback": np.tile([1.0, 0.0], (6, 1))[:, None],
        "response_mask": np.ones((6, 1, 2)),
        "decoder_loss_weights": np.ones((6, 2)),
        "decoder_segment_ids": np.tile([1, 2], (6, 1)),
    }
    objective = FeatureRewardModel(policy=None, reward=network, l2=0.1)
    output = objective.loss({"reward": params}, batch, None)
    np.testing.assert_allclose(ours, output.loss_sum / output.weight, rtol=1e-6)


def test_phi_finds_planted_weights_and_reads_its_subset_only(monkeypatch):
    monkeypatch.setattr(feature_reward_models, "STEPS", 200)
    generator = np.random.default_rng(0)
    weights = np.array([4.0, -2.0, 0.0])
    scores = generator.uniform(0, 1, (300, 2, 3)).astype(np.float32)
    margins = (scores[:, 0] - scores[:, 1]) @ weights
    lost = generator.random(300) > 1 / (1 + np.exp(-margins))
    scores[lost] = scores[lost, ::-1]
    network = FeatureReward(3)
    subsets = feature_reward.subset_weights([np.arange(200), np.arange(20)], 300)
    changed = scores.copy()
    changed[20:] = changed[20:, ::-1]
    first, second = (
        feature_reward_models.fit_phi(network, each, subsets, 0, l2=1e-3, rate=0.05)["head"][
            "layer_0"
        ]["kernel"]
        for each in (scores, changed)
    )
    found = np.asarray(first[0, :, 0])
    assert found @ weights / np.linalg.norm(found) / np.linalg.norm(weights) > 0.9
    np.testing.assert_array_equal(first[1], second[1])
    assert not np.allclose(first[0], second[0])


def test_logistic_regression_on_words_is_at_its_minimum():
    generator = np.random.default_rng(0)
    differences = generator.normal(size=(12, 30))
    duals = feature_reward_models.fit_dual(differences @ differences.T, 0.5)
    weights = differences.T @ duals
    gradient = 0.5 * weights - differences.T @ (1 / (1 + np.exp(differences @ weights)))
    np.testing.assert_allclose(gradient, 0, atol=1e-5)


def test_words_that_mark_the_preferred_text_order_other_pairs():
    pairs = [("clear and short", "muddled text"), ("short and clear", "a muddled text")] * 5
    margins = feature_reward_models.word_margins(
        pairs, [("clear", "muddled"), ("muddled", "clear"), ("new", "word")],
        normalize=True, penalties=(0.1, 1.0),
    )  # fmt: skip
    assert feature_reward_models.accuracy(margins).tolist() == [1, 0, 0.5]


def test_pages_of_studies_that_have_not_run_say_what_to_run(tmp_path):
    page = intuitive_fine_tuning_report.report(tmp_path)
    assert "have not been run" in page and "--only lake" in page
    assert "python -m studies.feature_reward " in feature_reward_report.report(tmp_path)
