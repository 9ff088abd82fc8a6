"""Loads the initial policy of a run from an earlier run, from T5X or from Hugging Face, and places it on the run's mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxtyping import PRNGKeyArray

from jaxalign import hub
from jaxalign.data.recorded_vocabulary import RecordedVocabulary
from jaxalign.errors import UserError
from jaxalign.networks.network_config import NetworkConfig
from jaxalign.parallel import distributed
from jaxalign.parallel.partitioning import AxisRules, role_shardings
from jaxalign.runs import checkpoints
from jaxalign.runs.folder import Run
from jaxalign.training import fresh_leaves


@dataclasses.dataclass(frozen=True)
class InitialCheckpoint:
    """A checkpoint that a policy is restored from.

    Attributes:
      identity: ``run_id``, ``step`` and ``path``; the first two name the log-probabilities stored for it as a reference.
      reader: a function from a policy, its shapes and its shardings to its parameters.
      vocabulary: the vocabulary it was trained with; None if it records none. T5X checkpoints never record one.
      t5x: whether it is a T5X checkpoint. In T5X, a run that starts from one continues to count its steps.
      config: the configuration of a run's policy; None for a checkpoint of another system.
      is_run: whether it is a checkpoint of a run folder.
    """

    identity: dict[str, Any]
    reader: Callable[[Any, Any, Any], Any]
    vocabulary: RecordedVocabulary | None = None
    t5x: bool = False
    config: NetworkConfig | None = None
    is_run: bool = False

    def restore(
        self, policy: Any, mesh: Any, rules: AxisRules = (), rng: PRNGKeyArray | None = None
    ) -> Any:
        """Returns the parameters; each device holds its own part.

        Args:
          policy: the network.
          mesh: the mesh of the run.
          rules: logical axis rules that come before the standard ones.
          rng: the key with which parts of the network that the checkpoint lacks are initialised; without it they are an error.

        Raises:
          UserError: the parameters do not belong to this policy.
        """
        there = policy if rng is None else fresh_leaves.without(policy, self.lacking(policy))
        params = self.reader(there, there.abstract_params(), _places(there, mesh, rules))
        if rng is None or there is policy:
            return params
        places = _places(policy, mesh, rules)
        return fresh_leaves.completed(policy, params, rng, mesh, places)

    def lacking(self, policy: Any) -> dict[str, Any]:
        """Returns the extensions of a policy that the checkpoint does not have, by the fields of its configuration."""
        return fresh_leaves.lacking(getattr(policy, "config", None), self.config)


def _places(policy: Any, mesh: Any, rules: AxisRules) -> Any:
    return role_shardings(mesh, policy.abstract_params(), policy.logical_axes(), rules)


def open_checkpoint(path: str, step: int | str | None = None) -> InitialCheckpoint:
    """Finds the checkpoint without reading its arrays.

    Args:
      path: a run folder or one of its checkpoints; a T5X checkpoint or a folder of several; a Hugging Face folder or ``hf://`` address.
      step: a number, 'latest', or (for runs) 'best', which is the default if a best checkpoint was kept.

    Raises:
      UserError: there is no checkpoint, or it is malformed.
    """
    from jaxalign.interop import checkpoint_sources, source_vocabulary

    if checkpoint_sources.is_run(path):
        # Another run may still be writing there, so the first process chooses the step.
        chosen = distributed.broadcast_from_first(lambda: Run(path, step).step)
        run = Run(path, chosen)
        identity = {
            "run_id": run.description.run_id,
            "step": run.step,
            "path": str(run.folder),
        }

        def read_run(policy: Any, shapes: Any, shardings: Any) -> Any:
            if _other_layout(run, getattr(policy, "config", None)):
                return _read_source(
                    checkpoint_sources.open_source(path, run.step), policy, shardings
                )
            if run.trained_adapters("policy"):
                return run.policy(shardings=shardings).params
            return checkpoints.restore_params(
                path, "policy", step=run.step, abstract=shapes, shardings=shardings
            )

        has_policy = "policy" in run.description.networks
        config = run.config("policy") if has_policy else None
        return InitialCheckpoint(
            identity, read_run, run.recorded_vocabulary, config=config, is_run=True
        )
    if distributed.is_multiprocess():
        # If something still writes to the folder, each process could find a different latest step; a branch of the hub can move.
        path, step = distributed.broadcast_from_first(lambda: _address_and_step(path, step))
    try:
        source = checkpoint_sources.open_source(path, step)
    except UserError as error:
        if not distributed.is_multiprocess():
            raise
        # This is an OSError because only this process has the problem.
        raise OSError(
            f"the first process sees a checkpoint that this one does not: {error}"
        ) from error
    identity = {"run_id": source.run_id(), "step": source.step, "path": source.address}
    return InitialCheckpoint(
        identity,
        lambda policy, _, shardings: _read_source(source, policy, shardings),
        source_vocabulary.own_vocabulary(source),
        source.format in checkpoint_sources.T5X_FORMATS,
    )


def _address_and_step(path: str, step: int | str | None) -> list[Any]:
    from jaxalign.interop import checkpoint_sources

    source = checkpoint_sources.open_source(path, step)
    return [source.address if hub.is_address(path) else path, source.step]


def check(path: Path | str, step: int | str | None, policy: Any) -> RecordedVocabulary | None:
    """Finds a local checkpoint and, unless it belongs to a run, compares its names and shapes with those of a policy.

    Returns:
      Its vocabulary, if it records one.

    Raises:
      UserError: as in `open_checkpoint`, or the checkpoint does not belong to this policy.
    """
    from jaxalign.interop import checkpoint_sources, source_vocabulary

    if checkpoint_sources.is_run(path):
        return Run(path, step).recorded_vocabulary
    source = checkpoint_sources.open_source(path, step)
    config = getattr(policy, "config", None)
    source.configured(config.stock() if isinstance(config, NetworkConfig) else None)
    return source_vocabulary.own_vocabulary(source)


def _read_source(source: Any, policy: Any, shardings: Any) -> Any:
    from jaxalign.interop import parameters

    config, _ = source.configured(policy.config)
    return parameters.put_all(source.params, config, shardings)


def _other_layout(run: Run, config: Any) -> bool:
    """Returns whether the policy of a run stacks its layers in another way than a network."""
    if not isinstance(config, NetworkConfig) or "policy" not in run.description.networks:
        return False
    stored = run.config("policy")

    def layout(config: NetworkConfig) -> tuple[bool, int]:
        return config.scan_layers, config.param_scan_axis if config.scan_layers else 0

    return layout(stored) != layout(config)
