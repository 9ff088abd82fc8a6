"""Computes a digest of parameters where they lie, which is the same on every mesh."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import jax.numpy as jnp

_MIX = (0x85EBCA6B, 0xC2B2AE35)  # MurmurHash3's finalizer
_PLACE = 0x9E3779B1


def fingerprint(params: Any) -> str:
    """Returns 16 hexadecimal digits that differ if a name, a shape or a bit of any float32 array differs.

    The sums are of integers modulo 2^32, so neither the order of addition nor the placement changes them. They detect another checkpoint,
    a damaged one or another layout of layers. Somebody can construct a second checkpoint with the same sums: they are no protection.
    """
    digest = hashlib.sha256()
    leaves = jax.tree_util.tree_leaves_with_path(params)
    sums = jax.device_get([_sums(leaf) for _, leaf in leaves])
    for (path, leaf), pair in zip(leaves, sums, strict=True):
        name = jax.tree_util.keystr(path)
        values = " ".join(f"{int(each):08x}" for each in pair)
        digest.update(f"{name} {tuple(leaf.shape)} {leaf.dtype} {values}\n".encode())
    return digest.hexdigest()[:16]


@jax.jit
def _sums(leaf: jax.Array) -> tuple[jax.Array, jax.Array]:
    bits = jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32)
    place, stride = jnp.zeros((), jnp.uint32), 1
    for axis in reversed(range(leaf.ndim)):
        place = place + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis) * jnp.uint32(
            stride % 2**32
        )
        stride *= leaf.shape[axis]
    first = _mixed(bits ^ _mixed(place * jnp.uint32(_PLACE) + jnp.uint32(1)))
    second = _mixed(first + jnp.uint32(_PLACE))
    return jnp.sum(first, dtype=jnp.uint32), jnp.sum(second, dtype=jnp.uint32)


def _mixed(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * jnp.uint32(_MIX[0])
    x = (x ^ (x >> 13)) * jnp.uint32(_MIX[1])
    return x ^ (x >> 16)
