"""Stand-ins with closed forms for policies, vocabularies, decoders and run folders."""

import dataclasses
import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.evaluation import runs, sampling


class CharacterVocabulary:
    """One id a character: its code point."""

    def encode(self, text):
        return [ord(c) for c in text]

    def decode(self, ids):
        return "".join(chr(i) for i in ids)


class Scores(NamedTuple):
    log_probs: Any
    lengths: Any


@dataclasses.dataclass(frozen=True)
class LetterPolicy:
    """A token costs params['cost'] nats, and the prompt's length once, so scores are known."""

    def score(self, params, batch):
        responses = batch["response_mask"].shape[2]
        segments = batch["decoder_segment_ids"][..., None] == jnp.arange(1, responses + 1)
        lengths = segments.sum(axis=1).astype(jnp.float32)
        prompt = (batch["encoder_input_tokens"] > 0).sum(axis=1, keepdims=True)
        return Scores(-params["cost"] * lengths - prompt, lengths)


@dataclasses.dataclass(frozen=True)
class MeanTokenValue:
    """V(x) is the mean token id of what the encoder reads, over 100."""

    def values(self, params, batch):
        tokens = batch["encoder_input_tokens"]
        return params["scale"] * tokens.sum(axis=1) / (tokens > 0).sum(axis=1) / 100.0


@dataclasses.dataclass(frozen=True)
class MeanTokenReward:
    """r(x, y) is the mean token id of prompt and response together, over 100."""

    def rewards(self, params, batch):
        tokens = jnp.concatenate(
            [batch["encoder_input_tokens"], batch["decoder_target_tokens"]], axis=1
        )
        mean = tokens.sum(axis=1) / (tokens > 0).sum(axis=1)
        return params["scale"] * mean[:, None] / 100.0


def letter_decoder(policy, settings):
    """Random letters that depend on key, row and prompt, as a sampler's do."""
    del policy

    def decode(params, tokens, key):
        shape = (tokens.shape[0], settings.num_samples, settings.max_target_length)
        letters = np.asarray(jax.random.randint(key, shape, ord("a"), ord("z") + 1))
        stop = 1 + tokens.sum(axis=1) % (settings.max_target_length - 1)
        position = np.arange(settings.max_target_length)
        ended = np.where(position < stop[:, None, None], letters, 0)
        ended = np.where(position == stop[:, None, None], 1, ended)
        return ended, -params["cost"] * (ended > 0).sum(-1).astype(np.float32)

    return decode


@pytest.fixture
def vocabulary():
    return CharacterVocabulary()


@pytest.fixture
def letter_policy():
    return LetterPolicy()


@pytest.fixture
def mean_token_value():
    return MeanTokenValue()


@pytest.fixture
def mean_token_reward():
    return MeanTokenReward()


@pytest.fixture
def fake_runs(monkeypatch):
    """Any checkpoint path loads; its last character, a digit, is the policy's cost a token."""

    def open_policy(path, role="policy", step=None):
        info = {
            "run": str(path),
            "networks": {"policy": {}, "value": {}} if "dro" in str(path) else {"policy": {}},
            "feature_lengths": {"inputs": 32, "targets": 8},
            "step": step or 10,
            "temperature": 0.5,
            "reward": {"mean": 0.5, "std": 2.0},
        }
        cost = {"cost": float(str(path)[-1])}
        return runs.Run(LetterPolicy(), cost, CharacterVocabulary(), info)

    def open_value(path, role="value", step=None):
        run = open_policy(path, step=step)
        return dataclasses.replace(run, network=MeanTokenValue(), params={"scale": 1.0})

    def open_reward(path, role="reward", step=None):
        run = open_policy(path, step=step)
        return dataclasses.replace(run, network=MeanTokenReward(), params={"scale": 1.0})

    monkeypatch.setattr(runs, "open_policy", open_policy)
    monkeypatch.setattr(runs, "open_value", open_value)
    monkeypatch.setattr(runs, "open_reward", open_reward)
    monkeypatch.setattr(sampling, "decoder", letter_decoder)


@pytest.fixture
def write_lines(tmp_path):
    """Writes objects (or raw strings) as lines of a file and returns its path."""

    def write(name, records):
        lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(path)

    return write
