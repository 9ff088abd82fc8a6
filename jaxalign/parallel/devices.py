"""How a run uses its devices: the settings, and what they mean for the devices that are there."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

from jax.sharding import Mesh

from jaxalign.errors import require_range
from jaxalign.parallel import distributed, partitioning
from jaxalign.parallel.partitioning import AxisRules, MeshShape


@dataclasses.dataclass(frozen=True, kw_only=True)
class Devices:
    """How devices are arranged and what each of them holds. No setting changes the results of a run.

    Attributes:
      mesh: devices on each mesh axis. By default, TPUs and GPUs shard the parameters over a slice or host; on a CPU every device
        holds a copy.
      axis_rules: role -> ((logical axis, mesh axis, mesh axes or None), ...). They precede the standard rules for the parameters of
        that role, for example ``{'value': (('mlp', None),)}``.
      microbatches: parts of the batch whose gradients are accumulated. More parts need less memory.
    """

    mesh: MeshShape = dataclasses.field(default_factory=MeshShape)
    axis_rules: Mapping[str, AxisRules] = dataclasses.field(default_factory=dict)
    microbatches: int = 1

    def __post_init__(self) -> None:
        require_range("Devices", "[1, inf)", microbatches=self.microbatches)

    def place(self, batch_size: int, roles: Collection[str]) -> Placement:
        """Arranges the devices of the job.

        Args:
          batch_size: rows of the global batch.
          roles: the roles that the objective trains.

        Raises:
          UserError: the mesh does not fit the devices or the batch, or a rule names an unknown role or axis.
        """
        mesh = partitioning.make_mesh(self.mesh)
        partitioning.check_batch_size(mesh, batch_size, self.microbatches)
        return Placement(
            mesh=mesh,
            rules=partitioning.check_axis_rules(self.axis_rules, roles),
            rows=distributed.process_local_rows(mesh, batch_size),
            microbatches=self.microbatches,
        )


DEFAULT_DEVICES = Devices()


@dataclasses.dataclass(frozen=True)
class Placement:
    """The devices of a run.

    Attributes:
      mesh: the mesh.
      rules: role -> axis rules that precede the standard ones.
      rows: the rows of the global batch that this process holds; None for all.
      microbatches: parts of the batch whose gradients are accumulated.
    """

    mesh: Mesh
    rules: Mapping[str, AxisRules]
    rows: Sequence[int] | None
    microbatches: int
