"""r(x, y) is a function of the tokens of one prompt and one response, wherever they lie in a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.networks.reward import (
    DecoderRewardNetwork,
    RewardNetwork,
    joined_rows,
    last_states,
    response_spans,
    states_at,
)
from jaxalign.networks.value import ValueNetwork

PACKED = {
    "rows": 2,
    "num_examples": 2,
    "num_responses": 2,
    "source_length": 16,
    "target_length": 24,
}
ALONE = {
    "rows": 4,
    "num_examples": 1,
    "num_responses": 2,
    "source_length": 20,
    "target_length": 12,
}
HOLE = (0, 1)  # the response that `examples` leaves out


@pytest.fixture(scope="module")
def examples(random_examples):
    """Four prompts with two responses each, one of which does not exist."""
    made = random_examples(0, 4, 2)
    made[HOLE[0]] = (made[HOLE[0]][0], [made[HOLE[0]][1][0], None])
    return made


@pytest.fixture(scope="module", params=[RewardNetwork, DecoderRewardNetwork])
def rewards(request, tiny_config, tiny_params):
    """A compiled `rewards(batch)` of each kind of reward network, with a head that is not small."""
    network = request.param(tiny_config)
    params = network.from_policy(jax.random.key(3), tiny_params)
    params["head"] = jax.tree.map(lambda leaf: leaf * 100 + 0.1, params["head"])
    return jax.jit(lambda batch: network.rewards(params, batch))


def test_joined_rows_are_prompt_and_response_side_by_side(examples, make_batch):
    for layout in (PACKED, ALONE):
        batch = make_batch(examples, **layout)
        tokens, segments = map(np.asarray, joined_rows(batch))
        assert tokens.shape == (8, layout["source_length"] + layout["target_length"])
        np.testing.assert_array_equal(segments, tokens > 0)
        for number, row in enumerate(tokens):
            prompt, responses = examples[number // 2]
            response = responses[number % 2]
            expected = [] if response is None else [*prompt, *response]
            np.testing.assert_array_equal(row[: len(expected)], expected)
            assert not row[len(expected) :].any()


def test_of_too_long_a_text_the_beginning_is_left_out(examples, make_batch):
    whole, _ = map(np.asarray, joined_rows(make_batch(examples, **PACKED)))
    cut, segments = map(np.asarray, joined_rows(make_batch(examples, **PACKED), 4))
    assert cut.shape == (8, 4)
    for row, kept, mask in zip(whole, cut, segments, strict=True):
        np.testing.assert_array_equal(kept[mask > 0], row[row > 0][-4:])
    longest, _ = joined_rows(make_batch(examples, **PACKED), 1000)
    np.testing.assert_array_equal(longest, whole)


def test_rewards_depend_on_neither_padding_nor_packing(rewards, examples, make_batch):
    packed = make_batch(examples, **PACKED)
    found = rewards(packed)
    assert found.shape == (4, 2) and found.dtype == jnp.float32
    assert np.unique(found).size == 8
    np.testing.assert_allclose(found, rewards(make_batch(examples, **ALONE)), rtol=1e-4, atol=1e-6)
    garbage = dict(packed)
    for side, tokens in (("encoder", "encoder_input_tokens"), ("decoder", "decoder_target_tokens")):
        garbage[tokens] = np.where(packed[f"{side}_segment_ids"] == 0, 5, packed[tokens])
    np.testing.assert_array_equal(rewards(garbage), found)


def test_rewards_depend_on_the_own_prompt_and_response_only(rewards, examples, make_batch):
    found = rewards(make_batch(examples, **PACKED))
    prompt, (first, second) = examples[1]
    changes = {
        "response": ((prompt, [first, [7, *second]]), [[False, True]]),
        "prompt": (([9, *prompt], [first, second]), [[True, True]]),
    }
    for what, (example, changed) in changes.items():
        others = rewards(make_batch([examples[0], example, *examples[2:]], **PACKED))
        differs = ~np.isclose(others, found, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(differs[1:2], changed, err_msg=what)
        assert not differs[[0, 2, 3]].any(), what


def test_the_encoder_reward_is_the_value_of_the_joined_text(
    tiny_config, tiny_params, examples, make_batch
):
    network, twin = RewardNetwork(tiny_config), ValueNetwork(tiny_config)
    params = network.from_policy(jax.random.key(3), tiny_params)
    texts = [
        ([*prompt, *response], [[1]])
        for prompt, responses in examples
        for response in responses
        if response is not None
    ]
    layout = {"rows": 7, "num_examples": 1, "num_responses": 1}
    batch = make_batch(texts, **layout, source_length=16, target_length=4)
    found = np.asarray(jax.jit(network.rewards)(params, make_batch(examples, **PACKED)))
    exists = np.ones((4, 2), bool)
    exists[HOLE] = False
    expected = jax.jit(twin.values)(params, batch)
    np.testing.assert_allclose(found[exists], expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found[HOLE], params["head"]["bias"][0])


def test_the_decoder_reward_is_the_head_at_the_last_token_and_0_without_one(
    tiny_config, tiny_params, examples, make_batch
):
    network = DecoderRewardNetwork(tiny_config)
    params = network.from_policy(jax.random.key(3), tiny_params)
    batch = make_batch(examples, **PACKED)
    states = jax.jit(network.states)(params, batch)
    found = np.asarray(network.rewards_of(params, states, batch))
    for example, (_, responses) in enumerate(examples):
        for number, response in enumerate(responses):
            if response is None:
                assert found[example, number] == 0
                continue
            segments = batch["decoder_segment_ids"][example // 2]
            last = np.flatnonzero(segments == example % 2 * 2 + number + 1)[-1]
            expected = np.asarray(states)[example // 2, last] @ params["head"]["kernel"][:, 0]
            np.testing.assert_allclose(found[example, number], expected, rtol=1e-4, atol=1e-7)


def test_states_of_a_prefix_have_not_read_what_follows(
    tiny_config, tiny_params, examples, make_batch
):
    network = DecoderRewardNetwork(tiny_config)
    params = network.from_policy(jax.random.key(3), tiny_params)
    prefix_states = jax.jit(network.prefix_states)
    prompt, (first, second) = examples[1]
    longer = [*first[:-1], 9, 8, 1]
    layout = {"rows": 1, "num_examples": 1, "num_responses": 2}
    batches = [
        make_batch([(prompt, pair)], **layout, source_length=8, target_length=16)
        for pair in ([first, second], [longer, second])
    ]
    (states, mask), (others, other_mask) = (prefix_states(params, batch) for batch in batches)
    np.testing.assert_array_equal(mask.sum(-1), [[len(first), len(second)]])
    np.testing.assert_array_equal(other_mask.sum(-1), [[len(longer), len(second)]])
    shared = len(first)  # the last of them has read all but EOS
    np.testing.assert_allclose(states[0, 0, :shared], others[0, 0, :shared], rtol=1e-4, atol=1e-5)
    assert not np.allclose(states[0, 0, shared - 1], others[0, 0, shared + 1], atol=1e-3)
    second_length = len(second)
    np.testing.assert_allclose(
        states[0, 1, :second_length], others[0, 1, :second_length], rtol=1e-4, atol=1e-5
    )
    _, lengths = response_spans(batches[0])
    last = np.asarray(states)[0, np.arange(2), np.asarray(lengths)[0] - 1]
    flat = jax.jit(network.states)(params, batches[0])
    np.testing.assert_allclose(last_states(flat, batches[0])[0], last, rtol=1e-5, atol=1e-6)


def test_states_at_positions_count_from_the_start_of_a_response(examples, make_batch):
    batch = make_batch(examples, **PACKED)
    numbered = jnp.arange(2 * 24.0).reshape(2, 24, 1)
    starts, lengths = response_spans(batch)
    assert lengths[HOLE] == 0
    found = states_at(numbered, starts[:, :1], jnp.array([[[0, 1]]] * 4))
    expected = np.asarray(starts)[:, :1] + [0, 1] + np.array([0, 0, 24, 24])[:, None]
    np.testing.assert_array_equal(found[:, 0, :, 0], expected)


@pytest.mark.parametrize("kind", [RewardNetwork, DecoderRewardNetwork])
@pytest.mark.parametrize("scan_layers", [False, True])
def test_parameters_start_from_a_policy_and_have_logical_axes(
    kind, scan_layers, tiny_config, tiny_params
):
    network = kind(tiny_config.replace(scan_layers=scan_layers))
    axes = jax.tree.leaves(network.logical_axes(), is_leaf=lambda x: not isinstance(x, dict))
    shapes = network.abstract_params()
    assert [len(names) for names in axes] == [len(leaf.shape) for leaf in jax.tree.leaves(shapes)]
    assert "logits_dense" not in shapes.get("decoder", {})
    if scan_layers:
        return
    params = network.from_policy(jax.random.key(0), tiny_params)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
    for part in params.keys() - {"head"}:
        copied = {name: tiny_params[part][name] for name in params[part]}
        jax.tree.map(np.testing.assert_array_equal, params[part], copied)
    assert np.any(params["head"]["kernel"]) and np.abs(params["head"]["kernel"]).max() < 0.5
    with pytest.raises(ValueError, match="layers_2"):
        kind(tiny_config.replace(num_encoder_layers=3)).from_policy(jax.random.key(0), tiny_params)


def test_a_length_below_one_is_refused(tiny_config):
    with pytest.raises(ValueError, match="max_length is 0"):
        RewardNetwork(tiny_config, max_length=0)
