"""Run folders as evaluation sees them: a network, its vocabulary and its lengths."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from jaxalign.data.evaluation_set import read_json_lines
from jaxalign.errors import UserError


@dataclasses.dataclass(frozen=True)
class Run:
    """A policy, value or reward network read from a run folder.

    Attributes:
      network, params: the network and its parameters.
      vocabulary: encode(text) -> ids and decode(ids) -> text.
      info: what the run recorded of itself; `step` is the checkpoint read.
    """

    network: Any
    params: Any
    vocabulary: Any
    info: dict[str, Any]

    def length(self, feature: str, override: int = 0) -> int:
        """Tokens of `inputs` or `targets`, EOS included: `override` unless 0, else the run's own.

        Raises:
          UserError: neither is known.
        """
        length = override or int(self.info.get("feature_lengths", {}).get(feature, 0))
        if length < 1:
            name = "max_input_length" if feature == "inputs" else "max_target_length"
            raise UserError(
                f"{self.info.get('run')}: records no length for '{feature}'; give --{name}."
            )
        return length

    @property
    def long_prompts(self) -> str:
        """What the run did with prompts that are too long; 'truncate' where it does not say."""
        return str(self.info.get("long_prompts") or "truncate")

    @property
    def temperature(self) -> float:
        """The tau (or beta) of the run's objective, 1 where it has none."""
        return float(self.info.get("temperature") or 1.0)

    def standardized(self, feedback: Any) -> Any:
        """Feedback in the units of the run's rewards, by its training split's mean and deviation."""
        statistics = self.info.get("reward") or {"mean": 0.0, "std": 1.0}
        return (feedback - statistics["mean"]) / statistics["std"]


def open_description(path: str, *, step: int | str | None = None) -> Run:
    """What a run says of itself, with its vocabulary but without any network."""
    from jaxalign.runs.loading import load_info

    info = load_info(path, step)
    return Run(None, None, _vocabulary(info), info)


def open_policy(path: str, *, role: str = "policy", step: int | str | None = None) -> Run:
    """Opens a policy; arguments and errors as `jaxalign.runs.loading.load_policy`."""
    from jaxalign.runs.loading import load_policy

    network, params, info = load_policy(path, role=role, step=step)
    return Run(network, params, _vocabulary(info), info)


def open_value(path: str, *, role: str = "value", step: int | str | None = None) -> Run:
    """Opens a separate value network; UserError if the run has none."""
    from jaxalign.runs.loading import load_value

    network, params, info = load_value(path, step, role=role)
    return Run(network, params, _vocabulary(info), info)


def open_reward(path: str, *, role: str = "reward", step: int | str | None = None) -> Run:
    """Opens a reward network; UserError if the run has none."""
    from jaxalign.runs.loading import load_reward

    network, params, info = load_reward(path, step, role=role)
    return Run(network, params, _vocabulary(info), info)


def has_value_network(run: Run) -> bool:
    """Whether a value network of its own was trained with the policy."""
    from jaxalign.runs import loading

    return loading.has_value_network(run.info)


def _vocabulary(info: dict[str, Any]) -> Any:
    from jaxalign.data.vocabularies import vocabulary_from_dict

    if not info.get("vocabulary"):
        raise UserError(
            f"{info['run']} was converted without a vocabulary; give that `jaxalign convert` again with --vocabulary, which adds it"
        )
    try:
        return vocabulary_from_dict(info["vocabulary"], info["run"])
    except (KeyError, ValueError) as error:
        raise UserError(f"{info['run']}: its vocabulary cannot be read: {error}") from error


def learning_curve(path: str | Path) -> list[dict[str, Any]]:
    """The records of a run's metrics.jsonl; empty where there is none.

    Args:
      path: a run folder or one of its checkpoints.
    """
    folder = Path(path)
    for candidate in (folder, *folder.parents[:2]):
        file = candidate / "metrics.jsonl"
        if file.is_file():
            return [record for _, record in read_json_lines(file)]
    return []
