"""Images from every kind of source, their normalisation by hand, and the sentence for everything that can go wrong."""

from __future__ import annotations

import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import freeprune
from freeprune.engine.inputs import encoded
from freeprune.engine.inputs.batches import Data, split, stack
from freeprune.engine.inputs.data import Asked, asked_data, load_data
from freeprune.engine.inputs.encoded import Files
from freeprune.engine.inputs.image_files import Preparation
from freeprune.engine.tasks import AGREEMENT, CLASSIFICATION
from freeprune.errors import FreePruneError


def arrays(**changes):
    images = np.arange(12 * 4 * 5 * 3, dtype=np.uint8).reshape(12, 4, 5, 3)
    labels = np.arange(12) % 3
    return {"x_train": images, "y_train": labels, "x_test": images[:3], "y_test": labels[:3], **changes}


def npz(folder, **changes):
    path = folder / "data.npz"
    np.savez(path, **arrays(**changes))
    return f"npz:{path}"


def pixels(seed, height=6, width=8):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Two classes, three training images and one test image each, 8 wide and 6 high, PNG."""
    root = tmp_path / "images"
    for part, count in (("train", 3), ("test", 1)):
        for label, name in enumerate(("ant", "bee")):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(pixels(10 * label + i)).save(root / part / name / f"{i}.png")
    return root


def raises(sentence):
    return pytest.raises(FreePruneError, match=sentence)


# --- image folders ----------------------------------------------------------------------------------------------------


def test_the_home_folder_may_stand_after_the_kind(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load_data("imagefolder:~/images").source == f"imagefolder:{folder}"
    npz(folder.parent)
    assert len(load_data("npz:~/data.npz").train) == 12


def test_image_folder_by_hand(folder):
    data = load_data(f"imagefolder:{folder}")
    assert (len(data.train), len(data.test), data.classes) == (6, 2, ("ant", "bee"))
    assert (data.mean, data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert data.augment
    assert data.source == f"imagefolder:{folder}"
    assert [label for _, label in data.train] == [0, 0, 0, 1, 1, 1]
    image, label = data.train[4]
    expected = (pixels(11) / 255 - np.array(data.mean)) / np.array(data.std)
    assert image.dtype == torch.float32
    assert type(label) is int
    np.testing.assert_allclose(image.numpy(), expected.transpose(2, 0, 1), atol=1e-5)
    np.testing.assert_allclose(
        data.test[1][0].numpy(), ((pixels(10) / 255 - data.mean) / data.std).transpose(2, 0, 1), atol=1e-5
    )


def test_own_mean_and_std(folder):
    image, _ = load_data(Asked(f"imagefolder:{folder}", mean=(0, 0.5, 1), std=(1, 0.5, 2))).train[0]
    expected = (pixels(0) / 255 - np.array([0, 0.5, 1])) / np.array([1, 0.5, 2])
    np.testing.assert_allclose(image.numpy(), expected.transpose(2, 0, 1), atol=1e-6)


def test_one_by_one_as_in_batches(folder):
    data = load_data(f"imagefolder:{folder}")
    images, labels = next(iter(DataLoader(data.train, batch_size=6)))
    assert torch.equal(images, torch.stack([image for image, _ in data.train]))
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_val_stands_for_test_only_without_test(folder):
    (folder / "test").rename(folder / "val")
    assert len(load_data(f"imagefolder:{folder}").test) == 2
    (folder / "test").mkdir()
    with raises("test' holds no class folder"):
        load_data(f"imagefolder:{folder}")


def test_folders_within_classes_are_searched_and_other_files_left_out(folder):
    (folder / "train" / "ant" / "more").mkdir()
    Image.fromarray(pixels(5)).save(folder / "train" / "ant" / "more" / "x.JPG")
    (folder / "train" / "ant" / "notes.txt").write_text("no image")
    (folder / "train" / "ant" / "._0.png").write_text("no image")
    (folder / "train" / ".hidden").mkdir()
    assert [label for _, label in load_data(f"imagefolder:{folder}").train] == [0] * 4 + [1] * 3


@pytest.mark.parametrize("name", ["__MACOSX", ".ipynb_checkpoints", ".thumbs", "@eaDir", "Thumbs.db", ".DS_Store"])
@pytest.mark.parametrize("place", ["train", "train/ant", ""])
def test_what_other_programs_leave_is_no_class_and_no_image(folder, tmp_path, name, place):
    alone = tmp_path / "alone"
    flat(alone, 10)
    for left in (folder / place / name, alone / name):
        if "." in name[1:]:
            left.write_bytes(b"no image")
        else:
            (left / "ant").mkdir(parents=True)
            for image in (left / "0.png", left / "ant" / "0.png"):
                image.write_bytes(b"no image")
    assert [label for _, label in load_data(f"imagefolder:{folder}").train] == [0, 0, 0, 1, 1, 1]
    assert len(load_data(f"imagefolder:{alone}").train) == 8


def test_other_modes_become_rgb(folder):
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    Image.fromarray(grey).save(folder / "train" / "ant" / "0.png")
    image, _ = load_data(Asked(f"imagefolder:{folder}", mean=(0, 0, 0), std=(1, 1, 1))).train[0]
    np.testing.assert_allclose(image.numpy(), np.stack([grey] * 3) / 255, atol=1e-6)


def test_image_size_scales_the_shorter_side_and_keeps_the_centre(folder):
    # Twelve wide and six high, in four bands of three columns: scaling to 2 keeps the inner two bands, one pixel each.
    bands = np.repeat(np.array([0, 100, 200, 255], np.uint8), 3)
    image = np.repeat(np.repeat(bands[None, :, None], 6, axis=0), 3, axis=2)
    for path in folder.rglob("*.png"):
        Image.fromarray(image).save(path)
    result, _ = load_data(Asked(f"imagefolder:{folder}", mean=(0, 0, 0), std=(1 / 255,) * 3, image_size=2)).train[0]
    assert result.shape == (3, 2, 2)
    assert torch.equal(result[0, 0], result[2, 1])
    # The triangle filter reaches half a pixel into the neighbouring bands.
    assert 75 < result[0, 0, 0] < 125
    assert 175 < result[0, 0, 1] < 225


def test_several_sizes_are_scaled_on_access(folder):
    Image.fromarray(pixels(9, 20, 30)).save(folder / "test" / "bee" / "0.png")
    data = load_data(f"imagefolder:{folder}")
    assert isinstance(data.train.pixels, Files)
    assert data.train[0][0].shape == data.test[1][0].shape == (3, 224, 224)
    with pytest.raises(IndexError):
        data.train[6]
    small = load_data(Asked(f"imagefolder:{folder}", image_size=4))
    assert isinstance(small.train.pixels, torch.Tensor)
    assert small.test[1][0].shape == (3, 4, 4)


def test_what_does_not_fit_into_memory_is_decoded_on_access(folder, monkeypatch):
    in_memory = load_data(f"imagefolder:{folder}")
    monkeypatch.setattr(encoded, "MEMORY_LIMIT", 8 * 6 * 8 * 3 - 1)
    on_access = load_data(f"imagefolder:{folder}")
    assert isinstance(on_access.train.pixels, Files)
    for part in ("train", "test"):
        for (image, label), (again, same) in zip(getattr(in_memory, part), getattr(on_access, part), strict=True):
            assert torch.equal(image, again)
            assert label == same
    monkeypatch.setattr(encoded, "MEMORY_LIMIT", 8 * 6 * 8 * 3)
    assert isinstance(load_data(f"imagefolder:{folder}").train.pixels, torch.Tensor)


@pytest.mark.parametrize("files", [1, 3, 100])
def test_images_keep_their_order_however_the_work_is_divided(folder, monkeypatch, files):
    monkeypatch.setattr(encoded, "FILES_PER_TASK", files)
    read = load_data(f"imagefolder:{folder}").train.pixels
    written = np.stack([pixels(seed).transpose(2, 0, 1) for seed in (0, 1, 2, 10, 11, 12)])
    assert np.array_equal(read.numpy(), written)


@pytest.mark.parametrize("content", [b"", b"no image", None], ids=["empty", "text", "cut short"])
@pytest.mark.parametrize("name", ["train/ant/0.png", "test/bee/0.png"])
def test_unreadable_image_is_named(folder, name, content):
    path = folder / name
    path.write_bytes(path.read_bytes()[:-60] if content is None else content)
    with raises(f"image '.*{name}' cannot be read") as caught:
        load_data(f"imagefolder:{folder}")
    assert "\n" not in str(caught.value)


def test_several_unreadable_images_are_counted(folder):
    for name in ("bee/1.png", "ant/2.png", "ant/1.png"):
        (folder / "train" / name).write_bytes(b"")
    with raises(r"ant/1.png' cannot be read .* \(2 more cannot be read either\)$"):
        load_data(f"imagefolder:{folder}")


def takes(channels):
    """A network of so many input channels."""
    return nn.Conv2d(channels, 2, 3)


def rewritten(folder, image, ending="png"):
    """Every file of a folder holds this image."""
    for path in list(folder.rglob("*.png")):
        path.unlink()
        image.save(path.with_suffix(f".{ending}"))
    return f"imagefolder:{folder}"


@pytest.mark.parametrize("name", ["0", "1"])  # the first image, or a later one
def test_sixteen_bits_beside_eight_have_the_same_range(folder, name):
    values = np.linspace(0, 65535, 48).astype(np.uint16).reshape(6, 8)
    Image.fromarray(values).save(folder / "train" / "ant" / f"{name}.png")
    data = load_data(Asked(f"imagefolder:{folder}", mean=(0, 0, 0), std=(1, 1, 1)))
    image, other = data.train[int(name)][0], data.train[1 - int(name)][0]
    np.testing.assert_allclose(image.numpy(), np.stack([values / 65535] * 3), atol=1e-6)
    np.testing.assert_allclose(other.numpy(), pixels(1 - int(name)).transpose(2, 0, 1) / 255, atol=1e-6)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bits_keep_what_eight_could_not_tell(folder, ending):
    values = np.arange(48, dtype=np.uint16).reshape(6, 8)  # all of them black in 8 bits
    spec = rewritten(folder, Image.fromarray(values), ending)
    image, _ = load_data(Asked(spec, mean=(0,), std=(1,)), network=takes(1)).train[0]
    np.testing.assert_allclose(image.numpy(), values[None] / 65535, atol=1e-7)
    small, _ = load_data(Asked(spec, mean=(0,), std=(1,), image_size=3), network=takes(1)).train[0]
    assert small.shape == (1, 3, 3)
    assert 0 < small.min() < small.max() < 48 / 65535


def test_more_than_sixteen_bits_and_fractions_are_refused(folder):
    with raises("pixels from 100000 to 100000, where 16 bits hold 0 to 65535"):
        load_data(rewritten(folder, Image.fromarray(np.full((6, 8), 100000, np.int32)), "tif"))


def test_fractions_are_refused(folder):
    with raises("cannot be read .*pixels are fractions"):
        load_data(rewritten(folder, Image.fromarray(np.full((6, 8), 0.5, np.float32)), "tif"))


def test_grey_images_for_a_network_of_one_channel(folder):
    data = load_data(f"imagefolder:{folder}", network=takes(1))
    assert (data.mean, data.std, data.augment) == ((0.5,), (0.5,), False)
    expected = np.asarray(Image.fromarray(pixels(0)).convert("L")) / 255
    np.testing.assert_allclose(data.train[0][0].numpy(), expected[None] / 0.5 - 1, atol=1e-5)
    with raises("expected 1 finite numbers each"):
        load_data(Asked(f"imagefolder:{folder}", mean=(0, 0, 0)), network=takes(1))


class Refuses(nn.Module):
    def forward(self, x):
        raise RuntimeError("whatever it is given")


@pytest.mark.parametrize(
    ("network", "channels"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), 1),
        (nn.Sequential(nn.Flatten(), nn.Linear(144, 2)), 3),
        (takes(3), 3),
        (nn.Identity(), 3),
        (Refuses(), 3),
    ],
)
def test_what_a_network_takes_decides(folder, network, channels):
    assert load_data(f"imagefolder:{folder}", network=network).train[0][0].shape == (channels, 6, 8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("mode", "ending", "options"),
    [
        ("RGBA", "png", {}), ("LA", "png", {}), ("1", "png", {}), ("CMYK", "tif", {}), ("P", "gif", {"transparency": 2}),
        ("P", "png", {"transparency": bytes([0, 9, 255])}), ("P", "png", {"transparency": 3}),
        ("L", "png", {"transparency": 3}),
    ],
)  # fmt: skip
def test_every_mode_of_pillow(folder, channels, mode, ending, options):
    shown = Image.fromarray(pixels(0)).convert(mode)
    for path in list(folder.rglob("*.png")):
        path.unlink()
        shown.save(path.with_suffix(f".{ending}"), **options)
    image, _ = load_data(
        Asked(f"imagefolder:{folder}", mean=(0,) * channels, std=(1,) * channels), network=takes(channels)
    ).train[0]
    expected = np.asarray(shown.convert("RGB").convert("L" if channels == 1 else "RGB")).reshape(6, 8, channels)
    np.testing.assert_allclose(image.numpy(), expected.transpose(2, 0, 1) / 255, atol=1e-6)


def test_what_is_stated_holds_unless_something_else_is_asked_for(folder):
    # Eight wide and six high; half of the shorter side is shown, so the inner 3x3 pixels.
    stated = Preparation((0.0,) * 3, (1.0,) * 3, size=3, kept=0.5, filter="bicubic")
    data = load_data(f"imagefolder:{folder}", stated=stated)
    assert (data.mean, data.std, data.image_size) == (stated.mean, stated.std, None)
    assert data.train[0][0].shape == (3, 3, 3)
    Image.fromarray(np.pad(np.full((2, 2, 3), 255, np.uint8), ((2, 2), (3, 3), (0, 0)))).save(folder / "train/ant/0.png")
    bright = load_data(f"imagefolder:{folder}", stated=stated).train[0][0].mean()
    whole = load_data(Asked(f"imagefolder:{folder}", image_size=3), stated=stated).train[0][0].mean()
    assert bright > 2 * whole > 0
    assert load_data(Asked(f"imagefolder:{folder}", mean=(0.5,) * 3), stated=stated).mean == (0.5,) * 3


def without(folder, name):
    for path in sorted((folder / name).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (folder / name).rmdir()


@pytest.mark.parametrize(("training", "test"), [("Train", "Test"), ("TRAIN", "Val"), ("training", "VALIDATION")])
def test_parts_of_a_folder_have_their_names_in_any_capitals(folder, training, test):
    expected = load_data(f"imagefolder:{folder}")
    (folder / "train").rename(folder / training)
    (folder / "test").rename(folder / test)
    found = load_data(f"imagefolder:{folder}")
    assert (len(found.train), len(found.test), found.classes) == (len(expected.train), len(expected.test), expected.classes)


def test_of_several_folders_for_the_test_the_first_name_in_small_letters_is_taken(folder):
    for name in ("Val", "Test"):
        shutil.copytree(folder / "train", folder / name)
    assert len(load_data(f"imagefolder:{folder}").test) != len(load_data(f"imagefolder:{folder}").train)
    shutil.rmtree(folder / "test")
    assert len(load_data(f"imagefolder:{folder}").test) == len(load_data(f"imagefolder:{folder}").train)


def test_folder_without_parts(folder):
    with raises("no image folder '.*nowhere'"):
        load_data(f"imagefolder:{folder}/nowhere")
    without(folder, "test")
    with raises(r"images' lacks test/ \(or val/\)"):
        load_data(f"imagefolder:{folder}")
    without(folder, "train")
    with raises("images' lacks train/"):
        load_data(f"imagefolder:{folder}")


def test_folder_without_classes(folder):
    without(folder, "train/bee")
    with raises("train' holds only the class folder 'ant'; expected"):
        load_data(f"imagefolder:{folder}")
    without(folder, "train/ant")
    with raises("train' holds no class folder; expected"):
        load_data(f"imagefolder:{folder}")


def test_class_without_images(folder):
    (folder / "test" / "bee" / "0.png").unlink()
    with raises(r"test/bee' holds no image; expected files that end in .avif, .bmp, "):
        load_data(f"imagefolder:{folder}")


def test_classes_that_differ(folder):
    (folder / "test" / "bee").rename(folder / "test" / "wasp")
    with raises("train' and '.*test' differ in bee, wasp; expected"):
        load_data(f"imagefolder:{folder}")


@pytest.mark.parametrize(
    "options",
    [
        {"mean": (0.5,)},
        {"std": (1, 1)},
        {"std": (1, 0, 1)},
        {"std": (1, -1, 1)},
        {"std": (1, float("nan"), 1)},
        {"mean": (0, float("inf"), 0)},
        {"mean": ()},
    ],
)
def test_normalisation_that_will_not_do(folder, options):
    with raises("expected 3 finite numbers each"):
        load_data(Asked(f"imagefolder:{folder}", **options))


def flat(folder, count, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(pixels(seed + i)).save(folder / f"{i:02d}.png")


def test_images_in_no_folders_have_no_labels(tmp_path):
    flat(tmp_path / "one", 12)
    (tmp_path / "one" / "notes.txt").write_text("no image")
    (tmp_path / "one" / ".hidden").mkdir()
    data = load_data(Asked(f"imagefolder:{tmp_path}/one", mean=(0, 0, 0), std=(1, 1, 1)))
    assert (data.labelled, data.classes, len(data.train), len(data.test)) == (False, (), 10, 2)
    assert data.source == f"imagefolder:{tmp_path}/one"
    found = sorted(image.sum().item() for part in (data.train, data.test) for image in part)
    expected = sorted(pixels(i).sum() / 255 for i in range(12))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    images = next(iter(DataLoader(data.train, batch_size=10)))
    assert torch.equal(images, torch.stack(list(data.train)))


def test_too_few_images_for_a_test_are_not_called_unreadable(tmp_path):
    flat(tmp_path, 3)
    with raises("there are 3 training images; expected at least 10"):
        split(load_data(f"imagefolder:{tmp_path}"), 0)


@pytest.mark.parametrize("test", ["test", "val", "valid", "validation", None])
def test_train_and_test_without_classes_have_no_labels(tmp_path, test):
    flat(tmp_path / "train", 10)
    if test is not None:
        flat(tmp_path / test, 3, seed=20)
    data = load_data(Asked(f"imagefolder:{tmp_path}", mean=(0, 0, 0), std=(1, 1, 1)))
    assert not data.labelled
    assert (len(data.train), len(data.test)) == ((8, 2) if test is None else (10, 3))
    if test is not None:
        np.testing.assert_allclose(data.test[1].numpy(), pixels(21).transpose(2, 0, 1) / 255, atol=1e-6)


def test_images_beside_folders_are_no_data_without_labels(folder):
    Image.fromarray(pixels(0)).save(folder / "loose.png")
    (folder / "classes" / "ant").mkdir(parents=True)
    Image.fromarray(pixels(0)).save(folder / "classes" / "loose.png")
    assert load_data(f"imagefolder:{folder}").labelled
    with raises("lacks train/; .* or images alone, in no folders, where there are no labels"):
        load_data(f"imagefolder:{folder / 'classes'}")
    without(folder, "train")
    with raises("lacks train/; .* or images alone, in no folders, where there are no labels"):
        load_data(f"imagefolder:{folder}")


def test_classes_in_one_part_only(folder):
    without(folder, "test")
    flat(folder / "test", 2)
    with raises("test' holds no class folder"):
        load_data(f"imagefolder:{folder}")


# --- arrays -----------------------------------------------------------------------------------------------------------


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
def test_npz_one_channel(tmp_path, shape):
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


def test_digits():
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


# --- the user's own ---------------------------------------------------------------------------------------------------


def own(count=12, **attributes):
    dataset = TensorDataset(torch.arange(count * 2.0).view(count, 1, 1, 2), torch.arange(count) % 4)
    for name, value in attributes.items():
        setattr(dataset, name, value)
    return dataset


class Plain(Dataset):
    """Items from a list, and whatever attributes a test gives it."""

    def __init__(self, items, **attributes):
        self.items = items
        vars(self).update(attributes)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Stream(IterableDataset):
    def __iter__(self):
        yield torch.zeros(1), 0

    def __len__(self):
        return 1


def doubled(items):
    return torch.stack([image for image, _ in items]) * 2, torch.tensor([label for _, label in items])


def test_pair_of_datasets():
    train, test = own(), own(4)
    data = load_data((train, test))
    assert data.train is train
    assert data.test is test
    assert (data.mean, data.std, data.augment, data.collate) == ((), (), False, None)
    assert data.classes == ("0", "1", "2", "3")
    assert data.source == "own:TensorDataset"
    assert load_data(data) is data


def test_pair_of_loaders():
    loaders = [DataLoader(own(), batch_size=3, collate_fn=doubled), DataLoader(own(4), collate_fn=doubled)]
    data = load_data(loaders)
    assert data.train is loaders[0].dataset
    assert data.collate is doubled
    inputs, _ = stack(data.train, [1], data.collate)
    assert torch.equal(inputs[0], torch.tensor([[[[4.0, 6.0]]]]))
    assert load_data((DataLoader(own()), own())).collate is None


ITEM = (torch.zeros(1, 2, 2), 1)


@pytest.mark.parametrize(
    ("dataset", "classes"),
    [
        (Plain([ITEM], classes=["cat", "dog"]), ("cat", "dog")),
        (Subset(Subset(Plain([ITEM] * 3, classes=["cat", "dog"]), [0, 1]), [0]), ("cat", "dog")),
        (Plain([ITEM], targets=[0, 2, 1]), ("0", "1", "2")),
        (Plain([ITEM], targets=torch.tensor([0, 1])), ("0", "1")),
        (Plain([ITEM], targets=["cat", "dog"]), ()),
        (Plain([ITEM], targets=np.array([3, 10**15])), ()),
        (Plain([ITEM]), ()),
    ],
)
def test_classes_of_own_datasets(dataset, classes):
    assert load_data((dataset, dataset)).classes == classes


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (3, "the data are a int; expected a pair"),
        ((own(),), "the data are a tuple of 1; expected a pair"),
        ((Stream(), own()), "the training data are a Stream, which cannot be indexed"),
        ((own(), DataLoader(Stream())), "the test data are a Stream, which cannot be indexed"),
        ((own(), 3), "the test data are a int, which cannot be indexed"),
        ((own(), Plain([])), "the test dataset is empty"),
        ((DataLoader(own(), batch_size=None), own()), "the training loader has batch_size=None"),
        ((DataLoader(own(), collate_fn=doubled), DataLoader(own())), "different collate_fn"),
        ((Plain([{}]), own()), "items of a Plain are dictionaries that hold no tensor besides the label"),
        ((Plain([{"labels": 1, "name": "a"}]), own()), "dictionaries that hold no tensor besides the label .labels, name."),
        (
            (Plain([torch.zeros(1)]), own()),
            "items of the test data have labels and those of the training data none; give labels",
        ),
        ((own(), torch.zeros(3, 1)), "items of the training data have labels and those of the test data none"),
        ((torch.zeros(3, 1, 2, 2), torch.zeros(3).long()), r"the second are labels, give a pair of `TensorDataset\(inputs"),
        ((torch.zeros(3, 2), torch.zeros(3, 3)), r"are a float32 tensor of shape \(3, 2\) and the test data a .* \(3, 3\);"),
        (torch.tensor(1.0), "the training data are a float32 tensor .*, which cannot be indexed"),
        (torch.zeros(0, 1), "the training dataset is empty"),
        (own(), "the data are one data set with labels, a TensorDataset; expected a pair"),
        (Stream(), "the training data are a Stream, which cannot be indexed"),
        ((Plain([({}, 1)]), own()), "dictionaries that hold no tensor besides the label"),
        ((Plain([(object(), 1)]), own()), "1 items of a Plain cannot be read into a batch .TypeError"),
    ],
)
def test_own_datasets_that_will_not_do(source, sentence):
    with raises(sentence) as caught:
        load_data(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("label", "sentence"),
    [
        ("cat", "a batch of a Plain has a tuple of texts as label; expected numbers, such as 0 for the first"),
        (0.5, r"labels of a Plain are a float64 tensor of shape \(1,\) in a batch"),
        (torch.zeros(2, 2), "expected one integer"),
    ],
)
def test_labels_of_another_task_than_the_one_that_is_asked_for(label, sentence):
    items = Plain([(torch.zeros(1), label)] * 3)
    with raises(sentence):
        stack(items, [0], task=CLASSIFICATION)
    assert load_data((items, items)).labelled  # which task they are of is told later


def alone(count=12):
    """Images of one pixel, each with its number as its value."""
    return torch.arange(float(count)).view(count, 1, 1, 1)


def seen(part, data):
    """The values of all images of a part."""
    (images,), labels = stack(part, range(len(part)), data.collate)
    assert labels is None
    return images.flatten().tolist()


class Numbered(Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, index):
        return alone()[index]


@pytest.mark.parametrize("form", [alone(), TensorDataset(alone()), Numbered(), DataLoader(Numbered(), batch_size=5)])
def test_one_set_without_labels_keeps_a_fifth_for_the_test(form):
    data = load_data(form)
    assert not data.labelled
    assert (data.classes, len(data.train), len(data.test)) == ((), 10, 2)
    assert sorted(seen(data.train, data) + seen(data.test, data)) == list(range(12))
    again = load_data(form)
    assert seen(again.test, again) == seen(data.test, data)


@pytest.mark.parametrize("form", [alone, lambda n=12: TensorDataset(alone(n)), lambda n=12: DataLoader(Plain(list(alone(n))))])
def test_a_pair_without_labels(form):
    data = load_data((form(), form(3)))
    assert not data.labelled
    assert (seen(data.train, data), seen(data.test, data)) == (list(range(12)), [0, 1, 2])


def test_a_loader_without_labels_keeps_its_collate_fn():
    data = load_data(DataLoader(Plain(list(alone())), collate_fn=lambda items: torch.stack(items) * 2))
    assert sorted(seen(data.train, data) + seen(data.test, data)) == list(range(0, 24, 2))


def test_several_inputs_without_labels():
    inputs, labels = stack(Plain([((torch.zeros(2), torch.ones(3)),)] * 4), [0, 3])
    assert [value.shape for value in inputs] == [(2, 2), (2, 3)]
    assert labels is None


def test_a_callable_may_have_the_name_of_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "own_data.py").write_text(
        "import torch\nfrom torch.utils.data import TensorDataset\n"
        "def data(): return [TensorDataset(torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 1]))] * 2\n"
    )
    assert len(load_data("own_data.py:data").train) == 3


def test_callable(tmp_path):
    path = tmp_path / "source_of_data.py"
    path.write_text(
        "import torch\n"
        "from torch.utils.data import TensorDataset\n"
        "from freeprune.engine.inputs.batches import Data\n"
        "def pair(): return [TensorDataset(torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 1]))] * 2\n"
        "def whole(): return Data(*pair(), ('a', 'b'), (0.5,), (0.5,), 'mine', True)\n"
        "def word(): return 'digits'\n"
    )
    data = load_data(f"{path}:pair")
    assert (len(data.train), data.classes, data.source) == (3, ("0", "1"), f"{path}:pair")
    whole = load_data(f"{path}:whole")
    assert (whole.classes, whole.mean, whole.augment, whole.source) == (("a", "b"), (0.5,), True, f"{path}:whole")
    with raises("the data are a str; expected a pair"):
        load_data(f"{path}:word")


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("digit", "no data 'digit'; did you mean 'digits'"),
        ("digits:8", "no data 'digits:8'; did you mean 'digits'"),
        ("", "no data ''; known: digits, imagefolder:DIR"),
        ("csv:rows.csv", "'csv:rows.csv' names no callable; expected package.module:callable .*known: digits, imagefolder:DIR"),
        ("imagefoldr:DIR", "importing 'imagefoldr' failed.*did you mean 'imagefolder:DIR'"),
    ],
)
def test_unknown_spec(spec, sentence):
    with raises(sentence):
        load_data(spec)


@pytest.mark.parametrize("source", ["imagefolder:x", "wds:x.tar", "hf:x", "npz:x.npz", "digits", (own(), own())])
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"mean": 0.5}, r"`mean` is 0\.5; give numbers in a list"),
        ({"mean": torch.tensor(0.5)}, r"`mean` is 0\.5; give numbers in a list"),
        ({"mean": "0.5"}, r"`mean` is '0\.5'; give numbers in a list"),
        ({"std": ["1"]}, r"`std` is \('1',\); give numbers in a list"),
        ({"image_size": "224"}, "`image_size` is '224'; give a whole number"),
        ({"image_size": np.ones(2)}, r"`image_size` is array\(\[1., 1.\]\); give a whole number"),
        ({"image_size": 0}, "`image_size` is 0; give 1 or more"),
        ({"image_size": -3}, "`image_size` is -3; give 1 or more"),
        ({"bad_images": 3}, "`bad_images` is 3; give a text"),
        ({"bad_images": "ignore"}, "`bad_images` is 'ignore'; give refuse or skip"),
    ],
)
def test_options_are_checked_whatever_the_data_are(source, options, sentence):
    with raises(f"^{sentence}$"):
        load_data(asked_data(source, options))


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor, iter])
def test_whatever_holds_numbers_will_do(kind):
    data = load_data(asked_data("digits", {"mean": kind([0.25]), "std": kind([2.0])}))
    assert (data.mean, data.std) == ((0.25,), (2.0,))


def test_options_that_do_not_apply():
    for options in ({"mean": (0,)}, {"std": (1,)}):
        with raises("datasets of your own come normalised"):
            load_data(Asked((own(), own()), **options))
    for source in ("digits", (own(), own())):
        with raises("`image_size=8` was given, but it applies to imagefolder:DIR, hf:NAME and wds:SHARDS only"):
            load_data(Asked(source, image_size=8))


# --- split and stack --------------------------------------------------------------------------------------------------


def of(count):
    return Data(own(count), own(4), ("0", "1", "2", "3"), (), (), "own", False)


@pytest.mark.parametrize(("count", "aside"), [(100, 10), (10, 1), (99, 10)])
def test_split_is_a_partition(count, aside):
    train, held_out = split(of(count), 0)
    assert len(held_out) == aside
    assert sorted([*train.indices, *held_out.indices]) == list(range(count))


def test_seed_decides_the_split():
    data = of(50)
    torch.manual_seed(11)  # two different global states: neither may leak in
    first = split(data, 1)
    torch.manual_seed(22)
    state = torch.get_rng_state()
    second, other = split(data, 1), split(data, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.indices for part in first] == [part.indices for part in second]
    assert [part.indices for part in first] != [part.indices for part in other]


def test_split_that_cannot_be():
    with raises("there are 9 training images; expected at least 10"):
        split(of(9), 0)
    with raises("there is 1 training image; expected at least 10"):
        split(of(1), 0)


def test_stack_keeps_the_order():
    (images,), labels = stack(Subset(own(), [5, 6, 7]), [2, 0])
    assert images[:, 0, 0].tolist() == [[14, 15], [10, 11]]
    assert labels.tolist() == [3, 1]
    assert labels.dtype == torch.int64


@pytest.mark.parametrize("nested", [False, True])
def test_stack_of_several_inputs(nested):
    first, second = torch.zeros(2), torch.ones(3)
    item = ((first, second), 7) if nested else (first, second, 7)
    inputs, labels = stack(Plain([item] * 4), [0, 3])
    assert [value.shape for value in inputs] == [(2, 2), (2, 3)]
    assert labels.tolist() == [7, 7]


@pytest.mark.parametrize(
    "item",
    [(torch.zeros(2), 7, "a/b.png"), ("b", torch.zeros(2), 7), (torch.zeros(2), {"id": "b", "by": ["c"]}, 7, "d")],
)
def test_texts_beside_inputs_and_labels_are_left_out(item):
    (inputs,), labels = stack(Plain([item] * 4), [0, 3])
    assert (inputs.shape, labels.tolist()) == ((2, 2), [7, 7])


@pytest.mark.parametrize("label", ["ant", {"kind": 1, "box": torch.zeros(4)}])
def test_labels_that_are_not_read_may_be_anything(label):
    assert stack(Plain([(torch.zeros(2), label)] * 2), [0, 1], task=AGREEMENT)[1] is None


def test_a_text_in_place_of_the_label_is_the_label():
    assert stack(Plain([(torch.zeros(2), "ant")] * 2), [0, 1], task=None)[1] == ("ant", "ant")


def test_stack_that_cannot_be():
    with raises(
        "2 items of a Plain cannot be read into a batch .*expected items .image tensor, label. of one shape, or DataLoaders"
    ):
        stack(Plain([(torch.zeros(1), 0), (torch.zeros(2), 0)]), [0, 1])
    with raises("0 items of a TensorDataset cannot"):
        stack(own(), [])
    with raises(r"1 item of a TensorDataset cannot be read into a batch \(IndexError"):
        stack(own(), [12])
    with raises("has a float32 tensor .* as input; expected tensors whose first dimension is the batch: let collate_fn"):
        stack(own(), [0, 1], lambda items: (torch.zeros(3, 1), torch.zeros(2, dtype=torch.int64)))


@pytest.mark.parametrize("count", [1, 2])
def test_images_that_a_batch_keeps_apart(count):
    """As detectors of torchvision take them."""
    items = [(torch.zeros(3, 8, 8 + i), {"boxes": torch.zeros(i, 4)}) for i in range(2)]
    with raises(f"keeps its {count} items apart, as detectors take them; expected one tensor of them: stack images"):
        stack(Plain(items), list(range(count)), lambda items: tuple(zip(*items, strict=True)), task=None)


def test_two_inputs_of_two_items_are_not_apart():
    pair = torch.zeros(2, 3), torch.ones(2, 4)
    inputs, _ = stack(own(), [0, 1], lambda items: (pair, torch.zeros(2, dtype=torch.int64)))
    assert [x.shape for x in inputs] == [(2, 3), (2, 4)]


def test_stack_names_an_image_that_has_gone(folder):
    Image.fromarray(pixels(9, 20, 30)).save(folder / "test" / "bee" / "0.png")
    data = load_data(f"imagefolder:{folder}")
    (folder / "train" / "ant" / "1.png").unlink()
    with raises("image '.*ant/1.png' cannot be read"):
        stack(data.train, [0, 1])


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_inputs_and_labels_side_by_side_are_no_data_sets(kind):
    inputs, labels = kind(np.zeros((20, 3, 4, 4), np.float32)), kind(np.zeros(20, np.int64))
    with pytest.raises(FreePruneError, match="if the second are labels, give a pair of `TensorDataset"):
        load_data((inputs, labels))


@pytest.mark.parametrize("call", [freeprune.prune, freeprune.train])
def test_options_of_a_spec_are_keywords_in_python(call, tmp_path):
    more = {"out": tmp_path / "w.safetensors"} | ({"target": {"macs": 0.5}} if call is freeprune.prune else {})
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    for part, count in (("train", 6), ("test", 2)):
        for label in ("a", "b"):
            (tmp_path / part / label).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(tmp_path / part / label / f"{number}.png")
    (tmp_path / "train" / "a" / "0.png").write_bytes(b"no image")
    spec = f"imagefolder:{tmp_path}"
    with pytest.raises(FreePruneError, match=r"cannot be read .*`bad_images=skip`"):
        call(network, spec, **more)
    with (
        pytest.warns(freeprune.FreePruneWarning, match="1 "),
        pytest.raises(FreePruneError, match="rejects an input of shape 1x3x5x5"),
    ):
        call(network, spec, bad_images="skip", image_size=5, **more)
    with pytest.raises(FreePruneError, match="`image_size=5` was given, but it applies to imagefolder:DIR"):
        call(network, [(torch.zeros(3, 3, 3), 0)], image_size=5, **more)


def test_columns_and_parts_by_name_are_data():
    x, y = np.zeros((20, 3, 5, 5), np.float32), np.arange(20) % 2
    data = load_data(((x, y), (x[:4], y[:4])))
    assert (len(data.train), len(data.test), data.labelled, data.classes) == (20, 4, True, ("0", "1"))
    data = load_data({"train": TensorDataset(torch.tensor(x), torch.tensor(y)), "validation": (x[:4], y[:4]), "more": None})
    assert (len(data.train), len(data.test)) == (20, 4)
    with raises("an array of the data is a ndarray"):
        load_data(((x, y.astype(str)), (x, y)))
    with raises("the data are a dictionary of train, dev; expected the parts train and test, val, valid or validation"):
        load_data({"train": (x, y), "dev": (x, y)})
    with raises("the data are a tuple of 3; expected a pair"):
        load_data((x, x, x))


def test_arrays_are_taken_in_any_byte_order_and_direction():
    x = np.arange(60, dtype=np.float32).reshape(15, 2, 2)
    for given in (x.astype(">f4"), x[::-1], x[:, :, ::-1]):
        data = load_data(((given, np.arange(15)), (given, np.arange(15))))
        np.testing.assert_array_equal(data.train.tensors[0], given)
        assert torch.equal(load_data(given).train.dataset.tensors[0], data.train.tensors[0])


def test_labels_beside_an_array_may_be_a_list():
    x = np.zeros((12, 3, 2, 2), np.float32)
    for labels in ([0, 1] * 6, tuple(np.arange(12)), [torch.tensor(1)] * 12):
        data = load_data(((x, labels), (x, labels)))
        assert (len(data.train), data.labelled, len(data.train.tensors[1])) == (12, True, 12)
    with raises("an array of the data is a list of texts .*; expected numbers"):
        load_data(((x, ["cat"] * 12), (x, ["cat"] * 12)))
    with raises("the arrays of the training data have .12, 11. rows; expected one label for each input"):
        load_data(((x, [0] * 11), (x, [0] * 12)))


def test_loaders_whose_batches_are_made_by_one_line_of_code_are_one_pair():
    items = [(torch.zeros(3, 5, 5), 1)] * 20

    def loader(scale):
        return DataLoader(items, collate_fn=lambda some: (scale * torch.stack([x for x, _ in some]), torch.ones(len(some))))

    assert load_data((loader(2), loader(2))).collate is not None
    with raises("different collate_fn"):
        load_data((loader(2), loader(3)))


def test_a_path_without_its_kind_is_told(folder, tmp_path):
    for given in (str(folder), folder):
        with raises(f"are a folder; give `imagefolder:{folder}`"):
            load_data(given)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").touch()
    with raises(f"are a folder; give `hf:{tmp_path}/saved`"):
        load_data(f"folder:{tmp_path}/saved")


@pytest.mark.parametrize("kind", ["", "csv:", "whatever:"])
@pytest.mark.parametrize(
    ("name", "way"), [("a.npz", "`npz:.*a.npz`"), ("a.tar", "`wds:.*a.tar`"), ("a.csv", "path/to/file.py:callable, a function")]
)
def test_a_file_under_another_kind_is_told_what_fits_it(tmp_path, kind, name, way):
    (tmp_path / name).touch()
    with raises(f"the data '{kind}.*{name}' are a file; give {way}"):
        load_data(f"{kind}{tmp_path / name}")


def test_a_mean_to_255_is_told(folder):
    with raises("pixels span 0 to 1 here; divide mean and std"):
        load_data(Asked(f"imagefolder:{folder}", mean=(123.0, 116.0, 103.0), std=(58.0, 57.0, 57.0)))


def test_jpegs_by_another_ending_are_images(folder):
    before = len(load_data(f"imagefolder:{folder}").train)
    Image.fromarray(pixels(50)).save(folder / "train" / "ant" / "x.jfif", "JPEG")
    assert len(load_data(f"imagefolder:{folder}").train) == before + 1
