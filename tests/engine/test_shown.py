import re
import sys
from html import unescape
from pathlib import Path

import pytest
from no_pictures import pictures

import freeprune
from freeprune.engine.shown import Showable, Shown
from freeprune.engine.store.tables import counted
from freeprune.errors import FreePruneWarning

ASKED = {"calibration_images": 32, "finetune": freeprune.Recipe(images=64)}
MAKE = {
    "prune": lambda out: freeprune.prune("digits:cnn", "digits", target=["macs=50%"], trials=3, out=out, **ASKED),
    "compare": lambda out: freeprune.compare(
        "digits:cnn", "digits", target=["macs=50%"], trials=3, seeds=2, strategies=["random", "evolution"], out=out, **ASKED
    ),
    "sweep": lambda out: freeprune.sweep(
        "digits:cnn", "digits", budgets=["60%", "40%"], trials=3, calibration_images=32, out=out
    ),
    "correlate": lambda out: freeprune.correlate(
        "digits:cnn",
        "digits",
        target=["macs=50%"],
        candidates=3,
        metrics=["freeprune", "snip"],
        out=out,
        **ASKED,
        recovery=False,  # so that accuracies differ
    ),
}
# What somebody looks for first: of each row its name, and figures of the result itself.
ROWS = {
    "prune": ["MACs", "parameters", "ONNX file", "test accuracy", "after fine-tuning"],
    "compare": ["random", "evolution"],
    "sweep": ["dense", "macs=60%", "macs=40%"],
    "correlate": ["freeprune", "snip", "logdensity"],
}
FIGURES = {
    "prune": lambda r: [f"{r.summary.accuracy.finetuned:.2%}", f"{r.summary.score.best:.4f}", r.summary.onnx.verdict, r.folder],
    "compare": lambda c: [f"{one.best.value:.3f}" for one in c.strategies.values()],
    "sweep": lambda s: [f"{one.score:.4f}" for one in s.budgets],
    "correlate": lambda s: [f"{s.dense_accuracy:.2%}", f"{s.metrics['freeprune'].rho:.2f}"],
}
PICTURES = {"prune": [], "compare": ["comparison"], "sweep": ["sweep"], "correlate": ["heatmap", "scatter"]}


@pytest.fixture(scope="module", params=MAKE)
def made(request, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param) / "out"
    with pictures():
        return request.param, MAKE[request.param](out), out


def test_one_is_not_several():
    assert [counted(number, "trial") for number in (0, 1, 2)] == ["0 trials", "1 trial", "2 trials"]


def test_a_result_prints_as_a_table_and_is_one_in_a_notebook(made):
    kind, result, _ = made
    for text in (str(result), unescape(re.sub(r"<[^>]+>", " ", result._repr_html_()))):
        assert text.startswith(("channel pruning", " "))
        for part in [*ROWS[kind], *map(str, FIGURES[kind](result))]:
            assert part in text
    assert result._repr_html_().count("<tr>") == 1 + len(re.findall(r"^│", str(result), re.M))


def test_python_writes_the_pictures_too(made):
    kind, _, out = made
    pictures = {path.name for path in out.iterdir() if path.suffix in (".png", ".svg")}
    assert pictures == {f"{name}.{suffix}" for name in PICTURES[kind] for suffix in ("png", "svg")}


class Odd(Showable):
    def shown(self):
        return Shown("[red]<b>title", ("[x]", "b"), [("<script>", "1"), ("[bold]", "2")], ["a & b [/x]"])


def test_no_text_becomes_markup():
    assert all(part in str(Odd()) for part in ("[red]<b>title", "[x]", "<script>", "[bold]", "a & b [/x]"))
    html = Odd()._repr_html_()
    assert "<script>" not in html
    assert "<b>" not in html
    assert "&lt;script&gt;" in html
    assert "a &amp; b" in html


def test_a_long_note_stays_one_line():
    line = "word " * 60
    assert line.strip() in Shown("", ("a",), [], [line]).text()


def test_without_matplotlib_there_is_a_warning_and_no_picture(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pictures(), pytest.warns(FreePruneWarning, match="plots need matplotlib"):
        MAKE["sweep"](tmp_path)
    assert (tmp_path / "sweep.json").exists()
    assert not list(Path(tmp_path).glob("*.png"))
