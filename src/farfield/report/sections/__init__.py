"""The sections that come with the library; importing this package registers them."""

from farfield.report.sections import (
    card,
    deviation,
    emergence,
    fidelity,
    field,
    gaussianity,
    learning,
    potential,
    quality,
    rotation,
    samples,
    solvers,
    summary,
    targets,
    teleport,
    trajectories,
)

__all__ = [
    "card",
    "deviation",
    "emergence",
    "fidelity",
    "field",
    "gaussianity",
    "learning",
    "potential",
    "quality",
    "rotation",
    "samples",
    "solvers",
    "summary",
    "targets",
    "teleport",
    "trajectories",
]
