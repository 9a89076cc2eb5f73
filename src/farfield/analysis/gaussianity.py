"""Are noisy data still Gaussian? The Shapiro-Wilk test on noised samples, time by time, with the reduction named.

The test is for numbers, so samples of many coordinates are reduced to several columns of numbers first:

    coordinates   the coordinates themselves, or a seeded choice of them
    projections   inner products with random unit vectors, the same at every time
    components    the leading principal components of the data

For each, the median W and p over its columns, the fraction rejected at 5 %, and the median excess kurtosis. A column that
is normal is rejected one time in twenty. (Raya & Ambrogioni 2023, section 5 and figure 19, test 500 samples and do not say
how they reduce them.) Random projections of many coordinates look normal whatever the law (Diaconis & Freedman 1984), so
the components see most; and with 500 samples the test notices little before the first critical time: for two points it
rejects one column in five there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from farfield.analysis.catalogue import Subject, analysis
from farfield.analysis.gaussianity_result import Gaussianity, ReductionCurve
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError, DataError
from farfield.numerics import streams
from farfield.processes import VP, TimeMap

Reduction = Literal["coordinates", "projections", "components"]
REDUCTIONS: tuple[Reduction, ...] = ("coordinates", "projections", "components")

#: Above this many samples the test's p-values are not trustworthy (Royston 1995).
MOST = 5000
LEVEL = 0.05


@dataclass(frozen=True, eq=False)
class ShapiroWilk:
    """Tests of several columns.

    Attributes:
        statistic: (k,) W, in (0, 1].
        p: (k,) the probability of a W this small under a normal law.
        kurtosis: (k,) excess kurtosis, 0 for a normal law.
    """

    statistic: Tensor
    p: Tensor
    kurtosis: Tensor

    @property
    def rejected(self) -> float:
        """The fraction with p below 0.05."""
        return float((self.p < LEVEL).double().mean())


def shapiro_wilk(values: Tensor) -> ShapiroWilk:
    """The Shapiro-Wilk test of each column of (n, k), and its excess kurtosis.

    Raises:
        ArgumentError: for fewer than 3 or more than 5,000 rows.
        DataError: for values that are not finite, or a column without any spread.
    """
    from scipy.stats import shapiro

    if values.ndim != 2 or not 3 <= values.shape[0] <= MOST or values.shape[1] < 1:
        raise ArgumentError(f"values has shape {tuple(values.shape)}; expected (n, k) with 3 <= n <= {MOST:,}, k >= 1")
    wide = values.detach().double().cpu()
    if not bool(torch.isfinite(wide).all()):
        raise DataError(f"{int((~torch.isfinite(wide)).sum())} of the values to be tested are NaN or infinite")
    centred = wide - wide.mean(0)
    variance = centred.square().mean(0)
    if not bool((variance > 0).all()):
        raise DataError(f"{int((variance <= 0).sum())} of the columns to be tested are constant")
    found = torch.tensor([shapiro(column) for column in wide.T.numpy()], dtype=torch.float64)
    return ShapiroWilk(found[:, 0], found[:, 1], centred.pow(4).mean(0) / variance**2 - 3)


def directions(data: Tensor, reduction: Reduction, count: int, seed: int = 0) -> Tensor:
    """Unit vectors (k, d) in float64, k = min(count, d): the columns that a reduction tests.

    Args:
        data: (N, *event); only the components look at their values.
        reduction: which.
        count: how many at most.
        seed: of the chosen coordinates and of the projections.

    Raises:
        ArgumentError: for an unknown reduction or a count below 1.
    """
    dim = math.prod(data.shape[1:])
    if reduction not in REDUCTIONS or count < 1:
        raise ArgumentError(f"reduction = {reduction!r}, count = {count}; expected one of {list(REDUCTIONS)}, >= 1")
    count = min(count, dim)
    if reduction == "coordinates":
        chosen = streams.permutation(seed, dim, purpose="gaussianity coordinates")[:count].sort().values
        return torch.eye(dim, dtype=torch.float64)[chosen]
    if reduction == "projections":
        drawn = streams.normal(seed, range(count), (dim,), purpose="gaussianity projections", dtype=torch.float64)
        return torch.nn.functional.normalize(drawn, dim=1)
    spectrum = Gaussian.fit(data, rank=None if dim <= 1024 else min(count, len(data) - 1)).spectrum
    assert spectrum.basis is not None
    return spectrum.basis[:, :count].T.double().cpu()


def noised_columns(
    data: Tensor, rows: Tensor, axes: Tensor, process: TimeMap, t: float, seed: int, purpose: str
) -> Tensor:
    """``α y + s z`` of chosen samples on unit vectors: (n, k) in float64.

    The noise is drawn for each column on its own, which is exact where the vectors are orthogonal; each column has the law
    of the noised samples on its vector in any case, and the test looks at one column at a time.
    """
    clean = data[rows.to(data.device)].flatten(1).double().cpu() @ axes.T
    noise = streams.normal(seed, range(len(rows)), (len(axes),), purpose=purpose, dtype=torch.float64)
    return process.alpha(t) * clean + process.std(t) * noise


def gaussianity(
    data: Tensor,
    *,
    process: TimeMap | None = None,
    times: Sequence[float] | None = None,
    n: int = 500,
    reductions: Sequence[Reduction] = REDUCTIONS,
    columns: int = 64,
    components: int = 16,
    threshold: float = 0.5,
    critical: float | None = None,
    seed: int = 0,
) -> Gaussianity:
    """Test noised samples of a data set at several times.

    Args:
        data: (N, *event).
        process: the time map, :class:`VP` by default.
        times: forward times; by default 25 over the horizon.
        n: samples, 20 to 5,000, drawn with replacement where there are not as many data. The same ones, with the same
            noise, at every time, so that curves are smooth.
        reductions: see the head of this module.
        columns: coordinates and projections, at most.
        components: principal components, at most.
        threshold: the normal regime ends where this fraction of columns is rejected, i.e. where the median p is 0.05.
        critical: forward time to compare with.
        seed: of samples, noise and directions.

    Raises:
        ArgumentError: for arguments out of range.
        DataError: for data that are not finite.
    """
    process = process if process is not None else VP()
    if times is None:
        times = [process.t_max * (k + 0.5) / 25 for k in range(25)]
    ordered = sorted({float(t) for t in times}, reverse=True)
    if len(ordered) < 2 or ordered[-1] < process.t_min or ordered[0] > process.t_max:
        raise ArgumentError(f"times = {ordered}; expected two or more from {process.t_min:g} to {process.t_max:g}")
    if not 20 <= n <= MOST or not 0 < threshold < 1:
        raise ArgumentError(f"n = {n}, threshold = {threshold}; expected 20 to {MOST:,} samples, and 0 < threshold < 1")
    if data.ndim < 2 or len(data) < 2 or not reductions or len(set(reductions)) != len(reductions):
        raise ArgumentError(f"data {tuple(data.shape)}, reductions {list(reductions)}; expected (N, *event), each once")
    if not bool(torch.isfinite(data).all()):
        raise DataError("the data hold NaN or infinity")
    if n <= len(data):
        rows = streams.permutation(seed, len(data), purpose="gaussianity samples")[:n]
    else:
        rows = (streams.uniform(seed, range(n), purpose="gaussianity samples", dtype=torch.float64) * len(data)).long()
    curves: dict[str, ReductionCurve] = {}
    for reduction in reductions:
        axes = directions(data, reduction, components if reduction == "components" else columns, seed)
        tested = [
            shapiro_wilk(noised_columns(data, rows, axes, process, t, seed, f"gaussianity {reduction}"))
            for t in ordered
        ]
        curves[reduction] = ReductionCurve.of(len(axes), tested)
    return Gaussianity(
        curves=curves,
        times=tuple(ordered),
        thetas=tuple(float(process.alpha(t)) for t in ordered),
        sigmas=tuple(float(process.sigma(t)) for t in ordered),
        n=n,
        points=len(data),
        threshold=threshold,
        critical=critical,
        seed=seed,
    )


@dataclass(frozen=True)
class GaussianityOptions:
    """Options of the analysis; see :func:`gaussianity`.

    Attributes:
        critical: whether the first critical time of the data's exact law, of its first ``points`` points, stands beside.
    """

    times: tuple[float, ...] | None = None
    n: int = 500
    reductions: tuple[Reduction, ...] = REDUCTIONS
    columns: int = 64
    components: int = 16
    threshold: float = 0.5
    critical: bool = True
    points: int = 5000


@analysis("gaussianity", about="until when noisy data look Gaussian: Shapiro-Wilk by time", options=GaussianityOptions)
def analyze_gaussianity(subject: Subject, options: GaussianityOptions) -> Gaussianity:
    """:func:`gaussianity` of a subject's data; the model plays no part."""
    from farfield.analysis.potential_sections_analysis import first_critical_time

    if options.points < 1:
        raise ArgumentError(f"points = {options.points}; expected at least 1")
    critical = first_critical_time(subject.data[: options.points], seed=subject.seed) if options.critical else None
    return gaussianity(
        subject.data,
        times=options.times,
        n=options.n,
        reductions=options.reductions,
        columns=options.columns,
        components=options.components,
        threshold=options.threshold,
        critical=critical,
        seed=subject.seed,
    )
