"""Vectors of items from every source."""

import numpy as np
import pytest
from PIL import Image

from jaxalign.errors import UserError
from jaxalign.retrieval.item_features import get_features
from jaxalign.retrieval.items import Items


def items(lines, path="items.jsonl"):
    return Items([line["item"] for line in lines], lines, path)


@pytest.fixture
def stored(tmp_path):
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.save(tmp_path / "x.npy", array)
    return str(tmp_path / "x.npy"), array


def test_rows_of_an_array_follow_the_order_or_the_rows_that_items_name(stored):
    path, array = stored
    source = get_features(f"array:{path}")
    np.testing.assert_array_equal(source.vectors(items([{"item": i} for i in range(3)])), array)
    named = items([{"item": "b", "row": 2}, {"item": "a", "row": 0}])
    np.testing.assert_array_equal(source.vectors(named), array[[2, 0]])
    with pytest.raises(UserError, match="has 3 rows for the 2 items"):
        source.vectors(items([{"item": 0}, {"item": 1}]))
    with pytest.raises(UserError, match="row 3 is none of the 3 rows"):
        source.vectors(items([{"item": 0, "row": 3}]))


def test_pictures_are_pixels_between_0_and_1(tmp_path):
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "red.png")
    lines = [{"item": "red", "image": "red.png"}]
    found = get_features("pictures:size=2").vectors(items(lines, str(tmp_path / "items.jsonl")))
    np.testing.assert_array_equal(found, [[1, 0, 0] * 4])
    pixels = np.full((1, 2, 2, 3), 51, np.uint8)
    np.savez(tmp_path / "p.npz", images=pixels)
    again = get_features(f"pictures:path={tmp_path / 'p.npz'}").vectors(items([{"item": 0}]))
    np.testing.assert_allclose(again, np.full((1, 12), 0.2))


def test_vectors_of_texts_come_from_annotators():
    found = get_features("features:words,characters").vectors(
        items([{"item": 0, "text": "a red star"}, {"item": 1, "text": "moon"}])
    )
    np.testing.assert_array_equal(found, [[3, 10], [1, 4]])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nothing", "no source of features named 'nothing'"),
        ("length", "gives scores, and items need vectors"),
        ("features:words", "has no text"),
        ("pictures", '"image" is missing'),
        ("array:none.npy", "no such file"),
        ("pictures:size=0", "pictures.size is 0"),
    ],
)
def test_sources_that_do_not_fit_the_items_are_refused(spec, message):
    with pytest.raises(UserError, match=message):
        get_features(spec).vectors(items([{"item": 0}]))
