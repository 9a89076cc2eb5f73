"""Encoding along the ODE: order, exactness on Gaussians, fact 26, guidance, batches, and what a round trip loses."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from farfield.analysis.catalogue import Subject, analyze
from farfield.analysis.inversion import InversionRow, invert
from farfield.denoiser import FunctionDenoiser
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError, NonFiniteError
from farfield.numerics import streams
from farfield.numerics.spectrum import Spectrum
from farfield.processes import Diffusion
from farfield.sampling import Ancestral, AtLastLevel, Churn, Jump, Sampler, SmallChange, Teleport, ToZero, karras
from farfield.sampling.encoding import (
    CLIMBERS,
    decode,
    decode_noise,
    encode,
    noised_latents,
    reference_encoding,
    rms,
)
from farfield.sampling.round_trip import edit, round_trip
from farfield.sampling.solvers import Whitened
from tests.laws import T1, points, smooth_mixture


class Student(Diffusion):
    """A process that says it is not Gaussian."""

    gaussian = False

    def __repr__(self):
        return "Student()"


WIDE = torch.float64
X = torch.tensor([[0.9, -0.2], [0.3, 1.0], [-1.0, -1.5]], dtype=WIDE)
LAW = Gaussian(
    torch.tensor([0.3, -1.0, 0.2], dtype=WIDE), Spectrum.diagonal(torch.tensor([4.0, 1.0, 0.01], dtype=WIDE))
)


def test_round_trip_of_t1():
    """Geometry fact 26: t = 0.5 → 80 and back with error 2.4e-13; where the point is encoded to."""
    law, grid = points(T1), karras(2, 0.5, 80.0)
    x = torch.tensor([[0.904276982593, -0.18740832857]], dtype=WIDE)
    latents = encode(law, x, grid, solver="reference")
    assert latents.z[0].tolist() == pytest.approx([47.52809057, -36.18573301], abs=1e-8)
    assert latents.error is None
    assert latents.nfe > 100
    back = decode(law, latents.z, grid, solver="reference", to="lowest")
    assert float((back.x - x).abs().max()) < 1e-12
    # And on from the reference state of fact 29 to where that fact began.
    up = encode(law, x, karras(2, 0.5, 5.0), solver="reference")
    assert up.z[0].tolist() == pytest.approx([3.0, -2.0], abs=5e-11)


@pytest.mark.parametrize("name", CLIMBERS)
def test_order_upwards(name):
    """Each solver climbs with its own order on a mixture, and the error estimate is right within a factor of 1.6."""
    law = smooth_mixture()
    exact = encode(law, X, karras(2, 0.3, 8.0), solver="reference").z
    errors = []
    for count in (81, 161, 321):
        found = encode(law, X, karras(count, 0.3, 8.0), solver=name)
        true = rms(found.z - exact)
        assert bool(((found.error / true - 1).abs() < 0.6).all()), (found.error, true)
        errors.append(float(true.max()))
        assert found.nfe == (count - 1) * (2 if name == "heun" else 1)
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    order = {"euler": 1, "heun": 2, "whitened": 3}[name]
    assert slopes[-1] == pytest.approx(order, abs=0.3), slopes


def test_euler_is_ddim_inversion():
    """``x' = (σ'/σ) x + (1 − σ'/σ) D(x, σ)``, by hand."""
    law, grid = smooth_mixture(), karras(5, 0.3, 8.0)
    levels = grid.levels[::-1]
    x = X
    for low, high in pairwise(levels):
        x = high / low * x + (1 - high / low) * law(x, low)
    assert torch.allclose(encode(law, X, grid, solver="euler").z, x, rtol=1e-13)


def test_whitened_is_exact_on_its_gaussian():
    """One step of any length, up and down; the estimate says so. Without the Gaussian it is not."""
    x = LAW.sample(4, torch.Generator().manual_seed(0))
    grid = karras(3, 0.01, 80.0)
    found = encode(LAW, x, grid, solver="whitened", covariance=LAW)
    assert torch.allclose(found.z, LAW.flow(x, 0.01, 80.0), rtol=1e-11)
    assert float(found.error.max()) < 1e-9
    trip = round_trip(LAW, x, grid, solver="whitened", covariance=LAW)
    assert float(trip.path_error.max()) < 1e-10
    assert float(encode(LAW, x, grid, solver="whitened").error.min()) > 1e-3
    # The reference of a Gaussian is its formula; of the same law in disguise, an integration that agrees.
    z, calls = reference_encoding(LAW, x, 0.01, 80.0, rtol=1e-12, atol=1e-14, dtype=WIDE)
    assert calls == 0
    disguised = FunctionDenoiser(LAW.forward, (3,))
    z_again, calls = reference_encoding(disguised, x, 0.01, 80.0, rtol=1e-12, atol=1e-14, dtype=WIDE)
    assert calls > 50
    assert torch.allclose(z_again, z, rtol=1e-9)


def test_encoded_data_are_noise():
    """Latents of a Gaussian's own samples are N(0, σ²); a direction without variance gets noise only where noise was put."""
    flat = Gaussian(torch.zeros(2, dtype=WIDE), Spectrum.diagonal(torch.tensor([1.0, 0.0], dtype=WIDE)))
    x0 = flat.sample(4000, torch.Generator().manual_seed(1))
    grid = karras(12, 0.002, 80.0)
    clean = encode(flat, x0, grid, solver="whitened", covariance=flat, estimate=False)
    noised = encode(flat, x0, grid, solver="whitened", covariance=flat, lift="noised", estimate=False)
    assert clean.unit.std(0).tolist() == pytest.approx([1.0, 0.0], abs=0.03)
    assert noised.unit.std(0).tolist() == pytest.approx([1.0, 1.0], abs=0.03)
    # The lift is each sample's own: rows 5 to 7 alone are the same.
    again = encode(flat, x0[5:8], grid, solver="whitened", covariance=flat, lift="noised", first=5, estimate=False)
    assert torch.allclose(again.z, noised.z[5:8])
    far = noised_latents(x0, 80.0, seed=3)
    assert torch.equal(far[2:4], noised_latents(x0[2:4], 80.0, seed=3, first=2))
    assert (far / 80).std(0).tolist() == pytest.approx([1.0, 1.0], abs=0.03)


def test_round_trip_falls_to_its_floor():
    """The path's error falls with the grid; the step to zero noise stays, and is the floor."""
    law = smooth_mixture()
    coarse, fine = (round_trip(law, X, karras(n, 0.05, 20.0)) for n in (20, 160))
    assert float(fine.path_error.max()) < float(coarse.path_error.max()) / 30
    assert torch.allclose(fine.error, fine.floor, rtol=0.05)
    assert torch.allclose(fine.floor, rms(law(X, 0.05) - X))
    assert fine.nfe == 2 * 159 * 2 + 1
    assert torch.allclose(fine.latents.lowest, X)


def test_a_sampler_is_taken_as_it_is():
    """Solver, levels, start and guidance of the sampler; its latents are where it starts; noise has no way back."""
    law, grid = smooth_mixture(), karras(12, 0.05, 20.0)
    pull = lambda x, sigma, d: 0.9 * d  # noqa: E731
    guided = Sampler("heun", grid, guidance=(pull,))
    pulled = FunctionDenoiser(lambda x, sigma: 0.9 * law(x, sigma), (2,))
    assert torch.allclose(encode(law, X, guided).z, encode(pulled, X, grid).z)
    trip = round_trip(law, X, guided)
    assert torch.allclose(trip.x, round_trip(pulled, X, grid).x)
    assert torch.allclose(trip.floor, rms(0.9 * law(X, 0.05) - X))
    assert float(trip.path_error.max()) < 0.05
    gaussian = Gaussian(torch.zeros(2, dtype=WIDE), Spectrum.isotropic(2, 1.0))
    late = Sampler("heun", grid, start=Teleport(gaussian, 5.0))
    assert encode(law, X, late).sigma == 5.0
    assert decode(law, encode(law, X, late).z, late).nfe == late.nfe
    with pytest.raises(ArgumentError, match="cannot be run backwards"):
        encode(law, X, Sampler("euler", grid, noise=Churn(1.0)))
    with pytest.raises(ArgumentError, match="made for falling levels"):
        encode(law, X, Sampler("dpmpp_2m", grid))
    # Decoding takes any solver of the registry, one that finds its own steps as well.
    assert decode(gaussian, X, Sampler("rk45", grid)).nfe > 12
    by_heun = encode(law, X, Sampler("dpmpp_2m", grid), solver="heun")
    assert torch.equal(by_heun.z, encode(law, X, grid).z)


def test_noise_of_a_sample_decodes_to_it():
    """``decode_noise`` of a sample's own noise is the sample, for every start."""
    law, grid = smooth_mixture(), karras(6, 0.05, 20.0)
    gaussian = Gaussian(torch.zeros(2, dtype=WIDE), Spectrum.isotropic(2, 1.0))
    noise = streams.normal(7, range(3), (2,), purpose="start", dtype=WIDE)
    for sampler in (Sampler("heun", grid), Sampler("heun", grid, start=Teleport(gaussian, 5.0))):
        drawn = sampler(law, n=3, seed=7, dtype=WIDE)
        found = decode_noise(law, noise, sampler, batch_size=2)
        assert torch.equal(found.x, drawn.x)
        assert found.nfe == drawn.nfe


def test_batches_and_conditions_change_nothing():
    """Rows keep their conditions in any batch."""
    shift = FunctionDenoiser(lambda x, sigma: x / (1 + sigma * sigma), (2,))

    class Shifted(FunctionDenoiser):
        def forward(self, x, sigma, labels=None, **condition):
            return shift(x - labels[:, None], sigma) + labels[:, None]

    law = Shifted(lambda x, sigma: x, (2,))
    labels = torch.arange(5, dtype=WIDE)
    x0 = streams.normal(0, range(5), (2,), dtype=WIDE)
    grid = karras(8, 0.01, 10.0)
    whole = encode(law, x0, grid, labels=labels)
    parts = encode(law, x0, grid, labels=labels, batch_size=2)
    assert torch.equal(whole.z, parts.z)
    assert torch.equal(whole.error, parts.error)
    back = decode(law, whole.z, grid, labels=labels, batch_size=3, to="lowest")
    assert float(rms(back.x - x0).max()) < 0.2
    adaptive = encode(law, x0, grid, labels=labels, solver="reference", batch_size=2)
    centre = labels[:, None]
    assert torch.allclose(adaptive.z, centre + (x0 - centre) * math.sqrt((1 + 100) / (1 + 1e-4)), rtol=1e-9)
    again = decode(law, adaptive.z, grid, labels=labels, solver="reference", to="lowest")
    assert torch.allclose(again.x, x0, atol=1e-9)


def test_a_reference_solution_ends_as_the_sampler_does():
    """A jump returns the denoiser's output at its level, as a run of small steps does; a rule that looks has no steps."""
    law, grid, x = smooth_mixture(), karras(200, 0.05, 20.0), 20 * X
    for finish in (Jump(1.0), AtLastLevel(), ToZero()):
        plan = Sampler("heun", grid, finish=finish)
        exact = decode(law, x, plan, solver="reference")
        assert torch.allclose(exact.x, decode(law, x, plan).x, atol=2e-3)
    with pytest.raises(ArgumentError, match="no steps at which the rule could look"):
        decode(law, x, Sampler("heun", grid, finish=Jump(SmallChange(0.1))), solver="reference")


def test_the_noise_of_a_sampler_is_named():
    """``decode_noise`` of a sample's own noise is the sample under a sampler that adds noise, too, given its seed."""
    law, sampler = smooth_mixture(), Sampler("euler", karras(6, 0.05, 20.0), noise=Ancestral(1.0))
    noise = streams.normal(7, range(3), (2,), purpose="start", dtype=WIDE)
    drawn = sampler(law, n=3, seed=7, dtype=WIDE)
    assert torch.equal(decode_noise(law, noise, sampler, seed=7, batch_size=2).x, drawn.x)


def test_edit():
    """Encode, change, decode: latents of N(0, I) that are shifted are samples shifted by what the flow lets through."""
    law = Gaussian(torch.zeros(2, dtype=WIDE), Spectrum.isotropic(2, 1.0))
    found = edit(law, X, lambda z: z + 8.0, karras(6, 1e-4, 80.0), solver="whitened", covariance=law)
    assert torch.allclose(found.x, X + 8.0 / math.hypot(80, 1), atol=1e-7)
    more = edit(law, X, lambda z: torch.cat((z, z)), karras(4, 0.01, 80.0))
    assert more.x.shape == (6, 2)
    with pytest.raises(ArgumentError, match="labels has a row"):
        edit(law, X, lambda z: z[:1], karras(4, 0.01, 80.0), labels=torch.zeros(3))


def test_refusals():
    law, grid = smooth_mixture(), karras(4, 0.05, 20.0)
    narrow = FunctionDenoiser(law.forward, (2,), 0.1, 10.0)
    for options, said in (
        ({"lift": "dirty"}, "lift = 'dirty'"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"how": karras(1, 0.05, 20.0)}, "at least two"),
        ({"x0": X[:0]}, "no rows"),
        ({"x0": X.int()}, "x0 holds torch.int32; expected floating-point numbers"),
        ({"x0": X[:, :1]}, "expected (B, 2)"),
        ({"denoiser": narrow}, "leaves the model's range"),
    ):
        arguments = {"denoiser": law, "x0": X, "how": grid, **options}
        with pytest.raises(ArgumentError) as caught:
            encode(**arguments)
        assert said in str(caught.value)
    with pytest.raises(ArgumentError, match="a reference solution has none"):
        decode(law, X, Sampler("euler", grid, noise=Churn(1.0)), solver="reference")
    with pytest.raises(ArgumentError, match="does not belong to Student"):
        encode(FunctionDenoiser(law.forward, (2,), process=Student()), X, grid, lift="noised")
    for z, said in ((X.long(), "z holds torch.int64"), (X[:0], "z has 0 rows")):
        with pytest.raises(ArgumentError, match=said):
            decode(law, z, grid)
    with pytest.raises(ArgumentError, match="noise has 3 rows, batch_size = 0"):
        decode_noise(law, X, Sampler("heun", grid), batch_size=0)
    with pytest.raises(ArgumentError, match="to = 'data'"):
        decode(law, X, grid, to="data")
    broken = FunctionDenoiser(lambda x, sigma: x * math.nan, (2,))
    for solver in ("heun", "reference"):
        with pytest.raises(NonFiniteError, match="not finite"):
            encode(broken, X, grid, solver=solver)
    with pytest.raises(ArgumentError, match="sigma = 0"):
        noised_latents(X, 0.0)


# -- the analysis -------------------------------------------------------------------------------------------------------


def test_inversion_table_on_a_gaussian():
    """The whitened solver is at its floor with any grid; Euler's latents are too short, and less so on finer grids."""
    x0 = LAW.sample(16, torch.Generator().manual_seed(0))
    found = invert(LAW, x0, levels=(5, 20), gaussian=LAW, fine=8)
    rows = {(r.solver, r.levels): r for r in found.rows}
    assert len(rows) == 6
    assert rows["whitened", 5].path_error < 1e-7  # the data come in float64, the prior's 80 amplifies rounding
    assert rows["whitened", 5].latent_error < 1e-9
    assert rows["euler", 5].norm < rows["euler", 20].norm < rows["whitened", 5].norm
    assert rows["heun", 20].error < rows["heun", 5].error
    assert rows["heun", 20].nfe == 2 * 19 * 2 + 1
    assert found.best.solver == "whitened"
    assert "whitened brings samples back" in found.summary()
    assert found.to_dict()["rows"][0]["solver"] == "euler"
    assert len(found.tables()[0].rows) == 6
    assert found.plot() is not None
    assert isinstance(found.best, InversionRow)


def test_inversion_in_the_catalogue():
    x0 = LAW.sample(40, torch.Generator().manual_seed(0))
    options = {"n": 4, "levels": [4], "solvers": ["euler"], "fine": 6, "lift": "noised"}
    found = analyze("inversion", Subject(LAW, x0), options)
    assert [row.solver for row in found.rows] == ["euler"]
    assert found.n == 4
    for wrong, said in (({"solvers": ["dpm"]}, "cannot climb"), ({"n": 41}, "1 to 40"), ({"levels": [1]}, "levels")):
        with pytest.raises(ArgumentError, match=said):
            analyze("inversion", Subject(LAW, x0), options | wrong)


def test_inversion_of_a_model_with_classes_takes_the_training_samples_of_known_class():
    """Held-out samples have no labels here: a model that takes classes would be asked without them."""
    asked = []

    def denoise(x, sigma, labels=None):
        asked.append(labels)
        return LAW(x, sigma)

    model = FunctionDenoiser(denoise, LAW.event_shape, sigma_min=0.002, sigma_max=80.0)
    model.label_dim = 3
    x0 = LAW.sample(12, torch.Generator().manual_seed(0))
    subject = Subject(model, x0, labels=torch.arange(12) % 3, heldout=x0.clone())
    found = analyze("inversion", subject, {"n": 4, "levels": [4], "solvers": ["euler"], "fine": 6})
    assert found.n == 4
    assert all(labels is not None for labels in asked)
    with pytest.raises(ArgumentError, match="Gaussian noise"):
        invert(FunctionDenoiser(denoise, LAW.event_shape, process=Student()), x0)


def test_order_of_the_third_rule():
    """The whitened rule of order 3 climbs with order 3."""
    law = smooth_mixture()
    exact = encode(law, X, karras(2, 0.3, 8.0), solver="reference").z
    errors = [
        float(rms(encode(law, X, karras(n, 0.3, 8.0), solver=Whitened(3), estimate=False).z - exact).max())
        for n in (161, 321)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(3, abs=0.3), errors
