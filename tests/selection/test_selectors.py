"""Selectors: every one is a pure function that counts what it leaves out."""

import dataclasses
import math
import re

import numpy as np
import pytest

from jaxalign.data.candidates import read_candidates, write_candidates
from jaxalign.data.records import parse_record
from jaxalign.data.rejections import DataError
from jaxalign.errors import UserError
from jaxalign.selection.select import apply_selector
from jaxalign.selection.selectors import get_selector, selector_names

SCORES = [[0.1, 0.9, 0.5], [0.3, 0.3, 0.3], [0.2, math.nan, 0.4]]


@pytest.fixture
def judged(make):
    return make({"judge": ("scores", SCORES)})


def pairs(selection):
    return [(line["prompt"], line["chosen"], line["rejected"]) for line in selection.lines]


def test_the_best_is_paired_with_the_worst_and_ties_and_missing_scores_are_counted(judged):
    found = get_selector("best_worst")(judged)
    assert pairs(found) == [("p0", "r1", "r0"), ("p2", "r2", "r0")]
    assert found.lines[0]["margin"] == pytest.approx(0.8)
    assert found.dropped == {"response without annotation": 1, "tie": 1}


def test_all_pairs_have_the_better_response_first_and_a_positive_margin(judged):
    found = get_selector("all_pairs")(judged)
    assert pairs(found) == [
        ("p0", "r1", "r0"), ("p0", "r2", "r0"), ("p0", "r1", "r2"), ("p2", "r2", "r0"),
    ]  # fmt: skip
    assert all(line["margin"] > 0 for line in found.lines)
    assert found.dropped["tie"] == 3


def test_small_margins_are_left_out(judged):
    found = get_selector("all_pairs:min_margin=0.45")(judged)
    assert pairs(found) == [("p0", "r1", "r0")]
    assert found.dropped["margin below min_margin"] == 3


def test_empty_and_repeated_responses_are_never_selected(make):
    judged = make({"judge": ("scores", [[1, 0, 2, 3]])}, [["a", "b", " a ", " "]])
    found = get_selector("best_worst")(judged)
    assert pairs(found) == [("p0", "a", "b")]
    assert found.dropped == {"duplicate response": 1, "empty response": 1}


def test_preferences_are_read_as_mean_probabilities_of_winning(make):
    preferences = [[[math.nan, 0.8, 0.6], [0.2, math.nan, math.nan], [0.4, math.nan, math.nan]]]
    found = get_selector("best_worst")(make({"judge": ("preferences", preferences)}))
    assert pairs(found) == [("p0", "r0", "r1")]
    assert found.lines[0]["margin"] == pytest.approx(0.7 - 0.2)


def test_a_threshold_keeps_what_is_above_it(judged):
    found = get_selector("threshold:threshold=0.3")(judged)
    assert [(line["prompt"], line["response"]) for line in found.lines] == [
        ("p0", "r1"), ("p0", "r2"), ("p2", "r2"),
    ]  # fmt: skip
    assert found.dropped["response not above the threshold"] == 5


def test_thumbs_keep_every_response(judged):
    found = get_selector("threshold:threshold=0.3,records=triplet")(judged)
    assert [line["feedback"] for line in found.lines] == [0, 1, 1, 0, 0, 0, 0, 1]


def test_the_best_of_the_first_n_is_kept(judged):
    texts = [line["response"] for line in get_selector("best_of_n")(judged).lines]
    assert texts == ["r1", "r0", "r2"]
    texts = [line["response"] for line in get_selector("best_of_n:n=1")(judged).lines]
    assert texts == ["r0", "r0", "r0"]


def test_self_labels_have_the_probability_of_their_margin(make):
    rewards = make({"implicit_reward": ("scores", [[0.0, 2.0, -1.0], [0.5, 0.5, 0.5]])})
    found = get_selector("self_labels")(rewards)
    assert pairs(found) == [("p0", "r1", "r2")]
    assert found.lines[0]["margin"] == pytest.approx(3.0)
    assert found.lines[0]["probability"] == pytest.approx(1 / (1 + math.exp(-3)))
    assert found.dropped == {"tie": 1}


def test_self_labels_against_the_sampler_itself_say_that_everything_ties(make):
    rewards = make({"implicit_reward": ("scores", [[0.0, 0.0], [0.0, 0.0]])})
    with pytest.raises(DataError, match=r"c.jsonl: .*2 x tie.*every pair ties"):
        apply_selector(get_selector("self_labels"), rewards, "self_labels")


def test_the_own_sample_is_third_even_if_it_is_the_best(make):
    judged = make({"judge": ("scores", [[3, 2, 1], [2, 3, 1]])}, [["own", "c", "r"]] * 2)
    found = get_selector("reference_ranked")(judged)
    assert [line["responses"] for line in found.lines] == [["own", "r", "own"], ["c", "r", "own"]]
    assert found.measures == {"own_is_best": 0.5, "own_is_worst": 0.0}
    assert parse_record(found.lines[0], "ranked").responses == ("own", "r", "own")


def test_an_own_sample_that_repeats_the_logged_response_still_stands_third(make):
    judged = make({"judge": ("scores", [[1, 2, 1]])}, [["r", "c", "r"]])
    found = get_selector("reference_ranked")(judged)
    assert [line["responses"] for line in found.lines] == [["c", "r", "r"]]


def test_logged_pairs_join_the_own_samples_of_their_prompts(make, tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "p1", "chosen": "c", "rejected": "r"}\n')
    own = make({"judge": ("scores", [[1], [2]])}, [["a"], ["b"]])
    found = get_selector(f"with_logged:{tmp_path / 'pairs.jsonl'}")(own)
    assert [line["responses"] for line in found.lines] == [["b", "c", "r"]]
    assert found.dropped == {"prompt without logged responses": 1}


def preferences(table):
    return [np.array(table, float)]


INTRANSITIVE = [[math.nan, 0.9, 0.45], [0.1, math.nan, 0.6], [0.55, 0.4, math.nan]]


def test_soft_labels_have_the_preferred_response_first_even_against_the_ranking(make):
    judged = make({"self_judge": ("preferences", preferences(INTRANSITIVE))})
    found = get_selector("ranked_pairs")(judged)
    margins = {(line["chosen"], line["rejected"]): line["margin"] for line in found.lines}
    # Ranked r0, r2, r1, but r2 beats r0 and r1 beats r2.
    expected = {("r2", "r0"): 0.55, ("r0", "r1"): 0.9, ("r1", "r2"): 0.6}
    assert margins == {pair: pytest.approx(value) for pair, value in expected.items()}
    assert found.measures["intransitive"] == pytest.approx(2 / 3)


def test_hard_labels_turn_an_intransitive_pair_around(make):
    judged = make({"self_judge": ("preferences", preferences(INTRANSITIVE))})
    found = get_selector("ranked_pairs:labels=argmax,band=0.08")(judged)
    assert set(pairs(found)) == {("p0", "r0", "r1"), ("p0", "r1", "r2")}
    assert {line["margin"] for line in found.lines} == {1.0}
    assert found.dropped["pair with a probability in the band around 1/2"] == 1


def test_one_order_of_a_comparison_is_enough_and_a_missing_one_is_counted(make):
    table = [[math.nan, 0.9, math.nan], [math.nan, math.nan, 0.8], [math.nan] * 3]
    found = get_selector("ranked_pairs")(make({"self_judge": ("preferences", preferences(table))}))
    assert set(pairs(found)) == {("p0", "r0", "r1"), ("p0", "r1", "r2")}
    assert found.dropped["pair without a comparison"] == 1


def test_low_loss_and_high_uncertainty_select(make, tmp_path):
    labelled = make({"loss": ("scores", [[1]]), "uncertainty": ("scores", [[0.1]])})
    write_candidates(tmp_path / "labelled.jsonl", labelled)
    pseudo = make(
        {"loss": ("scores", [[1], [2], [9]]), "uncertainty": ("scores", [[0.5], [0.1], [0.9]])}
    )
    spec = (
        "low_loss_uncertain:loss=loss,uncertainty=uncertainty,low_percentile=0,high_percentile=100,"
        f"labelled={tmp_path / 'labelled.jsonl'}"
    )
    found = get_selector(spec)(pseudo)
    # The hand example of the paper's rule: the bounds are 4/3 and 0.7/3.
    assert [line["prompt"] for line in found.lines] == ["p0"]
    assert found.measures["highest_loss"] == pytest.approx(4 / 3)
    assert found.measures["lowest_uncertainty"] == pytest.approx(0.7 / 3)
    assert found.dropped["loss above the bound"] == 2
    assert len(get_selector(f"{spec},control=true")(pseudo).lines) == 1


@pytest.mark.parametrize("shift,scale", [(3.0, 1.0), (0.0, 7.0)])
def test_losses_may_be_shifted_and_uncertainties_scaled(make, shift, scale):
    generator = np.random.default_rng(0)
    losses, deviations = generator.random((40, 1)), generator.random((40, 1))

    def selected(losses, deviations):
        annotations = {"loss": ("scores", losses), "uncertainty": ("scores", deviations)}
        return [
            line["id"]
            for line in get_selector("low_loss_uncertain:loss=loss,uncertainty=uncertainty")(
                make(annotations)
            ).lines
        ]

    assert selected(losses, deviations) == selected(losses + shift, deviations * scale)


def test_a_budget_keeps_the_prompts_with_the_largest_spread_in_order(judged):
    found = get_selector("budget:n=2,mode=highest,by=judge")(judged)
    assert [line["id"] for line in found.lines] == [0, 2]
    assert found.kind == "candidates"


def test_a_budget_is_a_whole_number_or_a_share(judged):
    assert len(get_selector("budget:n=1")(judged).lines) == 1
    with pytest.raises(UserError, match=r"n is 1\.5; give a whole number of prompts, or a share"):
        get_selector("budget:n=1.5")


def test_a_stratified_budget_is_shared_in_proportion(make):
    judged = make({"judge": ("scores", [[1, 2]] * 10)}, group=["a"] * 7 + ["b"] * 3)
    lines = get_selector("budget:n=4,group=group")(judged).lines
    assert sorted(line["group"] for line in lines) == ["a"] * 3 + ["b"]


def test_a_budget_by_a_field_of_the_lines(make):
    judged = make({"judge": ("scores", [[1, 2]] * 3)}, similarity=[0.3, 0.1, 0.2])
    lines = get_selector("budget:n=2,mode=lowest,by=similarity")(judged).lines
    assert [line["id"] for line in lines] == [1, 2]


@pytest.mark.parametrize(
    "spec,message",
    [
        ("best_worst:annotation=other", "no annotation 'other'"),
        ("ranked_pairs:annotation=judge", "holds scores; preferences are needed"),
        ("budget:n=4", "3 prompts to choose from, and the budget is 4"),
        ("budget:n=2,mode=lowest,by=x", "no annotation and no numbers 'x'"),
        ("joint_pairs:within=9,joint=0", "gives 4 comparisons within prompts"),
        ("best_worst:min_margin=5", "lower min_margin"),
    ],
)
def test_an_unsuitable_file_is_named_with_what_to_do(judged, spec, message):
    with pytest.raises(DataError, match=f"c.jsonl.*{message}"):
        apply_selector(get_selector(spec), judged, spec)


@pytest.mark.parametrize(
    "spec", ["threshold", "routed:mode=gain", "budget:n=1,mode=lowest", "similar_pairs:mode=soft"]
)
def test_impossible_settings_are_refused(spec):
    with pytest.raises(UserError):
        get_selector(spec)


def test_one_response_per_prompt_is_too_few(make):
    judged = make({"judge": ("scores", [[1], [2]])})
    with pytest.raises(DataError, match="sample more responses"):
        apply_selector(get_selector("best_worst"), judged, "best_worst")


def test_every_selector_stands_on_the_page(repository):
    # Not selector_names(): other tests of the process register selectors of their own.
    sources = sorted((repository / "jaxalign").rglob("*.py"))
    names = {
        name
        for source in sources
        for name in re.findall(r'@register_selector\("(\w+)"\)', source.read_text())
    }
    assert {"best_worst", "routed"} <= names <= set(selector_names())
    page = (repository / "docs" / "selection.md").read_text()
    assert not [name for name in names if f"## `{name}`" not in page]


def test_the_command_writes_records_and_what_was_done(judged, tmp_path, capsys):
    from jaxalign.selection.select import select

    write_candidates(tmp_path / "in.jsonl", judged)
    select(
        input=str(tmp_path / "in.jsonl"), selector="best_worst", output=str(tmp_path / "out.jsonl")
    )
    side = (tmp_path / "out.jsonl.selection.json").read_text()
    assert '"records": 2' in side and '"tie": 1' in side and '"min_margin": 0.0' in side
    assert "2 pair records of 3 prompts" in capsys.readouterr().out
    with pytest.raises(UserError, match="is the input"):
        select(
            input=str(tmp_path / "in.jsonl"),
            selector="best_worst",
            output=str(tmp_path / "in.jsonl"),
        )
    assert len(read_candidates(tmp_path / "in.jsonl")) == 3


def test_an_empty_selection_keeps_the_finished_file(judged, tmp_path):
    from jaxalign.selection.select import select

    write_candidates(tmp_path / "in.jsonl", judged)
    files = {"input": str(tmp_path / "in.jsonl"), "output": str(tmp_path / "out.jsonl")}
    for _ in range(2):
        select(selector="best_worst", **files)
    kept = (tmp_path / "out.jsonl").read_text()
    with pytest.raises(DataError):
        select(selector="best_worst:min_margin=9", **files)
    assert (tmp_path / "out.jsonl").read_text() == kept


def test_a_file_that_is_no_selection_is_not_replaced(judged, tmp_path):
    from jaxalign.selection.select import select

    write_candidates(tmp_path / "in.jsonl", judged)
    (tmp_path / "mine.jsonl").write_text("kept\n")
    with pytest.raises(UserError, match="not written by `jaxalign select`"):
        select(
            input=str(tmp_path / "in.jsonl"),
            selector="best_worst",
            output=str(tmp_path / "mine.jsonl"),
        )
    assert (tmp_path / "mine.jsonl").read_text() == "kept\n"


def test_a_repeated_response_counts_among_the_first_n(make):
    judged = make({"judge": ("scores", [[0.0, 0.0, 1.0]])}, [["a", "a", "b"]])
    assert get_selector("best_of_n:n=2")(judged).lines[0]["response"] == "a"
    assert get_selector("best_of_n:n=3")(judged).lines[0]["response"] == "b"


def test_an_unknown_vector_gives_no_similarity(make):
    rows = [[[1.0, 0.0], [math.nan, math.nan]], [[1.0, 0.0], [0.0, 1.0]]]
    found = get_selector("similar_pairs:mode=random")(make({"embedding": ("vectors", rows)}))
    assert ["similarity" in line for line in found.lines] == [False, True]
    assert found.measures["similarity"] == found.lines[1]["similarity"]


def test_a_prompt_on_two_lines_is_not_compared_with_itself(make):
    judged = make({"judge": ("scores", [[1.0], [2.0], [3.0]])}, [["a"], ["a"], ["b"]])
    judged = dataclasses.replace(judged, prompts=["p", "p", "q"])
    lines = get_selector("joint_pairs:within=0,joint=2")(judged).lines
    assert [line["prompt"] for line in lines] == ["q", "p", "q", "p"]
