"""Stable targets in training: which references, conditions, augmentation, parts of a batch, and no bias."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from farfield.data.batches import batch_indices, reference_indices
from farfield.distributions import Empirical
from farfield.errors import ArgumentError
from farfield.numerics import streams
from farfield.objectives import StableTargets, TargetConfig, stable_target

F64 = torch.float64


# -- reference rows ---------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 40), st.integers(0, 60), st.integers(0, 50), st.integers(0, 9))
def test_reference_rows(n, batch, more, step, seed):
    """Distinct, the mini-batch first and in its order, of the size asked for or the whole set."""
    rows = batch_indices(n, batch, step, seed)
    own = list(dict.fromkeys(rows.tolist()))
    count = len(own) + more
    index = reference_indices(n, rows, count, step, seed).tolist()
    assert index[: len(own)] == own
    assert len(set(index)) == len(index) == min(count, n)
    assert set(index) <= set(range(n))
    assert index == reference_indices(n, rows, count, step, seed).tolist()


def test_reference_rows_come_from_a_shuffled_stream():
    rows = torch.arange(8)
    at = [reference_indices(100, rows, 20, step, 3)[8:] for step in range(5)]
    # Five steps read one permutation: every row beyond the mini-batch is met, and none often.
    counts = torch.bincount(torch.cat(at), minlength=100)
    assert int(counts.max()) <= 2
    assert bool((counts[:8] == 0).all())
    assert int((counts > 0).sum()) >= 55
    assert not torch.equal(at[0], reference_indices(100, rows, 20, 5, 3)[8:])
    assert not torch.equal(at[0], reference_indices(100, rows, 20, 0, 4)[8:])
    share = torch.stack(
        [torch.bincount(reference_indices(10, rows[:2], 4, s, 0)[2:], minlength=10) for s in range(4000)]
    )
    assert share.double().mean(0)[2:].tolist() == pytest.approx([0.25] * 8, abs=0.03)


def test_bad_counts_are_named():
    with pytest.raises(ArgumentError, match="count = 3"):
        reference_indices(10, torch.arange(4), 3, 0)
    with pytest.raises(ArgumentError, match="step"):
        reference_indices(10, torch.arange(4), 5, -1)
    with pytest.raises(ArgumentError, match=r"target.reference = 8"):
        StableTargets(TargetConfig("stf", 8), 100, lambda rows: (rows, None), 16, 0)


# -- a run's targets --------------------------------------------------------------------------------------------------


class Set:
    """A labelled data set with an augmentation that mirrors half of the images and adds a shift of its own."""

    def __init__(self, n: int = 40, shape: tuple[int, ...] = (3, 4)) -> None:
        self.images = torch.randn(n, *shape, generator=torch.Generator().manual_seed(0))
        self.labels = torch.arange(n) % 3

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.images[rows], self.labels[rows]

    def augment(self, images: Tensor, ids: Tensor, purpose: str) -> tuple[Tensor, Tensor]:
        u = streams.uniform(0, ids, (2,), purpose=purpose)
        told = torch.stack(((u[:, 0] < 0.5).float(), torch.floor(u[:, 1] * 2) - 1), 1)
        moved = torch.where(told[:, :1, None] > 0, images.flip(-1), images)
        return moved + told[:, 1:, None] + 0.01 * u[:, :1, None], told


def batch(data: Set, size: int, step: int, augment: bool = False, sigma: float = 1.5):
    rows = batch_indices(len(data.images), size, step, 0)
    ids = torch.arange(step * size, (step + 1) * size)
    clean, told = data.images[rows], None
    if augment:
        clean, told = data.augment(clean, ids, "augment")
    noise = streams.normal(0, ids, clean.shape[1:], purpose="test")
    return rows, clean, torch.full((size,), sigma), noise, data.labels[rows], told, ids


def expand(sigma: Tensor) -> Tensor:
    return sigma[:, None, None]


def test_whole_data_set_as_reference():
    """stable_target_field fact 16 in training: the targets are the data set's own denoiser, class by class."""
    data = Set()
    for reference in (40, 5000):
        targets = StableTargets(TargetConfig("stf", reference), 40, data.take, 8, 0)
        rows, clean, sigma, noise, labels, _, _ = batch(data, 8, 3)
        noisy = clean + expand(sigma) * noise
        law = Empirical(data.images, labels=data.labels)
        torch.testing.assert_close(targets(3, rows, clean, sigma, noise), law(noisy, sigma), atol=1e-5, rtol=0)
        hidden = labels.clone()
        hidden[::2] = -1
        found = targets(3, rows, clean, sigma, noise, hidden)
        torch.testing.assert_close(found[1::2], law(noisy, sigma, labels=labels)[1::2], atol=1e-5, rtol=0)
        torch.testing.assert_close(found[::2], law(noisy, sigma)[::2], atol=1e-5, rtol=0)


@pytest.mark.parametrize("augment", [False, True])
def test_parts_of_a_batch_share_one_reference(augment):
    """A process that holds part of a batch gets the targets that one process with all of it would get."""
    data, config = Set(), TargetConfig("stf", 24)

    def make() -> StableTargets:
        return StableTargets(config, 40, data.take, 12, 0, data.augment if augment else None, inform=augment)

    for step in (0, 3, 7):  # step 3 lies across the end of an epoch
        rows, clean, sigma, noise, labels, told, ids = batch(data, 12, step, augment)
        whole = make()(step, rows, clean, sigma, noise, labels, told)
        first = make()
        for targets, parts in ((first, (slice(0, 4), slice(4, 8))), (make(), (slice(8, 12),))):
            for p in parts:
                some = None if told is None else told[p]
                part = targets(step, rows, clean[p], sigma[p], noise[p], labels[p], some, ids[p])
                torch.testing.assert_close(part, whole[p], atol=1e-6, rtol=1e-6)
        with pytest.raises(ArgumentError, match="ids"):
            first(step, rows, clean[:4], sigma[:4], noise[:4], labels[:4])


def test_augmentations_are_a_condition():
    """E19: told the augmentation, only references of the same class and augmentation count; told nothing, all do."""
    data, step = Set(), 2
    rows, clean, sigma, noise, labels, told, ids = batch(data, 8, step, augment=True)
    others = reference_indices(40, rows, 30, step, 0)[8:]
    more, more_told = data.augment(data.images[others], step * 30 + torch.arange(22), "reference augment")
    points, classes = torch.cat((clean, more)), torch.cat((labels, data.labels[others]))
    same = (told.unsqueeze(1) == torch.cat((told, more_told))).all(2)
    assert 8 < int(same.sum()) < 8 * 30
    noisy, place = clean + expand(sigma) * noise, torch.arange(8)
    matched = stable_target(noisy, sigma, points, place, labels, classes, allowed=same)[0]
    mixed = stable_target(noisy, sigma, points, place, labels, classes)[0]
    assert float((matched - mixed).abs().max()) > 0.1

    def run(inform: bool, match: bool) -> Tensor:
        config = TargetConfig("stf", 30, match)
        return StableTargets(config, 40, data.take, 8, 0, data.augment, inform)(
            step, rows, clean, sigma, noise, labels, told, ids
        )

    torch.testing.assert_close(run(True, True), matched)
    torch.testing.assert_close(run(True, False), mixed)
    torch.testing.assert_close(run(False, True), mixed)
    with pytest.raises(ArgumentError, match="told"):
        StableTargets(TargetConfig("stf", 30), 40, data.take, 8, 0, data.augment, True)(
            step, rows, clean, sigma, noise, labels
        )


def test_an_image_twice_in_a_batch():
    """Across an epoch's end an image may occur twice: each occurrence is the only version of its image for itself."""
    data = Set(5)
    rows = torch.tensor([2, 0, 2, 4])
    ids = 4 + torch.arange(4)
    clean, told = data.augment(data.images[rows], ids, "augment")
    sigma, noise = torch.full((4,), 1.5), torch.randn(4, 3, 4)
    targets = StableTargets(TargetConfig("stf", 4), 5, data.take, 4, 0, data.augment)
    found = targets(1, rows, clean, sigma, noise, None, told, ids)
    other = reference_indices(5, rows, 4, 1, 0)[3:]
    more, _ = data.augment(data.images[other], 4 + torch.arange(1), "reference augment")
    noisy = clean + expand(sigma) * noise
    for k, chosen in enumerate(([0, 1, 3], [0, 1, 3], [2, 1, 3], [0, 1, 3])):
        alone, _ = stable_target(noisy[k : k + 1], 1.5, torch.cat((clean[chosen], more)))
        torch.testing.assert_close(found[k : k + 1], alone, atol=1e-6, rtol=1e-6)


def test_no_bias_over_a_run():
    """P1, P3: over a run, targets minus clean samples are orthogonal to functions of the noisy ones; and vary less."""
    data = Set(40, (1, 1))
    targets = StableTargets(TargetConfig("stf", 20), 40, data.take, 16, 0)
    law, moments, errors = Empirical(data.images.double()), [], []
    for step in range(300):
        rows, clean, sigma, noise, _, _, _ = batch(data, 16, step, sigma=0.7)
        noisy, target = clean + expand(sigma) * noise, targets(step, rows, clean, sigma, noise)
        exact = law(noisy.double(), 0.7)
        gap, at = (target - clean).flatten(), noisy.flatten()
        moments.append(torch.stack((gap, gap * at, gap * torch.tanh(3 * at - 1)), 1).double())
        errors.append(torch.stack((target.double() - exact, clean.double() - exact)).square().flatten(1))
    moments, errors = torch.cat(moments), torch.cat(errors, 1).mean(1)
    assert bool((moments.mean(0).abs() < 3 * moments.std(0) / math.sqrt(len(moments))).all())
    # Half of the set without replacement: a small part of the conditional variance, but not nothing.
    assert 0.005 < float(errors[0] / errors[1]) < 0.2
