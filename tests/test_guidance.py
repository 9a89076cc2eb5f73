"""Guidance: corrected outputs, their cost, and the closed form of guided Gaussians."""

import math

import pytest
import torch

from farfield.denoiser import Denoiser
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError
from farfield.numerics.spectrum import Spectrum
from farfield.sampling import (
    PLANNED,
    AtLastLevel,
    ClassifierFree,
    ClassTeleport,
    DynamicThreshold,
    FunctionGuidance,
    GuidedGaussian,
    Jump,
    Sampler,
    Teleport,
    karras,
)
from farfield.sampling.guided_gaussian import common_basis, guided_gains
from farfield.sampling.reference_ode import reference_path
from farfield.sampling.solvers import Whitened

F64 = torch.float64


def rotation(dim, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=F64))[0]


BASIS = rotation(4, 1)
NULL = Gaussian(torch.tensor([0.1, 0.0, -0.2, 0.3], dtype=F64), Spectrum.low_rank(BASIS, [30.0, 4.0, 0.8, 0.05]))
CATS = Gaussian(torch.tensor([1.1, -0.5, 0.2, 0.0], dtype=F64), Spectrum.low_rank(BASIS, [12.0, 5.0, 0.5, 0.02]))
DOGS = Gaussian(
    torch.tensor([-0.9, 0.5, 0.4, 0.6], dtype=F64), Spectrum.low_rank(rotation(4, 2), [20.0, 2.0, 1.0, 0.1])
)


class Conditional(Denoiser):
    """Two classes and none, each a Gaussian; counts its calls by row and notes where they were made."""

    label_dim = 2

    def __init__(self):
        super().__init__((4,))
        self.levels = []

    def forward(self, x, sigma, labels=None, **condition):
        self.levels.append(float(sigma))
        if labels is None:
            return NULL(x, sigma)
        laws = {-1: NULL, 0: CATS, 1: DOGS}
        rows = [laws[int(c)](x[k : k + 1], sigma) for k, c in enumerate(labels.tolist())]
        return torch.cat(rows)


def states(n=3, sigma=80.0):
    generator = torch.Generator().manual_seed(0)
    return sigma * torch.randn(n, 4, generator=generator, dtype=F64)


# -- classifier-free guidance ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", sorted(PLANNED))
@pytest.mark.parametrize("interval", [None, (0.3, 9.0), (0.0, karras(7)[3]), (100.0, 200.0)])
@pytest.mark.parametrize("finish", [Jump(0.1), AtLastLevel()])
def test_evaluations_are_known_and_counted(solver, interval, finish):
    """Two evaluations inside the interval, one outside; Heun's second one is at another level than its first."""
    sampler, model = Sampler(solver, karras(7), guidance=ClassifierFree(2.5, interval), finish=finish), Conditional()
    out = sampler.run(model, states(), labels=torch.tensor([0, 1, -1]), trajectory=True)
    assert out.nfe == sampler.nfe == len(model.levels) == out.trajectory.nfe[-1]
    low, high = interval or (0.0, math.inf)
    visits = sampler.visits()
    assert out.nfe == len(visits) + sum(low < s <= high for s in visits)
    assert all(model.levels.count(s) == visits.count(s) * (2 if low < s <= high else 1) for s in set(visits))


@pytest.mark.parametrize("solver", sorted(PLANNED))
def test_scale_one_is_no_guidance_to_the_bit(solver):
    labels = torch.tensor([0, 1, 0])
    plain = Sampler(solver, karras(6)).run(Conditional(), states(), labels=labels)
    guided = Sampler(solver, karras(6), guidance=ClassifierFree(1.0)).run(Conditional(), states(), labels=labels)
    assert torch.equal(plain.x, guided.x)
    assert plain.nfe == guided.nfe
    alone = Sampler(solver, karras(6)).run(Conditional(), states())
    off = Sampler(solver, karras(6), guidance=ClassifierFree(0.0)).run(Conditional(), states(), labels=labels)
    torch.testing.assert_close(off.x, alone.x, rtol=1e-12, atol=1e-12)


def test_the_solver_sees_the_guided_field():
    """A fine run under guidance ends where the flow of the guided pair does, row by row (gaussian_score section 2.18)."""
    guide = ClassifierFree(2.0)
    grid = karras(500, 0.1, 80.0)
    x = states(2)
    out = Sampler("heun", grid, guidance=guide, finish=AtLastLevel()).run(Conditional(), x, labels=torch.tensor([0, 1]))
    for k, law in enumerate((CATS, DOGS)):
        expected = GuidedGaussian(law, NULL, guide).flow(x[k : k + 1], 80.0, 0.1, steps=300)
        torch.testing.assert_close(out.x[k : k + 1], expected, rtol=1e-3, atol=1e-3)


def test_null_label():
    """A class number for "no class" is passed to the model."""
    seen = []

    class Model(Conditional):
        def forward(self, x, sigma, labels=None, **condition):
            seen.append(None if labels is None else labels.tolist())
            return super().forward(x, sigma, None if labels is None else labels.clamp(max=1))

    guide = ClassifierFree(2.0, null_label=7)
    Sampler("euler", [3.0], guidance=guide).run(Model(), states(2), labels=torch.tensor([0, 1]))
    assert seen == [[0, 1], [7, 7]]


# -- other guidance ----------------------------------------------------------------------------------------------------


def test_functions_in_order():
    """Each function sees what the one before made of D; states, levels and outputs are those of the run."""
    x, seen = states(2), []

    def note(at, sigma, d):
        seen.append((at.clone(), sigma, d.clone()))
        return d + 1

    out = Sampler("euler", [9.0, 3.0], guidance=(note, lambda at, sigma, d: 2 * d)).run(NULL, x, trajectory=True)
    torch.testing.assert_close(out.trajectory.denoised[0], 2 * (NULL(x, 9.0) + 1))
    assert torch.equal(seen[0][0], x)
    assert [s for _, s, _ in seen] == [9.0, 3.0]
    assert out.nfe == 2


def test_classifier_guidance_as_a_function():
    """D + σ² ∇ log p(y | x): a Gaussian tilted towards a point is a Gaussian, and a fine run samples it."""
    law, pull = Gaussian(torch.zeros(1, dtype=F64), torch.ones(1, 1, dtype=F64)), 0.8
    # log p(y | x, σ) of an observation y = x₀ + noise of variance 1 at y = pull, with x₀ given x known in closed form.
    tilted = Gaussian(torch.tensor([pull / 2], dtype=F64), torch.tensor([[0.5]], dtype=F64))

    def towards(x, sigma, d):
        spread = 1 + sigma * sigma / (1 + sigma * sigma)
        return d + sigma * sigma * (pull - d) / spread / (1 + sigma * sigma)

    x = torch.tensor([[50.0], [-30.0]], dtype=F64)
    out = Sampler("heun", karras(200, 0.01, 80.0), guidance=towards, finish=AtLastLevel()).run(law, x)
    torch.testing.assert_close(out.x, tilted.flow(x, 80.0, 0.01), rtol=1e-3, atol=1e-3)


def test_dynamic_threshold():
    d = torch.cat((torch.linspace(-0.9, 0.9, 200), torch.linspace(-3, 3, 200))).view(2, 2, 100).to(F64)
    ask = None
    out = DynamicThreshold(0.5).correct(d, 1.0, d, ask)  # type: ignore[arg-type]
    assert torch.equal(out[0], d[0])
    s = d[1].flatten().abs().sort().values[99]
    torch.testing.assert_close(out[1], d[1].clamp(-s, s) / s)
    assert DynamicThreshold().evaluations(1.0) == 0


# -- guided Gaussians --------------------------------------------------------------------------------------------------

PAIRS = {
    "shared basis": (CATS, NULL),
    "low rank": (CATS, Gaussian(NULL.mean, Spectrum.low_rank(BASIS[:, :2], [9.0, 2.0], tail=0.3))),
    "isotropic": (CATS, Gaussian(NULL.mean, Spectrum.isotropic(4, 0.7))),
    "diagonal": (
        Gaussian(CATS.mean, Spectrum.diagonal([4.0, 3.0, 0.5, 0.1])),
        Gaussian(NULL.mean, Spectrum.diagonal([1.0, 6.0, 0.0, 0.2])),
    ),
    "cosine": (
        Gaussian(CATS.mean.view(2, 2), Spectrum.dct((2, 2), [4.0, 3.0, 0.5, 0.1])),
        Gaussian(NULL.mean.view(2, 2), Spectrum.dct((2, 2), [6.0, 1.0, 1.5, 0.2])),
    ),
}


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("scale", [3.0, 0.4, -1.0])
def test_guided_flow_in_closed_form(kind, scale):
    """Gaussian_score section 2.18: a shared eigenbasis gives a linear flow, here against the integrated equation."""
    conditional, null = PAIRS[kind]
    law = GuidedGaussian(conditional, null, ClassifierFree(scale))
    x = states().view(3, *law.event_shape)
    exact = reference_path(law, x, [80.0, 1.5], rtol=1e-11, atol=1e-11).states[-1]
    torch.testing.assert_close(law.flow(x, 80.0, 1.5), exact, rtol=1e-8, atol=1e-8)


def test_guided_flow_of_equal_means_is_a_product_of_powers():
    """G = ((b² + λ_n)/(a² + λ_n))^{(1−w)/2} ((b² + λ_c)/(a² + λ_c))^{w/2}; equal covariances move the mean to μ_n + w δ."""
    cond, null = torch.tensor([4.0], dtype=F64), torch.tensor([1.0], dtype=F64)
    gain, _ = guided_gains(cond, null, 80.0, 2.0, 3.0)
    assert float(gain) == pytest.approx((5 / 6401) ** -1 * (8 / 6404) ** 1.5, rel=1e-14)
    gain, kappa = guided_gains(cond, cond, 80.0, 2.0, 3.0)
    assert float(gain) == pytest.approx(math.sqrt(8 / 6404), rel=1e-14)
    assert float(kappa) == pytest.approx(3 * (1 - math.sqrt(8 / 6404)), rel=1e-13)
    law = Gaussian(NULL.mean + 3 * (CATS.mean - NULL.mean), NULL.spectrum)
    guided = GuidedGaussian(Gaussian(CATS.mean, NULL.spectrum), NULL, ClassifierFree(3.0))
    torch.testing.assert_close(guided.flow(states(), 80.0, 0.5), law.flow(states(), 80.0, 0.5), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(guided(states(), 80.0), guided(states(), torch.tensor(80.0, dtype=F64)))


@pytest.mark.parametrize(("steps", "error"), [(32, 2e-4), (128, 4e-6)])
def test_guided_flow_of_covariances_that_do_not_commute(steps, error):
    assert common_basis(DOGS.spectrum, NULL.spectrum) is None
    law = GuidedGaussian(DOGS, NULL, ClassifierFree(1.5))
    exact = reference_path(law, states(), [80.0, 6.0], rtol=1e-11, atol=1e-11).states[-1]
    found = law.flow(states(), 80.0, 6.0, steps=steps)
    assert float((found - exact).norm() / exact.norm()) < error


def test_guided_flow_inside_an_interval():
    """Outside the interval the conditional Gaussian's own flow, inside the guided one."""
    guide = ClassifierFree(2.5, (3.0, 20.0))
    law, inside = GuidedGaussian(CATS, NULL, guide), GuidedGaussian(CATS, NULL, ClassifierFree(2.5))
    expected = CATS.flow(inside.flow(CATS.flow(states(), 80.0, 20.0), 20.0, 3.0), 3.0, 1.0)
    torch.testing.assert_close(law.flow(states(), 80.0, 1.0), expected, rtol=1e-12, atol=1e-12)
    x, s = states(4, 5.0), torch.tensor([30.0, 20.0, 3.0, 10.0], dtype=F64)
    rows = torch.cat([law(x[k : k + 1], float(s[k])) for k in range(4)])
    torch.testing.assert_close(law(x, s), rows)
    torch.testing.assert_close(law(x[:1], 30.0), CATS(x[:1], 30.0))


def test_shared_bases_are_found():
    a = Spectrum.low_rank(BASIS, [30.0, 4.0, 0.8, 0.05])
    flipped = Spectrum.low_rank(-BASIS[:, [2, 0]], [7.0, 3.0], tail=0.2)
    for first, second in ((a, flipped), (flipped, a)):
        found = common_basis(first, second)
        dense = [
            found.basis.filter(torch.eye(4, dtype=F64), v, t) for v, t in zip(found[1:3], found.tails, strict=True)
        ]
        torch.testing.assert_close(dense[0], first.dense())
        torch.testing.assert_close(dense[1], second.dense())
    assert common_basis(a, Spectrum.diagonal([1.0, 2.0, 3.0, 4.0])) is None
    channels = rotation(2, 3)
    rotated = Spectrum.dct((2, 1, 2), [1.0, 2.0, 3.0, 4.0], channels)
    assert common_basis(rotated, Spectrum.dct((2, 1, 2), [1.0, 2.0, 3.0, 4.0])) is None
    assert common_basis(rotated, Spectrum.dct((2, 1, 2), [4.0, 2.0, 3.0, 4.0], channels)) is not None


# -- teleports under guidance ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [None, 1.0, 2.5])
def test_teleport_by_class_is_exact_on_guided_gaussians(scale):
    """Zero evaluations, and the very state of the guided equation at σ_skip; rows without a class take the pooled law."""
    guidance = () if scale is None else (ClassifierFree(scale),)
    start = ClassTeleport((CATS, DOGS), NULL, 6.0)
    labels = torch.tensor([1, -1, 0, 1])
    z = states(4, 1.0)
    found = start.state(z, 80.0, NULL.process, {"labels": labels}, guidance)
    for k, c in enumerate(labels.tolist()):
        law = {-1: NULL, 0: CATS, 1: DOGS}[c]
        guided = law if scale is None or c < 0 else GuidedGaussian(law, NULL, ClassifierFree(scale))
        exact = reference_path(guided, 80 * z[k : k + 1], [80.0, 6.0], rtol=1e-11, atol=1e-11).states[-1]
        torch.testing.assert_close(found[k : k + 1], exact, rtol=2e-4, atol=2e-4)
    rows = torch.nn.functional.one_hot(labels.clamp(min=0), 2).double() * (labels >= 0)[:, None]
    torch.testing.assert_close(start.state(z, 80.0, NULL.process, {"labels": rows}, guidance), found)
    torch.testing.assert_close(start.state(z, 80.0, NULL.process), NULL.flow(80 * z, 80.0, 6.0))


def test_guided_sampler_from_a_teleport_by_class():
    """The run under guidance from its teleport ends where the run from the top does, with fewer evaluations."""
    model, labels = Conditional(), torch.tensor([0, 0, 0])
    fine = Sampler(
        Whitened(3), karras(200, 0.05, 80.0), covariance=CATS, guidance=ClassifierFree(2.0), finish=AtLastLevel()
    )
    short = Sampler(
        Whitened(3), karras(200, 0.05, 80.0), ClassTeleport((CATS, DOGS), NULL, 4.0, "truncate"),
        covariance=CATS, guidance=ClassifierFree(2.0), finish=AtLastLevel(),
    )  # fmt: skip
    a, b = (s(model, 3, seed=1, dtype=F64, labels=labels) for s in (fine, short))
    torch.testing.assert_close(b.x, a.x, rtol=1e-4, atol=1e-4)
    assert b.nfe == short.nfe == 2 * (len(short.levels) - 1) < a.nfe


# -- JSON and refusals -------------------------------------------------------------------------------------------------


def test_json_round_trip():
    sampler = Sampler(
        "heun", karras(5), Teleport(NULL, 9.0), guidance=(ClassifierFree(2.0, (0.1, 9.0)), DynamicThreshold())
    )
    again = Sampler.from_json(sampler.to_json())
    assert again.guidance == sampler.guidance
    assert again.nfe == sampler.nfe
    with pytest.raises(ArgumentError, match="guided by a function"):
        Sampler(guidance=lambda x, sigma, d: d).to_json()
    with pytest.raises(ArgumentError, match="unknown guidance 'classifier'"):
        Sampler.from_json(sampler.to_json().replace("classifier_free", "classifier"))


def test_refusals():
    with pytest.raises(ArgumentError, match="labels are missing"):
        Sampler(guidance=ClassifierFree(2.0)).run(Conditional(), states())
    with pytest.raises(ArgumentError, match="guidance is a float"):
        Sampler(guidance=2.0)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="guidance holds a str"):
        Sampler(guidance=("strong",))  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="interval ="):
        ClassifierFree(2.0, (3.0, 1.0))
    with pytest.raises(ArgumentError, match="scale = nan"):
        ClassifierFree(math.nan)
    with pytest.raises(ArgumentError, match=r"guidance returned shape \(2,\); expected \(3, 4\)"):
        Sampler("euler", guidance=FunctionGuidance(lambda x, sigma, d: d[:2, 0])).run(NULL, states())
    with pytest.raises(ArgumentError, match="expected 0 < sigma_to <= sigma_from"):
        GuidedGaussian(CATS, NULL, ClassifierFree(2.0)).flow(states(), 1.0, 2.0)
    with pytest.raises(ArgumentError, match="has Gaussians for 0 to 1"):
        ClassTeleport((CATS, DOGS), NULL, 6.0).state(states(2), 80.0, NULL.process, {"labels": torch.tensor([0, 2])})
    with pytest.raises(ArgumentError, match="two classifier-free guidances"):
        ClassTeleport((CATS, DOGS), NULL, 6.0).state(
            states(2), 80.0, NULL.process, {"labels": torch.tensor(0)}, [ClassifierFree(2.0)] * 2
        )
    with pytest.raises(ArgumentError, match="not a Gaussian of shape"):
        ClassTeleport((CATS, Gaussian(torch.zeros(3), torch.eye(3))), NULL, 6.0)
