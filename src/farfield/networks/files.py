"""Reading and writing the files of models and checkpoints: nothing is executed, nothing is half written.

Tensors are kept as safetensors, everything else as JSON. A file is written beside its place, flushed to the disk and
then renamed, so that a reader, or a run that is killed at any moment, sees the old file or the new one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from farfield.errors import ModelFileError

#: A card is a few kilobytes; anything larger is not one.
MAX_JSON_BYTES = 4 << 20
_TEMPORARY = ".partial"


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Have ``write`` fill a temporary file in the folder of ``path``, then put it in place of ``path``."""
    partial = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")
    try:
        write(partial)
        descriptor = os.open(partial, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:  # the new name itself survives a power cut only once the folder is on the disk
        os.fsync(folder)
    finally:
        os.close(folder)


def remove_partial(folder: Path) -> None:
    """Delete what an interrupted :func:`write_atomic` left in ``folder``."""
    for path in folder.glob(f".*{_TEMPORARY}"):
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a mapping as indented JSON, atomically; NaN and infinity are refused, since JSON has none."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomic(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ModelFileError: missing, too large, not JSON or not an object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ModelFileError(f"{path} has {path.stat().st_size} bytes; a card has at most {MAX_JSON_BYTES}")
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is not valid JSON (truncated, or another kind of file)") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{path} holds a JSON {type(value).__name__}; expected an object")
    return value


def sha256(path: Path) -> str:
    """The SHA-256 digest of a file, in hexadecimal."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors as safetensors, atomically; returns the SHA-256 of the file."""
    from safetensors.torch import save_file

    digest = ""

    def write(partial: Path) -> None:
        nonlocal digest
        partial.touch()
        mode = partial.stat().st_mode  # the user's default; save_file makes files that only the owner can read
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, partial)
        partial.chmod(mode)
        digest = sha256(partial)

    write_atomic(path, write)
    return digest


def refuse_pickle(path: Path) -> None:
    """Raise ``ModelFileError`` if a file is a pickle, by its name or its first bytes; it is never executed."""
    try:
        with path.open("rb") as file:
            start, size = file.read(9), os.fstat(file.fileno()).st_size
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}") from error
    # A safetensors file starts with the length of its header, whose bytes may be those of a pickle, and a brace.
    header = int.from_bytes(start[:8], "little")
    pickled = (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05") or start.startswith(b"PK\x03\x04")
    pickled = pickled and not (start[8:] == b"{" and header + 8 <= size)
    if pickled or path.suffix in {".pt", ".pth", ".pkl", ".pickle", ".ckpt"}:
        raise ModelFileError(
            f"{path} is a Python pickle or torch.save archive; such files can run code and are never executed here: "
            "convert it to safetensors"
        )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file to the CPU.

    Raises:
        ModelFileError: missing, a pickle, truncated or foreign.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    refuse_pickle(path)
    try:
        return load_file(path)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error}") from error
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise ModelFileError(f"{path} is not a complete safetensors file ({str(error).splitlines()[0]})") from error
