"""Step rules for ``dx/d log σ = x − D(x, σ)`` and the registry that names them."""

from __future__ import annotations

from farfield.errors import unknown_name
from farfield.sampling.solvers.base import Solver
from farfield.sampling.solvers.dpmpp_2m import DPMpp2M
from farfield.sampling.solvers.euler import Euler
from farfield.sampling.solvers.heun import Heun
from farfield.sampling.solvers.pndm import PNDM
from farfield.sampling.solvers.whitened import Whitened

#: Every step rule by its name. A new method is a new file and a new line here.
SOLVERS: dict[str, type[Solver]] = {s.name: s for s in (Euler, Heun, DPMpp2M, PNDM, Whitened)}


def make_solver(name: str, **options: object) -> Solver:
    """The solver of that name.

    Raises:
        ArgumentError: for an unknown name (the known ones are listed) or an option that the solver does not have.
    """
    if name not in SOLVERS:
        raise unknown_name("solver", name, SOLVERS)
    return SOLVERS[name].from_options(options)


__all__ = ["PNDM", "SOLVERS", "DPMpp2M", "Euler", "Heun", "Solver", "Whitened", "make_solver"]
