import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest

import freeprune
from freeprune.engine.store.documents import Document
from freeprune.engine.store.run_folder import studies_beside
from freeprune.engine.store.studies import Study
from freeprune.engine.store.summary import Accuracy

HARMED = {  # dense, pruned, recovered, fine-tuned; whether larger is better
    "an accuracy that fell": (Accuracy(0.9, 0.5, 0.85, 0.3), True),
    "without recovery": (Accuracy(0.9, 0.85, None, 0.3), True),
    "an error that grew": (Accuracy(1.0, 13.0, 1.06, 10_000.0), False),
}
UNHARMED = {
    "nothing trained": (Accuracy(0.9, 0.5, 0.3, None), True),
    "better": (Accuracy(0.9, 0.5, 0.6, 0.88), True),
    "an error that fell": (Accuracy(1.0, 13.0, 2.0, 1.1), False),
    "by chance": (Accuracy(0.9, 0.5, 0.895, 0.88), True),
    "less than pruning had lost": (Accuracy(0.9, 0.5, 0.7, 0.6), True),
}

STUDIES = Path(freeprune.__file__).parent / "benchmarks" / "studies"


@dataclass(frozen=True)
class Inner(Document):
    ms: Annotated[float, lambda value: value > 0]
    note: str | None = None


@dataclass(frozen=True)
class Outer(Document):
    inner: Inner | None
    steps: tuple[tuple[int, float], ...]
    found: dict[str, tuple[Inner, ...]]


WHOLE = {"inner": {"ms": 1}, "steps": [[1, 0.5], [2, 1]], "found": {"a": [{"ms": 2.5, "note": "odd"}]}}


def test_a_document_is_its_json_and_back():
    document = Outer.from_json({**WHOLE, "unknown": 3})
    assert document == Outer(Inner(1.0), ((1, 0.5), (2, 1.0)), {"a": (Inner(2.5, "odd"),)})
    assert json.dumps(document.to_json()) == json.dumps(WHOLE)  # what has its default is left out
    assert document["inner"]["ms"] == document.inner.ms
    assert Outer.from_json({**WHOLE, "inner": None}).inner is None


@pytest.mark.parametrize(
    "change",
    [
        {"inner": {}}, {"inner": {"ms": 0}}, {"inner": {"ms": True}}, {"inner": {"ms": 1, "note": 1}}, {"inner": []},
        {"steps": [[1]]}, {"steps": [[1.5, 1]]}, {"steps": {}}, {"found": {"a": {"ms": 1}}}, {"found": None},
    ],
)  # fmt: skip
def test_what_does_not_fit_the_fields_is_refused(change):
    with pytest.raises(ValueError, match="no outer"):
        Outer.from_json({**WHOLE, **change})
    with pytest.raises(ValueError, match="no outer"):
        Outer.from_json({name: value for name, value in WHOLE.items() if name not in change})


def test_parts_that_contradict_each_other_are_refused():
    document = json.loads(next(STUDIES.glob("*/study.json")).read_text())
    del document["candidates"][0]["scores"]["freeprune"]
    with pytest.raises(ValueError, match="other metrics"):
        Study.from_json(document)


def test_the_studies_of_the_score_are_read_as_they_were_written():
    found = studies_beside(STUDIES / "plain-weight-nonzero10")
    assert len(found) == len(list(STUDIES.glob("*/study.json"))) > 10
    for name, study in found.items():
        assert study.to_json() == json.loads((STUDIES / name / "study.json").read_text())
        assert study.ranked()[0][1].rho > 0.5


def test_training_that_did_harm_is_told_from_chance():
    assert all(found.harmed(larger) for found, larger in HARMED.values())
    assert not any(found.harmed(larger) for found, larger in UNHARMED.values())
