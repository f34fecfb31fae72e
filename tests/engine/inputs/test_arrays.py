"""Arrays in .npz files, and scikit-learn's digits."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from data_sets import arrays, npz
from refusals import raises
from torch import nn

from freeprune.engine.inputs.batches import stack
from freeprune.engine.inputs.data import Asked, load_data


def test_npz_rgb_by_hand(tmp_path):
    data = load_data(npz(tmp_path))
    assert data.classes == ("0", "1", "2")
    assert (data.mean, data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    image, label = data.train[1]
    assert image.shape == (3, 4, 5)
    assert label == 1
    # Image 1 begins at value 60: its second channel, row 0, column 2 is 60 + 3 * 2 + 1.
    assert image[1, 0, 2].item() == pytest.approx((67 / 255 - 0.456) / 0.224, abs=1e-6)
    assert len(data.test) == 3


@pytest.mark.parametrize("shape", [(12, 4, 5), (12, 4, 5, 1)])
def test_npz_images_of_one_channel_span_minus_one_to_one(tmp_path, shape):
    images = np.full(shape, 255, np.uint8)
    data = load_data(npz(tmp_path, x_train=images, x_test=images[:3]))
    assert (data.mean, data.std, data.augment) == ((0.5,), (0.5,), False)
    torch.testing.assert_close(data.train[0][0], torch.ones(1, 4, 5))


def test_npz_float_is_taken_as_it_is(tmp_path):
    images = np.random.default_rng(0).normal(size=(12, 2, 4, 5)).astype(np.float32)
    spec = npz(tmp_path, x_train=images, x_test=images[:3])
    data = load_data(spec)
    assert (data.mean, data.std) == ((0.0, 0.0), (1.0, 1.0))
    np.testing.assert_array_equal(data.train[3][0].numpy(), images[3])
    scaled = load_data(Asked(spec, mean=(1, 0), std=(1, 2))).train[3][0].numpy()
    np.testing.assert_allclose(scaled[0], images[3, 0] - 1, atol=1e-6)
    np.testing.assert_allclose(scaled[1], images[3, 1] / 2, atol=1e-6)


@pytest.mark.parametrize(("height", "channels", "augment"), [(24, 3, True), (23, 3, False), (24, 1, False)])
def test_augmentation_is_for_photographs(tmp_path, height, channels, augment):
    images = np.zeros((12, height, 30, channels), np.uint8)
    assert load_data(npz(tmp_path, x_train=images, x_test=images[:3])).augment is augment


IMAGES = arrays()["x_train"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"y_train": np.arange(11) % 3}, r"y_train is int64 \(11,\); expected numbers \(12, ...\), a label for each item"),
        ({"y_test": np.array(3)}, r"y_test is int64 \(\); expected numbers \(3, ...\)"),
        ({"y_test": np.zeros((3, 2))}, r"y_train is int64 .12,. and y_test is float64 .3, 2.; expected labels of one shape"),
        ({"y_train": np.array(["ant", "bee"] * 6)}, r"y_train is <U3 \(12,\); expected numbers .*number the classes from 0"),
        ({"x_test": IMAGES[:3, :3]}, r"x_train is uint8 .* and x_test is uint8 .*one shape of their rows"),
        ({"x_test": IMAGES[:3].transpose(0, 3, 1, 2).astype(np.float32)}, "one type"),
        ({"x_train": IMAGES[:, 0, 0]}, r"x_train is uint8 \(12, 3\); expected images, uint8"),
        ({"x_train": IMAGES > 3}, r"x_train is bool .*; expected images, uint8"),
        ({"x_test": IMAGES[:0], "y_test": np.zeros(0, np.int64)}, "x_test is .*; expected at least one image"),
        ({"x_train": np.full((12, 3, 4, 5), np.nan, np.float32)}, "x_train .* NaN or infinite"),
        ({"y_train": np.array([{}] * 12)}, "cannot be read .*allow_pickle"),
    ],
)
def test_arrays_that_will_not_do(tmp_path, changes, sentence):
    spec = npz(tmp_path, **changes)
    with raises(sentence) as caught:
        load_data(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "labels",
    [
        np.linspace(0, 1, 12),
        np.linspace(0, 1, 24, dtype=np.float16).reshape(12, 2),
        np.arange(12)[:, None] % 3,
        np.arange(12) % 2 == 0,
        np.eye(3)[np.arange(12) % 3],
        np.eye(3, dtype=np.uint8)[np.arange(12) % 3],
        np.arange(12 * 20).reshape(12, 4, 5).astype(np.uint8) % 3,
        np.arange(12, dtype=">i2"),
    ],
)
def test_labels_of_an_npz_file_may_be_of_any_task(tmp_path, labels):
    """One by one, in a batch and as the training reads them."""
    data = load_data(npz(tmp_path, y_train=labels, y_test=labels[:3]))
    for found in (stack(data.train, range(12), task=None)[1], data.train.raw(list(range(12)))[1]):
        np.testing.assert_array_equal(found.float().numpy(), labels.astype(np.float32))
    assert len(data.test) == 3


HEIGHT_FIRST = IMAGES.transpose(0, 3, 1, 2)  # (12, 3, 4, 5)


@pytest.mark.parametrize(
    ("images", "channels", "expected"),
    [
        (IMAGES, None, HEIGHT_FIRST),
        (HEIGHT_FIRST, None, HEIGHT_FIRST),
        (HEIGHT_FIRST, 3, HEIGHT_FIRST),
        (IMAGES[:, :3], 3, HEIGHT_FIRST[:, :, :3]),  # of height 3 too
        (HEIGHT_FIRST[..., :3].astype(np.float64), 3, HEIGHT_FIRST[..., :3]),
        (IMAGES.astype(np.float64), 3, HEIGHT_FIRST),
        (IMAGES[..., 0].astype(np.uint16), 1, IMAGES[:, None, ..., 0]),
        (IMAGES[..., 0].astype(np.float16), 1, IMAGES[:, None, ..., 0]),
    ],
)
def test_how_images_of_an_npz_file_lie_is_told_by_their_shape_and_the_network(tmp_path, images, channels, expected):
    spec = npz(tmp_path, x_train=images, x_test=images[:3])
    network = None if channels is None else nn.Sequential(nn.Conv2d(channels, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    raw = load_data(spec, network=network).train.raw(list(range(12)))[0]
    np.testing.assert_array_equal(raw.numpy(), expected)


@pytest.mark.parametrize("last", [1, 2])
def test_masks_of_an_npz_file_lie_as_its_images(tmp_path, last):
    masks = np.arange(12 * 4 * 5 * last).reshape(12, 4, 5, last) % 2
    data = load_data(npz(tmp_path, y_train=masks, y_test=masks[:3]))
    assert torch.equal(data.train[2][1], torch.tensor(masks[2].transpose(2, 0, 1)))


@pytest.mark.parametrize(
    ("inputs", "shape"),
    [
        (np.zeros((12, 7)), (7,)),
        (np.zeros((12, 2, 40), np.float32), (2, 40)),
        (np.zeros((12, 1, 3, 4, 5), np.float32), (1, 3, 4, 5)),
        (np.zeros((12, 9), np.int32), (9,)),
    ],
)
def test_arrays_that_are_no_images_are_taken_as_in_python(tmp_path, inputs, shape):
    spec = npz(tmp_path, x_train=inputs, x_test=inputs[:3])
    data = load_data(spec)
    item, label = data.train[4]
    assert (item.shape, label, data.augment, data.classes, data.mean) == (shape, 1, False, ("0", "1", "2"), ())
    assert item.dtype == (torch.int64 if inputs.dtype.kind == "i" else torch.float32)
    with raises("which is no image; leave it out, and normalise the array"):
        load_data(Asked(spec, mean=(0.5,)))


@pytest.mark.parametrize(("labels", "mirrored"), [(np.arange(12) % 3, True), (np.arange(12.0), False)])
def test_only_what_an_image_shows_stays_when_it_is_mirrored(tmp_path, labels, mirrored):
    images = np.zeros((12, 24, 24, 3), np.uint8)
    spec = npz(tmp_path, x_train=images, x_test=images[:3], y_train=labels, y_test=labels[:3])
    assert load_data(spec).augment is mirrored


def test_npz_without_labels(tmp_path):
    path = tmp_path / "alone.npz"
    np.savez(path, x_train=IMAGES, x_test=IMAGES[:3])
    data = load_data(f"npz:{path}")
    labelled = load_data(npz(tmp_path))
    assert (data.labelled, data.classes, len(data.train), len(data.test)) == (False, (), 12, 3)
    assert torch.equal(data.train[5], labelled.train[5][0])
    np.savez(path, x_train=IMAGES)
    data = load_data(Asked(f"npz:{path}", mean=(0, 0, 0), std=(1 / 255,) * 3))
    assert (data.labelled, len(data.train), len(data.test)) == (False, 10, 2)
    found = sorted(round(image.sum().item()) for part in (data.train, data.test) for image in part)
    assert found == sorted(IMAGES.sum((1, 2, 3)).tolist())
    np.savez(path, x_train=IMAGES, x_test=IMAGES[:3, :3])
    with raises("x_train is uint8 .* and x_test is uint8 .*one shape of their rows"):
        load_data(f"npz:{path}")


def test_npz_files_that_will_not_do(tmp_path):
    with raises("no data file"):
        load_data(f"npz:{tmp_path}/none.npz")
    np.savez(tmp_path / "part.npz", x_train=IMAGES, other=IMAGES)
    with raises(r"lacks y_train, x_test, y_test \(it holds x_train, other\)"):
        load_data(f"npz:{tmp_path}/part.npz")
    (tmp_path / "text.npz").write_text("no arrays")
    with raises("cannot be read"):
        load_data(f"npz:{tmp_path}/text.npz")
    np.save(tmp_path / "lone.npy", IMAGES)
    with raises("cannot be read .*expected an .npz file"):
        load_data(f"npz:{tmp_path}/lone.npy")


def test_digits_are_divided_and_span_minus_one_to_one():
    data = load_data("digits")
    assert (len(data.train), len(data.test), data.augment) == (1438, 359, False)
    assert data.classes == tuple("0123456789")
    images, labels = stack(data.train, range(1438))
    assert images[0].shape == (1438, 1, 8, 8)
    assert (images[0].min(), images[0].max()) == (-1, 1)
    assert set(labels.tolist()) == set(range(10))
    again = load_data(Asked("digits", mean=[0], std=[1]))
    assert torch.equal(again.train.labels, data.train.labels)
    assert torch.allclose(again.train[5][0], data.train[5][0] / 2 + 0.5)


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with raises(r"'digits' needs scikit-learn.*pip install 'freeprune\[digits\]'"):
        load_data("digits")
