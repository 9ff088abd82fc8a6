"""The client of chat endpoints against a real server that fails in every way, and the cache of its replies."""

import html
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.parse

import pytest

from jaxalign.annotation.chat_cache import Reply, ReplyCache
from jaxalign.annotation.chat_client import ChatClient
from jaxalign.annotation.chat_endpoint import Endpoint, Key, endpoint_from_environment
from jaxalign.annotation.chat_http import RequestRefusedError
from jaxalign.errors import UserError
from tests.fixtures.chat_server import Answer, completion, failure, serving

KEY = 'sk-secret/7"\\3f&09abc'
GOOD = completion("fine")


def in_turn(*answers):
    """Answers one after the other, and the last for ever."""
    return lambda request, number: answers[min(number, len(answers)) - 1]


def client_of(server, cache=None, key="", waits=None, **settings):
    """A client whose pauses take no time; `waits` collects them."""
    record = [] if waits is None else waits
    return ChatClient(
        Endpoint(server.url, "m", Key(key), "the key is that of X"),
        cache,
        **{"timeout": 60.0, "wait": record.append, **settings},
    )


def question(client, text="hello", **settings):
    return client.request([{"role": "user", "content": text}], **settings)


def failing(client, text="hello"):
    """The message of the error of a request, which is one line."""
    with pytest.raises(UserError) as caught:
        client.ask(question(client, text))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_request_says_model_messages_and_settings_and_carries_the_key():
    with serving(in_turn(GOOD)) as server:
        client = client_of(server, key=KEY)
        reply = client.ask(question(client, "hé", temperature=0.5, seed=None))
    assert reply == Reply("fine", "stop", 10, 2)
    assert server.paths == ["/v1/chat/completions"]
    assert server.requests == [
        {"model": "m", "messages": [{"role": "user", "content": "hé"}], "temperature": 0.5}
    ]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert client.counts() == {
        "asked": 1,
        "cached": 0,
        "retried": 0,
        "prompt_tokens": 10,
        "reply_tokens": 2,
    }


def test_without_a_key_no_authorization_is_sent():
    with serving(in_turn(GOOD)) as server:
        client = client_of(server)
        client.ask(question(client))
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize(
    "trouble",
    [
        failure(429),
        failure(408),
        failure(500),
        failure(503),
        failure(529),
        Answer(reset=True),
        Answer(body=GOOD.body, cut=True),
        Answer(status=500, body=b"x", cut=True),
        Answer(body=b"<html>please wait</html>"),
        Answer(body=b'{"choices": []}'),
        Answer(body=b"[" * 100_000),
        Answer(body=b'{"choices": [{"message": {"content": 7}}]}'),
    ],
    ids=lambda answer: f"{answer.status}{(answer.reset and 'reset') or ''}{answer.body[:9]}",
)
def test_a_failure_that_may_pass_is_tried_again(trouble, capsys):
    waits = []
    with serving(in_turn(trouble, trouble, GOOD)) as server:
        client = client_of(server, waits=waits)
        assert client.ask(question(client)).text == "fine"
    assert len(server.requests) == 3 and len(waits) == 2
    assert client.counts()["retried"] == 2
    assert capsys.readouterr().err.count("trying again") == 1


def test_a_silent_server_is_tried_again():
    release = threading.Event()
    silent = Answer(body=GOOD.body, hold=release)
    with serving(in_turn(silent, GOOD)) as server:
        # On a busy machine, good answers may come too late too.
        client = client_of(server, timeout=0.1, retries=100)
        assert client.ask(question(client)).text == "fine"
        release.set()
    assert client.counts()["retried"] >= 1


def test_pauses_grow_to_a_bound_and_differ():
    waits = []
    with serving(in_turn(failure(500))) as server:
        message = failing(client_of(server, waits=waits, retries=9))
    assert "in 10 tries" in message and "500" in message and server.url in message
    steps = [min(60, 2**n) for n in range(9)]
    assert all(step / 2 <= waited <= step for step, waited in zip(steps, waits, strict=True))
    assert len({waited / step for step, waited in zip(steps, waits, strict=True)}) > 5


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [
        ("7", 7, 7),
        ("100000", 120, 120),
        ("Wed, 01 Jan 2200 00:00:00 GMT", 120, 120),
        ("Wed, 01 Jan 2020 00:00:00 GMT", 0.5, 1),
        ("soon", 0.5, 1),
        ("nan", 0.5, 1),
        ("-3", 0.5, 1),
    ],
)
def test_retry_after_is_honoured_within_a_bound(header, low, high):
    waits = []
    with serving(in_turn(failure(429, headers={"Retry-After": header}), GOOD)) as server:
        client = client_of(server, waits=waits)
        client.ask(question(client))
    assert low <= waits[0] <= high


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (failure(401, "bad key"), ["401 bad key", "key is wrong or missing", "that of X"]),
        (failure(403), ["403", "may not use"]),
        (failure(404), ["404", "/v1", "'m'"]),
        (failure(402), ["402", "credit"]),
        (failure(400, "too\nlong"), ["400 too long"]),
        (Answer(405, b"nothing\x00 here"), ["405 nothing? here"]),
        (failure(429, "pay", code="insufficient_quota"), ["429 pay"]),
        (Answer(307, headers={"Location": "http://elsewhere/"}), ["307", "http://elsewhere/"]),
    ],
    ids=lambda value: str(getattr(value, "status", "")),
)
def test_a_failure_that_will_not_pass_is_told_at_once(answer, words):
    with serving(in_turn(answer)) as server:
        message = failing(client_of(server))
    assert len(server.requests) == 1
    assert all(word in message for word in [*words, server.url]), message


def test_a_refusal_of_one_request_is_an_error_of_its_own():
    with serving(in_turn(failure(413))) as server:
        client = client_of(server)
        with pytest.raises(RequestRefusedError):
            client.ask(question(client))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_carries_nothing_to_another_server(status):
    with serving(in_turn(GOOD)) as other:
        target = Answer(status, headers={"Location": f"{other.url}/chat/completions"})
        with serving(in_turn(target)) as server:
            failing(client_of(server, key=KEY))
    assert other.requests == []


def test_a_huge_answer_is_refused():
    with serving(in_turn(Answer(body=b"x" * 300_000))) as server:
        message = failing(client_of(server, max_reply_bytes=100_000))
    assert "more than 100000 bytes" in message


def test_an_unreachable_server_is_told():
    with serving(in_turn(GOOD)) as server:
        pass
    message = failing(client_of(server, retries=2))
    assert "in 3 tries" in message and "refused" in message and server.url in message


@pytest.mark.parametrize("status", [200, 307, 400, 401, 404, 429, 500])
@pytest.mark.parametrize("form", ["plain", "json", "escaped", "quoted", "html"])
def test_a_key_that_the_server_echoes_goes_nowhere(status, form, tmp_path, capsys):
    said = {
        "plain": f"your key {KEY} is".encode(),
        "json": json.dumps({"error": {"message": f"your key {KEY} is"}}).encode(),
        "escaped": ('{"error": "' + "".join(f"\\u{ord(c):04x}" for c in KEY) + '"}').encode(),
        "html": f"<p>{html.escape(KEY)}</p>".encode(),
        "quoted": urllib.parse.quote(KEY, safe="").encode(),
    }[form]
    header = {"Location": f"http://x/?key={urllib.parse.quote(KEY, safe='')}"}
    with serving(in_turn(Answer(status, said, header))) as server:
        message = failing(client_of(server, ReplyCache(tmp_path), key=KEY, retries=1))
    shown = message + "".join(capsys.readouterr())
    assert "key removed" in shown
    assert "secret" not in shown and "09abc" not in shown and "0039" not in shown


def test_a_key_in_a_reply_is_not_stored(tmp_path):
    with serving(in_turn(completion(f"you sent {KEY}", finish_reason=KEY))) as server:
        client = client_of(server, ReplyCache(tmp_path), key=KEY)
        assert client.ask(question(client)).text == "you sent [key removed]"
    stored = "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    assert "hello" in stored and "09abc" not in stored
    assert "09abc" not in f"{client.endpoint!r} {vars(client)} {client.endpoint.key}"


def test_a_placeholder_for_a_key_does_not_change_replies():
    with serving(in_turn(completion("EMPTY [[A]]"))) as server:
        client = client_of(server, key="A")
        assert client.ask(question(client)).text == "EMPTY [[A]]"


def test_as_many_requests_are_under_way_as_the_limit_says():
    meeting = threading.Barrier(3)
    with serving(lambda request, number: Answer(body=GOOD.body, hold=meeting)) as server:
        client = client_of(server, concurrency=3)
        texts = [str(number) for number in range(9)]
        replies = client.map(lambda text: client.ask(question(client, text)).text, texts)
    assert replies == ["fine"] * 9
    # Three meet at a time, or the barrier would break; never four.
    assert server.most == 3 and not meeting.broken


def test_results_keep_the_order_of_the_items():
    def slow_first(request, number):
        text = request["messages"][0]["content"]
        return Answer(body=completion(text).body, hold=others if text == "0" else None)

    others = threading.Barrier(2)
    seen = []
    with serving(slow_first) as server:
        client = client_of(server, concurrency=2)

        def ask(text):
            if text == "4":
                others.wait(60)
            return client.ask(question(client, text)).text

        assert client.map(ask, list("01234"), seen.append) == list("01234")
    assert seen == list("01234")


def test_the_first_error_stops_the_rest_and_keeps_what_is_under_way(tmp_path):
    failed, cache = threading.Event(), ReplyCache(tmp_path)

    def respond(request, number):
        if request["messages"][0]["content"] == "bad":
            failed.set()
            return failure(401)
        return Answer(body=GOOD.body, hold=failed)

    with serving(respond) as server:
        client = client_of(server, cache, concurrency=4)
        items = ["a", "b", "bad", "c", *map(str, range(40))]
        with pytest.raises(UserError, match="401"):
            client.map(lambda text: client.ask(question(client, text)), items)
        assert len(server.requests) < 30
        assert all(client.is_cached(question(client, text)) for text in "abc")
        # The client can be used again.
        assert client.map(lambda text: client.ask(question(client, text)).text, ["a"]) == ["fine"]


def test_a_pause_ends_when_another_request_fails():
    paused = threading.Event()

    def respond(request, number):
        if request["messages"][0]["content"] == "busy":
            return failure(429, headers={"Retry-After": "100"})
        return Answer(401, hold=paused)

    with serving(respond) as server:
        client = client_of(server, concurrency=2, wait=None)
        sleep = client._wait
        client._wait = lambda seconds: (paused.set(), sleep(seconds))
        with pytest.raises(UserError, match="401"):
            client.map(lambda text: client.ask(question(client, text)), ["busy", "bad"])
    # The paused request was not sent again.
    assert len(server.requests) == 2


def test_a_restart_asks_nothing_twice(tmp_path):
    with serving(in_turn(GOOD)) as server:
        for _ in range(2):
            client = client_of(server, ReplyCache(tmp_path))
            assert client.ask(question(client)).text == "fine"
    assert len(server.requests) == 1 and client.counts()["cached"] == 1


def test_everything_that_matters_is_part_of_the_key_of_the_cache(tmp_path):
    with serving(in_turn(GOOD)) as server, serving(in_turn(GOOD)) as other:
        client = client_of(server, ReplyCache(tmp_path))
        base = question(client, "x", temperature=0, seed=1)
        client.ask(base)
        for change in (
            {"model": "n"},
            {"temperature": 1},
            {"seed": 2},
            {"max_tokens": 5},
            {"messages": [{"role": "system", "content": "x"}]},
        ):
            client.ask({**base, **change})
        client_of(other, ReplyCache(tmp_path)).ask(base)
    assert len(server.requests) == 6 and len(other.requests) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("fine", "fake"),
        lambda text: "[" * 100_000,
        lambda text: "[]",
        lambda text: '{"reply": 3, "checksum": 3}',
    ],
)
def test_a_damaged_entry_is_asked_again(tmp_path, damage):
    with serving(in_turn(GOOD)) as server:
        client = client_of(server, ReplyCache(tmp_path))
        client.ask(question(client))
        (entry,) = tmp_path.rglob("*.json")
        entry.write_text(damage(entry.read_text()))
        for _ in range(2):
            assert client.ask(question(client)).text == "fine"
    assert len(server.requests) == 2


def test_the_entry_of_another_request_is_not_taken(tmp_path):
    cache = ReplyCache(tmp_path)
    cache.put("aa1", {}, Reply("x"))
    cache.path("aa2").write_bytes(cache.path("aa1").read_bytes())
    assert cache.get("aa1") == Reply("x") and cache.get("aa2") is None


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cache=FOLDER"):
        ReplyCache(tmp_path / "file")
    cache = ReplyCache(tmp_path / "cache")
    (tmp_path / "cache" / "aa").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        cache.put("aa1", {}, Reply("x"))


KILLED = """
import sys
from jaxalign.annotation.chat_cache import ReplyCache
from jaxalign.annotation.chat_client import ChatClient
from jaxalign.annotation.chat_endpoint import Endpoint
client = ChatClient(Endpoint(sys.argv[1], "m"), ReplyCache(sys.argv[2]), concurrency=2)
client.map(lambda text: client.ask(client.request([{"role": "user", "content": text}])), list("abcdefgh"))
"""


def test_after_a_kill_the_finished_requests_are_not_asked_again(tmp_path):
    reached, release = threading.Event(), threading.Event()

    def respond(request, number):
        if number == 6:
            reached.set()
        return Answer(body=GOOD.body, hold=release if number in (5, 6) else None)

    with serving(respond) as server:
        process = subprocess.Popen([sys.executable, "-c", KILLED, server.url, str(tmp_path)])
        assert reached.wait(60)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        release.set()
        client = client_of(server, ReplyCache(tmp_path))
        client.map(lambda text: client.ask(question(client, text)), list("abcdefgh"))
    # Two were under way.
    assert len(server.requests) == 6 + 4
    assert client.counts()["cached"] == 4


def test_which_variable_wins():
    ours = {
        "JAXALIGN_LLM_BASE_URL": "https://ours/v1/",
        "JAXALIGN_LLM_MODEL": "ours",
        "JAXALIGN_LLM_API_KEY": "our-own-key",
    }
    theirs = {"OPENAI_BASE_URL": "https://theirs/v1", "OPENAI_API_KEY": "their-own-key"}
    both = endpoint_from_environment(environment={**ours, **theirs})
    assert (both.base_url, both.model) == ("https://ours/v1", "ours")
    assert both.key.header() == "Bearer our-own-key"
    openai = endpoint_from_environment("given", theirs)
    assert (openai.url, openai.model) == ("https://theirs/v1/chat/completions", "given")
    assert openai.key.header() == "Bearer their-own-key"


def test_the_key_of_openai_does_not_reach_another_server():
    environment = {
        "JAXALIGN_LLM_BASE_URL": "https://ours/v1",
        "OPENAI_BASE_URL": "https://theirs/v1",
        "OPENAI_API_KEY": "their-own-key",
    }
    endpoint = endpoint_from_environment("m", environment)
    assert not endpoint.key and "OPENAI_BASE_URL only" in endpoint.key_source


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, "JAXALIGN_LLM_BASE_URL"),
        ({"OPENAI_BASE_URL": "https://h/v1", "model": ""}, "JAXALIGN_LLM_MODEL"),
        ({"OPENAI_BASE_URL": "h/v1"}, "https://host/v1"),
        ({"OPENAI_BASE_URL": "file:///etc/passwd"}, "https://host/v1"),
        ({"OPENAI_BASE_URL": "https://[h/v1"}, "malformed"),
        ({"OPENAI_BASE_URL": "https://h:x/v1"}, "malformed"),
        ({"OPENAI_BASE_URL": "https://u:sesame@h/v1"}, "password"),
        ({"OPENAI_BASE_URL": "https://h/v1?key=sesame"}, "query"),
        ({"OPENAI_BASE_URL": "https://h/v 1"}, "space"),
        ({"OPENAI_BASE_URL": "http://h/v1", "OPENAI_API_KEY": "sesame-open"}, "unencrypted"),
        ({"OPENAI_BASE_URL": "https://h/v1", "OPENAI_API_KEY": "sesame\nopen"}, "OPENAI_API_KEY"),
        ({"OPENAI_BASE_URL": "https://h/v1", "OPENAI_API_KEY": "sesame\u20ac"}, "OPENAI_API_KEY"),
    ],
)
def test_what_the_environment_says_wrongly_is_told_without_secrets(environment, words):
    environment = dict(environment)
    with pytest.raises(UserError) as caught:
        endpoint_from_environment(environment.pop("model", "m"), environment)
    assert words in str(caught.value) and "sesame" not in str(caught.value)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.3.2.1", "[::1]"])
def test_a_key_may_go_unencrypted_to_this_machine(host):
    assert Endpoint(f"http://{host}:8000/v1", "m", Key("a-long-key")).is_local


def test_a_proxy_of_the_environment_does_not_see_requests_to_this_machine(monkeypatch):
    with serving(in_turn(failure(500))) as proxy, serving(in_turn(GOOD)) as server:
        monkeypatch.setenv("http_proxy", proxy.url)
        client = client_of(server, key=KEY)
        assert client.ask(question(client)).text == "fine"
    assert proxy.requests == []
