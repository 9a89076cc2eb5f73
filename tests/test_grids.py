"""Noise grids: published values, the identities that re-gridding rests on, and refusals."""

import json
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from farfield.distributions import Gaussian
from farfield.errors import ArgumentError
from farfield.numerics.spectrum import Spectrum
from farfield.processes import DDPM, VP
from farfield.sampling import ddpm, karras, log_snr, spectral, vp_time
from farfield.sampling.grids import Explicit, as_grid, grid_from_dict
from farfield.sampling.spectral_grid import Spectral


def test_karras_18():
    """Geometry fact 1 (and gaussian_score F1): ascending there, descending here."""
    expected = (
        "0.002, 0.0075280199628, 0.022934518372, 0.059947311235, 0.13951646873, 0.29644228448, 0.58534812319, "
        "1.0881706365, 1.9233398370, 3.2568215198, 5.3151945218, 8.4009353091, 12.910082381, 19.352452980, "
        "28.374584604, 40.785573797, 57.585984721, 80."
    )
    assert karras(18).levels[::-1] == pytest.approx([float(v) for v in expected.split(",")], rel=1e-9)
    assert list(karras(18))[-1] == 0
    assert len(karras(18)) == 19


def test_karras_40():
    """Geometry fact 3."""
    levels = karras(40).levels[::-1]
    for n, t in ((2, 0.0036765891681), (13, 0.34891507763), (21, 2.8183924302), (31, 19.945628017), (39, 69.450946037)):
        assert levels[n - 1] == pytest.approx(t, rel=1e-9)


def test_euler_weights_of_karras_18():
    """Geometry fact 2: w_n = 1 − t_{n−1}/t_n, strictly increasing as n falls."""
    levels = list(karras(18))[::-1]
    weights = [1 - a / b for a, b in pairwise(levels)]
    assert weights[:4] == pytest.approx([1, 0.7343258905, 0.6717602768, 0.6174220678], rel=1e-9)
    assert weights[-1] == pytest.approx(0.2801751910, rel=1e-9)
    for n in (5, 10, 18, 40):
        grid = list(karras(n))
        steps = [1 - b / a for a, b in pairwise(grid)]
        assert steps == sorted(steps)


@given(n=st.integers(3, 60), i=st.integers(1, 58))
def test_karras_tail_identity(n, i):
    """Gaussian_score F2: karras(n − i, σ_max = σ_i) is the tail of karras(n)."""
    i = min(i, n - 2)
    whole = karras(n)
    assert karras(n - i, sigma_max=whole[i]).levels == pytest.approx(whole.levels[i:], rel=1e-12)
    assert whole.truncated(whole[i]).levels == whole.levels[i:]


@given(rule=st.sampled_from([karras, log_snr, vp_time, ddpm]), n=st.integers(2, 50), part=st.floats(0.05, 0.95))
def test_starting_at_keeps_rule_count_and_ends(rule, n, part):
    grid = rule(n)
    sigma = grid[0] ** part * grid.levels[-1] ** (1 - part)
    if rule is ddpm and DDPM().time(sigma) < n:
        return
    lower = grid.starting_at(sigma)
    assert len(lower) == len(grid)
    assert lower[0] == pytest.approx(sigma, rel=1e-9)
    assert lower.levels[-1] == pytest.approx(grid.levels[-1], rel=1e-9)


def test_other_rules():
    uniform = log_snr(5, 0.01, 100)
    assert uniform.levels == pytest.approx([100, 10, 1, 0.1, 0.01])
    grid = vp_time(3)
    assert grid.levels == pytest.approx([VP().sigma(1.0), VP().sigma(0.5005), VP().sigma(1e-3)])
    grid = ddpm(11)
    assert grid.indices == (999, 899, 799, 699, 599, 500, 400, 300, 200, 100, 0)
    assert grid.levels[0] == pytest.approx(157.407, rel=1e-5)
    assert karras(1).levels == (80.0,)
    assert karras(30, rho=1e6).levels == pytest.approx(log_snr(30).levels, rel=1e-4)


@given(st.sampled_from([karras(7), log_snr(4, 0.1, 9.0), vp_time(5), ddpm(6, 100, "cosine"), Explicit((3.0, 1.0))]))
def test_json_round_trip(grid):
    assert grid_from_dict(grid.to_dict()) == grid


def test_spectral_grid_puts_its_levels_where_the_spectrum_is():
    one = Gaussian(torch.zeros(3), Spectrum.isotropic(3, 4.0))
    grid = spectral(21, one)
    assert grid[0] == 80.0
    near = sum(1 for s in grid.levels if 1 < s < 4)
    far = sum(1 for s in grid.levels if 0.01 < s < 0.04)
    assert near >= 2 * far
    assert grid_from_dict(json.loads(json.dumps(grid.to_dict()))) == grid
    assert grid.starting_at(20.0).levels[0] == 20.0
    assert len(grid.starting_at(20.0)) == len(grid)


def spectral_mass(grid, low, high):
    """The integral of the grid's density over log σ, by quadrature of its formula."""

    def structure(t):
        terms = zip(grid.variances, grid.counts, strict=True)
        return sum(c * lam**grid.exponent * lam * t * t / (lam + t * t) ** 2 for lam, c in terms)

    ends = math.log(grid.sigma_min), math.log(grid.sigma_max)
    top = max(structure(math.exp(v)) for v in torch.linspace(*ends, 2001, dtype=torch.float64).tolist())
    return quad(lambda v: structure(math.exp(v)) / top + grid.floor, math.log(low), math.log(high), limit=200)[0]


@pytest.mark.parametrize("closing", [0.0, 0.5, 1.0])
def test_spectral_levels_are_quantiles(closing):
    """Every step takes the same share of the density; the one to 0, with what is left above sigma_min, ``closing`` of it."""
    grid = Spectral(6, (0.01, 1.0, 9.0), (5.0, 2.0, 1.0), closing=closing)
    shares = [spectral_mass(grid, b, a) for a, b in pairwise(grid.levels)]
    assert shares == pytest.approx([shares[0]] * 5, rel=2e-3)
    rest = spectral_mass(grid, grid.sigma_min, grid.levels[-1]) if closing else 0.0
    assert rest == pytest.approx(closing * shares[0], rel=2e-3)
    assert closing or grid.levels[-1] == grid.sigma_min


def test_spectral_grid_spreads_four_ninths_evenly():
    """Whatever the data: the floor is 0.8 of the mean structure."""
    for values in ([4.0], [9.0, 1.0, 0.01, 1e-4]):
        grid = spectral(8, Gaussian(torch.zeros(len(values)), Spectrum.diagonal(torch.tensor(values).double())))
        whole = spectral_mass(grid, grid.sigma_min, grid.sigma_max)
        assert grid.floor * math.log(grid.sigma_max / grid.sigma_min) / whole == pytest.approx(4 / 9, rel=5e-3)
        assert grid.closing == 1


def test_a_spectral_grid_stored_without_a_closing_share_keeps_its_levels():
    stored = {"name": "spectral", "n": 3, "variances": [4.0], "counts": [3.0], "sigma_min": 0.01, "sigma_max": 50.0}
    grid = grid_from_dict({**stored, "exponent": 0.75, "floor": 0.3})
    assert (grid.closing, grid.levels[-1]) == (0.0, 0.01)
    for new in (grid, Spectral(3, (4.0,), (3.0,), closing=1.0)):
        assert grid_from_dict(json.loads(json.dumps(new.to_dict()))) == new


def test_spectral_grid_follows_units():
    """Data in other units: the grid scales with them."""
    values = torch.tensor([9.0, 1.0, 0.01], dtype=torch.float64)
    base = spectral(9, Gaussian(torch.zeros(3), Spectrum.diagonal(values)), 0.01, 50.0)
    scaled = spectral(9, Gaussian(torch.zeros(3), Spectrum.diagonal(100 * values)), 0.1, 500.0)
    assert scaled.levels == pytest.approx([10 * s for s in base.levels], rel=1e-4)


def test_spectral_grid_counts_directions_and_ignores_null_ones():
    full = Gaussian(torch.zeros(4), Spectrum.diagonal(torch.tensor([4.0, 1.0, 1.0, 0.0], dtype=torch.float64)))
    basis = torch.eye(4)[:, :1]
    tail = Gaussian(torch.zeros(4), Spectrum.low_rank(basis, [4.0], tail=1.0))
    assert sum(spectral(5, full).counts) == 3
    assert sum(spectral(5, tail).counts) == 4
    with pytest.raises(ArgumentError, match="not zero"):
        spectral(5, Gaussian(torch.zeros(2), Spectrum.isotropic(2, 0.0)))


def test_sequences_become_explicit_grids():
    assert as_grid([5.0, 2.0, 0.0]).levels == (5.0, 2.0)
    assert list(as_grid([5.0, 2.0])) == [5.0, 2.0, 0.0]
    assert as_grid([5.0, 2.0, 1.0]).starting_at(3.0).levels == (3.0, 2.0, 1.0)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: as_grid([1.0, 2.0]), "level 1 is 2 after 1"),
        (lambda: as_grid([1.0, 1.0]), "decrease"),
        (lambda: as_grid([1.0, -1.0]), "-1.0"),
        (lambda: as_grid([1.0, 0.0, 0.5]), "0.0; expected finite, positive"),
        (lambda: as_grid([float("nan")]), "nan"),
        (lambda: as_grid([]), "at least one"),
        (lambda: as_grid([0.0]), "at least one"),
        (lambda: karras(0), "n = 0"),
        (lambda: karras(4, sigma_min=2, sigma_max=1), "sigma_min = 2"),
        (lambda: karras(4, rho=0), "rho"),
        (lambda: ddpm(2000), "2000 levels"),
        (lambda: vp_time(4, t_min=0), "t_min"),
        (lambda: Spectral(3, (1.0,), (1.0,), closing=-1.0), "closing = -1.0"),
        (lambda: Spectral(3, (1.0,), (1.0, 2.0)), "1 variances with 2 counts"),
        (lambda: grid_from_dict({"name": "karas", "n": 3}), "karras"),
        (lambda: grid_from_dict({"name": "karras", "m": 3}), "does not take"),
    ],
)
def test_refusals(make, match):
    with pytest.raises(ArgumentError, match=match):
        make()
