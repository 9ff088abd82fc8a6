"""A client of an OpenAI-compatible endpoint `/chat/completions`, with retries, a limit of concurrency and a cache."""

from __future__ import annotations

import collections
import json
import queue
import random
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from jaxalign.annotation.chat_cache import Reply, ReplyCache, digest_of
from jaxalign.annotation.chat_endpoint import Endpoint
from jaxalign.annotation.chat_http import Connection, PassingError
from jaxalign.errors import UserError, require_range

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_FIRST_WAIT, _LONGEST_WAIT, _LONGEST_RETRY_AFTER = 1.0, 60.0, 120.0


class _StoppedError(Exception):
    """Another request failed for good, so this one is given up."""


class ChatClient:
    """Asks a model. Its methods may be called by several threads.

    Args:
      endpoint: the server, the model and the key.
      cache: where replies are kept; None to keep none.
      concurrency: the number of requests that are under way at one time in `map`.
      timeout: seconds for one try of a request, from the connection to the last byte.
      retries: how often a request is tried again after 408, 425, 429, a status from 500, a timeout or a broken connection.
      max_reply_bytes: longer replies are refused.
      server: the name of the server in the cache, for one that moves between ports or machines; empty for its URL.
      wait: waits for a number of seconds; None to sleep until another request fails.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        cache: ReplyCache | None = None,
        *,
        concurrency: int = 8,
        timeout: float = 120.0,
        retries: int = 8,
        max_reply_bytes: int = 4 << 20,
        server: str = "",
        wait: Callable[[float], Any] | None = None,
    ) -> None:
        require_range("llm", "[1, 256]", concurrency=concurrency)
        require_range("llm", "(0, 86400]", timeout=timeout)
        require_range("llm", "[0, 100]", retries=retries)
        self.endpoint, self.cache = endpoint, cache
        self.server = server or endpoint.base_url
        self._concurrency, self._retries = concurrency, retries
        self._connection = Connection(endpoint, timeout=timeout, max_reply_bytes=max_reply_bytes)
        self._stopped = threading.Event()
        self._wait = wait or self._stopped.wait
        self._lock = threading.Lock()
        self._counts: collections.Counter[str] = collections.Counter()
        self._told: set[str] = set()

    def counts(self) -> dict[str, int]:
        """Returns how many requests were asked, found in the cache and retried, and the tokens that the server counted."""
        names = ("asked", "cached", "retried", "prompt_tokens", "reply_tokens")
        with self._lock:
            return {name: self._counts[name] for name in names}

    def request(self, messages: Sequence[Mapping[str, str]], **settings: Any) -> dict[str, Any]:
        """Returns the body of a request. Settings that are None are not sent."""
        given = {name: value for name, value in settings.items() if value is not None}
        return {"model": self.endpoint.model, "messages": list(messages), **given}

    def is_cached(self, request: Mapping[str, Any]) -> bool:
        """Returns whether the reply to a request is known."""
        return self.cache is not None and self.cache.get(self._digest(request)) is not None

    def ask(self, request: Mapping[str, Any]) -> Reply:
        """Returns the reply to a request, from the cache if it is there.

        Raises:
          RequestRefusedError: the server answers 400, 413 or 422.
          UserError: the server refuses everything (401, 403, 404, a redirect), or it did not answer after the retries.
        """
        digest = self._digest(request)
        found = self.cache.get(digest) if self.cache is not None else None
        if found is not None:
            self._count(cached=1)
            return found
        reply = self._ask_server(json.dumps(request).encode())
        self._count(asked=1, prompt_tokens=reply.prompt_tokens, reply_tokens=reply.reply_tokens)
        if self.cache is not None:
            self.cache.put(digest, request, reply)
        return reply

    def map(
        self,
        function: Callable[[_Item], _Result],
        items: Sequence[_Item],
        check: Callable[[_Result], None] = lambda result: None,
    ) -> list[_Result]:
        """Returns the function of every item, computed by as many threads as the limit of concurrency.

        Args:
          function: asks the model.
          items: its arguments.
          check: is called with each result, in the order of the items. If it raises, no further item is begun.

        Raises:
          Exception: the first error of the function or of `check`. Requests that are under way end first, and their replies are kept.
        """
        todo: queue.SimpleQueue[tuple[int, _Item]] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[int, Any, BaseException | None]] = queue.SimpleQueue()
        for pair in enumerate(items):
            todo.put(pair)

        def work() -> None:
            while not self._stopped.is_set():
                try:
                    index, item = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((index, function(item), None))
                except _StoppedError:
                    return
                except BaseException as error:
                    done.put((index, None, error))

        # Daemons, so that Ctrl-C does not wait for the server.
        count = min(self._concurrency, len(items))
        threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        results: dict[int, _Result] = {}
        checked = 0
        try:
            while checked < len(items):
                index, result, error = done.get()
                if error is not None:
                    raise error
                results[index] = result
                while checked in results:
                    check(results[checked])
                    checked += 1
        except BaseException as error:
            self._stopped.set()
            if isinstance(error, Exception):
                for thread in threads:
                    thread.join()
                self._stopped.clear()
            raise
        return [results[index] for index in range(len(items))]

    def _digest(self, request: Mapping[str, Any]) -> str:
        return digest_of({"server": self.server, **request})

    def _count(self, **amounts: int) -> None:
        with self._lock:
            self._counts.update(amounts)

    def _ask_server(self, body: bytes) -> Reply:
        attempt = 0
        while True:
            attempt += 1
            try:
                return self._connection.send(body)
            except PassingError as problem:
                if attempt > self._retries or attempt == problem.tries:
                    raise UserError(
                        f"{self.endpoint.url} gave no usable answer in {attempt} tries; the last: {problem}. "
                        f"Is the server running and the URL right? {self._kept()}"
                    ) from None
                # Random, so that requests that failed together do not come back together.
                delay = min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** (attempt - 1)) * random.uniform(
                    0.5, 1.0
                )
                delay = max(delay, min(problem.wait, _LONGEST_RETRY_AFTER))
                self._tell(str(problem), delay)
                self._count(retried=1)
            self._wait(delay)
            if self._stopped.is_set():
                raise _StoppedError

    def _kept(self) -> str:
        if self.cache is None:
            return ""
        return f"Replies so far are kept in {self.cache.folder}, so the same command goes on from there"

    def _tell(self, problem: str, delay: float) -> None:
        kind = problem.split(" ", 1)[0]
        with self._lock:
            new = kind not in self._told
            self._told.add(kind)
        if new:
            print(
                f"llm: {self.endpoint.url}: {problem}; trying again in {delay:.0f} s (told once, counted as retried)",
                file=sys.stderr,
            )
