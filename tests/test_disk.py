import pytest

from freeprune import disk
from freeprune.disk import write_atomically
from freeprune.errors import FreePruneError


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr(disk.os, "fsync", full)
    with pytest.raises(FreePruneError, match=r"file cannot be written \(no space left\)"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("place", ["a file/below", "n" * 255])
def test_a_place_where_nothing_can_be_written_is_one_sentence(place, tmp_path):
    (tmp_path / "a file").write_bytes(b"")
    with pytest.raises(FreePruneError, match="cannot be written"):
        write_atomically(tmp_path / place, b"")
