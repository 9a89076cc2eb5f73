"""The learned denoiser beside the optimal one, along the path of either: where they part, and why samples are new.

From the same starts a model r_θ and the optimal denoiser r* of its training data are followed with the same sampler, and each
is asked on the other's path as well:

    along the optimal path   ‖r_θ(x*_n) − r*(x*_n)‖      negligible at high noise, rises, falls towards the data
    along the model's path   ‖r_θ(x_n) − r*(x_n)‖        only grows

(Chen et al., A geometric perspective on diffusion models, section 6, observation 4 and F.2, F.3.) Divided by σ² this is the
error of the score. A model without it replays its data: the optimal denoiser's samples are data points. How early the data
point in whose basin a sample lies is decided is told by ``r*(x_n)``, which becomes that point on the way.
"""

from __future__ import annotations

import torch
from torch import Tensor

from farfield.analysis.diagnosis_follow import Setup, follow, pictures_of
from farfield.analysis.diagnosis_paths import Neighbours, along, distance, distinct_points, leading, locked, same_points
from farfield.analysis.diagnosis_result import ScoreDeviation
from farfield.analysis.diagnosis_starts import StartKind
from farfield.analysis.entrants import in_words
from farfield.denoiser import Denoiser
from farfield.distributions import Empirical
from farfield.sampling import Sampler


def score_deviation(
    model: Denoiser,
    data: Tensor | Empirical,
    *,
    labels: Tensor | None = None,
    conditional: bool | None = None,
    n: int = 32,
    seed: int = 0,
    starts: StartKind | Tensor = "gaussian",
    sampler: Sampler | None = None,
    neighbours: int = 5,
    shown: int = 10,
    batch_size: int = 64,
    dtype: torch.dtype = torch.float32,
) -> ScoreDeviation:
    """Follow a model and the optimal denoiser of its data from the same starts, and compare them along both paths.

    Args:
        model: a network or an exact law.
        data: (N, *event) what it was trained on, or the law of these data
            (:func:`~farfield.analysis.diagnosis_follow.optimal_law`).
        labels: (N,) classes of the data; an ``Empirical`` has its own.
        conditional: give each start a class, to the model as ``labels``, and restrict the optimal denoiser to the data of that
            class; by default where the model takes classes and ``labels`` are known.
        n: starts.
        seed: names them; Gaussian start i is the noise of the sampler's sample i.
        starts: ``"gaussian"``, ``"noised"`` or ``"encoded"`` data (:mod:`farfield.analysis.diagnosis_starts`), or states
            (n, *event) at the sampler's highest level, whose type is kept.
        sampler: of both; by default Heun on 18 Karras levels within the model's range.
        neighbours: k, nearest data points of each sample.
        shown: samples kept to be shown, where they are images.
        batch_size: starts at a time.
        dtype: of the states.

    Raises:
        ArgumentError: for shapes that do not fit, an argument out of range, a model of another process than diffusion, or a
            sampler that leaves the deterministic path from the prior to σ = 0.
    """
    setup = Setup(n, seed, starts, sampler, neighbours, shown, batch_size, dtype)
    found = follow(model, data, labels, conditional, setup)
    law, paths, condition = found.law, found.paths, found.condition
    sigmas, count = paths.sigmas, len(paths.sigmas)
    # The outputs on either's own path are the first evaluations of its steps; the other's are asked for.
    learned = along(model, paths.optimal.states[:count], sigmas, condition, batch_size)
    optimal = along(law, paths.model.states[:count], sigmas, condition, batch_size)
    own_gap = distance(paths.model.denoised, optimal)
    reach = distance(optimal, paths.model.states[:count])
    ends = paths.model.states[-1], paths.optimal.states[-1]
    near, other = (Neighbours.of(x, law, neighbours, condition) for x in ends)
    first, second = near.number[:, 0], other.number[:, 0]
    rows = {"model": ends[0], "optimal": ends[1], "nearest data": law.data[first]}
    return ScoreDeviation(
        sigmas=sigmas,
        optimal_gap=distance(learned, paths.optimal.denoised).cpu(),
        own_gap=own_gap.cpu(),
        premise=torch.where(reach > 0, own_gap / reach, torch.where(own_gap > 0, torch.inf, 0.0)).cpu(),
        locked=locked(law, optimal, first).cpu(),
        leading=leading(law, optimal, first, condition).cpu(),
        neighbours=near.cpu(),
        optimal_neighbours=other.cpu(),
        same_basin=same_points(law, first, second).cpu(),
        distinct=distinct_points(law, second),
        n_data=law.count,
        dim=law.dim,
        nfe=paths.nfe + count,
        starts="given" if isinstance(starts, Tensor) else starts,
        origins=None if found.begin.origins is None else found.begin.origins.cpu(),
        conditional=found.conditional,
        sampler=in_words(found.sampler),
        seed=seed,
        pictures=pictures_of(model, rows, shown),
    )
