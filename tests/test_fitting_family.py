"""Sweeps over sizes and ranks, refinement by expectation maximisation, and the choice of a size."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

from farfield.distributions import GaussianMixture, mixture_fit
from farfield.distributions import mixture_clusters as clustering
from farfield.distributions.mixture_clusters import kmeans
from farfield.distributions.mixture_em import refine
from farfield.distributions.mixture_family import MixtureFamily, choose_components
from farfield.errors import ArgumentError, DataError
from farfield.numerics import covariance_leading, moments
from tests.test_fitting import agreement, blobs, dense

F64 = torch.float64


def agree(first, second, tolerance=1e-9):
    x = torch.randn(5, *first.event_shape, dtype=F64)
    for sigma in (0.1, 1.0):
        torch.testing.assert_close(first(x, sigma), second(x, sigma), atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(first.log_prob(x, sigma), second.log_prob(x, sigma), atol=tolerance, rtol=tolerance)


@pytest.fixture
def counted(monkeypatch):
    """How many eigendecompositions of covariances or products were made, and how many clusterings."""
    calls = {"decompositions": 0, "clusterings": 0}

    def count(name, function):
        def wrapped(*args, **kwargs):
            calls[name] += 1
            return function(*args, **kwargs)

        return wrapped

    for name in ("gram", "dense"):
        monkeypatch.setattr(moments, name, count("decompositions", getattr(covariance_leading, name)))
    monkeypatch.setattr(torch.linalg, "eigh", count("eigh", torch.linalg.eigh))
    calls["eigh"] = 0
    from farfield.distributions import mixture_family

    monkeypatch.setattr(mixture_family, "kmeans", count("clusterings", kmeans))
    return calls


# -- families ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tail": "zero"},
        {"floor": 0.05},
        {"shrinkage": 0.2},
        {"tail": "zero", "jitter": 0.1, "correction": 1},
        {"shared_basis": True},
    ],
)
@pytest.mark.parametrize("largest", [None, 7])
def test_a_family_makes_the_mixtures_of_single_fits(options, largest):
    # At 20 components some clusters have fewer points than coordinates.
    x = torch.randn(150, 3, 4, dtype=F64) * torch.arange(1, 5) + 1
    family = MixtureFamily(x, rank=largest, **options)
    for size in (1, 4, 20):
        for rank in (0, 2, 5, None):
            expected = GaussianMixture.fit(x, size, largest if rank is None else rank, **options)
            law = family.mixture(size, rank)
            assert law.components == expected.components
            torch.testing.assert_close(dense(law), dense(expected), atol=1e-9, rtol=1e-9)
            torch.testing.assert_close(law.weights_, expected.weights_)
            agree(law, expected)


def test_a_sweep_decomposes_once_a_component(counted):
    x, _ = blobs(d=30, each=20)
    family = MixtureFamily(x)
    laws = {(k, r): law for k, r, law in family.sweep((1, 3, 6), (1, 2, 8, None))}
    assert len(laws) == 12
    assert counted["decompositions"] == sum(laws[k, None].components for k in (1, 3, 6)) == 10
    # And nothing else does: the counter of the library's own function agrees.
    assert counted["eigh"] == 10
    assert counted["clusterings"] == 3
    assert [laws[6, r].rank for r in (1, 2, 8)] == [1, 2, 8]


def test_a_shared_basis_is_one_decomposition_for_all_sizes(counted):
    x, _ = blobs(d=30, each=20)
    family = MixtureFamily(x, rank=20, shared_basis=True)
    assert len(list(family.sweep((1, 3, 6), (1, 8, 20)))) == 9
    assert counted["decompositions"] == 1
    assert counted["clusterings"] == 3


def test_memory_is_counted_and_released():
    x, _ = blobs(d=30, each=20, dtype=torch.float32)
    family = MixtureFamily(x)
    assert family.held() == 0
    family.mixture(6, 3)
    labels, held = 8 * len(x), family.held()
    # Clusters of fewer points than coordinates: at most the size of the data, and means, values, labels, centres.
    assert x.numel() * 4 * 0.9 < held < x.numel() * 4 + 3 * 6 * 30 * 4 + 8 * len(x) + labels
    family.release(6)
    assert labels <= family.held() <= labels + 6 * 30 * 8
    list(family.sweep((3, 6), (2,)))
    assert not family._parts
    family.mixture(3)
    list(family.sweep((3,), (2,)))
    assert list(family._parts) == [3]
    family.release()
    assert not family._parts


def test_bad_arguments_of_families():
    x = torch.randn(20, 5)
    family = MixtureFamily(x, rank=3)
    for wrong in (4, -1, 0.5):
        with pytest.raises(ArgumentError, match="rank"):
            family.mixture(2, wrong)
    for wrong in (0, 21):
        with pytest.raises(ArgumentError, match="components"):
            family.mixture(wrong)
    with pytest.raises(ArgumentError, match="components"):
        MixtureFamily(x, warm=(2, 50))
    with pytest.raises(ArgumentError, match="rank"):
        MixtureFamily(x, rank=0.9)


def inertia(x, labels):
    return sum(float((x[labels == k] - x[labels == k].mean(0)).square().sum()) for k in torch.unique(labels))


@pytest.mark.parametrize("rotate", [False, True])
def test_a_warm_chain_starts_from_the_centres_before(rotate, monkeypatch, counted):
    monkeypatch.setattr(clustering, "_ROTATE", 1 if rotate else 1 << 16)
    x, truth = blobs(count=12, each=60, d=40, dtype=torch.float32)
    chain, cold = MixtureFamily(x, rank=2, warm=(12, 3, 6)), MixtureFamily(x, rank=2)
    last = chain.labels(12)
    assert counted["clusterings"] == 3
    assert agreement(last, truth) == 1.0
    for size in (3, 6, 12):
        # Asked for in another order, the chain is the same; and it is about as good as clusters of their own.
        assert torch.equal(MixtureFamily(x, rank=2, warm=(3, 6, 12)).labels(size), chain.labels(size))
        assert inertia(x, chain.labels(size)) < 1.3 * inertia(x, cold.labels(size))
    # Sizes outside of the chain follow the published protocol.
    assert torch.equal(chain.labels(5), clustering.clusters(x, 5))
    assert torch.equal(chain.labels(3), cold.labels(3))


# -- expectation maximisation -----------------------------------------------------------------------------------------


def overlapping(n=400, d=8, dtype=F64):
    centres = 1.5 * torch.randn(3, d, dtype=dtype)
    factors = torch.randn(3, d, 2, dtype=dtype)
    k = torch.randint(3, (n,))
    low = torch.einsum("nde,ne->nd", factors[k], torch.randn(n, 2, dtype=dtype))
    return centres[k] + low + 0.4 * torch.randn(n, d, dtype=dtype)


@pytest.mark.parametrize("rank", [0, 2, None])
@pytest.mark.parametrize("shared_basis", [False, True])
def test_no_iteration_lowers_the_likelihood(rank, shared_basis):
    """Tipping & Bishop 1999; the E-step is ``GaussianMixture.weights``, the M-step a weighted decomposition."""
    x = overlapping()
    start = GaussianMixture.fit(x, 3, rank, shared_basis=shared_basis)
    found = refine(start, x, 12, shared_basis=shared_basis)
    history = found.log_likelihood
    assert len(history) == 13
    assert all(b >= a - 1e-9 for a, b in itertools.pairwise(history))
    assert history[-1] > history[0] + 1e-3
    # What is reported is what the mixtures themselves say.
    assert history[0] == pytest.approx(float(start.log_prob(x).mean()), abs=1e-9)
    assert history[-1] == pytest.approx(float(found.mixture.log_prob(x).mean()), abs=1e-9)
    assert found.mixture.rank == start.rank
    assert GaussianMixture.fit(x, 3, rank, shared_basis=shared_basis, refine=12).log_prob(x).mean() == pytest.approx(
        history[-1], abs=1e-9
    )


def test_the_maximum_is_that_of_scikit_learn():
    from sklearn.mixture import GaussianMixture as Reference

    x = overlapping(500, 4)
    start = GaussianMixture.fit(x, 3)
    found = refine(start, x, 200, tolerance=1e-12)
    model = Reference(
        3, tol=1e-12, max_iter=500, reg_covar=0.0, weights_init=start.weights_.numpy(), means_init=start.means.numpy(),
        precisions_init=torch.linalg.inv(dense(start)).numpy(),
    ).fit(x.numpy())  # fmt: skip
    assert found.log_likelihood[-1] == pytest.approx(model.score(x.numpy()), abs=1e-6)
    order = torch.cdist(torch.from_numpy(model.means_), found.mixture.means).argmin(0)
    torch.testing.assert_close(dense(found.mixture), torch.from_numpy(model.covariances_)[order], atol=1e-3, rtol=1e-3)


def test_one_component_is_refined_at_once():
    x = overlapping()
    start = GaussianMixture.fit(x, 1, rank=3)
    found = refine(start, x, 5, tolerance=1e-6)
    assert len(found.log_likelihood) == 2
    torch.testing.assert_close(dense(found.mixture), dense(start))


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_few_points_a_component_and_collapse(dtype):
    """Fewer points than coordinates, point masses and duplicates stay finite above a floor."""
    x = torch.cat((overlapping(30, 40, dtype), 30 + torch.zeros(2, 40, dtype=dtype)))
    for rank in (None, 3):
        found = refine(GaussianMixture.fit(x, 6, rank), x, 6)
        history = found.log_likelihood
        assert all(math.isfinite(v) for v in history)
        slack = 1e-9 if dtype == F64 else 1e-3
        assert all(b >= a - slack * abs(a) for a, b in itertools.pairwise(history))
        assert found.mixture.means.dtype == dtype
        variance = float(x.double().flatten(1).var(0, correction=0).mean())
        assert found.mixture.smallest == pytest.approx(1e-6 * variance, rel=1e-2)
    assert refine(GaussianMixture.fit(x, 6), x, 3, floor=0.01).mixture.smallest >= 0.01 * (1 - 1e-12)


def test_refinement_reads_maps_and_refuses_what_it_cannot_use(tmp_path):
    x = overlapping(200, 6, torch.float32).view(-1, 2, 3)
    np.save(tmp_path / "x.npy", x.numpy())
    law = GaussianMixture.fit(x, 3, rank=2)
    mapped = refine(law, np.load(tmp_path / "x.npy", mmap_mode="r"), 3)
    assert mapped.log_likelihood == pytest.approx(refine(law, x, 3).log_likelihood, rel=1e-7)
    assert mapped.mixture.event_shape == (2, 3)
    with pytest.raises(ArgumentError, match="data"):
        refine(law, x.flatten(1))
    for options in ({"iterations": -1}, {"tolerance": -1.0}, {"floor": -1.0}):
        with pytest.raises(ArgumentError, match=next(iter(options))):
            refine(law, x, **options)
    with pytest.raises(DataError, match="finite"):
        refine(law, x * math.nan)
    with pytest.raises(ArgumentError, match="tail"):
        GaussianMixture.fit(x, 3, rank=2, tail="zero", refine=1)
    same = torch.ones(4, 3)
    with pytest.raises(ArgumentError, match="floor"):
        refine(GaussianMixture.fit(same, 1), same)


# -- the choice of a size ---------------------------------------------------------------------------------------------


def test_held_out_likelihood_finds_the_number_of_clusters():
    """gaussian_score section 8 item 8: a cross-validated choice; at a level far above their distance, one is enough."""
    x, _ = blobs(count=4, each=150, d=5)
    order = torch.randperm(len(x))
    x, others = x[order[:450]], x[order[450:]]
    near = choose_components(x, (1, 2, 4, 8, 30), rank=None, heldout=others, sigma=0.1)
    assert near.components in (4, 8)
    by_size = {s.components: s for s in near.scores}
    assert by_size[4].log_likelihood > by_size[2].log_likelihood > by_size[1].log_likelihood
    assert by_size[30].deficit > 2 * by_size[30].deficit_error > 0
    assert by_size[near.components].deficit == 0
    far = choose_components(x, (1, 4, 30), heldout=others, sigma=200.0)
    spread = max(s.log_likelihood for s in far.scores) - min(s.log_likelihood for s in far.scores)
    assert spread < 1e-3
    json.dumps(near.to_dict(), allow_nan=False)


def test_the_score_is_the_likelihood_of_noised_points():
    x, others = torch.randn(80, 2, 3), torch.randn(300, 2, 3)
    found = choose_components(MixtureFamily(x), (2,), heldout=others, sigma=0.7, seed=3)
    from farfield.numerics import streams

    noise = streams.normal(3, range(300), (2, 3), purpose="held-out noise")
    expected = GaussianMixture.fit(x, 2).log_prob(others + 0.7 * noise, 0.7)
    assert found.scores[0].log_likelihood == pytest.approx(float(expected.mean()), abs=1e-6)
    assert found.to_dict()["sigma"] == 0.7


def test_ranks_are_chosen_too_and_a_fraction_is_held_out(counted):
    x = overlapping(300, 12)
    found = choose_components(x, (3, 1), rank=(0, 2, 11), heldout=0.2, sigma=0.05, seed=1)
    assert (found.components, found.rank) in {(3, 2), (3, 11)}
    assert len(found.scores) == 6
    assert counted["decompositions"] == 4
    assert found == choose_components(x.numpy(), (3, 1), rank=(0, 2, 11), heldout=0.2, sigma=0.05, seed=1)
    for options in ({"sigma": 0.0}, {"heldout": 1.5}, {"candidates": ()}, {"heldout": x[:0]}):
        arguments = {"candidates": (2,)} | options
        with pytest.raises((ArgumentError, DataError), match=next(iter(options)).replace("heldout", "held-?out")):
            choose_components(x, **arguments)
    with pytest.raises(ArgumentError, match="heldout"):
        choose_components(MixtureFamily(x), (2,), heldout=0.5)


def test_progress_is_shown_for_long_fits(monkeypatch):
    shown = []

    def track(items, total, description, threshold=5000):
        shown.append((description, total >= threshold))
        return iter(items)

    monkeypatch.setattr(mixture_fit, "track", track)
    x = torch.randn(150, 2)
    GaussianMixture.fit(x, 150)
    GaussianMixture.fit(x, 3)
    assert shown == [("covariances", True), ("covariances", False)]
