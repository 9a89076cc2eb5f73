"""Fits against the products and clusterings they cannot do without.

    python -m benchmarks.fitting

Images in float32 whose spectrum falls like that of photographs (those of ``benchmarks.stf``).

- *covariance*: mean and float64 covariance of 50,000×3072 over one float32 ``X.T @ X``, on one thread (its processor time)
  and on all (wall clock, so the machine has to be quiet); interleaved, medians of three.
- *mixture*: ``GaussianMixture.fit`` with 200 components of rank 128 on 45,000×768 over mini-batch k-means of the points as
  they are, which is only its first step; processor time of one thread, the better of two.
- *sweep*: four ranks of 50 components from one family over a single fit of the largest rank; the same data and clock.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.stf import images
from benchmarks.table import Row, show
from farfield.distributions import GaussianMixture
from farfield.distributions.mixture_clusters import BATCH
from farfield.distributions.mixture_family import MixtureFamily
from farfield.numerics import moments

COUNT, SMALL, ROUNDS = 50_000, 45_000, 3
RANKS = (16, 64, 128, 256)

Clock = Callable[[], float]


def seconds(call: Callable[[], object], clock: Clock) -> float:
    start = clock()
    call()
    return clock() - start


def covariance(x: Tensor, threads: int, clock: Clock, name: str) -> Row:
    torch.set_num_threads(threads)
    ours, plain = list[float](), list[float]()
    moments.moments(x[:4096])
    for k in range(ROUNDS):
        calls = [(ours, lambda: moments.moments(x)), (plain, lambda: x.T @ x)]
        for times, call in calls if k % 2 else calls[::-1]:
            times.append(seconds(call, clock))
    ratio = statistics.median(a / b for a, b in zip(ours, plain, strict=True))
    detail = f"× X.T @ X in float32, {statistics.median(ours):.1f} s against {statistics.median(plain):.1f} s"
    return Row(f"covariance of {COUNT}x3072, {name}", ratio, 1.3, detail)


def mixtures(x: Tensor) -> list[Row]:
    from sklearn.cluster import MiniBatchKMeans

    torch.set_num_threads(1)
    points = x.flatten(1).numpy()

    def plain() -> None:
        MiniBatchKMeans(200, batch_size=BATCH, random_state=0, n_init=3).fit(points)

    def best(call: Callable[[], object]) -> float:
        return min(seconds(call, time.process_time) for _ in range(2))

    clusters, fit = best(plain), best(lambda: GaussianMixture.fit(x, 200, rank=128))
    single = best(lambda: GaussianMixture.fit(x, 50, rank=max(RANKS)))
    sweep = best(lambda: list(MixtureFamily(x, rank=max(RANKS)).sweep((50,), RANKS)))
    return [
        Row("mixture of 200, rank 128, 768 coordinates", fit / clusters, 1.0,
            f"× k-means of the plain points, {fit:.1f} s against {clusters:.1f} s"),
        Row(f"mixture of 50 at {len(RANKS)} ranks", sweep / single, 1.5,
            f"× a fit at the largest, {sweep:.1f} s against {single:.1f} s"),
    ]  # fmt: skip


@torch.no_grad()
def run() -> list[Row]:
    from threadpoolctl import threadpool_limits

    threads = torch.get_num_threads()
    try:
        data = images(COUNT)
        flat = data.flatten(1)
        rows = [covariance(flat, threads, time.perf_counter, f"{threads} threads")] if threads > 1 else []
        # scikit-learn's own threads would count too.
        with threadpool_limits(1):
            rows.append(covariance(flat, 1, time.process_time, "one thread"))
            return rows + mixtures(F.avg_pool2d(data[:SMALL], 2))
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    show(run())
