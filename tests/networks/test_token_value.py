"""V(x, y_<t) is a function of the prompt and of the response's tokens before t, and of nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.networks.token_value import TokenValueNetwork

PACKED = {
    "rows": 2,
    "num_examples": 2,
    "num_responses": 2,
    "source_length": 16,
    "target_length": 24,
}


@pytest.fixture(scope="module")
def network(tiny_config):
    return TokenValueNetwork(tiny_config)


@pytest.fixture(scope="module")
def params(network, tiny_params):
    return network.from_policy(jax.random.key(3), tiny_params)


@pytest.fixture(scope="module")
def values(network, params):
    """A compiled `values(batch)`: of tokens, and of prompts."""
    return jax.jit(
        lambda batch: (network.token_values(params, batch), network.values(params, batch))
    )


def test_a_value_cannot_see_its_own_token_or_later_ones(values, make_batch, random_examples):
    batch = make_batch(random_examples(0, 4, 2), **PACKED)
    segments = batch["decoder_segment_ids"]
    ends = np.flatnonzero(np.diff(segments[0], append=0) != 0)
    assert (np.diff(ends) > 1).any()
    # The last token of every response becomes another one; nothing reads it as an input.
    targets = batch["decoder_target_tokens"].copy()
    targets[0, ends] = 63
    first, prompts = values(batch)
    assert first.shape == segments.shape and first.dtype == jnp.float32
    np.testing.assert_array_equal(first, values(batch | {"decoder_target_tokens": targets})[0])
    # The second token's input is the first token: it moves every value but the first.
    inputs = batch["decoder_input_tokens"].copy()
    moved = int(np.flatnonzero(segments[0] == segments[0, 2])[1])
    inputs[0, moved] = 63 if inputs[0, moved] != 63 else 62
    other, same_prompts = values(batch | {"decoder_input_tokens": inputs})
    changed = np.flatnonzero(first[0] != other[0])
    own = np.flatnonzero(segments[0] == segments[0, moved])
    np.testing.assert_array_equal(changed, own[1:])
    np.testing.assert_array_equal(prompts, same_prompts)
    # The value of a prompt is the value before the first token of its first response.
    starts = [np.flatnonzero(segments[row] == segment)[0] for row in (0, 1) for segment in (1, 3)]
    np.testing.assert_array_equal(prompts, np.asarray(first)[[0, 0, 1, 1], starts])


def test_values_depend_on_neither_padding_nor_packing(values, make_batch, random_examples):
    examples = random_examples(0, 4, 2)
    packed = make_batch(examples, **PACKED)
    singles = [(prompt, [response]) for prompt, responses in examples for response in responses]
    alone = make_batch(
        singles, rows=8, num_examples=1, num_responses=1, source_length=8, target_length=7
    )
    together, separate = values(packed)[0], values(alone)[0]
    rows = [row for row in (0, 1) for _ in range(4)]
    for index, row in enumerate(rows):
        mine = np.asarray(together)[row, packed["decoder_segment_ids"][row] == index % 4 + 1]
        np.testing.assert_allclose(separate[index, : mine.size], mine, rtol=1e-4, atol=1e-6)
    assert not np.any(together[packed["decoder_segment_ids"] == 0])


def test_it_starts_from_a_policy_without_its_projection(network, params, tiny_params):
    assert jax.tree.structure(params) == jax.tree.structure(network.abstract_params())
    assert params.keys() == {"token_embedder", "encoder", "decoder", "head"}
    assert "logits_dense" in tiny_params["decoder"] and "logits_dense" not in params["decoder"]
    jax.tree.map(np.testing.assert_array_equal, params["encoder"], tiny_params["encoder"])
    fresh = network.init(jax.random.key(1))
    assert jax.tree.map(np.shape, fresh) == jax.tree.map(np.shape, params)
    assert not np.array_equal(fresh["head"]["kernel"], params["head"]["kernel"])


def test_a_policy_of_another_shape_is_refused(tiny_config, tiny_params):
    network = TokenValueNetwork(tiny_config.replace(num_decoder_layers=3))
    with pytest.raises(ValueError, match="layers_2"):
        network.from_policy(jax.random.key(0), tiny_params)


def test_every_parameter_has_logical_axes(network):
    axes = jax.tree.leaves(network.logical_axes(), is_leaf=lambda x: not isinstance(x, dict))
    shapes = jax.tree.leaves(network.abstract_params())
    assert [len(names) for names in axes] == [len(leaf.shape) for leaf in shapes]


def test_it_can_be_described_and_built_again(network, tiny_config):
    assert network.description() == {"kind": "token_value", "config": tiny_config.to_dict()}
