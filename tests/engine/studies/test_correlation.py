import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from no_pictures import pictures
from torch import nn

from freeprune import FreePruneError, Recipe, correlate
from freeprune.engine.command.cli import main
from freeprune.engine.report.plots import save_heat_map
from freeprune.engine.store.run_folder import studies_beside
from freeprune.engine.studies import correlation
from freeprune.engine.studies.candidates import draw_candidates
from freeprune.metrics import MetricError
from freeprune.search import Space

UNITS = np.array([10, 20, 30, 40])
METRICS = ["freeprune", "logdensity", "params"]


def space(target=50.0):
    return Space(UNITS, np.ones(4, np.int64), lambda kept: {"size": kept.sum(axis=1).astype(float)}, {"size": target})


def study(out, **options):
    asked = {"target": ["macs=40%"], "candidates": 4, "finetune": Recipe(images=64), "metrics": METRICS, **options}
    # Recovered, networks without training all answer as the dense one does, and there is nothing to rank.
    return correlate("digits:cnn", "digits", out=out, calibration_images=32, recovery=False, **{"round_to": 1, **asked})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    return out, study(out)


def test_candidates_cost_the_same_and_differ():
    kept = draw_candidates(space(), 30, 0)
    assert (kept.sum(axis=1) == 50).all()
    assert len({row.tobytes() for row in kept}) == 30


def test_candidates_reach_from_mild_to_extreme():
    kept = draw_candidates(space(), 30, 0)
    spread = (kept / UNITS).std(axis=1)
    assert spread.min() < 0.1
    assert spread.max() > 0.3


def test_a_longer_study_begins_with_the_candidates_of_a_shorter_one():
    assert (draw_candidates(space(), 30, 0)[:12] == draw_candidates(space(), 12, 0)).all()
    assert (draw_candidates(space(), 12, 1) != draw_candidates(space(), 12, 0)).any()


def test_a_space_with_too_few_networks_is_refused():
    with pytest.raises(FreePruneError, match="only 4 different networks meet the target, not 5; ask for fewer"):
        draw_candidates(space(target=5.0), 5, 0)


def test_a_study_reports_every_candidate_and_every_metric(finished):
    out, found = finished
    assert json.loads((out / "study.json").read_text()) == found.to_json()
    assert [len(c.accuracies) for c in found.candidates] == [2, 1, 1, 2]  # every third is repeated
    assert set(found.metrics) == set(METRICS)
    assert {name for name, judged in found.metrics.items() if judged.constant} == set()
    for name, judged in found.metrics.items():
        assert judged.ms > 0
        assert judged.constant or -1 <= judged.spearman.value <= 1, name
    assert 0 < found.noise.spread < 1
    assert found.config["target"] == ["macs=40%"]
    assert 0 < found.dense_accuracy < 1


def test_a_study_goes_on_where_it_stopped(finished, tmp_path, monkeypatch):
    out, expected = finished
    for name in ("config.json", "candidates.jsonl", "scores.jsonl"):
        lines = (out / name).read_bytes().splitlines(keepends=True)
        cut = lines if name == "config.json" else [*lines[:3], lines[3][:9]]  # the header, two records and a torn one
        (tmp_path / name).write_bytes(b"".join(cut))
    tuned = []
    train = correlation.finetuned
    monkeypatch.setattr(correlation, "finetuned", lambda *a: tuned.append(a) or train(*a))
    found = study(tmp_path, resume=True)
    assert len(tuned) == 6 - 2
    assert found.candidates == expected.candidates


def test_the_number_of_workers_changes_nothing(tmp_path):
    one, two = (study(tmp_path / str(count), workers=count).candidates for count in (1, 2))
    assert one == two


def test_a_finished_study_takes_more_candidates(finished, tmp_path):
    out, shorter = finished
    for path in out.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    found = study(tmp_path, candidates=5, resume=True)
    assert found.candidates[:4] == shorter.candidates
    assert len(found.candidates) == 5


def test_rescoring_tunes_nothing_and_computes_only_what_was_asked(finished, tmp_path, monkeypatch):
    out, before = finished
    for path in out.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(correlation, "finetuned", None)
    computed = []
    monkeypatch.setitem(correlation.METRICS, "freeprune", lambda *_: computed.append("freeprune") or float(len(computed)))
    monkeypatch.setitem(correlation.METRICS, "params", None)  # cannot be called
    found = study(tmp_path, rescore=True, metrics=["freeprune", "synflow"])
    assert set(found.metrics) == {"freeprune", "synflow", "logdensity", "params"}
    assert [c.scores["freeprune"] for c in found.candidates] == [1, 2, 3, 4]
    assert [c.scores["params"] for c in found.candidates] == [c.scores["params"] for c in before.candidates]


def test_what_the_budget_fixes_is_constant(tmp_path):
    """The last units that did not fit make the multiplications differ by less than a hundredth."""
    found = study(tmp_path, metrics=["freeprune", "params", "macs"], finetune=Recipe(images=32))
    assert found.metrics["macs"].constant
    assert len({c.scores["macs"] for c in found.candidates}) > 1
    assert not found.metrics["params"].constant


def test_a_score_that_cannot_be_had_ranks_last(tmp_path, monkeypatch):
    scores = iter([float("nan"), 2.0, 3.0, 4.0])
    monkeypatch.setitem(correlation.METRICS, "odd", lambda *_: next(scores))
    found = study(tmp_path, metrics="odd")
    assert [c.scores["odd"] for c in found.candidates] == [None, 2, 3, 4]


def weight_sum(candidate, dense, batch):
    return sum(tensor.abs().sum() for tensor in candidate.tensors.values())


def test_a_metric_of_the_users_own_is_studied_beside_the_others(tmp_path):
    found = study(tmp_path, metrics=["freeprune", weight_sum])
    (name,) = set(found.metrics) - {"freeprune", "logdensity"}
    assert name.endswith("test_correlation:weight_sum")
    assert found.metrics[name].spearman.value is not None
    assert all(candidate.scores[name] > 0 for candidate in found.candidates)


def test_a_metric_that_cannot_be_had_is_reported_with_the_reason(tmp_path, monkeypatch):
    def refuse(*_):
        raise MetricError("it needs a rectifier")

    monkeypatch.setitem(correlation.METRICS, "odd", refuse)
    judged = study(tmp_path, metrics=["odd"]).metrics["odd"]
    assert judged.constant
    assert judged.error == "it needs a rectifier"
    assert study(tmp_path, metrics=["odd"], resume=True).metrics["odd"].error == "it needs a rectifier"


def test_the_heat_map_shows_the_studies_side_by_side(finished, tmp_path):
    for name in ("weight", "channel"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "study.json").write_bytes((finished[0] / "study.json").read_bytes())
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "study.json").write_text("{")
    studies = studies_beside(tmp_path / "weight")
    assert list(studies) == ["channel", "weight"]
    paths = save_heat_map(studies, tmp_path)
    assert [path.name for path in paths] == ["heatmap.png", "heatmap.svg"]
    drawn = paths[1].read_text()
    assert all(f">{text}<" in drawn for text in ("channel", "weight", "noise ceiling", *METRICS))
    before = paths[1].read_bytes()
    assert save_heat_map(studies, tmp_path)[1].read_bytes() == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"candidates": 2}, "`candidates` is 2; give 3 or more"),
        ({"seeds": 0}, "`seeds` is 0; give 1 or more"),
        ({"workers": 0}, "`workers` is 0; give 1 or more"),
        ({"metrics": ["frepprune"]}, "did you mean 'freeprune'"),
        ({"resume": True}, "holds no run to resume"),
        ({"finetune": None}, "the study compares scores with accuracies after fine-tuning"),
    ],
)
def test_wrong_input_is_one_sentence(options, sentence, tmp_path):
    with pytest.raises(FreePruneError, match=sentence):
        study(tmp_path / "new", **options)


def test_the_study_of_another_network_is_refused(finished):
    with pytest.raises(FreePruneError, match=r"was started with target = .*, not .*"):
        study(finished[0], target=["macs=50%"], resume=True)
    wider = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))
    with pytest.raises(FreePruneError, match="was started with model = 'digits:cnn', not"):
        correlate(wider, "digits", out=finished[0], target=["macs=40%"], finetune=Recipe(images=64), resume=True)


def test_the_command_prints_a_table_and_draws(tmp_path):
    out = tmp_path / "out"
    arguments = ["correlate", "digits:cnn", "--data", "digits", "--target", "macs=40%", "--candidates", "3", "--out", str(out)]
    with pictures():
        result = CliRunner().invoke(main, [*arguments, "--finetune-images", "64", "--metrics", "freeprune,logdensity"])
    assert result.exit_code == 0, result.output
    assert "channel pruning at macs=40%, 3 candidates" in result.stdout
    assert (out / "scatter.png").read_bytes()[:4] == b"\x89PNG"
    assert (out / "scatter.svg").read_text().startswith("<?xml")
    assert ">out<" in (out / "heatmap.svg").read_text()


def test_without_labels_networks_are_ranked_by_agreement(tmp_path):
    images = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    asked = {"target": ["macs=40%"], "candidates": 3, "finetune": Recipe(images=32, batch_size=16), "calibration_images": 32}
    found = correlate("digits:cnn", images, out=tmp_path / "out", metrics=[*METRICS, "snip"], **asked)
    assert found.dense_accuracy == 1
    assert "reads labels, and the calibration data has none" in found.metrics["snip"].error
    text = found.shown().text()
    assert "agreement with the dense network after fine-tuning" in text
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Agreement with the dense network after fine-tuning against each score" in page
    assert not any("accurac" in told for told in (text, page))
