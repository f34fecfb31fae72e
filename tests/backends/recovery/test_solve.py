"""Least squares, held against numpy's."""

import numpy as np
import pytest
import torch

from freeprune.backends.recovery.solve import least_squares, of_few_samples

LITTLE = 1e-9


def problem(samples=400, columns=6, outputs=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(samples, columns, generator=generator, dtype=torch.float64)
    rows[:, 1] += 0.8 * rows[:, 0]
    targets = torch.randn(samples, outputs, generator=generator, dtype=torch.float64) + rows[:, :outputs]
    plain = torch.randn(1, outputs, columns, generator=generator, dtype=torch.float64)
    return rows, targets, plain


def moments_of(rows, targets):
    return (targets.T @ rows / len(rows))[None], (rows.T @ rows / len(rows))[None]


def test_without_a_ridge_it_is_the_least_squares_solution():
    rows, targets, plain = problem()
    found = least_squares(plain, *moments_of(rows, targets), ridge=LITTLE)[0]
    wanted = np.linalg.lstsq(rows.numpy(), targets.numpy(), rcond=None)[0].T
    assert np.allclose(found.numpy(), wanted, atol=1e-6)


def test_under_a_mask_every_output_has_a_system_of_its_own():
    rows, targets, plain = problem(columns=12)
    mask = torch.rand(plain.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    found = least_squares(plain, *moments_of(rows, targets), mask, ridge=LITTLE)[0]
    for output in range(len(found)):
        kept = mask[0, output].numpy()
        wanted = np.linalg.lstsq(rows.numpy()[:, kept], targets.numpy()[:, output], rcond=None)[0]
        assert np.allclose(found[output].numpy()[kept], wanted, atol=2e-3)
        assert not found[output].numpy()[~kept].any()


def test_a_full_mask_gives_what_no_mask_gives():
    rows, targets, plain = problem()
    pair = moments_of(rows, targets)
    full = least_squares(plain, *pair, torch.ones_like(plain, dtype=torch.bool))
    assert torch.allclose(full, least_squares(plain, *pair), atol=1e-3)


def test_a_large_ridge_leaves_the_plain_weights():
    rows, targets, plain = problem()
    assert torch.allclose(least_squares(plain, *moments_of(rows, targets), ridge=1e9), plain, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_fewer_samples_than_columns_and_dead_columns_are_carried_by_the_ridge(masked):
    rows, targets, plain = problem(samples=4, columns=10)
    rows[:, 7] = 0
    mask = torch.ones_like(plain, dtype=torch.bool) if masked else None
    found = least_squares(plain, *moments_of(rows, targets), mask)
    assert torch.isfinite(found).all()
    assert torch.allclose(found[..., 7], plain[..., 7])  # nothing is known of it


@pytest.mark.parametrize("ridge", [0.1, 1e-3])
def test_a_system_of_the_samples_gives_the_same(ridge):
    groups = [problem(samples=8, columns=30, seed=seed) for seed in (0, 1)]
    rows, targets, plain = (torch.stack([group[i].reshape(-1, group[i].shape[-1]) for group in groups]) for i in range(3))
    pairs = [moments_of(*group[:2]) for group in groups]
    cross, moments = (torch.cat([pair[i] for pair in pairs]) for i in (0, 1))
    expected = least_squares(plain, cross, moments, ridge=ridge)
    assert torch.allclose(of_few_samples(plain, targets, rows, ridge), expected, atol=1e-9)
    assert not torch.allclose(plain, expected, atol=0.1)


def test_samples_that_are_all_zero_leave_the_plain_weights():
    _, _, plain = problem(columns=10)
    assert torch.equal(of_few_samples(plain, torch.zeros(1, 4, 3), torch.zeros(1, 4, 10)), plain)
