"""The laws that an analysis compares a model with, fitted to its data and chosen by name."""

from __future__ import annotations

from collections.abc import Sequence

from farfield.analysis.catalogue import Subject
from farfield.analysis.reference_laws import mixture_size, reference_laws
from farfield.denoiser import Denoiser
from farfield.errors import ArgumentError, unknown_name

_KNOWN = ("isotropic", "spherical", "gaussian", "classes", "mixture", "empirical")


def subject_laws(
    subject: Subject, names: Sequence[str] | None = None, components: int | None = None
) -> dict[str, Denoiser]:
    """The laws of :func:`reference_laws`, fitted to a subject's data, in the order they are asked for.

    Args:
        subject: its data, labels and seed.
        names: which of ``"isotropic"``, ``"spherical"``, ``"gaussian"``, ``"classes"``, ``"mixture"`` (or ``"mixture:K"``
            for K clusters, as often as wanted) and ``"empirical"``; by default isotropic, gaussian, classes where the data
            have some, mixture and empirical.
        components: clusters of ``"mixture"``.

    Raises:
        ArgumentError: for another name, one named twice, or ``"classes"`` of data without any.
    """
    if names is None:
        names = ["isotropic", "gaussian", *(["classes"] if subject.labels is not None else []), "mixture", "empirical"]
    if not names or len(set(names)) != len(names):
        raise ArgumentError(f"laws = {list(names)}; expected at least one, each once")
    if "classes" in names and subject.labels is None:
        raise ArgumentError("laws = classes: the data have no classes")
    sizes: dict[str, int] = {}
    for name in names:
        kind, _, size = name.partition(":")
        if name == "mixture":
            sizes[name] = components if components is not None else mixture_size(len(subject.data))
        elif kind == "mixture" and size.isascii() and size.isdigit() and int(size) > 0:
            sizes[name] = int(size)
        elif name not in _KNOWN:
            raise unknown_name("law", name, _KNOWN)
    found = reference_laws(
        subject.data,
        components=tuple(dict.fromkeys(sizes.values())) or (1,),  # one cluster costs next to nothing
        labels=subject.labels if "classes" in names else None,
        spherical="spherical" in names,
        seed=subject.seed,
    )
    return {name: found[f"mixture:{sizes[name]}" if name in sizes else name] for name in names}
