"""Files of records."""

from freeprune.engine.store import records
from freeprune.engine.store.records import Records


def test_records_wait_for_the_disk_once_in_a_while(tmp_path, monkeypatch):
    clock, synced = [0.0], []
    monkeypatch.setattr(records.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(records.os, "fsync", lambda descriptor: synced.append(clock[0]))
    file = Records(tmp_path / "records.jsonl", "kind")
    for clock[0] in (100.0, 100.5, 101.5, 102.0, 103.0):
        file.add({"at": clock[0]})
    assert synced == [100.0, 101.5, 103.0]
    assert [one["at"] for one in Records(file.path, "kind").entries] == [100.0, 100.5, 101.5, 102.0, 103.0]
