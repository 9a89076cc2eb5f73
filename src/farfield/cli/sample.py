"""``farfield sample``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from farfield.cli.solver_options import known_solvers, solver_of

if TYPE_CHECKING:
    from farfield.data import DataSet
    from farfield.denoiser import Denoiser
    from farfield.distributions import Gaussian
    from farfield.sampling import Finish, Grid, Noise, Sampler


@dataclass(frozen=True)
class Sample:
    """Draw samples from a model into a folder: samples.npz, samples.png and run.json.

    The same seed gives the same samples, whatever the batch size; a run that was interrupted goes on where it stopped.

    By default the whitened solver takes the steps, with the training data's Gaussian and on the grid from its spectrum: 18
    evaluations. Where the training data are not known or not there, and with --teleport or --churn, it is Heun's method on
    Karras's grid: 35 evaluations. run.json says what it was; name --solver and --grid where another machine shall do the same.

    example:  farfield sample digits --n 64 --steps 8 --out runs/samples

    example:  farfield sample digits --n 64 --solver unipc --grid log_snr --solver-option points=3 variant=bh1

    example:  farfield sample digits --n 64 --solver rk45 --solver-option rtol=1e-5 atol=1e-5

    example:  farfield sample digits --n 64 --jump-nfe 6 --out runs/jumped

    example:  farfield sample digits --n 64 --teleport auto --out runs/teleported

    example:  farfield sample digits --n 256 --seed 7 --sampler runs/report/sampler.json --out runs/fast
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A bundled name, a folder of `farfield train`, or a .safetensors file."""
    n: int = 64
    """How many samples."""
    out: Path | None = None
    """Folder of the samples; runs/samples-MODEL by default."""
    seed: int = 0
    """Names the noise."""
    solver: Annotated[str, tyro.conf.arg(help_behavior_hint=known_solvers)] = "auto"
    """Step rule; auto is whitened or heun, as said above."""
    solver_option: tuple[str, ...] = ()
    """Options of the step rule, name=value: midpoint=0.3, variant=bh1, points=3, form=finite_difference, rtol=1e-5."""
    steps: int = 18
    """Noise levels, hence steps down to zero noise."""
    grid: Literal["auto", "karras", "log_snr", "spectral", "vp_time", "ddpm"] = "auto"
    """How the levels are spaced; spectral follows the data's spectrum. auto is that for whitened by default, else karras."""
    sigma_min: float | None = None
    """Lowest level; the model's own by default."""
    sigma_max: float | None = None
    """Highest level; the model's own by default."""
    rho: float = 7.0
    """Exponent of the karras grid."""
    order: int | None = None
    """Order of the whitened solver, 1 to 3, or points of a multistep rule."""
    jump_at: float | None = None
    """End early: solve down to this level and take the denoiser's output there (ODE-Jump)."""
    jump_nfe: int | None = None
    """The same after so many evaluations, the jump's own among them."""
    jump_tol: float | None = None
    """The same for each sample on its own, once its denoised picture changes by less than this part between two steps."""
    teleport: float | Literal["auto"] | None = None
    """Start at this level, from the same noise carried along the data's Gaussian flow; auto measures how far that holds."""
    policy: Literal["auto", "truncate", "regrid"] = "auto"
    """What a teleport does with the steps above it: truncate saves them, regrid takes them below. By default auto saves
    them, unless there are 12 evaluations or fewer, and a teleport to a given level takes them below."""
    eta: float | None = None
    """Fresh noise after each step, as in DDPM: 1 all of it, 0 none. With --solver euler, dpmpp_2m or whitened; heun's
    steps would end below the model's lowest level."""
    churn: float | None = None
    """Fresh noise before each step, as in EDM's stochastic sampler: its S_churn."""
    guidance: float | None = None
    """Scale of classifier-free guidance towards --label; 1 is none."""
    guidance_interval: tuple[float, float] | None = None
    """Guide between these two levels only."""
    data: str | None = None
    """Data for the covariance of whitened, teleport and spectral; by default what the model's card names."""
    sampler: Path | None = None
    """A sampler.json, in place of the options above."""
    label: int | None = None
    """Class to draw, for models with classes."""
    batch_size: int = 64
    """Samples evaluated at once; it does not change them."""
    overwrite: bool = False
    """Replace samples of another run in the folder."""
    device: str = "auto"
    """Where to compute: auto (the first GPU, or else the CPU), cpu, cuda, cuda:1."""
    quiet: bool = False
    """Show no progress."""
    json: bool = False
    """Print the result as JSON."""

    def run(self) -> int:
        """Draw the samples and print where they are."""
        from farfield.cli.common import print_json
        from farfield.cli.drawing import draw, sampler_decides
        from farfield.errors import ArgumentError
        from farfield.interop import load
        from farfield.numerics.devices import choose_device

        if self.n < 1:
            raise ArgumentError(f"--n {self.n}; expected at least 1")
        if self.steps < 1:
            raise ArgumentError(f"--steps {self.steps}; expected at least 1")
        self._refuse_ignored()
        model = load(self.model).to(choose_device(self.device))
        sampler = self._from_file() if self.sampler is not None else self._from_options(model)
        out = self.out if self.out is not None else Path("runs") / f"samples-{Path(self.model).name}"
        condition: dict[str, Any] = {}
        if self.label is not None:
            import torch

            condition["labels"] = torch.full((self.n,), self.label)
        record = draw(
            model,
            sampler,
            self.n,
            self.seed,
            out,
            batch_size=self.batch_size,
            condition=condition,
            describe={"model": self.model, "label": self.label},
            overwrite=self.overwrite,
            progress=not self.quiet,
        )
        if self.json:
            print_json(record)
        else:
            most = "at most " if sampler_decides(sampler) else ""
            print(f"{out / 'samples.npz'}: {self.n} samples, {most}{record['nfe']} evaluations each")
        return 0

    def _refuse_ignored(self) -> None:
        """An option that would have no effect is a mistake, and better said than ignored."""
        from farfield.errors import ArgumentError
        from farfield.sampling import SOLVERS

        if self.sampler is not None:
            options = (
                "solver", "solver_option", "steps", "grid", "sigma_min", "sigma_max", "rho", "order", "jump_at", "jump_nfe",
                "jump_tol", "teleport", "policy", "eta", "churn", "guidance", "guidance_interval", "data",
            )  # fmt: skip
            default = {f.name: f.default for f in fields(self)}
            given = [f"--{o.replace('_', '-')}" for o in options if getattr(self, o) != default[o]]
            if given:
                raise ArgumentError(f"--sampler says all about the sampler; {', '.join(given)} cannot be given with it")
            return
        if self.policy != "auto" and self.teleport is None:
            raise ArgumentError(f"--policy {self.policy} would have no effect without --teleport")
        if self.guidance_interval is not None and self.guidance is None:
            raise ArgumentError("--guidance-interval would have no effect without --guidance")
        if self.eta is not None and self.churn is not None:
            raise ArgumentError("--eta and --churn are two kinds of noise; give one of them")
        jumps = [f"--jump-{k}" for k in ("at", "nfe", "tol") if getattr(self, f"jump_{k}") is not None]
        if len(jumps) > 1:
            raise ArgumentError(f"{' and '.join(jumps)} are rules for one jump; give one of them")
        if self.data is not None:
            whitened = self.solver in SOLVERS and SOLVERS[self.solver].uses_covariance
            unused = self.solver in SOLVERS or (self.solver == "auto" and not self._best_is_wanted)
            if unused and not whitened and self.teleport is None and self.grid != "spectral":
                raise ArgumentError(
                    f"--data {self.data} would have no effect: "
                    "only --solver whitened, --teleport and --grid spectral use the data's covariance"
                )

    def _from_file(self) -> Sampler:
        from farfield.errors import ArgumentError, DataError, FarfieldError
        from farfield.sampling import Sampler

        assert self.sampler is not None
        try:
            text = self.sampler.read_text(encoding="utf-8")
        except OSError as error:
            raise ArgumentError(f"--sampler {self.sampler} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{self.sampler} is not a sampler: it is not text") from error
        try:
            return Sampler.from_json(text)
        except FarfieldError as error:
            raise type(error)(f"--sampler {self.sampler}: {error}") from error

    def _from_options(self, model: Denoiser) -> Sampler:
        from farfield.cli.common import note
        from farfield.errors import ArgumentError
        from farfield.sampling import ClassifierFree, Sampler

        data = self._data_of_default(model)
        name = self.solver if self.solver != "auto" else "heun" if data is None else "whitened"
        solver = solver_of(name, self.order, self.solver_option)
        gaussian = None
        if solver.uses_covariance or self.teleport is not None or self.grid == "spectral":
            data = self._data(model) if data is None else data
            if data is not None:
                gaussian = self._gaussian(data)
            elif self.teleport is not None or self.grid == "spectral":
                option = "--teleport" if self.teleport is not None else "--grid spectral"
                raise ArgumentError(f"{option} needs the data's covariance: name the data with --data")
            else:
                note("no --data: the whitened solver runs without a covariance, as the isotropic exponential rule")
        grid = self._grid(model, gaussian, "spectral" if self.solver == "auto" and name == "whitened" else "karras")
        guidance = () if self.guidance is None else (ClassifierFree(self.guidance, self.guidance_interval),)
        sampler = Sampler(
            solver,
            grid,
            finish=self._finish(),
            covariance=gaussian if solver.uses_covariance else None,
            noise=self._noise(),
            guidance=guidance,
        )
        if self.teleport is None or gaussian is None or data is None:
            return sampler
        return self._teleported(model, sampler, gaussian, data)

    @property
    def _best_is_wanted(self) -> bool:
        """Whether the default is whitened where it can be: a teleport takes over what it is good at, churn is Heun's."""
        return self.solver == "auto" and self.teleport is None and self.churn is None

    def _data_of_default(self, model: Denoiser) -> DataSet | None:
        """The training data for the default solver; None where it is not wanted, or they are not there, which is said."""
        from farfield.cli.common import card_source, note
        from farfield.errors import ArgumentError, DataError

        if not self._best_is_wanted:
            return None
        try:
            data = self._data(model)
        except (ArgumentError, DataError) as error:
            if self.data is not None:
                raise
            note(f"Heun's method, because the model's data {card_source(model)} cannot be used: {error}")
            return None
        if data is None:
            note("Heun's method, because the training data are not known; with --data it would be the whitened solver")
        return data

    def _data(self, model: Denoiser) -> DataSet | None:
        from farfield.cli.common import data_of
        from farfield.errors import ArgumentError

        data = data_of(model, self.data)
        if data is not None and data.event_shape != model.event_shape:
            raise ArgumentError(f"--data has samples of shape {data.event_shape}; the model's are {model.event_shape}")
        return data

    @staticmethod
    def _rank(data: DataSet) -> int | None:
        return None if data.images[0].numel() <= 1024 else 256

    def _gaussian(self, data: DataSet) -> Gaussian:
        from farfield.distributions import Gaussian

        return Gaussian.fit(data.images, rank=self._rank(data))

    def _finish(self) -> Finish:
        from farfield.sampling import Jump, ToZero
        from farfield.sampling.stop_rules import Budget, SmallChange

        if self.jump_at is not None:
            return Jump(self.jump_at)
        if self.jump_nfe is not None:
            return Jump(Budget(self.jump_nfe))
        return ToZero() if self.jump_tol is None else Jump(SmallChange(self.jump_tol))

    def _grid(self, model: Denoiser, gaussian: Gaussian | None, usual: Literal["karras", "spectral"]) -> Grid:
        from farfield.errors import ArgumentError
        from farfield.sampling import ddpm, karras, log_snr, spectral, vp_time

        low = self.sigma_min if self.sigma_min is not None else model.sigma_min
        high = self.sigma_max if self.sigma_max is not None else model.sigma_max
        # An exponent belongs to Karras's grid, whatever the solver.
        name = self.grid if self.grid != "auto" else "karras" if self.rho != Sample.rho else usual
        if name in ("vp_time", "ddpm") and (self.sigma_min is not None or self.sigma_max is not None):
            raise ArgumentError(f"--sigma-min and --sigma-max do not go with --grid {name}, which has its own ends")
        if name == "spectral":
            assert gaussian is not None
            return spectral(self.steps, gaussian, low, high)
        if name in ("karras", "log_snr"):
            return karras(self.steps, low, high, self.rho) if name == "karras" else log_snr(self.steps, low, high)
        grid = vp_time(self.steps) if name == "vp_time" else ddpm(self.steps)
        # These schedules start where their process ends, which may be above what the model knows.
        return grid.starting_at(high) if grid[0] > high else grid

    def _noise(self) -> Noise | None:
        from farfield.sampling import Ancestral, Churn

        if self.eta is not None:
            return Ancestral(self.eta)
        return None if self.churn is None else Churn(self.churn)

    def _teleported(self, model: Denoiser, sampler: Sampler, gaussian: Gaussian, data: DataSet) -> Sampler:
        """The sampler with its teleport: along the class's Gaussian where there is a class and the data know it."""
        from dataclasses import replace

        import torch

        from farfield.analysis.teleport import far_field_norm, plan_teleport
        from farfield.cli.common import note
        from farfield.distributions import Gaussian
        from farfield.distributions.series import far_field_fuv
        from farfield.sampling import ClassTeleport, Teleport

        pooled, images = gaussian, data.images
        if self.label is not None and data.labels is not None:
            rows = images[data.labels == self.label]
            if len(rows) >= max(gaussian.spectrum.rank, 2):  # fewer have no covariance of their own
                gaussian, images = Gaussian.fit(rows, rank=self._rank(data)), rows
        level, policy = self.teleport, self.policy
        if level == "auto":
            condition: dict[str, Any] = {} if self.label is None else {"labels": torch.tensor(self.label)}
            plan = plan_teleport(model, gaussian, sampler, policy=self.policy, **condition)
            note(plan.summary())
            if not plan.skip:
                return sampler
            assert isinstance(plan.sampler.start, Teleport)
            level, policy = plan.sigma, plan.sampler.start.grid_policy
        assert isinstance(level, float)
        kept = "regrid" if policy == "auto" else policy
        if self.teleport != "auto":
            left = far_field_fuv(far_field_norm(images, points=2048), level, gaussian.dim)
            if left > 1e-3:
                note(
                    f"at sigma = {level:g} the data are not Gaussian any more (about {left:.1g} of the score is left "
                    "unexplained): the samples will suffer; --teleport auto finds a safe level"
                )
        if self.label is not None and self.guidance is not None:
            laws = (*(None,) * self.label, gaussian)
            return replace(sampler, start=ClassTeleport(laws, pooled, level, kept))
        return replace(sampler, start=Teleport(gaussian, level, kept))
