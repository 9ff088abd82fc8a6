"""Optimizers built from optax: T5X's Adafactor, AdamW and SGD, with warm-up and schedules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxalign.errors import UserError, require_range
from jaxalign.networks import adapters
from jaxalign.networks.stacking import STACKS

Schedule = Callable[[Any], Any]

# Layer-stacked parameters live under this key (`networks.stacking`).
STACKED_KEY = "layers"
NEW_HEAD_KEY = "head"


def learning_rate_schedule(
    learning_rate: float,
    *,
    warmup_steps: int = 0,
    schedule: str = "constant",
    total_steps: int | None = None,
) -> Schedule:
    """Returns a schedule with linear warm-up to ``learning_rate``.

    Args:
      learning_rate: the peak value.
      warmup_steps: the number of steps of linear warm-up; the first step already has ``1 / warmup_steps`` of the peak.
      schedule: 'constant'; 'rsqrt', T5X's ``1 / sqrt(max(step, warmup_steps))`` scaled to the peak at the end of warm-up; 'linear' or
        'cosine' decay to 0 at ``total_steps``.
      total_steps: the total number of steps, required by 'linear' and 'cosine'.

    Returns:
      A function of the 0-based step.

    Raises:
      UserError: on an unknown schedule, a missing ``total_steps`` or a number out of its range.
    """
    if schedule not in ("constant", "rsqrt", "linear", "cosine"):
        raise UserError(f"schedule must be constant, rsqrt, linear or cosine, not {schedule!r}")
    if schedule in ("linear", "cosine") and not total_steps:
        raise UserError(f"schedule {schedule!r} needs total_steps")
    require_range("optimizer", "[0, inf)", learning_rate=learning_rate, warmup_steps=warmup_steps)
    require_range("optimizer", "[1, inf)", total_steps=total_steps)

    def rate(step: Any) -> Any:
        count = jnp.asarray(step, jnp.float32) + 1.0
        warm = jnp.minimum(1.0, count / warmup_steps) if warmup_steps else 1.0
        if schedule == "constant":
            decay: Any = 1.0
        elif schedule == "rsqrt":
            start = float(max(warmup_steps, 1))
            decay = jnp.sqrt(start / jnp.maximum(count, start))
        else:
            assert total_steps
            span = max(total_steps - warmup_steps, 1)
            progress = jnp.clip((count - 1.0 - warmup_steps) / span, 0.0, 1.0)
            decay = (
                1.0 - progress if schedule == "linear" else 0.5 * (1 + jnp.cos(jnp.pi * progress))
            )
        return learning_rate * warm * decay

    return rate


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """A gradient transformation and its learning rate, before the objective's update scale is known.

    Attributes:
      build: a function from a factor on the learning rate to the optax transformation.
      schedule: a function from a 0-based step to its learning rate, for logging.
      settings: the name of the method and its arguments, for comparison with an earlier run.
    """

    build: Callable[[float], optax.GradientTransformation]
    schedule: Schedule
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def adafactor(
    learning_rate: float = 1e-3,
    *,
    warmup_steps: int = 0,
    schedule: str = "constant",
    total_steps: int | None = None,
    decay_rate: float = 0.8,
    step_offset: int = 0,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: float | None = 1.0,
    min_dim_size_to_factor: int = 128,
    layer_axis: int = 1,
    clip_norm: float | None = None,
) -> Optimizer:
    """Returns Adafactor with T5X's defaults (Shazeer and Stern 2018, arXiv 1804.04235).

    Parameters that start from scratch (any path with ``head``, and low-rank adapters) never use parameter scaling: small new ones would
    move about 1000 times slower than the trunk. Layer-stacked parameters are treated layer by layer, so scanned and unscanned models train
    alike.

    Args:
      learning_rate: relative to the parameter's scale if ``multiply_by_parameter_scale``, else absolute.
      warmup_steps: see `learning_rate_schedule`.
      schedule: see `learning_rate_schedule`.
      total_steps: see `learning_rate_schedule`.
      decay_rate: second moments decay as ``1 - step^-decay_rate``.
      step_offset: subtracted from the step in that decay, when fine-tuning restarts it.
      multiply_by_parameter_scale: multiply updates by ``max(1e-3, rms(parameter))``.
      clipping_threshold: updates are clipped to this root mean square per parameter.
      min_dim_size_to_factor: parameters with two dimensions at least this long have factored second moments.
      layer_axis: where layer-stacked parameters have their layers, the network's ``param_scan_axis``.
      clip_norm: clip the role's gradient to this global norm first.

    Raises:
      UserError: on a number out of its range.
    """
    settings = {"method": "adafactor", **locals()}
    require_range(
        "adafactor", "(0, inf)", clip_norm=clip_norm, clipping_threshold=clipping_threshold
    )
    require_range("adafactor", "(0, 1]", decay_rate=decay_rate)
    require_range("adafactor", "[0, inf)", step_offset=step_offset)
    require_range("adafactor", "[1, inf)", min_dim_size_to_factor=min_dim_size_to_factor)
    require_range("adafactor", "[0, 1]", layer_axis=layer_axis)
    rate = learning_rate_schedule(
        learning_rate, warmup_steps=warmup_steps, schedule=schedule, total_steps=total_steps
    )

    def build(update_scale: float) -> optax.GradientTransformation:
        def transformation(parameter_scale: bool) -> optax.GradientTransformation:
            return optax.adafactor(
                learning_rate=lambda step: rate(step) * update_scale,
                min_dim_size_to_factor=min_dim_size_to_factor,
                decay_rate=decay_rate,
                decay_offset=step_offset,
                multiply_by_parameter_scale=parameter_scale,
                clipping_threshold=clipping_threshold,
                momentum=None,
                eps=1e-30,
            )

        plain, new = transformation(multiply_by_parameter_scale), transformation(False)
        groups = {
            "plain": plain,
            "head": new,
            # The encoder and the decoder may have different depths.
            **{stack: _per_layer(plain, layer_axis) for stack in STACKS},
        }
        stacked = {f"{stack} adapters": _per_layer(new, layer_axis) for stack in STACKS}
        return _clipped(clip_norm, _by_group(groups, stacked))

    return Optimizer(build, rate, settings)


def adamw(
    learning_rate: float = 1e-4,
    *,
    warmup_steps: int = 0,
    schedule: str = "constant",
    total_steps: int | None = None,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
) -> Optimizer:
    """Returns AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101).

    Args:
      learning_rate: the peak value, absolute.
      warmup_steps: see `learning_rate_schedule`.
      schedule: see `learning_rate_schedule`.
      total_steps: see `learning_rate_schedule`.
      b1: the decay of the first moment.
      b2: the decay of the second moment.
      eps: a constant added to the root of the second moment.
      weight_decay: decoupled weight decay, multiplied by the learning rate.
      clip_norm: clip the role's gradient to this global norm first.

    Raises:
      UserError: on a number out of its range.
    """
    settings = {"method": "adamw", **locals()}
    require_range("adamw", "[0, 1)", b1=b1, b2=b2)
    require_range("adamw", "(0, inf)", eps=eps, clip_norm=clip_norm)
    require_range("adamw", "[0, inf)", weight_decay=weight_decay)
    rate = learning_rate_schedule(
        learning_rate, warmup_steps=warmup_steps, schedule=schedule, total_steps=total_steps
    )

    def build(update_scale: float) -> optax.GradientTransformation:
        return _clipped(
            clip_norm,
            optax.adamw(
                lambda step: rate(step) * update_scale,
                b1=b1,
                b2=b2,
                eps=eps,
                weight_decay=weight_decay,
            ),
        )

    return Optimizer(build, rate, settings)


def sgd(learning_rate: float = 1e-2, *, clip_norm: float | None = None) -> Optimizer:
    """Returns plain gradient descent, for tabular problems and tests.

    Args:
      learning_rate: absolute.
      clip_norm: clip the role's gradient to this global norm first.

    Raises:
      UserError: on a number out of its range.
    """
    settings = {"method": "sgd", **locals()}
    require_range("sgd", "[0, inf)", learning_rate=learning_rate)
    require_range("sgd", "(0, inf)", clip_norm=clip_norm)

    def build(update_scale: float) -> optax.GradientTransformation:
        return _clipped(clip_norm, optax.sgd(learning_rate * update_scale))

    def rate(step: Any) -> Any:
        return jnp.full_like(jnp.asarray(step, jnp.float32), learning_rate)

    return Optimizer(build, rate, settings)


def _clipped(
    clip_norm: float | None, transformation: optax.GradientTransformation
) -> optax.GradientTransformation:
    if clip_norm is None:
        return transformation
    return optax.chain(optax.clip_by_global_norm(clip_norm), transformation)


def _by_group(
    groups: Mapping[str, optax.GradientTransformation],
    adapter_groups: Mapping[str, optax.GradientTransformation],
) -> optax.GradientTransformation:
    """Applies to each parameter the transformation of its group. Without stacked adapters, the state has no place for them."""

    def present(params: Any) -> optax.GradientTransformation:
        found = set(jax.tree.leaves(_labels(params)))
        more = adapter_groups if found & set(adapter_groups) else {}
        return optax.partition({**groups, **more}, _labels)

    def init(params: Any) -> Any:
        return present(params).init(params)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return present(updates).update(updates, state, params)

    return optax.GradientTransformation(init, update)


def _labels(params: Any) -> Any:
    def label(path: Any, _: Any) -> str:
        keys = [str(getattr(entry, "key", entry)) for entry in path]
        if NEW_HEAD_KEY in keys:
            return "head"
        adapter = adapters.NAME in keys
        if STACKED_KEY in keys and keys[0] in STACKS:
            return f"{keys[0]} adapters" if adapter else keys[0]
        return "head" if adapter else "plain"

    return jax.tree_util.tree_map_with_path(label, params)


def _per_layer(
    transformation: optax.GradientTransformation, axis: int
) -> optax.GradientTransformation:
    """Applies a transformation to each layer of layer-stacked parameters; its state gains a leading layer axis."""

    def init(params: Any) -> Any:
        leaves = jax.tree.leaves(params)
        if not leaves:
            return transformation.init(params)
        layers = {leaf.shape[axis] for leaf in leaves}
        if len(layers) > 1:
            raise UserError(
                f"stacked layers have sizes {sorted(layers)} along axis {axis}, where they should all have the number of layers; "
                "set adafactor.layer_axis to the network's param_scan_axis"
            )
        return jax.vmap(transformation.init, in_axes=axis, out_axes=0)(params)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if not jax.tree.leaves(updates):
            return transformation.update(updates, state, params)
        return jax.vmap(transformation.update, in_axes=(axis, 0, axis), out_axes=(axis, 0))(
            updates, state, params
        )

    return optax.GradientTransformation(init, update)
