"""Late starts: index grids, DDPM, DDIM and PNDM on them, starts and moments, against closed forms and textbook loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farfield.denoiser import FunctionDenoiser
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError
from farfield.numerics import streams
from farfield.processes import DDPM, VP
from farfield.sampling import (
    Ancestral,
    DDPMNoise,
    LatePrior,
    LateStart,
    NoisedStart,
    Sampler,
    late_gaussian,
    late_sampler,
    late_start_grid,
    moments_memory,
    noised_moments,
    quadratic_grid,
    vanilla_grid,
)
from farfield.sampling.grids import grid_from_dict
from farfield.sampling.late import index_of, sigma_of, vanilla_start
from farfield.sampling.late_moments import NoisedData
from farfield.sampling.legs import Leg
from farfield.sampling.solvers.pndm import PNDM

F64 = torch.float64
TABLE = DDPM()
ALPHA_BAR = torch.cumprod(1 - TABLE.betas, 0)
GAUSSIAN = Gaussian(torch.tensor([0.3], dtype=F64), torch.tensor([[0.25]], dtype=F64))
POINT = torch.tensor([[0.7, -1.2]], dtype=F64)
QUANTILES = torch.special.ndtri((torch.arange(4000, dtype=F64) + 0.5) / 4000)[:, None]


def point() -> FunctionDenoiser:
    """The denoiser of a single data point."""
    return FunctionDenoiser(lambda x, s: POINT.to(x).expand(len(x), -1), (2,))


def final(sampler: Sampler, law: Gaussian) -> torch.Tensor:
    """The samples that the normal quantiles become."""
    state = sampler.start.state(QUANTILES, sampler.grid.levels[0], law.process)
    return sampler.run(law, state).x


@pytest.mark.parametrize(
    ("n", "start", "indices"),
    [
        (10, 400, (0, 44, 88, 133, 177, 222, 266, 311, 355, 400)),
        (5, 500, (0, 125, 250, 375, 500)),
        (5, 400, (0, 100, 200, 300, 400)),
        (3, 300, (0, 150, 300)),
        (10, 999, tuple(range(0, 1000, 111))),
        (1, 400, (400,)),
    ],
)
def test_late_start_grid(n, start, indices):
    """Holds symmetry_breaking F23, and F25's last sentence for one step."""
    grid = late_start_grid(n, start)
    assert grid.indices[::-1] == indices
    assert grid.levels == tuple(TABLE.sigma(float(i)) for i in indices[::-1])
    assert grid.values[-1] == 0


def test_vanilla_and_quadratic_grids():
    """Holds symmetry_breaking F23 and E41: vanilla grids end at 900 and 800, far below the noise."""
    assert vanilla_grid(5).indices == late_start_grid(5, 800).indices
    assert vanilla_grid(10).indices == late_start_grid(10, 900).indices
    assert vanilla_grid(3).indices == (700, 350, 0)
    assert [vanilla_start(n) for n in (10, 5, 3)] == [900, 800, 700]
    assert quadratic_grid(5).indices == (800, 450, 200, 50, 0)
    fine = quadratic_grid(50)
    assert fine.indices[0] == 800
    assert len(set(fine.indices)) == len(fine.indices) < 50
    start = late_sampler("ddim", 5)
    state = start.start.state(torch.ones(1, 1, dtype=F64), start.grid.levels[0], GAUSSIAN.process)
    assert float(state * ALPHA_BAR[800].sqrt()) == pytest.approx(1.0, rel=1e-12)  # N(0, I), not what index 999 makes


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.integers(39, 999))
def test_grid_is_the_truncated_line(n, start):
    """Both ends are there, indices are whole and fall; a grid restarted at its own top is itself."""
    grid = late_start_grid(n, start)
    line = [int(v + 1e-9) for v in np.linspace(0, start, n)]
    assert list(grid.indices[::-1]) == line
    again = grid.starting_at(grid.levels[0])
    assert again == grid
    assert grid_from_dict(grid.to_dict()) == grid


def test_grids_refuse():
    with pytest.raises(ArgumentError, match="s_start"):
        late_start_grid(5, 1000)
    with pytest.raises(ArgumentError, match="n = 5"):
        late_start_grid(5, 3)
    with pytest.raises(ArgumentError, match="sampler"):
        late_sampler("edm", 5)
    with pytest.raises(ArgumentError, match="no index"):
        late_start_grid(5, 400).starting_at(1e6)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 999), st.integers(0, 998), st.floats(-3, 3), st.floats(-3, 3))
def test_transfer_map(i, j, x, e):
    """Holds symmetry_breaking F24: PNDM's transfer map is the DDIM step, and both are Euler's step here."""
    j = min(j, i - 1)
    a, b = float(ALPHA_BAR[i]), float(ALPHA_BAR[j])
    ra, rb, na, nb = math.sqrt(a), math.sqrt(b), math.sqrt(1 - a), math.sqrt(1 - b)
    phi = x + (b - a) * (x / (ra * (ra + rb)) - e / (ra * (math.sqrt((1 - b) * a) + math.sqrt((1 - a) * b))))
    ddim = rb / ra * x + (nb - rb / ra * na) * e
    euler = rb * (x / ra + (TABLE.sigma(float(j)) - TABLE.sigma(float(i))) * e)
    assert phi == pytest.approx(ddim, rel=1e-9, abs=1e-9)
    assert euler == pytest.approx(ddim, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("kind", "errors"), [("ddim", (0.1551, 0.0761, 0.0303)), ("pndm", (7.32e-3, 1.93e-3, 4.50e-4))]
)
def test_order_on_gaussian_data(kind, errors):
    """Holds symmetry_breaking F24: errors against the exact map from index 500."""
    x = torch.tensor([[-2.0], [-1.0], [0.0], [1.0], [2.0]], dtype=F64) / ALPHA_BAR[500].sqrt()
    exact = GAUSSIAN.flow(x, sigma_of(500), 0.0)
    found = [float((late_sampler(kind, n, 500).run(GAUSSIAN, x).x - exact).abs().max()) for n in (10, 20, 50)]
    assert found == pytest.approx(errors, rel=6e-3)


def test_pndm_of_a_constant_noise_is_ddim():
    """Holds symmetry_breaking F24: the weights sum to one."""
    noise = torch.tensor([[0.4, -1.1]], dtype=F64)
    flat = FunctionDenoiser(lambda x, s: x - s * noise.to(x), (2,))
    x = torch.tensor([[3.0, -2.0]], dtype=F64)
    for n in (3, 4, 10):
        pndm, ddim = (late_sampler(kind, n, 500).run(flat, x).x for kind in ("pndm", "ddim"))
        assert torch.allclose(pndm, ddim, rtol=0, atol=1e-12)


def test_pndm_counts_its_evaluations():
    """Holds symmetry_breaking A9 and E24: n steps are not n evaluations; with 3 or fewer the last step is DDIM's."""
    clamped = [Sampler(PNDM(final="clamp"), late_start_grid(n, 500)).nfe for n in (1, 2, 3, 5, 10, 20, 50, 100)]
    assert clamped == [4, 8, 12, 14, 19, 29, 59, 109]
    assert [late_sampler("pndm", n, 500).nfe for n in (1, 2, 3, 4, 10)] == [1, 5, 9, 13, 19]
    calls = []
    law = FunctionDenoiser(lambda x, s: calls.append(float(s.flatten()[0])) or 0.5 * x, (2,))
    sampler = late_sampler("pndm", 5, 400)
    assert sampler.run(law, torch.ones(1, 2)).nfe == len(calls) == 14
    assert calls == pytest.approx(sampler.visits())
    assert calls[1] == pytest.approx(TABLE.sigma(350.0))  # the middle of 400 and 300 by index


def test_pndm_middle_between_two_indices():
    """Holds symmetry_breaking A9.6: log ᾱ is linear in the index, and ᾱ at −1 is 1."""
    rule = PNDM()
    middle = math.exp(0.5 * (math.log(float(ALPHA_BAR[133])) + math.log(float(ALPHA_BAR[134]))))
    assert rule.sigma(133.5) == pytest.approx(math.sqrt(1 / middle - 1), rel=1e-9)
    assert rule.index(0.0) == -1
    assert rule.sigma(-1.0) == 0
    assert rule.sigma(-0.5) == pytest.approx(math.sqrt(float(ALPHA_BAR[0]) ** -0.5 - 1), rel=1e-9)
    for index in (0.0, 0.3, 17.0, 500.5, 999.0, 1003.0):
        assert rule.index(rule.sigma(index)) == pytest.approx(index, abs=1e-7)
    with pytest.raises(ArgumentError, match="final"):
        PNDM(final="heun")  # type: ignore[arg-type]
    assert rule.plan([Leg(2.0, 1.0, 1.0)], POINT)[0].stages


@pytest.mark.parametrize("kind", ["ddim", "ddpm", "pndm", "ancestral"])
def test_point_mass(kind):
    """Holds symmetry_breaking F25: one data point comes back from any state, start and number of steps."""
    x = 4 * streams.normal(0, range(3), (2,), purpose="test", dtype=F64)
    for n, start in ((1, 999), (2, 300), (3, 500), (4, 700), (10, 999)):
        assert torch.allclose(late_sampler(kind, n, start).run(point(), x).x, POINT.expand(3, -1), atol=1e-12)


def test_clamped_pndm_misses_a_point_mass():
    """Holds symmetry_breaking F25: asking at index 0 for the noise of a clean image leaves an error at 3 steps, not at 4."""
    x = torch.tensor([[0.5, 0.5]], dtype=F64) / ALPHA_BAR[500].sqrt()
    error = [
        (Sampler(PNDM(final="clamp"), late_start_grid(n, 500)).run(point(), x).x - POINT).abs().max() for n in (3, 4)
    ]
    assert 1e-5 < float(error[0]) < 5e-3
    assert float(error[1]) < 1e-12


def test_ddpm_1000_is_the_textbook_loop():
    """Holds symmetry_breaking A6 and E23: forward variances, the last mean returned; a tenth of the noise is not the same."""
    start, seed = 60, 3
    sampler = late_sampler("ancestral", start, start - 1)
    x = streams.normal(1, range(4), (1,), purpose="test", dtype=F64)
    found = sampler.run(GAUSSIAN, x / ALPHA_BAR[start - 1].sqrt(), seed=seed)
    assert found.nfe == start
    for step, i in enumerate(range(start - 1, -1, -1), 1):
        bar, beta = ALPHA_BAR[i], TABLE.betas[i]
        ve = x / bar.sqrt()
        d = GAUSSIAN(ve, TABLE.sigma(float(i)))
        score = -(x - bar.sqrt() * d) / (1 - bar)
        x = (x + beta * score) / (1 - beta).sqrt()
        if i:
            x = x + beta.sqrt() * streams.normal(seed, range(4), (1,), purpose="noise", step=step, dtype=F64)
    assert torch.allclose(found.x, x, rtol=0, atol=1e-12)
    posterior = Sampler("euler", sampler.grid, noise=Ancestral(1.0))
    assert not torch.allclose(
        posterior.run(GAUSSIAN, found.x, seed=seed).x, sampler.run(GAUSSIAN, found.x, seed=seed).x
    )


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_strided_step(eta):
    """Holds symmetry_breaking A8: Euler with ancestral noise is DDIM(η) on whole indices, to rounding; it returns x0."""
    grid = late_start_grid(5, 400)
    x = streams.normal(2, range(6), (1,), purpose="test", dtype=F64)
    noise = None if eta == 0 else Ancestral(eta)
    found = Sampler("euler", grid, noise=noise).run(GAUSSIAN, x / ALPHA_BAR[400].sqrt(), seed=9).x
    chain = [int(i) for i in grid.indices]
    for step, (i, j) in enumerate(zip(chain, [*chain[1:], -1], strict=True), 1):
        a, b = ALPHA_BAR[i], ALPHA_BAR[j] if j >= 0 else torch.tensor(1.0, dtype=F64)
        x0 = GAUSSIAN(x / a.sqrt(), TABLE.sigma(float(i)))
        eps = (x - a.sqrt() * x0) / (1 - a).sqrt()
        if j < 0:
            x = x0
            break
        s = eta * ((1 - a / b) * (1 - b) / (1 - a)).sqrt()
        z = streams.normal(9, range(6), (1,), purpose="noise", step=step, dtype=F64)
        x = b.sqrt() * x0 + (1 - b - s * s).sqrt() * eps + s * z
    assert torch.allclose(found, x, rtol=0, atol=1e-12)


def test_ddpm_noise_keeps_unit_variance():
    """The forward variance is right for data of unit variance: the law stays N(0, 1) in VP coordinates at every step."""
    unit = Gaussian.isotropic(torch.zeros(1, dtype=F64), 1.0)
    levels = late_start_grid(3, 300).levels
    for a, b, factor in zip(levels[:-1], levels[1:], DDPMNoise().factors(levels)[1:], strict=True):
        (_, down), *_ = DDPMNoise().steps((a, b), 2)
        gain = down / a + (1 - down / a) / (1 + a * a)
        variance = gain**2 * (1 + a * a) + factor**2 * (b * b - down * down)
        assert variance == pytest.approx(1 + b * b, rel=1e-12)
    assert unit.dim == 1


def test_samplers_survive_json():
    """Grids, starts, rule and noise are rebuilt from text, with the same samples."""
    for kind, law in (("ddpm", GAUSSIAN), ("pndm", None), ("ancestral", None), ("ddim", NoisedStart(GAUSSIAN, 2.0))):
        sampler = late_sampler(kind, 4, 400, law)
        again = Sampler.from_json(sampler.to_json())
        assert torch.equal(sampler(GAUSSIAN, 5, 1).x, again(GAUSSIAN, 5, 1).x)
    assert Sampler.from_json(late_sampler("pndm", 4, 400).to_json()).rule == PNDM()


def test_moments_of_a_gaussian_start():
    """Holds symmetry_breaking F26: N(θ μ, θ² Σ + v), in closed form and by sampling; blocks keep their own scatter (E36)."""
    data = torch.tensor([-1.0, 1.0, 1.0, 1.0, 1.0], dtype=F64)[:, None]
    law, sigma, theta = late_gaussian(data), sigma_of(400), math.sqrt(ALPHA_BAR[400])
    assert theta * float(law.mean) == pytest.approx(0.2639809150, rel=1e-9)
    assert theta**2 * (float(law.spectrum.values) + sigma**2) == pytest.approx(0.9303140765, rel=1e-9)
    drawn = noised_moments(data, sigma, copies=8000, seed=1)
    assert theta * float(drawn.mean) == pytest.approx(0.26398, abs=0.02)
    assert theta**2 * float(drawn.spectrum.values) == pytest.approx(0.9303, abs=0.03)
    # Sorted blocks have means of their own: the merged covariance is that of all rows at once.
    far = torch.cat([torch.full((1024, 1), -5.0, dtype=F64), torch.full((1024, 1), 5.0, dtype=F64)])
    rows = torch.cat(list(NoisedData(far, 0.1, 2)))
    assert float(noised_moments(far, 0.1, seed=2).spectrum.values) == pytest.approx(float(rows.var()), rel=1e-9)


@pytest.mark.parametrize("backend", ["full", "low_rank", "dct"])
def test_backends(backend):
    """Every backend draws N(μ, Σ + σ²) at the start, with the ridge added to Σ and no memory beyond what is allowed."""
    images = streams.normal(0, range(60), (1, 4, 4), purpose="test", dtype=torch.float32) * 0.3
    law = late_gaussian(images, backend, rank=3)
    sampler = late_sampler("ddim", 3, 400, law)
    assert isinstance(sampler.start, LateStart)
    assert sampler(law, 4).x.shape == (4, 1, 4, 4)
    assert float(late_gaussian(images, backend, 3, ridge=0.1).spectrum.values.min()) >= 0.1
    with pytest.raises(ArgumentError, match="GB"):
        late_gaussian(images, backend, rank=3, memory=10)


def test_memory_estimate():
    """Holds symmetry_breaking A10.5: the covariance alone in float32, and 4 D for the mean."""
    sizes = {784: 2.5e6, 3072: 37.7e6, 12288: 604e6, 196608: 154.6e9}
    for dim, size in sizes.items():
        assert moments_memory(dim) - 4 * dim == pytest.approx(size, rel=0.02)
    assert moments_memory(196608, "low_rank", 64) < 60e6
    assert moments_memory(196608, "dct") < 2e6
    with pytest.raises(ArgumentError, match="backend"):
        moments_memory(4, "wavelet")  # type: ignore[arg-type]


def test_gaussian_data():
    """Holds symmetry_breaking F28: gls keeps the mean, the plain late start does not; few steps shrink the variance."""
    for n, start in ((1, 300), (3, 700), (10, 400)):
        for kind in ("ddim", "ddpm"):
            sampler = late_sampler(kind, n, start, GAUSSIAN)
            assert float(final(sampler, GAUSSIAN).mean()) == pytest.approx(0.3, abs=1e-12 if kind == "ddim" else 0.02)
    exact = {400: (0.228620, 0.292459), 500: (0.256885, 0.265491)}
    for index, (mean, variance) in exact.items():
        state = LatePrior(sigma_of(index)).state(QUANTILES, 80.0, GAUSSIAN.process)
        end = GAUSSIAN.flow(state, sigma_of(index), 0.0)
        unit = float(QUANTILES.var(correction=0))  # a little below 1, as quantiles are
        assert float(end.mean()) == pytest.approx(mean, abs=1e-6)
        assert float(end.var(correction=0)) / unit == pytest.approx(variance, abs=1e-6)
    expected = {(100, False): (0.229421, 0.285933), (100, True): (0.3, 0.244422)}
    few = {(5, False): 0.1663, (5, True): 0.1421}
    for (n, gls), (mean, variance) in expected.items():
        x = final(late_sampler("ddim", n, 400, GAUSSIAN if gls else None), GAUSSIAN)
        assert float(x.mean()) == pytest.approx(mean, abs=1e-6)
        assert float(x.var(correction=0)) / float(QUANTILES.var(correction=0)) == pytest.approx(variance, abs=2e-6)
    for (n, gls), variance in few.items():
        x = final(late_sampler("ddim", n, 400, GAUSSIAN if gls else None), GAUSSIAN)
        assert float(x.var(correction=0)) / float(QUANTILES.var(correction=0)) == pytest.approx(variance, abs=1e-4)


def test_starts_by_index():
    """Holds symmetry_breaking E28: index i of 1000 is (i + 1)/1000 of the horizon 1; conversions invert each other."""
    for i in (0, 1, 291, 500, 999):
        assert index_of(sigma_of(i)) == pytest.approx(i, abs=1e-9)
    gap = (VP().alpha((torch.arange(1000, dtype=F64) + 1) / 1000) - ALPHA_BAR.sqrt()).abs()
    assert float(gap.max()) == pytest.approx(9.93e-4, rel=2e-3)
    assert int(gap.argmax()) == 601
    with pytest.raises(ArgumentError, match="grid_policy"):
        LatePrior(2.0, "cut")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="gaussian"):
        NoisedStart(3.0, 2.0)  # type: ignore[arg-type]
    regrid = Sampler("euler", vanilla_grid(5), start=LatePrior(sigma_of(400)))
    assert regrid.levels[:-1] == pytest.approx(late_start_grid(5, 400).levels)
