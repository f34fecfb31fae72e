"""Milliseconds of a layer between the sizes that it was timed at."""

from types import SimpleNamespace

import numpy as np
from toys import milliseconds

from freeprune.engine.latency.layers import Layer
from freeprune.engine.latency.tables import Reach, Tables, grid, table

BLOCKED, PLAIN = SimpleNamespace(step=8, alignment=4), SimpleNamespace(step=16, alignment=1)


def linear(rows, columns):
    return Layer("MatMul", rows, columns, 1, (), (4,), 4)


def law(layer, rows, columns):
    return milliseconds(rows, columns)


def measured(layer, reach, measure, runtime=BLOCKED):
    sizes = grid(layer, reach, runtime)
    return table(layer, sizes, {point: measure(layer, *point) for point in sizes.points})


def at(one, rows, columns):
    """Milliseconds of a single table."""
    rows, columns = np.asarray(rows), np.asarray(columns)
    return Tables([one], [0])(rows.reshape(-1, 1), columns.reshape(-1, 1)).reshape(rows.shape)


def test_a_table_is_exact_at_its_points_and_bilinear_between():
    layer = linear(64, 40)
    narrow = measured(layer, Reach(4, 40, (8, 8)), law)
    assert narrow.rows.tolist() == [4, 8, 16, 32, 40, 56, 64]
    assert narrow.columns.tolist() == [40]
    full = measured(layer, Reach(8, 8, (8, 8)), law)
    points = np.meshgrid(full.rows, full.columns, indexing="ij")
    assert np.array_equal(at(full, *points), law(layer, *points))
    # The law is bilinear itself, so that interpolation reproduces it.
    between = np.array([[9, 63, 30]]), np.array([[39, 8, 17]])
    assert np.allclose(at(full, *between), law(layer, *between))
    assert at(full, 3, 2) == law(layer, 8, 8)


def test_many_calls_are_looked_up_at_once():
    """Three calls of two layers; a table of one size, whose corners beyond it are another's, and one of many."""
    small, large = linear(8, 8), linear(64, 40)
    tables = [measured(small, Reach(8, 8, (0, 0)), law), measured(large, Reach(8, 8, (8, 8)), law)]
    found = Tables(tables, [1, 0, 1])(np.array([[24, 8, 64], [8, 3, 9]]), np.array([[32, 8, 40], [16, 2, 39]]))
    same = law(small, 8, 8)
    assert np.allclose(found, [[law(large, 24, 32), same, law(large, 64, 40)], [law(large, 8, 16), same, law(large, 9, 39)]])
    assert Tables([], [])(np.zeros((2, 0), np.int64), np.zeros((2, 0), np.int64)).shape == (2, 0)


def test_a_table_is_monotone_whatever_is_measured():
    rng = np.random.default_rng(0)
    random = measured(linear(64, 64), Reach(8, 8, (8, 8)), lambda *_: rng.random())
    assert (np.diff(random.ms, axis=0) >= 0).all()
    assert (np.diff(random.ms, axis=1) >= 0).all()


def test_where_any_width_may_be_proposed_a_point_stands_for_the_slow_ones_too():
    def blocked(layer, rows, columns):
        return 1.0 if columns % 4 == 0 else 3.0

    free = measured(linear(16, 32), Reach(8, 8, (1, 1)), blocked)
    assert at(free, 16, 32) == (1 + 3 + 3 + 3) / 4
    rounded = measured(linear(16, 32), Reach(8, 8, (8, 8)), blocked)
    assert (rounded.ms == 1).all()


def test_the_runtime_says_at_which_widths_a_layer_is_timed():
    sizes = grid(linear(64, 64), Reach(5, 5, (1, 1)), PLAIN)
    assert sizes.rows == sizes.columns == (5, 16, 32, 48, 64)
    assert sizes.widths == ((5,), (16,), (32,), (48,), (64,))
    assert sizes.points == [(rows, columns) for rows in sizes.rows for columns in sizes.columns]
    blocked = grid(linear(8, 16), Reach(8, 6, (1, 1)), BLOCKED)
    assert blocked.widths == ((6,), (8, 7, 6), (16, 15, 14, 13))
    assert blocked.points == [(8, columns) for columns in (6, 8, 7, 16, 15, 14, 13)]


def test_where_few_sizes_can_be_left_it_is_those_that_are_timed():
    assert grid(linear(64, 60), Reach(16, 20, (16, 8)), BLOCKED).rows == (16, 32, 48, 64)
    assert grid(linear(64, 60), Reach(16, 20, (16, 8)), BLOCKED).columns == (20, 28, 36, 44, 52, 60)
    assert grid(linear(64, 60), Reach(64, 20, (0, 16)), BLOCKED).rows == (64,)
    assert grid(linear(64, 256), Reach(16, 16, (16, 16)), BLOCKED).columns == (16, 64, 112, 160, 208, 256)


def test_grouped_convolutions_have_one_axis_and_count_within_groups_in_proportion():
    layer = Layer("Conv", 32, 4, 8, (3, 3), (1, 8, 8), 64, (("pads", (1, 1, 1, 1)), ("strides", (1, 1)), ("dilations", (1, 1))))
    grouped = measured(layer, Reach(8, 2, (1, 1)), lambda layer, rows, columns: float(rows))
    assert grouped.columns.tolist() == [4]
    assert at(grouped, [16, 16], [4, 2]).tolist() == [16.0, 8.0]
