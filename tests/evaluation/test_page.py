"""The report as one HTML page: it says what the files say, no text of data becomes HTML, and nothing is loaded from elsewhere."""

import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from jaxalign.errors import UserError
from jaxalign.evaluation.page import page
from jaxalign.evaluation.page.elements import json_block
from jaxalign.evaluation.report import report

FOLDER = Path(page.__file__).parent
HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)> & <!-- ",
    "emoji 🐼 and a halved one \ud83d",
    "שלום عالم \u2028 \u0000 $x_1$ \r\n\t end",
]


class Reader(html.parser.HTMLParser):
    """Elements, their attributes, and the texts inside `data` and JSON elements."""

    def __init__(self, text):
        super().__init__()
        self.names, self.attributes, self.json, self.numbers = [], [], [], []
        self._open = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.names.append(tag)
        self.attributes += [(tag, key, value) for key, value in attrs]
        self._open = tag if tag == "script" and "json" in attributes.get("type", "") else None
        if tag == "data":
            self.numbers.append(float(attributes["value"]))

    def handle_data(self, data):
        if self._open:
            self.json.append(json.loads(data))


def interval(mean, bounds=True, count=12):
    low, high = (mean - 0.25, mean + 0.25) if bounds else (None, None)
    return {"mean": mean, "low": low, "high": high, "count": count}


def ranking(value):
    ends = {f"{name}_{end}": None for name in ("spearman", "auc") for end in ("low", "high")}
    return {
        "spearman": value,
        "auc": value / 2,
        "auc_undefined": 0,
        "within_prompt_spearman": 0.125,
        "pairwise_accuracy": 0.375,
        "responses": 24,
        "good": 4,
        "prompts": 12,
        "pairs": 11,
        **ends,
    }


def write_evaluation(folder, *, bounds=True, names=("sft", "dro"), count=12, seed=0, judges=2):
    """Writes an evaluation by judges of different scales, with texts that want to be HTML; returns its evaluation.json."""
    panel = {"length": 1.0, "critic <i>": 100.0} if judges == 2 else {"length": 1.0}
    policies, scores = {}, {}
    for place, name in enumerate(names):
        for judge, unit in panel.items():
            scores[judge, name] = [unit * ((i * (place + 3) + seed) % 5) for i in range(count)]
        policies[name] = {
            "checkpoint": f"runs/{name.strip('<b>')}",
            "step": 10 * (place + 1),
            "objective": "dro_v",
            "is_reference": place == 0,
            "length": 3.5 + place,
            "unfinished": 0.0625,
            "rewards": {
                judge: interval(sum(scores[judge, name]) / count, bounds, count) for judge in panel
            },
            "kl": {"mean": 0.0 + place, "standard_error": 0.0625 * place, "count": count},
            "ranking": {"tau * log-ratio": ranking(0.5625 + place)},
        }
    settings = {
        "prompts": "prompts.jsonl",
        "num_prompts": count,
        "temperature": 0.0,
        "bootstrap": 100 if bounds else 0,
        "seed": 0,
        "judges": list(panel),
        "judge_specs": list(panel),
        "rejected": {"too_long": 3},
        "reference": "runs/sft",
    }
    rates = {
        judge: {a: {b: interval(0.5, bounds, count) for b in names if b != a} for a in names}
        for judge in panel
    }
    for folder_name in ("responses", "logged"):
        (folder / folder_name).mkdir(parents=True)
    content = {"settings": settings, "policies": policies, "win_rates": rates}
    (folder / "evaluation.json").write_text(json.dumps(content))
    for name in names:
        lines = [
            {
                "id": i,
                "prompt": f"prompt {i} {HOSTILE[i % 4]}",
                "responses": [f"{HOSTILE[(i + 1) % 4]} {name}"],
                "length": i + 1,
                "scores": {judge: scores[judge, name][i] for judge in panel},
            }
            for i in range(count)
        ]
        (folder / "responses" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
        logged = [
            {
                "prompt": f"logged {HOSTILE[i % 4]}",
                "response": f"answer {i}",
                "feedback": 1.0,
                "log_ratio": 0.5 * i,
                "value": 0.25,
                "residual": 0.75 - 0.5 * i,
            }
            for i in range(count)
        ]
        (folder / "logged" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, logged)))
    return folder / "evaluation.json"


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    return write_evaluation(tmp_path_factory.mktemp("page") / "e", names=("sft", "<b>dro"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder without checkpoints; returns its summary.json."""
    folder = tmp_path_factory.mktemp("runs") / "dro"
    folder.mkdir()
    summary = {
        "objective": "dro_v",
        "step": 20,
        "examples": 320,
        "evaluation": {"validation/loss": 0.40625},
        "data": {
            "num_examples": {"train": 64, "validation": 17},
            "rejected": {"train": {"empty <u>prompt": 5}},
            "cut_prompts": 0.03125,
        },
    }
    lines = [
        {"step": step, "split": split, "loss": 1 / step, "log_ratio": 0.1 * step}
        for step in (10, 20)
        for split in ("train", "validation")
    ]
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.gin").write_text("TEMPERATURE = 0.1  # </pre><script>alert(2)</script>\n")
    (folder / "versions.json").write_text(json.dumps({"packages": {"jax": "9.8.7"}}))
    return folder / "summary.json"


@pytest.fixture(scope="module")
def text(evaluation, run):
    return page.page_text([evaluation], [run])


def test_the_page_holds_the_responses_as_they_are(text, evaluation):
    (found,) = Reader(text).json
    for name in ("sft", "<b>dro"):
        path = evaluation.parent / "responses" / f"{name}.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert found["prompts"] == [line["prompt"] for line in lines]
        assert found["texts"][name] == [line["responses"] for line in lines]
        assert found["lengths"][name] == [line["length"] for line in lines]
        for judge in ("length", "critic <i>"):
            assert found["scores"][judge][name] == [line["scores"][judge] for line in lines]
    # A half of a surrogate pair is no text, and must not stop the file from being written.
    assert "halved one" in text.encode("utf-8").decode()


def test_no_text_of_data_becomes_html(text):
    page_of_nothing = Reader(text)
    assert page_of_nothing.names.count("script") == 2  # the JSON and the page's own script
    assert not {"b", "i", "u", "img"} & set(page_of_nothing.names)
    assert not [key for _, key, _ in page_of_nothing.attributes if key.startswith("on")]


def test_nothing_is_loaded_from_elsewhere(text):
    assert not re.findall(r"https?:", text)
    # The policy allows the page's own script and inline styles, and no address at all.
    policy = Reader(text).attributes
    (content,) = [value for tag, key, value in policy if tag == "meta" and "default-src" in value]
    assert content.startswith("default-src 'none'; script-src 'sha256-")
    assert not [value for _, key, value in policy if key in ("src", "srcset", "action", "data")]
    assert all(value.startswith("#") for _, key, value in policy if key in ("href", "xlink:href"))


def numbers(value):
    if isinstance(value, dict):
        return {each for item in value.values() for each in numbers(item)}
    return {float(value)} if isinstance(value, float) else set()


def test_the_numbers_are_those_of_the_evaluation_and_have_their_n(text, evaluation):
    shown = set(Reader(text).numbers)
    for policy in json.loads(evaluation.read_text())["policies"].values():
        means = {each["mean"] for each in policy["rewards"].values()}
        kl = set() if policy["is_reference"] else {policy["kl"]["mean"]}
        ranked = {policy["ranking"]["tau * log-ratio"][name] for name in ("spearman", "auc")}
        assert means | kl | ranked | {policy["length"], policy["unfinished"]} <= shown
    for told in ("n (prompts)", "n (responses)", "n = 12 prompts", "(n = 12)", "3 too_long"):
        assert told in text


def test_an_interval_is_shown_only_where_there_is_one_and_the_reason_otherwise(tmp_path):
    reason = "no intervals without resamples, or with fewer than 10 prompts"
    drawn = {}
    for bounds in (True, False):
        path = write_evaluation(tmp_path / str(bounds), bounds=bounds, judges=1)
        written = page.page_text([path], [])
        judged = written.split("Ranking of logged")[0]
        assert ('class="interval"' in judged) == bounds
        assert (reason in judged.lower()) == (not bounds)
        (figure,) = re.findall(r"<figure><svg [^>]*Win rates over.*?</figure>", written, re.DOTALL)
        drawn[bounds] = figure.count("<use ")
    # The bar of the second policy has two caps; what else is drawn are the ticks.
    assert drawn[True] == drawn[False] + 2


def test_equal_files_give_equal_pages(text, evaluation, run):
    assert page.page_text([evaluation], [run]) == text


def test_judges_are_never_pooled(text):
    assert text.count("Policies, judge length</caption>") == 1
    assert text.count("Policies, judge critic &lt;i&gt;</caption>") == 1
    assert "each on its own scale (n = 12 prompts)" in text


def test_a_run_shows_its_curves_data_settings_and_versions(text):
    for told in (
        "dro_v: loss",
        "lower is better",
        "5 empty &lt;u&gt;prompt",
        "validation (n = 17)",
        "9.8.7",
        "TEMPERATURE = 0.1",
        "0.406",
    ):
        assert told in text


def test_responses_during_training_stand_side_by_side(run, tmp_path):
    folder = shutil.copytree(run.parent, tmp_path / "run")
    lines = [
        {"step": step, "split": "samples", "prompt": "a<b", "response": f"says {step}"}
        for step in range(0, 70, 10)
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shown = page.page_text([], [folder / "summary.json"])
    assert "a&lt;b" in shown and "a<b" not in shown
    # The first, the last and three between them.
    assert [step for step in range(0, 70, 10) if f"says {step}<" in shown] == [0, 20, 30, 40, 60]


def test_losses_of_two_objectives_never_share_a_plot(run, tmp_path):
    other = tmp_path / "sft"
    shutil.copytree(run.parent, other)
    summary = json.loads(run.read_text()) | {"objective": "sft"}
    (other / "summary.json").write_text(json.dumps(summary))
    written = page.page_text([], [run, other / "summary.json"])
    for objective, own, foreign in (("dro_v", "dro", "sft"), ("sft", "sft", "dro")):
        (figure,) = re.findall(
            rf"<figure><svg [^>]*{objective}: loss.*?</figure>", written, re.DOTALL
        )
        assert f">{own}, train<" in figure and f">{foreign}, train<" not in figure


def test_several_evaluations_average_over_distinct_checkpoints_only(tmp_path):
    paths = [
        write_evaluation(
            tmp_path / f"e{seed}", names=("sft", f"dro-seed{seed}"), seed=seed, judges=1
        )
        for seed in range(2)
    ]
    written = page.page_text(paths, [])
    (table,) = re.findall(
        r"Policies over all evaluations by judge length.*?</table>", written, re.DOTALL
    )
    seeds = dict(
        re.findall(
            r'<th scope="row">(.*?)</th><td class="number">12</td><td class="number">(\d)', table
        )
    )
    assert seeds == {"sft": "1", "dro": "2"}
    assert len(Reader(written).json) == 2


def test_steps_of_one_run_are_no_seeds_and_one_line_joins_them(tmp_path):
    paths = [write_evaluation(tmp_path / f"e{step}", judges=1) for step in (10, 20)]
    for path, step in zip(paths, (10, 20), strict=True):
        content = json.loads(path.read_text())
        content["policies"]["dro"] |= {"checkpoint": f"runs/dro/checkpoints/{step}", "step": step}
        path.write_text(json.dumps(content))
    written = page.page_text(paths, [])
    (table,) = re.findall(
        r"Policies over all evaluations by judge length.*?</table>", written, re.DOTALL
    )
    assert re.findall(r'<th scope="row">(.*?)</th>', table) == [
        "sft",
        "dro, step 10",
        "dro, step 20",
    ]
    (figure,) = re.findall(r"<figure><svg [^>]*Reward against KL.*?</figure>", written, re.DOTALL)
    assert all(f">step {step}<" in figure for step in (10, 20)) and figure.count(">dro<") == 1
    # Steps with names of their own are labelled by them.
    content["policies"]["late"] = content["policies"]["dro"] | {"step": 30}
    paths[1].write_text(json.dumps(content))
    shutil.rmtree(paths[1].parent / "responses")
    written = page.page_text(paths[1:], [])
    (figure,) = re.findall(r"<figure><svg [^>]*Reward against KL.*?</figure>", written, re.DOTALL)
    assert figure.count(">dro<") == 2 and figure.count(">late<") == 1


def test_rounds_are_shown_with_their_errors_and_n(tmp_path):
    entry = {"measured_prompts": 40, "length": 9.5, "seconds": {"train": 3.0}, "train loss": 0.75}
    rounds = [
        entry | {"round": name, "reward": reward, "reward_error": 0.0625, "selected": 7}
        for name, reward in (("start", 0.25), ("<b>1", 0.5))
    ]
    path = tmp_path / "out" / "rounds.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"rounds": rounds}))
    written = page.page_text([], [], [path])
    for told in ("0.250 ± 0.062", "reward by round", "n = 40 prompts", "&lt;b&gt;1", "train loss"):
        assert told in written
    assert "kl_to_start" not in written and "Reward against KL" not in written
    moved = [each | {"kl_to_start": 1.5 * i, "kl_error": 0.1} for i, each in enumerate(rounds)]
    path.write_text(json.dumps({"rounds": moved}))
    written = page.page_text([], [], [path])
    (figure,) = re.findall(r"<figure><svg [^>]*Reward against KL.*?</figure>", written, re.DOTALL)
    assert ">start<" in figure and ">&lt;b&gt;1<" in figure
    path.write_text(json.dumps({"rounds": [3]}))
    with pytest.raises(UserError, match=r"rounds.json: is not the result of rounds"):
        page.page_text([], [], [path])


def test_what_is_not_there_is_left_out(evaluation, tmp_path):
    alone = tmp_path / "evaluation.json"
    content = json.loads(evaluation.read_text())
    for policy in content["policies"].values():
        del policy["kl"], policy["ranking"]
    alone.write_text(json.dumps(content))
    written = page.page_text([alone], [])
    for title in (
        "side by side",
        "Reward against KL",
        "Ranking",
        "Log-ratios",
        "Value networks",
        "runs",
    ):
        assert f"{title}</" not in written
    assert Reader(written).json == []


def test_what_is_malformed_is_told_in_one_line(evaluation, run, tmp_path):
    folder = tmp_path / "e"
    shutil.copytree(evaluation.parent, folder)
    path, answers = folder / "evaluation.json", folder / "responses" / "sft.jsonl"
    good = answers.read_text()
    first = json.loads(good.splitlines()[0])
    for changed, message in (
        ({"prompt": 3}, r"sft.jsonl:1 lacks a text"),
        ({"responses": "x"}, r"sft.jsonl:1 must hold a list"),
        ({"length": -1}, r"sft.jsonl:1: length must"),
        ({"scores": {"length": "high"}}, r"sft.jsonl:1: the score of length must"),
        ({"prompt": "another"}, r"answers other prompts"),
    ):
        answers.write_text("\n".join([json.dumps(first | changed), *good.splitlines()[1:]]))
        with pytest.raises(UserError, match=message):
            page.page_text([path], [])
    answers.write_text("{")
    with pytest.raises(UserError, match=r"sft.jsonl:1 is not valid JSON"):
        page.page_text([path], [])
    answers.unlink()
    with pytest.raises(UserError, match=r"responses lacks the responses of sft"):
        page.page_text([path], [])
    answers.symlink_to(run)
    with pytest.raises(UserError, match=r"outside of"):
        page.page_text([path], [])
    answers.unlink()
    answers.write_text(good)
    content = json.loads(path.read_text())
    for broken in ({"rewards": 3}, {"rewards": {}}, {"kl": "far"}, {"ranking": {"a": []}}):
        changed = content | {"policies": {"sft": content["policies"]["sft"] | broken}}
        path.write_text(json.dumps(changed))
        with pytest.raises(
            UserError, match=r"evaluation.json: is not an evaluation as this version"
        ):
            page.page_text([path], [])
    summary = tmp_path / "summary.json"
    summary.write_text('{"evaluation": 3}')
    with pytest.raises(UserError, match=r"summary.json: is not the summary of a run"):
        page.page_text([], [summary])


def test_the_command_writes_a_page_if_the_name_says_so_and_replaces_only_its_own(
    evaluation, tmp_path, capsys
):
    output = tmp_path / "out" / "page.html"
    written = report([str(evaluation)], str(output))
    assert (
        output.read_text(encoding="utf-8") == written
        and f"wrote {output}" in capsys.readouterr().out
    )
    assert [path.name for path in output.parent.iterdir()] == ["page.html"]
    report([str(evaluation)], str(output))
    output.write_text("<!DOCTYPE html><p>mine")
    with pytest.raises(UserError, match="was not written by `jaxalign report`"):
        report([str(evaluation)], str(output))
    with pytest.raises(UserError, match="columns of a Markdown report"):
        report([str(evaluation)], str(tmp_path / "x.html"), columns=["KL"])
    with pytest.raises(UserError, match="has no judge 'me'"):
        report([str(evaluation)], str(tmp_path / "x.html"), judge="me")


DATA = {
    "prompts": ["a", "b </script>", "c", "d", "e"],
    "texts": {
        "sft": [["one two"], ["x"], ["y"], ["ZEBRA"], ["q"]],
        "dro": [["one three"], ["x x x"], ["y y"], ["z"], ["q"]],
    },
    "lengths": {"sft": [2, 1, 9, 1, 1], "dro": [2, 3, 2, 1, None]},
    "scores": {
        "near": {"sft": [0, 1, 2, 3, None], "dro": [1, 1, 0, 4, 0]},
        "far": {"sft": [0, 0, 0, 100, 0], "dro": [100, 0, 0, 0, 0]},
    },
}


def in_node(expression):
    """The value of an expression over the functions of responses.js."""
    if shutil.which("node") is None:
        pytest.skip("needs node")
    script = f"const r = require({json.dumps(str(FOLDER / 'responses.js'))}); const data = {json.dumps(DATA)};"
    command = ["node", "-e", f"{script} console.log(JSON.stringify({expression}))"]
    return json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def test_filters_search_and_orders_of_responses():
    cases = {
        '{filter: "all"}': [0, 1, 2, 3, 4],
        '{filter: "wins"}': [0, 3],
        '{filter: "losses"}': [2],
        '{filter: "ties"}': [1],  # a prompt without a score is no tie
        '{filter: "ties", judge: "far"}': [1, 2, 4],
        '{query: " zebra "}': [3],
        '{query: "</SCRIPT>"}': [1],
        '{order: "longest"}': [2, 0, 1, 3, 4],
        '{order: "shortest"}': [4, 3, 0, 1, 2],
        '{order: "best"}': [0, 3, 1, 2, 4],
        '{order: "worst"}': [2, 1, 0, 3, 4],
        '{order: "worst", b: "", filter: "wins"}': [2, 4, 0, 1, 3],
    }
    given = '{query: "", filter: "all", order: "given", judge: "near", a: "dro", b: "sft"}'
    calls = ", ".join(f"r.select(data, {{...{given}, ...{case}}})" for case in cases)
    assert in_node(f"[{calls}]") == list(cases.values())
    # Judges of different scales: they differ most where one prefers A as clearly as the other prefers B.
    (order,) = in_node(f'[r.select(data, {{...{given}, order: "disagreement"}})]')
    assert order[0] == 3 and order[-1] == 4


def test_marked_words_are_those_that_the_other_response_lacks():
    pairs = [("a b c", "a x c"), ("", "a"), ("a  b\n", "a b"), ("same", "same"), ("x a b y", "a b")]
    calls = ", ".join(f"r.marked({json.dumps(a)}, {json.dumps(b)})" for a, b in pairs)
    found = in_node(f"[{calls}]")
    assert ["".join(part for part, _ in parts) for parts in found] == [a for a, _ in pairs]
    words = [[part.strip() for part, only in parts if only] for parts in found]
    assert words == [["b"], [], [], [], ["x", "y"]]


def test_json_in_a_page_holds_no_less_than_sign_and_no_nan():
    block = json_block("x", {"<a>": HOSTILE})
    assert "<" not in block.removeprefix("<script").removesuffix("</script>")
    with pytest.raises(ValueError):
        json_block("x", float("nan"))
