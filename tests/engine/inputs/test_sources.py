"""Folders of images: which are found, how they are read and normalised, and what will not do."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from data_sets import pixels
from PIL import Image
from refusals import raises
from torch import nn
from torch.utils.data import DataLoader

from freeprune.engine.inputs import encoded
from freeprune.engine.inputs.batches import split, stack
from freeprune.engine.inputs.data import Asked, load_data
from freeprune.engine.inputs.encoded import Files
from freeprune.engine.inputs.image_files import Preparation


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


def test_folders_within_classes_may_be_links(folder, tmp_path):
    (folder / "train" / "ant").rename(tmp_path / "elsewhere")
    (folder / "train" / "ant").mkdir()
    (folder / "train" / "ant" / "more").symlink_to(tmp_path / "elsewhere")
    assert [label for _, label in load_data(f"imagefolder:{folder}").train] == [0, 0, 0, 1, 1, 1]


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


def test_parts_that_a_folder_lacks_are_named(folder):
    with raises("no image folder '.*nowhere'"):
        load_data(f"imagefolder:{folder}/nowhere")
    without(folder, "test")
    with raises(r"images' lacks test/ \(or val/\)"):
        load_data(f"imagefolder:{folder}")
    without(folder, "train")
    with raises("images' lacks train/"):
        load_data(f"imagefolder:{folder}")


def test_a_part_of_one_class_or_none_is_refused(folder):
    without(folder, "train/bee")
    with raises("train' holds only the class folder 'ant'; expected"):
        load_data(f"imagefolder:{folder}")
    without(folder, "train/ant")
    with raises("train' holds no class folder; expected"):
        load_data(f"imagefolder:{folder}")


def test_a_class_without_images_is_named(folder):
    (folder / "test" / "bee" / "0.png").unlink()
    with raises(r"test/bee' holds no image; expected files that end in .avif, .bmp, "):
        load_data(f"imagefolder:{folder}")


def test_classes_of_one_part_alone_are_named(folder):
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


def test_a_test_part_without_classes_is_refused(folder):
    without(folder, "test")
    flat(folder / "test", 2)
    with raises("test' holds no class folder"):
        load_data(f"imagefolder:{folder}")


def test_stack_names_an_image_that_has_gone(folder):
    Image.fromarray(pixels(9, 20, 30)).save(folder / "test" / "bee" / "0.png")
    data = load_data(f"imagefolder:{folder}")
    (folder / "train" / "ant" / "1.png").unlink()
    with raises("image '.*ant/1.png' cannot be read"):
        stack(data.train, [0, 1])


def test_a_mean_to_255_is_told(folder):
    with raises("pixels span 0 to 1 here; divide mean and std"):
        load_data(Asked(f"imagefolder:{folder}", mean=(123.0, 116.0, 103.0), std=(58.0, 57.0, 57.0)))


def test_jpegs_by_another_ending_are_images(folder):
    before = len(load_data(f"imagefolder:{folder}").train)
    Image.fromarray(pixels(50)).save(folder / "train" / "ant" / "x.jfif", "JPEG")
    assert len(load_data(f"imagefolder:{folder}").train) == before + 1
