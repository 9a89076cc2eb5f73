"""A whole training step of our DDPM++ and of diffusers' UNet2DModel with as many parameters, in one run.

Both take the same images, loss, clipping, AdamW and averaging; a step is forward, backward, clip, update, average. The
peer is set up as ours is: the same widths, blocks at each resolution, residual resampling blocks and single attention
head. It differs in three ways: where a decoder resolution attends all of its blocks do (ours: the last), its resampling
blocks have no 1x1 convolution beside them (ours do, as published), and it normalises all widths in equally many groups.
"""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.table import Row, show
from farfield.networks.unet import SongUNet, SongUNetConfig

#: Dense bf16 matrix products, FLOP/s, by a part of the device's name (the vendor's data sheets).
PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}


@dataclass(frozen=True)
class Case:
    """A network and a batch."""

    resolution: int
    batch: int
    channels: int
    mult: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]


CPU_CASES = (Case(16, 16, 64, (1, 1, 1), 1, (8,)), Case(32, 4, 64, (1, 2, 2), 1, (16,)))
GPU_CASE = Case(32, 256, 128, (1, 2, 2, 2), 4, (16,))


def ours(case: Case) -> nn.Module:
    config = SongUNetConfig(
        model_channels=case.channels,
        channel_mult=case.mult,
        num_blocks=case.blocks,
        attn_resolutions=case.attention,
        dropout=0.0,
    )
    return SongUNet(config, (3, case.resolution, case.resolution))


class Peer(nn.Module):
    """diffusers' network under our calling convention."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        attends = [(case.resolution >> level) in case.attention for level in range(len(case.mult))]
        self.net = UNet2DModel(
            sample_size=case.resolution,
            block_out_channels=tuple(case.channels * m for m in case.mult),
            layers_per_block=case.blocks,
            down_block_types=tuple("AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attends),
            up_block_types=tuple("AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in reversed(attends)),
            downsample_type="resnet",
            upsample_type="resnet",
            attention_head_dim=None,
            norm_num_groups=min(32, case.channels // 4),
            dropout=0.0,
        )

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return self.net(x, level, return_dict=False)[0]


class Step:
    """One contender with its optimiser and average."""

    def __init__(self, net: nn.Module, case: Case, device: str, bf16: bool = False, compiled: bool = False) -> None:
        layout = torch.channels_last if device == "cuda" else torch.contiguous_format
        self.net = net.to(device, memory_format=layout).train()  # type: ignore[call-overload]
        if compiled:
            self.net.compile(dynamic=False)
        self.parameters = list(net.parameters())
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(self.parameters, 1e-4, fused=True)
        shape = (case.batch, 3, case.resolution, case.resolution)
        self.x = torch.randn(shape, device=device).contiguous(memory_format=layout)
        self.target, self.level = torch.randn_like(self.x), torch.randn(case.batch, device=device)
        self.bf16, self.device = bf16, device

    def gradients(self) -> None:
        with torch.autocast(self.device, torch.bfloat16) if self.bf16 else nullcontext():
            out = self.net(self.x, self.level)
        F.mse_loss(out.float(), self.target).backward()

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.gradients()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1e-3)


def flops(net: nn.Module, case: Case) -> float:
    """Of forward and backward together for one image, products and sums counted separately."""
    # The counter does not know every fused attention kernel; plain matrix products it does.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        Step(copy.deepcopy(net), Case(**{**vars(case), "batch": 1}), "cpu").gradients()
    return float(counter.get_total_flops())


def seconds(contenders: dict[str, Callable[[], None]], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of each in each round, one after the other so that a slow moment of the machine hits all alike.

    On the CPU, where all work is done by one thread, they are seconds of that thread, and other programs do not count.
    """
    clock = time.perf_counter if device == "cuda" else time.process_time
    wait: Callable[[], Any] = torch.cuda.synchronize if device == "cuda" else lambda: None
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for k in range(rounds):
        for name in list(contenders)[:: 1 if k % 2 else -1]:
            wait()
            start = clock()
            contenders[name]()
            wait()
            times[name].append(clock() - start)
    return times


def compare(case: Case, device: str, rounds: int, bf16: bool = False, compiled: bool = False) -> Row:
    nets = {"farfield": ours(case), "diffusers": Peer(case)}
    sizes = {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}
    if not 0.97 <= sizes["farfield"] / sizes["diffusers"] <= 1.03:
        raise ValueError(f"the networks have {sizes} parameters; expected equal to 3 %")
    work = {name: flops(net, case) for name, net in nets.items()}
    steps: dict[str, Callable[[], None]] = {n: Step(net, case, device, bf16, compiled) for n, net in nets.items()}
    seconds(steps, 3, device)
    times = seconds(steps, rounds, device)
    # Within each round: what slows the machine for a while then cancels.
    ratio = statistics.median(a / b for a, b in zip(times["farfield"], times["diffusers"], strict=True))
    peak = next((p for part, p in PEAK.items() if device == "cuda" and part in torch.cuda.get_device_name()), None)
    texts = []
    for name in nets:
        rate = case.batch / statistics.median(times[name])
        text = f"{name} {rate:.1f} images/s, {sizes[name] / 1e6:.2f} M, {work[name] / 1e9:.2f} GFLOP/image, "
        text += f"{rate * work[name] / 1e9:.0f} GFLOP/s"
        texts.append(text + (f", {rate * work[name] / peak:.1%} of peak" if peak else ""))
    kind = f"{device}{' bf16' if bf16 else ''}{' compiled' if compiled else ''}"
    name = f"training step, {kind}, {case.resolution}x{case.resolution}, batch {case.batch}"
    return Row(name, ratio, 1.0, "× diffusers' time", "; ".join(texts))


def run() -> list[Row]:
    try:
        import diffusers  # noqa: F401
    except ImportError:
        print("   training step: skipped, diffusers is not installed", flush=True)
        return []
    warnings.filterwarnings("ignore", module="diffusers")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            rows = [compare(case, "cpu", 15) for case in CPU_CASES]
    finally:
        torch.set_num_threads(threads)
    if not torch.cuda.is_available():
        print("   training step on a GPU: skipped, there is none", flush=True)
        return rows
    return rows + [compare(GPU_CASE, "cuda", 21, True, compiled) for compiled in (False, True)]


if __name__ == "__main__":
    show(run())
