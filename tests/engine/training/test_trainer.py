"""The trainer: what it leaves alone, what the seed decides, masks, schedule, distillation, and its sentences."""

import copy
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from freeprune.engine.asked.recipe import Recipe
from freeprune.engine.tasks import AGREEMENT, CLASSIFICATION
from freeprune.engine.training import measuring
from freeprune.engine.training.augmentation import drawn_shifts, shifted
from freeprune.engine.training.checkpoint import Saving
from freeprune.engine.training.measuring import accuracy, measured
from freeprune.engine.training.optimizer import rate_factor
from freeprune.engine.training.trainer import train
from freeprune.errors import FreePruneError


class Images(Dataset):
    """Noise around one pattern per class; records the indices it was asked for."""

    def __init__(self, length=40, classes=4, noise=0.3):
        generator = torch.Generator().manual_seed(5)
        patterns = torch.randn(classes, 3, 8, 8, generator=generator)
        self.labels = [i % classes for i in range(length)]
        self.images = patterns[self.labels] + noise * torch.randn(length, 3, 8, 8, generator=generator)
        self.asked = []

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        self.asked.append(index)
        return self.images[index], self.labels[index]


class Network(nn.Module):
    def __init__(self, classes=4, dropout=0.0):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(8, classes)
        self.widest = 0

    def forward(self, images):
        maps = torch.relu(self.norm(self.conv(images)))
        if self.training:
            self.widest = max(self.widest, len(images))
        return self.head(self.dropout(maps.mean((2, 3))))


class Wrap(nn.Module):
    """A network whose output, or input, is changed by a function."""

    def __init__(self, change):
        super().__init__()
        self.network = Network()
        self.change = change

    def forward(self, *images):
        return self.change(self.network, *images)


def make(classes=4, dropout=0.0):
    torch.manual_seed(3)
    return Network(classes, dropout)


def frozen(network):
    return copy.deepcopy(network.state_dict()), [module.training for module in network.modules()]


def same(before, after):
    return all(torch.equal(before[name], after[name]) for name in before) and before.keys() == after.keys()


@pytest.fixture(autouse=True)
def _one_thread():
    """These networks are too small to gain from more, and threads that wait for a busy core cost seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def dataset():
    return Images()


SHORT = Recipe(images=40, batch_size=8, learning_rate=0.1)


def test_training_learns_and_returns_an_ordinary_network_in_eval_mode(dataset):
    network = make()
    trained = train(network, dataset, Recipe(epochs=10, batch_size=8, learning_rate=0.1), seed=0)
    assert type(trained) is Network
    assert accuracy(network, dataset) < 0.6
    assert accuracy(trained, dataset) > 0.9
    assert not any(module.training for module in trained.modules())
    assert all(p.is_contiguous() and p.grad is None and p.requires_grad for p in trained.parameters())
    assert not trained._forward_hooks
    copy.deepcopy(trained)


def test_mixed_precision_trains_in_half_and_leaves_whole_weights(dataset):
    seen = set()

    class Watched(Network):
        def forward(self, x):
            out = super().forward(x)
            seen.add(out.dtype)
            return out

    recipe = Recipe(epochs=10, batch_size=8, learning_rate=0.1, precision="bf16-mixed")
    trained = train(Watched(), dataset, recipe, seed=0)
    assert torch.bfloat16 in seen
    assert {p.dtype for p in trained.parameters()} == {torch.float32}
    assert accuracy(trained, dataset) > 0.9


def test_network_teacher_and_data_are_left_bit_for_bit(dataset):
    network, teacher = make(), make()
    network.norm.eval()
    teacher.dropout.eval()
    images = dataset.images.clone()
    before = frozen(network), frozen(teacher)
    train(network, dataset, Recipe(images=24, batch_size=8, distill=0.5, augment=True), seed=0, teacher=teacher)
    accuracy(network, dataset)
    for module, (state, modes) in zip((network, teacher), before, strict=True):
        assert same(state, module.state_dict())
        assert modes == [part.training for part in module.modules()]
    assert torch.equal(images, dataset.images)


class Noisy(Images):
    """Draws from all three global generators, as a user's own augmentation may."""

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image + torch.randn(()) + random.random() + np.random.rand(), label  # noqa: NPY002


def test_the_seed_decides_everything_and_global_states_are_left_alone():
    network = make(dropout=0.3)
    recipe = Recipe(images=40, batch_size=8, augment=True)
    results = []
    for leak, seed in ((11, 1), (22, 1), (33, 2)):
        torch.manual_seed(leak)
        random.seed(leak)
        np.random.seed(leak)  # noqa: NPY002
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
        results.append(train(network, Noisy(), recipe, seed=seed).state_dict())
        assert torch.equal(states[0], torch.get_rng_state())
        assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


@pytest.mark.parametrize(
    ("recipe", "length", "steps"),
    [
        (Recipe(epochs=1, batch_size=16), 40, 3),  # 40 images are 2.5 batches
        (Recipe(epochs=0.5, batch_size=10), 40, 2),
        (Recipe(epochs=9, images=17, batch_size=8), 40, 3),
        (Recipe(epochs=2, batch_size=128), 5, 2),  # the whole data set is one batch
        (Recipe(epochs=0), 40, 0),
        (Recipe(epochs=1, batch_size=8), 9, 2),  # the ninth image alone would break batch norm
    ],
)
def test_steps_are_full_batches_and_progress_counts_them(recipe, length, steps):
    dataset, seen = Images(length), []
    network = train(make(), dataset, recipe, seed=0, progress=lambda *now: seen.append(now))
    assert [(step, total) for step, total, _ in seen] == [(i + 1, steps) for i in range(steps)]
    assert all(math.isfinite(loss) for *_, loss in seen)
    assert len(dataset.asked) == steps * min(recipe.batch_size, length)
    assert network.widest == (min(recipe.batch_size, length) if steps else 0)


def test_an_epoch_sees_every_image_once_in_an_order_of_its_own(dataset):
    train(make(), dataset, Recipe(epochs=2, batch_size=8), seed=0)
    first, second = dataset.asked[:40], dataset.asked[40:]
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second
    assert first != sorted(first)


def test_masked_weights_stay_exactly_zero_and_the_others_train(dataset):
    network = make()
    kept = torch.rand(8, 3, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.5
    masks = {"conv.weight": kept, "head.bias": torch.tensor([True, False, True, False])}
    untrained = train(network, dataset, Recipe(epochs=0), seed=0, masks=masks)
    trained = train(network, dataset, SHORT, seed=0, masks=masks)
    for result in (untrained, trained):
        for name, mask in masks.items():
            assert (result.get_parameter(name)[~mask] == 0).all()
    assert torch.equal(untrained.conv.weight[kept], network.conv.weight[kept])
    assert (trained.conv.weight[kept] != network.conv.weight[kept]).all()


def test_masks_hold_in_every_forward_pass(dataset):
    def checked(network, images):
        assert (network.conv.weight[0] == 0).all()
        return network(images)

    kept = torch.ones(8, 3, 3, 3, dtype=torch.bool)
    kept[0] = False
    train(Wrap(checked), dataset, SHORT, seed=0, masks={"network.conv.weight": kept})


def test_weight_decay_spares_biases_and_norms(dataset):
    """With no gradient at all, one step of decay takes lr * decay * w from weights, and nothing from vectors."""
    network = Wrap(lambda network, images: 0 * network(images))
    recipe = Recipe(images=8, batch_size=8, learning_rate=0.1, momentum=0, weight_decay=0.5, warmup=0)
    trained = train(network, dataset, recipe, seed=0)
    for name, parameter in network.named_parameters():
        expected = parameter * (1 - 0.1 * 0.5) if parameter.ndim > 1 else parameter
        torch.testing.assert_close(trained.get_parameter(name), expected)


def test_one_step_by_hand():
    """Linear network, zero weights, two classes: the gradient of the bias is softmax minus one-hot, mean over images."""

    class Two(Images):
        def __getitem__(self, index):
            return torch.ones(2), 0

    network = nn.Linear(2, 2)
    nn.init.zeros_(network.weight)
    nn.init.zeros_(network.bias)
    recipe = Recipe(images=2, batch_size=2, learning_rate=0.2, momentum=0.5, weight_decay=0, warmup=0)
    trained = train(network, Two(2), recipe, seed=0)
    # Gradient (-1/2, 1/2); Nesterov's first step is lr * (1 + momentum) * gradient = 0.2 * 1.5 * 0.5 = 0.15.
    torch.testing.assert_close(trained.bias.detach(), torch.tensor([0.15, -0.15]))


class Ones(Images):
    """Two features of one, and the class 0."""

    def __getitem__(self, index):
        return torch.ones(2), 0


def two():
    """Linear, zero weights, two classes: every gradient is -1/2 for the class and 1/2 for the other, of norm sqrt(6) / 2."""
    network = nn.Linear(2, 2)
    nn.init.zeros_(network.weight)
    nn.init.zeros_(network.bias)
    return network


ONE_STEP = Recipe(images=2, batch_size=2, learning_rate=0.2, momentum=0, weight_decay=0, warmup=0)


def test_one_step_of_adamw_by_hand():
    """The first step is the learning rate in the direction of the gradient's sign, whatever its size."""
    recipe = replace(ONE_STEP, optimizer="adamw", learning_rate=0.03)
    torch.testing.assert_close(train(two(), Ones(2), recipe, seed=0).bias.detach(), torch.tensor([0.03, -0.03]))
    assert (Recipe(optimizer="adamw").learning_rate, Recipe(optimizer="adamw").weight_decay) == (0.001, 0.01)
    assert (Recipe().learning_rate, Recipe().weight_decay) == (0.02, 5e-4)


def test_the_gradient_is_clipped_without_pruned_entries():
    trained = train(two(), Ones(2), replace(ONE_STEP, clip=0.3), seed=0)
    shorter = 0.2 * 0.5 * 0.3 / (math.sqrt(6) / 2)
    torch.testing.assert_close(trained.bias.detach(), torch.tensor([shorter, -shorter]))
    masks = {"weight": torch.zeros(2, 2, dtype=torch.bool)}
    trained = train(two(), Ones(2), replace(ONE_STEP, clip=0.3), seed=0, masks=masks)
    shorter = 0.2 * 0.5 * 0.3 / (math.sqrt(2) / 2)
    torch.testing.assert_close(trained.bias.detach(), torch.tensor([shorter, -shorter]))


def test_labels_are_smoothed():
    losses = []
    network = two()
    network.bias.data = torch.tensor([math.log(3), 0.0])
    recipe = replace(ONE_STEP, label_smoothing=0.2)
    train(network, Ones(2), recipe, seed=0, progress=lambda step, steps, loss: losses.append(loss))
    assert losses == pytest.approx([-0.9 * math.log(3 / 4) - 0.1 * math.log(1 / 4)])
    with pytest.raises(FreePruneError, match=r"`label_smoothing=0.2` is for the labels of a classification"):
        train(network, Ones(2), recipe, seed=0, teacher=two(), task=AGREEMENT)


def test_weights_are_averaged():
    """After one step the average is the weights; after the second it has the decay 2 / 11, or the recipe's if that is less."""
    seen = []

    class Watched(nn.Linear):
        def forward(self, x):
            seen.append(self.bias.detach().clone())
            return super().forward(x)

    def made():
        network = Watched(2, 2)
        network.load_state_dict(two().state_dict())
        return network

    recipe = replace(ONE_STEP, images=6)
    for average, decay in ((0.9, 2 / 11), (0.1, 0.1)):
        seen.clear()
        found = train(made(), Ones(2), replace(recipe, images=4, average=average), seed=0).bias.detach()
        first = seen[-1]
        last = train(made(), Ones(2), replace(recipe, images=4), seed=0).bias.detach()
        torch.testing.assert_close(found, decay * first + (1 - decay) * last)


def test_rate_rises_linearly_and_falls_as_half_a_cosine():
    factors = [rate_factor(step, 6, warmup=1 / 3) for step in range(6)]
    assert factors == pytest.approx([1 / 3, 2 / 3, 1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2])
    assert rate_factor(0, 1, warmup=0.1) == 1
    assert rate_factor(4, 5, warmup=1) == pytest.approx(5 / 6)


class Fixed(nn.Module):
    """The same logits for every image."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, images):
        return self.logits.expand(len(images), -1)


@pytest.mark.parametrize("right", [4, 3, 0])
def test_distillation_by_hand(right):
    """The loss holds T² KL for the images that the teacher has right, with a weight that falls to 0 with the steps."""
    dataset = TensorDataset(torch.zeros(4, 1), torch.tensor([0] * right + [1] * (4 - right)))
    losses = []
    train(
        Fixed([0.0, 0.0, 0.0, 0.0]),
        dataset,
        Recipe(images=8, batch_size=4, distill=0.25, learning_rate=1e-12),
        seed=0,
        teacher=Fixed([4 * math.log(3), 0.0, 0.0, 0.0]),
        progress=lambda step, steps, loss: losses.append(loss),
    )
    # At T = 4 the teacher says (3, 1, 1, 1) / 6 and the student 1/4 each.
    divergence = 0.5 * math.log(2) + 3 / 6 * math.log(4 / 6)
    weights = [right / 4 * weight for weight in (0.25, 0.125)]
    assert losses == pytest.approx([(1 - w) * math.log(4) + w * 16 * divergence for w in weights], rel=1e-5)


def test_distillation_leads_closer_to_the_teacher_than_its_labels_do(dataset):
    teacher = train(make(), dataset, Recipe(epochs=5, batch_size=8, learning_rate=0.1), seed=1)
    with torch.no_grad():
        target = teacher(dataset.images)
    own = TensorDataset(dataset.images, target.argmax(1))

    def apart(weight):
        near = train(make(), own, Recipe(epochs=5, batch_size=8, distill=weight), seed=0, teacher=teacher)
        with torch.no_grad():
            return (near(dataset.images) - target).norm()

    assert apart(1.0) < 0.9 * apart(0.0)


class Alone(Images):
    """The images without labels."""

    def __getitem__(self, index):
        return self.images[index]


@pytest.mark.parametrize("distill", [0.0, 0.5, 1.0])
def test_without_labels_the_dense_network_is_followed(distill):
    """To the end, whatever weight distillation has beside labels."""
    dataset = Alone()
    teacher = train(make(), Images(), Recipe(epochs=5, batch_size=8, learning_rate=0.1), seed=1)
    recipe = Recipe(epochs=10, batch_size=8, learning_rate=0.1, distill=distill)
    far = make()
    near = train(far, dataset, recipe, seed=0, teacher=teacher, task=AGREEMENT)
    same = train(far, dataset, replace(recipe, distill=None), seed=0, teacher=teacher, task=AGREEMENT)
    assert all(torch.equal(one, same.state_dict()[name]) for name, one in near.state_dict().items())
    before, after, best = (measured(one, dataset, AGREEMENT, dense=teacher, batch_size=15) for one in (far, near, teacher))
    assert before < 0.6 < 0.7 < after < best == 1
    with torch.no_grad():
        dense, own = (one(dataset.images).argmax(1) for one in (teacher, near))
    assert after == (dense == own).double().mean()


def test_sentences_where_labels_and_dense_network_do_not_fit_together():
    recipe = Recipe(images=8, batch_size=8)
    for dataset, task, sentence in (
        (Alone(), CLASSIFICATION, "a batch is a float32 tensor of shape .*; expected the two parts .inputs, labels"),
    ):
        for work in (
            lambda: train(make(), dataset, recipe, seed=0, task=task, teacher=make()),  # noqa: B023
            lambda: measured(make(), dataset, task, dense=make()),  # noqa: B023
        ):
            with pytest.raises(FreePruneError, match=sentence):
                work()
    with pytest.raises(FreePruneError, match="no teacher for data without labels"):
        train(make(), Alone(), recipe, seed=0, task=AGREEMENT)
    with pytest.raises(FreePruneError, match="no dense network to compare with"):
        measured(make(), Alone(), AGREEMENT)
    with pytest.raises(FreePruneError, match=r"the dense network returned a dict; expected the dense network's outputs"):
        measured(make(), Alone(), AGREEMENT, dense=Wrap(lambda output, _: {"logits": None}))


def test_agreement_leaves_labels_aside(dataset):
    assert measured(make(), dataset, AGREEMENT, dense=make()) == 1


def augmented(images, seed):
    return shifted(images, drawn_shifts(len(images), images, torch.Generator().manual_seed(seed)))


def test_augmentation_is_a_shifted_and_perhaps_mirrored_copy():
    """Every pixel of a 16 x 8 image has its own value, so the shift and the mirroring can be read off the result."""
    image = torch.arange(1.0, 129).view(1, 1, 16, 8).expand(200, 2, 16, 8)
    results = augmented(image, seed=0)
    padded = torch.nn.functional.pad(image[0], (1, 1, 2, 2))
    possible = {
        tuple(view.flatten().tolist()): (above, aside, mirrored)
        for above in range(5)
        for aside in range(3)
        for mirrored, view in enumerate(
            (
                padded[:, above : above + 16, aside : aside + 8],
                padded[:, above : above + 16, aside : aside + 8].flip(2),
            )
        )
    }
    drawn = [possible[tuple(result.flatten().tolist())] for result in results]
    assert set(drawn) == set(possible.values())  # all 30 of them come up, and nothing else
    assert 70 < sum(mirrored for *_, mirrored in drawn) < 130
    assert torch.equal(results, augmented(image, seed=0))


def test_augmentation_reaches_the_network(dataset):
    seen = []

    def note(network, images):
        seen.append(images.clone())
        return network(images)

    whole = Recipe(images=40, batch_size=40, augment=True)
    train(Wrap(note), dataset, whole, seed=0)
    assert any(not any(torch.equal(image, known) for known in dataset.images) for image in seen[-1])


def test_a_network_that_views_feature_maps_trains_too(dataset):
    """`view` raises on a channels_last feature map of more than one pixel."""
    network = Wrap(lambda network, images: network(torch.relu(images + 0).view(len(images), -1).view_as(images)))
    formats = []
    plain = Wrap(lambda network, images: formats.append((len(images), images.stride(1))) or network(images))
    assert accuracy(train(network, dataset, SHORT, seed=0), dataset) >= 0
    accuracy(train(plain, dataset, SHORT, seed=0), dataset)
    assert {stride for count, stride in formats if count > measuring.FEW} == {1}


def test_narrow_strided_convolutions_of_one_pixel_are_not_trained_channels_last(dataset):
    """Their gradients end the process there, on some processors (`channels_last.py`)."""
    strides = []
    network = Wrap(lambda inner, images: strides.append((torch.is_grad_enabled(), images.stride(1))) or inner(images))
    network.network.norm = nn.Sequential(nn.Conv2d(8, 8, 1, 2), nn.BatchNorm2d(8))
    train(network, dataset, SHORT, seed=0)
    assert {stride for trained, stride in strides if trained} == {64}


def test_tuples_of_inputs_and_a_collate_function_of_the_users_own(dataset):
    def collate(items):
        images = torch.stack([image for image, _ in items])
        return (images, images.flip(3)), [label for _, label in items]

    network = Wrap(lambda network, left, right: network(left) + network(right))
    trained = train(network, dataset, SHORT, seed=0, collate=collate)
    assert not same(network.state_dict(), trained.state_dict())
    assert 0 <= accuracy(trained, dataset, collate=collate) <= 1
    with pytest.raises(FreePruneError, match=r"augmentation needs images of shape \(N, C, H, W\), not a tuple of 2"):
        train(network, dataset, Recipe(augment=True), seed=0, collate=collate)


def test_large_outputs_are_measured_in_small_batches(monkeypatch):
    """Five images at a time hold 5 * (192 + 4) floats."""
    network, seen = make(), []
    expected = accuracy(network, Images(12))
    network.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    monkeypatch.setattr(measuring, "MOST_BYTES", 5 * 4 * (3 * 8 * 8 + 4))
    monkeypatch.setattr(measuring, "light", lambda network: network)  # a copy has no hooks
    assert accuracy(network, Images(12)) == expected
    assert seen[-3:] == [5, 5, 2]  # after the few that are looked at


def test_accuracy_counts_over_batches_in_eval_mode():
    class Echo(nn.Module):
        def forward(self, images):
            assert not self.training
            assert not torch.is_grad_enabled()
            return images

    rows = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [2.0, 1.0]])
    network = Echo().train()
    assert accuracy(network, list(zip(rows, [1, 0, 1, 1, 1], strict=True)), batch_size=2) == 3 / 5
    assert network.training


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"epochs": -1}, "`epochs` is -1; give 0 or more"),
        ({"epochs": math.nan}, "`epochs` is nan"),
        ({"images": -5}, "`images` is -5"),
        ({"batch_size": 1}, "batch norm needs two"),
        ({"learning_rate": 0}, "`learning_rate` is 0; give a number above 0"),
        ({"momentum": 1}, "`momentum` is 1"),
        ({"weight_decay": -0.1}, "`weight_decay` is -0.1"),
        ({"warmup": 1.5}, "`warmup` is 1.5"),
        ({"distill": 2}, "`distill` is 2"),
        ({"optimizer": "adam"}, "`optimizer` is 'adam'; give sgd or adamw"),
        ({"clip": 0}, "`clip` is 0; give a number above 0"),
        ({"average": 1}, "`average` is 1"),
        ({"label_smoothing": 1}, "`label_smoothing` is 1"),
        ({"crop": 8}, "`crop` is 8; give a share of the image from 0 to 1"),
        ({"batch_norm": "both"}, "`batch_norm` is 'both'; give synchronised or single"),
        ({"precision": "fp8"}, "`precision` is 'fp8'; give 32-true, bf16-mixed or 16-mixed"),
    ],
)
def test_recipes_that_make_no_sense(change, sentence):
    with pytest.raises(FreePruneError, match=sentence):
        Recipe(**change)


def test_arguments_that_cannot_be_trained_with_are_told(dataset):
    recipe = Recipe(images=8, batch_size=8)
    with pytest.raises(FreePruneError, match="no teacher"):
        train(make(), dataset, Recipe(distill=0.5), seed=0)
    with pytest.raises(FreePruneError, match=r"'conv\.wait', but the network has no parameter"):
        train(make(), dataset, recipe, seed=0, masks={"conv.wait": torch.ones(1, dtype=torch.bool)})
    with pytest.raises(FreePruneError, match=r"float32 tensor of shape \(4,\); expected bool of shape \(4,\)"):
        train(make(), dataset, recipe, seed=0, masks={"head.bias": torch.ones(4)})
    with pytest.raises(FreePruneError, match=r"has 1 image\(s\)"):
        train(make(), Images(1), recipe, seed=0)
    with pytest.raises(FreePruneError, match="requires a gradient"):
        train(make().requires_grad_(False), dataset, recipe, seed=0)
    with pytest.raises(FreePruneError, match="no images to measure"):
        accuracy(make(), [])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda network, images: {"count": images.shape[0]}, "returned a dict without an output"),
        (lambda network, images: (images, network(images)), r"shape \(8, 3, 8, 8\); expected logits, one tensor"),
        (lambda network, images: images, r"shape \(8, 3, 8, 8\); expected logits, one tensor of shape \(8, classes\)"),
        (lambda network, images: network(images)[:1], r"shape \(1, 4\)"),
        (lambda network, images: network(images)[:, :3], "label 3, but the network has 3 classes.* from 0 to 2"),
        (
            lambda network, images: network(images) * math.nan,
            "the loss became nan at step 1 of 1, before any weight changed; check the loss",
        ),
        (lambda network, images: network(images).detach(), "backward pass failed .*does not require grad.* or 0 epochs"),
    ],
)
def test_networks_that_cannot_be_trained_are_told(dataset, change, sentence):
    with pytest.raises(FreePruneError, match=sentence):
        train(Wrap(change), dataset, Recipe(images=8, batch_size=8), seed=0)


@pytest.mark.parametrize(
    ("collate", "sentence"),
    [
        (lambda items: torch.stack([image for image, _ in items]), "a batch is a float32 tensor"),
        (lambda items: (torch.zeros(8, 3, 8, 8), torch.full((8,), 0.5)), r"labels of a batch are a float32 tensor of shape"),
        (lambda items: (torch.zeros(8, 3, 8, 8), torch.zeros(8, 2).long()), "expected integers of shape"),
        (lambda items: (torch.zeros(8, 3, 8, 8), -torch.ones(8).long()), "there is a label -1"),
    ],
)
def test_batches_that_cannot_be_trained_on_are_told(dataset, collate, sentence):
    with pytest.raises(FreePruneError, match=sentence):
        train(make(), dataset, Recipe(images=8, batch_size=8), seed=0, collate=collate)


def test_a_learning_rate_that_explodes_is_a_sentence(dataset):
    with pytest.raises(FreePruneError, match=r"the loss became (nan|inf) at step \d of 5; .*\(now 1e\+30\)"):
        train(make(), dataset, Recipe(images=40, batch_size=8, learning_rate=1e30, warmup=0), seed=0)


def test_a_training_that_explodes_leaves_no_checkpoint(dataset, tmp_path):
    recipe, saving = Recipe(images=40, batch_size=8, learning_rate=1e30, warmup=0), Saving(tmp_path / "t.safetensors", 0)
    with pytest.raises(FreePruneError, match="the loss became"):
        train(make(), dataset, recipe, seed=0, saving=saving)
    assert not saving.path.exists()


class Side(nn.Module):
    """Logits and a second output in training mode, or in both."""

    def __init__(self, always=False):
        super().__init__()
        self.inner, self.always = make(), always

    def forward(self, images):
        logits = self.inner(images)
        return (logits, images) if self.training or self.always else logits


def test_of_several_outputs_the_first_is_trained_on_and_measured(dataset):
    trained, plain = (train(network, dataset, SHORT, seed=0) for network in (Side(), make()))
    assert same(trained.inner.state_dict(), plain.state_dict())
    assert 0 <= accuracy(trained, dataset) <= 1
    assert accuracy(Side(always=True), dataset) == accuracy(make(), dataset)


class Written(nn.Module):
    """Logits that are a view of a tensor into which something is written afterwards, as decoders of boxes do."""

    def __init__(self, place):
        super().__init__()
        self.inner, self.place = make(), place

    def forward(self, images):
        whole = self.inner(images) * 1
        logits = whole.view(len(images), 2, 2).flatten(1) if self.place == "flat" else whole.t().t()
        if self.place == "base":
            whole.mul_(2)
        else:
            logits[:, :2] = logits[:, :2] * 2
        return {"logits": logits, "last_hidden_state": whole.t()}


@pytest.mark.parametrize("place", ["flat", "view", "base"])
def test_outputs_may_be_views_of_what_was_written_into(dataset, place):
    """A hook on one ended the process, without a word."""
    trained = train(Written(place), dataset, SHORT, seed=0)
    assert not same(trained.inner.state_dict(), make().state_dict())


def test_items_may_be_flat_and_of_any_floating_type(dataset):
    """`(a, b, label)` is two inputs and a label; what floats is cast to float32."""
    flat = [(image, image.flip(2), label) for image, label in zip(dataset.images, dataset.labels, strict=True)]
    nested = [((a.double(), b.half().double()), label) for a, b, label in flat]
    network = Wrap(lambda network, left, right: network(left) + network(right.half().float()))
    results = [train(network, items, SHORT, seed=0) for items in (flat, nested)]
    assert same(*(result.state_dict() for result in results))
    assert accuracy(results[0], flat) == accuracy(results[0], nested)


@pytest.mark.parametrize("draw", [random.random, lambda: np.random.rand(), lambda: torch.rand(())])  # noqa: NPY002
def test_the_accuracy_of_a_test_set_that_draws_is_decided_by_the_seed(draw):
    class Drawn(Images):
        def __getitem__(self, index):
            return torch.tensor([draw(), 0.5]), 0

    found = [accuracy(nn.Identity(), Drawn(400), seed=seed) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


def test_an_item_that_cannot_be_read_in_training_is_a_sentence_with_its_place():
    class Broken(Images):
        def __getitem__(self, index):
            if index == 7:
                raise OSError("truncated file")
            return super().__getitem__(index)

    for use in (lambda d: train(make(), d, SHORT, seed=0), lambda d: accuracy(make(), d)):
        with pytest.raises(
            FreePruneError, match=r"items of a Broken cannot be read .*OSError: truncated file at .*test_trainer"
        ):
            use(Broken())


@pytest.mark.parametrize("kind", ["weight", "buffer"])
def test_tensors_that_training_left_without_a_number_are_a_sentence(kind, dataset):
    class Spoilt(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.steps = make(), 0
            self.register_buffer("mask", torch.tensor([-math.inf]))  # as given: that is fine
            self.register_buffer("mean", torch.zeros(1))

        def forward(self, images):
            self.steps += self.training
            if self.steps == 5 and kind == "buffer":
                self.mean.fill_(math.nan)
            elif self.steps == 5:  # the last step: no loss is computed from what it makes
                self.inner.head.bias.register_hook(lambda gradient: gradient * math.nan)
            return self.inner(images)

    name = "mean" if kind == "buffer" else "inner.head.bias"
    with pytest.raises(FreePruneError, match=f"'{name}' holds values that are not finite after training"):
        train(Spoilt(), dataset, Recipe(images=40, batch_size=8), seed=0)
