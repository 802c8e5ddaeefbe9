"""What a survey does to the sky: bands, pixels, seeing, depth."""

from dataclasses import dataclass

import numpy as np

Bands = tuple[float, ...]


@dataclass(frozen=True)
class Survey:
    """One imaging survey; a tuple holds one number a band, in the order of `bands`.

    wavelengths:     pivot wavelength, nm
    pixel_scale:     arcsec per pixel
    size:            pixels along a side of a cutout
    zero_points:     AB magnitude of one unit of flux
    seeing:          median FWHM of the PSF, arcsec
    seeing_scatter:  scatter of ln(FWHM) from cutout to cutout
    sky_sigma:       standard deviation of the empty sky in a pixel, flux units
    sky_scatter:     scatter of ln(sky_sigma) from cutout to cutout
    noise_width:     sigma (pixels) of the Gaussian that correlates the noise of a coadd
    gains:           electrons per unit of flux over the whole exposure
    selection_band:  band in which central galaxies are selected
    selection_limit: faintest magnitude of a central galaxy in that band
    smallest_einstein_radius: of the lenses that are kept, arcsec
    smallest_arc_signal_to_noise: of their arcs, summed over pixels in the best band
    """

    name: str
    bands: tuple[str, ...]
    wavelengths: Bands
    pixel_scale: float
    size: int
    zero_points: Bands
    seeing: Bands
    seeing_scatter: float
    sky_sigma: Bands
    sky_scatter: float
    noise_width: Bands
    gains: Bands
    selection_band: str
    selection_limit: float
    smallest_einstein_radius: float
    smallest_arc_signal_to_noise: float

    @property
    def half_width(self) -> float:
        """Half the side of a cutout, arcsec."""
        return self.size * self.pixel_scale / 2

    @property
    def selection_index(self) -> int:
        """Index of the selection band."""
        return self.bands.index(self.selection_band)


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
# cut likewise, each for their survey.

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
    seeing_scatter=0.08,
    sky_sigma=(2.8, 4.1, 6.9),
    sky_scatter=0.15,
    noise_width=(0.49, 0.49, 0.49),
    gains=(6.0, 7.0, 7.0),
    selection_band="i",
    selection_limit=20.6,
    smallest_einstein_radius=1.05,
    smallest_arc_signal_to_noise=30.0,
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
    seeing_scatter=0.10,
    sky_sigma=point_source_sky_sigma(
        (26.5, 26.5, 26.2), 5, (27.0, 27.0, 27.0), (0.79 / 0.168, 0.75 / 0.168, 0.61 / 0.168)
    ),
    sky_scatter=0.15,
    noise_width=(0.45, 0.45, 0.45),
    gains=(4000.0, 4000.0, 7000.0),
    selection_band="i",
    selection_limit=21.5,
    smallest_einstein_radius=0.73,
    smallest_arc_signal_to_noise=30.0,
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
    seeing_scatter=0.02,
    sky_sigma=(0.0035, 0.60, 0.59, 0.60),
    sky_scatter=0.10,
    noise_width=(0.45, 1.05, 1.05, 1.05),
    gains=(1900.0, 2.0, 2.0, 2.0),
    selection_band="VIS",
    selection_limit=21.5,
    smallest_einstein_radius=0.5,
    smallest_arc_signal_to_noise=30.0,
)

SURVEYS = {survey.name: survey for survey in (DECAM, HSC, EUCLID)}
