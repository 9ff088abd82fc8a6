"""A network of which only the head is trained."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from jaxtyping import PRNGKeyArray

from jaxalign.errors import UserError
from jaxalign.networks.protocols import Network
from jaxalign.networks.shapes import Params

HEAD = "head"


@dataclasses.dataclass(frozen=True)
class FrozenTrunk(Network):
    """Says of another network that all parameters but those under ``head`` are frozen; everything else is that network's."""

    network: Network

    kind: ClassVar[str] = "frozen_trunk"

    def __post_init__(self) -> None:
        names = self.network.abstract_params()
        if HEAD not in names:
            raise UserError(
                f"a frozen trunk needs a network with a {HEAD!r}; {type(self.network).__name__} has {', '.join(names) or 'no parameters'}"
            )

    @property
    def vocab_size(self) -> int | None:
        return self.network.vocab_size

    @property
    def dropout_rate(self) -> float:
        return self.network.dropout_rate

    def init(self, rng: PRNGKeyArray) -> Params:
        return self.network.init(rng)

    def from_policy(self, rng: PRNGKeyArray, policy_params: Params) -> Params:
        return self.network.from_policy(rng, policy_params)

    def logical_axes(self) -> Params:
        return self.network.logical_axes()

    def trained_leaves(self) -> Params:
        return {name: name == HEAD for name in self.network.abstract_params()}

    def description(self) -> dict[str, Any]:
        # The run folder holds the whole network, which is read back without this wrapper.
        return self.network.description()
