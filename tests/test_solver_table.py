"""Error against evaluations: the reference, the rows, the recommendation."""

from __future__ import annotations

import json

import pytest
import torch

from farfield.analysis import Entrant, default_entrants, describe, reference_solution, solver_errors
from farfield.analysis.entrants import baseline, in_words
from farfield.denoiser import FunctionDenoiser
from farfield.distributions import Gaussian, GaussianMixture
from farfield.errors import ArgumentError
from farfield.sampling import Sampler, Teleport, karras
from farfield.sampling.solvers import Whitened


def gaussian() -> Gaussian:
    return Gaussian(torch.tensor([0.5, -0.2, 0.0]), torch.diag(torch.tensor([4.0, 1.0, 0.05])))


def mixture() -> GaussianMixture:
    means = torch.tensor([[1.0, 0.0], [-0.5, 1.2], [-0.8, -1.0]])
    return GaussianMixture([0.5, 0.3, 0.2], means, torch.stack([v * torch.eye(2) for v in (0.3, 0.5, 0.2)]))


@pytest.fixture(scope="module")
def table():
    law = mixture()
    data = law.sample(4000, torch.Generator().manual_seed(0))
    return solver_errors(law, nfes=(5, 10, 20), n=32, seed=1, gaussian=Gaussian.fit(data))


def test_reference_is_the_exact_flow_and_knows_its_error():
    law = gaussian()
    reference = reference_solution(law, 16, seed=4, gaussian=None, levels=128, dtype=torch.float64)
    z = Sampler("euler", karras(2))  # for the noise alone
    noise: list[torch.Tensor] = []
    z(law, 16, 4, dtype=torch.float64, callback=lambda step: noise.append(step.x))
    # Down to the last level by the exact flow, then the denoiser, as every sampler ends.
    exact = law(law.flow(noise[0], 80.0, 0.002), 0.002)
    error = float((reference.x - exact).square().mean().sqrt())
    assert error <= reference.error < 1e-3
    assert reference.nfe == 128


def test_whitened_is_exact_on_gaussian_data():
    law = gaussian()
    table = solver_errors(law, nfes=(5, 8), n=8, gaussian=law, dtype=torch.float64)
    for row in table.rows:
        if row.family in ("whitened", "teleport + whitened"):
            assert row.error < 1e-6
        elif row.family == "Euler (DDIM)":
            assert row.error > 1e-2
    assert table.best(5).family in ("whitened", "teleport + whitened")
    assert table.choose().nfe == 5


def test_teleport_has_the_same_target():
    """On Gaussian data a teleport is exact, so its rows converge to the reference of the untouched noise."""
    law = gaussian()
    entrant = {"t": Sampler("heun", karras(8), start=Teleport(law, 3.0))}
    rows = solver_errors(law, nfes=(9, 39), n=8, gaussian=law, entrants=entrant, dtype=torch.float64).rows
    assert rows[1].error < rows[0].error / 8
    assert rows[1].error < 1e-2


def test_budgets_and_evaluations(table):
    assert table.budgets == (5, 10, 20)
    for row in table.rows:
        assert row.nfe <= row.budget
        assert row.nfe == row.sampler.nfe
        if row.family == "Heun":
            assert row.nfe % 2 == 1  # Heun at 10 costs 9
    assert table.baseline.nfe == 35
    assert {row.nfe for row in table.rows if row.family == "Heun" and row.budget == 10} == {9}
    assert table.reference.error < 0.1 * min(row.error for row in table.rows)


def test_more_evaluations_are_better(table):
    for family in table.families:
        errors = [row.error for row in table.envelope(family)]
        # A teleport keeps the error of the Gaussian above its level, whatever is spent below.
        assert errors[-1] < errors[0] or family.startswith("teleport")
    for row in table.rows:
        assert row.median <= row.worst
        assert row.error <= row.worst * (1 + 1e-12)


def test_recommendation(table):
    chosen = table.choose()
    assert chosen.error <= table.default_tolerance()
    assert all(row.nfe >= chosen.nfe for row in table.rows if row.error <= table.default_tolerance())
    assert table.choose(1e9).nfe == min(row.nfe for row in table.rows)
    assert table.choose(0.0) is table.best(20)
    sampler = table.recommended()
    again = Sampler.from_json(sampler.to_json())
    law = mixture()
    assert torch.equal(sampler(law, 4, 7).x, again(law, 4, 7).x)
    with pytest.raises(ArgumentError, match="budget = 7"):
        table.best(7)


def test_rows_come_from_one_noise_whatever_the_batch():
    law = mixture()
    entrants = {"heun": Sampler("heun", karras(6))}
    a = solver_errors(law, nfes=[9], n=12, seed=3, entrants=entrants, dtype=torch.float64)
    b = solver_errors(law, nfes=[9], n=12, seed=3, entrants=entrants, batch_size=5, dtype=torch.float64)
    assert a.rows[0].error == pytest.approx(b.rows[0].error, rel=1e-9)


def test_plain_values_hold_no_arrays(table):
    text = json.dumps(table.to_dict(), allow_nan=False)
    assert len(text) < 120_000
    record = json.loads(text)
    assert record["recommended"]["within_tolerance"]
    assert set(record["best"]) == {"5", "10", "20"}
    assert len(table.plot().axes) == 1


def test_without_a_gaussian_there_are_no_teleports():
    names = [entrant.family for entrant in default_entrants(mixture())]
    assert not any("teleport" in name or "whitened" in name for name in names)


def test_a_diverging_sampler_has_no_row():
    law = FunctionDenoiser(lambda x, s: x * 0 if s < 3 else torch.where(s > 20, x, x * float("nan")), (2,), 0.002, 80.0)
    reference = reference_solution(mixture(), 4, levels=8)
    with pytest.raises(ArgumentError, match="no sampler can be planned"):
        solver_errors(law, nfes=[5], n=4, entrants={"steps": Sampler("euler", karras(5))}, reference=reference)


def test_names():
    law = gaussian()
    sampler = Sampler(Whitened(3), karras(8), start=Teleport(law, 4.0), covariance=law)
    assert in_words(sampler) == "whitened (order 3) on 8 Karras levels (ρ = 7) after a teleport to σ = 4"
    assert in_words(Sampler(Whitened(2), karras(1))) == "exponential multistep (order 2) on 1 Karras level (ρ = 7)"
    assert describe(sampler)["start"] == {
        "name": "teleport", "sigma": 4.0, "grid_policy": "regrid", "seed_history": False,
    }  # fmt: skip
    assert Entrant("Heun", "Karras", baseline(law)).name == "Heun, Karras"


def test_bad_arguments():
    law = mixture()
    for bad in ({"nfes": []}, {"nfes": [0]}, {"n": 0}):
        with pytest.raises(ArgumentError):
            solver_errors(law, **bad)
    with pytest.raises(ArgumentError, match="reference has shape"):
        solver_errors(law, n=3, nfes=[5], reference=reference_solution(law, 4, levels=8))
    with pytest.raises(ArgumentError, match="levels"):
        reference_solution(law, 4, levels=2)
