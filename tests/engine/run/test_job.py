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
from freeprune.errors import FreePruneError

IMAGES = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(60) % 6


def prepared(dataset, model=None):
    asked = settings({"macs": 0.7}, {"calibration_images": 20, "seed": 0}, trials=2)
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
