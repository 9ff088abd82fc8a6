"""The study of byte strings: the exact distribution of the property, means over tokens, and a page of what has finished."""

import dataclasses
import functools
import itertools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.networks.scoring import ResponseScores
from studies import byte_strings, byte_strings_generator, byte_strings_report
from studies.byte_strings_generator import LETTERS, charge, feedback, optimum
from studies.byte_strings_objective import TokenMeanDRO
from studies.equal_distance import equal_distance_rows, rewards_at


def test_the_distribution_of_charges_is_that_of_all_fillers(monkeypatch):
    monkeypatch.setattr(byte_strings_generator, "SHORTEST", 1)
    monkeypatch.setattr(byte_strings_generator, "LONGEST", 2)
    chain = byte_strings_generator.transitions()
    found = byte_strings_generator.filler_charges.__wrapped__()
    expected = np.zeros((len(LETTERS), 5))
    for first, one in itertools.product(range(len(LETTERS)), repeat=2):
        expected[first, 2 + charge(LETTERS[one])] += 0.5 * chain[first, one]
        for two in range(len(LETTERS)):
            both = charge(LETTERS[one] + LETTERS[two])
            expected[first, 2 + both] += 0.5 * chain[first, one] * chain[one, two]
    np.testing.assert_allclose(found, expected)


def test_drawn_fillers_have_the_exact_mean_feedback():
    generator = np.random.default_rng(3)
    prompts = byte_strings_generator.draw_prompts(400, generator)
    drawn = [
        np.mean([feedback(prompt, byte_strings_generator.draw_filler(prompt, generator)) for _ in range(4)])
        for prompt in prompts
    ]  # fmt: skip
    exact = optimum(prompts, np.inf).rewards
    difference = drawn - exact
    assert abs(difference.mean()) < 4 * difference.std() / len(prompts) ** 0.5
    # Prompts differ in difficulty, so that a value has something to learn.
    assert exact.std() > 1


def test_feedback_is_minus_the_net_charge_of_flanks_and_filler():
    assert feedback("KKA_R", "DDCH") == -1
    assert feedback("A_C", "") == 0


def test_the_optimum_maximises_regularised_feedback():
    prompts = byte_strings_generator.draw_prompts(20, np.random.default_rng(0))
    at = {tau: optimum(prompts, tau) for tau in (0.5, 1.0, 2.0)}
    natural = optimum(prompts, np.inf)
    for tau, best in at.items():
        np.testing.assert_allclose(best.values, best.rewards - tau * best.kl)
        for other in (natural, *at.values()):
            assert np.all(best.values >= other.rewards - tau * other.kl - 1e-9)
    assert np.all(at[0.5].kl >= at[2.0].kl)


@pytest.mark.parametrize("tokens", [1, 4])
def test_a_mean_over_n_tokens_is_a_sum_with_tau_divided_by_n(tokens):
    policy = SimpleNamespace()
    value = SimpleNamespace(
        scores_and_values=lambda policy, params, batch, rng: (
            ResponseScores(params["policy"][:, None], jnp.full((2, 1), float(tokens))),
            params["value"],
        )
    )
    objective = TokenMeanDRO(policy=policy, value=value, temperature=0.8)
    params = {"policy": jnp.array([-3.0, -9.0]), "value": jnp.array([0.2, -0.4])}
    rewards, reference = jnp.array([1.0, -2.0]), jnp.array([-4.0, -7.0])
    batch = {
        "rewards": rewards[:, None],
        "reference_log_probs": reference[:, None],
        "response_mask": np.ones((2, 1)),
    }

    def expected(params):
        log_ratios = params["policy"] - reference
        return 0.5 * jnp.sum((rewards - params["value"] - 0.8 / tokens * log_ratios) ** 2)

    found = jax.value_and_grad(lambda p: objective.loss(p, batch, None).loss_sum)(params)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5),
        found,
        jax.value_and_grad(expected)(params),
    )


def test_all_arms_read_the_same_rated_fillers(tmp_path):
    size = dataclasses.replace(byte_strings.Size(), natural=30, logged=40, test=10)
    counts = byte_strings._prepare(size, tmp_path)
    rows = {
        name: [line.split(",") for line in (tmp_path / f"{name}.csv").read_text().splitlines()[1:]]
        for name in ("triplets", "pairs", "good", "test", "natural")
    }
    assert {name: counts[name] for name in rows} == {name: len(each) for name, each in rows.items()}
    rated = {(prompt, filler): float(reward) for prompt, filler, reward in rows["triplets"]}
    assert all(reward == feedback(*key) for key, reward in rated.items())
    for prompt, better, worse in rows["pairs"]:
        assert rated[prompt, better] > rated[prompt, worse]
    good = {key for key, reward in rated.items() if reward >= byte_strings.GOOD}
    assert {tuple(row) for row in rows["good"]} == good
    prompts = [{row[0] for row in rows[name]} for name in ("triplets", "test", "natural")]
    assert not any(one & other for one, other in itertools.combinations(prompts, 2))


def test_rewards_are_read_on_straight_lines_and_only_where_a_path_comes():
    path = [(0.0, 1.0), (1.0, 3.0), (0.5, 5.0)]
    assert rewards_at(path, 0.75) == [2.5, 4.0]
    assert rewards_at(path, 2.0) == []
    rows = equal_distance_rows({"a": [path, None], "b": [[(0, 0), (1, 1)], path]}, (0.5, 1.0), "a")
    assert rows[0]["at 0.5"] == "5.000 (1)"
    assert rows[1]["at 1"] == "2.000 ± 1.414 (2)" and rows[1]["minus `a`, at 1"] == "-2.000 (1)"


def test_the_page_shows_finished_arms_and_names_the_others(tmp_path):
    assert "`dpo` (0)" in byte_strings_report.report(tmp_path)
    (tmp_path / "data").mkdir()
    prompts = byte_strings_generator.draw_prompts(10, np.random.default_rng(0))
    (tmp_path / "data/test.csv").write_text("\n".join(["prompt", *prompts]) + "\n")
    point = {"updates": 0, "reward": -4.0, "kl": 0.0, "length": 12.0}
    value = {"correlation": 0.9, "bias": 0.1, "error": 0.2}
    results = {
        "sft": {**point, "reward_error": 0.1},
        byte_strings_report.BASE: {
            "path": [point, {**point, "kl": 2.0, "reward": -2.0, "value": value}]
        },
    }
    for name, result in results.items():
        folder = tmp_path / name / "seed0"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(result))
    page = byte_strings_report.report(tmp_path, tmp_path / "page.png")
    assert "| -3.000 (1) |" in page and "`dpo` (0)" in page and "exact optimum" in page
    assert (tmp_path / "page.png").stat().st_size
