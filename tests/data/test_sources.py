import json

import pytest

from jaxalign.data import bundled_sources, slots, sources, synthetic
from jaxalign.data.rejections import DataError, RejectionLog
from jaxalign.data.ultrafeedback import ASPECTS, UltraFeedbackParser


def test_splits_are_by_prompt_and_have_about_the_shares_asked_for():
    fractions = {"train": 0.7, "validation": 0.2, "test": 0.1}
    prompts = [f"p{i}" for i in range(2000)]
    found = [sources.split_of_prompt(prompt, fractions) for prompt in prompts]
    assert found == [sources.split_of_prompt(prompt, fractions) for prompt in prompts]
    for name, share in fractions.items():
        assert found.count(name) / len(prompts) == pytest.approx(share, abs=0.03)
    assert found != [sources.split_of_prompt(prompt, fractions, seed=1) for prompt in prompts]


def test_unknown_splits_and_files_are_named(write_lines):
    source = sources.JsonlSource({"train": write_lines([{}])}, "triplet")
    with pytest.raises(DataError, match="no split 'test'; it has train, validation"):
        list(source.records("test"))
    with pytest.raises(DataError, match=r"No file matches .*nothing"):
        list(sources.JsonlSource({"train": "nothing*.jsonl"}, "triplet").records("train"))


# The bundled task.


def test_the_oracle_counts_exactly():
    prompt = "inform restaurant ( name = golden lion ; food = thai ; price = cheap )"

    def count(response):
        errors = synthetic.slot_errors(prompt, response)
        return errors.missing, errors.invented, errors.total

    assert count("golden lion is a restaurant serving thai food with cheap prices .") == (0, 0, 3)
    assert count("golden lion is a restaurant serving thai food .") == (1, 0, 3)
    assert count("golden lion is a restaurant serving indian food with cheap prices .") == (1, 1, 3)
    assert count("golden lion serving thai food , cheap , near the harbour .") == (0, 1, 3)
    assert count("") == (3, 0, 3)
    assert synthetic.slot_errors(prompt, "red dragon").rate == pytest.approx(4 / 3)


def test_clean_sentences_have_no_errors_and_careless_ones_the_rate_asked_for():
    prompts = synthetic.make_prompts(300, seed=0)
    assert len(set(prompts)) == 300
    clean = synthetic.make_records("triplet", prompts, behaviour=synthetic.CLEAN)
    assert {record.feedback for record in clean} == {(0.0,)}
    careless = synthetic.Behaviour(error_rates=(0.5,), wrong_share=0.0, extra_rate=0.0)
    data = list(synthetic.make_records("triplet", prompts, behaviour=careless))
    assert sum(-r.feedback[0] for r in data) / len(data) == pytest.approx(0.5, abs=0.04)


def test_prompts_of_the_bundled_task_differ_in_difficulty():
    prompts = synthetic.make_prompts(1500, seed=0)
    errors = {}
    for record in synthetic.make_records("triplet", prompts):
        domain = record.prompt.split()[1]
        errors.setdefault(domain, []).append(-record.feedback[0])
    means = {domain: sum(found) / len(found) for domain, found in errors.items()}
    assert means["restaurant"] < 0.2 < means["hotel"] < 0.5 < means["laptop"]
    assert {len(synthetic.parse_act(prompt)) for prompt in prompts} == {2, 3, 4, 5}
    # Slots of numbers and degrees are mistaken more often, with the same writer.
    missed = {}
    for prompt in prompts:
        if prompt.split()[1] == "hotel":
            (record,) = synthetic.make_records("seq2seq", [prompt])
            for slot, value in synthetic.parse_act(prompt)[1:]:
                missed.setdefault(slot, []).append(value not in record.responses[0])
    rates = {slot: sum(found) / len(found) for slot, found in missed.items()}
    assert min(rates["stars"], rates["parking"]) > max(rates["price"], rates["area"])


def test_the_values_of_different_slots_never_share_a_word():
    """Otherwise a mention could be credited to the wrong slot, and the oracle would not be exact."""
    seen = {}
    fixed = " ".join(
        [
            *(phrase for phrases in synthetic._PHRASES.values() for phrase in phrases),
            *(o for by in synthetic._OPENINGS.values() for os in by.values() for o in os),
        ]
    ).split()
    for slot, values in synthetic.VALUES.items():
        for word in {word for value in values for word in value.split()}:
            assert seen.setdefault(word, slot) == slot
            assert word not in fixed


def test_synthetic_records_of_every_kind():
    prompts = synthetic.make_prompts(40, seed=0)
    for pair in synthetic.make_records("pair", prompts, responses_per_prompt=4):
        better, worse = (synthetic.slot_errors(pair.prompt, r).rate for r in pair.responses)
        assert better < worse
        assert pair.feedback == (pytest.approx(worse - better), 0.0)
    for ranked in synthetic.make_records("ranked", prompts, responses_per_prompt=4):
        assert list(ranked.feedback) == sorted(ranked.feedback, reverse=True)
        assert len(ranked.responses) == 4
    thumbs = synthetic.make_records("triplet", prompts, feedback="thumbs")
    assert {record.feedback[0] for record in thumbs} == {0.0, 1.0}


def test_difficulty_moves_all_responses_of_a_prompt_alike():
    prompts = synthetic.make_prompts(40, seed=0)
    plain = list(synthetic.make_records("triplet", prompts, responses_per_prompt=2))
    hard = list(
        synthetic.make_records("triplet", prompts, responses_per_prompt=2, difficulty_weight=2.0)
    )
    shifts = {}
    for a, b in zip(plain, hard, strict=True):
        shift = round(a.feedback[0] - b.feedback[0], 9)
        assert shifts.setdefault(a.prompt, shift) == shift
    assert len(set(shifts.values())) > 2


def test_the_bundled_task_is_deterministic_and_its_splits_disjoint(tmp_path):
    source = bundled_sources.SyntheticSource("triplet", 50, 10)
    train, validation = (list(source.records(split)) for split in source.splits)
    assert train == list(source.records("train"))
    assert not {r.prompt for r in train} & {r.prompt for r in validation}
    paths = bundled_sources.write_triplets(str(tmp_path), num_prompts=50, num_validation=10)
    written = sources.JsonlSource(dict(zip(source.splits, paths, strict=True)), "triplet")
    for split, records in (("train", train), ("validation", validation)):
        assert [r.key for r in written.records(split)] == [r.key for r in records]


# Acts of real data.


@pytest.mark.parametrize(
    ("prompt", "response", "missing"),
    [
        ("inform(name='inn on castro';area='the castro')", "the Inn on Castro is in the castro", 0),
        ("inform(name='inn on castro';area='the castro')", "it is in the castro area", 1),
        ("inform(battery=3.5 hour;memory=4 gb)", "it has 4gb and 3.5 hour -s", 0),
        ("inform(weight=2.0 kg)", "it weighs 2 kg", 0),
        ("inform(hdmiport=2)", "it weighs 2.5 kg", 1),
        ("inform(hasusbport=false;family=dontcare)", "it has no usb port", 0),
        ("inform(hasusbport=false)", "it is nice", 1),
        ("?request(area)", "which one", 0),
        ("inform_count(type=laptop;count=12)", "there are 12", 0),
        ("?select(food=thai or french)", "do you want thai", 1),
        ("inform(ecorating=a+)", "an a++ rating", 1),
        ("inform(name='X',near='X',food=Italian)", "x is an italian place near x", 0),
    ],
)
def test_rules_for_mentions(prompt, response, missing):
    assert slots.slot_errors(prompt, response).missing == missing


def test_invented_values_need_a_lexicon_and_are_unmistakable():
    lexicon = slots.Lexicon(
        ["inform(name='inn on castro';area='the castro')", "inform(memory=4 gb;pricerange=cheap)"]
    )
    act = "inform(name='grand hotel';memory=8 gb)"
    assert slots.slot_errors(act, "grand hotel has 8 gb", lexicon).errors == 0
    wrong = slots.slot_errors(act, "inn on castro has 4 gb , cheap", lexicon)
    assert (wrong.missing, wrong.invented) == (2, 2)
    assert slots.slot_errors(act, "inn on castro has 4 gb , cheap").invented == 0
    delexicalised = slots.slot_errors("inform(name=SLOT_NAME)", "SLOT_NAME in SLOT_AREA")
    assert (delexicalised.missing, delexicalised.invented) == (0, 1)


def with_values(text, values):
    """The text with values in place of their placeholders; the longest first, as SLOT_NAME is the beginning of SLOT_NAME_2."""
    for placeholder in sorted(values, key=len, reverse=True):
        text = text.replace(placeholder, values[placeholder])
    return text


def test_delexicalisation_and_back():
    act = "?compare(name=tecra 5;memory=4 gb;name=tecra 55;memory=4 gb;isforbusinesscomputing=true)"
    response = "the tecra 5 has 4 gb and tecra 55 has 4 gb for business"
    plain_act, plain, values = slots.delexicalise(act, response)
    assert plain_act == (
        "?compare(name=SLOT_NAME;memory=SLOT_MEMORY;name=SLOT_NAME_2;memory=SLOT_MEMORY_2;"
        "isforbusinesscomputing=true)"
    )
    assert plain == "the SLOT_NAME has SLOT_MEMORY and SLOT_NAME_2 has SLOT_MEMORY_2 for business"
    assert with_values(plain, values) == response
    assert with_values(plain_act, values) == act
    assert slots.delexicalise_act(act)[0] == plain_act
    assert slots.placeholders([plain]) == [
        "SLOT_MEMORY",
        "SLOT_MEMORY_2",
        "SLOT_NAME",
        "SLOT_NAME_2",
    ]


def test_human_references_have_few_slot_errors(shared_dir):
    """Measured: 0.004 with the lexicon of the training acts, 0.005 after delexicalisation."""

    def read(split):
        with open(shared_dir / f"data/rnnlg.seq2seq.{split}.jsonl", encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    lexicon = slots.Lexicon(row["prompt"] for row in read("train"))
    total = errors = plain_errors = 0
    for row in read("dev"):
        found = slots.slot_errors(row["prompt"], row["response"], lexicon)
        total += found.total
        errors += found.errors
        act, response, values = slots.delexicalise(row["prompt"], row["response"])
        plain_errors += slots.slot_errors(act, response).errors
        assert slots.words(with_values(response, values)) == slots.words(row["response"])
    assert errors / total < 0.02
    assert plain_errors / total < 0.02
    swapped = read("dev")
    wrong = [
        slots.slot_errors(a["prompt"], b["response"], lexicon)
        for a, b in zip(swapped, swapped[700:], strict=False)
    ]
    assert sum(e.errors for e in wrong) / sum(e.total for e in wrong) > 0.8


# UltraFeedback.


def as_columns(objects):
    """A list of objects as an object of lists, all the way down, as TFDS gives sequences of dictionaries."""
    return {
        key: as_columns([o[key] for o in objects])
        if isinstance(objects[0][key], dict)
        else [o[key] for o in objects]
        for key in objects[0]
    }


def ultrafeedback(rating="4", source="evol_instruct", number=0, columnar=False):
    def completion(k):
        return {
            "model": f"m{k}",
            "response": f"answer {number} {k}",
            "overall_score": 10.0 - k,
            "fine-grained_score": 4.5,
            "critique": "fine",
            "annotations": {
                aspect: {"Rating": rating if a == 0 else str(a + k), "Rationale": "because"}
                for a, aspect in enumerate(ASPECTS)
            },
        }

    completions = [completion(k) for k in range(2)]
    if columnar:
        completions = as_columns(completions)
    return {"instruction": f"question {number}", "source": source, "completions": completions}


def read_ultrafeedback(path, log=None, **options):
    parser = UltraFeedbackParser(**options)
    source = sources.JsonlSource({"train": path, "validation": path}, parser.kind, parser=parser)
    return list(source.records("train", log))


def test_ultrafeedback_reward_fields(write_lines):
    path = write_lines([ultrafeedback(), ultrafeedback(number=1, columnar=True)])
    mean = read_ultrafeedback(path)
    assert [r.feedback[0] for r in mean] == [(4 + 1 + 2 + 3) / 4, (4 + 2 + 3 + 4) / 4] * 2
    assert mean[0].prompt == "question 0"
    assert mean[3].responses == ("answer 1 1",)
    overall = read_ultrafeedback(path, reward_field="overall_score")
    assert [r.feedback[0] for r in overall] == [10.0, 9.0] * 2
    helpful = read_ultrafeedback(path, reward_field="helpfulness")
    assert [r.feedback[0] for r in helpful] == [3.0, 4.0] * 2
    multi = read_ultrafeedback(path, kind="multi")
    assert multi[0].scores == ((4.0, 1.0, 2.0, 3.0),)
    with pytest.raises(ValueError, match="Unknown reward_field 'quality'"):
        UltraFeedbackParser(reward_field="quality")


def test_ultrafeedback_reports_what_it_cannot_use(write_lines):
    path = write_lines(
        [
            ultrafeedback(),
            ultrafeedback("N/A", number=1),
            ultrafeedback(source="truthful_qa", number=2),
            {"source": "x", "completions": []},
            ultrafeedback(None, number=3),
        ]
    )
    log = RejectionLog()
    assert len(read_ultrafeedback(path, log)) == 2
    assert log.counts == {"missing_rating": 4, "missing_field": 1}
    assert [entry["line"] for entry in log.entries] == [2, 2, 4, 5, 5]
    assert log.notes == {"dropped_truthful_qa": 1}
    assert "'N/A'" in log.entries[0]["message"]
    assert log.seen == 2 + 4 + 1
    helpful = read_ultrafeedback(path, RejectionLog(), reward_field="helpfulness")
    assert len(helpful) == 6
