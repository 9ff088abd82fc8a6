"""Rounds: every stage resumes, labels are measured against a fixed start, and mistakes are told in one line."""

import dataclasses
import functools
import importlib
import json
import linecache
import sys

import numpy as np
import pytest

from jaxalign.annotation.annotators import annotator_names, get_annotator, register_annotator
from jaxalign.data.candidates import read_candidates
from jaxalign.data.task_cache import TaskCache
from jaxalign.errors import UserError
from jaxalign.plugins import own_code
from jaxalign.recipes import round_labels, rounds_dry_run
from jaxalign.recipes import rounds as commands
from jaxalign.recipes.round_measures import Measure
from jaxalign.recipes.round_prompts import PromptSource
from jaxalign.recipes.round_recipe import Labelled
from jaxalign.recipes.round_sampling import Sampler
from jaxalign.recipes.round_training import check_reference
from jaxalign.recipes.rounds import make_recipe, rounds
from jaxalign.recipes.stages import STARTED, Waiting, result_of
from jaxalign.selection.selectors import Selection, register_selector
from jaxalign.training.optimizers import adamw
from tests.fixtures.chat_server import failure, prefer_longer, serving
from tests.recipes.conftest import arguments, training, write_policy

CALLS = []


@register_annotator("letters")
class Letters:
    """Prefers responses with many letters."""

    kind = "scores"
    whole_file = False

    def __init__(self, policy: str = "", reference: str = "", answer: str = "length") -> None:
        self.policy, self.reference, self.answer = policy, reference, answer

    def identity(self):
        return {"answer": self.answer}

    def annotate(self, candidates):
        CALLS.append((self.policy, self.reference))
        if self.answer == "nan":
            return [np.full(len(texts), np.nan) for texts in candidates.responses]
        if self.answer == "same":
            return [np.zeros(len(texts)) for texts in candidates.responses]
        return [np.array([float(len(text)) for text in texts]) for texts in candidates.responses]


@register_selector("letters_pairs")
def letters_pairs(annotation: str = "judge"):
    def select(candidates):
        lines, ties = [], 0
        scores = candidates.annotation(annotation, "scores").values
        for prompt, texts, values in zip(
            candidates.prompts, candidates.responses, scores, strict=True
        ):
            if values.max() == values.min():
                ties += 1
                continue
            chosen, rejected = texts[int(values.argmax())], texts[int(values.argmin())]
            lines.append({"prompt": prompt, "chosen": chosen, "rejected": rejected, "margin": 1.0})
        return Selection(lines, "pair", {"tie": ties}, {"pairs": float(len(lines))})

    return select


@register_selector("first_prompts")
def first_prompts(n: int = 2):
    def select(candidates):
        return Selection(list(candidates.take(range(n)).lines()), "candidates")

    return select


def with_weight_decay(values):
    made = training(values)
    return functools.partial(
        made.func, **{**made.keywords, "optimizers": {"policy": adamw(1e-3, weight_decay=0.1)}}
    )


def run(folder, start, file, launch=rounds, **changes):
    given = {
        "output_dir": str(folder),
        "start": str(start),
        "prompts": PromptSource(file=str(file), per_round=6),
        "training": training,
        "annotators": {"judge": "letters:policy={previous},reference={start}"},
        "selector": "letters_pairs",
        "sampler": Sampler(num_samples=4, batch_size=8),
        "num_rounds": 2,
        "measure": Measure(count=4, judge="letters", truth="letters", batch_size=8),
        "per_round": {"BETA": (0.1, 0.2)},
    }
    return launch(**{**given, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory, start):
    """Two finished rounds, with the prompts and the roles that the annotator was given."""
    folder = tmp_path_factory.mktemp("rounds")
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"ask {i}"}) + "\n" for i in range(20)))
    CALLS.clear()
    content = run(folder / "all", start, prompts)
    return folder / "all", prompts, content, list(CALLS)


def outputs(folder):
    """The fingerprint of every stage."""
    return {
        str(path.parent.relative_to(folder)): json.loads(path.read_text())["fingerprint"]
        for path in sorted(folder.rglob("result.json"))
    }


def test_every_round_has_its_measures_its_hyperparameters_and_a_place_in_the_report(finished):
    folder, _, content, _ = finished
    start, first, second = content["rounds"]
    assert start["round"] == "start" and start["kl_to_start"] == 0
    assert first["length"] > start["length"] and second["kl_to_start"] > 0
    assert first["prompts"] == 6 and first["selected"] == first["select pairs"] <= 6
    assert first["label_accuracy"] == 1 and first["measured_prompts"] == 4
    values = [
        json.loads((folder / f"round{n}/train/result.json").read_text())["settings"] for n in (1, 2)
    ]
    assert [each["values"]["BETA"] for each in values] == [0.1, 0.2]
    assert [each["hyperparameters"]["beta"] for each in values] == [0.1, 0.2]
    assert "± " in (folder / "rounds.md").read_text() and (folder / "rounds.png").stat().st_size
    assert json.loads((folder / "rounds.json").read_text())["rounds"] == content["rounds"]


def test_labels_are_measured_against_the_fixed_start_and_the_policy_of_the_round_before(
    finished, start
):
    folder, _, _, calls = finished
    roles = [call for call in calls if call[0]]
    assert roles == [(str(start), str(start)), (str(folder / "round1/train/run"), str(start))]


def test_candidates_hold_no_log_probabilities_of_the_sampler(finished):
    folder, *_ = finished
    for number in (1, 2):
        candidates = read_candidates(folder / f"round{number}/sample/candidates.jsonl")
        assert not candidates.annotations
        assert candidates.fields[0]["sources"] == ["previous"] * len(candidates.responses[0])


def test_rounds_have_fresh_prompts_and_none_that_is_set_aside(finished):
    folder, *_ = finished
    used = [
        read_candidates(folder / f"round{number}/sample/candidates.jsonl").prompts
        for number in (1, 2)
    ]
    lines = (folder / "start/measure/responses.jsonl").read_text().splitlines()
    aside = [json.loads(line)["prompt"] for line in lines]
    assert len({*used[0], *used[1], *aside}) == 6 + 6 + 4


def test_a_finished_recipe_is_not_run_again_and_more_rounds_continue_it(finished, start, tmp_path):
    folder, prompts, content, _ = finished
    before = outputs(folder)
    CALLS.clear()
    assert run(folder, start, prompts)["rounds"] == content["rounds"]
    assert not CALLS
    with pytest.raises(UserError, match="round 3 needs the first 18"):
        run(folder, start, prompts, num_rounds=3)
    assert outputs(folder) == before


def test_a_launch_that_ends_at_any_boundary_is_continued_with_the_same_result(
    finished, start, tmp_path, monkeypatch
):
    """Every launch is ended once at the beginning of a stage, and once between its output and its result."""
    folder, prompts, _, _ = finished
    original, ended = commands.stages, 0

    def cut_off(stage):
        def ends(place):
            if not (place / "tried").exists():
                place.joinpath("tried").touch()
                raise KeyboardInterrupt
            result = stage.run(place)
            if not (place / "ended").exists():
                place.joinpath("ended").touch()
                raise KeyboardInterrupt
            return result

        return dataclasses.replace(stage, run=ends)

    monkeypatch.setattr(commands, "stages", lambda *given: list(map(cut_off, original(*given))))
    while True:
        try:
            run(tmp_path / "cut", start, prompts)
            break
        except KeyboardInterrupt:
            ended += 1
    assert ended == 2 * len(outputs(folder))
    assert outputs(tmp_path / "cut").keys() == outputs(folder).keys()
    for name in ("round1/select/records.jsonl", "round2/select/records.jsonl"):
        assert (tmp_path / "cut" / name).read_text() == (folder / name).read_text()
    assert not list((tmp_path / "cut").rglob(STARTED))


def test_other_settings_of_a_finished_stage_are_refused_before_anything_runs(finished, start):
    folder, prompts, _, _ = finished
    before = outputs(folder)
    for changes, message in (
        (
            {"sampler": Sampler(num_samples=3)},
            r"round1, sample was finished with sampler\.num_samples = ",
        ),
        ({"annotators": {"judge": "letters"}}, "round1, annotate judge was finished with spec = "),
        ({"selector": "letters_pairs:annotation=judge"}, "round1, select was finished with spec"),
        ({"per_round": {"BETA": (0.1, 0.3)}}, "round2, train was finished with hyperparameters"),
        (
            {"training": with_weight_decay},
            r"round1, train was finished with optimizers\.policy\.weight_decay = 0\.0",
        ),
    ):
        for launch in (rounds, rounds_dry_run.check):
            with pytest.raises(UserError, match=message) as caught:
                run(folder, start, prompts, launch=launch, **changes)
            assert "delete" in str(caught.value) and "\n" not in str(caught.value)
    told = run(folder, start, prompts, launch=rounds_dry_run.check).splitlines()[-1]
    assert told == f"{len(before)} of {len(before)} stages are finished in {folder}"
    assert outputs(folder) == before


def test_a_stage_whose_input_is_gone_is_refused(finished, start, tmp_path):
    folder, prompts, _, _ = finished
    moved = tmp_path / "sample"
    (folder / "round2/sample").rename(moved)
    try:
        with pytest.raises(UserError, match="round2, annotate judge is finished, but its input"):
            run(folder, start, prompts)
    finally:
        moved.rename(folder / "round2/sample")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotators": {"judge": "letters:answer=nan"}}, "annotate judge: .*all are NaN"),
        (
            {"annotators": {"judge": "letters:answer=same"}},
            "round1, select: .*candidates.jsonl: selector 'letters_pairs' selects nothing of 6 prompts .left out: 6 x tie",
        ),
        ({"selector": "first_prompts"}, "round1, select: .* put it into ANNOTATORS"),
        ({"selector": "letters_pairs:annotation=x"}, "round1, select: .* no annotation 'x'"),
        (
            {"sampler": Sampler(num_samples=1), "selector": "best_worst"},
            "round1, select: .*too few responses.*sample more responses per prompt",
        ),
    ],
)
def test_a_stage_that_fails_is_named_and_the_stages_before_it_are_kept(
    changes, message, start, prompts, tmp_path
):
    with pytest.raises(UserError, match=message) as caught:
        run(tmp_path / "r", start, prompts, measure=Measure(), **changes)
    assert "\n" not in str(caught.value)
    assert "round1/sample" in outputs(tmp_path / "r")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selector": "nobody"}, "SELECTOR: no selector named 'nobody'"),
        (
            {"selector": "best_worst:annotation=juge"},
            "SELECTOR: it reads the annotation 'juge', and ANNOTATORS makes only: judge",
        ),
        ({"annotators": {"judge": "letters:policy={teacher}"}}, "set TEACHER"),
        ({"annotators": {"judge": "letters:policy={master}"}}, "names {master}; known: {previous}"),
        ({"annotators": {"log_probs": "letters"}}, "cannot name an annotation"),
        ({"sampler": Sampler(roles={"teacher": 1.0})}, "set TEACHER"),
        ({"first": "nowhere"}, "FIRST nowhere: no checkpoint"),
        ({"prompts": PromptSource(file="nowhere.jsonl", per_round=1)}, "nowhere.jsonl"),
        ({"measure": Measure(judge="letters")}, "MEASURE_COUNT"),
        ({"reference": "none"}, "reference"),
    ],
)
def test_mistakes_are_told_before_the_first_stage(changes, message, start, prompts, tmp_path):
    with pytest.raises(UserError, match=message):
        run(tmp_path / "r", start, prompts, **changes)
    assert not outputs(tmp_path / "r")


def test_rounds_wait_for_labels_and_go_on_when_they_are_there(start, prompts, tmp_path, capsys):
    labels = tmp_path / "new" / "labels1.jsonl"
    options = {
        "annotators": {
            "few": "select first_prompts:n=3",
            "judge": f"labels:{tmp_path}/new/labels{{round}}.jsonl",
        },
        "num_rounds": 1,
        "measure": Measure(),
    }
    for _ in range(2):
        with pytest.raises(Waiting) as caught:
            run(tmp_path / "r", start, prompts, **options)
        assert caught.value.code == 3
        said = capsys.readouterr().err.splitlines()[-1]
        assert f"{labels} has " in said and "give the command again" in said
    lines = [json.loads(line) for line in labels.read_text().splitlines()]
    assert len(lines) == 3
    for line in lines:
        line["feedback"] = list(range(len(line["responses"])))
    labels.write_text("".join(json.dumps(line) + "\n" for line in lines))
    content = run(tmp_path / "r", start, prompts, **options)
    assert 1 <= content["rounds"][0]["selected"] <= 3


def test_a_language_model_judges_over_http_and_a_refused_key_stops_the_round(
    start, prompts, tmp_path, monkeypatch
):
    monkeypatch.setenv("JAXALIGN_LLM_MODEL", "m")
    monkeypatch.setenv("JAXALIGN_LLM_API_KEY", "secret-key")
    monkeypatch.setenv("JAXALIGN_LLM_CACHE", str(tmp_path / "replies"))
    options = {
        "annotators": {"judge": "llm:mode=pairwise,server=here,retries=0"},
        "selector": "best_worst:annotation=judge",
        "num_rounds": 1,
        "measure": Measure(),
    }
    with serving(lambda *_: failure(401)) as server:
        monkeypatch.setenv("JAXALIGN_LLM_BASE_URL", server.url)
        with pytest.raises(UserError, match=r"round1, annotate judge: .*401"):
            run(tmp_path / "r", start, prompts, **options)
    with serving(prefer_longer) as server:
        monkeypatch.setenv("JAXALIGN_LLM_BASE_URL", server.url)
        content = run(tmp_path / "r", start, prompts, **options)
    assert content["rounds"][0]["select chosen_is_longer"] > 0.5
    texts = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"secret-key" in text for text in texts)


def test_labelled_records_train_a_round_0_and_are_mixed_in(start, prompts, tmp_path):
    file = tmp_path / "labelled.jsonl"
    file.write_text(json.dumps({"prompt": "ask 1", "chosen": "ab", "rejected": "b"}) + "\n")
    labelled = Labelled(file=str(file), use="both", values={"BETA": 0.5})
    run(tmp_path / "r", start, prompts, labelled=labelled, accumulate=True, measure=Measure())
    values = json.loads((tmp_path / "r/round0/train/result.json").read_text())["settings"]["values"]
    assert values == {"BETA": 0.5}
    records = [result_of(tmp_path / "r", f"round{n}/cache")["records"] for n in (0, 1, 2)]
    assert records[0] == {"labelled": 1}
    assert records[1]["labelled"] == 1 and records[1].keys() == {"round 1", "labelled"}
    assert records[2].keys() == {"round 1", "round 2", "labelled"}
    with pytest.raises(UserError, match="cannot be mixed"):
        round_labels.mix(tmp_path, {"a": file, "b": file}, {"a": "pair", "b": "triplet"})


def test_the_logged_responses_of_the_prompts_follow_the_sampled_one(start, tmp_path):
    file = tmp_path / "pairs.jsonl"
    lines = [{"prompt": f"p{i}", "chosen": "good", "rejected": "bad"} for i in range(6)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = {
        "prompts": PromptSource(file=str(file), fresh=False),
        "sampler": Sampler(num_samples=1, batch_size=8, logged=True),
        "num_rounds": 1,
        "measure": Measure(),
    }
    run(tmp_path / "r", start, file, **options)
    candidates = read_candidates(tmp_path / "r/round1/sample/candidates.jsonl")
    assert {tuple(texts[1:]) for texts in candidates.responses} == {("good", "bad")}
    assert candidates.fields[0]["sources"] == ["previous", "logged", "logged"]


def test_the_start_stays_the_reference_by_stored_log_probabilities(start, prompts, tmp_path):
    run(tmp_path / "r", start, prompts, reference="start", measure=Measure())
    cache = TaskCache(tmp_path / "r/round2/cache/cache")
    (name,) = cache.stored_names("train")
    lengths = [[len(text) for text in example.responses] for example in cache.split("train")]
    # The start draws every letter with the same probability, and ends with 0.3.
    expected = np.array(lengths) * np.log(0.35) + np.log(0.3)
    np.testing.assert_allclose(cache.stored("train", name).values, expected, rtol=1e-5)
    assert not TaskCache(tmp_path / "r/round1/cache/cache").stored_names("train")
    objective = dataclasses.replace(arguments({})["objective"], reference="live")
    with pytest.raises(UserError, match="TRAIN_REFERENCE = 'start' needs stored"):
        check_reference(objective, "start")


def test_before_is_what_the_previous_policy_was_trained_from():
    recipe = make_recipe(
        output_dir="/o", start="s", first="f", prompts="p", training=print, selector="x"
    )
    before = [recipe.runs(number)["before"] for number in (1, 2, 3)]
    assert before == ["s", "f", "/o/round1/train/run"]


def test_a_policy_with_another_vocabulary_is_refused(start, prompts, tmp_path):
    other = tmp_path / "other"
    write_policy(other, "other", {"a": 1.0})
    networks = other / "networks.json"
    content = json.loads(networks.read_text())
    content["vocabulary"]["extra_ids"] = 3
    networks.write_text(json.dumps(content))
    with pytest.raises(UserError, match="another vocabulary"):
        run(tmp_path / "r", start, prompts, first=str(other))


def test_roles_share_the_prompts_exactly():
    sampler = Sampler(roles={"previous": 0.9, "start": 0.1})
    parts = sampler.shared_out(50, (0, 1))
    assert [len(part) for part in parts.values()] == [45, 5]
    assert sorted(parts["previous"] + parts["start"]) == list(range(50))
    assert parts != sampler.shared_out(50, (0, 2))


def test_an_edited_function_and_an_edited_template_are_other_annotators(tmp_path, monkeypatch):
    module = tmp_path / "own_judge.py"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def identity(body):
        module.write_text(f"def score(prompts, responses, references):\n    return {body}\n")
        importlib.invalidate_caches()
        sys.modules.pop("own_judge", None)
        linecache.clearcache()
        made = get_annotator("own_judge:score")
        assert dict(made.identity())["source"] == own_code("own_judge:score", annotator_names())
        return dict(made.identity())

    first = identity("[0.0] * len(responses)")
    assert identity("[1.0] * len(responses)") != first
    assert identity("[0.0] * len(responses)") == first
    assert own_code("own_judge:score", {"own_judge"}) is None

    template = tmp_path / "question.txt"
    template.write_text("Which is better?")
    named = round_labels.files_of(f"llm:mode=pairwise,template={template}")
    assert [each["file"] for each in named] == [str(template)]
