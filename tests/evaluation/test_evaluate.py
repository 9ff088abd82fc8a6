"""`evaluate` end to end with stand-in policies whose scores are known."""

import importlib
import inspect
import json
from pathlib import Path

import numpy as np
import pytest

from jaxalign.data.evaluation_records import read_evaluation_records
from jaxalign.data.rejections import MAX_REJECTED_FRACTION
from jaxalign.errors import UserError
from jaxalign.evaluation.evaluate import evaluate
from jaxalign.evaluation.inputs import named_checkpoints
from jaxalign.evaluation.results import finite_json
from jaxalign.inference import sampling
from jaxalign.runs.description import parse_description
from jaxalign.runs.folder import Run


@pytest.fixture
def feedback_file(write_lines):
    records = [
        {"prompt": f"say {'x' * i}", "response": "yes" * (1 + k), "feedback": float(k)}
        for i in range(12)
        for k in range(2)
    ]
    return write_lines("feedback.jsonl", records)


def test_policies_are_compared_on_the_same_prompts(fake_runs, feedback_file, tmp_path, capsys):
    output = tmp_path / "evaluation"
    result = evaluate(
        ["sft=run1", "dro=dro2"],
        feedback_file,
        str(output),
        judges=["length"],
        batch_size=5,
        kl_samples=2,
        bootstrap=50,
        ranking_train=feedback_file,
    )
    assert result == json.loads((output / "evaluation.json").read_text())
    sft, dro = result["policies"]["sft"], result["policies"]["dro"]
    # The stand-ins answer alike, so every prompt is a tie.
    assert result["win_rates"]["length"]["dro"]["sft"]["mean"] == 0.5
    assert sft["kl"] == {"mean": 0.0, "standard_error": 0.0, "count": 12}
    assert dro["kl"]["mean"] > 0
    assert sft["length"] == dro["length"] == pytest.approx(sft["rewards"]["length"]["mean"] + 1)
    # The longer response has the higher feedback, and costs more nats.
    assert dro["ranking"]["longer wins"]["pairwise_accuracy"] == 1
    assert dro["ranking"]["tau * log-ratio"]["pairwise_accuracy"] == 0
    assert dro["ranking"]["TF-IDF linear"]["pairwise_accuracy"] == 1
    assert dro["value"]["held out"]["prompts"] == 12
    # Both read the same file, so that they agree.
    assert dro["value"]["held out"] == dro["value"]["training"] and "value" not in sft
    assert (output / "plots" / "calibration.png").stat().st_size > 1000
    assert (output / "plots" / "reward_against_kl.png").stat().st_size > 1000
    logged = [json.loads(x) for x in (output / "logged" / "dro.jsonl").read_text().splitlines()]
    held_out = dro["value"]["held out"]
    assert len(logged) == held_out["count"] == 24
    for name, mean in (("residual", "mean_residual"), ("log_ratio", "mean_log_ratio")):
        assert np.mean([each[name] for each in logged]) == pytest.approx(held_out[mean])
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "the largest residuals" in page and page.count("Policies, judge length<") == 1
    lines = [json.loads(x) for x in (output / "responses" / "dro.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == list(range(12))
    assert lines[3]["scores"]["length"] == len(lines[3]["responses"][0])
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines()[:20])) <= 110
    assert "win rate vs sft" in printed


def test_ranking_only_generates_nothing(fake_runs, feedback_file, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "decoder", lambda *_: pytest.fail("decoded"))
    result = evaluate(
        ["a=run1", "b=run2"], feedback_file, str(tmp_path / "e"), ranking_only=True, bootstrap=20
    )
    assert result["win_rates"] == {}
    told = {"checkpoint", "step", "objective", "is_reference", "cut_prompts", "unknown_pieces"}
    assert set(result["policies"]["b"]) == told | {"ranking"}


def test_the_first_prompts_only_and_another_reference(fake_runs, feedback_file, tmp_path):
    result = evaluate(
        ["a=run1", "b=run2"],
        feedback_file,
        str(tmp_path / "e"),
        judges=["length"],
        reference="b",
        num_prompts=4,
        bootstrap=10,
    )
    assert result["settings"]["num_prompts"] == 4
    assert result["settings"]["num_feedback"] == 8
    assert result["policies"]["b"]["kl"]["mean"] == 0
    assert result["policies"]["a"]["kl"]["mean"] > 0


def test_a_judge_that_cannot_judge_is_told_before_anything_is_generated(
    fake_runs, feedback_file, tmp_path, monkeypatch
):
    monkeypatch.setattr(sampling, "decoder", lambda *_: pytest.fail("decoded"))
    with pytest.raises(UserError, match=r"dialogue acts.*choose others with --judges=exact_match,"):
        evaluate(["a=run1"], feedback_file, str(tmp_path / "e"))
    with pytest.raises(UserError, match="exact_match': no reference for prompt"):
        evaluate(["a=run1"], feedback_file, str(tmp_path / "e"), judges=["exact_match"])
    assert not (tmp_path / "e").exists()


def test_another_evaluation_is_replaced_only_if_asked_for(
    fake_runs, feedback_file, write_lines, tmp_path, monkeypatch
):
    output = tmp_path / "e"

    def again(*checkpoints, prompts=feedback_file, **options):
        options = {"judges": ["length"], "kl_samples": 0, "bootstrap": 10} | options
        return evaluate(list(checkpoints), prompts, str(output), **options)

    first = again("a=run1")
    assert again("a=run1") == first
    written = (output / "evaluation.json").read_bytes()
    other = write_lines("other.jsonl", [{"prompt": "say nothing"}])
    Path(other).replace(tmp_path / "kept.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr(sampling, "decoder", lambda *_: pytest.fail("decoded"))
        for changed, message in (
            ({"seed": 3}, r"settings.seed: 0 then, 3 now\); .*--overwrite"),
            ({"prompts": str(tmp_path / "kept.jsonl")}, r"settings.prompts: "),
        ):
            with pytest.raises(UserError, match=message):
                again("a=run1", **changed)
        with pytest.raises(UserError, match=r"policies.b: null then, \[\"run2\", 10\] now"):
            again("b=run2")
        # The file has other content now.
        Path(feedback_file).write_text((tmp_path / "kept.jsonl").read_text())
        with pytest.raises(UserError, match=r"another evaluation \(data: "):
            again("a=run1")
    assert (output / "evaluation.json").read_bytes() == written
    assert again("b=run2", overwrite=True)["settings"]["num_prompts"] == 1
    assert [path.name for path in (output / "responses").iterdir()] == ["b.jsonl"]
    assert not list(tmp_path.glob(".*.lock"))
    (output / "evaluation.json").write_text("[]")
    with pytest.raises(UserError, match=r"must hold a JSON object; give another --output_dir"):
        again("b=run2")
    (output / "report.html").write_text("my notes")
    with pytest.raises(UserError, match=r"report.html exists already and was not written by"):
        again("b=run2", overwrite=True)


def described(monkeypatch, **changes):
    """Lets policies be opened with other descriptions."""

    def opened(path, step=None):
        run = Run(Path(path.removeprefix("hf://me/")), step)
        content = {**run.description.content, **changes}
        run.description = parse_description(content, path)
        return run

    monkeypatch.setattr(importlib.import_module("jaxalign.evaluation.evaluate"), "open_run", opened)


def test_a_moved_branch_of_the_hub_is_another_policy(
    fake_runs, feedback_file, tmp_path, monkeypatch
):
    def again(path):
        options = {"judges": ["length"], "kl_samples": 0, "bootstrap": 10}
        return evaluate([f"a={path}"], feedback_file, str(tmp_path / "e"), **options)

    described(monkeypatch, run_id="first-commit")
    first = again("hf://me/run1")
    assert again("hf://me/run1") == first
    described(monkeypatch, run_id="later-commit")
    with pytest.raises(UserError, match=r'policies.a: .*"first-commit"\] then, .*"later-commit"\]'):
        again("hf://me/run1")


def test_messages_without_the_template_of_a_run_are_noted(
    fake_runs, feedback_file, tmp_path, monkeypatch, capsys
):
    options = {"judges": ["length"], "kl_samples": 0, "bootstrap": 10}
    evaluate(["a=run1"], feedback_file, str(tmp_path / "plain"), **options)
    assert "chat template" not in capsys.readouterr().err
    described(monkeypatch, chat_template="{{ messages }}")
    evaluate(["a=run1"], feedback_file, str(tmp_path / "chats"), **options)
    assert "run1 was trained with a chat template" in capsys.readouterr().err


def test_the_current_folder_is_a_folder_for_results(
    fake_runs, feedback_file, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    evaluate(["a=run1"], feedback_file, ".", ranking_only=True, bootstrap=10)
    assert (tmp_path / "evaluation.json").exists()


def test_a_policy_that_is_its_own_reference_is_said_to_be(
    fake_runs, feedback_file, tmp_path, capsys
):
    options = {"judges": ["length"], "bootstrap": 10}
    alone = evaluate(["a=run1"], feedback_file, str(tmp_path / "alone"), **options)
    printed = capsys.readouterr().out
    assert "a is its own reference, so its KL and log-ratios are 0" in printed
    assert "0 (reference)" in printed
    assert alone["policies"]["a"]["is_reference"]
    # Another spelling of the path names the same checkpoint.
    two = ["a=run1", "b=run2"]
    result = evaluate(two, feedback_file, str(tmp_path / "two"), reference="./run2", **options)
    assert [report["is_reference"] for report in result["policies"].values()] == [False, True]
    printed = capsys.readouterr().out
    assert "its own reference" not in printed
    assert "from the reference, b;" in printed


FOREIGN = {
    "trl": (
        {"prompt": [{"role": "user", "content": "hi"}], "completion": "x"},
        r"kind 'seq2seq' in the layout 'trl', which is read with --layout=trl;",
    ),
    "hh": ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "c"}, "--layout=hh;"),
    "fields": (
        {"question": "q", "answer": "a", "rating": 3},
        "--fields=prompt=question,response=answer,feedback=rating;",
    ),
    "prompts": ({"question": "q"}, "--fields=prompt=question;"),
    "ultrafeedback": (
        {"instruction": "i", "completions": []},
        "jaxalign cache --layout=ultrafeedback`, and give that as --prompts",
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_of_another_layout_is_recognised(name, write_lines, tmp_path):
    record, message = FOREIGN[name]
    path = write_lines("foreign.jsonl", [record] * 30)
    side = str(tmp_path / "rejected.jsonl")
    with pytest.raises(UserError, match=rf"foreign.jsonl:20: .*, as in 19 records .*{message}"):
        read_evaluation_records(path, side_file=side)
    # A record or two of another layout are counted as bad ones, and the first is explained.
    path = write_lines("few.jsonl", [record, *({"prompt": f"p {i}"} for i in range(9))])
    with pytest.raises(UserError, match=rf"1 of 10 records \(10.0%\).*few.jsonl:1: .*{message}"):
        read_evaluation_records(path, side_file=side)
    found = read_evaluation_records(path, side_file=side, max_rejected_fraction=0.1)
    assert len(found.records) == 9


def test_responses_that_are_not_read_are_told(write_lines, tmp_path):
    side = str(tmp_path / "rejected.jsonl")
    trl = [{"prompt": f"p {i}", "completion": "c", "label": True} for i in range(3)]
    found = read_evaluation_records(write_lines("trl.jsonl", trl), side_file=side)
    assert "only the prompts of 3 lines are used" in found.note
    assert "--fields=response=completion,feedback=label" in found.note
    # Responses of `generate` and references are meant to be read as they are.
    for fields in ({"responses": ["a"], "log_probs": [-1.0]}, {"target": "t"}, {"references": "r"}):
        path = write_lines("plain.jsonl", [{"prompt": "p", **fields}])
        assert read_evaluation_records(path, side_file=side).note == ""
    # Candidates that are judged could be evaluated, from a cache.
    judged = {"prompt": "p", "responses": ["a", "b"], "annotations": {"judge": {"scores": [1, 0]}}}
    found = read_evaluation_records(write_lines("judged.jsonl", [judged]), side_file=side)
    assert "jaxalign cache --layout=candidates" in found.note


def test_every_command_allows_the_same_share_of_bad_records():
    from jaxalign.data.cache import cache

    for command in (cache, evaluate):
        default = inspect.signature(command).parameters["max_rejected_fraction"].default
        assert default == MAX_REJECTED_FRACTION


def test_an_existing_path_with_an_equals_sign_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1").mkdir()
    assert named_checkpoints(["lr=1"]) == {"lr=1": "lr=1"}


def test_checkpoints_are_named_by_the_user_or_by_their_folder():
    assert named_checkpoints(["sft=/runs/a", "/runs/dro"]) == {"sft": "/runs/a", "dro": "/runs/dro"}
    assert named_checkpoints(["a=runs/lr=1", "runs/lr=1e-3/sft"]) == {
        "a": "runs/lr=1",
        "sft": "runs/lr=1e-3/sft",
    }
    with pytest.raises(UserError, match="given twice"):
        named_checkpoints(["/x/run", "/y/run"])
    with pytest.raises(UserError, match="at least one"):
        named_checkpoints([])


def test_json_holds_null_where_a_statistic_is_undefined():
    assert finite_json({"a": [float("nan"), np.float32(1.5)], "b": float("inf")}) == {
        "a": [None, 1.5],
        "b": None,
    }


def test_an_evaluation_set_gathers_references_and_feedback_by_prompt(write_lines, tmp_path):
    path = write_lines(
        "set.jsonl",
        [
            {"prompt": "a", "response": "one"},
            {"prompt": "b", "references": ["x", "y"], "target": "z"},
            {"prompt": "a", "response": "two"},
            {"prompt": "a", "response": "two"},
            {"prompt": "c", "response": "good", "feedback": "up"},
            {"prompt": "c", "chosen": "better", "rejected": "worse"},
        ],
    )
    side_file = str(tmp_path / "rejected.jsonl")
    records = read_evaluation_records(path, side_file=side_file)
    assert records.rejected == {"duplicate": 1}
    data = records.to_set()
    assert data.prompts == ["a", "b", "c"]
    assert data.references == [["one", "two"], ["x", "y", "z"], []]
    assert [(r.response, r.feedback) for r in data.feedback] == [
        ("good", 1.0),
        ("better", 1.0),
        ("worse", 0.0),
    ]
    assert data.first(2).prompts == ["a", "b"]
    assert data.first(2).feedback == []
    with pytest.raises(UserError, match=r"bad.jsonl:1: .*feedback"):
        read_evaluation_records(
            write_lines("bad.jsonl", ['{"prompt": "a", "response": "b", "feedback": NaN}']),
            side_file=side_file,
        )


def test_a_cache_is_read_with_its_texts(tmp_path):
    from jaxalign.data.cache import cache

    cache("synthetic_triplets", str(tmp_path / "cache"), vocabulary="bytes")
    data = read_evaluation_records(tmp_path / "cache", side_file="", split="validation").to_set()
    assert len(data.prompts) == 300
    assert {record.prompt for record in data.feedback} == set(data.prompts)
    assert all(record.feedback <= 0 for record in data.feedback)


def test_learning_curves_are_drawn_from_the_run_folders(tmp_path):
    from jaxalign.evaluation import plots
    from jaxalign.runs.folder import learning_curve

    run = tmp_path / "run"
    (run / "checkpoints" / "20").mkdir(parents=True)
    lines = [{"step": s, "split": "train", "loss": 1.0 / (1 + s), "note": "x"} for s in range(20)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert learning_curve(run) == learning_curve(run / "checkpoints" / "20") == lines
    assert learning_curve(tmp_path / "absent") == []
    path = plots.plot_learning_curves({"run": lines}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert path == str(tmp_path / "curves.png")
    assert plots.plot_learning_curves({}, tmp_path / "none.png") is None
