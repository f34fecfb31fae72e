import sys

import networks
import numpy as np
import pytest
import torch
from torch import nn

from freeprune.common import Batch, Candidate, Skeleton
from freeprune.metrics import METRICS, MetricError, Reference, reference
from freeprune.metrics.agreement import agreement
from freeprune.metrics.calibratedkl import divergence
from freeprune.metrics.freeprune import freeprune
from freeprune.metrics.synflow import synflow
from freeprune.reading import PLAIN, Reading

# y = W2 relu(W1 x) with W1 = (1 0; 1 2) and W2 = (1 0; 1 -1), the images (1, 0) and (0, 1), the labels 0 and 1.
# Dense: W1 x = (1, 1) and (0, 2), y = (1, 0) and (0, -2). Pruned, without W1[1, 0]: (1, 0) and (0, 2), y = (1, 1) and (0, -2).
# Gradients of the mean loss by y, dense: (-a, a) and (b, -b) with
A = 0.5 / (1 + np.e)  # half of the probability of class 1 in the first image,
B = 0.5 / (1 + np.exp(-2))  # half of the probability of class 0 in the second;
# pruned: (-1/4, 1/4) and (b, -b).
# By W1, dense: (0 0; -a b), pruned: (0 0; 0 b). By W2, dense: (-a 2b-a; a a-2b), pruned: (-1/4 2b; 1/4 -2b).
BATCH = Batch((torch.eye(2),), torch.tensor([0, 1]))


def two_layers():
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 2.0]]))
        network[2].weight.copy_(torch.tensor([[1.0, 0.0], [1.0, -1.0]]))
    return network


EXPECTED = {
    "params": 2 + 3,
    "macs": 2 + 3,
    "logdensity": np.log(2 / 4) + np.log(3 / 4),
    "uniformity": -1 / 8,
    "magnitude": np.log(np.sqrt(5 / 6)) / 2,  # the second of two layers loses nothing
    # The first output, which is minus the second once each image is centred: dense 1/2, 1, pruned 0, 1. Centred over the
    # images -1/4, 1/4 and -1/2, 1/2: in two dimensions all that is left is the direction, and it is the same.
    "agreement": 1,
    # So is the spread over that one direction, and a scale of 1/2 makes the answers those of the dense network.
    "calibratedkl": 0,
    "volume": 0,
    "freeprune": np.log(2 / 3) / 2 / 2,  # the first layer keeps two of its three weights, the second all: the mean, halved
    # |g w|, dense: a, 2b by W1 and a, a, 2b - a by W2; the first goes.
    "taylor": np.log((A + 4 * B) / (2 * A + 4 * B)),
    # |g w|, pruned: 2b by W1 and 1/4, 1/4, 2b by W2.
    "snip": 0.5 + 4 * B,
    "gradnorm": B + np.sqrt(2 / 16 + 4 * B**2),
    # The kept entries: two of W1, three of W2.
    "gradalign": np.corrcoef([0, B, -0.25, 0.25, -2 * B], [0, B, -A, A, A - 2 * B])[0, 1],
    # Outputs and their gradients, each image by its own loss. Second layer: (1, 1) and (-1/2, 1/2), (0, -2) and (2b, -2b);
    # first layer: (1, 0) and (0, 0), (0, 2) and (0, 2b).
    "fisher": (1 / 4 + 1 / 4 + 16 * B**2 + 16 * B**2) / 4,
    # Active units: (1, 0) and (0, 1), so K = (2 0; 0 2).
    "naswot": np.log(4),
    # First layer: outputs (1, 1) and (0, 2) lose the square of 1 of 6; the second loses nothing.
    "reconstruction": -1 / 12,
    # The first image is a tie that goes to class 0, which is right; the second is wrong.
    "adaptivebn": 0.5,
}


@pytest.mark.parametrize("metric", sorted(EXPECTED))
def test_scores_of_two_layers_by_hand(metric):
    network = two_layers()
    pruned = Candidate(Skeleton(network), {"0.weight": torch.tensor([[1.0, 0.0], [0.0, 2.0]])})
    assert METRICS[metric](pruned, Reference(network, BATCH), BATCH) == pytest.approx(EXPECTED[metric], rel=1e-5, abs=1e-7)


def of_two_images(weights, kept, reading=PLAIN):
    """The `sensitivity` of a linear layer without bias, on one image for each of two inputs."""
    network = nn.Linear(2, len(weights), bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.tensor(weights))
    batch = Batch((torch.eye(2),), reading=reading)
    pruned = Candidate(Skeleton(network), {"weight": network.weight.detach() * torch.tensor(kept)})
    return METRICS["sensitivity"](pruned, Reference(network, batch), batch)


def test_sensitivity_of_undecided_logits_by_hand():
    # Both classes are as likely, so that either draw gives slopes of a half: |g w| is half of each weight, 3 in all, 2 left.
    assert of_two_images([[1.0, 2.0], [1.0, 2.0]], [[1.0, 0.0], [1.0, 1.0]]) == pytest.approx(np.log(2 / 3))


def test_sensitivity_counts_what_sways_the_answers():
    # The first image is decided, whatever is drawn; the second is not.
    weights = [[20.0, 1.0], [-20.0, 1.0]]
    assert of_two_images(weights, [[0.0, 1.0]] * 2) == pytest.approx(0, abs=1e-6)
    assert of_two_images(weights, [[1.0, 0.0]] * 2) == pytest.approx(np.log(1e-9))


def test_sensitivity_of_numbers_does_not_know_their_units():
    class Numbers(Reading):
        logits = False

    kept, numbers = [[1.0, 0.0], [1.0, 1.0]], Numbers()
    expected = of_two_images([[1.0, 2.0], [0.5, 2.0]], kept, numbers)
    assert -2 < expected < -0.01
    assert of_two_images([[1.0, 2.0], [50.0, 200.0]], kept, numbers) == pytest.approx(expected, rel=1e-5)


def test_sensitivity_without_gradients_is_refused():
    class Closed(nn.Sequential):
        def forward(self, x):
            with torch.no_grad():
                return super().forward(x)

    network, batch = Closed(nn.Linear(2, 2)), Batch((torch.eye(2),))
    with pytest.raises(MetricError, match="no gradient gets from the outputs to the weights; use `metric='freeprune'`"):
        METRICS["sensitivity"](Candidate(Skeleton(network), {}), Reference(network, batch), batch)


def two_outputs(weights):
    network = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.tensor(weights).reshape(2, 1))
    return network


def scored(metric, network, batch):
    return METRICS[metric](Candidate(Skeleton(network), {}), Reference(network, batch), batch)


def test_grasp_by_hand():
    # Logits 1 + ln 3 and 1 of the image 1: p = (3/4, 1/4), g = (-1/4, 1/4), H = 3/16 (1 -1; -1 1), H g = 3/32 (-1, 1).
    batch = Batch((torch.ones(2, 1),), torch.tensor([0, 0]))
    assert scored("grasp", two_outputs([1 + np.log(3), 1.0]), batch) == pytest.approx(3 / 32 * np.log(3), rel=1e-5)


def test_zico_by_hand():
    # Equal logits: g = (-x / 2, x / 2). Four parts with x = 1, 1, 3, 3: sizes 1/2, 1/2, 3/2, 3/2, mean 1, deviation 1/2.
    images = torch.tensor([1.0, 1.0, 1.0, 1.0, 3.0, 3.0, 3.0, 3.0])[:, None]
    batch = Batch((images,), torch.zeros(8, dtype=torch.long))
    assert scored("zico", two_outputs([1.0, 1.0]), batch) == pytest.approx(np.log(2 + 2))


def test_zico_needs_eight_images():
    batch = Batch((torch.ones(7, 1),), torch.zeros(7, dtype=torch.long))
    with pytest.raises(MetricError, match="7 images are too few; give 8 or more"):
        scored("zico", two_outputs([1.0, 1.0]), batch)


def test_jacobcov_by_hand():
    # A linear network answers alike to both images: all correlations are 1, the eigenvalues 2 and 0.
    expected = -(np.log(2 + 1e-5) + 1 / (2 + 1e-5) + np.log(1e-5) + 1e5)
    assert scored("jacobcov", nn.Linear(2, 1), BATCH) == pytest.approx(expected, rel=1e-4)
    # Rectified, the images are answered by (1, -1) and (-1, 1): the correlation is -1, the eigenvalues again 2 and 0.
    # With (1, -1, 0) and (1, 1, -2) it is 0, and both eigenvalues are 1.
    network = nn.Sequential(nn.Linear(3, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0, -1.0, 0.0], [1.0, 1.0, -2.0]]))
        network[2].weight.fill_(1.0)
    batch = Batch((torch.tensor([[1.0, -2.0, 0.0], [0.0, 1.0, 0.0]]),))  # each makes one unit active
    expected = -2 * (np.log(1 + 1e-5) + 1 / (1 + 1e-5))
    assert scored("jacobcov", network, batch) == pytest.approx(expected, rel=1e-4)


def test_zen_by_hand():
    # One weight w: |f(x) - f(x + e / 100)| = |w e| / 100, with w, x and e drawn in this order.
    generator = torch.Generator().manual_seed(0)
    w, _, e = (torch.randn(shape, generator=generator) for shape in ((1, 1), (4, 1), (4, 1)))
    expected = np.log(float((w * e).abs().mean()) / 100)
    assert scored("zen", nn.Linear(1, 1, bias=False), Batch((torch.zeros(4, 1),))) == pytest.approx(expected, rel=1e-4)


def test_zen_adds_the_deviations_of_batch_norm():
    # A norm divides the change by the deviation, which the sum of logs gives back: the value without norm, but for what eps
    # and the other deviation of the moved images change.
    batch = Batch((torch.zeros(64, 1),))
    plain, normed = nn.Linear(1, 1, bias=False), nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    assert scored("zen", normed, batch) == pytest.approx(scored("zen", plain, batch), abs=0.05)


def test_logitkl_by_hand():
    # One image (4 ln 3, 0) twice; dense logits (4 ln 3, 0), softened to (3/4, 1/4); pruned logits 0, so (1/2, 1/2).
    batch = Batch((torch.tensor([[4 * np.log(3), 0.0]] * 2, dtype=torch.float32),))
    network = linear([[1.0, 0.0], [0.0, 1.0]])
    pruned = Candidate(Skeleton(network), {"weight": torch.zeros(2, 2)})
    expected = -(0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5))
    assert METRICS["logitkl"](pruned, Reference(network, batch), batch) == pytest.approx(expected, rel=1e-5)


def test_logitkl_of_single_outputs_is_relative_to_their_variance():
    network = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        network.weight.fill_(2.0)
    batch = Batch((torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]),))
    half = Candidate(Skeleton(network), {"weight": torch.ones(1, 1)})
    # squared error 1, variance of +-2 with n - 1: 16 / 3
    assert METRICS["logitkl"](half, Reference(network, batch), batch) == pytest.approx(-3 / 16)


def test_logitkl_reads_the_stored_statistics():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2))
    doubled = Candidate(Skeleton(network), {"0.weight": 2 * network[0].weight.detach()})
    dense = Reference(network, BATCH)
    assert agreement(doubled, dense, BATCH) == pytest.approx(1, abs=1e-4)
    assert METRICS["logitkl"](doubled, dense, BATCH) < -1e-4


def test_weights_that_cannot_be_matched_are_named():
    network = two_layers()
    dense = Reference(network, BATCH)
    smaller = nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 2, bias=False))
    foreign = Candidate(Skeleton(smaller), {}, original=dense.dense.skeleton.tensors)
    with pytest.raises(MetricError, match=r"'0.weight' has shape \(1, 2\) in the pruned network, and which of"):
        METRICS["taylor"](foreign, dense, BATCH)
    assert METRICS["logdensity"](foreign, dense, BATCH) == pytest.approx(2 * np.log(1 / 2))
    renamed = Candidate(Skeleton(nn.Sequential(nn.Identity(), smaller)), {}, original=dense.dense.skeleton.tensors)
    with pytest.raises(MetricError, match=r"'1.0.weight' has no counterpart in the dense one"):
        METRICS["magnitude"](renamed, dense, BATCH)


def linear(weight):
    network = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.tensor(weight))
    return network


def test_agreement_by_hand():
    # Logits (4, 1, 1) and (0, 0, 3): less each image's mean (2, -1, -1) and (-1, -1, 2), less each class's (3, 0, -3) / 2 and
    # its negative. Pruned, without the first class: (0, 1, 1) and (0, 0, 3), (-2, 1, 1) / 3 and (-1, -1, 2), (1, 4, -5) / 6.
    network, batch = nn.Linear(3, 3, bias=False), Batch((torch.tensor([[4.0, 1.0, 1.0], [0.0, 0.0, 3.0]]),))
    with torch.no_grad():
        network.weight.copy_(torch.eye(3))
    pruned = Candidate(Skeleton(network), {"weight": torch.diag(torch.tensor([0.0, 1.0, 1.0]))})
    expected = (3 + 15) / np.sqrt((9 + 9) * (1 + 16 + 25))
    assert agreement(pruned, Reference(network, batch), batch) == pytest.approx(expected, rel=1e-5)


def test_agreement_knows_neither_scale_nor_shift_and_a_constant_answer_gets_0():
    network, batch = linear([[1.0, 0.0], [0.0, 1.0]]), Batch((torch.tensor([[3.0, 1.0], [-1.0, 2.0], [0.0, 0.5]]),))
    dense = Reference(network, batch)
    assert agreement(Candidate(Skeleton(network), {"weight": 5 * torch.eye(2)}), dense, batch) == pytest.approx(1)
    assert agreement(Candidate(Skeleton(network), {"weight": -torch.eye(2)}), dense, batch) == pytest.approx(-1)
    assert agreement(Candidate(Skeleton(network), {"weight": torch.zeros(2, 2)}), dense, batch) == 0


@pytest.mark.parametrize("metric", ["agreement", "calibratedkl", "volume"])
def test_maps_take_positions_as_images(metric):
    generator = torch.Generator().manual_seed(0)
    weight, images = torch.randn(3, 2, generator=generator), torch.randn(2, 2, 4, 5, generator=generator)
    thinned = weight * torch.tensor([1.0, 0.0])
    found = []
    for layer, inputs, shape in (
        (nn.Conv2d(2, 3, 1, bias=False), images, (3, 2, 1, 1)),
        (nn.Linear(2, 3, bias=False), images.transpose(0, 1).flatten(1).T, (3, 2)),
    ):
        layer.weight = nn.Parameter(weight.reshape(shape))
        pruned, batch = Candidate(Skeleton(layer), {"weight": thinned.reshape(shape)}), Batch((inputs,))
        found.append(METRICS[metric](pruned, Reference(layer, batch), batch))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert 0 < abs(found[0]) < 3


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def divergence_of(p, q):
    """Of two classes, from the probabilities of the first."""
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


def test_some_rows_at_a_time_give_what_all_at_once_give(monkeypatch):
    dense = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    pruned = dense + 0.5 * torch.randn(50, 7, generator=torch.Generator().manual_seed(1))
    whole = divergence((dense,), (pruned,))
    monkeypatch.setattr(sys.modules[divergence.__module__], "TOGETHER", 7 * 8)
    assert divergence((dense,), (pruned,)) == pytest.approx(whole, rel=1e-12)
    assert whole < -0.01
    monkeypatch.setattr(sys.modules[divergence.__module__], "TOGETHER", 1)
    assert divergence((dense,), (pruned,)) == pytest.approx(whole, rel=1e-12)


def test_calibratedkl_by_hand():
    # Two classes, of which only the difference of the logits matters: 1, -1, 3, -3, and c, -c, c, -c when pruned. Whatever c
    # is, the best answer that one size allows is the mean probability.
    network, batch = linear([[0.5, 0.0], [-0.5, 0.0]]), Batch((torch.tensor([[1.0, 1], [-1, -1], [3, 1], [-3, -1]]),))
    dense = Reference(network, batch)
    p = sigmoid(np.array([1.0, 3.0]))
    expected = -divergence_of(p, p.mean()).mean()
    for c in (0.01, 1.0, 50.0):
        pruned = Candidate(Skeleton(network), {"weight": c * torch.tensor([[0.0, 0.5], [0.0, -0.5]])})
        assert METRICS["calibratedkl"](pruned, dense, batch) == pytest.approx(expected, rel=1e-5)
        wrong = Candidate(Skeleton(network), {"weight": c * torch.tensor([[0.0, -0.5], [0.0, 0.5]])})
        assert METRICS["calibratedkl"](wrong, dense, batch) == pytest.approx(-divergence_of(p, 0.5).mean(), rel=1e-5)


def test_a_single_output_is_the_logit_of_one_class_against_another():
    one, two = nn.Linear(2, 1, bias=False), linear([[0.5, 0.0], [-0.5, 0.0]])
    batch = Batch((torch.tensor([[1.0, 1], [-1, -1], [3, 1], [-3, -1]]),))
    with torch.no_grad():
        one.weight.copy_(torch.tensor([[1.0, 0.0]]))
    single = Candidate(Skeleton(one), {"weight": torch.tensor([[0.0, 1.0]])})
    double = Candidate(Skeleton(two), {"weight": torch.tensor([[0.0, 0.5], [0.0, -0.5]])})
    expected = METRICS["freeprune"](double, Reference(two, batch), batch)
    assert METRICS["freeprune"](single, Reference(one, batch), batch) == pytest.approx(expected, rel=1e-5)
    assert expected < -0.01


def test_volume_by_hand():
    # Three classes leave two directions, (1, -1, 0) and (1, 1, -2). Dense, the images vary as much along both; pruned, along
    # the first alone, at any scale. Shares of the variance 1/2 and 1/2, 1 and 0; times two directions, and a hundredth more.
    network, batch = nn.Linear(2, 3, bias=False), Batch((torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]]),))
    directions = torch.tensor([[3**0.5, 1], [-(3**0.5), 1], [0, -2]])
    with torch.no_grad():
        network.weight.copy_(directions)
    lost = Candidate(Skeleton(network), {"weight": 7 * directions * torch.tensor([1.0, 0.0])})
    expected = (np.log(2.01 / 1.01) + np.log(0.01 / 1.01)) / 4  # halved for the deviations, and again for the mean
    dense = Reference(network, batch)
    assert METRICS["volume"](lost, dense, batch) == pytest.approx(expected, rel=1e-4)
    # and of five weights two are left
    whole = METRICS["calibratedkl"](lost, dense, batch) + expected / 2 + np.log(2 / 5) / 2
    assert freeprune(lost, dense, batch) == pytest.approx(whole, rel=1e-4)


class Numbers(Reading):
    """Outputs that are no logits."""

    logits = False


@pytest.mark.parametrize(
    ("second", "unexplained"),
    [([0.0, 5.0], 0), ([2.0, 2.0], 1 / 2), ([0.0, -1.0], 1), ([1.0, 0.0], 1)],
    ids=["the same number, five times as large", "mixed with the first", "the wrong sign", "another number"],
)
def test_numbers_are_compared_by_the_information_that_is_lost(second, unexplained):
    # Two uncorrelated numbers of the same variance; the first is kept, of the second only a part of the variance is explained.
    network = linear([[1.0, 0.0], [0.0, 1.0]])
    batch = Batch((torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]]),), reading=Numbers())
    pruned = Candidate(Skeleton(network), {"weight": torch.tensor([[3.0, 0.0], second])})
    found = METRICS["calibratedkl"](pruned, Reference(network, batch), batch)
    assert found == pytest.approx(-np.log(1 + 100 * unexplained) / 2 / 2, abs=1e-6)


def test_two_numbers_have_two_directions():
    # Nothing is subtracted over columns, as it is with logits, so that both directions count; the second is lost.
    network = linear([[1.0, 0.0], [0.0, 1.0]])
    batch = Batch((torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]]),), reading=Numbers())
    lost = Candidate(Skeleton(network), {"weight": torch.tensor([[1.0, 0.0], [0.0, 0.0]])})
    expected = (np.log(2.01 / 1.01) + np.log(0.01 / 1.01)) / 4
    assert METRICS["volume"](lost, Reference(network, batch), batch) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("metric", ["agreement", "calibratedkl", "volume", "freeprune"])
def test_a_network_that_answers_nothing_is_worse_than_one_that_answers_a_little(metric):
    network, batch = networks.build("resnet_a"), Batch((networks.images(32),))
    dense = Reference(network, batch)
    last = [name for name, p in network.named_parameters() if p.dim() == 2][-1]
    weight = network.state_dict()[last]
    nothing = Candidate(Skeleton(network), {last: torch.zeros_like(weight)})
    little = Candidate(Skeleton(network), {last: weight * (torch.arange(weight.shape[1]) % 4 == 0)})
    scores = [METRICS[metric](candidate, dense, batch) for candidate in (nothing, little, Candidate(Skeleton(network), {}))]
    assert scores == sorted(scores)
    assert len(set(scores)) == 3


def test_freeprune_is_0_for_the_dense_network_and_normalises_by_the_batch():
    """Scaling a layer before a batch norm changes the outputs in no way, whatever the stored statistics are."""
    network, batch = networks.build("resnet_a"), Batch((networks.images(16),))
    dense = Reference(network, batch)
    assert freeprune(Candidate(Skeleton(network), {}), dense, batch) == pytest.approx(0, abs=1e-9)
    scaled = Candidate(Skeleton(network), {"0.weight": network[0].weight.detach() * 3})
    assert freeprune(scaled, dense, batch) == pytest.approx(0, abs=1e-5)


def test_freeprune_refuses_numbers_that_are_not_finite():
    network, batch = networks.build("resnet_a"), Batch((networks.images(16),))
    dense = reference(network, batch)
    broken = Candidate(Skeleton(network), {"0.weight": network[0].weight.detach() * float("nan")})
    assert freeprune(broken, dense, batch) == float("-inf")
    with torch.no_grad():
        network[0].weight.fill_(float("inf"))
    with pytest.raises(MetricError, match="not finite"):
        reference(network, batch)


def test_synflow_by_hand():
    # weights (2, -1; 0, 3), then a norm with scale -2, shift 5, mean 7, variance 3 (eps 1): factor 1; then ReLU, (1, -1)
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, eps=1.0), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[2.0, -1.0], [0.0, 3.0]]))
        network[1].weight.fill_(-2.0)
        network[1].bias.fill_(5.0)
        network[1].running_mean.fill_(7.0)
        network[1].running_var.fill_(3.0)
        network[3].weight.copy_(torch.tensor([[1.0, -1.0]]))
    batch = Batch((torch.randn(4, 2),))
    score = synflow(Candidate(Skeleton(network), {}), Reference(network, batch), batch)
    assert score == pytest.approx(np.log(3 + 3))


class Recurrent(nn.Module):
    """A recurrent layer, whose shifts are called `bias_ih_l0` and `bias_hh_l0`."""

    def __init__(self, bias):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.GRU(2, 3, batch_first=True, bias=bias)
        with torch.no_grad():
            self.layer.weight_ih_l0.fill_(0.5)
            self.layer.weight_hh_l0.fill_(0.25)

    def forward(self, x):
        return self.layer(x)[0]


class Projected(nn.Module):
    """A layer whose shift is called as in `nn.MultiheadAttention`."""

    def __init__(self, bias):
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.ones(3, 2))
        self.in_proj_bias = nn.Parameter(torch.ones(3)) if bias else None

    def forward(self, x):
        return nn.functional.linear(x, self.in_proj_weight, self.in_proj_bias)


@pytest.mark.parametrize("kind", [Recurrent, Projected])
@pytest.mark.parametrize("metric", ["synflow", "zen"])
def test_shifts_are_left_out_whatever_they_are_called(metric, kind):
    batch = Batch((torch.randn(4, 5, 2, generator=torch.Generator().manual_seed(0)),))
    assert scored(metric, kind(True), batch) == pytest.approx(scored(metric, kind(False), batch), rel=1e-6)


def test_macs_count_the_products_of_attention():
    class Attention(nn.Linear):
        def forward(self, x):
            x = super().forward(x)
            return nn.functional.scaled_dot_product_attention(x, x, x)

    network, tokens = Attention(4, 4), torch.ones(2, 1, 3, 4)  # one head of four numbers for three tokens
    with torch.no_grad():
        network.weight.fill_(1.0)
    assert scored("macs", network, Batch((tokens,))) == 3 * 4 * 4 + 2 * 3 * 3 * 4


def test_macs_see_through_the_fast_path_of_an_attention_layer():
    class Attention(nn.MultiheadAttention):
        def forward(self, x):
            return super().forward(x, x, x)[0]

    network, tokens = Attention(4, 2, batch_first=True).eval(), torch.randn(2, 3, 4)
    with torch.no_grad():
        network.in_proj_bias.fill_(0.1)
    assert scored("macs", network, Batch((tokens,))) == 3 * 4 * (3 * 4 + 4) + 2 * 3 * 3 * 4
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("metric", ["logdensity", "uniformity"])
def test_a_parameter_without_entries_does_not_count(metric):
    network = two_layers()
    network.nothing = nn.Parameter(torch.zeros(0, 8))
    pruned = {"0.weight": torch.tensor([[1.0, 0.0], [0.0, 2.0]])}
    found = METRICS[metric](Candidate(Skeleton(network), pruned), Reference(network, BATCH), BATCH)
    assert found == pytest.approx(EXPECTED[metric])


class Twice(nn.Module):
    """Gives what a network gives, and twice that as a second output."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        output = self.network(x)
        return output, {"twice": 2 * output}


def test_synflow_sums_several_outputs():
    batch = Batch((torch.randn(4, 2),))
    expected = np.log(3) + scored("synflow", two_layers(), batch)
    assert scored("synflow", Twice(two_layers()), batch) == pytest.approx(expected)


def test_naswot_does_not_read_the_outputs():
    assert scored("naswot", Twice(two_layers()), BATCH) == scored("naswot", two_layers(), BATCH)


def test_fisher_of_tokens_is_that_of_their_embeddings():
    layers = two_layers()
    network = nn.Sequential(nn.Embedding.from_pretrained(torch.eye(2), freeze=False), *layers)
    tokens = Batch((torch.tensor([0, 1]),), BATCH.labels)
    assert scored("fisher", network, tokens) == pytest.approx(scored("fisher", layers, BATCH))


def test_fisher_of_a_sequence_sums_over_its_positions():
    # Two images of two positions, whose classes are summed over them. Outputs: 1, 0 and 2, 0 of the first image, 0, 3 and 0, 1
    # of the second; logits 3, 0 and 0, 4. Gradients by both positions: -p, p with p = 1 / (1 + e^3), q, -q with 1 / (1 + e^4).
    class Summed(nn.Linear):
        def forward(self, x):
            return super().forward(x).sum(1)

    network = Summed(2, 2, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.eye(2))
    images = torch.tensor([[[1.0, 0.0], [2.0, 0.0]], [[0.0, 3.0], [0.0, 1.0]]])
    p, q = 1 / (1 + np.exp(3)), 1 / (1 + np.exp(4))
    expected = ((3 * p) ** 2 + (4 * q) ** 2) / 4
    assert scored("fisher", network, Batch((images,), torch.tensor([0, 1]))) == pytest.approx(expected, rel=1e-4)


def test_jacobcov_of_inputs_without_a_gradient_is_minus_infinity():
    class Rounds(nn.Linear):
        def forward(self, x):
            return super().forward(x.round())

    class Decides(nn.Linear):
        def forward(self, x):
            return super().forward((x > 0).float())

    assert scored("jacobcov", Rounds(2, 2), BATCH) == float("-inf")
    assert scored("jacobcov", Decides(2, 2), BATCH) == float("-inf")


def test_synflow_of_a_network_that_computes_in_float32():
    class Single(nn.Linear):
        def forward(self, x):
            return super().forward(x.float())

    network = two_layers()
    expected = scored("synflow", network, BATCH)
    single = Single(2, 2, bias=False)
    single.weight = network[2].weight
    assert scored("synflow", nn.Sequential(*network[:2], single), BATCH) == pytest.approx(expected)


def test_synflow_of_a_cut_network_is_minus_infinity():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    batch = Batch((torch.randn(4, 2),))
    cut = Candidate(Skeleton(network), {"1.weight": torch.zeros(1, 2)})
    assert synflow(cut, Reference(network, batch), batch) == float("-inf")


def test_synflow_needs_weights():
    network = nn.BatchNorm1d(2)
    batch = Batch((torch.randn(4, 2),))
    with pytest.raises(MetricError, match="needs weights of two or more dimensions"):
        synflow(Candidate(Skeleton(network), {}), Reference(network, batch), batch)


def test_synflow_refuses_an_overflow():
    network = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(12)))
    with torch.no_grad():
        for layer in network:
            layer.weight.fill_(1e30)
    batch = Batch((torch.zeros(4, 1),))
    with pytest.raises(MetricError, match="too large"):
        synflow(Candidate(Skeleton(network), {}), Reference(network, batch), batch)


def test_the_layer_that_first_gives_no_finite_numbers_is_named():
    class Logarithm(torch.nn.Module):
        def forward(self, x):
            return torch.log(x - 10)

    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), Logarithm(), torch.nn.Flatten(), torch.nn.LazyLinear(2))
    images = torch.randn(4, 3, 5, 5)
    network(images)
    with pytest.raises(MetricError, match=r"first in '1' \(Logarithm\); check its weights"):
        reference(network.eval(), Batch((images,)))
    assert not any(module._forward_hooks for module in network.modules())
