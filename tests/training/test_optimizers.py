"""Optimizers: T5X's Adafactor, heads and layer stacks, schedules, clipping."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxalign.errors import UserError
from jaxalign.networks.stacking import stack_layers, unstack_layers
from jaxalign.training.optimizers import adafactor, adamw, learning_rate_schedule, sgd


def trajectory(optimizer, params, gradients, scale=1.0):
    """Parameters after each update."""
    transformation = optimizer.build(scale)
    state = jax.jit(transformation.init)(params)

    @jax.jit
    def update(params, state, gradient):
        updates, state = transformation.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for gradient in gradients:
        params, state = update(params, state, gradient)
        yield params


def random_like(params, seed):
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return structure.unflatten(
        [jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    )


@pytest.mark.parametrize("parameter_scale", [True, False])
def test_adafactor_equals_t5x(shared_dir, parameter_scale):
    """Five steps, with a factored matrix (128 x 256), an unfactored one and a vector."""
    name = f"adafactor_parameter_scale_{str(parameter_scale).lower()}.npz"
    with np.load(shared_dir / "goldens" / "t5x" / name, allow_pickle=False) as archive:
        golden = {key: archive[key] for key in archive.files}

    def tree(group):
        # T5X knows no new heads: under another name its rule and ours are the same.
        return {
            key.removeprefix(f"{group}/").replace("head", "dense"): jnp.asarray(array)
            for key, array in golden.items()
            if key.startswith(f"{group}/")
        }

    optimizer = adafactor(1e-3, multiply_by_parameter_scale=parameter_scale)
    steps = trajectory(optimizer, tree("params0"), [tree(f"grads{i}") for i in range(5)])
    for number, params in enumerate(steps, start=1):
        for path, expected in tree(f"params{number}").items():
            np.testing.assert_allclose(params[path], expected, rtol=2e-6, atol=1e-8, err_msg=path)


def test_a_new_head_is_not_scaled_by_its_size():
    """T5X's rule moves a head of size 1e-5 a thousandth as far; ours moves it by the learning rate."""
    small = {"kernel": jnp.full((4, 1), 1e-5)}
    gradient = {"head": {"kernel": jnp.ones((4, 1))}, "dense": {"kernel": jnp.ones((4, 1))}}
    (after,) = trajectory(adafactor(1e-2), {"head": small, "dense": small}, [gradient])
    np.testing.assert_allclose(small["kernel"] - after["head"]["kernel"], 1e-2, rtol=1e-5)
    np.testing.assert_allclose(small["kernel"] - after["dense"]["kernel"], 1e-5, rtol=1e-2)


@pytest.mark.parametrize("axis", [0, 1])
def test_stacked_layers_train_like_separate_ones(axis):
    """Whole trajectories, with a matrix that is factored per layer, and stacks of different depth."""
    layer = {"kernel": jnp.ones((8, 16)), "scale": jnp.ones(8)}
    params = {
        "encoder": {f"layers_{i}": layer for i in range(3)} | {"norm": jnp.ones(8)},
        "decoder": {f"layers_{i}": layer for i in range(2)},
    }
    params = random_like(params, 9)
    gradients = [random_like(params, seed) for seed in range(3)]
    optimizer = adafactor(1e-2, clip_norm=2.0, min_dim_size_to_factor=8, layer_axis=axis)

    def stacked(tree):
        return stack_layers(tree, axis=axis)

    separate = list(trajectory(optimizer, params, gradients))[-1]
    together = list(trajectory(optimizer, stacked(params), map(stacked, gradients)))[-1]
    assert "layers" in together["encoder"]
    found = unstack_layers(together, axis=axis)
    assert jax.tree.structure(found) == jax.tree.structure(separate)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), found, separate
    )


@pytest.mark.parametrize("make", [adafactor, adamw, sgd])
def test_the_update_scale_multiplies_the_update(make):
    params = {"kernel": jnp.ones((3, 2))}
    gradient = random_like(params, 0)
    full, fifth = (
        next(trajectory(make(1e-2), params, [gradient], scale))["kernel"] - 1
        for scale in (1.0, 0.2)
    )
    np.testing.assert_allclose(fifth, 0.2 * full, rtol=1e-4)


def test_a_gradient_is_clipped_to_its_norm():
    params = {"a": jnp.zeros(3), "b": jnp.zeros(4)}
    large = {"a": jnp.full(3, 3.0), "b": jnp.full(4, 4.0)}
    (after,) = trajectory(sgd(1.0, clip_norm=0.5), params, [large])
    np.testing.assert_allclose(optax.tree.norm(after), 0.5, rtol=1e-6)
    np.testing.assert_allclose(after["a"][0] / after["b"][0], 0.75, rtol=1e-6)
    small = jax.tree.map(lambda leaf: 0.01 * leaf, large)
    (after,) = trajectory(sgd(1.0, clip_norm=0.5), params, [small])
    np.testing.assert_allclose(after["a"], -small["a"])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {0: 0.1, 1000: 0.1}),
        ({"warmup_steps": 10}, {0: 0.01, 4: 0.05, 9: 0.1, 500: 0.1}),
        ({"warmup_steps": 100, "schedule": "rsqrt"}, {0: 0.001, 99: 0.1, 399: 0.05, 9999: 0.01}),
        (
            {"warmup_steps": 10, "schedule": "linear", "total_steps": 110},
            {0: 0.01, 9: 0.1, 10: 0.1, 60: 0.05, 110: 0.0, 200: 0.0},
        ),
        (
            {"warmup_steps": 10, "schedule": "cosine", "total_steps": 110},
            {9: 0.1, 10: 0.1, 60: 0.05, 35: 0.1 * 0.5 * (1 + np.sqrt(0.5)), 110: 0.0},
        ),
    ],
)
def test_schedules_at_known_steps(options, expected):
    rate = learning_rate_schedule(0.1, **options)
    for step, value in expected.items():
        np.testing.assert_allclose(rate(step), value, rtol=1e-5, atol=1e-8, err_msg=str(step))


def test_an_unknown_schedule_or_a_missing_end_is_refused():
    with pytest.raises(UserError, match="constant, rsqrt, linear or cosine, not 'poly'"):
        learning_rate_schedule(0.1, schedule="poly")
    with pytest.raises(UserError, match="'cosine' needs total_steps"):
        adamw(0.1, schedule="cosine")


def test_layers_stacked_along_another_axis_are_refused():
    params = {"encoder": {"layers": {"wi": jnp.zeros((3, 8, 16)), "scale": jnp.zeros((3, 4))}}}
    with pytest.raises(UserError, match=r"sizes \[4, 8\] along axis 1.*param_scan_axis"):
        adafactor().build(1.0).init(params)


def test_a_role_without_parameters_has_an_optimizer_too():
    """A value that lives in the policy's network has none."""
    for make in (adafactor, adamw):
        assert next(trajectory(make(1e-2), {}, [{}])) == {}
