"""Tensors as JSON values: base64 of little-endian raw bytes, with dtype and shape. Reading checks everything."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from farfield.errors import DataError

_DTYPES = {"float32": "<f4", "float64": "<f8", "int64": "<i8"}


def encode(tensor: Tensor) -> dict[str, Any]:
    """A tensor as ``{"dtype", "shape", "data"}`` with ``data`` in base64; float16 and bfloat16 become float32."""
    tensor = tensor.detach().cpu()
    if tensor.dtype not in (torch.float32, torch.float64, torch.int64):
        tensor = tensor.to(torch.float32 if tensor.is_floating_point() else torch.int64)
    name = str(tensor.dtype).removeprefix("torch.")
    raw = np.ascontiguousarray(tensor.numpy()).astype(_DTYPES[name]).tobytes()
    return {"dtype": name, "shape": list(tensor.shape), "data": base64.b64encode(raw).decode("ascii")}


def decode(value: Any, name: str = "array", shape: tuple[int, ...] | None = None) -> Tensor:
    """The tensor that :func:`encode` wrote.

    Args:
        value: the JSON value.
        name: what it is called in an error.
        shape: the shape it must have, when known.

    Raises:
        DataError: if a key is missing, the size does not fit the shape, or a value is not finite.
    """
    if not isinstance(value, Mapping) or not {"dtype", "shape", "data"} <= value.keys():
        raise DataError(f"{name} is not an encoded array; expected the keys dtype, shape and data")
    if not isinstance(value["dtype"], str) or value["dtype"] not in _DTYPES:
        raise DataError(f"{name} has dtype {value['dtype']!r}; expected one of {', '.join(_DTYPES)}")
    size = value["shape"]
    if not isinstance(size, list) or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in size):
        raise DataError(f"{name} has shape {size!r}; expected a list of non-negative integers")
    if shape is not None and tuple(size) != tuple(shape):
        raise DataError(f"{name} has shape {tuple(size)}; expected {tuple(shape)}")
    try:
        raw = base64.b64decode(value["data"], validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise DataError(f"{name} does not hold valid base64") from error
    layout = np.dtype(_DTYPES[value["dtype"]])
    expected = math.prod(size) * layout.itemsize
    if len(raw) != expected:
        raise DataError(f"{name} holds {len(raw)} bytes; expected {expected} for shape {tuple(size)}")
    array = np.frombuffer(raw, dtype=layout).reshape(size)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"{name} holds values that are not finite")
    return torch.from_numpy(array.astype(layout.newbyteorder("="), copy=True))
