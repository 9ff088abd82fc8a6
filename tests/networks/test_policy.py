"""Rows, segments and layouts are storage: a response's log-probability depends on its prompt and its own tokens only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.networks.policy import Policy
from jaxalign.networks.stacking import stack_layers, unstack_layers

PACKED = {
    "rows": 2,
    "num_examples": 2,
    "num_responses": 2,
    "source_length": 16,
    "target_length": 24,
}


@pytest.fixture(scope="module")
def examples(random_examples):
    return random_examples(1, 4, 2)


@pytest.fixture(scope="module")
def packed(make_batch, examples):
    return make_batch(examples, **PACKED)


@pytest.fixture(scope="module")
def one_to_a_row(make_batch, examples):
    """Every response in a row of its own, with its own copy of the prompt."""
    alone = [(prompt, [response]) for prompt, responses in examples for response in responses]
    return make_batch(
        alone, rows=8, num_examples=1, num_responses=1, source_length=7, target_length=6
    )


def score_and_gradient(policy, batch, rng=None):
    def loss(params):
        scores = policy.score(params, batch, rng=rng)
        return jnp.sum(jnp.sin(scores.log_probs)), scores

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def assert_trees_close(ours, theirs, tolerance=1e-5):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for mine, reference in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(mine, reference, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def expected(tiny_config, tiny_params, packed):
    """Scores and gradient of the packed batch by the plain, unrolled network."""
    (_, scores), gradient = score_and_gradient(Policy(tiny_config), packed)(tiny_params)
    return jax.device_get((scores, gradient))


def test_packed_pairs_score_as_each_response_alone(
    tiny_config, tiny_params, one_to_a_row, expected
):
    policy = Policy(tiny_config)
    (_, alone), gradient = score_and_gradient(policy, one_to_a_row)(tiny_params)
    np.testing.assert_allclose(alone.log_probs.reshape(4, 2), expected[0].log_probs, atol=1e-4)
    np.testing.assert_array_equal(alone.lengths.reshape(4, 2), expected[0].lengths)
    assert_trees_close(gradient, expected[1], 1e-4)


def test_lengths_count_eos(examples, expected):
    np.testing.assert_array_equal(
        expected[0].lengths, [[len(response) for response in pair] for _, pair in examples]
    )


def test_missing_responses_score_zero_and_change_nothing_else(
    tiny_config, tiny_params, make_batch, examples, expected
):
    thinned = [(prompt, [responses[0], None]) for prompt, responses in examples]
    scores = jax.jit(Policy(tiny_config).score)(tiny_params, make_batch(thinned, **PACKED))
    np.testing.assert_allclose(scores.log_probs[:, 0], expected[0].log_probs[:, 0], atol=1e-4)
    np.testing.assert_array_equal(scores.log_probs[:, 1], 0)
    np.testing.assert_array_equal(scores.lengths[:, 1], 0)


def test_content_of_padding_is_irrelevant(tiny_config, tiny_params, packed, expected):
    batch = dict(packed)
    for side in ("encoder_input", "decoder_input", "decoder_target"):
        padding = batch[f"{side.split('_')[0]}_segment_ids"] == 0
        batch[f"{side}_tokens"] = np.where(padding, 7, batch[f"{side}_tokens"])
    scores = jax.jit(Policy(tiny_config).score)(tiny_params, batch)
    np.testing.assert_array_equal(scores.log_probs, expected[0].log_probs)


@pytest.mark.parametrize(
    "changes",
    [
        {"scan_layers": True},
        {"scan_layers": True, "param_scan_axis": 0, "remat_policy": "full"},
        {"remat_policy": "minimal"},
        {"one_hot_embedding": True},
        {"float32_attention_logits": True},
    ],
    ids=str,
)
def test_layout_options_change_neither_scores_nor_gradients(
    tiny_config, tiny_params, packed, expected, changes
):
    config = tiny_config.replace(**changes)
    params, axis = tiny_params, config.param_scan_axis
    if config.scan_layers:
        params = stack_layers(params, axis=axis)
    (_, scores), gradient = score_and_gradient(Policy(config), packed)(params)
    assert_trees_close(scores, expected[0])
    assert_trees_close(unstack_layers(gradient, axis=axis), expected[1], 1e-4)


def test_remat_keeps_less_for_the_backward_pass(tiny_config, packed):
    config = tiny_config.replace(num_encoder_layers=4, num_decoder_layers=4, emb_dim=64)

    def temporaries(remat_policy):
        policy = Policy(config.replace(remat_policy=remat_policy, scan_layers=True))
        step = score_and_gradient(policy, packed).lower(policy.abstract_params()).compile()
        return step.memory_analysis().temp_size_in_bytes

    assert temporaries("full") < 0.8 * temporaries("none")


def test_bfloat16_scores_are_float32_and_near(tiny_config, tiny_params, packed, expected):
    policy = Policy(tiny_config.replace(dtype="bfloat16"))
    scores = jax.jit(policy.score)(tiny_params, packed)
    assert scores.log_probs.dtype == jnp.float32
    np.testing.assert_allclose(scores.log_probs, expected[0].log_probs, rtol=0.02)


def test_dropout_needs_a_key_and_follows_it(tiny_config, tiny_params, packed, expected):
    policy = Policy(tiny_config.replace(dropout_rate=0.5))
    score = jax.jit(lambda params, rng: policy.score(params, packed, rng=rng).log_probs)
    np.testing.assert_allclose(
        jax.jit(policy.score)(tiny_params, packed).log_probs, expected[0].log_probs, atol=1e-5
    )
    first, again, other = (score(tiny_params, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.all(np.abs(first - expected[0].log_probs) > 1e-3)
    assert np.all(np.abs(first - other) > 1e-3)


def test_initialisation_is_t5x(tiny_config):
    config = tiny_config.replace(
        vocab_size=500, emb_dim=128, num_heads=8, head_dim=16, mlp_dim=256, scan_layers=True
    )
    params = jax.device_get(Policy(config).init(jax.random.key(0)))
    layers, decoder = params["encoder"]["layers"], params["decoder"]

    def std(leaf, expected):
        np.testing.assert_allclose(np.std(leaf), expected, rtol=0.05)

    std(layers["attention"]["query"]["kernel"], (1 / 128 / 16) ** 0.5)
    for name in ("key", "value", "out"):
        std(layers["attention"][name]["kernel"], (1 / 128) ** 0.5)
    for name, fan_in in (("wi_0", 128), ("wi_1", 128), ("wo", 256)):
        std(layers["mlp"][name]["kernel"], (1 / fan_in) ** 0.5)
        bound = 2 * (1 / fan_in) ** 0.5 / 0.8796  # truncated at two standard deviations
        assert np.abs(layers["mlp"][name]["kernel"]).max() <= bound
    std(decoder["logits_dense"]["kernel"], (1 / 128) ** 0.5)
    std(params["token_embedder"]["embedding"], 1.0)
    limit = (3 / ((8 + 32) / 2)) ** 0.5
    table = decoder["relpos_bias"]["rel_embedding"]
    assert 0.9 * limit < np.abs(table).max() <= limit
    np.testing.assert_array_equal(layers["pre_mlp_layer_norm"]["scale"], 1)
    # Each layer has numbers of its own.
    kernels = layers["attention"]["key"]["kernel"]
    assert not np.array_equal(kernels[:, 0], kernels[:, 1])


@pytest.mark.parametrize("scan", [False, True])
def test_every_parameter_has_a_logical_axis_per_dimension(tiny_config, scan):
    policy = Policy(tiny_config.replace(scan_layers=scan))
    axes = jax.tree.leaves(policy.logical_axes(), is_leaf=lambda x: not isinstance(x, dict))
    shapes = jax.tree.leaves(policy.abstract_params())
    assert [len(names) for names in axes] == [len(leaf.shape) for leaf in shapes]
    assert {name for names in axes for name in names} - {"layers"} == {
        "vocab",
        "embed",
        "mlp",
        "heads",
        "joined_kv",
        "relpos_buckets",
    }


class TestValueToken:
    TOKEN = 60

    def without(self, examples):
        def clean(tokens):
            return [token if token != self.TOKEN else 59 for token in tokens]

        return [(clean(p), [clean(response) for response in rs]) for p, rs in examples]

    def test_leaves_the_softmax(self, tiny_config, tiny_params, make_batch, examples):
        batch = make_batch(self.without(examples), **PACKED)
        policy = Policy(tiny_config, value_token=self.TOKEN)
        scores = jax.jit(policy.score)(tiny_params, batch).log_probs

        hidden = Policy(tiny_config).decode(tiny_params, batch)
        logits = np.array(hidden @ tiny_params["decoder"]["logits_dense"]["kernel"])
        logits[..., self.TOKEN] = -np.inf
        log_probs = jax.nn.log_softmax(logits)
        targets = batch["decoder_target_tokens"][..., None]
        expected = np.take_along_axis(np.asarray(log_probs), targets, -1)[..., 0]
        total = np.sum(expected * batch["decoder_loss_weights"])
        np.testing.assert_allclose(np.sum(scores), total, rtol=1e-5)

    def test_is_a_value_that_cannot_see_the_response(
        self, tiny_config, tiny_params, make_batch, examples
    ):
        policy = Policy(tiny_config, value_token=self.TOKEN)
        values = jax.jit(policy.value_logits)
        first = values(tiny_params, make_batch(examples, **PACKED))
        others = [(prompt, [response[::-1] for response in rs]) for prompt, rs in examples]
        second = values(tiny_params, make_batch(others, **PACKED))
        assert first.shape == (4,)
        np.testing.assert_array_equal(first, second)
        assert np.unique(first).size == 4

    def test_value_and_scores_of_one_pass(self, tiny_config, tiny_params, packed):
        policy = Policy(tiny_config, value_token=self.TOKEN)
        scores, values = jax.jit(policy.score_and_value_logits)(tiny_params, packed)
        np.testing.assert_allclose(
            values, jax.jit(policy.value_logits)(tiny_params, packed), rtol=1e-5
        )
        assert scores.log_probs.shape == (4, 2)

    def test_must_be_a_free_token(self, tiny_config, tiny_params, packed):
        with pytest.raises(ValueError, match="value_token is 1"):
            Policy(tiny_config, value_token=1)
        with pytest.raises(ValueError, match="value_token set"):
            Policy(tiny_config).value_logits(tiny_params, packed)
