"""Templates of LLM judges, and what counts as a verdict."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.annotation import llm_verdicts
from jaxalign.annotation.self_judge import read_template
from jaxalign.errors import UserError


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("[[A]]", 1),
        ("[[B]]", 0),
        ("[[tie]]", 0.5),
        ("[[C]]", 0.5),
        ("[[a]]", 1),
        ("[[TIE]]", 0.5),
        ("[[ B ]]", 0),
        ("Because.\n\n**[[A]]**\n\n", 1),
        ("Because.\nVerdict: [[B]]", 0),
        ("Because.\n**Final verdict:** [[B]].", 0),
        ("# My answer is: `[[A]]`", 1),
        ("I first thought [[A]].\n[[B]]", 0),
        ("<think>\n[[A]]\n</think>\n[[B]]", 0),
        ("", None),
        ("  \n ", None),
        ("A", None),
        ("[A]", None),
        ("[[D]]", None),
        ("[[7]]", None),
        ("[[A]] [[B]]", None),
        ("[[A]] or [[A]]", None),
        ("not [[A]]", None),
        ("The better one is [[A]]", None),
        ("[[A]]\nThat is all.", None),
        ("[[A]", None),
        ("[[AB]]", None),
        ("[[A/B]]", None),
        ("[[Ａ]]", None),
    ],
)
def test_only_a_last_line_that_is_a_verdict_counts(reply, value):
    assert llm_verdicts.parse_pairwise(reply) == value


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("[[7]]", 7),
        ("Good.\nRating: [[7.5]]", 7.5),
        ("[[1]]", 1),
        ("[[10]]", 10),
        ("[[0]]", None),
        ("[[11]]", None),
        ("[[-3]]", None),
        ("[[7/10]]", None),
        ("[[1e1]]", None),
        ("[[nan]]", None),
        ("[[inf]]", None),
        ("[[A]]", None),
        ("7", None),
        ("[[7]] to [[8]]", None),
        ("[[７]]", None),
    ],
)
def test_only_a_number_on_the_scale_counts(reply, value):
    assert llm_verdicts.parse_score(reply, 1, 10) == value


PROMPT_AND_RESPONSES = st.text(alphabet="{}[]$%\\.abprompt_rubic\n", max_size=40)


@settings(max_examples=20)
@given(PROMPT_AND_RESPONSES, PROMPT_AND_RESPONSES, PROMPT_AND_RESPONSES)
def test_texts_are_inserted_as_they_are(prompt, first, second):
    values = {"prompt": prompt, "response_a": first, "response_b": second, "rubric": "R"}
    template = "{response_a}|{prompt}|{response_b}|{rubric}"
    assert llm_verdicts.render(template, values) == f"{first}|{prompt}|{second}|R"


def test_a_text_cannot_reach_attributes_or_other_fields():
    values = {"prompt": "{rubric} {mark} {prompt.__class__} %s $rubric", "rubric": "R"}
    assert llm_verdicts.render("{prompt}", values) == values["prompt"]


def test_the_mark_is_the_same_for_the_same_texts_and_no_other():
    def mark(**values):
        return llm_verdicts.render("{mark}", values)

    assert mark(prompt="a", response="b") == mark(response="b", prompt="a")
    assert len({mark(prompt="a"), mark(prompt="b"), mark(response="a")}) == 3


@pytest.mark.parametrize("mode", ["pairwise", "pointwise"])
def test_the_templates_of_the_package_hold_all_fields(mode):
    template = llm_verdicts.read_template("", mode)
    fields = {name: f"<{name}>" for name in (*llm_verdicts.REQUIRED[mode], "rubric", "low", "high")}
    rendered = llm_verdicts.render(template, fields)
    used = [name for name in fields if f"{{{name}}}" in template]
    assert all(f"<{name}>" in rendered for name in used) and "rubric" in used
    assert "{" not in rendered


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{prompt} {response_a}", "{response_b}"),
        (b"{prompt} {response_a} {response_b} {rubrik}", "{rubrik}"),
        (b"{prompt} {response_a} {response_b} {low}", "{low}"),
        (b" \n", "empty"),
        (b"\xff", "not UTF-8"),
        (None, "cannot be read"),
    ],
)
def test_a_template_that_cannot_be_used_is_told(tmp_path, content, words):
    path = tmp_path / "t.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        llm_verdicts.read_template(str(path), "pairwise")
    assert words in str(caught.value) and "t.txt" in str(caught.value)


def test_braces_that_are_no_fields_stay(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text('{prompt} {response} {"verdict": 1} {} {A}')
    template = llm_verdicts.read_template(str(path), "pointwise")
    filled = llm_verdicts.render(template, {"prompt": "p", "response": "r"})
    assert filled == 'p r {"verdict": 1} {} {A}'


def test_a_byte_order_mark_is_no_part_of_a_template(tmp_path):
    path = tmp_path / "template.txt"
    path.write_text("{prompt}|{first}|{second}", encoding="utf-8-sig")
    assert llm_verdicts.read_text(path, "template") == path.read_text(encoding="utf-8-sig")
    assert read_template(str(path)) == path.read_text(encoding="utf-8-sig")
