"""What a survey does to the sky: bands, pixels, seeing, depth.

A `Survey` says in which ranges these lie; an `Observation` is how one cutout was taken. For a
single survey the ranges are narrow; for `ground` they hold all that are taken from the ground.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Bands = tuple[float, ...]

# Share of each kind of non-lens, see `kinds.KINDS`. Chosen: what fools networks comes most often.
LOOK_ALIKES = (
    ("unlensed", 0.24),
    ("satellites", 0.20),
    ("spiral", 0.14),
    ("ring", 0.10),
    ("merger", 0.10),
    ("edge_on", 0.06),
    ("star", 0.04),
    ("red", 0.12),
)
# As a search of all galaxies meets them (chosen): ordinary ones first, then the look-alikes.
AS_SEARCHED = (
    ("ordinary", 0.26),
    ("red", 0.12),
    ("group", 0.07),
    ("star", 0.05),
    ("edge_on", 0.04),
    ("unlensed", 0.12),
    ("satellites", 0.10),
    ("spiral", 0.12),
    ("ring", 0.06),
    ("merger", 0.06),
)
# As they stand in a tile, beyond any selection but brightness (chosen).
AS_THEY_ARE = (
    ("ordinary", 0.70),
    ("red", 0.11),
    ("spiral", 0.07),
    ("edge_on", 0.05),
    ("star", 0.03),
    ("group", 0.01),
    ("satellites", 0.01),
    ("unlensed", 0.01),
    ("merger", 0.005),
    ("ring", 0.005),
)


@dataclass(frozen=True)
class Survey:
    """One imaging survey; a tuple holds one number per band, in the order of `bands`.

    A `*_range` is the largest change of the natural logarithm from cutout to cutout that bands
    share, a `*_scatter` the largest that each band has alone; both are uniform.

    wavelengths:    pivot wavelength, nm
    pixel_scale:    arcsec per pixel, in the middle of its range
    size:           pixels along a side of a cutout
    zero_points:    AB magnitude of one unit of flux; scatter in magnitudes
    seeing:         FWHM of the PSF, arcsec
    moffat_beta:    lowest and highest exponent of the PSF's wings
    sky_sigma:      standard deviation of the empty sky in a pixel, flux units
    noise_width:    sigma (pixels) of the Gaussian that correlates the noise of a coadd
    gains:          electrons per unit of flux over the whole exposure
    selection_band: band in which central galaxies are selected
    selection_limit: faintest magnitude of a central galaxy in that band
    einstein_radius: smallest of the lenses, arcsec
    einstein_radius_over_seeing: smallest of them in units of the sharpest seeing
    einstein_radius_weight: a lens's chance to be kept goes as this power of its Einstein radius
    arc_snr:        smallest S/N of their arcs, see `visibility`; the largest is ten times that
    strictness:     how plainly arcs must be seen, see `visibility.margin`; 0 for not at all
    shares:         share of each kind of non-lens
    artefact_fraction: share of all cutouts, lenses too, with an artefact
    noise:          False leaves noise out, to be added later by `render.add_noise`
    calibrated:     whether real cutouts have fluxes of these zero points; their unit follows from
                    their noise otherwise, see `draw.observation_of`
    """

    name: str
    bands: tuple[str, ...]
    wavelengths: Bands
    pixel_scale: float
    size: int
    zero_points: Bands
    seeing: Bands
    sky_sigma: Bands
    noise_width: Bands
    gains: Bands
    selection_band: str
    selection_limit: float
    einstein_radius: float
    einstein_radius_over_seeing: float = 1.2
    einstein_radius_weight: float = 2.0
    arc_snr: float = 30.0
    strictness: float = 1.0
    pixel_scale_range: float = 0.0
    seeing_range: float = 0.12
    seeing_scatter: float = 0.12
    moffat_beta: tuple[float, float] = (3.0, 3.0)
    sky_range: float = 0.25
    sky_scatter: float = 0.0
    noise_width_range: float = 0.0
    zero_point_scatter: float = 0.0
    shares: tuple[tuple[str, float], ...] = LOOK_ALIKES
    artefact_fraction: float = 0.0
    noise: bool = True
    calibrated: bool = False

    @property
    def selection_index(self) -> int:
        """Returns the index of the selection band."""
        return self.bands.index(self.selection_band)


class Observation(NamedTuple):
    """How cutouts were taken: one number for each (n,), or one per band (band, n)."""

    pixel_scale: Any
    fwhm: Any
    moffat_beta: Any
    zero_points: Any
    sky_sigma: Any
    noise_width: Any
    gains: Any
    magnitude_limit: Any


def observation_uniforms(survey: Survey) -> int:
    """Returns how many random numbers an observation is made of."""
    return 5 + 3 * len(survey.bands)


def observe(uniform: np.ndarray, survey: Survey) -> Observation:
    """Returns the observations that `uniform` (observation_uniforms, n), from 0 to 1, make."""
    signed = 2 * uniform - 1
    shared, own = signed[:4], signed[5:].reshape(3, len(survey.bands), -1)
    pixel_scale = survey.pixel_scale * np.exp(survey.pixel_scale_range * shared[0])
    seeing = survey.seeing_range * shared[1] + survey.seeing_scatter * own[0]
    depth = survey.sky_range * shared[2] + survey.sky_scatter * own[1]
    low, high = survey.moffat_beta
    # The same sky on larger pixels has more noise in each, and with it more electrons.
    area = (pixel_scale / survey.pixel_scale) ** 2

    def per_band(values: Bands) -> np.ndarray:
        return np.array(values)[:, None]

    return Observation(
        pixel_scale=pixel_scale,
        fwhm=per_band(survey.seeing) * np.exp(seeing),
        moffat_beta=1 / (1 / low + (1 / high - 1 / low) * uniform[4]),
        zero_points=per_band(survey.zero_points) + survey.zero_point_scatter * own[2],
        sky_sigma=per_band(survey.sky_sigma) * np.exp(depth) * np.sqrt(area),
        noise_width=per_band(survey.noise_width) * np.exp(survey.noise_width_range * shared[3]),
        gains=per_band(survey.gains) * np.exp(-2 * depth),
        # Half as many magnitudes deeper as the survey is (chosen).
        magnitude_limit=survey.selection_limit - 0.5 * 1.0857 * np.mean(depth, axis=0),
    )


def half_width(observation: Observation, survey: Survey) -> np.ndarray:
    """Returns half the side of each cutout (n,), arcsec."""
    return survey.size * observation.pixel_scale / 2


def point_source_sky_sigma(
    depth: Bands, signal_to_noise: float, zero_points: Bands, fwhm_pixels: Bands
) -> Bands:
    """Returns the sky sigma of a pixel that gives a point source of magnitude `depth` that S/N.

    A Gaussian PSF spreads a point source over 4 pi sigma^2 effective pixels.
    """
    flux = 10 ** (-0.4 * (np.array(depth) - np.array(zero_points)))
    effective_pixels = 4 * np.pi * (np.array(fwhm_pixels) / 2.3548) ** 2
    return tuple((flux / signal_to_noise / np.sqrt(effective_pixels)).tolist())


# Selection of lenses: Einstein radii from 1.2 times the sharpest seeing, not below half an arcsec,
# and arcs of S/N 30. Chosen; Jacobs et al. (2019), Canameras et al. (2020) and Rojas et al. (2022)
# cut likewise, each for their survey. Searches train on more large Einstein radii than nature has
# (Canameras et al. 2020 on as many as small ones): the weight, chosen.

# Seeing: Dark Energy Survey DR2 (Abbott et al. 2021). Sky sigma, its scatter, and the correlation
# of neighbouring pixels (0.25): measured on 28 cutouts of red galaxies from the survey, zero point
# 30; they lie close to the depth of DR1 (Abbott et al. 2018). Gain: five exposures of 90 s with
# one electron a second at magnitude 25.5.
DECAM = Survey(
    name="decam",
    bands=("g", "r", "i"),
    wavelengths=(478.0, 642.0, 784.0),
    pixel_scale=0.263,
    size=64,
    zero_points=(30.0, 30.0, 30.0),
    seeing=(1.11, 0.95, 0.88),
    sky_sigma=(2.8, 4.1, 6.9),
    noise_width=(0.49, 0.49, 0.49),
    gains=(6.0, 7.0, 7.0),
    selection_band="i",
    selection_limit=20.6,
    einstein_radius=1.05,
)

# Hyper Suprime-Cam Subaru Strategic Program, Wide layer, PDR3 (Aihara et al. 2022): seeing, and
# five-sigma depth for point sources, zero point 27. Scatter, correlation and gain (10 minutes in g
# and r, 20 in i, on 8.2 m) are chosen.
HSC = Survey(
    name="hsc",
    bands=("g", "r", "i"),
    wavelengths=(479.0, 620.0, 771.0),
    pixel_scale=0.168,
    size=96,
    zero_points=(27.0, 27.0, 27.0),
    seeing=(0.79, 0.75, 0.61),
    sky_sigma=point_source_sky_sigma(
        (26.5, 26.5, 26.2), 5, (27.0, 27.0, 27.0), (0.79 / 0.168, 0.75 / 0.168, 0.61 / 0.168)
    ),
    noise_width=(0.45, 0.45, 0.45),
    gains=(4000.0, 4000.0, 7000.0),
    selection_band="i",
    selection_limit=21.5,
    einstein_radius=0.73,
)

# Euclid Quick Release Q1, NISP resampled to the VIS grid. FWHM: 0.16 arcsec in VIS, 0.49 in NISP
# (Cuillandre et al. 2025). Zero points, sky sigma and the correlation of neighbouring pixels (0.2
# in VIS, 0.8 in NISP) are those of a Q1 cutout; scatter and gains are chosen.
EUCLID = Survey(
    name="euclid",
    bands=("VIS", "NIR_Y", "NIR_J", "NIR_H"),
    wavelengths=(715.0, 1085.0, 1375.0, 1773.0),
    pixel_scale=0.1,
    size=100,
    zero_points=(24.6, 29.8, 30.0, 29.9),
    seeing=(0.16, 0.49, 0.49, 0.50),
    seeing_range=0.03,
    seeing_scatter=0.03,
    sky_sigma=(0.0035, 0.60, 0.59, 0.60),
    noise_width=(0.45, 1.05, 1.05, 1.05),
    gains=(1900.0, 2.0, 2.0, 2.0),
    selection_band="VIS",
    selection_limit=21.5,
    einstein_radius=0.5,
)

# Any survey from the ground in g, r, i: DES, HSC, KiDS, CFHTLS, Legacy Surveys, Rubin. Pixels of
# 0.16 to 0.30 arcsec, seeing of 0.5 to 1.4, five-sigma depth for point sources in r of 23.6 to
# 26.8, half a magnitude more or less in each band, noise of single pixels or smoothed by
# resampling, colours off by a sixth of a magnitude. Gain: about that of DECAM at its depth.
GROUND = Survey(
    name="ground",
    bands=("g", "r", "i"),
    wavelengths=(478.0, 632.0, 776.0),
    pixel_scale=0.219,
    pixel_scale_range=0.314,
    size=64,
    zero_points=(30.0, 30.0, 30.0),
    zero_point_scatter=0.17,
    seeing=(0.86, 0.84, 0.82),
    seeing_range=0.37,
    seeing_scatter=0.12,
    moffat_beta=(2.3, 5.0),
    sky_sigma=point_source_sky_sigma(
        (25.5, 25.2, 24.7), 5, (30.0, 30.0, 30.0), (0.84 / 0.219, 0.84 / 0.219, 0.84 / 0.219)
    ),
    sky_range=1.3,
    sky_scatter=0.3,
    noise_width=(0.45, 0.45, 0.45),
    noise_width_range=0.6,
    gains=(15.0, 15.0, 15.0),
    selection_band="i",
    selection_limit=21.0,
    einstein_radius=0.6,
    arc_snr=15.0,
    shares=AS_SEARCHED,
    artefact_fraction=0.06,
)

SURVEYS = {survey.name: survey for survey in (DECAM, HSC, EUCLID, GROUND)}
