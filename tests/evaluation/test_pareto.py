"""Pareto fronts: domination by its definition, areas by hand and by counting."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxalign.evaluation.pareto import hypervolume, non_dominated

# Small whole numbers, so that ties are common and areas are exact.
POINTS = st.lists(st.tuples(st.integers(-3, 6), st.integers(-3, 6)), min_size=1, max_size=12)


def dominates(one, other):
    return all(a >= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)


@given(points=POINTS)
def test_a_point_is_kept_unless_another_dominates_it(points):
    expected = [not any(dominates(other, point) for other in points) for point in points]
    np.testing.assert_array_equal(non_dominated(np.array(points, float)), expected)


def test_three_objectives_and_equal_points():
    points = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0], [0, 1, 0]], float)
    np.testing.assert_array_equal(non_dominated(points), [True, True, True, False, True])
    assert non_dominated(np.zeros((0, 2))).shape == (0,)


@pytest.mark.parametrize(
    ("points", "area"),
    [
        ([[2, 3]], 6.0),
        ([[3, 1], [1, 2]], 4.0),
        ([[3, 1], [1, 2], [1, 1], [3, 1]], 4.0),
        ([[-1, 5], [5, -1], [0, 5]], 0.0),
        ([[0.5, 0.5], [-3, 9]], 0.25),
    ],
)
def test_areas_by_hand(points, area):
    assert hypervolume(np.array(points, float), np.zeros(2)) == pytest.approx(area)


@given(points=POINTS)
def test_the_area_is_the_number_of_dominated_unit_squares(points):
    """Between the corner (-1, -1) and the points."""
    squares = {(x, y) for right, top in points for x in range(-1, right) for y in range(-1, top)}
    assert hypervolume(np.array(points, float), np.array([-1.0, -1.0])) == len(squares)


@given(points=POINTS)
def test_dominated_points_and_order_do_not_matter(points):
    array, corner = np.array(points, float), np.array([-3.0, -3.0])
    whole = hypervolume(array, corner)
    assert hypervolume(array[non_dominated(array)], corner) == whole
    assert hypervolume(array[::-1], corner) == whole


def test_bad_points_are_refused():
    with pytest.raises(ValueError, match="must be"):
        non_dominated(np.zeros(3))
    with pytest.raises(ValueError, match="NaN or infinity"):
        non_dominated(np.array([[0.0, np.nan]]))
    with pytest.raises(ValueError, match="two objectives"):
        hypervolume(np.zeros((2, 3)), np.zeros(3))
    with pytest.raises(ValueError, match="not finite"):
        hypervolume(np.zeros((2, 2)), np.array([0.0, np.inf]))
