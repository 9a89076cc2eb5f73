"""Strict dataclasses from plain mappings (YAML, JSON): every key known, every value of the declared type.

Configurations and model cards come from people and from files, so each mistake is answered with one line that names the
key, the value and what would be right. A union of dataclasses is told apart by its field ``kind``.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from farfield.errors import ArgumentError, unknown_name

T = TypeVar("T")


def plain(value: Any) -> Any:
    """A dataclass as a mapping of lists, strings and numbers, as :func:`structure` reads it back."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    return value


def structure(cls: type[T], value: object, where: str = "") -> T:
    """An instance of the dataclass ``cls`` from a mapping; fields that are absent keep their defaults.

    Args:
        cls: a dataclass whose fields are dataclasses, unions of them, numbers, strings, tuples, literals or None.
        value: the mapping.
        where: dotted name of the mapping, for messages.

    Raises:
        ArgumentError: an unknown key, a missing one, or a value of the wrong type.
    """
    if not isinstance(value, Mapping):
        raise ArgumentError(f"{where or 'configuration'} = {value!r}; expected a mapping of names to values")
    hints = get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    prefix = f"{where}." if where else ""
    arguments = {}
    for key, entry in value.items():
        if key not in fields:
            raise unknown_name("key", f"{prefix}{key}", [f"{prefix}{name}" for name in fields])
        arguments[key] = _convert(hints[key], entry, f"{prefix}{key}")
    for name, field in fields.items():
        if name not in arguments and field.default is field.default_factory is dataclasses.MISSING:
            raise ArgumentError(f"{prefix}{name} is missing; it has no default")
    return cls(**arguments)


def check_bounds(bounds: dict[str, tuple[int, int, int]]) -> None:
    """Raise ``ArgumentError`` for the first of a network's ``{name: (value, low, high)}`` that is out of its bounds."""
    for name, (value, low, high) in bounds.items():
        if not low <= value <= high:
            raise ArgumentError(f"network.{name} = {value}; expected a value from {low} to {high}")


def _union(members: tuple[Any, ...], value: object, where: str) -> object:
    """A value for a union: None, a dataclass picked by its ``kind``, or the first simple type that fits."""
    if value is None and type(None) in members:
        return None
    members = tuple(m for m in members if m is not type(None))
    classes: dict[str, Any] = {m.kind: m for m in members if dataclasses.is_dataclass(m)}  # type: ignore[union-attr]
    if classes and isinstance(value, Mapping):
        kind = value.get("kind", next(iter(classes)))
        if not isinstance(kind, str) or kind not in classes:
            raise unknown_name(f"{where}.kind", kind, classes)
        return structure(classes[kind], value, where)
    if len(members) > 1:
        for member in members:  # int | float: a whole number stays whole
            try:
                return _convert(member, value, where)
            except ArgumentError:
                continue
        raise ArgumentError(f"{where} = {value!r}; expected {' or '.join(_describe(m) for m in members)}")
    return _convert(members[0], value, where)


def _convert(hint: Any, value: object, where: str) -> object:
    """``value`` as the annotated type ``hint``, or an ``ArgumentError``."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _union(arguments, value, where)
    if dataclasses.is_dataclass(hint):
        return structure(hint, value, where)  # type: ignore[arg-type]
    if origin is Literal:
        if value not in arguments:
            raise unknown_name(where, value, map(str, arguments))
        return value
    if origin is tuple and isinstance(value, list | tuple):
        entries = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(entries) == len(value):
            return tuple(_convert(h, v, f"{where}[{i}]") for i, (h, v) in enumerate(zip(entries, value, strict=True)))
    elif (hint is bool and isinstance(value, bool)) or (hint is str and isinstance(value, str)):
        return value
    elif hint in (int, float) and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:  # YAML reads 1e-3 as a string, and a round number of steps may be written 1e5
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number) and hint is float:
            return number
        if math.isfinite(number) and number.is_integer():
            return value if isinstance(value, int) else int(number)
    raise ArgumentError(f"{where} = {value!r}; expected {_describe(hint)}")


def _describe(hint: Any) -> str:
    """A type in words."""
    if get_origin(hint) is tuple:
        entries = get_args(hint)
        if entries[-1] is Ellipsis:
            return f"a list whose entries are each {_describe(entries[0])}"
        return f"a list of {len(entries)} entries, each {_describe(entries[0])}"
    names = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}
    return names.get(hint, f"a {getattr(hint, '__name__', hint)}")
