"""The solver of ``farfield sample``: what the command line says of each, its options, and which one is the default."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from farfield.errors import ArgumentError

if TYPE_CHECKING:
    from farfield.sampling import Solver


def one_line(solver: Solver) -> str:
    """A solver in one line: name, order, evaluations of a step, and its options with their defaults."""
    row = solver.describe()
    options = " ".join(f"{key}={v:.4g}" if isinstance(v, float) else f"{key}={v}" for key, v in row.options.items())
    return "; ".join(
        part for part in (f"{row.name}: order {row.order}", row.evaluations.replace(": ", ", "), options) if part
    )


def known_solvers(default: str) -> str:
    """What the help adds to ``--solver``: its default, and every solver of the registry in a line."""
    from farfield.sampling.solvers import SOLVERS, make_solver

    head = (f"(default: {default})", "name: order; evaluations of a step; options with their defaults")
    return "\n".join((*head, *(one_line(make_solver(name)) for name in SOLVERS)))


def solver_of(name: str, order: int | None, given: Sequence[str]) -> Solver:
    """The solver that ``--solver``, ``--order`` and ``--solver-option`` ask for.

    Args:
        name: of the registry.
        order: of ``--order``, or None.
        given: ``name=value`` pairs; a value is read as YAML, and 1e-5 as a number.

    Raises:
        ArgumentError: for an unknown solver or option, a value that does not fit, or an option given twice.
    """
    from farfield.cli.analyze import parse_options
    from farfield.sampling.solvers import make_solver

    options: dict[str, object] = {} if order is None else {"order": order}
    for key, value in ((key, value) for pair in given for key, value in parse_options((pair,)).items()):
        if key in options:
            raise ArgumentError(f"--solver-option {key}={value}: {key} is given twice")
        options[key] = number_in(value)
    try:
        return make_solver(name, **options)
    except ArgumentError:
        raise
    except (TypeError, ValueError) as error:  # a word where the solver computes with a number
        shown = ", ".join(f"{key}={value}" for key, value in options.items())
        raise ArgumentError(f"--solver-option {shown}: a value does not fit solver {name!r} ({error})") from error


def number_in(value: object) -> object:
    """A text that is a number, as that number: in YAML 1.1 ``1e-5`` without a point is none, and fractions are not either."""
    if not isinstance(value, str):
        return value
    above, slash, below = value.partition("/")
    try:
        return float(above) / float(below) if slash else float(value)
    except (ValueError, ZeroDivisionError):
        return value
