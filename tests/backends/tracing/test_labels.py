import numpy as np

from freeprune.backends.tracing.labels import blocks, collapse, keep_masks, on_dim, reshaped, support


def ids(*shape):
    return np.arange(1, 1 + int(np.prod(shape))).reshape(shape)


def test_blocks_pair_dimensions_of_equal_count():
    assert blocks((6, 4), (2, 3, 4)) == [([0], [0, 1]), ([1], [2])]
    assert blocks((2, 1, 3, 4), (6, 4)) == [([0, 2], [0]), ([3], [1])]
    assert blocks((4, 6), (8, 3)) == [([0, 1], [0, 1])]


def test_a_flatten_repeats_each_channel_over_its_positions():
    moved, split = reshaped(on_dim(ids(3), 1, 4), (1, 3, 2, 2), (1, 12))
    assert moved.tolist() == [[1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]]
    assert not split


def test_a_split_dimension_is_reported():
    moved, split = reshaped(on_dim(ids(6), 1, 2), (5, 6), (5, 2, 3))
    assert moved.tolist() == [[[1, 2, 3], [4, 5, 6]]]
    assert split


def test_a_reshape_elsewhere_leaves_a_layer_small():
    moved, split = reshaped(on_dim(ids(3), 1, 3), (2, 3, 16), (2, 3, 4, 4))
    assert moved.shape == (1, 3, 1, 1)
    assert not split


def test_collapse_drops_dimensions_that_do_not_vary():
    layer = np.broadcast_to(ids(3), (2, 3))
    assert support(collapse(layer)) == (1,)
    assert collapse(layer).tolist() == [[1, 2, 3]]


def test_keep_masks_refuse_what_is_not_a_box():
    kept = np.array([True, True, False, True, True])
    masks = keep_masks([on_dim(np.array([1, 2, 3]), 1, 2)], kept)
    assert masks is not None
    assert {dim: mask.tolist() for dim, mask in masks.items()} == {1: [True, False, True]}
    assert keep_masks([ids(2, 2)], kept) is None
    box = keep_masks([ids(2, 2)], np.array([True, True, False, True, False]))
    assert box is not None
    assert {dim: mask.tolist() for dim, mask in box.items()} == {0: [True, True], 1: [True, False]}
