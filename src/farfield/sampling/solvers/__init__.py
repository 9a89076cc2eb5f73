"""Step rules for ``dx/d log σ = x − D(x, σ)`` and the registry that names them."""

from __future__ import annotations

from farfield.errors import unknown_name
from farfield.sampling.solvers.base import Solver
from farfield.sampling.solvers.deis import DEIS
from farfield.sampling.solvers.dpm2 import DPM2
from farfield.sampling.solvers.dpm3 import DPM3
from farfield.sampling.solvers.dpmpp_2m import DPMpp2M
from farfield.sampling.solvers.dpmpp_2s import DPMpp2S
from farfield.sampling.solvers.dpmpp_3m import DPMpp3M
from farfield.sampling.solvers.euler import Euler
from farfield.sampling.solvers.heun import Heun
from farfield.sampling.solvers.ipndm import IPNDM, IPNDMv
from farfield.sampling.solvers.lms import LMS
from farfield.sampling.solvers.plms import PLMS
from farfield.sampling.solvers.pndm import PNDM
from farfield.sampling.solvers.rk45 import RK45
from farfield.sampling.solvers.spndm import SPNDM
from farfield.sampling.solvers.taylor2 import Taylor2
from farfield.sampling.solvers.unipc import UniPC
from farfield.sampling.solvers.whitened import Whitened

#: Every step rule by its name. A new method is a new file and a new line here.
SOLVERS: dict[str, type[Solver]] = {
    s.name: s
    for s in (
        Euler,
        Heun,
        DPM2,
        DPM3,
        DPMpp2S,
        DPMpp2M,
        Taylor2,
        DPMpp3M,
        UniPC,
        DEIS,
        LMS,
        IPNDMv,
        IPNDM,
        SPNDM,
        PLMS,
        PNDM,
        RK45,
        Whitened,
    )
}
#: Those whose evaluations are known before a run.
PLANNED: dict[str, type[Solver]] = {name: s for name, s in SOLVERS.items() if not s.adaptive}


def make_solver(name: str, **options: object) -> Solver:
    """The solver of that name.

    Raises:
        ArgumentError: for an unknown name (the known ones are listed) or an option that the solver does not have.
    """
    if name not in SOLVERS:
        raise unknown_name("solver", name, SOLVERS)
    return SOLVERS[name].from_options(options)


__all__ = [
    "DEIS",
    "DPM2",
    "DPM3",
    "IPNDM",
    "LMS",
    "PLANNED",
    "PLMS",
    "PNDM",
    "RK45",
    "SOLVERS",
    "SPNDM",
    "DPMpp2M",
    "DPMpp2S",
    "DPMpp3M",
    "Euler",
    "Heun",
    "IPNDMv",
    "Solver",
    "Taylor2",
    "UniPC",
    "Whitened",
    "make_solver",
]
