"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) of linear maps: ``x W + scale (x A) B`` without a copy of W.

In a tree of parameters, the adapter of a linear map lies beside its kernel: ``{"kernel": W, "lora": {"a": A, "b": B}}``. A stacked kernel
``[in, layers, out]`` (or ``[layers, in, out]``) has one A and one B per layer, stacked along the same axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import PRNGKeyArray

from jaxalign.networks.shapes import AnyArray, Params

NAME = "lora"
KERNEL = "kernel"
_STACKED = 3  # dimensions of a kernel with a layer axis


@flax.struct.dataclass
class Adapter:
    """An adapter that is ready for use: its matrices with their settings. `blocks.Dense` reads no other form.

    Attributes:
      a, b: the matrices of one layer; of all layers where a stack is scanned.
      scale: the factor on their product.
      dropout: the probability of dropping an element of the input; only where a module has the random stream ``dropout``.
    """

    a: Any
    b: Any
    scale: float = flax.struct.field(pytree_node=False)
    dropout: float = flax.struct.field(pytree_node=False)

    def __call__(self, module: nn.Module, x: AnyArray) -> AnyArray:
        """Returns what the adapter adds to ``x W``, in the dtype of `x`. The random numbers are those of `module`."""
        if self.dropout and module.has_rng("dropout"):
            kept = jax.random.bernoulli(module.make_rng("dropout"), 1.0 - self.dropout, x.shape)
            x = jnp.where(kept, x / (1.0 - self.dropout), 0).astype(x.dtype)
        return self.scale * ((x @ self.a.astype(x.dtype)) @ self.b.astype(x.dtype))


def linear_maps(shapes: Params) -> dict[str, tuple[int, ...]]:
    """Returns the kernels that can have an adapter, by path: those without a bias in the layers of an encoder or a decoder."""
    found = {}

    def visit(path: tuple[str, ...], branch: Any) -> None:
        if not isinstance(branch, Mapping):
            return
        if set(branch) - {NAME} == {KERNEL}:
            found["/".join((*path, KERNEL))] = tuple(branch[KERNEL].shape)
        for name, inner in branch.items():
            if name != NAME:
                visit((*path, name), inner)

    for stack in ("encoder", "decoder"):
        for name, branch in shapes.get(stack, {}).items():
            if name.startswith("layers"):
                visit((stack, name), branch)
    return found


def fresh(shapes: Params, kernels: tuple[str, ...], rank: int, axis: int, rng: PRNGKeyArray) -> Any:
    """Returns new adapters of these kernels: A uniform within 1 / sqrt(inputs), B zero.

    Args:
      shapes: of the network's parameters.
      kernels: paths, from `linear_maps`.
      rank: columns of A and rows of B.
      axis: where stacked kernels have their layers.
      rng: the key of A.
    """
    maps, made = linear_maps(shapes), {}
    for key, path in zip(jax.random.split(rng, len(kernels)), kernels, strict=True):
        shape_a, shape_b = _shapes(maps[path], rank, axis)
        bound = 1.0 / math.sqrt(maps[path][_input_axis(maps[path], axis)])
        a = jax.random.uniform(key, shape_a, jnp.float32, -bound, bound)
        made[path] = {"a": a, "b": jnp.zeros(shape_b, jnp.float32)}
    return placed(made)


def axes(logical: Params, shapes: Params, kernels: tuple[str, ...], axis: int) -> Any:
    """Returns the logical axes of `fresh` adapters: those of their kernels, and None for the rank."""
    maps, made = linear_maps(shapes), {}
    for path in kernels:
        names = list(_at(logical, path))
        names += [None] * (len(maps[path]) - len(names))
        first = _input_axis(maps[path], axis)
        inputs_dropped = [None if at == first else name for at, name in enumerate(names)]
        made[path] = {
            "a": PartitionSpec(*names[:-1], None),
            "b": PartitionSpec(*inputs_dropped),
        }
    return placed(made)


def bound(params: Params, scale: float, dropout: float) -> Params:
    """Returns parameters in which every adapter is an `Adapter`; those that are one already stay as they are."""

    def bind(adapter: Any) -> Any:
        if isinstance(adapter, Adapter):
            return adapter
        return Adapter(adapter["a"], adapter["b"], scale, dropout)

    return _map_adapters(params, bind)


def without(params: Params) -> Params:
    """Returns parameters without their adapters."""
    return _map_adapters(params, lambda _: None)


def only(params: Params) -> Params:
    """Returns the adapters alone, with their paths."""
    return _only(params) or {}


def delta(adapter: Mapping[str, Any], scale: float, axis: int) -> Any:
    """Returns what an adapter adds to its kernel, in float32 at full precision."""
    a, b = (jnp.asarray(adapter[name], jnp.float32) for name in ("a", "b"))
    product = "ir,ro->io"
    if a.ndim == _STACKED:
        product = ("lir,lro->lio", "ilr,rlo->ilo")[axis]
    return scale * jnp.einsum(product, a, b, precision="highest")


def merged(base: Params, adapters: Params, scale: float, axis: int) -> Params:
    """Returns the parameters with every adapter added to its kernel."""
    result = dict(base)
    for name, branch in adapters.items():
        if name == NAME:
            result[KERNEL] = base[KERNEL] + delta(branch, scale, axis)
        else:
            result[name] = merged(base[name], branch, scale, axis)
    return result


def placed(by_path: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested dicts with every adapter beside the kernel whose path is its name."""
    tree: dict[str, Any] = {}
    for path, adapter in by_path.items():
        branch = tree
        for name in path.split("/")[:-1]:
            branch = branch.setdefault(name, {})
        branch[NAME] = adapter
    return tree


def _map_adapters(params: Any, function: Callable[[Any], Any]) -> Any:
    """Applies a function to every adapter; where it returns None, the adapter is left out."""
    if not isinstance(params, Mapping):
        return params
    mapped = {
        name: function(branch) if name == NAME else _map_adapters(branch, function)
        for name, branch in params.items()
    }
    return {name: branch for name, branch in mapped.items() if branch is not None}


def _only(params: Any) -> Any:
    if not isinstance(params, Mapping):
        return None
    found = {}
    for name, branch in params.items():
        kept = branch if name == NAME else _only(branch)
        if kept is not None:
            found[name] = kept
    return found or None


def _shapes(
    kernel: tuple[int, ...], rank: int, axis: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    first = _input_axis(kernel, axis)
    b = tuple(rank if at == first else size for at, size in enumerate(kernel))
    return (*kernel[:-1], rank), b


def _input_axis(kernel: tuple[int, ...], axis: int) -> int:
    """Returns the dimension of a kernel over which its inputs are summed."""
    return 1 if len(kernel) == _STACKED and axis == 0 else 0


def _at(tree: Any, path: str) -> Any:
    for name in path.split("/"):
        tree = tree[name]
    return tree
