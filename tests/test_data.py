"""Data sets: named sources, splits, digests, batch order, and the summary."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farfield.data import DataSet, batch_indices, content_digest, describe, load, names
from farfield.data.batches import _epoch
from farfield.errors import ArgumentError, DataError


def test_digits_are_the_scans_of_scikit_learn():
    data = load("digits")
    assert data.images.shape == (1797, 1, 8, 8)
    assert data.images.dtype == torch.float32
    assert (float(data.images.min()), float(data.images.max())) == (-1.0, 1.0)
    assert data.labels is not None
    assert data.labels.dtype == torch.int64
    assert data.classes == tuple("0123456789")
    assert data.event_shape == (1, 8, 8)
    assert data.x is data.images
    # The content is fixed for good: a change here is a change of every record that names the digits.
    assert data.digest == "47ef15bb53ef0dc9762545a2cc092be394e82b61c1820224d463064dd0fb8c79"


def test_digits_split_is_fixed_and_covers_everything():
    data, train, validation = load("digits"), load("digits", split="train"), load("digits", split="validation")
    assert (len(train), len(validation)) == (1500, 297)
    assert train.digest == data.train.digest
    assert validation.digest == data.validation.digest
    joined = torch.cat((train.images, validation.images)).flatten(1)
    assert torch.equal(joined.sum(0), data.images.flatten(1).sum(0))
    assert torch.equal(train.labels, data.train.labels)
    assert load("digits", split="train", seed=1).digest != train.digest
    assert load("digits", seed=1).train.digest == load("digits", split="train", seed=1).digest
    assert len(load("digits", split="validation", holdout=100)) == 100
    assert torch.equal(load("digits", split="train", limit=7).images, train.images[:7])
    assert data.split(holdout=10)[1].images.shape[0] == 10


def test_size_is_the_exact_block_mean():
    full, half = load("digits", limit=50).images, load("digits", size=4, limit=50).images
    assert torch.equal(half, torch.nn.functional.avg_pool2d(full.double(), 2).float())
    assert load("digits", size=(8, 4), limit=2).images.shape == (2, 1, 8, 4)
    odd = load("digits", size=5, limit=50).images
    assert odd.shape == (50, 1, 5, 5)
    assert float(odd.abs().max()) <= 1


def test_labels_can_be_left_out():
    assert load("digits", labels=False, limit=3).labels is None


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"source": "digit"}, "Did you mean 'digits'"),
        ({"source": "nowhere/images.npz"}, "path works too"),
        ({"source": "digits", "split": "test"}, "train, validation"),
        ({"source": "digits", "split": "train", "holdout": 1797}, "1 to 1796"),
        ({"source": "digits", "split": "train", "holdout": 0}, "1 to 1796"),
        ({"source": "digits", "limit": 0}, "limit"),
        ({"source": "digits", "size": 0}, "size"),
        ({"source": "toy:nothing"}, "unknown data source"),
    ],
)
def test_wrong_arguments_name_what_would_be_right(arguments, word):
    pytest.importorskip("farfield.data.toys", reason="the toy laws are not written yet")
    with pytest.raises(ArgumentError, match=word):
        load(**arguments)


def test_toy_laws():
    toys = pytest.importorskip("farfield.data.toys", reason="the toy laws are not written yet")
    for name in toys.TOY_NAMES:
        data = load(f"toy:{name}:60")
        assert data.images.ndim == 2
        assert len(data) == 60
    name = f"toy:{toys.TOY_NAMES[0]}"
    assert name in names()
    assert len(load(name)) == 10_000
    assert load(name, seed=1, limit=5).digest != load(name, limit=5).digest
    with pytest.raises(ArgumentError, match="no size"):
        load(name, size=4)
    with pytest.raises(ArgumentError, match="COUNT"):
        load(f"{name}:many")


def test_digest_depends_on_content_only():
    x = torch.rand(10, 3, 4, 4) * 2 - 1
    labels = torch.arange(10)
    digest = content_digest(x, labels)
    strided = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert content_digest(strided, labels) == digest
    assert content_digest(torch.zeros(2, 3)) == content_digest(-torch.zeros(2, 3))
    changed = x.clone()
    changed[3, 1, 2, 2] = torch.nextafter(changed[3, 1, 2, 2], torch.tensor(2.0))
    assert content_digest(changed, labels) != digest
    assert content_digest(x.flatten(1), labels) != digest
    assert content_digest(x, labels.flip(0)) != digest
    assert content_digest(x) != digest
    assert content_digest(x.flip(0), labels) != digest


@pytest.mark.parametrize(
    ("images", "labels", "word"),
    [
        (torch.full((2, 1, 2, 2), float("nan")), None, "2 of 2 samples hold NaN"),
        (torch.tensor([[0.0], [float("inf")]]), None, "1 of 2"),
        (torch.full((2, 1, 2, 2), 3.0), None, r"\[-1, 1\]"),
        (torch.zeros(0, 1, 2, 2), None, "expected"),
        (torch.zeros(2, 2, 2), None, "expected"),
        (torch.zeros(2, 2, dtype=torch.float64), None, "float32"),
        (torch.zeros(2, 2), torch.zeros(3, dtype=torch.int64), "labels"),
        (torch.zeros(2, 2), torch.zeros(2), "labels"),
        (torch.zeros(2, 2), torch.tensor([0, -1]), "from 0"),
    ],
)
def test_a_data_set_refuses_what_is_none(images, labels, word):
    with pytest.raises(DataError, match=word):
        DataSet(images, labels)


def test_describe_counts_and_measures():
    images = torch.tensor([-1.0, 0.0, 0.5, 1.0]).reshape(4, 1, 1, 1)
    summary = describe(DataSet(images, torch.tensor([0, 2, 2, 2]), "four", ("a", "b", "c")))
    assert summary["class_counts"] == {"a": 1, "b": 0, "c": 3}
    assert (summary["name"], summary["count"], summary["shape"]) == ("four", 4, [1, 1, 1])
    assert (summary["min"], summary["max"]) == (-1, 1)
    assert summary["mean"] == pytest.approx(0.125, abs=1e-15)
    assert summary["std"] == pytest.approx(np.std([-1.0, 0.0, 0.5, 1.0]), abs=1e-15)
    assert len(summary["digest"]) == 64
    assert describe(load("digits", labels=False))["class_counts"] is None


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 40), batch=st.integers(1, 50), seed=st.integers(0, 2**31), epochs=st.integers(1, 3))
def test_every_epoch_is_a_permutation(n, batch, seed, epochs):
    steps = -(-n * epochs // batch)
    stream = torch.cat([batch_indices(n, batch, step, seed) for step in range(steps)])
    for epoch in range(epochs):
        assert torch.equal(stream[epoch * n : (epoch + 1) * n].sort().values, torch.arange(n))


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 40), batch=st.integers(1, 50), step=st.integers(0, 30), seed=st.integers(0, 1000))
def test_a_step_depends_on_seed_and_step_alone(n, batch, step, seed):
    first = batch_indices(n, batch, step, seed)
    batch_indices(n, batch, 0, seed + 1)
    _epoch.cache_clear()
    second = batch_indices(n, batch, step, seed)
    assert torch.equal(first, second)
    assert first.shape == (batch,)
    first.fill_(-1)  # what is handed out is a copy
    assert torch.equal(batch_indices(n, batch, step, seed), second)


def test_the_stream_does_not_depend_on_the_batch_size():
    fine = torch.cat([batch_indices(10, 3, step, 5) for step in range(20)])
    coarse = torch.cat([batch_indices(10, 12, step, 5) for step in range(5)])
    assert torch.equal(fine, coarse)
    assert not torch.equal(fine[:10], fine[10:20])  # epochs differ


@pytest.mark.parametrize("arguments", [(0, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_batch_indices_refuses_bad_counts(arguments):
    with pytest.raises(ArgumentError, match="at least"):
        batch_indices(*arguments)
