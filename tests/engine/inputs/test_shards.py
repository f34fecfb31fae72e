"""Shards of WebDataset and data sets of Hugging Face."""

import io
import os
import pickle
import resource
import sys
import tarfile
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from freeprune.engine.inputs import encoded
from freeprune.engine.inputs.data import Asked, load_data
from freeprune.engine.inputs.shards import expanded
from freeprune.errors import FreePruneError, FreePruneWarning


def png(seed):
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)).save(content, "png")
    return content.getvalue()


def shard(path, numbers, label=lambda i: i % 3):
    with tarfile.open(path, "w") as file:
        for i in numbers:
            members = {"png": png(i), "json": b"{}", **({} if label(i) is None else {"cls": str(label(i)).encode()})}
            for suffix, content in members.items():
                info = tarfile.TarInfo(f"some/{i:04d}.{suffix}")
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def shards(tmp_path):
    for number in range(3):
        shard(tmp_path / f"train-{number:03d}.tar", range(4 * number, 4 * number + 4))
    shard(tmp_path / "test.tar", range(20, 23))
    return tmp_path


def load(place, **options):
    return load_data(Asked(place, mean=(0, 0, 0), std=(1, 1, 1), **options))


@pytest.mark.parametrize("limit", [0, 10**9])
def test_images_and_labels_are_read_from_their_places(shards, limit, monkeypatch):
    monkeypatch.setattr(encoded, "MEMORY_LIMIT", limit)
    data = load(f"wds:{shards}/train-{{000..002}}.tar,{shards}/test.tar")
    assert (len(data.train), len(data.test), data.classes, data.augment) == (12, 3, ("0", "1", "2"), True)
    for part, first in ((data.train, 0), (data.test, 20)):
        for i, (image, label) in enumerate(part):
            expected = np.asarray(Image.open(io.BytesIO(png(first + i)))).transpose(2, 0, 1)
            assert np.array_equal((image * 255).round().numpy(), expected)
            assert label == (first + i) % 3
    copy = pickle.loads(pickle.dumps(data.train))  # as it travels to another process
    assert torch.equal(copy[5][0], data.train[5][0])


def test_of_training_shards_alone_a_fifth_is_for_the_test(shards):
    data = load(f"wds:{shards}/train-{{000..002}}.tar")
    assert (len(data.train), len(data.test)) == (10, 2)
    seen = {tuple(image.flatten().tolist()) for part in (data.train, data.test) for image, _ in part}
    assert len(seen) == 12


def test_images_without_labels(tmp_path):
    shard(tmp_path / "a.tar", range(6), lambda i: None)
    with pytest.warns(FreePruneWarning, match=r"hold .json beside the images and no .cls, .*held against the dense one"):
        assert not load(f"wds:{tmp_path}/a.tar").labelled
    shard(tmp_path / "b.tar", range(6, 9))
    with pytest.raises(FreePruneError, match=r"has no label \(.cls\), but others have; give all one, or none"):
        load(f"wds:{tmp_path}/{{a,b}}.tar")


def test_what_macos_leaves_in_an_archive_is_no_image(tmp_path):
    path = shard(tmp_path / "a.tar", range(12))
    with tarfile.open(path, "a") as file:
        for name in ("some/._0001.png", "__MACOSX/some/0001.png"):
            file.addfile(tarfile.TarInfo(name))
    data = load(f"wds:{path}")
    assert len(data.train) + len(data.test) == 12


def test_braces_stand_for_several_shards():
    assert expanded("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expanded("{x,y}/{0..1}") == ["x/0", "x/1", "y/0", "y/1"]
    assert expanded("plain.tar") == ["plain.tar"]


@pytest.mark.parametrize("left", [300, 1000, 1536, 3000, -8000])
def test_a_truncated_shard_is_a_sentence(shards, left):
    path = shards / "train-001.tar"
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(FreePruneError, match=r"the shard '.*train-001.tar' cannot be read .*truncated; fetch it again"):
        load(f"wds:{shards}/train-{{000..002}}.tar")


def test_a_damaged_header_is_not_the_end_of_a_shard(shards):
    path = shards / "train-001.tar"
    with tarfile.open(path) as file:
        second = file.getmembers()[1].offset
    content = bytearray(path.read_bytes())
    content[second] ^= 1
    path.write_bytes(content)
    with pytest.raises(FreePruneError, match="the header of a member is damaged"):
        load(f"wds:{shards}/train-{{000..002}}.tar")


def test_more_shards_than_files_may_be_open(tmp_path):
    for number in range(40):
        shard(tmp_path / f"{number:02d}.tar", range(2 * number, 2 * number + 2))
    lowest = os.open(tmp_path, os.O_RDONLY)  # free numbers are given out from the lowest on
    os.close(lowest)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 16, limits[1]))
    try:
        data = load(f"wds:{tmp_path}/{{00..39}}.tar")
        assert len(list(data.train)) == 64
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("skip", [False, True])
def test_a_shard_that_has_gone_is_a_sentence_or_another_image_stands_in(shards, skip, monkeypatch):
    monkeypatch.setattr(encoded, "MEMORY_LIMIT", 0)
    data = load(f"wds:{shards}/train-{{000..002}}.tar,{shards}/test.tar", bad_images="skip" if skip else "refuse")
    train = pickle.loads(pickle.dumps(data.train))  # in a process that has read nothing yet
    (shards / "train-001.tar").unlink()
    with pytest.warns(FreePruneWarning) if skip else pytest.raises(FreePruneError) as told:
        found = train[5][0]
    sentence = str(told[0].message if skip else told.value)
    assert f"the image 'some/0005.png in {shards}/train-001.tar' cannot be read (" in sentence
    assert "No such file or directory" in sentence
    assert not skip or torch.equal(found, train[8][0])


def test_shards_that_will_not_do_are_told(shards):
    with pytest.raises(FreePruneError, match=r"there is no shard '.*train-003.tar'; give existing .tar files"):
        load(f"wds:{shards}/train-{{002..003}}.tar")
    with tarfile.open(shards / "none.tar", "w"):
        pass
    with pytest.raises(FreePruneError, match=r"the shard '.*none.tar' holds no image"):
        load(f"wds:{shards}/none.tar")
    with pytest.raises(FreePruneError, match="has 3 parts"):
        load("wds:a,b,c")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("some/0001.cls", b"cat", r"'some/0001.cls' in the shard '.*a.tar' holds b'cat'; expected the number of a class"),
        ("some/0001.cls", b"-1", "holds b'-1'; expected the number of a class"),
        ("some/0001.seg.png", png(0), "'some/0001.png' and 'some/0001.seg.png', two images of one sample; expected one"),
    ],
)
def test_members_that_are_not_as_expected(tmp_path, name, content, sentence):
    path = shard(tmp_path / "a.tar", range(12))
    with tarfile.open(path, "a") as file:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        file.addfile(info, io.BytesIO(content))
    with pytest.raises(FreePruneError, match=sentence):
        load(f"wds:{path}")


def test_labels_may_end_as_windows_ends_lines(tmp_path):
    path = shard(tmp_path / "a.tar", range(12), lambda i: f"{i % 3}\r\n")
    assert load(f"wds:{path}").classes == ("0", "1", "2")


@pytest.fixture
def datasets(monkeypatch):
    found = pytest.importorskip("datasets")
    # It hashes a new data set by pickling all that it refers to, which takes long.
    monkeypatch.setattr("datasets.arrow_dataset.generate_fingerprint", lambda dataset: "fingerprint")
    return found


def rows(datasets, numbers):
    kinds = {"name": datasets.Value("string"), "image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])}
    images = [{"bytes": png(i), "path": None} for i in numbers]
    columns = {"name": [str(i) for i in numbers], "image": images, "label": [i % 3 for i in numbers]}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


@pytest.mark.filterwarnings("ignore")  # of the library
@pytest.mark.parametrize("whole", [True, False])
def test_a_folder_of_hugging_face(whole, datasets, tmp_path, monkeypatch):
    monkeypatch.setattr(encoded, "MEMORY_LIMIT", 0)
    train, test = rows(datasets, range(10)), rows(datasets, range(20, 24))
    (datasets.DatasetDict({"train": train, "validation": test}) if whole else train).save_to_disk(tmp_path / "set")
    data = load(f"hf:{tmp_path}/set")
    assert (len(data.train), len(data.test)) == ((10, 4) if whole else (8, 2))
    assert data.classes == ("a", "b", "c")
    known = {np.asarray(Image.open(io.BytesIO(png(i)))).tobytes(): i % 3 for i in (*range(10), *range(20, 24))}
    for part in (data.train, data.test):
        for image, label in part:
            assert known[(image * 255).round().byte().permute(1, 2, 0).numpy().tobytes()] == label


@pytest.mark.filterwarnings("ignore")  # of the library
def test_sentences_of_hugging_face(datasets, tmp_path):
    datasets.Dataset.from_dict({"x": [1, 2]}).save_to_disk(tmp_path / "none")
    with pytest.raises(FreePruneError, match=r"has no column of images \(x: Value\)"):
        load(f"hf:{tmp_path}/none")
    datasets.DatasetDict({"all": rows(datasets, range(3))}).save_to_disk(tmp_path / "all")
    with pytest.raises(FreePruneError, match="has the parts all; expected train"):
        load(f"hf:{tmp_path}/all")


def test_without_the_library_there_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(FreePruneError, match=r"needs Hugging Face's datasets.*pip install 'freeprune\[datasets\]'"):
        load("hf:mnist")


class Part(list):
    """A stand-in for a part of a data set of Hugging Face: images without labels, given by their content."""

    def __init__(self, contents, datasets):
        super().__init__({"image": None if one is None else {"bytes": one, "path": None}} for one in contents)
        self.features = {"image": datasets.Image()}

    def select_columns(self, names):
        return self

    def cast_column(self, name, kind):
        return self


@pytest.fixture
def library(monkeypatch):
    """A stand-in for the library, which loads its `parts`."""
    found = ModuleType("datasets")
    found.Image = type("Image", (), {"__init__": lambda self, decode=True: None})
    found.load_dataset = lambda name, configuration: found.parts
    monkeypatch.setitem(sys.modules, "datasets", found)
    return found


@pytest.mark.parametrize("limit", [0, 10**9])
def test_rows_without_an_image_are_refused_or_left_out(library, limit, monkeypatch):
    monkeypatch.setattr(encoded, "MEMORY_LIMIT", limit)
    contents = [*map(png, range(8)), None, png(8)]
    library.parts = {"train": Part(contents, library), "test": Part(map(png, range(20, 23)), library)}
    with pytest.raises(FreePruneError, match=r"the image 'image of row 8' cannot be read .* `bad_images=skip`"):
        load("hf:pictures")
    with pytest.warns(FreePruneWarning, match="1 of 13 images cannot be read and are left out: image of row 8$"):
        assert len(load("hf:pictures", bad_images="skip").train) == 9


def test_of_several_parts_for_the_test_the_same_counts_as_of_folders(library):
    counts = {"train": 10, "validation": 4, "valid": 3, "val": 2}
    library.parts = {name: Part(map(png, range(count)), library) for name, count in counts.items()}
    assert len(load("hf:pictures").test) == counts["val"]
