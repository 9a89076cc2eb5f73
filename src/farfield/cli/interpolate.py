"""``farfield interpolate``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import tyro

from farfield.cli.sample import Sample

if TYPE_CHECKING:
    from torch import Tensor

    from farfield.analysis.interpolation_diagnostics import LatentDiagnostics
    from farfield.data import DataSet
    from farfield.denoiser import Denoiser
    from farfield.sampling import Sampler

Mode = Literal["linear", "slerp", "in-distribution", "n-linear", "sine"]

#: Options that say what the sampler is, as `farfield sample` has them.
_SAMPLER_OPTIONS = (
    "solver",
    "steps",
    "grid",
    "sigma_min",
    "sigma_max",
    "rho",
    "order",
    "guidance",
    "guidance_interval",
)


@dataclass(frozen=True)
class Interpolate:
    """Frames between samples, or between images of the data, through the noise: frames.npz, frames.png, result.json.

    Every sample has its own noise, and noise between two noises is decoded to a picture between the two. How one goes
    between them matters: a plain mixture (linear) is shorter than noise and comes out blurred; n-linear, the mixture brought
    back to the length of noise, does not. --modes all shows them below each other. Images of the data are first encoded along
    the sampling equation (--from-data). Four ends make a sheet. A run that was interrupted goes on where it stopped.

    example:  farfield interpolate digits --samples 0 1 --modes all

    example:  farfield interpolate digits --from-data 3 12 --frames 11 --neighbours 2 --out runs/between

    example:  farfield interpolate digits --samples 0 1 2 3 --frames 8 --solver whitened --steps 10
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A bundled name, a folder of `farfield train`, or a .safetensors file."""
    samples: tuple[int, ...] = ()
    """Numbers of the samples of --seed at the ends: two, or the four corners of a sheet. 0 and 1 by default."""
    from_data: tuple[int, ...] = ()
    """Numbers of training images at the ends instead, two or four; they are encoded first."""
    seed: int = 0
    """Names the noise, as for `farfield sample`: sample i of a seed is the same picture there."""
    mode: Mode = "n-linear"
    """How to go between two noises: linear, slerp (along the great circle), in-distribution (α as the share of the second
    noise), n-linear, or sine (slerp's limit in high dimension)."""
    modes: tuple[Literal["all"] | Mode, ...] = ()
    """Several modes, a row each, or all of them."""
    frames: int = 9
    """Frames from end to end; a sheet has as many each way."""
    neighbours: int = 0
    """Show so many nearest training images of each frame, to see which the path comes by."""
    out: Path | None = None
    """Folder of the frames; runs/between-MODEL by default."""
    solver: str = Sample.solver
    """Step rule; `farfield sample --help` lists them, and says what auto is. Images are encoded with it if it can go up
    (euler, heun, whitened), or else with whitened."""
    steps: int = Sample.steps
    """Noise levels, hence steps down to zero noise, and up."""
    grid: Literal["auto", "karras", "log_snr", "spectral", "vp_time", "ddpm"] = Sample.grid
    """How the levels are spaced; spectral follows the data's spectrum. auto is what `farfield sample` does."""
    sigma_min: float | None = None
    """Lowest level; the model's own by default."""
    sigma_max: float | None = None
    """Highest level; the model's own by default."""
    rho: float = Sample.rho
    """Exponent of the karras grid."""
    order: int | None = None
    """Order of the whitened solver, 1 to 3."""
    guidance: float | None = None
    """Scale of classifier-free guidance towards --label; 1 is none."""
    guidance_interval: tuple[float, float] | None = None
    """Guide between these two levels only."""
    sampler: Path | None = None
    """A sampler.json, in place of the options above."""
    lift: Literal["clean", "noised"] = "clean"
    """What stands for an image at the lowest level when it is encoded: clean takes the image, noised adds that level's noise,
    without which directions in which the data never vary get no noise at all."""
    data: str | None = None
    """The training data: a name or a path; by default what the model's card names."""
    label: int | None = None
    """Class to decode with, for models with classes."""
    batch_size: int = 64
    """Frames evaluated at once; it does not change them."""
    overwrite: bool = False
    """Replace frames of another run in the folder."""
    device: str = "auto"
    """Where to compute: auto (the first GPU, or else the CPU), cpu, cuda, cuda:1."""
    quiet: bool = False
    """Show no progress."""
    json: bool = False
    """Print the result as JSON."""

    def run(self) -> int:
        """Interpolate, decode, write, and print where it is."""
        from farfield.cli.common import note, print_json, print_table
        from farfield.cli.drawing import weights_digest
        from farfield.cli.frames import FORMAT, claim, decode_into, table
        from farfield.interop import load
        from farfield.networks.files import read_json
        from farfield.numerics.devices import choose_device
        from farfield.sampling.encoding import decode_noise
        from farfield.version import __version__

        ends, modes = self._ends(), self._modes()
        model = load(self.model).to(choose_device(self.device))
        sampler = self._sampler(model)
        data = self._data(model)
        out = self.out if self.out is not None else Path("runs") / f"between-{Path(self.model).name}"
        record: dict[str, Any] = {
            "format": FORMAT,
            "farfield": __version__,
            "model": self.model,
            "weights": weights_digest(model),
            **_description(sampler),
            "from": "data" if self.from_data else "samples",
            "ends": list(ends),
            "data": None if data is None else data.digest,
            "seed": self.seed,
            "modes": list(modes),
            "frames": self.frames,
            "neighbours": self.neighbours,
            "lift": self.lift if self.from_data else None,
            "label": self.label,
        }
        if self.batch_size < 1:
            _refuse(f"--batch-size {self.batch_size}; expected at least 1")
        condition = self._condition(model)
        if not claim(out, record, self.overwrite):
            units, encoding = self._units(model, sampler, data, ends, condition)
            latents = self._between(units, modes)
            flat = latents.flatten(0, latents.ndim - len(model.event_shape) - 1)

            def decode(z: Tensor, rows: slice) -> Tensor:
                return decode_noise(model, z, sampler, first=rows.start, **_spread(condition, len(z))).x

            found = decode_into(out, flat, decode, self.batch_size, progress=not self.quiet)
            self._finish(out, model, latents, found.view(latents.shape), modes, data, encoding)
        result = read_json(out / "result.json")
        if self.json:
            print_json({**record, **result})
            return 0
        for one in result["diagnostics"]:
            for warning in one["warnings"]:
                note(f"{one['mode']}: {warning}")
        print_table(table(result))
        shape = f"{self.frames} × {self.frames}" if len(ends) == 4 else str(self.frames)
        cost = "" if record["nfe"] is None else f", {record['nfe']} evaluations each"
        print(f"{out / 'frames.npz'}: {shape} frames, {len(modes)} mode{'s' * (len(modes) > 1)}{cost}")
        return 0

    # -- what was asked for -------------------------------------------------------------------------------------------

    def _ends(self) -> tuple[int, ...]:
        if self.samples and self.from_data:
            _refuse("--samples and --from-data are two kinds of ends; give one of them")
        name, ends = ("--from-data", self.from_data) if self.from_data else ("--samples", self.samples or (0, 1))
        if len(ends) not in (2, 4) or min(ends) < 0:
            _refuse(f"{name} {' '.join(map(str, ends))}; expected two numbers, or four for a sheet, from 0")
        if self.frames < 2:
            _refuse(f"--frames {self.frames}; expected at least 2")
        if self.neighbours < 0:
            _refuse(f"--neighbours {self.neighbours}; expected 0 or more")
        if self.lift != "clean" and not self.from_data:
            _refuse(f"--lift {self.lift} would have no effect without --from-data")
        return ends

    def _modes(self) -> tuple[Mode, ...]:
        from farfield.sampling.interpolation import MODES

        if not self.modes:
            return (self.mode,)
        if self.mode != "n-linear":
            _refuse(f"--mode {self.mode} and --modes say the same; give one of them")
        return MODES if "all" in self.modes else tuple(dict.fromkeys(m for m in self.modes if m != "all"))

    def _sampler(self, model: Denoiser) -> Sampler:
        """The sampler, by the rules of `farfield sample`."""
        if self.steps < 1:
            _refuse(f"--steps {self.steps}; expected at least 1")
        options: dict[str, Any] = {name: getattr(self, name) for name in _SAMPLER_OPTIONS}
        if self.sampler is not None:
            default = {f.name: f.default for f in fields(self)}
            given = [f"--{o.replace('_', '-')}" for o in _SAMPLER_OPTIONS if options[o] != default[o]]
            if given:
                _refuse(f"--sampler says all about the sampler; {', '.join(given)} cannot be given with it")
        if self.guidance_interval is not None and self.guidance is None:
            _refuse("--guidance-interval would have no effect without --guidance")
        command = Sample(self.model, data=self.data, label=self.label, sampler=self.sampler, **options)
        sampler = command._from_file() if self.sampler is not None else command._from_options(model)
        if sampler.noise is not None:
            _refuse(f"--sampler {self.sampler} adds noise on the way, each frame its own; choose one without noise")
        return sampler

    def _data(self, model: Denoiser) -> DataSet | None:
        from farfield.cli.common import data_of

        if not (self.from_data or self.neighbours):
            return None
        data = data_of(model, self.data)
        option = "--from-data" if self.from_data else "--neighbours"
        if data is None:
            _refuse(f"{option} needs the training data: name them with --data")
        if data.event_shape != model.event_shape:
            _refuse(f"--data has samples of shape {data.event_shape}; the model's are {model.event_shape}")
        if self.from_data and max(self.from_data) >= len(data.images):
            _refuse(f"--from-data {max(self.from_data)}; the data have images 0 to {len(data.images) - 1}")
        if self.neighbours > len(data.images):
            _refuse(f"--neighbours {self.neighbours}; the data have {len(data.images)} images")
        return data

    def _condition(self, model: Denoiser) -> dict[str, Any]:
        import torch

        if self.label is None:
            return {}
        classes = int(getattr(model, "label_dim", 0))
        if not 0 <= self.label < classes:
            _refuse(f"--label {self.label}; the model has {classes} classes")
        return {"labels": torch.tensor(self.label)}

    # -- the noise ----------------------------------------------------------------------------------------------------

    def _units(
        self, model: Denoiser, sampler: Sampler, data: DataSet | None, ends: tuple[int, ...], condition: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Any] | None]:
        """The noise at the ends in units of its own spread (M, *event), and what the encoding of images cost and lost."""
        import torch

        from farfield.cli.common import note
        from farfield.distributions import Gaussian
        from farfield.numerics import streams
        from farfield.sampling import Prior, Teleport
        from farfield.sampling.encoding import CLIMBERS, decode, encode, rms
        from farfield.sampling.solvers.base import on_device

        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        if not self.from_data:
            ids = torch.tensor(ends, device=device)
            return streams.normal(self.seed, ids, model.event_shape, purpose="start", dtype=torch.float32), None
        assert data is not None
        if not isinstance(sampler.start, Prior | Teleport):
            _refuse(
                f"--from-data cannot undo the start {sampler.start.name!r} of the sampler; use one without, or a teleport"
            )
        images = data.images[list(ends)].to(device, torch.float32)
        solver = law = None
        if sampler.rule.name not in CLIMBERS:
            solver, law = "whitened", Gaussian.fit(data.images, rank=None if model.dim <= 1024 else 256)
            note(f"{sampler.rule.name} cannot go up: the images are encoded with whitened on the same levels")
        own = _spread(condition, len(images))
        found = encode(model, images, sampler, solver=solver, covariance=law, lift=self.lift, seed=self.seed, **own)
        back = decode(model, found.z, sampler, **own).x
        top, z = sampler.grid.levels[0], found.z
        if isinstance(sampler.start, Teleport):
            z = on_device(sampler.start.gaussian, device).flow(z, found.sigma, top)
        said = {
            "nfe": found.nfe,
            "estimated_error": None if found.error is None else (found.error / found.sigma).tolist(),
            "round_trip_error": rms(back - images).tolist(),
        }
        return z / top, said

    def _between(self, units: Tensor, modes: tuple[Mode, ...]) -> Tensor:
        """The noise of all frames: (modes, F, *event), or (modes, F, F, *event) for a sheet."""
        import torch

        from farfield.sampling.interpolation import corner_grid, interpolate

        alphas = torch.linspace(0, 1, self.frames, dtype=torch.float64)
        if len(units) == 4:
            return torch.stack([corner_grid(units, self.frames, self.frames, mode) for mode in modes])
        return torch.stack([interpolate(units[:1], units[1:], alphas, mode)[:, 0] for mode in modes])

    # -- the result ---------------------------------------------------------------------------------------------------

    def _finish(
        self,
        out: Path,
        model: Denoiser,
        latents: Tensor,
        found: Tensor,
        modes: tuple[Mode, ...],
        data: DataSet | None,
        encoding: dict[str, Any] | None,
    ) -> None:
        import torch

        from farfield.analysis.images import grid_png, is_image
        from farfield.analysis.interpolation_diagnostics import latent_diagnostics
        from farfield.analysis.interpolation_plot import draw_interpolation
        from farfield.cli.frames import finish, stacked
        from farfield.metrics.memorisation import nearest_distances

        event, sheet = model.event_shape, latents.ndim - len(model.event_shape) == 3
        found = found.clamp(-1, 1) if len(event) == 3 else found
        alphas = torch.linspace(0, 1, self.frames, dtype=torch.float64).tolist()
        norms: dict[str, LatentDiagnostics] = {
            mode: latent_diagnostics(z.flatten(0, 1), 1.0, mode=mode)
            if sheet
            else latent_diagnostics(z.unsqueeze(1), 1.0, alphas=alphas, mode=mode)
            for mode, z in zip(modes, latents, strict=True)
        }
        arrays = {"images": found, "latents": latents.float(), "alphas": torch.tensor(alphas)}
        result: dict[str, Any] = {"encoding": encoding, "diagnostics": [n.to_dict() for n in norms.values()]}
        rows: dict[str, Tensor] = {}
        if self.neighbours:
            assert data is not None
            flat = found.flatten(0, latents.ndim - len(event) - 1)
            distances, numbers = nearest_distances(flat, data.images, self.neighbours)
            arrays["neighbours"] = numbers.view(*found.shape[: -len(event)], self.neighbours)
            result["nearest_distance"] = distances[:, 0].view(found.shape[: -len(event)]).tolist()
            whose = "n-linear" if "n-linear" in modes else modes[0]
            shown = numbers.view(len(modes), -1, self.neighbours)[modes.index(whose)]
            of = f" ({whose})" if len(modes) > 1 else ""
            rows = {f"nearest {k + 1}{of}": data.images[shown[:, k]] for k in range(self.neighbours)}
        if sheet and not is_image(event):
            finish(out, arrays, None, result)
            return
        if sheet:
            pictures = [grid_png(x.flatten(0, 1), self.frames, 48)[0] for x in found]
            finish(out, arrays, lambda path: path.write_bytes(stacked(pictures)), result)
            return
        figure = draw_interpolation(
            dict(zip(modes, found, strict=True)), norms, rows, None if data is None else data.images, self._title()
        )
        finish(out, arrays, lambda path: figure.savefig(path, format="png", dpi=150), result)

    def _title(self) -> str:
        first, last = self._ends()
        kind = "training images" if self.from_data else f"samples of seed {self.seed}:"
        return f"between {kind} {first} and {last}"


def _refuse(text: str) -> NoReturn:
    from farfield.errors import ArgumentError

    raise ArgumentError(text)


def _description(sampler: Sampler) -> dict[str, Any]:
    """What decides the frames about a sampler: its plan and, for its laws, a digest."""
    import hashlib
    import json

    plan = sampler.to_json(indent=None)
    return {
        "sampler": {k: v for k, v in json.loads(plan).items() if k != "gaussians"},
        "sampler_digest": hashlib.sha256(plan.encode()).hexdigest(),
        "nfe": None if sampler.rule.adaptive else sampler.nfe,  # what it needs is known only afterwards
    }


def _spread(condition: dict[str, Any], rows: int) -> dict[str, Any]:
    """The condition for so many rows."""
    return {k: v.expand(rows) for k, v in condition.items()}
