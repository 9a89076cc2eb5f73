"""``farfield sample``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from farfield.denoiser import Denoiser
    from farfield.sampling import Sampler


@dataclass(frozen=True)
class Sample:
    """Draw samples from a model into a folder: samples.npz, samples.png and run.json.

    The same seed gives the same samples, whatever the batch size; a run that was interrupted goes on where it stopped.

    example:  farfield sample digits --n 64 --solver whitened --steps 8 --out runs/samples

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
    solver: str = "heun"
    """Step rule; `farfield info` lists them."""
    steps: int = 18
    """Noise levels, hence steps down to zero noise."""
    grid: Literal["karras", "log_snr", "spectral", "vp_time", "ddpm"] = "karras"
    """How the levels are spaced; spectral follows the data's spectrum."""
    sigma_min: float | None = None
    """Lowest level; the model's own by default."""
    sigma_max: float | None = None
    """Highest level; the model's own by default."""
    rho: float = 7.0
    """Exponent of the karras grid."""
    order: int | None = None
    """Order of the whitened solver, 1 to 3."""
    teleport: float | None = None
    """Start at this level, from the same noise carried along the data's Gaussian flow."""
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
        from farfield.cli.drawing import draw
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
            print(f"{out / 'samples.npz'}: {self.n} samples, {sampler.nfe} evaluations each")
        return 0

    def _refuse_ignored(self) -> None:
        """An option that would have no effect is a mistake, and better said than ignored."""
        from farfield.errors import ArgumentError
        from farfield.sampling import SOLVERS

        if self.sampler is not None:
            options = ("solver", "steps", "grid", "sigma_min", "sigma_max", "rho", "order", "teleport", "data")
            default = {f.name: f.default for f in fields(self)}
            given = [f"--{o.replace('_', '-')}" for o in options if getattr(self, o) != default[o]]
            if given:
                raise ArgumentError(f"--sampler says all about the sampler; {', '.join(given)} cannot be given with it")
        elif self.data is not None:
            whitened = self.solver in SOLVERS and SOLVERS[self.solver].uses_covariance
            if not whitened and self.teleport is None and self.grid != "spectral" and self.solver in SOLVERS:
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
        from farfield.cli.common import data_of, note
        from farfield.distributions import Gaussian
        from farfield.errors import ArgumentError
        from farfield.sampling import Grid, Prior, Sampler, Teleport, ddpm, karras, log_snr, spectral, vp_time
        from farfield.sampling.solvers import make_solver

        low = self.sigma_min if self.sigma_min is not None else model.sigma_min
        high = self.sigma_max if self.sigma_max is not None else model.sigma_max
        if self.grid in ("vp_time", "ddpm") and (self.sigma_min is not None or self.sigma_max is not None):
            raise ArgumentError(
                f"--sigma-min and --sigma-max do not go with --grid {self.grid}, which has its own ends"
            )
        solver = make_solver(self.solver, **({} if self.order is None else {"order": self.order}))
        gaussian = None
        if solver.uses_covariance or self.teleport is not None or self.grid == "spectral":
            data = data_of(model, self.data)
            if data is not None:
                if data.event_shape != model.event_shape:
                    raise ArgumentError(
                        f"--data has samples of shape {data.event_shape}; the model's are {model.event_shape}"
                    )
                dim = data.images[0].numel()
                gaussian = Gaussian.fit(data.images, rank=None if dim <= 1024 else 256)
            elif self.teleport is not None or self.grid == "spectral":
                option = "--teleport" if self.teleport is not None else "--grid spectral"
                raise ArgumentError(f"{option} needs the data's covariance: name the data with --data")
            else:
                note("no --data: the whitened solver runs without a covariance, as the isotropic exponential rule")
        if self.grid == "spectral":
            assert gaussian is not None
            grid: Grid = spectral(self.steps, gaussian, low, high)
        elif self.grid in ("karras", "log_snr"):
            grid = karras(self.steps, low, high, self.rho) if self.grid == "karras" else log_snr(self.steps, low, high)
        else:
            grid = vp_time(self.steps) if self.grid == "vp_time" else ddpm(self.steps)
            # These schedules start where their process ends, which may be above what the model knows.
            grid = grid.starting_at(high) if grid[0] > high else grid
        start = Prior() if self.teleport is None or gaussian is None else Teleport(gaussian, self.teleport)
        return Sampler(solver, grid, start, covariance=gaussian if solver.uses_covariance else None)
