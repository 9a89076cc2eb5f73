"""``load``: one function from a name or a path to a denoiser that is ready to sample."""

from __future__ import annotations

from pathlib import Path

from farfield.errors import ArgumentError, ModelFileError, unknown_name
from farfield.networks.files import refuse_pickle
from farfield.networks.model_file import CARD, WEIGHTS, load_model
from farfield.networks.preconditioning import Preconditioned

_BUNDLED = Path(__file__).parent / "bundled"


def bundled_models() -> list[str]:
    """The names of the models that come with the library."""
    return sorted(path.parent.name for path in _BUNDLED.glob(f"*/{CARD}") if (path.parent / WEIGHTS).is_file())


def load(name_or_path: str | Path) -> Preconditioned:
    """A model in eval mode on the CPU, with its ``.card``.

    Args:
        name_or_path: the name of a bundled model, a folder with ``card.json`` and ``model.safetensors`` (such as the
            output of a training run), or a ``.safetensors`` file that has its card in the same folder.

    Raises:
        ArgumentError: neither a bundled name nor an existing path.
        ModelFileError: the files are incomplete, foreign, damaged, or a pickle (which is never executed).
    """
    text = str(name_or_path)
    if not text:
        raise ArgumentError("model = ''; expected a bundled name, a folder or a .safetensors file")
    path = _BUNDLED / text if text in bundled_models() else Path(name_or_path)
    if path.is_dir():
        weights, card = path / WEIGHTS, path / CARD
        for file in (card, weights):
            if not file.is_file():
                unfinished = (path / "run.json").is_file()
                hint = "; its training run has not finished, resume it" if unfinished else ""
                raise ModelFileError(f"{path} is not a model folder: it has no {file.name}{hint}")
        return load_model(weights, card)
    if path.is_file():
        refuse_pickle(path)
        if path.name == CARD:
            return load_model(path.with_name(WEIGHTS), path)
        if path.suffix != ".safetensors":
            raise ModelFileError(f"{path} is not a model; expected a .safetensors file or a folder")
        card = path.with_name(CARD)
        if not card.is_file():
            raise ModelFileError(f"{path} has no {CARD} beside it, so its network is not known")
        return load_model(path, card)
    if path.suffix or len(path.parts) > 1:
        raise ModelFileError(f"{text} does not exist")
    raise unknown_name("model", text, bundled_models())
