"""A language model behind an OpenAI-compatible endpoint compares or rates responses.

Every pair is judged in both orders, because models prefer a position. A reply without a verdict is counted and becomes a missing value.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxalign.annotation import llm_verdicts
from jaxalign.annotation.chat_cache import Reply, ReplyCache, default_folder
from jaxalign.annotation.chat_client import ChatClient
from jaxalign.annotation.chat_endpoint import endpoint_from_environment
from jaxalign.annotation.chat_http import RequestRefusedError
from jaxalign.data.candidates import Candidates
from jaxalign.errors import UserError, require_one_of, require_range

# The share of malformed verdicts is not judged on fewer.
_ENOUGH_VERDICTS = 50
_CHARACTERS_PER_TOKEN = 4


@dataclasses.dataclass(frozen=True)
class _Verdict:
    """What came of one question. `value` is NaN if nothing did."""

    value: float
    malformed: bool = False
    refused: bool = False
    cut: bool = False
    reminded: int = 0
    end: str = ""


@dataclasses.dataclass
class LLMJudge:
    """Judges by a language model. Server, model and key come from the environment, see `endpoint_from_environment`.

    Attributes:
      mode: `pairwise` compares two responses and gives preferences; `pointwise` rates each response and gives scores.
      pairs: of `pairwise`: `all` pairs of a prompt, `adjacent` ones (0-1, 1-2, ...), or all against the response `baseline`. The
        preferences of the other pairs are missing.
      baseline: the index of the response that `pairs=baseline` compares with.
      template: a file with the question; empty for that of the package.
      rubric: a file with what counts, for the field {rubric}; empty for a general one.
      low, high: the scale of `pointwise`.
      normalise: whether scores become (score - low) / (high - low).
      model: the model; empty for JAXALIGN_LLM_MODEL.
      server: the name of the server in cache and identity, for one that moves between ports or machines; empty for its URL.
      temperature, max_tokens, seed: sent with each request unless None.
      token_limit: the name under which max_tokens is sent: `max_tokens`, or `max_completion_tokens` for servers that want it.
      reminders: how often a reply without a verdict is answered with a request for the verdict alone.
      max_malformed: the share of verdicts that may be malformed or refused before the command stops.
      on_refusal: what a request becomes that the server refuses with 400, 413 or 422: `stop`, or `missing` for a missing value.
      concurrency, timeout, retries: see `ChatClient`.
      cache: the folder of replies; empty for JAXALIGN_LLM_CACHE or ~/.cache/jaxalign/llm.
    """

    mode: str = "pairwise"
    pairs: str = "all"
    baseline: int = 0
    template: str = ""
    rubric: str = ""
    low: float = 1.0
    high: float = 10.0
    normalise: bool = False
    model: str = ""
    server: str = ""
    temperature: float | None = 0.0
    max_tokens: int | None = 1024
    seed: int | None = None
    token_limit: str = "max_tokens"
    reminders: int = 1
    max_malformed: float = 0.2
    on_refusal: str = "stop"
    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 8
    cache: str = ""

    whole_file = False

    def __post_init__(self) -> None:
        require_one_of("llm", ("pairwise", "pointwise"), mode=self.mode)
        require_one_of("llm", ("all", "adjacent", "baseline"), pairs=self.pairs)
        require_one_of("llm", ("max_tokens", "max_completion_tokens"), token_limit=self.token_limit)
        require_one_of("llm", ("stop", "missing"), on_refusal=self.on_refusal)
        require_range("llm", "[0, inf)", baseline=self.baseline)
        require_range("llm", "(-inf, inf)", low=self.low, high=self.high)
        require_range("llm", "[0, 10]", temperature=self.temperature, reminders=self.reminders)
        require_range("llm", "[1, inf)", max_tokens=self.max_tokens)
        require_range("llm", "[0, 1]", max_malformed=self.max_malformed)
        if self.low >= self.high:
            raise UserError(f"llm.high is {self.high:g}; it must be above low, {self.low:g}")
        self.kind = "preferences" if self.mode == "pairwise" else "scores"
        self._question = llm_verdicts.read_template(self.template, self.mode)
        self._rubric = llm_verdicts.DEFAULT_RUBRIC
        if self.rubric:
            self._rubric = llm_verdicts.read_text(self.rubric, "rubric")
        self._counts: collections.Counter[str] = collections.Counter()
        self.client = ChatClient(
            endpoint_from_environment(self.model),
            ReplyCache(self.cache or default_folder()),
            concurrency=self.concurrency,
            timeout=self.timeout,
            retries=self.retries,
            server=self.server,
        )

    def identity(self) -> Mapping[str, Any]:
        """Returns what the verdicts depend on. How they are fetched (concurrency, retries, cache) is not part of it."""
        names: tuple[str, ...] = ("mode", "temperature", "max_tokens", "seed", "reminders")
        names += ("pairs", "baseline") if self.mode == "pairwise" else ("low", "high", "normalise")
        return {
            "server": self.client.server,
            "model": self.client.endpoint.model,
            "template_sha256": hashlib.sha256(self._question.encode()).hexdigest(),
            "rubric": self._rubric,
            **{name: getattr(self, name) for name in names},
        }

    def check(self, candidates: Candidates) -> None:
        """Raises `UserError` if there is nothing to judge. Asks nothing."""
        sizes = [len(texts) for texts in candidates.responses]
        if self.mode == "pairwise" and max(sizes, default=0) < 2:
            raise UserError(
                f"{candidates.path}: no prompt has two responses to compare; sample more of them, or use llm:mode=pointwise"
            )
        if self.mode == "pairwise" and self.pairs == "baseline":
            for index, size in enumerate(sizes):
                if size <= self.baseline:
                    raise UserError(
                        f"{candidates.path}, prompt {index}: it has {size} responses, so none is number {self.baseline}, the baseline"
                    )

    def counts(self) -> dict[str, int]:
        """Returns what happened so far: requests, verdicts of the different questions, and pairs.

        `first`, `second` and `ties` are verdicts by position; a difference of the first two shows a position bias. `inconsistent` counts
        pairs whose winner changes with the order, and `identical` those that are the same text and were not asked.
        """
        names = ["verdicts", "malformed", "cut", "reminded", "refused"]
        if self.mode == "pairwise":
            names += ["first", "second", "ties", "inconsistent", "identical"]
        return {**self.client.counts(), **{name: self._counts[name] for name in names}}

    def estimate(self, candidates: Candidates) -> dict[str, int]:
        """Returns what judging the candidates will take, without asking anything. Reminders and retries are not included.

        `prompt_tokens` takes four characters for a token. `reply_tokens` is the largest number possible, 0 if max_tokens is None.
        """
        texts = self._texts(candidates)
        new = [text for text in texts if not self.client.is_cached(self._request(text))]
        return {
            "requests": len(texts),
            "cached": len(texts) - len(new),
            "to_ask": len(new),
            "prompt_tokens": sum(map(len, new)) // _CHARACTERS_PER_TOKEN,
            "reply_tokens": len(new) * (self.max_tokens or 0),
        }

    def annotate(self, candidates: Candidates) -> Sequence[np.ndarray]:
        """Judges. Returns P(i preferred to j) as 0, .25, .5, .75 or 1, the mean of both orders, or scores. NaN where a verdict is missing.

        Raises:
          UserError: the server refuses or is silent, or too many verdicts are malformed. Replies so far are in the cache.
        """
        texts = self._texts(candidates)
        verdicts = dict(zip(texts, self.client.map(self._judge, texts, self._tally), strict=True))
        groups = zip(candidates.prompts, candidates.responses, strict=True)
        if self.mode == "pointwise":
            return [
                np.array([self._scaled(verdicts[text].value) for text in self._ratings(*group)])
                for group in groups
            ]
        return [self._preferences(prompt, responses, verdicts) for prompt, responses in groups]

    def _preferences(
        self, prompt: str, responses: Sequence[str], verdicts: Mapping[str, _Verdict]
    ) -> np.ndarray:
        values = np.full((len(responses), len(responses)), math.nan)
        for i, j in self._pairs(len(responses)):
            if responses[i] == responses[j]:
                self._counts["identical"] += 1
                values[i, j] = values[j, i] = 0.5
                continue
            ahead = verdicts[self._comparison(prompt, responses[i], responses[j])].value
            behind = 1 - verdicts[self._comparison(prompt, responses[j], responses[i])].value
            self._counts["inconsistent"] += abs(ahead - behind) == 1
            values[i, j] = (ahead + behind) / 2
            values[j, i] = 1 - values[i, j]
        return values

    def _pairs(self, count: int) -> Iterator[tuple[int, int]]:
        if self.pairs == "adjacent":
            return itertools.pairwise(range(count))
        if self.pairs == "baseline":
            return ((self.baseline, j) for j in range(count) if j != self.baseline < count)
        return itertools.combinations(range(count), 2)

    def _texts(self, candidates: Candidates) -> list[str]:
        """Returns the different questions about the candidates, in order."""
        found: dict[str, None] = {}
        for prompt, responses in zip(candidates.prompts, candidates.responses, strict=True):
            if self.mode == "pointwise":
                found.update(dict.fromkeys(self._ratings(prompt, responses)))
                continue
            for i, j in self._pairs(len(responses)):
                if responses[i] != responses[j]:
                    found[self._comparison(prompt, responses[i], responses[j])] = None
                    found[self._comparison(prompt, responses[j], responses[i])] = None
        return list(found)

    def _comparison(self, prompt: str, first: str, second: str) -> str:
        return self._render(prompt=prompt, response_a=first, response_b=second)

    def _ratings(self, prompt: str, responses: Sequence[str]) -> list[str]:
        return [self._render(prompt=prompt, response=response) for response in responses]

    def _render(self, **texts: str) -> str:
        scale = {"low": f"{self.low:g}", "high": f"{self.high:g}"}
        return llm_verdicts.render(self._question, {**texts, **scale, "rubric": self._rubric})

    def _scaled(self, score: float) -> float:
        return (score - self.low) / (self.high - self.low) if self.normalise else score

    def _request(self, *turns: str) -> dict[str, Any]:
        """Returns a request whose messages are in turn ours and the model's."""
        messages = [
            {"role": role, "content": text}
            for role, text in zip(itertools.cycle(("user", "assistant")), turns, strict=False)
        ]
        limit = {self.token_limit: self.max_tokens}
        return self.client.request(messages, temperature=self.temperature, seed=self.seed, **limit)

    def _judge(self, text: str) -> _Verdict:
        turns = [text]
        try:
            reply = self.client.ask(self._request(*turns))
        except RequestRefusedError as error:
            if self.on_refusal == "missing":
                return _Verdict(math.nan, refused=True, end=str(error))
            raise UserError(
                f"{error}. If it concerns a few requests only (too long, stopped by a filter), on_refusal=missing counts them and "
                "goes on; if it names a setting, see temperature, seed, max_tokens and token_limit"
            ) from None
        reminded = 0
        while self._value(reply) is None and reminded < self.reminders:
            reminded += 1
            reminder = llm_verdicts.REMINDERS[self.mode].replace("{low}", f"{self.low:g}")
            # Servers refuse an empty message.
            turns += [reply.text.strip() or "(nothing)", reminder]
            try:
                reply = self.client.ask(self._request(*turns))
            except RequestRefusedError:
                break
        value = self._value(reply)
        if value is not None:
            return _Verdict(value, reminded=reminded)
        end = reply.text.strip().splitlines()[-1:] or [""]
        cut = reply.finish_reason == "length"
        return _Verdict(math.nan, malformed=True, cut=cut, reminded=reminded, end=end[0][-80:])

    def _value(self, reply: Reply) -> float | None:
        # A reply that was cut may end in a verdict that its author was only weighing.
        if reply.finish_reason == "length":
            return None
        if self.mode == "pairwise":
            return llm_verdicts.parse_pairwise(reply.text)
        return llm_verdicts.parse_score(reply.text, self.low, self.high)

    def _tally(self, verdict: _Verdict) -> None:
        """Counts a verdict, and stops if too many have been malformed or refused."""
        counts = self._counts
        counts["verdicts"] += 1
        for name in ("malformed", "refused", "cut", "reminded"):
            counts[name] += int(getattr(verdict, name))
        if self.mode == "pairwise" and not math.isnan(verdict.value):
            counts[{1.0: "first", 0.0: "second", 0.5: "ties"}[verdict.value]] += 1
        bad = counts["malformed"] + counts["refused"]
        if bad > self.max_malformed * max(_ENOUGH_VERDICTS, counts["verdicts"]):
            cache = self.client.cache
            raise UserError(
                f"llm: {bad} of {counts['verdicts']} verdicts are malformed ({counts['cut']} of them cut by max_tokens) or refused, "
                f"more than max_malformed={self.max_malformed:g}; the last: {verdict.end!r}. Change the template, the model or "
                f"max_tokens; the replies are kept in {cache.folder if cache else 'no cache'}"
            )
