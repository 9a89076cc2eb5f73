"""Published unexplained fractions of trained networks, to stand beside one's own.

Values of the public companion code of Wang & Vastola, "The Unreasonable Effectiveness of Gaussian Score Approximation for
Diffusion Models and its Applications", TMLR 2024: not printed in the article, whose own statements are in its section 4.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Section 4.2, figure 6: above this σ the Gaussian explains more than 99 % of the score of networks for CIFAR-10, FFHQ and
#: AFHQ, and a Gaussian for each of the ten classes of CIFAR-10 explains at most 0.25 % more, never less.
EXPLAINED_ABOVE = 1.08
CLASS_GAIN = 2.5e-3
#: Section 4.4, figures 9 and 10, CIFAR-10: beyond about so many components the fit gets worse at small σ; the rank that is as
#: good as full at σ = 10; gains from more components are found above this σ.
COMPONENTS_HURT_BEYOND = 100
RANK_AT_10 = 100
USEFUL_ABOVE = 0.05


@dataclass(frozen=True)
class PublishedFidelity:
    """Unexplained fractions along noise levels.

    Attributes:
        network: whose score.
        protocol: how queries were made and ratios averaged.
        sigmas: noise levels, ascending.
        score, denoiser: by law, as :func:`~farfield.analysis.reference_laws.reference_laws` names them where it has them.
            ``denoiser`` has its own levels.
        denoiser_sigmas: the levels of ``denoiser``.
    """

    network: str
    protocol: str
    sigmas: tuple[float, ...]
    score: dict[str, tuple[float, ...]]
    denoiser_sigmas: tuple[float, ...]
    denoiser: dict[str, tuple[float, ...]]

    def at(self, law: str, sigma: float) -> float | None:
        """The fraction of the score that a law leaves at one of the levels; None where it was not published."""
        return self.score[law][self.sigmas.index(sigma)] if law in self.score and sigma in self.sigmas else None

    def denoiser_at(self, law: str, sigma: float) -> float | None:
        """The same of the denoiser."""
        known = law in self.denoiser and sigma in self.denoiser_sigmas
        return self.denoiser[law][self.denoiser_sigmas.index(sigma)] if known else None


#: The pretrained edm-cifar10-32x32-uncond-vp of Karras et al. (2022), images in [−1, 1].
CIFAR10 = PublishedFidelity(
    network="edm-cifar10-32x32-uncond-vp",
    protocol="2,048 noised training images, mean of the ratios of single queries, full rank unless the law's name says so",
    sigmas=(0.01, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 80.0),
    score={
        "isotropic": (5.3e3, 132, 29.9, 6.66, 0.975, 0.226, 0.0517, 5.68e-3, 8.38e-4, 1.03e-4, 7.75e-7),
        "gaussian": (0.617, 0.265, 0.182, 0.108, 0.0412, 0.0157, 4.29e-3, 3.52e-4, 3.05e-5, 2.62e-6, 1.19e-7),
        "mixture:10": (0.518, 0.249, 0.172, 0.103, 0.0396, 0.0149, 3.96e-3, 2.76e-4, 1.73e-5, 1.73e-6, 1.20e-7),
        "mixture:100": (0.769, 0.264, 0.164, 0.0975, 0.0396, 0.0153, 3.97e-3, 1.97e-4, 9.75e-6, 1.28e-6, 1.32e-7),
        "mixture:200": (0.987, 0.298, 0.174, 0.0993, 0.0409, 0.0164, 4.47e-3, 2.11e-4, 9.13e-6, 1.22e-6, 1.33e-7),
        "empirical": (1.24, 0.370, 0.214, 0.121, 0.0538, 0.0278, 0.0140, 2.09e-3, 2.43e-5, 1.25e-6, 1.19e-7),
        "gaussian, rank 128": (479, 10.7, 2.34, 0.503, 0.0703, 0.0184, 4.49e-3, 3.58e-4, 3.10e-5, 2.68e-6, 1.34e-7),
        "mixture:10, rank 1024": (14.3, 0.422, 0.191, 0.104, 0.0396, 0.0149, 3.96e-3, 2.76e-4, 1.73e-5, 1.73e-6, 1.20e-7),
        "mixture:200, rank 384": (4.66, 0.376, 0.186, 0.101, 0.0410, 0.0164, 4.47e-3, 2.11e-4, 9.13e-6, 1.22e-6, 1.33e-7),
    },
    denoiser_sigmas=(0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0),
    denoiser={
        "isotropic": (0.968, 0.965, 0.958, 0.953, 0.958, 0.934, 0.892, 0.848, 0.671, 0.511),
        "gaussian": (2.5e-3, 7.3e-3, 0.0484, 0.0767, 0.0873, 0.0585, 0.0346, 0.0241, 0.0335, 0.111),
        "mixture:10": (2.4e-3, 6.9e-3, 0.0467, 0.0734, 0.0812, 0.0478, 0.0213, 0.0178, 0.0305, 0.0963),
        "mixture:200": (2.8e-3, 7.2e-3, 0.0513, 0.0853, 0.0961, 0.0352, 0.0120, 0.0150, 0.0325, 0.110),
        "empirical": (3.5e-3, 8.9e-3, 0.0711, 0.162, 0.397, 0.465, 0.0306, 0.0153, 0.0329, 0.111),
    },
)  # fmt: skip

#: A small network for MNIST padded to 32×32, 1,024 coordinates.
MNIST = PublishedFidelity(
    network="mini-EDM SongUNet, MNIST",
    protocol=CIFAR10.protocol,
    sigmas=(0.01, 0.1, 1.0, 2.0, 10.0),
    score={
        "gaussian": (0.68, 0.256, 0.0387, 0.0137, 3.9e-5),
        "mixture:100": (0.251, 0.137, 0.0172, 4.07e-3, 9.1e-6),
        "mixture:200": (0.205, 0.117, 0.0155, 3.58e-3, 9.0e-6),
        "mixture:500": (0.236, 0.0911, 0.0135, 3.38e-3, 8.8e-6),
        "mixture:1000": (0.408, 0.0807, 0.0130, 3.63e-3, 8.8e-6),
        "empirical": (0.203, 0.074, 0.0173, 9.25e-3, 8.8e-6),
    },
    denoiser_sigmas=(),
    denoiser={},
)
