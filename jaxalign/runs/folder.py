"""Opens a run folder as an object with its recorded description and its trained networks."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any

import jax

from jaxalign import untrusted
from jaxalign.data.recorded_vocabulary import RecordedVocabulary
from jaxalign.errors import UserError, first_line
from jaxalign.networks import adapters, registry
from jaxalign.networks.lora import LoraPolicy
from jaxalign.networks.network_config import NetworkConfig
from jaxalign.networks.protocols import (
    Network,
    PolicyNetwork,
    PromptValuePredictor,
    RewardPredictor,
)
from jaxalign.parallel import row_devices
from jaxalign.runs import bases, checkpoints
from jaxalign.runs.description import (
    NETWORKS_FILE,
    RewardStatistics,
    RunDescription,
    check_network,
    read_description,
)
from jaxalign.runs.fingerprint import fingerprint
from jaxalign.runs.metrics import METRICS_FILE, read_metrics

_VOCABULARY_BYTES = 256 << 20
_MAX_BASES = 16  # runs whose base has a base


class Run:
    """A run folder with one chosen checkpoint.

    Args:
      path: a run folder, or ``<run>/checkpoints/<step>``.
      step: a number, 'best', 'latest', or None for the best if one was kept and the latest otherwise.

    Attributes:
      folder: the run folder.
      step: the step of the checkpoint.
      description: the content of ``networks.json``.

    Raises:
      UserError: files are missing or malformed.
    """

    def __init__(self, path: Path | str, step: int | str | None = None) -> None:
        self.folder, self.step = checkpoints.find_checkpoint(path, step)
        self._adapted_by: tuple[Path, ...] = ()
        self.description: RunDescription = read_description(self.folder)

    def policy(
        self, step: int | str | None = None, *, role: str = "policy", shardings: Any = None
    ) -> TrainedNetwork:
        """Returns the policy with its parameters. Adapters are added to the kernels of their base, and the policy is one without adapters.

        Args:
          step: a checkpoint to use in place of the chosen one.
          role: the role of the parameters.
          shardings: the shardings of the parameters; by default a copy on every device, or in parts as `parallel.row_devices` says.

        Raises:
          UserError: there is no such network, or its checkpoint is damaged, not finite, or of another shape.
        """
        return self._restore("policy", PolicyNetwork, "policy", role, step, shardings)

    def value(
        self, step: int | str | None = None, *, role: str = "value", shardings: Any = None
    ) -> TrainedNetwork:
        """Returns a value network of prompts or prefixes with its own parameters. Arguments and errors are those of `policy`."""
        return self._restore(role, PromptValuePredictor, "separate value", role, step, shardings)

    def reward(
        self, step: int | str | None = None, *, role: str = "reward", shardings: Any = None
    ) -> TrainedNetwork:
        """Returns a reward network of any kind. Arguments and errors are those of `policy`."""
        return self._restore(role, RewardPredictor, "reward", role, step, shardings)

    def has_value_network(self) -> bool:
        """Returns whether the run trained a separate value network based on a T5."""
        if "value" not in self.description.networks:
            return False
        network = self.network("value")
        return isinstance(network, PromptValuePredictor) and network.vocab_size is not None

    def trained_adapters(self, role: str) -> bool:
        """Returns whether the run trained only adapters of a role's network, so that its checkpoints lack the other parameters."""
        return role in self.description.networks and isinstance(self.network(role), LoraPolicy)

    def network(self, role: str) -> Network:
        """Returns the network that the run records for a role, without parameters. Raises UserError if there is none."""
        if role not in self.description.networks:
            raise UserError(
                f"run {self.folder} has no {role} network; its roles: {', '.join(self.description.networks)}"
            )
        described = self.description.networks[role]
        where = f"{self.folder / NETWORKS_FILE}, network {role}"
        check_network(described, where)
        try:
            return registry.build(described)
        except ValueError as error:
            raise UserError(f"{where}: {first_line(error)}") from error

    def config(self, role: str) -> NetworkConfig:
        """Returns the configuration of the encoder-decoder that the run records for a role. Raises UserError if there is none."""
        config = getattr(self.network(role), "config", None)
        if not isinstance(config, NetworkConfig):
            raise UserError(f"run {self.folder}: the {role} network is no encoder-decoder")
        return config

    @property
    def vocabulary_file(self) -> Path | None:
        """Returns the path of the SentencePiece model in the folder; None for bytes or if no vocabulary is recorded.

        Raises:
          UserError: the file is missing, too large, not a regular file, or a link to elsewhere.
        """
        recorded = self.description.vocabulary
        if recorded is None or recorded.file is None:
            return None
        file = self.folder / recorded.file
        try:
            untrusted.read_bytes(file, _VOCABULARY_BYTES, inside=self.folder)
        except OSError as error:
            raise UserError(
                f"{file}, the run's vocabulary, cannot be read: {error.strerror}"
            ) from error
        return file

    @functools.cached_property
    def vocabulary(self) -> Any:
        """Returns the vocabulary, with encode(text) -> ids and decode(ids) -> text.

        Raises:
          UserError: no vocabulary is recorded, or its file is missing or is a different one.
        """
        recorded = self.recorded_vocabulary
        if recorded is None:
            raise UserError(
                f"{self.folder} was converted without a vocabulary; give that `jaxalign convert` again with --vocabulary, which adds it"
            )
        try:
            return recorded.load()
        except (KeyError, ValueError) as error:
            raise UserError(f"{self.folder}: its vocabulary cannot be read: {error}") from error

    @property
    def recorded_vocabulary(self) -> RecordedVocabulary | None:
        """Returns the recorded vocabulary; None if none is recorded. Its file is checked but not read.

        Raises:
          UserError: its file is missing, too large, not a regular file, or a link to elsewhere.
        """
        described = self.description.vocabulary
        if described is None:
            return None
        _ = self.vocabulary_file
        return RecordedVocabulary(described.to_json(), str(self.folder))

    def length(self, feature: str, override: int = 0) -> int:
        """Returns the length of `inputs` or `targets` in tokens, EOS included: `override` unless it is 0, else the run's length.

        Raises:
          UserError: neither length is known.
        """
        length = override or self.description.feature_lengths.get(feature, 0)
        if length < 1:
            flag = "max_input_length" if feature == "inputs" else "max_target_length"
            raise UserError(f"{self.folder} records no length of its {feature}; give --{flag}")
        return length

    @property
    def long_prompts(self) -> str:
        """Returns the run's treatment of prompts that are too long; 'truncate' if it is not recorded."""
        return self.description.long_prompts or "truncate"

    @property
    def temperature(self) -> float:
        """Returns the tau (or beta) of the run's objective; 1 if it has none."""
        return self.description.temperature or 1.0

    def standardized(self, feedback: Any) -> Any:
        """Converts feedback to the units of the run's rewards, with the mean and deviation of its training split."""
        statistics = self.description.reward or RewardStatistics()
        return (feedback - statistics.mean) / statistics.std

    def _restore(
        self, described_as: str, protocol: Any, what: str, role: str, step: Any, shardings: Any
    ) -> TrainedNetwork:
        network = self.network(described_as)
        if not isinstance(network, protocol):
            raise UserError(
                f"run {self.folder}: {described_as} is no {what} network (its kind is {network.kind!r})"
            )
        run = self if step is None else Run(self.folder, step)
        plain = network.base if isinstance(network, LoraPolicy) else network
        shardings = row_devices.divided_shardings(plain) if shardings is None else shardings
        if isinstance(network, LoraPolicy):
            return TrainedNetwork(run, network.base, run._merged(network, role, shardings))
        params = checkpoints.restore_params(
            run.folder,
            role,
            step=run.step,
            abstract=network.abstract_params,
            least_arrays=_least_arrays(network),
            shardings=shardings,
        )
        return TrainedNetwork(run, network, params)

    def _merged(self, network: LoraPolicy, role: str, shardings: Any) -> Any:
        """Returns the parameters of a policy that trained adapters, as those of a policy without them."""
        restore = functools.partial(
            checkpoints.restore_params, self.folder, role, step=self.step, least_arrays=1
        )
        base = self.description.base
        if base is None:
            places = None if shardings is None else bases.with_adapters(shardings, network)
            whole = restore(abstract=network.abstract_params, shardings=places)
            frozen, own = adapters.without(whole), adapters.only(whole)
        else:
            places = (
                None
                if shardings is None
                else adapters.only(bases.with_adapters(shardings, network))
            )
            own = restore(
                abstract=lambda: adapters.only(network.abstract_params()), shardings=places
            )
            frozen = self._read_base(base, network, shardings)
        return jax.jit(network.merge, donate_argnums=0, out_shardings=shardings)(frozen, own)

    def _read_base(self, base: bases.Base, network: LoraPolicy, shardings: Any) -> Any:
        """Returns the parameters that the adapters of this run were trained on.

        Raises:
          UserError: they are missing, or differ from those that this run records.
        """
        place = base.find(self.folder)
        opened = Run(place, base.step)
        opened._adapted_by = (*self._adapted_by, self.folder)
        if opened.folder in opened._adapted_by or len(opened._adapted_by) > _MAX_BASES:
            raise UserError(
                f"{self.folder}: its base {place} has too many bases, or itself as base"
            )
        base.check_run(self.folder, opened.description.run_id, place)
        stored = opened.network("policy")
        theirs, ours = (getattr(each, "config", None) for each in (stored, network))
        same = bases.same_layout(theirs, ours)
        params = opened.policy(shardings=shardings if same else None).params
        if not same:
            params = bases.in_layout(params, theirs, ours)
            params = params if shardings is None else jax.device_put(params, shardings)
        base.check_digest(self.folder, opened.policy_digest(params), place)
        return params

    def policy_digest(self, params: Any) -> str:
        """Returns digits that differ between policies: the `fingerprint` of their parameters.

        Parameters of a policy with adapters are computed, with other last bits on another machine. It is identified by what is stored:
        the adapters, and the digest of their base.

        Args:
          params: the parameters of this run's policy, in the layout of the network that compares them.
        """
        network = self.network("policy")
        if not isinstance(network, LoraPolicy):
            return fingerprint(params)
        restore = functools.partial(
            checkpoints.restore_params, self.folder, "policy", step=self.step, least_arrays=1
        )
        base = self.description.base
        if base is None:
            return fingerprint(restore(abstract=network.abstract_params))
        own = restore(abstract=lambda: adapters.only(network.abstract_params()))
        return hashlib.sha256(f"{fingerprint(own)} {base.digest}".encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class TrainedNetwork:
    """A network of a run, with its parameters.

    Attributes:
      run: the run, at the step of the parameters.
      network, params: the network and its parameters.
    """

    run: Run
    network: Any
    params: Any

    @property
    def vocabulary(self) -> Any:
        """Returns the run's vocabulary."""
        return self.run.vocabulary

    @property
    def long_prompts(self) -> str:
        """Returns the run's treatment of prompts that are too long."""
        return self.run.long_prompts

    def length(self, feature: str, override: int = 0) -> int:
        """Returns the length of a feature in tokens, see `Run.length`."""
        return self.run.length(feature, override)

    @property
    def step(self) -> int:
        """Returns the step of the parameters."""
        return self.run.step


def learning_curve(path: str | Path) -> list[dict[str, Any]]:
    """Returns the records of a run's metrics; an empty list if there are none.

    Args:
      path: a run folder or one of its checkpoints.
    """
    folder = Path(path)
    for candidate in (folder, *folder.parents[:2]):
        if (candidate / METRICS_FILE).is_file():
            return read_metrics(candidate / METRICS_FILE)
    return []


def _least_arrays(network: Network) -> int:
    """Returns a lower bound of a network's number of arrays. It saves minutes of tracing if recorded layers do not exist."""
    config = getattr(network, "config", None)
    if not isinstance(config, NetworkConfig) or config.scan_layers:
        return 1
    return config.num_encoder_layers + (
        config.num_decoder_layers if isinstance(network, PolicyNetwork) else 0
    )
