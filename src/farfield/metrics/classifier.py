"""A small convolutional classifier whose last hidden layer serves as features, and its files.

Fréchet and kernel distances are published on the features of an Inception network of 24 million weights. For small
images, offline and in seconds, a residual network trained on the data's own classes does the same work: its last
hidden layer knows what tells the classes apart, which principal components of the pixels do not.

The network is ``stem → (halve → residual)ⁿ → mean over pixels → linear``, every convolution 3×3 and followed by a
rectifier. It is trained with batch normalisation, which is then folded into the convolutions,

    w' = w γ/√(v + ε),    b' = β − m γ/√(v + ε),

so what is kept has no batch statistics: a feature depends on its image alone. The weights are stored in float16 and
computed with in float32.

A folder holds ``classifier.safetensors`` and ``card.json``. Reading trusts neither: the card is checked against a
schema and bounds, and the weights must fit it in name, shape, type and digest, and be finite.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from farfield.errors import ArgumentError, ModelFileError
from farfield.networks.files import read_json, read_tensors, sha256, write_json, write_tensors
from farfield.networks.structure import plain, structure
from farfield.version import __version__

FORMAT, SCHEMA = "farfield-features", 1
WEIGHTS, CARD = "classifier.safetensors", "card.json"


@dataclass(frozen=True)
class ClassifierConfig:
    """The shape of a classifier.

    Args:
        channels: of the images.
        sizes: sides of the square images it takes; the first is that of the network's input, and the others divide
            it, since smaller images are enlarged by repeating pixels.
        widths: channels of the stages, each at half the side of the one before; the last is the number of features.
        classes: number of classes.
    """

    channels: int = 3
    sizes: tuple[int, ...] = (32, 16)
    widths: tuple[int, ...] = (32, 64, 96, 128)
    classes: int = 10

    def __post_init__(self) -> None:
        if not 1 <= self.channels <= 64:
            raise ArgumentError(f"channels = {self.channels}; expected 1 to 64")
        if not 2 <= self.classes <= 1 << 16:
            raise ArgumentError(f"classes = {self.classes}; expected 2 to {1 << 16}")
        if not 1 <= len(self.widths) <= 8 or min(self.widths) < 1 or max(self.widths) > 2048:
            raise ArgumentError(f"widths = {list(self.widths)}; expected 1 to 8 numbers from 1 to 2048")
        side = self.sizes[0] if self.sizes else 0
        if not 1 <= side <= 1024 or any(not 1 <= s <= side or side % s for s in self.sizes):
            raise ArgumentError(f"sizes = {list(self.sizes)}; expected a side up to 1024, then divisors of it")
        if side < 1 << (len(self.widths) - 1):
            raise ArgumentError(f"sizes = {list(self.sizes)} is too small to be halved {len(self.widths) - 1} times")

    def fits(self, event_shape: tuple[int, ...]) -> bool:
        """Whether images of that shape (C, H, W) can be classified."""
        return (
            len(event_shape) == 3
            and event_shape[0] == self.channels
            and event_shape[1] == event_shape[2]
            and event_shape[1] in self.sizes
        )


class ConvNorm(nn.Module):
    """A 3×3 convolution, batch normalisation (or a bias, once folded) and a rectifier."""

    def __init__(self, inputs: int, outputs: int, stride: int, folded: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=folded)
        self.norm = None if folded else nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, ⌈H/stride⌉, ⌈W/stride⌉)."""
        x = self.conv(x)
        return F.relu(x if self.norm is None else self.norm(x))

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the convolution that does the same in evaluation; computed in float64."""
        if self.norm is None:
            assert self.conv.bias is not None
            return self.conv.weight.detach(), self.conv.bias.detach()
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        gain = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
        weight = self.conv.weight.detach().double() * gain[:, None, None, None]
        return weight.float(), (norm.bias.detach().double() - norm.running_mean.double() * gain).float()


class ImageClassifier(nn.Module):
    """The network; see the head of this module.

    Args:
        config: its shape.
        folded: build it without batch normalisation, as it is stored and used.
    """

    def __init__(self, config: ClassifierConfig, folded: bool = False) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.stem = ConvNorm(config.channels, widths[0], 1, folded)
        pairs = list(itertools.pairwise(widths))
        self.halve = nn.ModuleList(ConvNorm(a, b, 2, folded) for a, b in pairs)
        self.residual = nn.ModuleList(
            nn.Sequential(ConvNorm(b, b, 1, folded), ConvNorm(b, b, 1, folded)) for _, b in pairs
        )
        self.head = nn.Linear(widths[-1], config.classes)

    def enlarge(self, x: Tensor) -> Tensor:
        """Images of one of the sizes, (B, C, s, s), at the side of the input, by repeating pixels.

        Raises:
            ArgumentError: for images of another shape.
        """
        if not self.config.fits(tuple(x.shape[1:])):
            c = self.config
            sizes = " or ".join(f"({c.channels}, {s}, {s})" for s in c.sizes)
            raise ArgumentError(f"images have shape {tuple(x.shape[1:])}; the classifier takes {sizes}")
        factor = self.config.sizes[0] // x.shape[-1]
        return x if factor == 1 else x.repeat_interleave(factor, -1).repeat_interleave(factor, -2)

    def features(self, x: Tensor) -> Tensor:
        """The last hidden layer, (B, D) ≥ 0, of images (B, C, s, s) in [−1, 1]."""
        x = self.stem(self.enlarge(x).contiguous(memory_format=torch.channels_last))
        for halve, residual in zip(self.halve, self.residual, strict=True):
            x = halve(x)
            x = x + residual(x)
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes)."""
        return self.head(self.features(x))

    def fold(self) -> ImageClassifier:
        """The same function in evaluation, without batch normalisation and with weights that float16 can hold."""
        out = blank(self.config)
        state = {f"head.{k}": v.detach() for k, v in self.head.state_dict().items()}
        for name, module in self.named_modules():
            if isinstance(module, ConvNorm):
                state[f"{name}.conv.weight"], state[f"{name}.conv.bias"] = module.folded()
        out.load_state_dict({k: v.half().float() for k, v in state.items()})
        return out.to(memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload]


def blank(config: ClassifierConfig) -> ImageClassifier:
    """A folded network whose weights are about to be replaced; the caller's random numbers are left alone."""
    with torch.random.fork_rng(devices=[]):
        return ImageClassifier(config, folded=True)


def save_classifier(
    folder: Path, model: ImageClassifier, name: str, classes: tuple[str, ...] | None, training: Mapping[str, Any]
) -> dict[str, Any]:
    """Write a folded classifier; the card last, since it vouches for the weights. Returns the card.

    Args:
        folder: an existing folder.
        model: from :meth:`ImageClassifier.fold`.
        name: of the data, by which the features are called.
        classes: the names of the classes, or None.
        training: anything JSON can hold about how it was trained, with its accuracy.
    """
    tensors = {k: v.half() for k, v in model.state_dict().items()}
    digest = write_tensors(folder / WEIGHTS, tensors)
    card = {
        "format": FORMAT,
        "schema": SCHEMA,
        "farfield": __version__,
        "name": name,
        "network": plain(model.config),
        "classes": None if classes is None else list(classes),
        "weights": {"file": WEIGHTS, "sha256": digest, "parameters": sum(t.numel() for t in tensors.values())},
        "training": dict(training),
    }
    write_json(folder / CARD, card)
    return card


def read_classifier_card(path: Path) -> tuple[dict[str, Any], ClassifierConfig]:
    """A classifier's card and the shape of its network.

    Raises:
        ModelFileError: unreadable, of another format or schema, or with values out of bounds.
    """
    card = read_json(path)
    if card.get("format") != FORMAT or card.get("schema") != SCHEMA:
        raise ModelFileError(f"{path} is not the card of a feature classifier ({FORMAT}, schema {SCHEMA})")
    weights, name, classes = card.get("weights"), card.get("name"), card.get("classes")
    if not isinstance(weights, dict) or not isinstance(weights.get("sha256"), str):
        raise ModelFileError(f"{path} does not name the digest of its weights (weights.sha256)")
    try:
        config = structure(ClassifierConfig, card.get("network"), "network")
    except ArgumentError as error:
        raise ModelFileError(f"{path}: {error}") from error
    if not isinstance(name, str) or not name:
        raise ModelFileError(f"{path} has name = {name!r}; expected the name of the data")
    if classes is not None and not (isinstance(classes, list) and len(classes) == config.classes):
        raise ModelFileError(f"{path} has classes = {classes!r}; expected {config.classes} names or null")
    return card, config


def load_classifier(folder: Path) -> tuple[ImageClassifier, dict[str, Any]]:
    """The folded classifier of a folder, in eval mode on the CPU, and its card.

    Raises:
        ModelFileError: anything about the two files that is not as it should be.
    """
    card, config = read_classifier_card(folder / CARD)
    path = folder / WEIGHTS
    with torch.device("meta"):  # no memory yet: a card may ask for a network that its weights do not fill
        expected = ImageClassifier(config, folded=True).state_dict()
    state = read_tensors(path)
    if state.keys() != expected.keys():
        name = sorted(state.keys() ^ expected.keys())[0]
        raise ModelFileError(f"{path} does not fit its card: tensor {name!r} is on one side only")
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape or tensor.dtype != torch.float16:
            raise ModelFileError(
                f"{path}: tensor {name!r} is {tensor.dtype} {tuple(tensor.shape)}; "
                f"expected torch.float16 {tuple(expected[name].shape)}"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise ModelFileError(f"{path}: tensor {name!r} holds NaN or infinite values")
    if sha256(path) != card["weights"]["sha256"]:
        raise ModelFileError(f"{path} is not the file that its card describes (SHA-256 differs)")
    model = blank(config)
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return model.to(memory_format=torch.channels_last).eval().requires_grad_(False), card  # type: ignore[call-overload]
