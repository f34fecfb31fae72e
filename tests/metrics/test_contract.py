import copy
from functools import cache

import networks
import numpy as np
import pytest
import torch
from torch import nn

from freeprune.backends import BACKENDS, importance
from freeprune.common import Batch, Candidate, Skeleton
from freeprune.metrics import METRICS, MetricError, reference

CASES = [(metric, granularity) for metric in sorted(METRICS) for granularity in sorted(BACKENDS)]


@cache
def setting(granularity, collapsed=False):
    """A network, of zeros alone if it is to be `collapsed`, images for it and its granularity, which no test changes."""
    network = networks.build("resnet_a")
    if collapsed:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.zero_()
    batch = Batch((networks.images(16),), torch.arange(16) % 5)
    finer = {"nm": "4"} if granularity == "nm" else {}  # 2:4 knows but two levels
    backend = BACKENDS[granularity](network, batch.inputs, importance("l2", network), **finer)
    return network, batch, backend


def kept(backend, fraction):
    return np.array([max(g.minimum, round(g.units * fraction)) for g in backend.groups])


@pytest.mark.parametrize(("metric", "granularity"), CASES)
def test_a_metric_is_deterministic_and_changes_nothing(metric, granularity):
    network, batch, backend = setting(granularity)
    score, dense = METRICS[metric], reference(network, batch)
    candidate = backend.candidate(kept(backend, 0.5))
    skeleton = candidate.skeleton.network
    before = copy.deepcopy(skeleton.state_dict())
    tensors = {name: t.clone() for name, t in candidate.tensors.items()}
    sizes = [getattr(module, name) for module, name, _ in candidate.attributes]
    first = score(candidate, dense, batch)
    assert isinstance(first, float)
    assert np.isfinite(first)
    assert score(candidate, dense, batch) == first
    assert all(torch.equal(before[key], value) for key, value in skeleton.state_dict().items())
    assert all(torch.equal(tensors[name], t) for name, t in candidate.tensors.items())
    assert [getattr(module, name) for module, name, _ in candidate.attributes] == sizes
    assert not skeleton.training


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("metric", "granularity"), CASES)
def test_a_metric_gives_on_a_gpu_what_it_gives_on_the_cpu(metric, granularity):
    scores = []
    for device in ("cpu", "cuda"):
        network = networks.build("resnet_a").to(device)
        batch = Batch((networks.images(16).to(device),), (torch.arange(16) % 5).to(device))
        finer = {"nm": "4"} if granularity == "nm" else {}
        backend = BACKENDS[granularity](network, batch.inputs, importance("l2", network), **finer)
        scores.append(METRICS[metric](backend.candidate(kept(backend, 0.5)), reference(network, batch), batch))
    assert scores[1] == pytest.approx(scores[0], rel=1e-2, abs=1e-3)


# The others need not fall on random weights: what they measure is no loss.
FALLING = [
    "calibratedkl",
    "agreement",
    "logitkl",
    "reconstruction",
    "sensitivity",
    "taylor",
    "synflow",
    "magnitude",
    "logdensity",
    "params",
    "macs",
]


@pytest.mark.parametrize("granularity", sorted(BACKENDS))
@pytest.mark.parametrize("metric", FALLING)
def test_higher_is_better(metric, granularity):
    network, batch, backend = setting(granularity)
    dense = reference(network, batch)
    scores = [METRICS[metric](backend.candidate(kept(backend, part)), dense, batch) for part in (1.0, 0.7, 0.1)]
    assert scores[0] > scores[1] > scores[2]


@cache
def trained():
    """A network that knows something, and images of the kind that it was trained on: stripes in one of three directions."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(96) % 3
    x, y = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    waves = torch.stack([torch.sin(1.5 * a) for a in (x, y, x + y)])
    images = (waves[labels] + 0.5 * torch.randn(96, 8, 8, generator=generator)).unsqueeze(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3),
        )  # fmt: skip
    optimiser = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(60):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(network(images), labels).backward()
        optimiser.step()
    return network.eval(), Batch((images,))


@pytest.mark.parametrize("granularity", sorted(BACKENDS))
@pytest.mark.parametrize("metric", ["freeprune", "calibratedkl", "agreement"])
def test_a_trained_network_loses_by_pruning(metric, granularity):
    network, batch = trained()
    finer = {"nm": "4"} if granularity == "nm" else {}
    backend = BACKENDS[granularity](network, batch.inputs, importance("l2", network), **finer)
    dense = reference(network, batch)
    scores = [METRICS[metric](backend.candidate(kept(backend, part)), dense, batch) for part in (1.0, 0.5, 0.05)]
    assert scores[0] > scores[1] > scores[2]


@pytest.mark.parametrize(("metric", "granularity"), CASES)
def test_a_collapsed_network_gets_a_score_or_a_sentence(metric, granularity):
    network, batch, backend = setting(granularity, collapsed=True)
    try:
        score = METRICS[metric](backend.candidate(kept(backend, 0.5)), reference(network, batch), batch)
    except MetricError:
        return
    assert not np.isnan(score)


class Tokens(nn.Module):
    """Attends over tokens."""

    def __init__(self):
        super().__init__()
        self.embedding, self.attention = nn.Embedding(20, 12, sparse=True), nn.ModuleList(nn.Linear(12, 12) for _ in range(3))
        self.hidden, self.last = nn.Linear(12, 16), nn.Linear(16, 5)

    def forward(self, tokens):
        heads = (layer(self.embedding(tokens)).unflatten(-1, (2, 6)).transpose(1, 2) for layer in self.attention)
        attended = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        return self.last(self.hidden(attended).relu().mean(1))


class Pictured(Tokens):
    """Tokens beside an image, which nothing is computed from, and a mask."""

    def forward(self, image, tokens, mask):
        return super().forward(tokens.masked_fill(mask, 0)) + 0 * image.sum()


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.one, self.other = nn.Linear(6, 16), nn.Linear(16, 5), nn.Linear(16, 3)

    def forward(self, x):
        hidden = self.hidden(x).relu()
        return {"logits": self.one(hidden), "none": None, "others": (self.other(hidden),)}


@cache
def unusual(kind, granularity):
    """A network with other inputs or outputs than an image and a tensor, a batch for it and half of it pruned."""
    generator = torch.Generator().manual_seed(0)
    numbers, tokens = torch.randn(16, 6, generator=generator), torch.randint(20, (16, 7), generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = {"tokens": Tokens, "pictured": Pictured, "two": TwoOutputs}[kind]().eval()
    inputs = {"tokens": (tokens,), "pictured": (numbers, tokens, tokens < 5), "two": (numbers,)}[kind]
    batch = Batch(inputs, torch.arange(16) % 3)
    backend = BACKENDS[granularity](network, batch.inputs, importance("l2", network))
    return network, batch, backend.candidate(kept(backend, 0.5))


@pytest.mark.parametrize(("kind", "granularity"), [("tokens", "channel"), ("pictured", "weight"), ("two", "channel")])
@pytest.mark.parametrize("metric", sorted(METRICS))
def test_tokens_and_several_outputs_get_a_score_or_a_sentence(metric, kind, granularity):
    network, batch, candidate = unusual(kind, granularity)
    if kind == "tokens" and metric in ("jacobcov", "synflow", "zen"):
        with pytest.raises(MetricError, match=f"{metric} needs inputs of floating numbers, and the network takes int64; use"):
            METRICS[metric](candidate, reference(network, batch), batch)
    else:
        assert not np.isnan(METRICS[metric](candidate, reference(network, batch), batch))


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("metric", sorted(METRICS))
def test_without_a_way_back_a_network_gets_a_score_or_a_sentence(metric, closed):
    network, batch = networks.NoWayBack(closed).eval(), Batch((networks.images(16),), torch.arange(16) % 5)
    backend = BACKENDS["weight"](network, batch.inputs, importance("l2", network))
    candidate, dense = backend.candidate(kept(backend, 0.5)), reference(network, batch)
    if metric in ("fisher", "gradalign", "gradnorm", "grasp", "sensitivity", "snip", "taylor", "zico") + (not closed) * (
        "jacobcov",
    ):
        with pytest.raises(MetricError, match="use `metric='freeprune'`, which takes none"):
            METRICS[metric](candidate, dense, batch)
    else:
        assert not np.isnan(METRICS[metric](candidate, dense, batch))


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_a_metric_that_reads_labels_says_so(metric):
    network, batch, backend = setting("weight")
    unlabelled = Batch(batch.inputs)
    candidate, dense = backend.candidate(kept(backend, 0.5)), reference(network, unlabelled)
    if getattr(METRICS[metric], "needs_labels", False):
        with pytest.raises(MetricError, match="reads labels, and the calibration data has none"):
            METRICS[metric](candidate, dense, unlabelled)
    else:
        METRICS[metric](candidate, dense, unlabelled)


COUNTING = ["params", "macs", "magnitude", "logdensity", "sensitivity", "taylor", "snip", "gradnorm", "gradalign", "fisher"]
COUNTING += ["reconstruction"]


@pytest.mark.parametrize("metric", [*COUNTING, "freeprune", "calibratedkl", "volume", "agreement", "adaptivebn"])
def test_missing_channels_count_as_zeros_do(metric):
    network, batch, backend = setting("channel")
    amounts = kept(backend, 0.5)
    dense = reference(network, batch)
    sliced = backend.candidate(amounts)
    expected = METRICS[metric](sliced, dense, batch)
    zeroed = {name: network.state_dict()[name].clone() for name in sliced.kept if name not in sliced.skeleton.statistics}
    for name, tensor in zeroed.items():
        for dim, ids in sliced.kept[name].items():
            gone = np.setdiff1d(np.arange(tensor.shape[dim]), ids)
            tensor.index_fill_(dim, torch.from_numpy(gone), 0.0)
    in_place = Candidate(Skeleton(network), zeroed)
    assert METRICS[metric](in_place, dense, batch) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("metric", ["reconstruction", "sensitivity", "taylor"])
def test_branches_that_are_gone_count_as_zeros_do(metric):
    network, batch = networks.build("resnet_b"), Batch((networks.images(16),), torch.arange(16) % 5)
    backend = BACKENDS["channel"](network, batch.inputs, importance("l2", network), depth=True)
    amounts = kept(backend, 1.0)
    amounts[-1] = 0
    dense, without = reference(network, batch), backend.candidate(amounts)
    zeroed = {name: torch.zeros_like(p) for name, p in network.named_parameters() if name in without.gone}
    assert len(zeroed) > 1
    expected = METRICS[metric](Candidate(Skeleton(network), zeroed), dense, batch)
    assert expected < -0.01
    assert METRICS[metric](without, dense, batch) == pytest.approx(expected, rel=1e-4)


def test_one_image_is_too_few():
    network = networks.build("resnet_a")
    with pytest.raises(MetricError, match="1 calibration image is too few"):
        reference(network, Batch((networks.images(1),)))


def test_images_that_are_all_the_same_are_refused():
    network = networks.build("resnet_a")
    with pytest.raises(MetricError, match="all calibration images are the same"):
        reference(network, Batch((networks.images(1).expand(8, -1, -1, -1),)))


def test_outputs_must_be_floating_numbers():
    class Counts(nn.Module):
        def forward(self, x):
            return {"count": x.flatten(1).argmax(1), "nothing": None}

    with pytest.raises(MetricError, match="gives dict, in which there is no tensor of floating numbers with a row for each"):
        reference(Counts(), Batch((networks.images(2),)))
