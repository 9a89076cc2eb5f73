"""A sampler as JSON text: every part by its name and parameters, the laws among them included."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from farfield.distributions import Gaussian, GaussianMixture
from farfield.errors import DataError, FarfieldError, unknown_name
from farfield.sampling.finishes import FINISHES
from farfield.sampling.grids import grid_from_dict
from farfield.sampling.guidance import GUIDANCES
from farfield.sampling.noise import NOISES
from farfield.sampling.solvers import make_solver
from farfield.sampling.starts import STARTS

if TYPE_CHECKING:
    from farfield.sampling.sampler import Sampler

FORMAT = "farfield sampler 1"
_FIELDS = ("format", "solver", "sigmas", "start", "finish", "covariance", "noise", "guidance", "nfe", "gaussians")


def dump(sampler: Sampler, indent: int | None) -> str:
    """The text; a Gaussian that several parts share is written once.

    Raises:
        ArgumentError: if a part cannot be written: states given as a start, or a function as guidance or stop rule.
    """
    gaussians: list[Gaussian] = []

    def reference(value: Any) -> Any:
        if isinstance(value, Gaussian):
            if not any(value is g for g in gaussians):
                gaussians.append(value)
            return {"gaussian": next(k for k, g in enumerate(gaussians) if g is value)}
        if isinstance(value, GaussianMixture):
            return {"mixture": value.to_dict()}
        return [reference(v) for v in value] if isinstance(value, list | tuple) else value

    spec: dict[str, Any] = {
        "format": FORMAT,
        "solver": sampler.rule.to_dict(),
        "sigmas": sampler.grid.to_dict(),
        "start": {k: reference(v) for k, v in sampler.start.to_dict().items()},
        "finish": sampler.finish.to_dict(),
        "covariance": reference(sampler.covariance),
    }
    if sampler.noise is not None:
        spec["noise"] = sampler.noise.to_dict()
    if sampler.guidance:
        spec["guidance"] = [part.to_dict() for part in sampler.parts]
    spec["nfe"] = None if sampler.rule.adaptive else sampler.nfe  # what it needs is known only afterwards
    spec["gaussians"] = [g.to_dict() for g in gaussians]
    return json.dumps(spec, indent=indent)


def parse(text: str) -> dict[str, Any]:
    """The arguments of the sampler that :func:`dump` wrote.

    Raises:
        DataError: if the text is not such JSON.
        ArgumentError: if it names parts or options that do not exist.
    """
    try:
        spec = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"not a sampler: invalid JSON at line {error.lineno}: {error.msg}") from error
    if not isinstance(spec, dict) or spec.get("format") != FORMAT:
        raise DataError(f"not a sampler: the field 'format' should be {FORMAT!r}")
    strange = sorted(spec.keys() - set(_FIELDS))
    if strange:  # a part that is not understood must not be left out in silence
        raise DataError(f"not a sampler of this version: it has a field {strange[0]!r}")
    try:
        gaussians = dict(enumerate(Gaussian.from_dict(g) for g in spec.get("gaussians", [])))

        def resolve(value: Any) -> Any:
            if isinstance(value, dict):
                if "mixture" in value:
                    return GaussianMixture.from_dict(value["mixture"])
                return gaussians[value["gaussian"]]
            return [resolve(v) for v in value] if isinstance(value, list) else value

        noise = spec.get("noise")
        return {
            "solver": make_solver(**spec["solver"]),
            "sigmas": grid_from_dict(spec["sigmas"]),
            "start": _part("start", _stored_starts(), {k: resolve(v) for k, v in spec["start"].items()}),
            "finish": _part("finish", FINISHES, spec["finish"]),
            "covariance": resolve(spec.get("covariance")),
            "noise": None if noise is None else _part("noise", NOISES, noise),
            "guidance": tuple(_part("guidance", GUIDANCES, part) for part in spec.get("guidance", ())),
        }
    except FarfieldError:
        raise
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(f"not a sampler: a field is missing or has the wrong type ({error!r})") from error


def _stored_starts() -> dict[str, type[Any]]:
    """States are data; a stored sampler does not hold them."""
    return {name: start for name, start in STARTS.items() if start.stored}


def _part(kind: str, registry: Mapping[str, type[Any]], spec: Mapping[str, Any]) -> Any:
    fields = dict(spec)
    name = fields.pop("name", None)
    if name not in registry:
        raise unknown_name(kind, name, registry)
    return registry[name](**fields)
