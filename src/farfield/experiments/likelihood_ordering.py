"""The likelihood ordering of Chen et al. on trained networks, and what its bandwidth has to be."""

from __future__ import annotations

from typing import Any

import torch

from farfield.analysis.likelihood_order import LikelihoodOrder, measure_order
from farfield.analysis.tables import Table
from farfield.data import load
from farfield.distributions import Empirical
from farfield.experiments.base import Outcome, Settings, Verdict, available, experiment, figure_name
from farfield.interop import load as load_model
from farfield.sampling import Sampler, karras

#: Bundled models and their data, trajectories of each, and levels of the grid.
SOURCES = ("digits", "cifar10")
TRAJECTORIES, STEPS = 64, 18
SOLVERS = ("euler", "heun")
#: Random cases of the toy study, and how many share a data set.
CASES, _EACH = 2000, 20


def counterexamples() -> Table:
    """Laws of two and three points whose densities are known: with another bandwidth the order fails."""
    two = Empirical(torch.tensor([[-1.0], [1.0]], dtype=torch.float64))
    x = torch.ones(1, 1, dtype=torch.float64)
    rows: list[tuple[Any, ...]] = []
    for level, to in ((80.0, None), (2.0, 1.0)):
        mean = two(x, level)
        end = mean if to is None else (to / level) * x + (1 - to / level) * mean
        name = f"two points, x = 1, σ = {level:g}: " + ("D*(x)" if to is None else f"Euler step to {to:g}")
        for h in (0.1, level) if to is None else (0.5, level):
            gain = float(two.log_prob(end, h) - two.log_prob(x, h))
            rows.append((name, h, float(two.log_prob(x, h)), float(two.log_prob(end, h)), gain))
    three = Empirical(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0]], dtype=torch.float64))
    start = torch.tensor([[40.0, -25.0]], dtype=torch.float64)
    run = Sampler("euler", karras(STEPS)).run(three, start, trajectory=True).trajectory
    assert run is not None
    for k in range(STEPS - 5, STEPS):
        before, after = (float(three.log_prob(run.states[j], 1.0)) for j in (k, k + 1))
        rows.append(
            (f"three points, optimal Euler path, step to x_{STEPS - 1 - k}", 1.0, before, after, after - before)
        )
    return Table("counter-examples to any bandwidth", ("case", "h", "log p before", "after", "gain"), tuple(rows))


def random_cases(seed: int, cases: int = CASES) -> tuple[int, int]:
    """Random data sets, states and points inside the ball: losses at the mean's own bandwidth, and at an unrelated one."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))

    own = other = 0
    for _ in range(cases // _EACH):
        d, count = 1 + int(uniform(0, 5)), 1 + int(uniform(0, 29))
        data = torch.randn(count, d, generator=generator, dtype=torch.float64)
        law, x = Empirical(data), 3 * torch.randn(_EACH, d, generator=generator, dtype=torch.float64)
        h, unrelated = 10 ** uniform(-1, 1), 10 ** uniform(-1, 1)
        mean = law(x, h)
        direction = torch.randn(_EACH, d, generator=generator, dtype=torch.float64)
        radius = (mean - x).norm(dim=1) * torch.rand(_EACH, generator=generator, dtype=torch.float64)
        y = mean + direction * (radius / direction.norm(dim=1)).unsqueeze(1)
        own += int((law.log_prob(y, h) < law.log_prob(x, h) - 1e-12).sum())
        other += int((law.log_prob(y, unrelated) < law.log_prob(x, unrelated) - 1e-12).sum())
    return own, other


@experiment(
    "likelihood-ordering",
    claim="Along the sampling ODE of a trained network the denoiser's output is nearer to the optimal one than the state is, "
    "at every level, so that it and the next state are more likely than the state; at the level's own bandwidth, not at any",
    source="Chen et al., A geometric perspective on diffusion models, theorem 1 and figure 4 (premise ratio below 1 at every "
    "step, on average over CIFAR-10 samples), with the bandwidth corrected",
    cost="half a minute on one CPU core for digits and about five minutes for cifar10",
)
def ordering(settings: Settings) -> Outcome:
    """Premise ratio, gains, losses and violations along Euler and Heun paths of the bundled networks."""
    return measured(settings, TRAJECTORIES)


def measured(
    settings: Settings, trajectories: int, solvers: tuple[str, ...] = SOLVERS, limit: int | None = None
) -> Outcome:
    """The experiment with other numbers of trajectories, or the first images of the data alone."""
    own, other = random_cases(settings.seed)
    toys = counterexamples()
    tables, figures, words, found = [toys], {}, [], list[LikelihoodOrder]()
    names = available(settings.data or SOURCES, settings.progress)
    columns = (
        "model", "solver", "largest mean premise ratio", "at σ", "smallest share inside", "largest share of losses",
        "least mean gain per coordinate, nats", "violations",
    )  # fmt: skip
    rows: list[tuple[Any, ...]] = []
    for name in names:
        model = load_model(name)
        images = load(name, size=(model.event_shape[-2], model.event_shape[-1])).train.images[:limit]
        law = Empirical(images)
        for solver in solvers:
            order = measure_order(
                model, law, n=trajectories, steps=STEPS, solver=solver, seed=settings.seed
            )  # fmt: skip
            found.append(order)
            rows.append((name, solver, *_row(order)))
            tables.append(
                Table(f"{name}, {solver}: {order.tables()[0].title}", order.tables()[0].columns, order.tables()[0].rows)
            )
            figures[figure_name(f"ordering-{solver}", name)] = order.plot()
        words.append(
            f"{name}: mean premise ratio at most {max(r[2] for r in rows if r[0] == name):.4f}, all samples inside down to "
            f"σ = {_inside_until(found[-len(solvers) :]):.3g}, at most "
            f"{max(r[5] for r in rows if r[0] == name):.1%} of a level's samples lose density"
        )
    tables.insert(
        1, Table(f"{trajectories} trajectories, {STEPS} steps, each level's own bandwidth", columns, tuple(rows))
    )
    # The source states means; every sample is more than that. A violation would refute the theorem itself.
    theorem = own == 0 and other > 0 and all(o.violations == 0 for o in found)
    means = all(o.denoised.highest_ratio < 1 and _mean_order(o) for o in found)
    each = all(o.premise and o.ordered for o in found)
    verdict: Verdict = (
        "holds" if theorem and means and each else "holds in part" if theorem or means else "does not hold"
    )
    because = (
        f"{own} of {CASES:,} random cases inside the ball lose density at the mean's own bandwidth, {other} at an unrelated "
        f"one; {'; '.join(words)}; {sum(o.violations for o in found)} violations of the corrected theorem. On average the "
        f"premise and the order {'hold' if means else 'do not hold'} at every level, for every single sample they "
        f"{'do as well' if each else 'do not'}"
    )
    told = {"trajectories": trajectories, "steps": STEPS, "seed": settings.seed, "data": names, "cases": CASES}
    return Outcome(verdict, because, tuple(tables), figures, told)


def _mean_order(order: LikelihoodOrder) -> bool:
    return min(*order.denoised.gain.mean, *order.following.gain.mean) >= 0


def _row(order: LikelihoodOrder) -> tuple[Any, ...]:
    ratio = order.denoised.ratio.mean
    k = max(range(len(ratio)), key=ratio.__getitem__)
    losses = max(*order.denoised.losses, *order.following.losses)
    gain = min(*order.denoised.gain.mean, *order.following.gain.mean) / order.dim
    return ratio[k], order.sigmas[k], min(order.denoised.inside), losses, gain, order.violations


def _inside_until(orders: list[LikelihoodOrder]) -> float:
    """The lowest level above which every sample of every run satisfies the premise."""
    lowest = 0.0
    for order in orders:
        until = order.sigmas[0]
        for s, inside in zip(order.sigmas, order.denoised.inside, strict=True):
            if inside < 1:
                break
            until = s
        lowest = max(lowest, until)
    return lowest
