"""Teleports along other laws than one Gaussian: mixtures, the training set, chains of laws, and one Gaussian a class."""

import pytest
import torch

from farfield.distributions import Empirical, Gaussian, GaussianMixture
from farfield.errors import ArgumentError
from farfield.numerics.spectrum import Spectrum
from farfield.sampling import (
    PLANNED,
    AtLastLevel,
    ClassifierFree,
    ClassTeleport,
    LawTeleport,
    Sampler,
    Teleport,
    karras,
)
from farfield.sampling.class_start import on_basis_of
from farfield.sampling.law_flow import law_flow
from farfield.sampling.reference_ode import reference_path
from farfield.sampling.solvers import Whitened

F64 = torch.float64
MIXTURE = GaussianMixture(
    [0.3, 0.5, 0.2],
    torch.tensor([[1.0, 0.0], [-0.5, 1.2], [-0.8, -1.0]], dtype=F64),
    torch.stack([torch.diag(torch.tensor(v, dtype=F64)) for v in ([0.3, 0.2], [0.05, 0.5], [0.1, 0.1])]),
)
DRAWS = MIXTURE.sample(4000, torch.Generator().manual_seed(0))
GAUSSIAN = Gaussian.fit(DRAWS)


def states(n=6):
    return 80 * torch.randn(n, 2, dtype=F64, generator=torch.Generator().manual_seed(1))


# -- another law -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gaussian", [None, GAUSSIAN])
def test_the_flow_of_a_mixture(gaussian):
    """Against an adaptive integrator; third order in the number of steps."""
    exact = reference_path(MIXTURE, states(), [80.0, 1.0], rtol=1e-11, atol=1e-11).states[-1]
    errors = [
        float((law_flow(MIXTURE, states(), 80.0, 1.0, steps=n, gaussian=gaussian) - exact).norm()) for n in (24, 48, 96)
    ]
    assert errors[2] < 1e-4
    assert errors[0] > 4 * errors[1] > 16 * errors[2]
    assert torch.equal(law_flow(MIXTURE, states(), 3.0, 3.0), states())


@pytest.mark.parametrize("solver", sorted(PLANNED))
@pytest.mark.parametrize("policy", ["truncate", "regrid"])
def test_teleport_by_mixture(solver, policy):
    """No evaluation of the network, and a lower level than the Gaussian can reach (gaussian_score A.7)."""
    grid = karras(60, 0.02, 80.0)
    fine = Sampler(Whitened(3), karras(300, 0.02, 80.0), covariance=GAUSSIAN)
    wanted = fine(MIXTURE, 16, seed=2, dtype=F64).x
    errors = []
    for start in (LawTeleport(MIXTURE, 0.8, policy, GAUSSIAN, steps=96), Teleport(GAUSSIAN, 0.8, policy)):
        sampler = Sampler(solver, grid, start)
        out = sampler(MIXTURE, 16, seed=2, dtype=F64)
        assert out.nfe == sampler.nfe
        errors.append(float((out.x - wanted).square().mean().sqrt()))
    full = Sampler(solver, grid)
    if policy == "truncate":
        assert Sampler(solver, grid, start).nfe < 0.8 * full.nfe
    assert errors[0] < 0.5 * errors[1]


def test_chain_of_laws():
    """Gaussian → mixture → network, with two switch levels: as exact as the mixture all the way, for far-field switches."""
    end = reference_path(MIXTURE, states(), [80.0, 1.0], rtol=1e-11, atol=1e-11).states[-1]
    z, process = states() / 80, MIXTURE.process
    errors = {
        switch: float(
            (LawTeleport(MIXTURE, 1.0, "regrid", GAUSSIAN, switch, 64).state(z, 80.0, process) - end).abs().max()
        )
        for switch in (None, 40.0, 10.0, 2.0, 1.0)
    }
    assert errors[40.0] < 2 * errors[None] + 1e-4
    assert errors[None] < errors[10.0] < 5e-3 < errors[2.0] < errors[1.0]
    torch.testing.assert_close(
        LawTeleport(MIXTURE, 1.0, "regrid", GAUSSIAN, 1.0).state(z, 80.0, process), GAUSSIAN.flow(states(), 80.0, 1.0)
    )


def test_teleport_by_the_training_set():
    """The exact law of a finite set, of each row's class where the run has labels."""
    labels = (DRAWS[:, 0] > 0).long()
    law = Empirical(DRAWS[:300], labels=labels[:300])
    z = states() / 80
    own = LawTeleport(law, 2.0).state(z, 80.0, law.process, {"labels": torch.tensor([0, 1, 0, 1, 1, 0])})
    for k, c in enumerate((0, 1, 0, 1, 1, 0)):
        single = Empirical(DRAWS[:300][labels[:300] == c])
        exact = reference_path(single, states()[k : k + 1], [80.0, 2.0], rtol=1e-10, atol=1e-10).states[-1]
        torch.testing.assert_close(own[k : k + 1], exact, rtol=1e-3, atol=2e-3)
    # The sampler's guidance acts on the law as well.
    guided = LawTeleport(law, 2.0).state(z, 80.0, law.process, {"labels": torch.ones(6).long()}, [ClassifierFree(2.0)])
    assert float((guided - own)[:, 0].mean()) > 0.05


def test_law_teleports_in_json():
    start = LawTeleport(MIXTURE, 2.0, "truncate", GAUSSIAN, 20.0, 32)
    sampler = Sampler("whitened", karras(8), start, covariance=GAUSSIAN)
    text = sampler.to_json()
    assert text.count('"type": "Gaussian"') == 1
    again = Sampler.from_json(text)
    assert torch.equal(again(MIXTURE, 3, dtype=F64).x, sampler(MIXTURE, 3, dtype=F64).x)
    with pytest.raises(ArgumentError, match="starts from a Empirical cannot be written"):
        Sampler(start=LawTeleport(Empirical(DRAWS[:9]), 2.0)).to_json()
    with pytest.raises(ArgumentError, match="switch = 1.0; expected a level of at least sigma = 2"):  # noqa: RUF043
        LawTeleport(MIXTURE, 2.0, gaussian=GAUSSIAN, switch=1.0)
    with pytest.raises(ArgumentError, match="with a gaussian above it"):
        LawTeleport(MIXTURE, 2.0, switch=9.0)
    with pytest.raises(ArgumentError, match="switch = 90 lies above the grid"):
        Sampler(start=LawTeleport(MIXTURE, 2.0, gaussian=GAUSSIAN, switch=90.0))
    with pytest.raises(ArgumentError, match="steps = 0"):
        LawTeleport(MIXTURE, 2.0, steps=0)
    with pytest.raises(ArgumentError, match=r"GaussianMixture of shape \(2,\); the model's samples have \(3,\)"):
        Sampler(start=LawTeleport(MIXTURE, 2.0))(Gaussian(torch.zeros(3), torch.eye(3)), 1)


# -- one Gaussian a class ----------------------------------------------------------------------------------------------


def labelled():
    generator = torch.Generator().manual_seed(3)
    scale = torch.tensor([3.0, 1.0, 0.5, 0.1], dtype=F64)
    labels = torch.randint(0, 3, (900,), generator=generator)
    images = torch.randn(900, 4, generator=generator, dtype=F64) * scale + labels[:, None]
    keep = (labels != 2) | (torch.arange(900) < 20)
    return images[keep].view(-1, 1, 2, 2), labels[keep]


@pytest.mark.parametrize("basis", ["own", "pooled"])
def test_fit_by_class(basis):
    """Each class has its own mean and variances; one with too few images goes with the pooled Gaussian."""
    images, labels = labelled()
    start = ClassTeleport.fit(images, labels, 5.0, basis=basis, least=16)
    assert start.gaussians[2] is None
    pooled = Gaussian.fit(images)
    for c in (0, 1):
        own, law = Gaussian.fit(images[labels == c]), start.gaussians[c]
        torch.testing.assert_close(law.mean, own.mean)
        if basis == "own":
            torch.testing.assert_close(law.spectrum.dense(), own.spectrum.dense())
        else:
            inside = pooled.spectrum.basis.T @ own.spectrum.dense() @ pooled.spectrum.basis
            along = pooled.spectrum.basis.T @ law.spectrum.dense() @ pooled.spectrum.basis
            torch.testing.assert_close(along, torch.diag(inside.diagonal()))
    z = torch.randn(4, 1, 2, 2, dtype=F64)
    found = start.state(z, 80.0, pooled.process, {"labels": torch.tensor([0, 1, 2, -1])})
    laws = (start.gaussians[0], start.gaussians[1], pooled, pooled)
    for k, law in enumerate(laws):
        torch.testing.assert_close(found[k : k + 1], law.flow(80 * z[k : k + 1], 80.0, 5.0))
    assert all(g is None for g in ClassTeleport.fit(images, labels, 5.0, least=10_000).gaussians)
    with pytest.raises(ArgumentError, match="basis = 'shared'"):
        ClassTeleport.fit(images, labels, 5.0, basis="shared")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="labels have shape"):
        ClassTeleport.fit(images, labels[:3], 5.0)


@pytest.mark.parametrize("guidance", [(), (ClassifierFree(2.0),)])
def test_a_sample_of_a_class_does_not_depend_on_its_batch(guidance):
    """How many neighbours of its class a sample has in its batch does not change its last bit."""
    images = torch.randn(300, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    law = Gaussian.fit(images)
    labels = torch.arange(60) % 9
    sampler = Sampler("euler", karras(4), ClassTeleport((law,) * 9, law, 5.0, "truncate"), guidance=guidance)
    together = sampler(law, 60, seed=3, labels=labels).x
    for size in (1, 2, 23):
        assert torch.equal(sampler(law, 60, seed=3, labels=labels, batch_size=size).x, together)


def test_variances_outside_a_low_rank_basis():
    images, labels = labelled()
    for pooled in (Gaussian.fit(images, rank=2), Gaussian.fit(images, basis="dct"),
                   Gaussian(torch.zeros(1, 2, 2, dtype=F64), Spectrum.diagonal(torch.ones(4, dtype=F64)))):  # fmt: skip
        law = on_basis_of(pooled, images[labels == 0])
        own = Gaussian.fit(images[labels == 0])
        assert law.spectrum.trace == pytest.approx(own.spectrum.trace, rel=1e-9)
        assert law.spectrum.kind == pooled.spectrum.kind


def test_sampling_by_class():
    """A conditional law: from the teleport each row ends where the run from the top ends, and the file keeps the classes."""
    images, labels = labelled()
    start = ClassTeleport.fit(images, labels, 6.0, least=16, grid_policy="truncate")
    laws = [g if g is not None else start.pooled for g in start.gaussians]

    class Model(Gaussian):
        def forward(self, x, sigma, labels=None, **condition):
            if labels is None:
                return super().forward(x, sigma)
            return torch.cat([laws[int(c)](x[k : k + 1], sigma) for k, c in enumerate(labels)])

    model = Model(start.pooled.mean, start.pooled.spectrum)
    wanted = torch.arange(20) % 3
    fine = Sampler(Whitened(3), karras(90, 0.05, 80.0), finish=AtLastLevel())
    short = Sampler(Whitened(3), karras(90, 0.05, 80.0), start, finish=AtLastLevel())
    a, b = (s(model, 20, seed=1, dtype=F64, labels=wanted) for s in (fine, short))
    torch.testing.assert_close(b.x, a.x, rtol=1e-3, atol=1e-3)
    parts = [short(model, n, seed=1, first=f, dtype=F64, labels=wanted[f : f + n]).x for f, n in ((0, 9), (9, 11))]
    torch.testing.assert_close(torch.cat(parts), b.x, rtol=0, atol=1e-10)
    again = Sampler.from_json(short.to_json())
    assert again.start.gaussians[2] is None
    torch.testing.assert_close(again(model, 20, seed=1, dtype=F64, labels=wanted).x, b.x)
