"""Late starts on exact laws: masses, divergences, curves, sweeps that resume, and the choice of a start."""

import json
import math

import pytest
import torch

from farfield.analysis.catalogue import Subject, analyze
from farfield.analysis.critical_times import critical_times
from farfield.analysis.late_start import frechet_metric, starts_within
from farfield.analysis.late_start_choice import choose_start, critical_index, search_start
from farfield.analysis.late_start_curve import knee, lowest, plateau_edge, second_differences
from farfield.analysis.late_start_exact import late_mode_mass, separatrix
from farfield.analysis.late_start_mismatch import LawMismatch, law_mismatch
from farfield.analysis.late_start_result import interval
from farfield.analysis.late_start_sweep import NAME, Task, late_start_sweep, tasks_of
from farfield.denoiser import FunctionDenoiser
from farfield.distributions import Empirical, Gaussian
from farfield.errors import ArgumentError, DataError
from farfield.experiments.late_start_published import (
    CELLS,
    CIFAR10_REFERENCE,
    STARTS_2,
    TABLE_2,
    TABLE_3,
    TABLE_6,
)
from farfield.experiments.minority_coverage import toy, toy_mass
from farfield.numerics import streams
from farfield.processes import DDPM
from farfield.sampling import LateStart, late_sampler
from farfield.sampling.late import sigma_of

F64 = torch.float64
PAIR = ([0.2, 0.8], [-1.0, 1.0], [0.0, 0.0])
CIRCLE = torch.tensor([[0.9, 0.0], [-0.9, 0.0], [0.0, 0.6], [0.0, -0.6]], dtype=F64)


def spread(x: torch.Tensor) -> float:
    """A cheap metric: how far the second moments are from those of the circle's points."""
    return float((x.T @ x / len(x) - (CIRCLE.T @ CIRCLE / 4).to(x)).abs().sum())


def test_mass_of_a_mode():
    """Holds symmetry_breaking F27: late starts from N(0, 1) and from the Gaussian, by the quantile identity."""
    plain = (0.412660, 0.347685, 0.293150, 0.254134, 0.229152, 0.214521, 0.206652, 0.201071)
    gls = (0.209321, 0.203479, 0.201041, 0.200245, 0.200044, 0.200006, 0.200001, 0.200000)
    sigmas = [sigma_of(i) for i in (200, 300, 400, 500, 600, 700, 800, 999)]
    assert [late_mode_mass(*PAIR, s, 0.2, gaussian=False) for s in sigmas] == pytest.approx(plain, abs=1e-6)
    assert [late_mode_mass(*PAIR, s, 0.2) for s in sigmas] == pytest.approx(gls, abs=1e-6)
    tenth = ([0.1, 0.9], *PAIR[1:])
    assert late_mode_mass(*tenth, sigma_of(400), 0.1, gaussian=False) == pytest.approx(0.197222, abs=1e-6)
    assert late_mode_mass(*tenth, sigma_of(400), 0.1) == pytest.approx(0.099249, abs=1e-6)
    with pytest.raises(ArgumentError, match="mass"):
        separatrix(*PAIR, 1.0, 1.2)


def test_mass_by_sampling():
    """Holds symmetry_breaking F27: 401 steps of DDIM from index 400 land where the identity says."""
    points = torch.tensor([[-1.0], [1.0], [1.0], [1.0], [1.0]], dtype=F64)
    law, gaussian = Empirical(points), Gaussian.fit(points)
    z = torch.special.ndtri((torch.arange(2000, dtype=F64) + 0.5) / 2000)[:, None]
    for start, mass in ((None, 0.2929), (gaussian, 0.2009)):
        sampler = late_sampler("ddim", 401, 400, start)
        x = sampler.run(law, sampler.start.state(z, sampler.grid.levels[0], law.process)).x
        assert float((x < 0).double().mean()) == pytest.approx(mass, abs=7e-4)


@pytest.mark.parametrize(
    ("n", "default", "row"),
    [
        (3, (666, 0.0236), (0.0771, 0.0624, 0.0454, 0.0288, 0.1389)),
        (5, (800, 0.0628), (0.0891, 0.0843, 0.0785, 0.0723, 0.1744)),
        (10, (900, 0.0847), (0.0943, 0.0932, 0.0914, 0.0892, 0.1881)),
    ],
)
def test_minority_of_the_toy(n, default, row):
    """Holds symmetry_breaking F29: the default start starves the minority, gls repairs most, N(0, I) over-corrects."""
    _, law = toy()
    found = [toy_mass(n, start, law, count=4000) for start in (300, 400, 500, 600)]
    assert toy_mass(n, default[0], None, count=4000) == pytest.approx(default[1], abs=1e-3)
    assert [*found, toy_mass(n, 400, None, count=4000)] == pytest.approx(row, abs=1e-3)


def test_knee_and_plateau():
    """Holds symmetry_breaking F30 and E5: three-point formula on table 2, the plateau's edge, the *lowest* value."""
    names = ("MNIST", "CIFAR10", "CelebA32", "ImageNet64", "CelebA64")
    curves = [TABLE_2[name] for name in names]
    assert [knee(STARTS_2, c) for c in curves] == [300, 400, 400, 400, 400]
    assert [knee(STARTS_2[1:], c[1:]) for c in curves] == [300, 400, 400, 400, 400]
    assert [plateau_edge(STARTS_2, c) for c in curves] == [900, 800, 800, 900, 800]
    assert [lowest(STARTS_2, c)[0] for c in curves] == [1000, 900, 800, 1000, 900]
    assert second_differences((0.0, 1.0, 3.0, 7.0), (0.0, 2.0, 18.0, 98.0)) == pytest.approx([4.0, 4.0])
    with pytest.raises(ArgumentError, match="increasing"):
        knee((1, 3, 2), (0, 0, 0))


def test_published_tables():
    """Holds symmetry_breaking F35, E24 to E27 and E30: 45 of 45 cells, 43 against a tuned start, 27 of 27 of table 6."""
    assert len(CELLS) == 45
    assert sum(c.n == 3 for c in CELLS) == 15
    assert all(c.best[0] < c.default for c in CELLS)
    lost = {(c.data, c.sampler, c.n) for c in CELLS if c.best[0] >= c.tuned[0]}
    assert lost == {("CIFAR10", "DDIM", 10), ("ImageNet64", "PNDM", 5)}
    pairs = [pair for row in TABLE_6.values() for pair in row.values()]
    assert len(pairs) == 27
    assert all(gls < plain for gls, plain in pairs)
    gains = {(c.sampler, c.n): c.gain for c in CELLS if c.data == "CelebA32"}
    assert gains["DDPM", 10] == pytest.approx(2.42, abs=5e-3)
    assert gains["DDPM", 5] == pytest.approx(2.77, abs=5e-3)
    assert max(c.gain for c in CELLS) == gains["PNDM", 3] == pytest.approx(8.25, abs=5e-3)
    assert min(c.gain for c in CELLS) == pytest.approx(1.013, abs=1e-3)
    mean, std = TABLE_3["CIFAR10"][-1]
    assert mean == CIFAR10_REFERENCE
    assert (TABLE_2["CIFAR10"][-1] - mean) / std == pytest.approx(3.3, abs=0.05)


def test_mismatch_is_the_divergence():
    """Holds symmetry_breaking F11: KL(p ‖ N) of two points, here from the two denoisers alone."""
    law = FunctionDenoiser(lambda x, s: torch.tanh(x / (s * s)), (1,))
    gaussian = Gaussian.isotropic(torch.zeros(1, dtype=F64), 1.0)
    sigmas = [math.sqrt(1 / t**2 - 1) for t in torch.linspace(0.02, 0.9, 120).tolist()]
    points = torch.tensor([[-1.0], [1.0]], dtype=F64)
    found = law_mismatch(law, gaussian, points, sigmas=sigmas, queries=20_000, batch_size=20_000, dtype=F64)
    for theta, divergence in ((0.5, 3.892e-4), (0.6, 1.973e-3), (0.6435942529, 3.818e-3), (0.8, 3.834e-2)):
        assert found.at(math.sqrt(1 / theta**2 - 1)) == pytest.approx(divergence, rel=0.04)
    level = found.lowest(3.834e-2)
    assert level == pytest.approx(math.sqrt(1 / 0.64 - 1), rel=0.02)
    assert json.dumps(found.to_dict())
    own = law_mismatch(gaussian, gaussian, points, sigmas=[3.0, 1.0, 0.1])
    assert own.divergence == (0, 0, 0)
    assert own.lowest(1e-9) == 0.1
    with pytest.raises(ArgumentError, match="decreasing"):
        law_mismatch(law, gaussian, points, sigmas=[1.0, 2.0])


def mismatch() -> LawMismatch:
    """A divergence that grows tenfold with every halving of σ."""
    sigmas = tuple(40.0 / 2**k for k in range(9))
    return LawMismatch(sigmas, tuple(1e-5 * 10**k for k in range(9)), 2, 1)


def test_choice_by_prior():
    """Fewer steps start later; the critical time decides where nothing else is known; the spread of a wide law never does."""
    starts = [choose_start(n, mismatch=mismatch()).start for n in (3, 5, 10, 50)]
    assert starts == sorted(starts)
    assert starts[0] < starts[-1]
    both = choose_start(5, critical=700.0, mismatch=mismatch())
    assert both.by == "Gaussianity"
    assert both.critical == 700
    assert "index" in both.summary()
    found = critical_times(Empirical(torch.tensor([[-1.0], [1.0]], dtype=F64)), DDPM())
    choice = choose_start(5, critical=found)
    assert choice.by == "critical time"
    assert choice.start == 292
    wide = critical_times(Gaussian.isotropic(torch.zeros(1, dtype=F64), 4.0), DDPM())
    assert wide.first is not None
    assert critical_index(wide) is None
    with pytest.raises(ArgumentError, match="nothing to choose by"):
        choose_start(5, critical=wide)
    with pytest.raises(ArgumentError, match="tolerance"):
        choose_start(5, critical=300.0, tolerance=0.0)


def test_choice_by_search():
    """Holds symmetry_breaking E5 and A12: the lowest value wins, the whole search is returned."""
    valley = lambda s: (s - 437) ** 2 / 1e4 + 1.0  # noqa: E731
    found = choose_start(5, metric=valley, critical=300.0, evaluations=14, resolution=10)
    assert abs(found.start - 437) <= 10
    assert found.by == "search"
    assert found.tried[0][0] == 300
    assert len(found.tried) <= 14
    assert found.start == min(found.tried, key=lambda pair: pair[1])[0]
    assert json.dumps(found.to_dict())
    grid = search_start(valley, 100, 900, evaluations=9, method="grid")
    assert [s for s, _ in grid] == list(range(100, 901, 100))
    asked: list[int] = []
    search_start(lambda s: asked.append(s) or float(s), 50, 900, evaluations=12)
    assert len(asked) == len(set(asked))
    with pytest.raises(ArgumentError, match="finite"):
        search_start(lambda s: math.nan, 50, 900)
    with pytest.raises(ArgumentError, match="evaluations"):
        search_start(valley, 50, 900, evaluations=2)


def test_sweep(tmp_path):
    """Holds symmetry_breaking E25: both sides cost the same, the default start is among the controls; a sweep resumes."""
    law, gaussian = Empirical(CIRCLE), Gaussian.fit(CIRCLE)
    calls = []
    options = {
        "samplers": ("ddim", "pndm"), "starts": (300, 600), "n_steps": (3,), "seeds": (0, 1), "count": 64,
        "laws": {"plain": None, "gls": gaussian}, "folder": tmp_path, "about": {"model": "circle"}, "clip": False,
    }  # fmt: skip

    def metric(x: torch.Tensor) -> float:
        calls.append(1)
        return spread(x)

    found = late_start_sweep(law, metric=metric, **options)
    assert len(found.cells) == len(calls) == 2 * 2 * (3 + 2)
    assert {c.nfe for c in found.cells if c.sampler == "pndm"} == {9}
    assert found.curve("ddim", 3, "plain").starts == (300, 600, 700)
    gain = found.gain("ddim", 3)
    assert gain.default_start == 700
    assert gain.ratio_low < gain.ratio < gain.ratio_high
    pairs = zip(_runs(found, "plain", 700), _runs(found, "gls", gain.gaussian_start), strict=True)
    logs = [math.log(a / b) for a, b in pairs]
    assert gain.ratio == pytest.approx(math.exp(sum(logs) / 2), rel=1e-12)
    assert found.gain("ddim", 3, gaussian_start=600).gaussian_start == 600
    stored = json.loads((tmp_path / NAME).read_text())
    stored["cells"] = stored["cells"][:7]
    (tmp_path / NAME).write_text(json.dumps(stored))
    again = late_start_sweep(law, metric=metric, **options)
    assert again == found
    assert len(calls) == 20 + 13
    with pytest.raises(DataError, match="model"):
        late_start_sweep(law, metric=metric, **{**options, "about": {"model": "square"}})
    (tmp_path / NAME).write_text("{}")
    with pytest.raises(DataError, match="cells"):
        late_start_sweep(law, metric=metric, **options)
    with pytest.raises(ArgumentError, match="metric"):
        late_start_sweep(law)


def _runs(found, law, start):
    curve = found.curve("ddim", 3, law)
    return curve.runs[curve.at(start)]


def test_sweep_of_a_single_cell_is_the_sampler():
    """A cell holds what the sampler draws from the seed, with any start in the Gaussian's place."""
    law, gaussian = Empirical(CIRCLE), Gaussian.fit(CIRCLE)
    task = Task("ddim", 4, "mine", 500, 7)
    found = late_start_sweep(
        law, laws={"mine": lambda s: LateStart(gaussian, sigma_of(s))}, tasks=[task], metric=spread, count=40, clip=False
    )  # fmt: skip
    x = late_sampler("ddim", 4, 500, gaussian)(law, 40, 7).x
    assert found.cells[0].values["value"] == pytest.approx(spread(x), rel=1e-12)
    assert [t.start for t in tasks_of(("ddim",), (3, 10), (5,), ("gls",), (0,))] == [10]
    assert [t.start for t in tasks_of(("ddim",), (300,), (5,), ("plain",), (0,), sigma_max=20.0)] == [300]


def test_analysis():
    """The registered analysis: curves, critical index, choices, table and figure of a small set of points."""
    points = streams.normal(0, range(300), (2,), purpose="test", dtype=torch.float32) * 0.2
    points[:150, 0] += 1
    points[150:, 0] -= 1
    subject = Subject(Empirical(points), points, seed=0)
    found = analyze("late-start", subject, {"steps": (3,), "starts": (200, 400, 600, 800), "n": 64, "queries": 32})
    assert found.critical is not None
    assert 200 < found.critical < 400
    assert len(found.choices) == 1
    assert found.choices[0].by == "Gaussianity"
    assert "Without sampling" in found.summary()
    assert len(found.tables()) == 2
    json.dumps(found.to_dict(), allow_nan=False)
    figure = found.plot()
    assert figure.axes[0].get_xlabel() == "index of the start"
    assert starts_within(Empirical(points), (100, 999)) == (100, 999)
    metric = frechet_metric(points)
    assert metric(points) == pytest.approx(0.0, abs=1e-9)
    assert metric(points + 1) == pytest.approx(2.0, rel=1e-5)
    with pytest.raises(ArgumentError, match="n = 1"):
        analyze("late-start", subject, {"n": 1})


def test_interval():
    """Student's interval of a mean; one value has none."""
    assert interval([1.0]) == 0
    assert interval([1.0, 2.0, 3.0]) == pytest.approx(4.302652729911275 / math.sqrt(3))
