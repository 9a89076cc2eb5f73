"""Published Fréchet distances of teleported EDM sampling, as data: Wang & Vastola 2024, tables 4 to 6.

EDM's pretrained unconditional networks, Heun on its Karras grid (σ from 80 to 0.002, ρ = 7), 50,000 samples, features of
Inception. Levels and evaluations that the tables print follow from the grid and the number of skipped nodes; they are kept
as printed, so that a test can hold the grid against them. The text speaks of "79 steps" for FFHQ and AFHQv2: it is 40 steps
and 79 evaluations.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "Wang & Vastola 2024, tables 4-6"


@dataclass(frozen=True)
class PublishedSkips:
    """One published table.

    Attributes:
        data: the data set.
        levels: positive levels of the grid, before any is skipped.
        skipped: nodes of the grid that the teleport passes over.
        nfe: evaluations that are left.
        sigma: the level of the teleport, rounded to one decimal.
        frechet: the Fréchet distance.
    """

    data: str
    levels: int
    skipped: tuple[int, ...]
    nfe: tuple[int, ...]
    sigma: tuple[float, ...]
    frechet: tuple[float, ...]

    @property
    def saved(self) -> tuple[float, ...]:
        """The fraction of the evaluations that each skip saves."""
        return tuple(1 - n / self.nfe[0] for n in self.nfe)

    @property
    def change(self) -> tuple[float, ...]:
        """The relative change of the Fréchet distance."""
        return tuple(f / self.frechet[0] - 1 for f in self.frechet)

    def most_saved(self, loss: float) -> float:
        """The largest saving whose Fréchet distance rises by less than a fraction ``loss``."""
        return max(s for s, c in zip(self.saved, self.change, strict=True) if c < loss)


_SKIPS_64 = (0, 2, 4, 6, 8, 10, 12, 14, 16, 20)
_NFE_64 = (79, 75, 71, 67, 63, 59, 55, 51, 47, 39)
_SIGMA_64 = (80.0, 60.1, 44.6, 32.7, 23.6, 16.8, 11.7, 8.0, 5.4, 2.2)

PUBLISHED = (
    PublishedSkips(
        "CIFAR-10",
        18,
        (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12),
        (35, 33, 31, 29, 27, 25, 23, 21, 19, 15, 11),
        (80.0, 57.6, 40.8, 28.4, 19.4, 12.9, 8.4, 5.3, 3.3, 1.1, 0.3),
        (1.958, 1.955, 1.949, 1.940, 1.932, 1.934, 1.963, 2.123, 3.213, 23.947, 109.178),
    ),
    PublishedSkips(
        "AFHQv2-64", 40, _SKIPS_64, _NFE_64, _SIGMA_64,
        (2.043, 2.029, 2.016, 2.003, 2.005, 2.026, 2.102, 2.359, 3.206, 14.442),
    ),
    PublishedSkips(
        "FFHQ-64", 40, _SKIPS_64, _NFE_64, _SIGMA_64,
        (2.464, 2.489, 2.523, 2.561, 2.617, 2.681, 2.841, 3.243, 4.402, 15.451),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class PublishedBudgets:
    """Distances at few evaluations, all of them below the teleport: CIFAR-10, from the result tables of the source's code.

    Attributes:
        solver: its name.
        nfe: the evaluations.
        rows: the distances at them, by the level of the teleport; 80 is none.
    """

    solver: str
    nfe: tuple[int, ...]
    rows: dict[float, tuple[float, ...]]


BUDGETS_SOURCE = "companion code of Wang & Vastola 2024, CIFAR-10"
_FEW = (5, 6, 8, 10)
PUBLISHED_BUDGETS = (
    PublishedBudgets("DPM-Solver++", _FEW, {
        80.0: (25.15, 12.25, 4.56, 3.07), 40.0: (18.31, 9.01, 3.82, 2.83), 20.0: (14.39, 7.23, 3.71, 2.84),
        10.0: (12.29, 6.79, 3.97, 2.94), 5.0: (11.39, 7.42, 4.93, 3.62), 2.5: (14.27, 11.80, 9.13, 7.23),
    }),
    PublishedBudgets("Heun", _FEW, {
        80.0: (320.08, 99.87, 38.15, 15.96), 40.0: (246.49, 65.80, 24.22, 8.91), 20.0: (175.26, 43.38, 13.73, 6.02),
        10.0: (123.18, 30.28, 8.75, 4.46), 5.0: (91.08, 20.06, 7.32, 4.05), 2.5: (62.27, 15.86, 8.89, 6.60),
    }),
    PublishedBudgets("UniPC bh2", _FEW, {
        80.0: (24.13, 11.46, 4.00, 2.97), 40.0: (16.84, 7.94, 3.53, 2.79), 20.0: (13.08, 6.32, 3.50, 2.73),
        10.0: (11.17, 6.02, 3.89, 2.74), 5.0: (10.27, 6.64, 4.88, 3.30), 2.5: (13.14, 11.03, 8.70, 6.57),
    }),
)  # fmt: skip
