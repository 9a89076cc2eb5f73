"""The sections that come with the library; importing this package registers them."""

from farfield.report.sections import card, fidelity, quality, samples, solvers, summary, targets, trajectories

__all__ = ["card", "fidelity", "quality", "samples", "solvers", "summary", "targets", "trajectories"]
