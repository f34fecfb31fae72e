"""What a job refuses and takes, by the labels that are seen."""

import pytest
import torch
from data_sets import Plain
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset
from toys import network

from freeprune.engine.asked.settings import settings
from freeprune.engine.inputs.dense import GivenModel
from freeprune.engine.run.job import prepare
from freeprune.errors import FreePruneError, FreePruneWarning

IMAGES = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(60) % 6


def prepared(dataset, model=None, **options):
    asked = settings({"macs": 0.7}, {"calibration_images": 20, "seed": 0, **options}, trials=2)
    return prepare(GivenModel(model or network()), (dataset, dataset), asked, None)


def items(labels, **attributes):
    return Plain(list(zip(IMAGES, labels.tolist(), strict=True)), **attributes)


def halved(some):
    return torch.stack([image for image, _ in some]), torch.tensor([int(label) // 2 for _, label in some])


TAKEN = {
    "some classes of tensors": Subset(TensorDataset(IMAGES, LABELS), [i for i in range(60) if LABELS[i] < 3]),
    "some classes": Subset(items(LABELS, targets=LABELS), [i for i in range(60) if LABELS[i] < 3]),
    "other labels than its targets": items(LABELS // 2, classes=list("abcdef"), targets=LABELS),
    "other labels by the collate_fn": DataLoader(TensorDataset(IMAGES, LABELS), collate_fn=halved),
}


@pytest.mark.parametrize("name", TAKEN)
def test_labels_that_fit_are_taken_whatever_the_data_set_calls_its_classes(name):
    assert prepared(TAKEN[name]).choice.name == "classification"


def test_labels_that_do_not_fit_are_refused_though_not_among_the_calibration_images():
    labels = LABELS // 2
    labels[57] = 5
    with pytest.raises(FreePruneError, match="the network has 3 outputs and the data 6 classes"):
        prepared(TensorDataset(IMAGES, labels))


class FeaturesFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = network()

    def forward(self, x):
        features = self.inner[:-1](x)
        return features, self.inner[-1](features)


@pytest.mark.parametrize("kind", [items, lambda labels: TensorDataset(IMAGES, labels)])
def test_features_are_not_taken_for_the_logits_beside_them(kind):
    with pytest.raises(FreePruneError, match="taken for the logits has 12 columns, and another one 3, as many as the data"):
        prepared(kind(LABELS // 2), FeaturesFirst())


@pytest.mark.filterwarnings("ignore:the dense network has")
def test_more_threads_than_the_machine_runs_at_once_are_told(monkeypatch, recwarn):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    data = TensorDataset(IMAGES, LABELS % 3)
    prepared(data, latency_threads=4)
    assert not any("threads" in str(warning.message) for warning in recwarn)
    with pytest.warns(FreePruneWarning, match="latency is measured with 5 threads, of which this machine runs 4 at once"):
        prepared(data, latency_threads=5)
