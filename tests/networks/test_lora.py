"""Policies with low-rank adapters compute what they should; the layers are stacked here, and unrolled in tests/training/test_lora.py."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxalign.errors import UserError
from jaxalign.networks import adapters, registry
from jaxalign.networks.blocks import Dense
from jaxalign.networks.leaves import merge_leaves
from jaxalign.networks.lora import Lora, LoraPolicy
from jaxalign.networks.policy import Policy
from tests.fixtures.families import FAMILIES

ALL = "/kernel"


@pytest.fixture(scope="module")
def policy(world):
    config = world.policy.config.replace(
        num_encoder_layers=2, scan_layers=True, remat_policy="full"
    )
    return LoraPolicy(config, lora=Lora(rank=16, alpha=24.0, targets=ALL, dropout=0.5))


@pytest.fixture(scope="module")
def params(policy):
    return jax.jit(policy.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def score(policy):
    """`score(params, batch, rng=None)`, compiled once."""
    return jax.jit(lambda params, batch, rng=None: policy.score(params, batch, rng=rng).log_probs)


@pytest.fixture(scope="module")
def score_base(policy):
    """The same by the policy without adapters."""
    return jax.jit(lambda params, batch: policy.base.score(params, batch).log_probs)


def _noise(tree, scale=0.05):
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return structure.unflatten(
        [leaf + scale * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    )  # fmt: skip


def test_fresh_adapters_change_nothing(policy, params, score, score_base, random_batch):
    base = policy.start_params(params)
    assert jax.tree.structure(base) == jax.tree.structure(policy.base.abstract_params())
    expected = score_base(base, random_batch(0))
    np.testing.assert_array_equal(score(params, random_batch(0)), expected)
    np.testing.assert_array_equal(score(base, random_batch(0)), expected)


def test_any_update_of_the_kernels_is_a_product_of_full_rank(
    policy, params, score, score_base, random_batch
):
    """The function of full fine-tuning is within reach: rank 16 is the smaller side of every kernel here."""
    base = policy.start_params(params)
    updated = _noise(base)

    def factors(path, adapter):
        def at(tree):
            for name in path[:-1]:
                tree = tree[name]
            return np.asarray(tree["kernel"], np.float64)

        change = at(updated) - at(base)
        stacked = change.ndim == 3
        change = np.moveaxis(change, 1, 0) if stacked else change
        u, s, v = np.linalg.svd(change / policy.lora.scale, full_matrices=False)
        a, b = u * np.sqrt(s)[..., None, :], np.sqrt(s)[..., None] * v
        if stacked:
            a, b = np.moveaxis(a, 0, 1), np.moveaxis(b, 0, 1)
        assert (a.shape, b.shape) == (adapter["a"].shape, adapter["b"].shape)
        return {"a": jnp.asarray(a, jnp.float32), "b": jnp.asarray(b, jnp.float32)}

    own = jax.tree_util.tree_map_with_path(
        lambda path, adapter: factors([entry.key for entry in path], adapter),
        adapters.only(params),
        is_leaf=lambda tree: isinstance(tree, dict) and set(tree) == {"a", "b"},
    )
    kernels = set(adapters.linear_maps(base))
    fine_tuned = jax.tree_util.tree_map_with_path(
        lambda path, old, new: new if "/".join(entry.key for entry in path) in kernels else old,
        base,
        updated,
    )
    found = score(merge_leaves(base, own), random_batch(0))
    expected = score_base(fine_tuned, random_batch(0))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert not np.allclose(expected, score(params, random_batch(0)), rtol=1e-3)


def test_merged_kernels_compute_the_same(policy, params, score, score_base, random_batch):
    base, own = policy.start_params(params), _noise(adapters.only(params), 0.2)
    whole, merged = merge_leaves(base, own), policy.merge(base, own)
    found = score_base(merged, random_batch(0))
    np.testing.assert_allclose(found, score(whole, random_batch(0)), rtol=1e-6)
    assert not np.allclose(found, score(params, random_batch(0)), rtol=1e-3)

    def first_logits(policy, params):
        prompt = policy.read_prompts(params, random_batch(0)["encoder_input_tokens"], 4)
        tokens = jnp.zeros((8, 1), jnp.int32)
        return policy.next_logits(prompt, policy.empty_cache(8, 4), tokens, jnp.int32(0))[0]

    found, expected = (
        jax.jit(functools.partial(first_logits, each))(tree)
        for each, tree in ((policy, whole), (policy.base, merged))
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_dropout_acts_on_the_adapters_in_training_alone(policy, params, score, random_batch):
    own = _noise(adapters.only(params), 0.2)
    whole = merge_leaves(policy.start_params(params), own)
    plain, key = score(whole, random_batch(0)), jax.random.key(3)
    dropped = score(whole, random_batch(0), key)
    assert not np.allclose(dropped, plain, rtol=1e-4)
    assert not np.allclose(dropped, score(whole, random_batch(0), jax.random.key(4)), rtol=1e-4)
    # The base has no dropout of its own.
    np.testing.assert_allclose(score(params, random_batch(0), key), score(params, random_batch(0)), rtol=1e-6)  # fmt: skip


def test_dropout_0_is_no_dropout():
    """One linear map; with dropout, the mean over many draws is the value without."""
    x, kernel, a, b = (
        jax.random.normal(key, shape)
        for key, shape in zip(
            jax.random.split(jax.random.key(0), 4), [(2, 6), (6, 4), (6, 3), (3, 4)], strict=True
        )
    )
    dense = Dense(4, ("embed", "mlp"), nn.initializers.ones, jnp.dtype("float32"))

    def output(dropout, **keywords):
        adapter = adapters.Adapter(a, b, 0.5, dropout)
        return dense.apply({"params": {"kernel": kernel, "lora": adapter}}, x, **keywords)

    expected = x @ (kernel + 0.5 * a @ b)
    np.testing.assert_allclose(
        output(0.0, rngs={"dropout": jax.random.key(1)}), expected, atol=1e-5
    )
    np.testing.assert_allclose(output(0.5), expected, atol=1e-5)
    keys = jax.random.split(jax.random.key(1), 4000)
    drawn = jax.vmap(lambda key: output(0.5, rngs={"dropout": key}))(keys)
    assert float(jnp.min(jnp.std(drawn, axis=0))) > 0.1
    np.testing.assert_allclose(jnp.mean(drawn, axis=0), expected, atol=0.2)


def test_targets_are_searched_in_the_paths_of_kernels(world):
    config = world.policy.config
    chosen = LoraPolicy(config, lora=Lora(targets=r"^decoder/.*self_attention/(query|out)/"))
    assert chosen.description()["lora"]["targets"] == [
        "decoder/layers_0/self_attention/out/kernel",
        "decoder/layers_0/self_attention/query/kernel",
    ]
    whole = LoraPolicy(config, lora=Lora(targets=ALL)).description()["lora"]["targets"]
    # Four maps of each attention and three of each feed-forward block; the projection to the vocabulary is no layer.
    assert len(whole) == 3 * 4 + 2 * 3
    default = LoraPolicy(config).description()["lora"]["targets"]
    assert {path.split("/")[-2] for path in default} == {"query", "value"}
    assert len(default) == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": "logits_dense"}, "names no linear map of this network; it has decoder/layers_0"),
        ({"paths": ("encoder/layers_7/attention/query/kernel",)}, "names no linear map"),
        ({"targets": "("}, "no regular expression"),
        ({"rank": 0}, "Lora.rank is 0"),
        ({"dropout": 1.0}, "Lora.dropout is 1.0"),
        ({"base_dtype": "float16"}, "Lora.base_dtype is 'float16'"),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(world, settings, message):
    with pytest.raises(UserError, match=message):
        LoraPolicy(world.policy.config, lora=Lora(**settings)).abstract_params()


def test_a_description_builds_the_same_adapters(policy):
    again = registry.build(policy.description())
    assert isinstance(again, LoraPolicy)
    assert again.base == policy.base
    assert again.abstract_params() == policy.abstract_params()
    assert again.lora.scale == policy.lora.scale == 1.5
    assert dataclasses.replace(policy.lora, rank_stabilized=True).scale == 6.0
    assert registry.build(policy.base.description()) == Policy(policy.config)


def test_layers_stacked_in_front_have_an_adapter_each(world):
    config = world.policy.config.replace(num_encoder_layers=3, scan_layers=True, param_scan_axis=0)
    policy = LoraPolicy(config, lora=Lora(rank=2, targets="encoder/layers/mlp/wo/"))
    shapes = policy.abstract_params()["encoder"]["layers"]["mlp"]["wo"]
    assert {name: leaf.shape for name, leaf in shapes["lora"].items()} == {"a": (3, 32, 2), "b": (3, 2, 16)}  # fmt: skip
    axes = policy.logical_axes()["encoder"]["layers"]["mlp"]["wo"]
    assert axes["kernel"] == PartitionSpec("layers", "mlp", "embed")
    assert axes["lora"]["a"] == PartitionSpec("layers", "mlp", None)
    assert axes["lora"]["b"] == PartitionSpec("layers", None, "embed")
    own = _noise({name: jnp.zeros(leaf.shape) for name, leaf in shapes["lora"].items()})
    found = adapters.delta(own, 0.5, axis=0)
    np.testing.assert_allclose(found, 0.5 * np.matmul(own["a"], own["b"]), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["umt5", "t5gemma", "t5gemma2"])
def test_other_families_have_adapters_too(family, random_batch):
    config = FAMILIES[family].replace(scan_layers=True)
    policy = LoraPolicy(config, lora=Lora(rank=2, targets=ALL))
    params = jax.jit(policy.init)(jax.random.key(0))
    base, own = policy.start_params(params), _noise(adapters.only(params), 0.2)
    found = jax.jit(lambda tree: policy.score(tree, random_batch(0)).log_probs)
    expected = policy.base.score(policy.merge(base, own), random_batch(0)).log_probs
    np.testing.assert_allclose(found(merge_leaves(base, own)), expected, rtol=1e-5)
    assert not np.allclose(found(base), expected, rtol=1e-3)


def test_only_adapters_are_trained(policy):
    flags = jax.tree.leaves(policy.trained_leaves())
    assert flags.count(True) == 2 * len(adapters.linear_maps(policy.base.abstract_params()))
    assert flags.count(False) == len(jax.tree.leaves(policy.base.abstract_params()))
