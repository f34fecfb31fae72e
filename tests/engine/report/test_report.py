import io
import json
import os
import re
import shutil
import tomllib
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch.utils.data import TensorDataset
from toys import network

import freeprune
from freeprune import FreePruneError
from freeprune.engine.command.cli import main
from freeprune.engine.report.charts import MOST, Axis, Series, chart, lower_edge, ticks
from freeprune.engine.report.page import render, write_report
from freeprune.engine.store.deployed import NoOnnx
from freeprune.engine.store.run_folder import read_document
from freeprune.engine.store.summary import Summary
from freeprune.engine.store.tables import of_run

VOID = {"meta", "link", "br", "img", "hr", "input"}
DIGITS = {"calibration_images": 32, "trials": 12}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = os.environ.get("FREEPRUNE_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)


class Page(HTMLParser):
    """The ids, texts and addresses of a page; a tag that is not closed where it should be is an error."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.tags, self.addresses, self.text = [], [], [], [], ""
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open += [] if tag in VOID else [tag]
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.addresses += [found[name] for name in ("href", "src", "action", "poster", "xlink:href") if name in found]
        if self.open.count("svg") and tag == "svg":
            assert found["aria-label"]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def images(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(count, 1, 8, 8, generator=generator), torch.arange(count) % 3)


def pruned(out, **options):
    asked = {"target": ["macs=50%"], "strategy": "random", "trials": 12, "calibration_images": 60}
    asked["finetune"] = freeprune.Recipe(epochs=1, batch_size=32)
    return freeprune.prune(network(), (images(120, 0), images(60, 1)), out=out, **{**asked, **options}).folder


MAKE = {
    "run": pruned,
    "composed": lambda out: pruned(out, granularity="channel+weight"),
    "comparison": lambda out: freeprune.compare(
        "digits:cnn", "digits", target=["macs=40%"], strategies=["random", "evolution"], seeds=2, out=out, **DIGITS
    ),
    "sweep": lambda out: freeprune.sweep("digits:cnn", "digits", budgets=["70%", "40%"], out=out, **DIGITS),
    "study": lambda out: freeprune.correlate(
        "digits:cnn", "digits", target=["macs=40%"], candidates=4, metrics=["freeprune", "snip"], out=out,
        finetune=freeprune.Recipe(images=1024), calibration_images=32, round_to=1,
    ),
}  # fmt: skip
SECTIONS = {
    "run": ["verdict", "result", "layers", "search", "asked", "checks", "load", "repeat"],
    "composed": ["verdict", "result", "layers", "search", "asked", "checks", "load", "repeat"],
    "comparison": ["asked", "result", "search", "repeat"],
    "sweep": ["asked", "result", "search", "load", "repeat"],
    "study": ["asked", "result", "search", "repeat"],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One finished folder of a kind, made when it is first asked for."""
    made = {}

    def folder(kind):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind) / "out"
            MAKE[kind](made[kind])
        return made[kind]

    return folder


@pytest.fixture
def run(folders, tmp_path):
    """A finished run of one's own, to be changed."""
    return Path(shutil.copytree(folders("run"), tmp_path / "run"))


def change(path, **new):
    document = json.loads(path.read_text())
    for place, value in new.items():
        *outer, last = place.split("__")
        inner = document
        for name in outer:
            inner = inner[name]
        inner[last] = value
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("kind", sorted(MAKE))
def test_the_page_is_whole_and_needs_no_network(folders, kind):
    text = (folders(kind) / "report.html").read_text()
    page = Page(text)
    assert page.ids == SECTIONS[kind]
    assert page.addresses == ["data:,"]  # the icon that browsers ask a server for otherwise
    assert not re.search(r"https?://|@import|url\(|<script", text)
    assert "svg" in page.tags


@pytest.mark.parametrize("kind", sorted(MAKE))
def test_the_page_is_a_function_of_the_folder(folders, kind):
    folder = folders(kind)
    before = (folder / "report.html").read_bytes()
    assert write_report(folder) == folder / "report.html"
    assert (folder / "report.html").read_bytes() == before


def test_what_came_out_is_on_the_page(run):
    summary = json.loads((run / "summary.json").read_text())
    text = Page(render(run)).text
    for which in ("dense", "pruned", "finetuned"):
        assert f"{summary['accuracy'][which]:.2%}" in text
    assert f"{summary['agreement']['masked_vs_compact']:.1e}" in text
    assert f"{summary['agreement']['compact_vs_onnx']:.1e}" in text
    assert f"{summary['score']['best']:.4f}" in text
    for group in summary["groups"]:
        assert f"{group['name']}{group['left']} of {group['width']}" in text
    assert all(f"{name} {version}" in text for name, version in summary["versions"].items())
    assert f"freeprune.load({str(run)!r}, network)" in text
    assert render(run).count('<circle class="chosen"') == 3  # accuracy and latency; score against MACs, against parameters


def test_the_first_view_has_every_network_by_accuracy_and_latency(run):
    int8 = {"bytes": 1536, "dense_bytes": 3072, "accuracy": {"dense": 0.625, "pruned": 0.5625}}
    int8 |= {"latency_ms": {"dense": 3.0, "pruned": 1.0}}
    change(run / "summary.json", onnx__latency_ms={"dense": 4.0, "pruned": 2.0}, onnx__int8=int8, accuracy__recovered=0.4375)
    text = render(run)
    drawn = text[text.index('id="result"') : text.index('id="layers"')]
    places = {
        kind: (float(x), float(y)) for kind, x, y in re.findall(r'<circle class="([^"]+)" cx="([\d.]+)" cy="([\d.]+)"', drawn)
    }
    assert list(places) == ["dense", "trial", "s5", "chosen", "dense ring", "chosen ring"]
    assert places["trial"][0] == places["s5"][0] == places["chosen"][0]
    assert places["chosen ring"][0] < places["chosen"][0] < places["dense ring"][0] < places["dense"][0]
    assert places["chosen ring"][1] > places["dense ring"][1]  # 56% lies below 62%
    told = " ".join(Page(text).text.split())
    assert "recovered43.75%" in told
    assert "dense, int862.50%3 ms75%3 KiB" in told
    assert "fine-tuned, int856.25%1 ms25%2 KiB" in told
    change(run / "summary.json", onnx=NoOnnx.because("none").to_json())
    assert Page(render(run)).text.count("43.75%") == 1  # without a file the table alone


def test_the_shape_has_streams_above_and_branches_below(run):
    groups = [("stem", 16, 12, True), ("a.conv1", 16, 4, False), ("b.conv1", 8, 0, False)]
    made = [
        {"name": n, "units": 4, "kept": 3, "width": w, "left": k, **({"shared": True} if s else {})} for n, w, k, s in groups
    ]
    kept = {"a branch": 1, "a branch#2": 0, "b branch": 0}
    made += [{"name": name, "units": 1, "kept": k} for name, k in kept.items()]
    change(run / "summary.json", groups=made)
    change(run / "config.json", groups=[[one["name"], one["units"]] for one in made])
    text = render(run)
    drawn = text[text.index('<svg class="shape"') : text.index("</svg>", text.index('<svg class="shape"'))]
    bars = re.findall(r'<rect class="(\w+)" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', drawn)
    kinds = [(kind, round(float(height))) for kind, *_, height in bars]
    assert kinds == [("before", 100), ("stream", 75), ("before", 100), ("after", 25), ("lost", 50)]
    assert all(float(y) < 100 for kind, _, y, *_ in bars[:2])
    assert all(float(y) == 100 for kind, _, y, *_ in bars[2:])
    assert float(bars[0][3]) > 2 * float(bars[2][3])  # as long as it runs
    assert "<title>b.conv1: gone, with its branch</title>" in drawn
    page = " ".join(Page(text).text.split())
    assert "Gone as a whole: a, b." in page
    assert "Residual branches1 of 3" in page.replace(" 1 of 3", "1 of 3")
    assert "branch#2" not in page
    assert "a.conv14 of 16" in page
    assert "b.conv10 of 8" in page


def test_shapes_are_those_of_the_saved_tensors(run):
    summary = json.loads((run / "summary.json").read_text())
    kept = summary["groups"][0]["kept"]
    assert kept < 8
    assert f"0.weight8 × 1 × 3 × 3{kept} × 1 × 3 × 3" in Page(render(run)).text.replace("\n", "")


def test_widths_are_drawn_to_one_scale_and_densities_each_to_its_own(folders):
    text = render(folders("composed"))
    widths, densities = text.split("Density of each layer</h3>")
    tracks = [float(width) for width in re.findall(r'class="track" style="width: ([\d.]+)%', widths)]
    assert tracks == pytest.approx([100 * 8 / 12, 100], abs=0.01)
    assert set(re.findall(r'class="track" style="width: ([\d.]+)%', densities)) == {"100.00"}


def test_a_network_without_a_file_of_weights_is_not_said_to_be_as_its_code_makes_it(run):
    change(run / "config.json", model="mine:Net", weights=None)  # as one that was given in Python, trained
    assert "mine:Net with the weights that it came with" in " ".join(Page(render(run)).text.split())


def test_no_name_becomes_markup(run):
    evil = "<script>alert('1')</script>"
    summary = json.loads((run / "summary.json").read_text())
    summary["groups"][0]["name"] = evil
    summary["onnx"]["warnings"] = [evil]
    summary["onnx"]["verdict"] = evil
    (run / "summary.json").write_text(json.dumps(summary))
    config = json.loads((run / "config.json").read_text())
    config["groups"][0][0] = evil
    names = ("model", "weights", "data", "strategy", "metric", "criterion")
    (run / "config.json").write_text(json.dumps({**config, **dict.fromkeys(names, evil)}))
    text = render(run)
    assert "<script" not in text
    assert Page(text).text.count(evil) >= len(names)
    for part in ("<h3>x</h3>", '" onload="x'):  # in the text and in an attribute of a drawing
        drawn = chart(part, [Series(part, [1.0], [2.0], titles=[part])], Axis(part), Axis(part))
        assert part not in drawn.svg


def test_a_fixed_batch_size_is_told_in_the_page_and_in_the_table(run):
    def told():
        return Page(render(run)).text, of_run(read_document(run, Summary), "channel").text()

    assert not any("takes batches of" in text for text in told())
    change(run / "summary.json", onnx__batch=7)
    assert all(re.search(r"takes batches of\W*7 only", text) for text in told())


def test_the_verdict_on_speed_stands_out_where_there_is_one(run):
    change(run / "summary.json", onnx__verdict="not faster: ragged widths")
    page = Page(render(run))
    assert "verdict" in page.ids
    assert "not faster: ragged widths" in page.text
    change(run / "summary.json", onnx=NoOnnx.because("no exporter for this operator").to_json())
    page = Page(render(run))
    assert "verdict" not in page.ids
    assert "no exporter for this operator" in page.text


def test_a_target_on_latency_is_accounted_for(run):
    head, *lines = (run / "trials.jsonl").read_text().splitlines()
    trials = [json.loads(line) for line in lines]
    for number, trial in enumerate(trials):
        trial["costs"]["latency"] = 1.5 + number / 100
    (run / "trials.jsonl").write_text("\n".join([head, *map(json.dumps, trials)]) + "\n")
    timed = {"measured_ms": 1.25, "target_ms": 1.75, "predicted_ms": 1.55, "dense_ms": 2.5, "limit_ms": 1.625, "tightened": 2}
    timed |= {"met": True, "batch": 32, "threads": 1}
    timed["table"] = {"points": 9, "seconds": 1.5, "checked": 3, "median_error": 0.01}
    change(run / "summary.json", latency=timed)
    text = render(run)
    page = " ".join(Page(text).text.split())
    assert "1.25 ms measured, at most 1.75 asked, 1.55 predicted, 2.5 dense; the target was tightened 2 times." in page
    assert "missed at first" in page
    assert text.count('<circle class="chosen"') == 4
    assert "predicted latency, ms" in page


def test_an_unfinished_run_shows_what_there_is(run):
    for name in ("summary.json", "plan.json", "report.html"):
        (run / name).unlink()
    ledger = run / "trials.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[:6]) + lines[6][:20])  # another process is writing the sixth trial
    before = ledger.read_bytes()
    result = CliRunner().invoke(main, ["report", str(run)], catch_exceptions=False)
    assert str(run / "report.html") in result.output
    page = Page((run / "report.html").read_text())
    assert "Not finished: 5 of 12 trials are done" in page.text
    assert page.ids == ["layers", "search", "asked", "repeat"]
    assert "best so far" in page.text
    assert ledger.read_bytes() == before
    ledger.unlink()
    page = Page(render(run))
    assert "0 of 12 trials" in page.text
    assert page.ids == ["layers", "asked", "repeat"]


@pytest.mark.parametrize("kind", ["comparison", "sweep", "study"])
def test_unfinished_searches_show_what_there_is(folders, tmp_path, kind):
    folder = Path(shutil.copytree(folders(kind), tmp_path / "out"))
    (folder / f"{kind}.json").unlink()
    page = Page(render(folder))
    assert "Not finished" in page.text
    assert page.ids == (["asked", "repeat"] if kind == "study" else ["asked", "search", "repeat"])
    shutil.rmtree(folder / "ledgers", ignore_errors=True)
    assert Page(render(folder)).ids == ["asked", "repeat"]


def test_trials_of_another_version_are_said_to_be_missing(run):
    lines = (run / "trials.jsonl").read_text().splitlines(keepends=True)
    (run / "trials.jsonl").write_text('{"freeprune_ledger": 1}\n' + "".join(lines[1:]))
    page = Page(render(run))
    assert "another version of freeprune" in page.text
    assert "search" not in page.ids
    assert "result" in page.ids


def test_equal_rates_and_no_fine_tuning_make_a_page_as_well(tmp_path):
    folder = pruned(tmp_path / "out", trials=0, granularity="weight", target=["nonzero=30%"], finetune=None)
    page = Page((folder / "report.html").read_text())
    assert "search" not in page.ids
    assert "Density of each layer" in page.text
    assert "--trials 0" in page.text
    assert "--finetune-epochs 0" in page.text


def test_what_is_no_run_or_damaged_is_refused_in_one_sentence(run, tmp_path):
    with pytest.raises(FreePruneError, match="holds no run"):
        write_report(tmp_path)
    change(run / "summary.json", cost={})
    change(run / "summary.json", accuracy=3)
    with pytest.raises(FreePruneError, match=r"summary\.json is damaged"):
        write_report(run)


def test_a_run_that_was_picked_says_so(run):
    change(run / "config.json", sweep="runs/the sweep")
    assert "freeprune pick 'runs/the sweep' \\" in Page(render(run)).text


def test_a_chart_holds_no_more_points_than_an_eye_tells_apart():
    many = np.arange(3.0 * MOST)
    drawn = chart("many", [Series("", many, many, titles=list(map(str, many)))], Axis("x"), Axis("y"))
    assert drawn.svg.count("<circle") == MOST
    assert f"<title>{many[-1]}</title>" in drawn.svg
    assert "area" in chart("filled", [Series("", many, many, "line", y2=many + 1)], Axis("x"), Axis("y")).svg
    assert chart("none", [Series("", [], [])], Axis("x"), Axis("y")) is None


def test_points_lie_where_they_belong():
    drawn = chart("", [Series("", [0.0, 5, 10], [0.0, -9, 1])], Axis("x", low=0, high=10), Axis("y", low=0, high=1, cut=0))
    places = [tuple(map(float, place)) for place in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', drawn.svg)]
    (left, bottom), (middle, edge), (right, top) = places
    assert left < middle < right
    assert middle == pytest.approx((left + right) / 2)
    assert bottom == edge > top  # what lies below the cut is drawn at the edge


def test_a_few_poor_scores_do_not_squeeze_the_others():
    scores = np.array([-9.0, -0.4, -0.3, -0.3, -0.2])
    assert lower_edge(scores) == pytest.approx(-0.2 - 0.08 * 8.8)
    assert lower_edge(np.array([-0.6, -0.4, -0.3])) == -0.6
    assert lower_edge(np.array([-1.0, *[-0.25] * 9])) == pytest.approx(-0.25 - 0.06)  # not a millionth below the best


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3e-7, 2e-7), (39.2, 40.0), (1e6, 1.0001e6), (-2, -1)])
def test_ticks_are_round_and_within(low, high):
    found = ticks(low, high)
    assert 2 <= len(found) <= 6
    assert all(low <= tick <= high for tick in found)
    steps = np.diff(found)
    assert np.allclose(steps, steps[0])
    assert f"{steps[0]:.0e}"[0] in "125"


def test_the_package_brings_its_templates():
    root = Path(freeprune.__file__).parent
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"][
        "freeprune.engine.report"
    ]
    for path in (root / "engine" / "report" / "templates").iterdir():
        assert any(fnmatch(f"templates/{path.name}", pattern) for pattern in patterns), path


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on the path, and FREEPRUNE_BROWSER names none")
    driver = pytest.importorskip("playwright.sync_api", reason="no playwright to drive a browser with")
    with driver.sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield started
        started.close()


def shown(browser, folder, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((folder / "report.html").resolve().as_uri())
    assert asked == [(folder / "report.html").resolve().as_uri(), "data:,"][: len(asked)]
    return page, Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")


@pytest.mark.parametrize("kind", sorted(MAKE))
def test_a_browser_shows_it_on_a_phone_and_on_a_screen(browser, folders, kind):
    corners = {}
    for width, scheme in ((390, "dark"), (1280, "light")):
        page, picture = shown(browser, folders(kind), width, scheme)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert picture.width == width
        assert len(picture.getcolors(1 << 20)) > 100  # neither blank nor without letters
        corners[scheme] = sum(picture.getpixel((2, 2)))
        page.close()
    assert corners["light"] > 3 * 230
    assert corners["dark"] < 3 * 40


@pytest.mark.parametrize("kind", sorted(MAKE))
def test_a_browser_prints_it_in_colour_on_white(browser, folders, kind):
    page = browser.new_page(viewport={"width": 720, "height": 900}, color_scheme="dark")
    page.goto((folders(kind) / "report.html").resolve().as_uri())
    page.emulate_media(media="print", color_scheme="dark")
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    ink, adjust = page.evaluate("(style => [style.color, style.printColorAdjust])(getComputedStyle(document.body))")
    assert max(map(int, re.findall(r"\d+", ink))) < 64
    assert adjust == "exact"
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_draws_the_chosen_network(browser, folders, scheme):
    page, picture = shown(browser, folders("run"), 390, scheme)
    points = page.locator("circle.chosen")
    assert points.count() == 3
    for i in range(3):
        box = points.nth(i).bounding_box()
        colour = page.evaluate("point => getComputedStyle(point).fill", points.nth(i).element_handle())
        found = picture.getpixel((round(box["x"] + box["width"] / 2), round(box["y"] + box["height"] / 2)))
        assert found == tuple(map(int, re.findall(r"\d+", colour)))
    page.close()
