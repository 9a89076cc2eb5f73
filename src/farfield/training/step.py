"""One step of training as a function of (seed, step, images): the seam between the loop and whatever runs it.

Image number i of the run, ``i = step · batch_size + position``, owns its noise, its noise level, its augmentation and
whether its label is hidden (:mod:`farfield.numerics.streams`). A step therefore depends on the weights and on its
number alone; a process that holds part of a batch passes the numbers of its part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from farfield.errors import NonFiniteError
from farfield.networks.preconditioning import Preconditioned
from farfield.numerics import streams
from farfield.training.config import AugmentConfig, OptimizerConfig, TrainConfig
from farfield.training.ema import EMA

#: What the network is told of an augmentation: flip, shift down, shift right.
AUGMENT_DIM = 3


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The learning rate of step ``step`` (from 0) of a run of ``steps``: warm-up, then the decay."""
    rate = config.lr * min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else config.lr
    if config.decay == "cosine":
        return rate * 0.5 * (1 + math.cos(math.pi * step / steps))
    if config.decay == "rsqrt":
        return rate / math.sqrt(max(step / config.decay_start, 1.0))
    return rate


def augment(config: AugmentConfig, images: Tensor, seed: int, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror and shift each image by its own random numbers.

    Args:
        config: probability of a mirror image and largest shift.
        images: (B, C, H, W).
        seed, ids: the run's seed and the images' numbers (B,).

    Returns:
        The images and what was done to them, (B, 3): flip 0 or 1, shifts down and right divided by the largest.
    """
    u = streams.uniform(seed, ids, (AUGMENT_DIM,), purpose="augment", device=images.device)
    flip = u[:, 0] < config.flip
    images = torch.where(flip[:, None, None, None], images.flip(-1), images)
    reach = config.translate
    shift = torch.floor(u[:, 1:] * (2 * reach + 1)).long() - reach
    if reach:
        height, width = images.shape[-2:]
        padded = F.pad(images, (reach,) * 4, mode="replicate")
        rows = torch.arange(height, device=images.device) + reach - shift[:, :1]
        columns = torch.arange(width, device=images.device) + reach - shift[:, 1:]
        batch = torch.arange(len(images), device=images.device)[:, None, None]
        images = padded.movedim(1, -1)[batch, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
    return images.contiguous(), torch.cat((flip[:, None].float(), shift / max(reach, 1)), dim=1)


@dataclass(frozen=True)
class StepStats:
    """What a step reports: mean loss, norm of the gradient before clipping, learning rate."""

    loss: float
    grad_norm: float
    lr: float


class TrainStep:
    """The weights in training with their optimiser and average; calling it does one step.

    Args:
        denoiser: the model, on its device.
        config: the run.
    """

    def __init__(self, denoiser: Preconditioned, config: TrainConfig) -> None:
        o = config.optimizer
        self.denoiser, self.config = denoiser, config
        self.parameters = list(denoiser.parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters, o.lr, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay, fused=True
        )
        self.ema = EMA(denoiser, config.ema)

    def losses(self, images: Tensor, labels: Tensor | None, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and noise level of each image, (B,) both.

        Args:
            images: clean images (B, *event).
            labels: class numbers (B,), or None.
            ids: numbers of the images in the run (B,).
        """
        c, seed, told = self.config, self.config.seed, None
        if c.augment.active:
            images, told = augment(c.augment, images, seed, ids)
        if labels is not None:
            hidden = streams.uniform(seed, ids, purpose="label dropout", device=images.device) < c.labels.dropout
            labels = torch.where(hidden, -1, labels)
        sigma = c.objective.sigma(streams.normal(seed, ids, purpose="train sigma", device=images.device))
        noise = streams.normal(seed, ids, images.shape[1:], purpose="train noise", device=images.device)
        condition = {"augment": told} if told is not None and c.augment.inform else {}
        with torch.autocast(images.device.type, torch.bfloat16, enabled=c.precision == "bf16"):
            loss = c.objective(
                self.denoiser, images, sigma, noise, self.denoiser.sigma_data, labels=labels, **condition
            )
        return loss, sigma

    def __call__(self, step: int, images: Tensor, labels: Tensor | None, ids: Tensor) -> StepStats:
        """Step number ``step`` (from 0).

        Raises:
            NonFiniteError: if loss or gradient is NaN or infinite; the weights are then as before the step.
        """
        c = self.config
        lr = learning_rate(c.optimizer, step, c.steps)
        torch.manual_seed(streams.derive(c.seed, "dropout", step) >> 1)
        self.optimizer.zero_grad(set_to_none=True)
        losses, sigma = self.losses(images, labels, ids)
        losses.mean().backward()
        limit = c.optimizer.clip if c.optimizer.clip is not None else math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, limit)
        # The one wait for the device in a step: bad numbers must not reach the weights.
        loss, grad_norm = torch.stack((losses.detach().mean(), norm)).tolist()
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            bad = sigma[~torch.isfinite(losses)]
            levels = bad if len(bad) else sigma
            raise NonFiniteError(
                f"step {step}: loss = {loss:g}, gradient norm = {grad_norm:g} with lr = {lr:g} and "
                f"sigma from {float(levels.min()):.4g} to {float(levels.max()):.4g} ({len(bad)} of {len(sigma)} losses "
                "not finite); a smaller optimizer.lr or optimizer.clip usually helps"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.ema.update(step * c.batch_size, c.batch_size)
        return StepStats(loss, grad_norm, lr)

    @torch.no_grad()
    def validation_loss(self, images: Tensor, labels: Tensor | None, repeats: int = 4) -> float:
        """The averaged model's mean loss on held-out images, each with ``repeats`` noises that are always the same."""
        c, total = self.config, 0.0
        for k in range(repeats):
            ids = torch.arange(len(images), device=images.device)
            z = streams.normal(c.seed, ids, purpose="validation sigma", step=k)
            noise = streams.normal(c.seed, ids, images.shape[1:], purpose="validation noise", step=k)
            model = self.ema.model
            assert isinstance(model, Preconditioned)
            loss = c.objective(model, images, c.objective.sigma(z), noise, model.sigma_data, labels=labels)
            total += float(loss.double().mean())
        return total / repeats
