"""Scikit-learn's digits as a pair of datasets, and an ordinary training loop: what a user has already."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset


def datasets() -> tuple[TensorDataset, TensorDataset]:
    """1,400 images to train on, 397 to test on: `(1, 8, 8)`, from 0 to 1."""
    digits = load_digits()
    images, labels = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(digits.target)
    return TensorDataset(images[:1400], labels[:1400]), TensorDataset(images[1400:], labels[1400:])


def train(network: nn.Module, epochs: int) -> nn.Module:
    """Trains in place."""
    images, labels = datasets()[0].tensors
    optimizer = torch.optim.AdamW(network.train().parameters(), 2e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
    return network.eval()
