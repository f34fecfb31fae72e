r"""A detector of one's own: its loss, its average precision and the outputs that are scored are a task of plain functions.

    python examples/detector.py [--out runs/detector] [--seeds 0 1 2] [--macs 0.5]

The network gives a dictionary of raw heads, a score for each class and a box for each cell of a grid. What these mean is said
by three functions, and `freeprune.OwnTask` hands them to the run. On the command line the same is
`--task examples/detector.py:task`.
"""

import torch
import torch.nn.functional as F
from shapes import SIZE, compared, drawn, fitted, options
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import freeprune

STRIDE = 4  # pixels to a cell
CELLS = SIZE // STRIDE
KINDS = 3


def layer(before: int, after: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.SiLU())


class Detector(nn.Module):
    """`(N, 1, 32, 32)` to class logits `(N, 3, 8, 8)` and boxes `(N, 4, 8, 8)`: centre in its cell and half size, in cells."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        a, b, c, d = width, 2 * width, 4 * width, 8 * width
        self.body = nn.Sequential(layer(1, a), layer(a, b, 2), layer(b, b), layer(b, c, 2), layer(c, c))
        self.coarse = nn.Sequential(layer(c, d, 2), layer(d, d), nn.Conv2d(d, c, 1))
        self.kinds, self.boxes = (nn.Sequential(layer(c, c), layer(c, c), nn.Conv2d(c, n, 1)) for n in (KINDS, 4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.body(x)
        features = fine + F.interpolate(self.coarse(fine), scale_factor=2.0)  # a feature pyramid of two levels
        return {"kinds": self.kinds(features), "boxes": self.boxes(features)}


def loss(output: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Focal loss of the classes of all cells, and the distance of the boxes in the cells that hold a centre."""
    image, slot = (labels[..., 0] >= 0).nonzero(as_tuple=True)
    kind, x, y, *half = labels[image, slot].unbind(1)
    column, row = (x / STRIDE).long(), (y / STRIDE).long()
    wanted = torch.zeros_like(output["kinds"])
    wanted[image, kind.long(), row, column] = 1
    each = F.binary_cross_entropy_with_logits(output["kinds"], wanted, reduction="none")
    focal = (each * (wanted - output["kinds"].sigmoid()).square()).sum() / len(image)
    box = torch.stack([x / STRIDE - column, y / STRIDE - row, *(one / STRIDE for one in half)], 1)
    return focal + F.l1_loss(output["boxes"][image, :, row, column], box)


def average_precision(output: dict[str, Tensor], labels: Tensor) -> float:
    """Mean over classes of the area under precision and recall; a box is found if it overlaps by half (IoU 0.5)."""
    scores = output["kinds"].sigmoid()
    peaks = scores * (scores == F.max_pool2d(scores, 3, 1, 1))  # of neighbouring cells the best one speaks
    found = []
    for kind in range(KINDS):
        left = [row[row[:, 0] == kind, 1:].clone() for row in labels]
        total = sum(map(len, left))
        image, row, column = (peaks[:, kind] > 0.02).nonzero(as_tuple=True)
        order = peaks[image, kind, row, column].argsort(descending=True)
        right = []
        for i, r, c in zip(image[order].tolist(), row[order].tolist(), column[order].tolist(), strict=True):
            box = output["boxes"][i, :, r, c] * STRIDE + torch.tensor([c, r, 0, 0]) * STRIDE
            best = _overlap(box, left[i]).max(0) if len(left[i]) else None
            right.append(best is not None and bool(best.values >= 0.5))
            if right[-1]:
                left[i] = torch.cat([left[i][: best.indices], left[i][best.indices + 1 :]])  # found once
        hits = torch.tensor(right).cumsum(0)
        precision = (hits / torch.arange(1, len(right) + 1)).flip(0).cummax(0).values.flip(0)
        found.append(float((precision * torch.tensor(right)).sum()) / total)
    return sum(found) / KINDS


def _overlap(box: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of a box with others, as centre and half size."""
    low = torch.maximum(box[:2] - box[2:], others[:, :2] - others[:, 2:])
    high = torch.minimum(box[:2] + box[2:], others[:, :2] + others[:, 2:])
    shared = (high - low).clamp_min(0).prod(1)
    return shared / (4 * box[2:].clamp_min(0).prod() + 4 * others[:, 2:].prod(1) - shared)


def heads(output: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """What networks are scored by: class probabilities, and boxes as far as there is something; elsewhere nobody reads them."""
    scores = output["kinds"].sigmoid()
    return scores, output["boxes"] * scores.amax(1, keepdim=True)


task = freeprune.OwnTask(loss, average_precision, heads, name="average precision", unit="%")


def data(count: int, seed: int) -> TensorDataset:
    """Images `(N, 1, 32, 32)` and boxes `(N, 3, 5)`."""
    made = drawn(count, seed)
    return TensorDataset(made.images, made.boxes)


def main() -> None:
    asked = options(__doc__, "detector", epochs=16, finetune=4)
    training, test = data(asked.images, 0), data(asked.test_images, 1)
    compared(fitted(Detector, training, loss, asked.epochs), (training, test), asked, task=task)


if __name__ == "__main__":
    main()
