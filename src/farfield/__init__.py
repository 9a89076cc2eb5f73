"""farfield: train, sample and explain physics-inspired generative models through one equation.

Every model is a denoiser ``D(x, σ) = E[x₀ | x at noise level σ]``; every deterministic sampler integrates
``dx/d log σ = x − D(x, σ)``. A network, a Gaussian, a mixture and the training set itself are all denoisers.

    import farfield as ff

    data = ff.data.load("digits")
    net = ff.load("digits")
    gauss = ff.Gaussian.fit(data.images)
    out = ff.Sampler("whitened", ff.karras(8), covariance=gauss)(net, n=64, seed=0)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from farfield.version import __version__

if TYPE_CHECKING:
    from farfield import analysis, data, distributions, metrics, processes, report, sampling, training
    from farfield.analysis import advise
    from farfield.data import DataSet
    from farfield.denoiser import Denoiser, FunctionDenoiser
    from farfield.distributions import Distribution, Empirical, Gaussian, GaussianMixture, toy
    from farfield.errors import (
        ArgumentError,
        DataError,
        FarfieldError,
        ModelFileError,
        NonFiniteError,
    )
    from farfield.interop import bundled_models, load
    from farfield.networks import Preconditioned
    from farfield.numerics.spectrum import Spectrum
    from farfield.processes import DDPM, VE, VP, Diffusion, Process, SubVP
    from farfield.sampling import (
        AtLastLevel,
        Given,
        Jump,
        LateStart,
        Prior,
        Sampler,
        Samples,
        Teleport,
        ToZero,
        Trajectory,
        ddpm,
        karras,
        log_snr,
        spectral,
        vp_time,
    )

# Where each public name lives; a name is imported when it is first asked for, so that `import farfield` stays light.
_HOMES = {
    "farfield.analysis": ("advise",),
    "farfield.data": ("DataSet",),
    "farfield.denoiser": ("Denoiser", "FunctionDenoiser"),
    "farfield.distributions": ("Distribution", "Empirical", "Gaussian", "GaussianMixture", "toy"),
    "farfield.errors": ("ArgumentError", "DataError", "FarfieldError", "ModelFileError", "NonFiniteError"),
    "farfield.interop": ("bundled_models", "load"),
    "farfield.networks": ("Preconditioned",),
    "farfield.numerics.spectrum": ("Spectrum",),
    "farfield.processes": ("DDPM", "VE", "VP", "Diffusion", "Process", "SubVP"),
    "farfield.sampling": (
        "AtLastLevel",
        "Given",
        "Jump",
        "LateStart",
        "Prior",
        "Sampler",
        "Samples",
        "Teleport",
        "ToZero",
        "Trajectory",
        "ddpm",
        "karras",
        "log_snr",
        "spectral",
        "vp_time",
    ),
}
_NAMES = {name: module for module, names in _HOMES.items() for name in names}
_ROOMS = ("analysis", "data", "distributions", "metrics", "processes", "report", "sampling", "training")

__all__ = [
    "DDPM",
    "VE",
    "VP",
    "ArgumentError",
    "AtLastLevel",
    "DataError",
    "DataSet",
    "Denoiser",
    "Diffusion",
    "Distribution",
    "Empirical",
    "FarfieldError",
    "FunctionDenoiser",
    "Gaussian",
    "GaussianMixture",
    "Given",
    "Jump",
    "LateStart",
    "ModelFileError",
    "NonFiniteError",
    "Preconditioned",
    "Prior",
    "Process",
    "Sampler",
    "Samples",
    "Spectrum",
    "SubVP",
    "Teleport",
    "ToZero",
    "Trajectory",
    "__version__",
    "advise",
    "analysis",
    "bundled_models",
    "data",
    "ddpm",
    "distributions",
    "karras",
    "load",
    "log_snr",
    "metrics",
    "processes",
    "report",
    "sampling",
    "spectral",
    "toy",
    "training",
    "vp_time",
]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(importlib.import_module(_NAMES[name]), name)
    elif name in _ROOMS:
        value = importlib.import_module(f"farfield.{name}")
    else:
        raise AttributeError(f"module 'farfield' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
