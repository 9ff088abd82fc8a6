"""Writes tests/goldens/shardings: the sharding of every array of T5-L, XL and XXL on the default meshes.

Run it after an intended change of a rule: python scripts/sharding_snapshots.py
"""

from __future__ import annotations

from pathlib import Path

import jax
from jax.sharding import AbstractMesh

from jaxalign.networks.config import T5Config
from jaxalign.networks.policy import Policy
from jaxalign.networks.value import ValueNetwork
from jaxalign.objectives.dro import DROV
from jaxalign.parallel.accelerators import ACCELERATORS
from jaxalign.parallel.partitioning import MESH_AXES, MeshShape, default_mesh_shape
from jaxalign.training.model_info import model_info
from jaxalign.training.optimizers import adafactor
from jaxalign.training.state import build_transformations, create_state

FOLDER = Path(__file__).parents[1] / "tests" / "goldens" / "shardings"
# emb_dim, mlp_dim, heads: T5X's t5_1_1 sizes; 24 layers each.
SIZES = {"large": (1024, 2816, 16), "xl": (2048, 5120, 32), "xxl": (4096, 10240, 64)}
# Chips and slices of typical jobs.
JOBS = {
    "v4": (32, 1),
    "v5e": (16, 1),
    "v5e 2 slices": (64, 2),
    "v5p": (16, 1),
    "v6e": (16, 1),
    "h100": (8, 1),
}


def snapshot(size: str) -> str:
    """Returns the table of DRO-V with Adafactor."""
    emb_dim, mlp_dim, heads = SIZES[size]
    config = T5Config(
        vocab_size=32128,
        emb_dim=emb_dim,
        num_heads=heads,
        head_dim=64,
        mlp_dim=mlp_dim,
        num_encoder_layers=24,
        num_decoder_layers=24,
        scan_layers=True,
    )
    networks = {"policy": Policy(config), "value": ValueNetwork(config)}
    objective = DROV(policy=networks["policy"], value=networks["value"], temperature=1.0)
    rules = build_transformations(
        dict.fromkeys(networks, adafactor(1e-4)), objective.update_scales()
    )
    shapes = {role: network.abstract_params() for role, network in networks.items()}
    abstract = jax.eval_shape(lambda tree: create_state(tree, rules), shapes)
    meshes = {"cpu": AbstractMesh(MeshShape().resolve(1), MESH_AXES)}
    for name, (chips, slices) in JOBS.items():
        shape = default_mesh_shape(ACCELERATORS[name.split()[0]], chips, slices)
        meshes[f"{name} ({chips})"] = AbstractMesh(shape.resolve(chips), MESH_AXES)
    axes = {role: network.logical_axes() for role, network in networks.items()}
    return model_info(abstract, axes, meshes)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for each in SIZES:
        (FOLDER / f"t5_1_1_{each}.txt").write_text(snapshot(each), encoding="utf-8")
