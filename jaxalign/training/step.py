"""The step: one pure function ``(state, frozen, batch) -> (state, metrics)``, jitted once with explicit shardings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxalign.networks.leaves import merge_roles
from jaxalign.objectives.base import Batch, LossOutput, Metric, Objective
from jaxalign.parallel import partitioning
from jaxalign.training.state import TrainState

Metrics = dict[str, Metric]
StepFunction = Callable[[TrainState, Mapping[str, Any], Batch], tuple[TrainState, Metrics]]


def make_train_step(
    objective: Objective,
    transformations: Mapping[str, optax.GradientTransformation],
    *,
    seed: int = 0,
    microbatches: int = 1,
    dropout: bool = False,
) -> StepFunction:
    """Builds the pure training step of an objective.

    The dropout key is ``fold_in(seed, step)``, so a resumed run repeats an uninterrupted one. Gradients of summed losses are added over
    microbatches and divided once by the summed weights, so the number of microbatches does not change the result.

    Args:
      objective: the objective to minimise.
      transformations: one optax transformation per trained role.
      seed: the seed of dropout.
      microbatches: the number of parts into which the batch's rows are split.
      dropout: whether networks get a dropout key.

    Returns:
      A function of state, frozen parameters by role, and batch. Its metrics include, per role, the norms of gradient, update and new
      parameters, and ``finite``, which is 1 if the loss and the norms are finite.
    """

    def step(
        state: TrainState, frozen: Mapping[str, Any], batch: Batch
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step) if dropout else None
        trained = {role: state.params[role] for role in transformations}
        params = dict(state.params)
        if "statistics" in params:
            seen = objective.complete(merge_roles(frozen, params))
            params["statistics"] = objective.observe(seen, batch)
            frozen = {**frozen, "statistics": params["statistics"]}
        output, gradients = _accumulate(objective, trained, frozen, batch, key, microbatches)
        scale = 1.0 / jnp.maximum(output.weight, 1e-8)
        gradients = jax.tree.map(lambda gradient: gradient * scale, gradients)
        opt_state, metrics = {}, dict(output.metrics)
        measured = [output.loss_sum]
        for role, transformation in transformations.items():
            updates, opt_state[role] = transformation.update(
                gradients[role], state.opt_state[role], state.params[role]
            )
            params[role] = optax.apply_updates(state.params[role], updates)
            trees = {"gradient": gradients, "update": {role: updates}, "parameter": params}
            for what, tree in trees.items():
                norm = jnp.asarray(optax.tree.norm(tree[role]), jnp.float32)
                metrics[f"{role}/{what}_norm"] = _scalar(norm)
                measured.append(norm)
        # The new parameters are checked too, because a step whose update overflows must not reach a checkpoint.
        finite = jnp.all(jnp.isfinite(jnp.stack(measured)))
        metrics["finite"] = _scalar(finite.astype(jnp.float32))
        return TrainState(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return step


def make_eval_step(objective: Objective) -> Callable[[Mapping[str, Any], Batch], Metrics]:
    """Returns a pure function from all parameters by role and a batch to metrics, without gradient or dropout."""

    def step(params: Mapping[str, Any], batch: Batch) -> Metrics:
        return objective.loss(objective.complete(params), batch, None).metrics

    return step


def jit_train_step(
    step: StepFunction, mesh: Mesh, shardings: TrainState, frozen_shardings: Any, batch: Batch
) -> StepFunction:
    """Compiles a step with explicit shardings and donated state; `batch` gives the names of its arrays."""
    return _in_mesh(
        mesh,
        jax.jit(
            step,
            in_shardings=(shardings, frozen_shardings, partitioning.batch_shardings(mesh, batch)),
            out_shardings=(shardings, partitioning.replicated_sharding(mesh)),
            donate_argnums=0,
        ),
    )


def jit_eval_step(
    step: Callable[..., Metrics], mesh: Mesh, param_shardings: Any, batch: Batch
) -> Callable[..., Metrics]:
    """Compiles an evaluation step with explicit shardings."""
    return _in_mesh(
        mesh,
        jax.jit(
            step,
            in_shardings=(param_shardings, partitioning.batch_shardings(mesh, batch)),
            out_shardings=partitioning.replicated_sharding(mesh),
        ),
    )


def split_microbatches(batch: Batch, microbatches: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits a batch's rows into strided microbatches ``[microbatches, rows / microbatches, ...]``.

    The microbatches are strided because the rows of a sharded batch lie in contiguous blocks. A contiguous microbatch would lie on few
    devices.

    Returns:
      The arrays with rows, split; and the scalars (statistics of the whole batch), unchanged.
    """
    arrays = {name: array for name, array in batch.items() if jnp.ndim(array) > 0}
    scalars = {name: array for name, array in batch.items() if jnp.ndim(array) == 0}
    split = {
        name: jnp.swapaxes(
            array.reshape(array.shape[0] // microbatches, microbatches, *array.shape[1:]), 0, 1
        )
        for name, array in arrays.items()
    }
    return split, scalars


def _accumulate(
    objective: Objective,
    params: Mapping[str, Any],
    frozen: Mapping[str, Any],
    batch: Batch,
    key: jax.Array | None,
    microbatches: int,
) -> tuple[LossOutput, Any]:
    def loss(trained: Any, part: Batch, part_key: jax.Array | None) -> tuple[jax.Array, LossOutput]:
        params = objective.complete(merge_roles(frozen, trained))
        output = objective.loss(params, part, part_key)
        return output.loss_sum, output

    gradient = jax.grad(loss, has_aux=True)
    if microbatches == 1:
        gradients, output = gradient(params, batch, key)
        return output, gradients
    prepared = objective.prepare(objective.complete(merge_roles(frozen, params)), batch)
    split, scalars = split_microbatches(prepared, microbatches)

    def body(carry: Any, part: Any) -> tuple[Any, None]:
        index, arrays = part
        part_key = None if key is None else jax.random.fold_in(key, index)
        gradients, output = gradient(params, {**arrays, **scalars}, part_key)
        return jax.tree.map(jnp.add, carry, (output, gradients)), None

    first = jax.eval_shape(
        lambda: gradient(
            params, {**{name: array[0] for name, array in split.items()}, **scalars}, key
        )
    )
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (first[1], first[0]))
    (output, gradients), _ = jax.lax.scan(body, zeros, (jnp.arange(microbatches), split))
    return output, gradients


def _scalar(value: jax.Array) -> Metric:
    return Metric(value, jnp.ones((), jnp.float32))


def _in_mesh(mesh: Mesh, function: Any) -> Any:
    def call(*arguments: Any) -> Any:
        with partitioning.set_mesh(mesh):
            return function(*arguments)

    call.lower = lambda *arguments: _lower(mesh, function, arguments)  # type: ignore[attr-defined]
    return call


def _lower(mesh: Mesh, function: Any, arguments: tuple[Any, ...]) -> Any:
    with partitioning.set_mesh(mesh):
        return function.lower(*arguments)
