"""Text and Markdown tables."""

import math

from jaxalign.evaluation import tables

ROWS = [{"policy": "sft", "reward": -0.5, "n": 10}, {"policy": "dro|v", "reward": 0.25, "n": 9}]


def test_text_table_aligns_numbers_right_and_text_left():
    assert tables.text_table(ROWS, digits=2).splitlines() == [
        "policy  reward   n",
        "------  ------  --",
        "sft      -0.50  10",
        "dro|v     0.25   9",
    ]


def test_markdown_table_escapes_pipes_and_marks_number_columns():
    lines = tables.markdown_table(ROWS, ["policy", "reward"]).splitlines()
    assert lines == [
        "| policy | reward |",
        "|---|---:|",
        "| sft | -0.500 |",
        "| dro\\|v | 0.250 |",
    ]


def test_missing_and_undefined_cells_are_dashes():
    assert tables.text_table([{"a": math.nan}, {"b": 1}]).splitlines()[2:] == ["-  -", "-  1"]


def test_columns_default_to_the_keys_in_order_of_appearance():
    assert tables.text_table([{"b": 1}, {"a": 2}]).splitlines()[0] == "b  a"


def test_small_numbers_keep_their_size():
    assert tables.format_cell(0.00012) == "1.2e-04"
    assert tables.format_cell(0.0) == "0.000"
    assert tables.format_interval(0.5, 0.4, 0.6, 1) == "0.5 [0.4, 0.6]"
    assert tables.format_spread(0.5, math.nan, 1) == "0.5"
    assert tables.format_spread(0.5, 0.1, 1) == "0.5 ± 0.1"
