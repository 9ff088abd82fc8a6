"""Reward models: microbatches and layout change nothing, hidden weights are recovered, and what cannot be compared is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import UserError
from jaxalign.networks.feature_reward import FeatureReward
from jaxalign.networks.reward import DecoderRewardNetwork, RewardNetwork
from jaxalign.objectives.goal_conditioned import GoalConditionedRewardModel
from jaxalign.objectives.reward_modelling import FeatureRewardModel, RewardModel
from jaxalign.training.optimizers import adamw
from jaxalign.training.state import build_transformations, create_state
from jaxalign.training.step import make_train_step


def goal_conditioned(**options):
    return lambda policy: GoalConditionedRewardModel(
        policy=policy,
        reward=DecoderRewardNetwork(policy.config),
        **({"num_samples": 4, "contrast_weight": 2.0} | options),
    )


# By name: the objective on a policy, and how many responses a prompt has.
CASES = {
    "pairs": (
        lambda policy: RewardModel(policy=policy, reward=RewardNetwork(policy.config)),
        2,
    ),
    "feedback_with_margin": (
        lambda policy: RewardModel(
            policy=policy,
            reward=RewardNetwork(policy.config),
            preferred="feedback",
            margin=0.5,
        ),
        3,
    ),
    "matched": (goal_conditioned(), 2),
    "released": (goal_conditioned(form="released"), 2),
}


@dataclasses.dataclass(frozen=True)
class World:
    """An objective, its parameters with a head that matters, and its step on eight unpacked examples."""

    objective: object
    params: dict
    responses: int
    plain: object


def with_params(objective, policy_params):
    params = objective.reward.from_policy(jax.random.key(3), policy_params)
    params["head"] = jax.tree.map(lambda leaf: leaf * 30 + 0.1, params["head"])
    return {"reward": params}


@pytest.fixture(scope="module", params=CASES)
def world(request, toy, run_step):
    make, responses = CASES[request.param]
    objective = make(toy.policy)
    params = with_params(objective, toy.params["policy"])
    return World(objective, params, responses, run_step(objective, params, toy.batch(responses)))


def assert_same_step(found, expected):
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected.gradients))
    assert scale > 1e-4, "the gradient vanishes, so this test would say nothing"
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5 * scale),
        found.gradients,
        expected.gradients,
    )
    assert found.means.keys() == expected.means.keys()
    for name, mean in expected.means.items():
        np.testing.assert_allclose(found.means[name], mean, rtol=2e-5, atol=2e-6, err_msg=name)


def test_microbatches_packing_padding_and_holes_change_nothing(world, toy, run_step):
    """Two examples a row, in two microbatches; empty rows, longer rows, garbage where nothing is."""
    layout = {"per_row": 2, "rows": 6, "extra": 3}
    packed = {k: np.array(v) for k, v in toy.batch(world.responses, **layout).items()}
    packed["encoder_input_tokens"][4:] = 5
    packed["decoder_target_tokens"][4:] = 6
    for name in ("rewards", "feedback"):
        packed[name][4:] = 1e4
    assert_same_step(run_step(world.objective, world.params, packed, 2), world.plain)


def test_metrics_are_those_of_the_comparisons(world, toy):
    """Loss, accuracy and the length baseline, comparison by comparison, from the network's own rewards."""
    batch = toy.batch(world.responses)
    objective = world.objective
    rewards = np.asarray(jax.jit(objective.reward.rewards)(world.params["reward"], batch))
    feedback = batch["feedback"].reshape(rewards.shape)
    lengths = np.stack(
        [(batch["decoder_segment_ids"] == k + 1).sum(1) for k in range(world.responses)], axis=1
    )
    losses, right, longer = [], [], []
    for example in range(len(rewards)):
        for one in range(world.responses):
            for other in range(world.responses):
                if objective.preferred == "first":
                    better, margin = (one, other) == (0, 1), 0.0
                else:
                    margin = feedback[example, one] - feedback[example, other]
                    better, margin = margin > 0, objective.margin * margin
                if better:
                    difference = rewards[example, one] - rewards[example, other]
                    losses.append(np.logaddexp(0, margin - difference))
                    right.append(difference > 0)
                    longer.append(
                        (1 + np.sign(lengths[example, one] - lengths[example, other])) / 2
                    )
    assert len(losses) == (8 if objective.preferred == "first" else 24)
    means = world.plain.means
    preference = means.get("preference_loss", means["loss"])
    np.testing.assert_allclose(preference, np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(means["accuracy"], np.mean(right))
    np.testing.assert_allclose(means["longer_wins"], np.mean(longer))
    if "contrastive_loss" in means:
        total = preference + objective.contrast_weight * means["contrastive_loss"]
        np.testing.assert_allclose(means["loss"], total, rtol=1e-5)
        assert 0.626 < means["contrastive_loss"] < 2.628


def test_without_contrast_it_is_plain_bradley_terry(toy, run_step):
    batch = toy.batch(2)
    bare = goal_conditioned(contrast_weight=0.0)(toy.policy)
    plain = RewardModel(policy=toy.policy, reward=DecoderRewardNetwork(toy.policy.config))
    params = with_params(plain, toy.params["policy"])
    one, other = (run_step(objective, params, batch) for objective in (bare, plain))
    jax.tree.map(np.testing.assert_array_equal, one.gradients, other.gradients)
    assert one.means == other.means


def test_positions_are_new_every_step_and_those_of_the_example(toy):
    """Their keys depend on the number of the step and on the example, not on where it lies."""
    objective = goal_conditioned()(toy.policy)
    batch = toy.batch(2)

    @jax.jit
    def keys(draws, batch):
        params = {"statistics": {"draws": draws}}
        return jax.random.key_data(objective._keys(params, batch))

    first, later = (np.asarray(keys(jnp.float32(draws), batch)) for draws in (0, 1))
    assert not np.any(np.all(first == later, axis=-1))
    np.testing.assert_array_equal(first, keys(jnp.float32(0), toy.batch(2, per_row=2)))
    statistics = objective.initial_statistics()
    after = objective.observe({"statistics": statistics}, batch)
    assert statistics["draws"] == 0 and after["draws"] == 1


HIDDEN = np.random.default_rng(5).normal(size=7)
HIDDEN *= 6 / np.linalg.norm(HIDDEN)


def feature_batch(seed, count):
    """Pairs whose scores are uniform on [0, 1]^7, the winner drawn by Bradley-Terry of hidden weights; in either place."""
    generator = np.random.default_rng(seed)
    scores = generator.uniform(size=(count, 1, 2, 7))
    advantage = (scores[:, 0, 0] - scores[:, 0, 1]) @ HIDDEN
    first_wins = generator.uniform(size=count) < 1 / (1 + np.exp(-advantage))
    return {
        "scores": scores.astype(np.float32),
        "feedback": np.stack([first_wins, ~first_wins], axis=-1)[:, None].astype(np.float32),
        "response_mask": np.ones((count, 1, 2), np.float32),
        "decoder_segment_ids": np.tile(np.array([[1, 2]], np.int32), (count, 1)),
        "decoder_loss_weights": np.ones((count, 2), np.float32),
    }


@pytest.fixture(scope="module")
def feature_model(toy):
    return FeatureRewardModel(policy=toy.policy, reward=FeatureReward(7), l2=1e-3)


def test_hidden_weights_are_recovered_from_200_preferences(feature_model):
    """Cosine above .95 and accuracy within .02 of the best possible, as means over five data sets (arXiv 2402.15473, ours)."""
    transformations = build_transformations({"reward": adamw(0.05)}, {})
    step = make_train_step(feature_model, transformations)

    @jax.jit
    def fit(batch):
        params = {"reward": feature_model.reward.init(jax.random.key(0))}
        state = create_state(params, transformations)
        state, _ = jax.lax.scan(lambda s, _: (step(s, {}, batch)[0], None), state, length=600)
        return state.params

    test = feature_batch(100, 20_000)
    evaluate = jax.jit(lambda params: feature_model.loss(params, test, None).metrics["accuracy"])
    best = {"reward": {"head": {"layer_0": {"kernel": jnp.asarray(HIDDEN[:, None], jnp.float32)}}}}

    def accuracy(params):
        total, weight = evaluate(params)
        return float(total / weight)

    bayes = accuracy(best)
    assert 0.79 < bayes < 0.83
    cosines, accuracies = [], []
    for seed in range(5):
        params = fit(feature_batch(seed, 200))
        weights = np.asarray(params["reward"]["head"]["layer_0"]["kernel"])[:, 0]
        cosines.append(weights @ HIDDEN / (np.linalg.norm(weights) * np.linalg.norm(HIDDEN)))
        accuracies.append(accuracy(params))
    assert np.mean(cosines) > 0.95
    assert bayes - np.mean(accuracies) < 0.02


def test_the_penalty_does_not_depend_on_microbatches(feature_model, run_step):
    batch = feature_batch(0, 8)
    kernel = jnp.asarray(np.random.default_rng(1).normal(size=(7, 1)), jnp.float32)
    params = {"reward": {"head": {"layer_0": {"kernel": kernel}}}}
    plain, split = (run_step(feature_model, params, batch, parts) for parts in (1, 4))
    assert_same_step(split, plain)
    np.testing.assert_allclose(plain.means["penalty"], 1e-3 * np.sum(kernel**2), rtol=1e-5)
    bare = dataclasses.replace(feature_model, l2=0.0)
    without = run_step(bare, params, batch)
    difference = jax.tree.map(lambda a, b: a - b, plain.gradients, without.gradients)
    found = difference["reward"]["head"]["layer_0"]["kernel"]
    np.testing.assert_allclose(found, 2e-3 * kernel, rtol=1e-2, atol=1e-6)


def test_equal_feedback_compares_nothing(toy):
    objective = CASES["feedback_with_margin"][0](toy.policy)
    batch = toy.batch(3)
    batch["feedback"][:] = 2.0
    batch["feedback"][0, 0, 1] = 3.0
    batch["response_mask"][0, 0, 2] = 0
    output = objective.preference_output(jnp.zeros((8, 3)), batch)
    assert output.weight == 1


def test_missing_fields_are_named(toy, feature_model):
    batch = toy.batch(2) | {"scores": np.zeros((8, 1, 2, 7), np.float32)}
    objectives = [make(toy.policy) for make, _ in CASES.values()]
    for objective in (*objectives, feature_model):
        objective.check_batch(batch)
        for field in objective.required_fields():
            rest = {name: batch[name] for name in batch if name != field}
            with pytest.raises(UserError, match=f"objective {objective.name} needs .*{field}"):
                objective.check_batch(rest)
    assert feature_model.required_fields() == ("scores", "feedback")


def test_what_cannot_be_compared_is_refused(toy, feature_model):
    pairs, feedback = (CASES[name][0](toy.policy) for name in ("pairs", "feedback_with_margin"))
    with pytest.raises(UserError, match=r"needs 2 response\(s\) per prompt, but the task has 3"):
        pairs.check_batch(toy.batch(3))
    with pytest.raises(UserError, match="at least two per prompt, but the task has 1"):
        feedback.check_batch(toy.batch(1))
    scores = {"scores": np.zeros((8, 1, 2, 5), np.float32)}
    with pytest.raises(UserError, match=r"expects 7 scores per response .*, but the task has 5"):
        feature_model.check_batch(toy.batch(2) | scores)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preferred": "second"}, "preferred must be 'first' or 'feedback'"),
        ({"preferred": "feedback"}, "it reads pairs"),
        ({"margin": -1.0}, "margin is -1.0; it must be at least 0"),
        ({"form": "paper"}, "form must be 'matched' or 'released'"),
        ({"num_samples": 0}, "num_samples is 0; it must be at least 1"),
        ({"contrast_weight": -1.0}, "contrast_weight is -1.0; it must be at least 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(toy, change, message):
    with pytest.raises(UserError, match=message):
        goal_conditioned(**change)(toy.policy)
