"""Small data sets, as people have them."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset


def own(count=12, **attributes):
    """Items of two pixels and one of four labels."""
    dataset = TensorDataset(torch.arange(count * 2.0).view(count, 1, 1, 2), torch.arange(count) % 4)
    for name, value in attributes.items():
        setattr(dataset, name, value)
    return dataset


class Plain(Dataset):
    """Items from a list, and whatever attributes a test gives it."""

    def __init__(self, items, **attributes):
        self.items = items
        vars(self).update(attributes)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def arrays(**changes):
    """What an `.npz` file holds: images of three classes, 5 wide and 4 high."""
    images = np.arange(12 * 4 * 5 * 3, dtype=np.uint8).reshape(12, 4, 5, 3)
    labels = np.arange(12) % 3
    return {"x_train": images, "y_train": labels, "x_test": images[:3], "y_test": labels[:3], **changes}


def npz(folder, **changes):
    """Writes `arrays` to a file, and returns its spec."""
    path = folder / "data.npz"
    np.savez(path, **arrays(**changes))
    return f"npz:{path}"


def pixels(seed, height=6, width=8):
    """An image of noise."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def two_classes(root):
    """Writes a folder of two classes, three training images and one test image each, 8 wide and 6 high, PNG."""
    for part, count in (("train", 3), ("test", 1)):
        for label, name in enumerate(("ant", "bee")):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(pixels(10 * label + i)).save(root / part / name / f"{i}.png")
    return root
