"""A second reading of ``shared/spec/edm_networks``, sections 1 to 6: plain functions of a state dict, nothing of farfield.

Slow and literal on purpose: resampling is written tap by tap, group normalisation and attention as sums. Arguments have the
published names; tensors have the published names too, without ``model.``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
SONG_DEFAULTS: dict[str, Any] = {
    "label_dim": 0, "augment_dim": 0, "model_channels": 128, "channel_mult": [1, 2, 2, 2], "channel_mult_emb": 4,
    "num_blocks": 4, "attn_resolutions": [16], "embedding_type": "positional", "channel_mult_noise": 1,
    "encoder_type": "standard", "decoder_type": "standard", "resample_filter": [1, 1],
}  # fmt: skip
ADM_DEFAULTS: dict[str, Any] = {
    "label_dim": 0, "augment_dim": 0, "model_channels": 192, "channel_mult": [1, 2, 3, 4], "channel_mult_emb": 4,
    "num_blocks": 3, "attn_resolutions": [32, 16, 8],
}  # fmt: skip


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def linear(s: State, name: str, x: Tensor) -> Tensor:
    y = torch.einsum("bi,oi->bo", x, s[f"{name}.weight"])
    return y + s[f"{name}.bias"] if f"{name}.bias" in s else y


def normalise(s: State, name: str, x: Tensor, eps: float) -> Tensor:
    b, c, h, w = x.shape
    grouped = x.reshape(b, min(32, c // 4), -1)
    grouped = grouped - grouped.mean(2, keepdim=True)
    grouped = grouped / (grouped.square().mean(2, keepdim=True) + eps).sqrt()
    weight, bias = s[f"{name}.weight"], s[f"{name}.bias"]
    return grouped.reshape(b, c, h, w) * weight[:, None, None] + bias[:, None, None]


def shrink(x: Tensor, f: Tensor, padding: int) -> Tensor:
    n = f.shape[-1]
    x = F.pad(x, (padding,) * 4)
    h, w = (x.shape[2] - n) // 2 + 1, (x.shape[3] - n) // 2 + 1
    return sum(  # type: ignore[return-value]
        f[0, 0, i, j] * x[:, :, i : i + 2 * h - 1 : 2, j : j + 2 * w - 1 : 2] for i in range(n) for j in range(n)
    )


def grow(x: Tensor, f: Tensor, padding: int) -> Tensor:
    n, (b, c, h, w) = f.shape[-1], x.shape
    y = x.new_zeros(b, c, 2 * (h - 1) + n, 2 * (w - 1) + n)
    for i in range(n):
        for j in range(n):
            y[:, :, i : i + 2 * h - 1 : 2, j : j + 2 * w - 1 : 2] += 4 * f[0, 0, i, j] * x
    return y[:, :, padding : y.shape[2] - padding, padding : y.shape[3] - padding]


def conv(s: State, name: str, x: Tensor, way: str = "", fused: bool = False) -> Tensor:
    weight = s.get(f"{name}.weight")
    kernel = 0 if weight is None else weight.shape[-1]
    p_w = kernel // 2
    if way:
        f = s[f"{name}.resample_filter"]
        p_f = (f.shape[-1] - 1) // 2
    if fused:
        assert way == "down"
        x = shrink(F.conv2d(x, weight, padding=p_w + p_f), f, 0)
    else:
        x = grow(x, f, p_f) if way == "up" else shrink(x, f, p_f) if way == "down" else x
        x = F.conv2d(x, weight, padding=p_w) if kernel else x
    return x + s[f"{name}.bias"][:, None, None] if kernel else x


def attention(qkv: Tensor, heads: int) -> Tensor:
    b, c3, h, w = qkv.shape
    c = c3 // 3 // heads
    out = []
    for head in range(heads):
        part = qkv[:, 3 * c * head : 3 * c * (head + 1)].reshape(b, 3 * c, h * w)
        q, k, v = part[:, 0::3], part[:, 1::3], part[:, 2::3]
        weights = torch.einsum("bcq,bck->bqk", q, k / math.sqrt(c)).softmax(dim=2)
        out.append(torch.einsum("bqk,bck->bcq", weights, v))
    return torch.cat(out, dim=1).reshape(b, heads * c, h, w)


def block(s: State, name: str, x: Tensor, emb: Tensor, adm: bool, way: str = "", attend: bool = False) -> Tensor:
    eps, gain = (1e-5, 1.0) if adm else (1e-6, math.sqrt(0.5))
    h = conv(s, f"{name}.conv0", silu(normalise(s, f"{name}.norm0", x, eps)), way)
    a = linear(s, f"{name}.affine", emb)[:, :, None, None]
    if adm:
        half = a.shape[1] // 2
        h = silu(a[:, half:] + normalise(s, f"{name}.norm1", h, eps) * (1 + a[:, :half]))
    else:
        h = silu(normalise(s, f"{name}.norm1", h + a, eps))
    h = conv(s, f"{name}.conv1", h)
    if way or h.shape[1] != x.shape[1]:
        x = conv(s, f"{name}.skip", x, way)
    h = (h + x) * gain
    heads = (h.shape[1] // 64 if adm else 1) if attend else 0
    assert (heads > 0) == (f"{name}.qkv.weight" in s)
    if heads:
        y = attention(conv(s, f"{name}.qkv", normalise(s, f"{name}.norm2", h, eps)), heads)
        h = (conv(s, f"{name}.proj", y) + h) * gain
    return h


def positional(c: Tensor, n: int, endpoint: int) -> Tensor:
    i = torch.arange(n // 2, dtype=torch.float32)
    f = (1 / 10000) ** (i / (n // 2 - endpoint))
    return torch.cat([(c[:, None] * f.to(c)).cos(), (c[:, None] * f.to(c)).sin()], dim=1)


def song_unet(
    s: State, args: dict[str, Any], x: Tensor, c: Tensor, labels: Tensor | None, aug: Tensor | None
) -> Tensor:
    a = {**SONG_DEFAULTS, **args}
    levels, resolution = len(a["channel_mult"]), a["img_resolution"]
    n = a["model_channels"] * a["channel_mult_noise"]
    if a["embedding_type"] == "fourier":
        angle = c[:, None] * (2 * math.pi * s["map_noise.freqs"])[None]
        e = torch.cat([angle.cos(), angle.sin()], dim=1)
    else:
        e = positional(c, n, endpoint=1)
    e = torch.cat([e[:, n // 2 :], e[:, : n // 2]], dim=1)
    if a["label_dim"]:
        e = e + linear(s, "map_label", labels * math.sqrt(a["label_dim"]))
    if aug is not None:
        e = e + linear(s, "map_augment", aug)
    emb = silu(linear(s, "map_layer1", silu(linear(s, "map_layer0", e))))

    aux, stack = x, []
    for level in range(levels):
        r = resolution >> level
        name = f"enc.{r}x{r}_"
        x = conv(s, name + "conv", x) if level == 0 else block(s, name + "down", x, emb, False, "down")
        if level and a["encoder_type"] == "skip":
            aux = conv(s, name + "aux_down", aux, "down")
            x = x + conv(s, name + "aux_skip", aux)
        if level and a["encoder_type"] == "residual":
            aux = x = (x + conv(s, name + "aux_residual", aux, "down", fused=True)) / math.sqrt(2)
        stack.append(x)
        for k in range(a["num_blocks"]):
            x = block(s, name + f"block{k}", x, emb, False, attend=r in a["attn_resolutions"])
            stack.append(x)
    image: Tensor | None = None
    for level in range(levels - 1, -1, -1):
        r = resolution >> level
        name = f"dec.{r}x{r}_"
        if level == levels - 1:
            x = block(s, name + "in0", x, emb, False, attend=True)
            x = block(s, name + "in1", x, emb, False)
        else:
            x = block(s, name + "up", x, emb, False, "up")
        for k in range(a["num_blocks"] + 1):
            attend = k == a["num_blocks"] and r in a["attn_resolutions"]
            x = block(s, name + f"block{k}", torch.cat([x, stack.pop()], dim=1), emb, False, attend=attend)
        if level == 0 or a["decoder_type"] == "skip":
            if image is not None:
                image = conv(s, name + "aux_up", image, "up")
            t = conv(s, name + "aux_conv", silu(normalise(s, name + "aux_norm", x, 1e-6)))
            image = t if image is None else image + t
    assert image is not None
    return image


def dhariwal_unet(
    s: State, args: dict[str, Any], x: Tensor, c: Tensor, labels: Tensor | None, aug: Tensor | None
) -> Tensor:
    a = {**ADM_DEFAULTS, **args}
    levels, resolution = len(a["channel_mult"]), a["img_resolution"]
    e = positional(c, a["model_channels"], endpoint=0)
    if aug is not None:
        e = e + linear(s, "map_augment", aug)
    e = linear(s, "map_layer1", silu(linear(s, "map_layer0", e)))
    if a["label_dim"]:
        e = e + linear(s, "map_label", labels)
    emb = silu(e)
    stack = []
    for level in range(levels):
        r = resolution >> level
        name = f"enc.{r}x{r}_"
        x = conv(s, name + "conv", x) if level == 0 else block(s, name + "down", x, emb, True, "down")
        stack.append(x)
        for k in range(a["num_blocks"]):
            x = block(s, name + f"block{k}", x, emb, True, attend=r in a["attn_resolutions"])
            stack.append(x)
    for level in range(levels - 1, -1, -1):
        r = resolution >> level
        name = f"dec.{r}x{r}_"
        if level == levels - 1:
            x = block(s, name + "in0", x, emb, True, attend=True)
            x = block(s, name + "in1", x, emb, True)
        else:
            x = block(s, name + "up", x, emb, True, "up")
        for k in range(a["num_blocks"] + 1):
            x = torch.cat([x, stack.pop()], dim=1)
            x = block(s, name + f"block{k}", x, emb, True, attend=r in a["attn_resolutions"])
    return conv(s, "out_conv", silu(normalise(s, "out_norm", x, 1e-5)))


def levels_of_iddpm() -> Tensor:
    def alpha_bar(j: int) -> float:
        return math.sin(0.5 * math.pi * j / 1000 / 1.008) ** 2

    u = [0.0]
    for j in range(1000, 0, -1):
        u.insert(0, math.sqrt((u[0] ** 2 + 1) / max(alpha_bar(j - 1) / alpha_bar(j), 0.001) - 1))
    return torch.tensor(u, dtype=torch.float64)


def denoise(
    kind: str,
    network: str,
    state: State,
    args: dict[str, Any],
    x: Tensor,
    sigma: Tensor,
    labels: Tensor | None = None,
    aug: Tensor | None = None,
    sigma_data: float = 0.5,
) -> Tensor:
    """D(x, σ), section 6; σ is (B,) float32, and ``u`` is read from the state of an iDDPM network as the page says."""
    net = {"song_unet": song_unet, "dhariwal_unet": dhariwal_unet}[network]
    s = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    one = torch.ones_like(sigma)
    if kind == "edm":
        total = sigma**2 + sigma_data**2
        skip, out, inp = sigma_data**2 / total, sigma * sigma_data / total.sqrt(), 1 / total.sqrt()
        noise = sigma.log() / 4
    elif kind == "vp":
        skip, out, inp = one, -sigma, 1 / (sigma**2 + 1).sqrt()
        noise = 999 * (((0.1**2 + 2 * 19.9 * (1 + sigma**2).log()).sqrt() - 0.1) / 19.9)
    elif kind == "ve":
        skip, out, inp, noise = one, sigma, one, (sigma / 2).log()
    else:
        skip, out, inp = one, -sigma, 1 / (sigma**2 + 1).sqrt()
        noise = torch.stack([999 - (s["u"] - level).abs().argmin() for level in sigma]).float()
    shape = (-1, 1, 1, 1)
    raw = net(s, args, inp.reshape(shape) * x, noise.to(x), labels, aug)[:, : x.shape[1]]
    return skip.reshape(shape) * x + out.reshape(shape) * raw
