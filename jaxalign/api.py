"""The package from Python: train from gin files, open a run, and let it answer and score.

    import jaxalign

    jaxalign.inspect("my.jsonl")
    run = jaxalign.train("my.gin", MODEL_DIR="runs/my", TRAIN_STEPS=200)
    run.generate(["a prompt"], num_samples=2, temperature=1.0)

These are the commands of the same names, without a process of their own: errors are `jaxalign.errors.UserError`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxalign.annotation.judges import Judge, judge_of_reward
from jaxalign.annotation.policy_scores import TextPolicy
from jaxalign.annotation.reward_judges import judging_encoder
from jaxalign.cli import gin_settings, gin_setup
from jaxalign.cli.commands import COMMANDS, read_signature
from jaxalign.cli.flags import Flags, Setting
from jaxalign.data.candidates import Candidates
from jaxalign.errors import UserError
from jaxalign.inference.encoders import encoder_of
from jaxalign.inference.rows import predict_values
from jaxalign.inference.sampling import DecodingSettings, generate_responses
from jaxalign.interop.opening import open_run
from jaxalign.runs import folder
from jaxalign.runs.folder import TrainedNetwork


class LoadedRun:
    """A run folder or checkpoint whose networks answer and score texts. Each network is read when it is first needed.

    Args:
      path: a run folder or checkpoint, a Hugging Face folder, or a model of the hub as ``hf://OWNER/NAME[@REVISION]``.
      step: a step number, ``best`` or ``latest``; by default the best if one was kept, else the latest.

    Raises:
      UserError: there is no run, or its files are malformed.
    """

    def __init__(self, path: str | os.PathLike[str], step: int | str | None = None) -> None:
        self._run = open_run(path, step)

    def __repr__(self) -> str:
        roles = ", ".join(self._run.description.networks)
        return f"LoadedRun({str(self._run.folder)!r}, step={self._run.step}, networks: {roles})"

    @property
    def path(self) -> Path:
        """Returns the run folder."""
        return self._run.folder

    @property
    def step(self) -> int:
        """Returns the step of the parameters."""
        return int(self._run.step)

    def metrics(self) -> list[dict[str, Any]]:
        """Returns the records of the run's metrics, in order."""
        return folder.learning_curve(self._run.folder)

    def generate(
        self,
        prompts: Sequence[str],
        *,
        num_samples: int = 1,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        num_beams: int = 0,
        max_target_length: int = 0,
        batch_size: int = 32,
        seed: int = 0,
    ) -> list[list[str]]:
        """Returns the policy's responses, ``[prompts][num_samples]``; those of `jaxalign generate` with these settings.

        Args:
          prompts: texts.
          num_samples, temperature, top_k, top_p, num_beams: as of `inference.sampling.DecodingSettings`; greedy by default.
          max_target_length: the longest response in tokens, EOS included; 0 takes the run's.
          batch_size: the number of prompts decoded together.
          seed: sample k of prompt i depends on (seed, i, k) only.

        Raises:
          UserError: the run has no policy, or settings exclude each other.
        """
        _require_texts("prompts", prompts)
        encoder = encoder_of(self._policy, max_target_length=max_target_length)
        settings = DecodingSettings(
            max_target_length=encoder.limits.max_target_length,
            num_samples=num_samples,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            num_beams=num_beams,
        )
        texts, _ = generate_responses(
            self._policy.network,
            self._policy.params,
            encoder,
            prompts,
            settings,
            batch_size=batch_size,
            seed=seed,
        )
        return texts

    def score(
        self, prompts: Sequence[str], responses: Sequence[str], *, per_token: bool = False
    ) -> Float[np.ndarray, " prompts"]:
        """Returns ``log pi(response | prompt)`` in nats, EOS included; per token if asked. Texts that are too long are cut.

        Raises:
          UserError: the run has no policy or gives NaN, or there are not as many responses as prompts.
        """
        _require_texts("prompts", prompts)
        _require_texts("responses", responses, len(prompts))
        candidates = Candidates(list(prompts), [[text] for text in responses], {})
        sums, lengths = self._scorer.score(*self._scorer.encode(candidates))
        totals = np.array([each[0] for each in sums])
        return totals / np.array([each[0] for each in lengths]) if per_token else totals

    def values(self, prompts: Sequence[str]) -> Float[np.ndarray, " prompts"]:
        """Returns V(prompt) in units of the feedback that the run was trained on. Prompts that are too long are cut.

        Raises:
          UserError: the run has no value network.
        """
        _require_texts("prompts", prompts)
        tokens = judging_encoder(self._value).prompts(prompts).tokens
        found = predict_values(self._value.network, self._value.params, tokens)
        statistics = self._run.description.reward
        return found if statistics is None else found * statistics.std + statistics.mean

    def rewards(
        self, prompts: Sequence[str], responses: Sequence[str]
    ) -> Float[np.ndarray, " prompts"]:
        """Returns the reward of each response, of a run that trained a reward model (the judge ``reward_model:RUN``).

        Raises:
          UserError: the run has no reward network.
        """
        _require_texts("prompts", prompts)
        _require_texts("responses", responses, len(prompts))
        return np.asarray(self._judge.score(list(prompts), list(responses)), np.float64)

    @functools.cached_property
    def _policy(self) -> TrainedNetwork:
        return self._run.policy()

    @functools.cached_property
    def _scorer(self) -> TextPolicy:
        return TextPolicy(str(self._run.folder), str(self._run.step))

    @functools.cached_property
    def _value(self) -> TrainedNetwork:
        return self._run.value()

    @functools.cached_property
    def _judge(self) -> Judge:
        return judge_of_reward(self._run.reward())


def load_run(path: str | os.PathLike[str], step: int | str | None = None) -> LoadedRun:
    """Opens a run folder or checkpoint; arguments and errors as of `LoadedRun`."""
    return LoadedRun(path, step)


def train(
    *gin_files: str | os.PathLike[str],
    bindings: Mapping[str, Any] | None = None,
    **macros: Any,
) -> LoadedRun:
    """Trains as `jaxalign train` does, and opens the finished run. It replaces gin's configuration of this process.

    Args:
      *gin_files: as of ``--gin_file``, in order; later files win.
      bindings: parameters by their gin names, such as ``{"DROV.temperature": 0.3}``.
      **macros: macros of the gin files, such as ``MODEL_DIR="runs/x"`` or ``TRAIN_STEPS=100``.

    Raises:
      UserError: as `jaxalign train`, whose one-line error is its text.
    """
    given = {**(bindings or {}), **macros}
    flags = Flags(
        gin_file=[os.fspath(file) for file in gin_files],
        settings=[Setting(name, _written(name, value), name) for name, value in given.items()],
    )
    command = COMMANDS["train"]
    function = gin_setup.configure(flags, command, read_signature(command))
    gin_setup.run(function, command)
    return LoadedRun(gin_settings.bound_value(command.selector, "model_dir"))


def _written(name: str, value: Any) -> str:
    """Returns a value as it is written after a flag's ``=``."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if value is not None and not isinstance(value, bool | int | float | str | list | tuple | dict):
        raise UserError(
            f"{name} is {value!r}; give a number, a text, a list or a mapping, or @function() as a text"
        )
    if isinstance(value, str) and value[:1] in ("@", "%"):
        return value
    return repr(value)


def _require_texts(name: str, texts: Sequence[str], count: int | None = None) -> None:
    # A text is a sequence of texts too: each of its letters would be a prompt.
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{name} must be a list of texts")
    if count is not None and len(texts) != count:
        raise UserError(f"there are {len(texts)} {name} for {count} prompts; give one for each")
