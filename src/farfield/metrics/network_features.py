"""Features from networks: the bundled classifiers, any module, and Inception where its weights are at hand.

A network is always run on batches of one fixed size, the last filled up with copies of its final image: then the same
kernels run however many images the caller has, and the features of an image are the same to the bit in a set of one
and in a set of ten thousand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from farfield.data import DataSet
from farfield.data.progress import track
from farfield.errors import ArgumentError, unknown_name
from farfield.metrics.classifier import CARD, ImageClassifier, load_classifier, read_classifier_card
from farfield.metrics.features import Features, pca_features
from farfield.networks.files import sha256

_BUNDLED = Path(__file__).parent / "bundled"
PCA_COMPONENTS = 40


def in_fixed_batches(run: Callable[[Tensor], Tensor], x: Tensor, batch: int, name: str) -> Tensor:
    """``run`` over samples (N, *event), N ≥ 1, in batches of exactly ``batch``; see the head of this module.

    Returns:
        (N, d), on the device of ``x``; a bar is shown on a terminal where there are many batches.
    """
    parts = []
    starts = range(0, len(x), batch)
    with torch.no_grad():
        for low in track(starts, len(starts), f"features {name}", threshold=40):
            block = x[low : low + batch]
            rows = len(block)
            if rows < batch:
                block = torch.cat((block, block[-1:].expand(batch - rows, *block.shape[1:])))
            parts.append(run(block)[:rows].to(x.device))
    return torch.cat(parts)


def module_digest(module: nn.Module) -> str:
    """SHA-256 over the names and values of a module's state."""
    total = hashlib.sha256(type(module).__qualname__.encode())
    for name, tensor in sorted(module.state_dict().items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(np.ascontiguousarray(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy()).tobytes())
    return total.hexdigest()


class ModuleFeatures:
    """Any module as a feature map: images go in as they are, and what comes out is flattened.

    Args:
        module: takes (B, *event) float32 and gives a tensor (B, …); it is used in eval mode, where it is.
        event_shape: the shape of one sample.
        name: for records; by default the class of the module.
        batch: number of images a call.

    Raises:
        ArgumentError: for a batch below 1, or a module that does not give one row for each image.
    """

    def __init__(
        self, module: nn.Module, event_shape: Sequence[int], name: str | None = None, batch: int = 128
    ) -> None:
        if batch < 1:
            raise ArgumentError(f"batch = {batch}; expected at least 1")
        self.module, self.event_shape, self.batch = module, tuple(event_shape), batch
        self.name = f"module:{type(module).__name__}" if name is None else name
        self.dim = self._run(torch.zeros(batch, *self.event_shape)).shape[1]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the module's state when first asked for."""
        return module_digest(self.module)

    def _run(self, x: Tensor) -> Tensor:
        first = next((t for t in (*self.module.parameters(), *self.module.buffers())), None)
        training = self.module.training
        self.module.eval()
        try:
            with torch.no_grad():
                out = self.module(x.float() if first is None else x.to(first.device, torch.float32))
        finally:
            self.module.train(training)
        if not isinstance(out, Tensor) or out.ndim < 1 or len(out) != len(x):
            shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ArgumentError(f"module gives {shape} for {len(x)} images; expected a tensor with a row for each")
        return out.flatten(1) if out.ndim > 1 else out[:, None]

    def __call__(self, x: Tensor) -> Tensor:
        """Features (N, dim) of samples (N, *event).

        Raises:
            ArgumentError: for no samples, or samples of another shape.
        """
        _check(x, self.event_shape)
        return in_fixed_batches(self._run, x, self.batch, self.name)


class ClassifierFeatures:
    """The last hidden layer of a trained classifier, which also tells classes; see ``farfield.metrics.classifier``.

    Args:
        model: from :func:`load_classifier`, on the device where it is to run.
        card: its card.
        batch: number of images a call.
    """

    def __init__(self, model: ImageClassifier, card: dict[str, Any], batch: int = 128) -> None:
        self.model, self.card, self.batch = model, card, batch
        self.name = f"classifier:{card['name']}"
        self.dim = model.config.widths[-1]
        self.digest: str = card["weights"]["sha256"]
        self.classes = model.config.classes

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> ClassifierFeatures:
        """From a folder of ``farfield features train``.

        Raises:
            ModelFileError: for files that are not as they should be.
        """
        model, card = load_classifier(Path(folder))
        return cls(model.to(device), card)

    def fits(self, event_shape: Sequence[int]) -> bool:
        """Whether images of that shape can be classified."""
        return self.model.config.fits(tuple(event_shape))

    def __call__(self, x: Tensor) -> Tensor:
        """Features (N, dim) float32, ≥ 0, of images (N, C, s, s) in [−1, 1].

        Raises:
            ArgumentError: for no images, or images of another shape.
        """
        if x.ndim != 4 or len(x) == 0 or not self.fits(x.shape[1:]):
            c = self.model.config
            raise ArgumentError(
                f"x has shape {tuple(x.shape)}; {self.name} takes (N, {c.channels}, s, s), s in {list(c.sizes)}"
            )
        device = next(self.model.parameters()).device
        return in_fixed_batches(lambda b: self.model.features(b.to(device).float()), x, self.batch, self.name)

    def probabilities(self, features: Tensor) -> Tensor:
        """Class probabilities (N, K) float64 from features (N, dim): the softmax of the last layer, row by row."""
        weight = self.model.head.weight.detach().to(features.device, torch.float64)
        bias = self.model.head.bias.detach().to(features.device, torch.float64)
        parts = [(block.double()[:, None] * weight).sum(-1) + bias for block in features.split(2048)]
        return torch.cat(parts).softmax(1)


def _check(x: Tensor, event_shape: tuple[int, ...]) -> None:
    if len(x) == 0 or tuple(x.shape[1:]) != event_shape:
        raise ArgumentError(
            f"x has shape {tuple(x.shape)}; expected (N, {', '.join(map(str, event_shape))}) with N >= 1"
        )


def bundled_features() -> list[str]:
    """The names of the data sets whose classifier comes with the library."""
    return sorted(path.parent.name for path in _BUNDLED.glob(f"*/{CARD}"))


def load_features(name_or_path: str | Path, device: torch.device | str = "cpu") -> ClassifierFeatures:
    """A classifier by the name of a bundled one, or by its folder.

    Raises:
        ArgumentError: for an unknown name.
        ModelFileError: for files that are not as they should be.
    """
    text = str(name_or_path)
    if text in bundled_features():
        return ClassifierFeatures.load(_BUNDLED / text, device)
    if not Path(text).is_dir():
        raise unknown_name("features", text, ["pca", "inception", *bundled_features()])
    return ClassifierFeatures.load(text, device)


def default_features(data: DataSet, device: torch.device | str = "cpu", components: int = PCA_COMPONENTS) -> Features:
    """The features for a data set: the bundled classifier of its name that takes its images, else principal components.

    Args:
        data: its name and shape choose; principal components are fitted to all of its images.
        device: where the classifier runs.
        components: principal components, at most the number of coordinates.
    """
    if data.name in bundled_features():
        _, config = read_classifier_card(_BUNDLED / data.name / CARD)
        if config.fits(data.event_shape):
            return load_features(data.name, device)
    return pca_features(data.images, min(components, data.images[0].numel()))


class InceptionFeatures:
    """The 2,048 features of the published FID (Heusel et al. 2017), computed by ``torch-fidelity``.

    Nothing is downloaded. The weights are looked for at ``weights`` and in torch's own cache of downloads.

    Args:
        weights: the file ``weights-inception-2015-12-05-6726825d.pth``; None looks in torch's cache.
        device: where to compute.
        batch: number of images a call.

    Raises:
        ArgumentError: where the package is not installed, or the weights are not there; says what to do.
    """

    FILE = "weights-inception-2015-12-05-6726825d.pth"

    def __init__(self, weights: str | Path | None = None, device: torch.device | str = "cpu", batch: int = 32) -> None:
        path = Path(torch.hub.get_dir()) / "checkpoints" / self.FILE if weights is None else Path(weights)
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise ArgumentError(
                "features = 'inception' need the package torch-fidelity: pip install 'farfield[inception]'"
            ) from error
        if not path.is_file():
            raise ArgumentError(
                f"features = 'inception': no weights at {path}; nothing is downloaded here: put there the file {self.FILE} "
                "of the release v0.2.0 of github.com/toshas/torch-fidelity"
            )
        self.model = FeatureExtractorInceptionV3("farfield", ["2048"], feature_extractor_weights_path=str(path))
        self.model = self.model.to(device).eval()
        self.device, self.batch = torch.device(device), batch
        self.name, self.dim, self.digest = "inception:2048", 2048, sha256(path)

    def _run(self, x: Tensor) -> Tensor:
        pixels = ((x.to(self.device).float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        out: Tensor = self.model(pixels.expand(-1, 3, -1, -1))[0]
        return out.float()

    def __call__(self, x: Tensor) -> Tensor:
        """Features (N, 2048) float32 of images (N, 1 or 3, H, W) in [−1, 1], which are rounded to 8 bits.

        Raises:
            ArgumentError: for no images, or images of another shape.
        """
        if x.ndim != 4 or len(x) == 0 or x.shape[1] not in (1, 3):
            raise ArgumentError(f"x has shape {tuple(x.shape)}; expected (N, 1 or 3, H, W) with N >= 1")
        return in_fixed_batches(self._run, x, self.batch, self.name)
