"""Images that do not fit into memory: looked at before a run, decoded on access, refused or skipped where they are bad."""

import io
import sys
import warnings
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset

from freeprune.engine.inputs import encoded
from freeprune.engine.inputs.crops import Cropped
from freeprune.engine.inputs.data import Asked, load_data
from freeprune.errors import FreePruneError, FreePruneWarning


def picture(seed, size=(40, 30), mode="RGB"):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Four images of each class for training, two for the test; nothing fits into memory."""
    monkeypatch.setattr(encoded, "MEMORY_LIMIT", 0)
    for part, count in (("train", 4), ("test", 2)):
        for label, name in enumerate(("ant", "bee")):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                suffix = "jpg" if i % 2 else "png"
                picture(10 * label + i).save(tmp_path / part / name / f"{i}.{suffix}")
    return tmp_path


def load(folder, **options):
    return load_data(Asked(f"imagefolder:{folder}", (0, 0, 0), (1, 1, 1), **options))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 20}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_the_size_of_a_jpeg_is_in_its_first_bytes(options, mode):
    content = io.BytesIO()
    picture(0, mode=mode).save(content, "jpeg", **options)
    assert encoded.jpeg_size(content.getvalue()[:4096]) == (30, 40)
    assert encoded.jpeg_size(content.getvalue()[:20]) is None
    assert encoded.jpeg_size(b"GIF89a" + content.getvalue()) is None


def test_sound_files_are_not_decoded_before_a_run(folder, monkeypatch):
    picture(3).save(folder / "train" / "ant" / "1.jpg", exif=b"Exif\0\0" + bytes(6000))  # the size comes after the first bytes
    (folder / "train" / "ant" / "3.jpg").write_bytes((folder / "train" / "ant" / "3.jpg").read_bytes() + b"more")
    decoded = []
    real = encoded.decode
    monkeypatch.setattr(encoded, "decode", lambda *a: decoded.append(a[2]) or real(*a))
    data = load(folder)
    names = [name.rpartition("train/")[2] for name in decoded]
    assert names == ["ant/0.png", "ant/1.jpg", "ant/3.jpg"]  # the first for its shape, the others in doubt
    assert data.train[0][0].shape == (3, 30, 40)
    assert data.train.pixels.form.size is None


def test_several_sizes_are_found(folder):
    picture(3, (50, 30)).save(folder / "test" / "bee" / "1.jpg")
    assert load(folder).train[0][0].shape == (3, 224, 224)
    assert load(folder, image_size=8).train[0][0].shape == (3, 8, 8)


def test_16_bits_are_found(folder):
    Image.fromarray(np.full((30, 40), 1000, np.uint16)).save(folder / "test" / "bee" / "0.png")
    assert load(folder).test.pixels.form.wide


BAD = {
    "cut short": lambda content: content[:-30],
    "empty": lambda content: b"",
    "another file": lambda content: b"<html></html>",
    "cut in the header": lambda content: content[:12],
}


@pytest.mark.parametrize("name", ["1.jpg", "2.png"])
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_is_refused_or_skipped_with_a_count(folder, kind, name):
    path = folder / "train" / "bee" / name
    path.write_bytes(BAD[kind](path.read_bytes()))
    with pytest.raises(FreePruneError, match=rf"bee/{name}' cannot be read .*; mend it or take it out, or leave such"):
        load(folder)
    with pytest.warns(FreePruneWarning, match=rf"^1 of 12 images cannot be read and are left out: .*bee/{name}$"):
        data = load(folder, bad_images="skip")
    assert [label for _, label in data.train] == [0] * 4 + [1] * 3
    assert [label for _, label in data.test] == [0] * 2 + [1] * 2
    assert data.bad_images == "skip"


def test_those_that_fit_into_memory_are_skipped_alike(folder, monkeypatch):
    monkeypatch.setattr(encoded, "MEMORY_LIMIT", 10**9)
    whole = load(folder)
    (folder / "train" / "ant" / "0.png").write_bytes(b"")
    with pytest.warns(FreePruneWarning, match="1 of 12"):
        data = load_data(Asked(f"imagefolder:{folder}", (0, 0, 0), (1, 1, 1), None, "skip"))
    assert torch.equal(data.train.pixels, whole.train.pixels[1:])
    assert data.train.labels.tolist() == [0] * 3 + [1] * 4


def test_an_image_that_turns_out_bad_later_is_told_or_another_stands_in(folder):
    """Its ends are sound, so that it is not noticed before it is decoded."""
    path = folder / "train" / "bee" / "0.png"
    content = path.read_bytes()
    path.write_bytes(content[:60] + bytes(len(content) - 80) + content[-20:])
    with pytest.raises(FreePruneError, match=r"bee/0.png' cannot be read"):
        load(folder).train.__getitems__([0, 4])
    data = load(folder, bad_images="skip")
    with pytest.warns(FreePruneWarning, match=r"bee/0.png' cannot be read .*another image stands in for it"):
        items = data.train.__getitems__([0, 4])
    assert torch.equal(items[1][0], data.train[5][0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is told once
        data.train.__getitems__([4])


def test_sentences(folder):
    with pytest.raises(FreePruneError, match="`bad_images` is 'ignore'; give refuse or skip"):
        load(folder, bad_images="ignore")
    with pytest.raises(FreePruneError, match=r"`bad_images=skip` was given, but it applies to imagefolder:DIR, hf:NAME and"):
        load_data(Asked("digits", bad_images="skip"))
    for path in (folder / "test").rglob("*.*g"):
        path.write_bytes(b"")
    with pytest.warns(FreePruneWarning), pytest.raises(FreePruneError, match="no image for the test can be read"):
        load(folder, bad_images="skip")


@pytest.fixture
def torchvision(monkeypatch):
    """A stand-in that takes the left upper quarter of what it is given, and mirrors always."""

    class Quarter:
        def __init__(self, size, scale, antialias):
            self.size, self.scale = size, scale

        def __call__(self, image):
            if isinstance(image, torch.Tensor):
                return image[:, : self.size[0], : self.size[1]] + self.scale[0]
            return image.crop((0, 0, image.width // 2, image.height // 2)).resize(self.size[::-1])

    class Mirrored:
        def __call__(self, image):
            return image.flip(2) if isinstance(image, torch.Tensor) else image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)

    def compose(steps):
        return lambda image: steps[1](steps[0](image))

    v2 = ModuleType("v2")
    v2.RandomResizedCrop, v2.RandomHorizontalFlip, v2.Compose = Quarter, Mirrored, compose
    transforms = ModuleType("torchvision.transforms")
    transforms.v2 = v2
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.transforms", transforms)


def test_crops_are_of_the_whole_picture(folder, torchvision):
    data = load(folder, image_size=10)
    cropped = Cropped(Subset(Subset(data.train, [7, 3, 1]), [0, 1]), 0.3)
    image, label = cropped[1]
    assert (image.shape, label, len(cropped)) == ((3, 10, 10), 0, 2)
    with Image.open(folder / "train" / "ant" / "3.jpg") as file:
        expected = file.crop((0, 0, 20, 15)).resize((10, 10)).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert np.array_equal((image * 255).round().numpy(), np.asarray(expected).transpose(2, 0, 1))


def test_crops_of_tensors(torchvision):
    items = [(torch.arange(16.0).view(1, 4, 4), 5)]
    assert len(Cropped([(*item, "a.png") for item in items], 0.25)[0]) == 3
    image, label = Cropped(items, 0.25)[0]
    assert label == 5
    assert torch.equal(image, items[0][0].flip(2) + 0.25)
    with pytest.raises(
        FreePruneError, match=r"random crops need images, and a batch of one item has a float32 tensor of shape \(1, 3\)"
    ):
        Cropped([(torch.zeros(3), 0)], 0.25)


def test_crops_without_torchvision_are_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(FreePruneError, match=r"`crop=0.08`\) need torchvision.*pip install 'freeprune\[torchvision\]'"):
        Cropped([(torch.zeros(3, 4, 4), 0)], 0.08)
