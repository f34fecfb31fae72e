r"""A network with two heads, which shape it is and how large, whose labels are a dictionary and whose outputs are one, too.

    python examples/two_heads.py [--out runs/two-heads] [--seeds 0 1 2] [--macs 0.5]

Both heads are trained by one loss and scored together.
"""

import torch
import torch.nn.functional as F
from shapes import SIZE, compared, fitted, options
from torch import Tensor, nn
from torch.utils.data import Dataset

import freeprune

Labels = dict[str, Tensor]


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((1, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 64), nn.ReLU())
        self.kind, self.size = nn.Linear(64, 3), nn.Linear(64, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.body(x)
        return {"kind": self.kind(features), "size": 6 + 2 * self.size(features).flatten()}


class Shapes(Dataset[tuple[Tensor, Labels]]):
    """A disc, a square or a diamond of 3 to 9 pixels in noise."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.kind = torch.randint(3, (count,), generator=generator)
        self.size = 3 + 6 * torch.rand(count, generator=generator)
        y, x = torch.meshgrid(*[torch.arange(SIZE) - SIZE / 2 + 0.5] * 2, indexing="ij")
        x, y = (one - 10 * (torch.rand(count, 1, 1, generator=generator) - 0.5) for one in (x, y))
        far = torch.stack([(x**2 + y**2).sqrt(), torch.maximum(x.abs(), y.abs()), x.abs() + y.abs()])
        inside = far[self.kind, torch.arange(count)] < self.size[:, None, None]
        self.images = (inside + 0.4 * torch.randn(inside.shape, generator=generator))[:, None]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Labels]:
        return self.images[index], {"kind": self.kind[index], "size": self.size[index]}


def loss(output: dict[str, Tensor], labels: Labels) -> Tensor:
    return F.cross_entropy(output["kind"], labels["kind"]) + F.smooth_l1_loss(output["size"], labels["size"])


def both_right(output: dict[str, Tensor], labels: Labels) -> float:
    """The fraction of images whose shape is told, and its size within a pixel."""
    near = (output["size"] - labels["size"]).abs() < 1
    return ((output["kind"].argmax(1) == labels["kind"]) & near).float().mean().item()


task = freeprune.OwnTask(loss, both_right, unit="%")


def main() -> None:
    asked = options(__doc__, "two-heads", epochs=20)
    training, test = Shapes(asked.images, 0), Shapes(asked.test_images, 1)
    compared(fitted(TwoHeads, training, loss, asked.epochs), (training, test), asked, task=task)


if __name__ == "__main__":
    main()
