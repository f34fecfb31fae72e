"""Every file that is read, mangled at random: it reads as well-formed data, or one sentence says that it does not.

A few hundred mangled files by default; `HYPOTHESIS=thorough pytest tests/engine/test_mangled_files.py` reads over ten thousand.
"""

import contextlib
import copy
import hashlib
import io
import json
import os
import shutil
import struct
import tarfile
import zipfile
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch.utils.data import TensorDataset
from toys import in_turn, network

import freeprune
from freeprune.backends import Plan, apply
from freeprune.engine import opening
from freeprune.engine.asked.settings import Settings
from freeprune.engine.command.dashboard import studies
from freeprune.engine.inputs import calibration
from freeprune.engine.inputs.batches import split
from freeprune.engine.inputs.data import load_data
from freeprune.engine.inputs.sharded import save_weights
from freeprune.engine.inputs.weights import load_weights
from freeprune.engine.latency.layers import Layer
from freeprune.engine.latency.measurements import Measurements, Setting, Timed
from freeprune.engine.run.loop import search
from freeprune.engine.store import run_folder as folder
from freeprune.engine.store.ledger import Ledger
from freeprune.engine.store.shapes import ADDED, ASKED
from freeprune.engine.store.studies import Comparison, Study, Sweep
from freeprune.engine.store.summary import Summary
from freeprune.engine.store.tables import of_run
from freeprune.engine.studies import pick
from freeprune.engine.tasks import CLASSIFICATION
from freeprune.engine.tasks.classification import MOST_CLASSES
from freeprune.engine.training import checkpoint
from freeprune.errors import FreePruneError
from freeprune.search import STRATEGIES, Space

THOROUGH = os.environ.get("HYPOTHESIS") == "thorough"
# No shrinking in the normal suite: a failure names its seed, and the thorough profile finds a smaller one.
PHASES = [Phase.explicit, Phase.reuse, Phase.generate, *([Phase.shrink] if THOROUGH else [])]
FUZZED = settings(
    max_examples=700 if THOROUGH else 20, deadline=None, suppress_health_check=list(HealthCheck), phases=PHASES, database=None
)
HOSTILE = (
    None, True, False, -1, 0, 1, 2, 3, 0.5, -0.5, 1e308, 2**31, 2**63, 10**30, 10**400, "", "x", "1", "0", "nan", "__class__",
    "__dict__", "forward", "training", "_parameters", "../../etc/passwd", "/dev/zero", "[/x]", [], {}, [[]], [0], [1, 2], [-1],
    {"0": [0]}, {"": None}, [None], ["a"],
)  # fmt: skip


def pair():
    generator = torch.Generator().manual_seed(0)
    return tuple(TensorDataset(torch.randn(n, 1, 8, 8, generator=generator), torch.arange(n) % 3) for n in (60, 30))


SMALL = {"calibration_images": 20, "trials": 4}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One whole folder of each kind."""
    root = tmp_path_factory.mktemp("whole")
    for granularity, target in (("channel", {"macs": 0.5}), ("weight", {"nonzero": 0.3})):
        freeprune.prune(
            network(),
            pair(),
            target=target,
            granularity=granularity,
            out=root / granularity,
            finetune=None,
            quantize="int8" if granularity == "channel" else None,
            **SMALL,
        )
    freeprune.compare(
        network(), pair(), target={"macs": 0.5}, out=root / "compare", strategies=["random", "evolution"], seeds=2, **SMALL
    )
    freeprune.sweep(network(), pair(), budgets=[0.7, 0.5], out=root / "sweep", **SMALL)
    searched(root / "search.jsonl")
    measured = Measurements(root / "latency.jsonl")
    measured.begin(Setting("ONNX Runtime", "1.2", 32, 1))
    layer = Layer("Conv", 8, 4, 1, (3, 3), (1, 8, 8), 64, (("pads", (1, 1, 1, 1)),))
    measured.add_pass(layer, {(4, 2): 0.1, (4, 4): 0.2, (8, 2): 0.2, (8, 4): 0.4}, 1.5)
    measured.add_network(np.array([4, 4]), Timed(0.5, 1.0, 0.3))
    rng = np.random.default_rng(0)
    images = {f"x_{part}": rng.integers(0, 255, (n, 8, 8), np.uint8) for part, n in (("train", 12), ("test", 6))}
    labels = {f"y_{part}": np.arange(n) % 3 for part, n in (("train", 12), ("test", 6))}
    np.savez(root / "data.npz", **images, **labels)
    save_file(network().state_dict(), root / "weights.safetensors")
    (root / "sharded").mkdir()
    save_weights(network(), root / "sharded" / "model.safetensors", 300)
    torch.save(network().state_dict(), root / "weights.pt")
    torch.save(network().state_dict(), root / "old.pth", _use_new_zipfile_serialization=False)
    checkpoint.save(checkpoint.Checkpoint({"seed": 1}, 2, {}, network().state_dict()), root / "training.safetensors")
    with tarfile.open(root / "shard.tar", "w") as file:
        for i in range(6):
            content = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (4, 4, 3), np.uint8)).save(content, "png")
            for name, given in ((f"{i}.png", content.getvalue()), (f"{i}.cls", b"%d" % (i % 2))):
                info = tarfile.TarInfo(name)
                info.size = len(given)
                file.addfile(info, io.BytesIO(given))
    freeprune.correlate(
        network(), pair(), target={"macs": 0.5}, out=root / "study", candidates=3, seeds=1, calibration_images=20,
        finetune=freeprune.Recipe(images=32, batch_size=16), metrics=["freeprune", "params"],
    )  # fmt: skip
    return root


def searched(path):
    units = np.array([10, 20, 30])
    space = Space(units, np.ones(3, np.int64), lambda kept: {"size": kept.sum(axis=1).astype(float)}, {"size": 30.0})
    score = lambda kept: float(-np.abs(kept - 10).sum())  # noqa: E731
    return search(space, STRATEGIES["random"](space, 3, 12), in_turn(score), Ledger(path), 12)


# What is done to a file


def mangled_bytes(content, random):
    content = bytearray(content)
    for _ in range(random.choice([1, 1, 1, 2, 5, 20])):
        place = random.randrange(len(content) + 1) if random.random() < 0.5 else random.randrange(min(len(content), 200) + 1)
        match random.randrange(6):
            case 0:
                del content[place:]
            case 1:
                del content[place : place + random.choice([1, 2, 8, 100])]
            case 2:
                content[place:place] = bytes(random.choices(range(256), k=random.choice([1, 4, 64])))
            case 3:
                content[place:place] = content[place : place + random.choice([1, 8, 300])]
            case 4:
                content[place : place + 8] = struct.pack("<q", random.choice([-1, 0, 2**31, 2**40, 2**62]))
            case 5:
                if place < len(content):
                    content[place] ^= 1 << random.randrange(8)
    return bytes(content)


def mangled_json(content, random):
    """One to three fields removed, retyped, renamed, repeated or nested; or the text itself."""
    if random.random() < 0.2:
        return mangled_bytes(content, random)
    if random.random() < 0.05:
        return b'{"version": 1, "x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    document = json.loads(content)
    for _ in range(random.choice([1, 1, 2, 3])):
        node = document
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = random.choice(keys)
            if isinstance(node[key], dict | list) and node[key] and random.random() < 0.8:
                node = node[key]
                continue
            match random.randrange(5):
                case 0:
                    del node[key]
                case 1:
                    node[key] = copy.deepcopy(random.choice(HOSTILE))
                case 2:
                    node[key] = [node[key]]
                case 3:
                    node[key] = node[random.choice(keys)]
                case 4:
                    if isinstance(node, dict):
                        node[str(random.choice(HOSTILE))] = node.pop(key)
                    else:
                        node.insert(key, node[key])
            break
    text = json.dumps(document)
    if random.random() < 0.1:
        place = text.find('"', random.randrange(len(text)))
        text = text[:place] + '"version": 1, ' + text[place:]  # a field twice, or no JSON
    if random.random() < 0.1:
        place = text.find("1", random.randrange(len(text)))
        text = text[:place] + random.choice(["NaN", "1e999", "-Infinity", "1" * 5000]) + text[place + 1 :]
    return text.encode()


def mangled_lines(content, random):
    lines = content.splitlines(keepends=True)
    place = random.randrange(len(lines))
    match random.randrange(4):
        case 0:
            return mangled_bytes(content, random)
        case 1:
            del lines[place]
        case 2:
            lines.insert(place, random.choice(lines))
        case 3:
            lines[place] = mangled_json(lines[place], random) + b"\n"
    return b"".join(lines)


def mangled_header(content, random):
    """A safetensors file whose JSON header is mangled, with its length as it should be or not."""
    if random.random() < 0.4:
        return mangled_bytes(content, random)
    (size,) = struct.unpack("<Q", content[:8])
    header = mangled_json(content[8 : 8 + size], random)
    if random.random() < 0.3:
        kinds = [b'"F32"', b'"I64"']
        header = header.replace(random.choice(kinds), random.choice([b'"I32"', b'"F8_E4M3"', b'"BF16"', b'"U8"', b'"C64"']))
    return struct.pack("<Q", len(header)) + header + content[8 + size :]


def mangled_zip(content, random):
    """An archive with one part of its own mangled, so that its checksum is right."""
    if random.random() < 0.4:
        return mangled_bytes(content, random)
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    name = random.choice([*parts, *[n for n in parts if n.endswith("data.pkl")] * len(parts)])
    parts[name] = mangled_bytes(parts[name], random)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name, part in parts.items():
            file.writestr(name, part)
    return stream.getvalue()


# What is read, and how


def read_plan(place):
    plan = Plan.load(place)
    smaller = apply(network(), plan)
    assert [type(m) for m in smaller.modules()] == [type(m) for m in network().modules()]
    assert [set(vars(m)) for m in smaller.modules()] == [set(vars(m)) for m in network().modules()]
    for name, mask in plan.masks.items():
        assert smaller.get_parameter(name).shape == mask.shape


def read_calibration(place):
    """All of the file or a sentence: its content has a checksum."""
    batch = calibration.calibration(*drawn_from(), place)
    assert torch.equal(batch.inputs[0], calibration.draw(*drawn_from()).inputs[0])


def drawn_from():
    data = load_data(pair())
    training, _ = split(data, 0)
    return training, data, 20, 0


def read_run(place):
    apply(network(), Plan.load(place))  # a mangled plan may be another sound one, of which the weights are no others
    freeprune.load(place, network())


def read_config(place):
    config = json.loads((place / "whole.json").read_text())
    with contextlib.suppress(FreePruneError):
        folder.open_folder(place, config, resume=True, force=False)
    studies(place)


def read_sweep(place):
    """Up to where the network is traced."""

    class Prepared(Exception):
        pass

    def stop(model, weights, data, asked, *_, **__):
        raise Prepared

    before, opening.prepare = opening.prepare, stop
    try:
        pick.pick(place, target={"macs": 0.6}, out=place / "picked", data=pair())
    except Prepared:
        pass
    finally:
        opening.prepare = before


def read_trials(place):
    """As `pick` reads them."""
    space = SimpleNamespace(targets={"macs": 9000.0}, size=2)
    pick.next_to(pick.trials_of(place), SimpleNamespace(space=space))


def read_report(place, kind, shown=lambda document: document.shown()):
    """What is read back can be shown, and written again."""
    document = folder.read_document(place, kind)
    assert shown(document).text()
    assert shown(document).html()
    assert kind.from_json(json.loads(json.dumps(document.to_json()))) == document


def read_summary(place):
    read_report(place, Summary, lambda summary: of_run(summary, "channel"))


def read_ledger(place):
    path = place / "search.jsonl"
    trials = searched(path).trials
    assert trials == len(Ledger(path).trials) == 12


def read_data(place):
    data = load_data(f"npz:{place / 'data.npz'}")
    for part in (data.train, data.test):
        image, label = part[0]
        assert torch.isfinite(image).all()
        if not data.classes:  # they are numbers now
            labels = torch.stack([torch.as_tensor(label) for _, label in data.train])
            assert labels.is_floating_point() or labels.max() >= MOST_CLASSES
        elif not 0 <= label < len(data.classes):  # of the test images: what the rehearsal says, before any search
            with pytest.raises(FreePruneError):
                CLASSIFICATION.check_labels(torch.zeros(1, len(data.classes)), torch.as_tensor(label))


def read_weights(place, name):
    loaded = load_weights(network(), place / name)
    assert all(torch.isfinite(t).all() for t in loaded.state_dict().values())


def read_checkpoint(place):
    found = checkpoint.load(place / "training.safetensors", {"seed": 1})
    assert found.step == 2
    assert all(torch.equal(tensor, found.tensors[name]) for name, tensor in network().state_dict().items())


def read_shard(place):
    data = load_data(f"wds:{place / 'shard.tar'}")
    for part in (data.train, data.test):
        for image, label in part:
            assert torch.isfinite(image).all()
            assert 0 <= label < len(data.classes)


# file: what is beside it, how it is mangled, how it is read
READERS = {
    "channel/plan.json": (mangled_json, read_plan),
    "weight/plan.json": (mangled_json, read_plan),
    "weight/masks.safetensors": (mangled_header, read_plan),
    "channel/model.safetensors": (mangled_header, read_run),
    "channel/calibration.safetensors": (mangled_header, read_calibration),
    "channel/config.json": (mangled_json, read_config),
    "channel/summary.json": (mangled_json, read_summary),
    "channel/trials.jsonl": (mangled_lines, lambda place: studies(place)),
    "search.jsonl": (mangled_lines, read_ledger),
    "compare/comparison.json": (mangled_json, lambda p: read_report(p, Comparison)),
    "sweep/sweep.json": (mangled_json, lambda p: read_report(p, Sweep)),
    "sweep/config.json": (mangled_json, read_sweep),
    "sweep/ledgers/00.jsonl": (mangled_lines, lambda p: read_trials(p.parent)),
    "latency.jsonl": (mangled_lines, lambda p: Measurements(p / "latency.jsonl")),
    "study/study.json": (mangled_json, lambda p: read_report(p, Study)),
    "data.npz": (mangled_zip, read_data),
    "weights.safetensors": (mangled_header, lambda p: read_weights(p, "weights.safetensors")),
    "sharded/model.safetensors.index.json": (mangled_json, lambda p: read_weights(p, "model.safetensors.index.json")),
    "weights.pt": (mangled_zip, lambda p: read_weights(p, "weights.pt")),
    "old.pth": (mangled_bytes, lambda p: read_weights(p, "old.pth")),
    "training.safetensors": (mangled_header, read_checkpoint),
    "shard.tar": (mangled_bytes, read_shard),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.filterwarnings("ignore")  # of libraries, about what they are given to read
@FUZZED
@given(random=st.randoms(use_true_random=False))
def test_a_mangled_file_is_read_or_is_one_sentence(name, runs, random, tmp_path_factory):
    mangle, read = READERS[name]
    scratch = tmp_path_factory.getbasetemp() / "mangled"
    shutil.rmtree(scratch, ignore_errors=True)
    if "/" in name:
        shutil.copytree((runs / name.split("/")[0]), scratch / name.split("/")[0])
    path = scratch / name
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(runs / name, path.with_name("whole.json"))
    path.write_bytes(mangle((runs / name).read_bytes(), random))
    if name.endswith("masks.safetensors"):  # as somebody would who wants the masks to be read
        plan = json.loads((path.parent / "plan.json").read_text())
        plan["masks"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        (path.parent / "plan.json").write_text(json.dumps(plan))
    sentence = "."
    try:
        read(path.parent)
    except FreePruneError as error:
        sentence = str(error)
    assert 0 < len(sentence) < 2000
    assert "\n" not in sentence


@pytest.mark.parametrize("name", READERS)
def test_an_unmangled_file_is_read(name, runs, tmp_path):
    shutil.copytree(runs, tmp_path / "copy")
    path = tmp_path / "copy" / name
    shutil.copy(path, path.with_name("whole.json"))
    before = path.read_bytes()
    READERS[name][1](path.parent)
    assert path.read_bytes() == before  # reading mends only what is broken


def test_every_setting_has_a_shape():
    """Of a sweep's config, from which `pick` makes its settings."""
    assert ASKED.keys() >= {field.name for field in fields(Settings)} - {"layout", *ADDED}
