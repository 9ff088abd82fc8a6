"""A decoder that reads all encoder layers: the equations, T5 as a special case, decoding step by step, stacked layers, meshes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.networks.attention import Attention
from jaxalign.networks.beam_search import beam_search
from jaxalign.networks.decoding import generate
from jaxalign.networks.encoder_fusion import GatedFusion
from jaxalign.networks.policy import Policy
from jaxalign.networks.stacking import stack_layers
from jaxalign.parallel import partitioning
from jaxalign.parallel.partitioning import MeshShape

PROMPTS = np.array([[3, 2, 1, 0, 0], [4, 5, 5, 2, 1], [2, 1, 0, 0, 0]], np.int32)


def with_leaves(params, **replaced):
    """Parameters with other leaves, by the end of their path."""

    def replace(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        for end, value in replaced.items():
            if name.endswith(end.replace("__", ".")):
                return jnp.broadcast_to(jnp.asarray(value, jnp.float32), leaf.shape)
        return leaf

    return jax.tree_util.tree_map_with_path(replace, params)


@pytest.fixture(scope="module")
def fused(tiny_config):
    """A policy with other weights of the layers than fresh ones, and its parameters."""
    policy = Policy(tiny_config.replace(encoder_fusion="gated"))
    params = policy.init(jax.random.key(0))
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [x + 0.1 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    params = with_leaves(structure.unflatten(moved), layer_logits=[0.3, -0.5])
    return policy, jax.device_get(params)


@pytest.fixture(scope="module")
def batch(make_batch, random_examples):
    return make_batch(
        random_examples(0, 6, 2), rows=3, num_examples=2, num_responses=2,
        source_length=13, target_length=21,
    )  # fmt: skip


@pytest.fixture(scope="module")
def score():
    return jax.jit(
        lambda policy, params, batch: policy.score(params, batch).log_probs, static_argnums=0
    )


def stock_of(policy, params):
    """The T5 inside a fused network."""
    stock = Policy(policy.config.replace(encoder_fusion="last"))

    def of(tree, shapes):
        if not isinstance(shapes, dict):
            return tree
        return {name: of(tree[name], branch) for name, branch in shapes.items()}

    return stock, of(params, stock.abstract_params())


def test_an_attention_over_all_layers_is_what_the_equations_say(tiny_config):
    config = tiny_config.replace(encoder_fusion="gated", num_encoder_layers=3)
    keys = jax.random.split(jax.random.key(0), 5)
    y = jax.random.normal(keys[0], (2, 4, 16))
    outputs = jax.random.normal(keys[1], (3, 2, 5, 16))
    joined = jax.random.normal(keys[2], (2, 5, 16))
    encoded = jnp.concatenate([joined, *outputs], axis=-1)
    bias = jnp.where(jax.random.bernoulli(keys[3], 0.7, (2, 1, 4, 5)), 0.0, -1e10)

    class Layer(GatedFusion):
        def setup(self):
            super().setup()
            self.fine = Attention(self.config)

        def __call__(self, y, encoded, bias):
            return self.fused(self.fine, y, self.sources(self.fine, encoded), bias)

    params = Layer(config).init(keys[4], y, encoded, bias)["params"]
    params = nn.meta.unbox(params)
    params = with_leaves(params, layer_logits=[0.3, 1.0, -0.5])

    def attention(name, sources):
        return Attention(config).apply({"params": params[name]}, y, sources, bias)

    a = attention("attention", joined)
    gate = jax.nn.sigmoid(a @ params["gate"]["kernel"] + params["gate"]["bias"])
    alphas = jax.nn.softmax(params["layer_logits"])
    f = sum(alpha * attention("fine", each) for alpha, each in zip(alphas, outputs, strict=True))
    found = Layer(config).apply({"params": params}, y, encoded, bias)
    np.testing.assert_allclose(found, gate * a + f, rtol=1e-5, atol=1e-6)


def test_the_decoder_reads_every_layer_after_the_final_norm(fused, batch):
    policy, params = fused
    shallow = Policy(policy.config.replace(encoder_fusion="last", num_encoder_layers=1))

    @jax.jit
    def run(params, batch):
        encoded = policy.encode_for_decoder(params, batch)
        _, pooled = policy.score_and_encode(params, batch)
        return encoded, shallow.encode(params, batch), policy.encode(params, batch), pooled

    encoded, first, last, pooled = run(params, batch)
    joined, *layers = jnp.split(encoded, 3, axis=-1)
    for found, expected in ((layers, (first, last)), ([pooled], [last])):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    projection = params["encoder_concatenation"]["projection"]
    expected = jnp.concatenate(layers, axis=-1) @ projection["kernel"] + projection["bias"]
    np.testing.assert_allclose(joined, expected, rtol=1e-4, atol=1e-4)


def test_closed_gates_remove_the_coarse_branch(fused, batch, score):
    """Then the network is T5 if the last layer has all the weight, and no parameter of the branch matters if it has not."""
    policy, params = fused
    closed = with_leaves(params, gate__kernel=0.0, gate__bias=-30.0)
    changed = with_leaves(
        closed, projection__kernel=0.3, encoder_fusion__attention__value__kernel=2.0
    )
    np.testing.assert_allclose(
        score(policy, changed, batch), score(policy, closed, batch), rtol=1e-6
    )
    opened = with_leaves(changed, gate__bias=0.0)
    assert not np.allclose(score(policy, opened, batch), score(policy, closed, batch), rtol=1e-2)
    stock, its_params = stock_of(policy, params)
    expected = score(stock, its_params, batch)
    as_t5 = with_leaves(closed, layer_logits=[-60.0, 0.0])
    np.testing.assert_allclose(score(policy, as_t5, batch), expected, rtol=1e-5)
    assert not np.allclose(score(policy, closed, batch), expected, rtol=1e-3)


def test_stacked_layers_with_recomputation_compute_alike_and_every_leaf_learns(fused, batch):
    policy, params = fused
    scanned = Policy(policy.config.replace(scan_layers=True, remat_policy="full"))

    def gradient(policy):
        return jax.jit(jax.grad(lambda params: jnp.sum(policy.score(params, batch).log_probs)))

    expected = stack_layers(gradient(policy)(params))
    found = gradient(scanned)(stack_layers(params))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found, expected
    )
    assert all(np.any(leaf) for leaf in jax.tree.leaves(found))


def test_decoding_step_by_step_equals_teacher_forcing(fused, score):
    policy, params = fused
    samples = generate(
        policy, params, PROMPTS, max_decode_len=6, rng=jax.random.key(0), temperature=1.0,
        num_samples=4,
    )  # fmt: skip
    beams = beam_search(policy, params, PROMPTS, num_beams=4, max_decode_len=6, alpha=0.0)
    prompts = np.repeat(PROMPTS, 4, axis=0)
    for tokens, found in ((samples.tokens, samples.log_probs), (beams.tokens, beams.scores)):
        tokens = np.asarray(tokens).reshape(12, 6)
        batch = {
            "encoder_input_tokens": prompts,
            "encoder_segment_ids": (prompts > 0).astype(np.int32),
            "decoder_target_tokens": tokens,
            "decoder_input_tokens": np.pad(tokens[:, :-1], ((0, 0), (1, 0))),
            "decoder_segment_ids": (tokens > 0).astype(np.int32),
            "decoder_loss_weights": (tokens > 0).astype(np.float32),
            "response_mask": np.ones((12, 1, 1), np.float32),
        }
        expected = score(policy, params, batch)[:, 0]
        np.testing.assert_allclose(np.ravel(found), expected, atol=1e-4)


def test_decoding_unstacks_the_new_leaves(fused):
    policy, params = fused
    stacked = jax.eval_shape(stack_layers, params)
    scanned = Policy(policy.config.replace(scan_layers=True))
    found, expected = (
        jax.eval_shape(lambda params, p=each: p.read_prompts(params, PROMPTS, 6).layers, tree)
        for each, tree in ((scanned, stacked), (policy, params))
    )
    assert found == expected


def test_a_mesh_computes_what_one_device_does(fused, batch, score):
    policy, params = fused
    expected = score(policy, params, batch)
    mesh = partitioning.make_mesh(MeshShape(data=1, fsdp=2, tensor=2), jax.devices()[:4])
    shardings = partitioning.parameter_shardings(mesh, policy.logical_axes())
    placed = jax.device_put(params, shardings)
    kernel = placed["encoder_concatenation"]["projection"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (16, 16)
    doubled = {name: np.concatenate([array, array[:1]]) for name, array in batch.items()}
    with partitioning.set_mesh(mesh):
        found = score(policy, placed, partitioning.make_global_batch(mesh, doubled))
    np.testing.assert_allclose(found[:6], expected, rtol=1e-4)
