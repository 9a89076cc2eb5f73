"""Error against evaluations: the reference, the rows, the recommendation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from farfield.analysis import Entrant, default_entrants, describe, reference_solution, solver_errors
from farfield.analysis.catalogue import Subject, analyze
from farfield.analysis.entrants import (
    NAMES,
    VARIANTS,
    all_entrants,
    baseline,
    grid_letter,
    in_words,
    is_whitened,
    planned_nfe,
)
from farfield.analysis.solver_comparison import SolverComparison, teleport_levels
from farfield.analysis.solver_frechet import adaptive_rows, chosen_rows, distance_of, frechet_table
from farfield.analysis.solver_table import fine_solution
from farfield.analysis.solver_table_plot import highlighted
from farfield.analysis.trajectory_quality import QualityBench, features_for
from farfield.denoiser import FunctionDenoiser
from farfield.distributions import Gaussian, GaussianMixture
from farfield.errors import ArgumentError
from farfield.metrics import pca_features
from farfield.sampling import Sampler, Teleport, karras
from farfield.sampling.solvers import PLANNED, RK45, SOLVERS, Whitened


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


# -- every solver of the registry --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def everything():
    """All solvers on the mixture, with the data's Gaussian."""
    law = mixture()
    gauss = Gaussian.fit(law.sample(4000, torch.Generator().manual_seed(0)))
    entrants = all_entrants(law, gauss, grids=["karras", "spectral"], teleports=teleport_levels(gauss))
    return solver_errors(law, nfes=(8, 20), n=16, seed=1, entrants=entrants, gaussian=gauss)


def test_every_solver_is_compared(everything):
    names = {row.sampler.rule.name for row in everything.rows}
    assert names == set(PLANNED)
    assert set(NAMES) == set(SOLVERS)
    assert set(VARIANTS) <= set(PLANNED)
    for family in everything.families:
        row = everything.best_of(family, 20)
        assert row is not None
        assert row.error == min(r.error for r in everything.rows if r.family == family and r.budget == 20)
        assert row.nfe <= 20
    assert everything.best_of("Heun", 8).nfe == 7
    assert everything.best_of("RK45", 8) is None


def test_entrants_differ_by_solver_options_and_grid():
    law, gauss = mixture(), Gaussian(torch.zeros(2), torch.eye(2))
    rows = all_entrants(law, gauss, grids=["karras", "karras12", "log_snr", "spectral"], teleports=[2.0, 500.0])
    assert len({row.name for row in rows}) == len(rows)
    assert len(
        {
            (str(row.sampler.rule), row.sampler.grid, row.sampler.start.name, row.sampler.covariance is None)
            for row in rows
        }
    ) == len(rows)
    assert {grid_letter(row.sampler) for row in rows} == {"K", "R", "L", "S"}
    assert all(is_whitened(row.family) == (row.sampler.covariance is not None) for row in rows)
    # Without a Gaussian, or by name, there are fewer.
    assert {row.family for row in all_entrants(law, solvers=["whitened", "heun"])} == {"exponential", "Heun"}
    assert {grid_letter(row.sampler) for row in all_entrants(law)} == {"K", "L"}
    assert grid_letter(Sampler("heun", [3.0, 1.0])) == ""
    for bad, word in (
        ({"solvers": ["rk45"]}, "rk45"),
        ({"grids": ["linear"]}, "linear"),
        ({"grids": ["spectral"]}, "needs the data's Gaussian"),
    ):
        with pytest.raises(ArgumentError, match=word):
            all_entrants(law, **bad)


def test_a_solver_with_steps_of_its_own(everything):
    """It has no planned evaluations, and the more of them the smaller its tolerance."""
    sampler = Sampler(RK45(rtol=1e-3), karras(18))
    assert planned_nfe(sampler) is None
    assert describe(sampler)["nfe"] is None
    assert planned_nfe(Sampler("heun", karras(18))) == 35
    assert in_words(sampler) == "RK45 (rtol = 0.001) with steps of its own from σ = 80 to 0.002"
    rows = adaptive_rows(mixture(), everything.reference, 16, 1, [1e-2, 1e-1, 1e-4], dtype=torch.float32)
    assert [row.tolerance for row in rows] == [1e-1, 1e-2, 1e-4]
    assert rows[0].nfe < rows[1].nfe < rows[2].nfe
    assert rows[0].error > rows[1].error > rows[2].error
    assert rows[2].error < 1e-3


def test_one_rule_under_two_names_is_drawn_once(everything):
    law = mixture()
    data = law.sample(500, torch.Generator().manual_seed(1))
    bench = QualityBench.of(data, pca_features(data, 2))
    asked: list[Sampler] = []

    def distance(sampler: Sampler) -> float:
        asked.append(sampler)
        return float(len(asked))

    rows = chosen_rows(everything, (20, 99))
    assert [row.family for row in rows] == list(everything.families)
    found = frechet_table(law, bench, rows, 50, distance=distance)
    assert found.cell("LMS", 20).distance == found.cell("iPNDM-v", 20).distance
    assert len(asked) < len(rows) + 1
    assert found.best(20).distance == 1.0
    assert found.cell("LMS", 8) is None
    with pytest.raises(ArgumentError, match="budget = 8"):
        found.best(8)
    for n, given in ((3, rows), (50, [])):
        with pytest.raises(ArgumentError, match="4 samples" if n == 3 else "rows is empty"):
            frechet_table(law, bench, given, n)


def test_the_analysis_on_an_exact_law():
    """On Gaussian data whitened steps are all but exact (the Gaussian is fitted): samples as good as the exact solution's."""
    law = gaussian()
    data = law.sample(1000, torch.Generator().manual_seed(2))
    options = {
        "nfes": [6, 10], "n": 8, "samples": 200, "frechet_nfes": [6], "tolerances": [0.01, 0.001], "levels": 64,
        "solvers": ["euler", "heun", "lms", "rk45", "whitened"],
    }  # fmt: skip
    found = analyze("solvers", Subject(law, data, "law"), options)
    assert isinstance(found, SolverComparison)
    best = found.frechet.cell("whitened", 6)
    assert best.distance < 0.5 * found.frechet.cell("Euler (DDIM)", 6).distance
    bench = QualityBench.of(data, features_for(data))
    assert best.distance == pytest.approx(distance_of(law, bench, fine_solution(law, 256, law), 200), rel=0.02)
    assert found.ratio(6) < 0.1
    assert found.ratio(6, published=True) <= found.ratio(6)
    assert is_whitened(found.best(6, whitened=True).family)
    assert found.best(6, whitened=False, published=True).sampler.grid.name != "spectral"
    errors, medians, options_of, adaptive, distances = found.tables()
    assert errors.columns == ("solver", "6", "10")
    for column in (1, 2):
        starred = [row[0] for row in errors.rows if "*" in row[column]]
        assert starred == [found.table.best((6, 10)[column - 1]).family]
    assert dict(zip(["6", "10"], next(r for r in errors.rows if r[0] == "Heun")[1:], strict=True))["6"].endswith("(5)")
    assert len(medians.rows) == len(errors.rows)
    assert {row[0] for row in options_of.rows} >= {"LMS", "whitened"}
    assert len(adaptive.rows) == 2
    assert len(distances.rows) == len(found.frechet.families)
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert set(record["whitened_over_others"]) == {"6", "10"}
    assert record["frechet"]["floor"] > 0
    assert "At 6 evaluations" in found.summary() or "At 10 evaluations" in found.summary()
    assert len(found.plot().axes) == 2
    with pytest.raises(ArgumentError, match="none of them is among nfes"):
        analyze("solvers", Subject(law, data), {"nfes": [6], "frechet_nfes": [5]})
    with pytest.raises(ArgumentError, match="name one of these as well"):
        analyze("solvers", Subject(law, data), {"solvers": ["rk45"], "frechet": False})


def test_the_figure_names_no_more_lines_than_can_be_told_apart(everything):
    shown = highlighted(everything)
    assert len(everything.families) > 8
    assert len(shown) == 8
    assert {"whitened", "teleport + whitened", "Heun", "Euler (DDIM)"} <= set(shown)
    assert len(set(shown.values())) == 8
    few = replace(everything, rows=tuple(row for row in everything.rows if row.family in ("UniPC", "DEIS", "Heun")))
    assert set(highlighted(few)) == {"UniPC", "DEIS", "Heun"}
    alone = SolverComparison(everything)
    assert len(alone.plot().axes) == 1
    # A rule that has not begun to converge does not squeeze the others.
    wild = replace(everything.rows[0], error=1e6)
    assert SolverComparison(replace(everything, rows=(*everything.rows[1:], wild))).plot().axes[0].get_ylim()[1] < 1e4


def test_the_page_shows_the_rows_that_solvers_describe():
    """The table of finite differences in docs/solvers.md is what ``describe()`` says."""
    page = (Path(__file__).parents[1] / "docs" / "solvers.md").read_text(encoding="utf-8")
    rows = [rule().describe() for rule in SOLVERS.values()]
    formed = [f"| `{r.name}` | {r.derivative} | {r.gamma} | {r.identity} |" for r in rows if r.derivative != "–"]
    assert len(formed) >= 7
    printed = page.split("| solver | Ṙ | γ | the rule itself |", 1)[1].split("\n\n", 1)[0].strip().splitlines()[1:]
    assert printed == formed
    for rule in SOLVERS:
        assert f"`{rule}`" in page
