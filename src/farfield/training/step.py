"""One step of training as a function of (seed, step, images): the seam between the loop and whatever runs it.

Image number i of the run, ``i = step · batch_size + position``, owns its noise, its noise level, its augmentation, its
dropout and whether its label is hidden (:mod:`farfield.numerics.streams`). A step therefore depends on the weights and
on its number alone; a process that holds part of a batch passes the numbers of its part, and one process with the whole
batch computes the same sums.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from farfield.errors import NonFiniteError
from farfield.networks.preconditioning import Preconditioned
from farfield.numerics import streams
from farfield.objectives import ObjectiveConfig, StableTargets, Uncertainty
from farfield.training.augment import augment
from farfield.training.config import OptimizerConfig, TrainConfig
from farfield.training.ema import EMA
from farfield.training.engine import Engine
from farfield.training.feed import Batch


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The learning rate of step ``step`` (from 0) of a run of ``steps``: warm-up, then the decay."""
    rate = config.lr * min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else config.lr
    if config.decay == "cosine":
        return rate * 0.5 * (1 + math.cos(math.pi * step / steps))
    if config.decay == "rsqrt":
        return rate / math.sqrt(max(step / config.decay_start, 1.0))
    return rate


@dataclass(frozen=True)
class StepStats:
    """What a step reports of this process's images: mean loss, norm of the gradient before clipping, learning rate."""

    loss: float
    grad_norm: float
    lr: float


class Losses(nn.Module):
    """What is differentiated: a model and an objective as one module, so that one wrapper averages its gradients.

    Args:
        denoiser: the model in training.
        objective: what it minimises.
        uncertainty: the learned weighting of noise levels, or None.
    """

    def __init__(self, denoiser: Preconditioned, objective: ObjectiveConfig, uncertainty: Uncertainty | None) -> None:
        super().__init__()
        self.denoiser, self.objective, self.uncertainty = denoiser, objective, uncertainty

    def forward(
        self, images: Tensor, sigma: Tensor, noise: Tensor, target: Tensor | None, condition: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """What the optimiser minimises, and the plain weighted loss, for each image: (B,) both."""
        d = self.denoiser
        loss = self.objective(d, images, sigma, noise, d.sigma_data, target=target, **condition)
        if self.uncertainty is None:
            return loss, loss.detach()
        u = self.uncertainty(sigma)
        return loss / u.exp() + u, loss.detach()


class TrainStep:
    """The weights in training with their optimiser and average; calling it does one step.

    Args:
        denoiser: the model, on its device.
        config: the run.
        targets: makes stable targets; None regresses on the images themselves.
    """

    def __init__(self, denoiser: Preconditioned, config: TrainConfig, targets: StableTargets | None = None) -> None:
        o = config.optimizer
        self.denoiser, self.config, self.targets = denoiser, config, targets
        device = next(denoiser.parameters()).device
        if config.channels_last:  # before the average is made, which then has the same layout
            denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.uncertainty = Uncertainty().to(device) if config.uncertainty else None
        self.module: nn.Module = Losses(denoiser, config.objective, self.uncertainty)
        self.parameters = list(self.module.parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters, o.lr, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay, fused=True
        )
        self.ema = EMA(denoiser, config.ema)
        self.engine: Engine | None = None

    def join(self, engine: Engine) -> None:
        """Go on with the other processes of a run: from now on gradients are averages over all of them."""
        if self.config.compile:
            # The network alone and in place: the names of its weights stay, and the losses stay readable.
            self.denoiser.model.compile(dynamic=False)
        c = self.config
        # Without augmentation the layer for it has no gradient, and the others would wait for one.
        unused = c.network.augment_dim > 0 and not (c.augment.active and c.augment.inform)
        self.module, self.engine = engine.wrap(self.module, unused), engine

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """All that the optimiser moves, by name; those of the model under the model's names."""
        named = dict(self.denoiser.named_parameters())
        if self.uncertainty is not None:
            named |= {f"uncertainty.{name}": p for name, p in self.uncertainty.named_parameters()}
        return named

    def losses(
        self, images: Tensor, labels: Tensor | None, ids: Tensor, rows: Tensor | None = None, step: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What is minimised, the plain loss and the noise level of each image, (B,) all.

        Args:
            images: clean images (B, *event).
            labels: class numbers (B,), or None.
            ids: numbers of the images in the run (B,).
            rows: rows of the data set that the whole step uses, for stable targets.
            step: number of the step.
        """
        c, seed = self.config, self.config.seed
        condition: dict[str, Any] = {}
        told: Tensor | None = None
        if c.augment.active:
            images, told = augment(c.augment, images, seed, ids)
            if c.augment.inform:
                condition["augment"] = told
        if labels is not None:
            hidden = streams.uniform(seed, ids, purpose="label dropout", device=images.device) < c.labels.dropout
            labels = torch.where(hidden, -1, labels)
        if c.network.dropout > 0:
            condition["dropout_seed"] = ids + (streams.derive(seed, "dropout") >> 2)
        sigma = c.objective.sigma(streams.normal(seed, ids, purpose="train sigma", device=images.device))
        noise = streams.normal(seed, ids, images.shape[1:], purpose="train noise", device=images.device)
        if c.channels_last:
            images, noise = (t.contiguous(memory_format=torch.channels_last) for t in (images, noise))
        target = None
        if self.targets is not None:
            assert rows is not None
            target = self.targets(step, rows, images, sigma, noise, labels, told, ids)
        condition["labels"] = labels
        with torch.autocast(images.device.type, torch.bfloat16, enabled=c.precision == "bf16"):
            loss, plain = self.module(images, sigma, noise, target, condition)
        return loss, plain, sigma

    def __call__(self, step: int, batch: Batch) -> StepStats:
        """Step number ``step`` (from 0).

        Args:
            step: its number.
            batch: this process's part of the images.

        Raises:
            NonFiniteError: if loss or gradient is NaN or infinite; the weights are then as before the step.
        """
        c, parts = self.config, self.config.accumulate
        lr = learning_rate(c.optimizer, step, c.steps)
        self.optimizer.zero_grad(set_to_none=True)
        plain: list[Tensor] = []
        levels: list[Tensor] = []
        images, ids = batch.images.chunk(parts), batch.ids.chunk(parts)
        labels = [None] * parts if batch.labels is None else list(batch.labels.chunk(parts))
        for k in range(parts):
            last = k == parts - 1 or self.engine is None
            with nullcontext() if last or self.engine is None else self.engine.unsynchronised(self.module):
                loss, values, sigma = self.losses(images[k], labels[k], ids[k], batch.rows, step)
                (loss.mean() if parts == 1 else loss.mean() / parts).backward()
            plain.append(values)
            levels.append(sigma)
        limit = c.optimizer.clip if c.optimizer.clip is not None else math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, limit)
        losses = torch.cat(plain)
        # The one wait for the device in a step: bad numbers must not reach the weights. In several processes the
        # gradient is the same in all, so they stop together.
        mean, grad_norm = torch.stack((losses.mean(), norm)).tolist()
        if not math.isfinite(grad_norm) or not (math.isfinite(mean) or self._several):
            self._refuse(step, lr, mean, grad_norm, losses, torch.cat(levels))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.ema.update(step * c.batch_size, c.batch_size)
        return StepStats(mean, grad_norm, lr)

    @property
    def _several(self) -> bool:
        return self.engine is not None and self.engine.world > 1

    @staticmethod
    def _refuse(step: int, lr: float, loss: float, grad_norm: float, losses: Tensor, sigma: Tensor) -> None:
        bad = sigma[~torch.isfinite(losses)]
        levels = bad if len(bad) else sigma
        raise NonFiniteError(
            f"step {step}: loss = {loss:g}, gradient norm = {grad_norm:g} with lr = {lr:g} and "
            f"sigma from {float(levels.min()):.4g} to {float(levels.max()):.4g} ({len(bad)} of {len(sigma)} losses "
            "not finite); a smaller optimizer.lr or optimizer.clip usually helps"
        )

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
