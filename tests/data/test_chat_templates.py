"""Chat templates: what they write, where they are found, that nothing in them runs, and where they are recorded."""

import json

import pytest

from jaxalign.data import cache, layouts, sources
from jaxalign.data.chat_messages import hh_messages
from jaxalign.data.chat_templates import (
    ChatTemplate,
    read_chat_template,
    write_chat_template,
)
from jaxalign.data.record_fields import RecordError
from jaxalign.data.task_cache import TaskCache
from jaxalign.errors import UserError
from jaxalign.inference.prompt_files import read_prompts

pytest.importorskip("jinja2")

USER = {"role": "user", "content": "Who are you?"}
REPLY = {"role": "assistant", "content": "A T5."}
OTHER = {"role": "assistant", "content": "Guess."}
# Of the form of Gemma's, which names the assistant "model" and refuses a system message.
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
ASKED = "<start_of_turn>user\nWho are you?<end_of_turn>\n<start_of_turn>model\n"
CASES = {
    "messages": ("trl", {"messages": [USER, REPLY]}),
    "ShareGPT": (
        "trl",
        {
            "conversations": [
                {"from": "human", "value": "Who are you?"},
                {"from": "gpt", "value": "A T5."},
            ]
        },
    ),
    "completion": ("trl", {"prompt": [USER], "completion": [REPLY], "label": True}),
    "pair": ("trl", {"chosen": [USER, REPLY], "rejected": [USER, OTHER]}),
    "HALOs": ("halos", {"prompt": [USER], "output": [REPLY], "label": 1}),
    "HALOs, pair": (
        "halos",
        {"prompt": [USER], "output_A": [OTHER], "output_B": [REPLY], "label": 0},
    ),
    "OpenAI": (
        "openai",
        {
            "input": {"messages": [USER]},
            "preferred_output": [REPLY],
            "non_preferred_output": [OTHER],
        },
    ),
    "HH": (
        "hh",
        {
            "chosen": "\n\nHuman: Who are you?\n\nAssistant: A T5.",
            "rejected": "\n\nHuman: Who are you?\n\nAssistant: Guess.",
        },
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_layout_of_messages_is_written_by_the_template(name):
    layout, obj = CASES[name]
    found = layouts.to_record_fields(obj, layout, {}, ChatTemplate(GEMMA))
    answer = found.get("response", found.get("chosen"))
    assert (found["prompt"], answer) == (ASKED, "A T5.<end_of_turn>")
    if "rejected" in found:
        assert found["rejected"] == "Guess.<end_of_turn>"


def test_the_end_of_text_that_a_template_writes_is_left_to_the_vocabulary():
    template = ChatTemplate(
        "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] + eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    assert template.prompt([USER]) == "<|user|>\nWho are you?</s>\n<|assistant|>\n"
    assert template.response([USER], [REPLY]) == "A T5."


def test_text_is_no_message_and_stays_as_it_is():
    obj = {"prompt": "p", "chosen": "a", "rejected": "b"}
    assert layouts.to_record_fields(obj, "trl", {}, ChatTemplate(GEMMA)) == obj


def test_dialogues_of_hh_become_messages():
    dialogue = "Human: Hi\n\nAssistant: Hello\n\nHuman: Who?\n\nAssistant:"
    assert hh_messages(dialogue) == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Who?"},
    ]
    assert hh_messages("Once. \n\nHuman: Hi\n\nAssistant:") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GEMMA, "System role not supported"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% include '/etc/passwd' %}", "loader"),
        ("{{ 'a' * 10**9 }}", "a power or a product"),
        ("{{ ('a' * 4000000) * 4000000 }}", "a power or a product"),
        ("{% if add_generation_prompt %}x{% endif %}{{ messages | length }}", "otherwise when an"),
        ("{{ '%030000000d' % 1 }}", "a format with %"),
        ("{{ 'a' | center(30000000) }}", "No filter named 'center'"),
        ("{{ lipsum() }}", "is undefined"),
        ("{{ nothing.at.all }}", "is undefined"),
    ],
)
def test_a_template_that_refuses_or_would_do_something_else_rejects_the_record(text, message):
    template = ChatTemplate(text, path="mine.jinja")
    system = {"role": "system", "content": "Be brief."}
    with pytest.raises(RecordError, match=rf"the chat template mine\.jinja .*{message}"):
        template.response([system, USER], [REPLY])


def test_a_template_is_found_in_a_file_or_in_a_tokenizer_s_folder(tmp_path):
    (tmp_path / "mine.jinja").write_text(GEMMA)
    assert read_chat_template(str(tmp_path / "mine.jinja")) == ChatTemplate(GEMMA)
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    with pytest.raises(UserError, match=r"has no chat template .*give a Jinja file"):
        read_chat_template(str(folder))
    config = {"chat_template": GEMMA, "eos_token": {"content": "<eos>"}, "bos_token": "<bos>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    found = read_chat_template(str(folder))
    assert (found.text, found.tokens["eos_token"], found.tokens["bos_token"]) == (
        GEMMA,
        "<eos>",
        "",
    )
    assert read_chat_template(str(folder / "tokenizer_config.json")) == found
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert read_chat_template(str(folder)).text == "{{ messages }}"
    config["chat_template"] = [{"name": "tool_use", "template": "x"}]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="the text of a default template"):
        read_chat_template(str(folder / "tokenizer_config.json"))


def test_the_template_of_a_run_writes_the_prompts_of_generate(tmp_path, write_lines):
    template = ChatTemplate(GEMMA, {**ChatTemplate("").tokens, "eos_token": "<eos>"})
    write_chat_template(tmp_path, template.describe())
    assert read_chat_template(str(tmp_path)) == template
    path = write_lines(
        [{"prompt": [USER]}, {"messages": [USER, REPLY]}, {"messages": [USER]}, {"prompt": "text"}]
    )
    found = read_prompts(path, template=template)
    assert (found.texts, found.rendered) == ([ASKED, ASKED, ASKED, "text"], 3)
    assert read_prompts(path).texts[0] == "user: Who are you?"
    system = [{"prompt": [{"role": "system", "content": "x"}]}]
    with pytest.raises(UserError, match=r"data\.jsonl:1: .* System role not supported"):
        read_prompts(write_lines(system), template=template)


def test_a_malformed_or_missing_template_is_named_with_its_line(tmp_path):
    (tmp_path / "bad.jinja").write_text("{% for m in messages %}\n{{ m[ }}")
    with pytest.raises(UserError, match=r"bad\.jinja:2: not a Jinja template"):
        read_chat_template(str(tmp_path / "bad.jinja"))
    with pytest.raises(UserError, match="does not exist; give a Jinja file"):
        read_chat_template(str(tmp_path / "nothing.jinja"))


def test_the_template_belongs_to_the_cache_and_its_fingerprint(tmp_path, write_lines):
    path = write_lines(
        [{"messages": [USER | {"content": f"Number {i}?"}, REPLY]} for i in range(30)]
    )
    (tmp_path / "a.jinja").write_text(GEMMA)
    (tmp_path / "b.jinja").write_text(GEMMA.replace("model", "assistant"))

    def make(name, **options):
        folder = str(tmp_path / name)
        cache.cache(
            "t", folder, train_file=path, kind="seq2seq", layout="trl", splits=["train"], **options
        )
        return TaskCache(folder).metadata

    plain = make("plain")
    first = make("first", chat_template=str(tmp_path / "a.jinja"))
    second = make("second", chat_template=str(tmp_path / "b.jinja"))
    assert len({found.fingerprint for found in (plain, first, second)}) == 3
    assert len({found.request for found in (plain, first, second)}) == 3
    assert (plain.chat_template, first.chat_template["text"]) == (None, GEMMA)
    # A copy of the template elsewhere is the same template.
    (tmp_path / "c.jinja").write_text(GEMMA)
    source = {"train": path}, "seq2seq", "trl"
    copies = [read_chat_template(str(tmp_path / name)) for name in ("a.jinja", "c.jinja")]
    prints = {sources.JsonlSource(*source, chat_template=each).fingerprint() for each in copies}
    assert len(prints) == 1
