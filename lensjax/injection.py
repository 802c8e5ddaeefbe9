"""Injecting simulated lensed arcs into a survey's own cutouts, with the truth about each."""

import dataclasses
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lensjax import runtime
from lensjax.cutouts import Cutouts
from lensjax.data.levels import are_levels
from lensjax.data.planes import Cutout, Unreadable
from lensjax.data.source import Source
from lensjax.data.zero_points import parse_zero_points
from lensjax.errors import UsageError
from lensjax.sky.draw import simulate, sky_of
from lensjax.sky.stamps import Stamps
from lensjax.sky.survey import Survey

Array = NDArray[np.floating]

APERTURE = 2.0
"""Radius (arcsec) within which the light of the central galaxy is summed. Chosen."""
LEAST_SNR = 5.0
"""S/N within the aperture from which a cutout has a galaxy in its middle. Chosen."""
# By which factor the noise of the sky may be off that of the deepest and the shallowest cutout of a
# survey. Zero points in use are 22.5, 25 and more: a wrong one is a factor of ten.
MOST_OFF = 4.0


@dataclass(frozen=True)
class Hosts:
    """Real cutouts with a galaxy in the middle, around which arcs can be laid.

    images: (n, size, size, band), as the files hold them, NaN where masked; pixel_scale: arcsec;
    id: (n,) from the user's catalogue; magnitude: (n,) AB within APERTURE, in the survey's
    selection band; left_out: how many cutouts are no hosts, by the reason.
    """

    images: Array
    pixel_scale: float
    id: NDArray
    magnitude: Array
    left_out: dict[str, int]


def calibrated_survey(survey: Survey, zero_point: str | None) -> Survey:
    """Returns the survey with fluxes of these AB zero points: one number, or one a band with commas
    between (None: the survey's own). Raises UsageError where it is neither."""
    stated = survey.zero_points
    if zero_point is not None:
        stated = parse_zero_points(zero_point, survey.bands)
    larger = 10 ** (0.4 * (np.array(stated) - np.array(survey.zero_points)))  # the numbers
    return dataclasses.replace(
        survey,
        zero_points=stated,
        zero_point_scatter=0.0,
        sky_sigma=tuple((np.array(survey.sky_sigma) * larger).tolist()),
        gains=tuple((np.array(survey.gains) / larger).tolist()),
        calibrated=True,
    )


def find_hosts(source: Source, survey: Survey, most: int, seed: int) -> Hosts:
    """Returns the hosts among at most so many cutouts, drawn at random, in the survey's bands.

    All are of the size and pixel scale that most have. Raises UsageError where none is a host, the
    pixel scale is not known, or the noise cannot be that of the survey at its zero points.
    """
    rows = np.sort(np.random.default_rng(seed).permutation(len(source))[:most])
    cutouts, left_out = _read(source, rows)
    # Scales of FITS headers differ in their last digits.
    forms = {
        row: (*cutout.image.shape[:2], round(cutout.pixel_scale or 0.0, 4))
        for row, cutout in cutouts.items()
    }
    form = height, width, scale = Counter(forms.values()).most_common(1)[0][0]
    if height != width or not scale:
        raise UsageError(
            f"{source.description}: arcs are laid upon square cutouts of known pixel scale; cut "
            "them square, and give --pixel-scale"
        )
    alike = np.array([row for row in cutouts if forms[row] == form])
    images = np.stack([cutouts[row].image for row in alike.tolist()])
    left_out["of another size or pixel scale"] = len(cutouts) - len(alike)
    del cutouts
    flux, snr = central_flux(images, scale, survey.selection_index)
    # As that of a band without data.
    silent = ~(sky_of(images)[1] > 1e-11).all(axis=1)
    seen = (snr >= LEAST_SNR) & ~silent
    left_out["whose sky has no noise"] = int(silent.sum())
    left_out["without a galaxy seen in the middle"] = int((~seen & ~silent).sum())
    if not seen.any():
        raise _no_host(source, left_out)
    _check_units(images[seen], survey, scale)
    return Hosts(
        images=images[seen],
        pixel_scale=scale,
        id=np.asarray(source.table["id"])[alike[seen]],
        magnitude=survey.zero_points[survey.selection_index] - 2.5 * np.log10(flux[seen]),
        left_out={reason: count for reason, count in left_out.items() if count},
    )


def _read(source: Source, rows: NDArray[np.int64]) -> tuple[dict[int, Cutout], Counter[str]]:
    """Returns the cutouts of some rows that are no known lenses, and how many there are not, by the
    reason. Raises UsageError where there is none."""
    left_out: Counter[str] = Counter()
    is_lens = np.zeros(len(source), bool)
    if "label" in source.table.colnames:
        is_lens = np.asarray(source.table["label"]) == 1
    left_out["labelled as lenses"] = int(is_lens[rows].sum())
    cutouts = {}
    with runtime.progress("reading", len(rows), "cutouts") as advance:
        for row in rows[~is_lens[rows]].tolist():
            advance(1)
            try:
                cutouts[row] = source[row]
            except Unreadable:
                left_out["not readable"] += 1
    if not cutouts:
        raise _no_host(source, left_out)
    return cutouts, left_out


def _no_host(source: Source, left_out: Counter[str]) -> UsageError:
    """Returns the error about cutouts none of which is a host."""
    counts = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
    return UsageError(f"{source.description}: no cutout to lay arcs upon ({counts})")


def central_flux(images: Array, pixel_scale: float, band: int) -> tuple[Array, Array]:
    """Returns the flux (n,) within APERTURE of the middle of images (n, size, size, band), above
    the median of the cutout, and its S/N against the noise of the sky; NaN where pixels are masked.
    """
    offset = pixel_scale * (np.arange(images.shape[1]) - (images.shape[1] - 1) / 2)
    inside = np.hypot(offset[:, None], offset) < APERTURE
    level, sigma = (values[:, band] for values in sky_of(images))
    flux = (images[:, inside, band] - level[:, None]).sum(axis=1, dtype=np.float64)
    return flux, flux / (sigma * np.sqrt(inside.sum()))


def survey_of_hosts(survey: Survey, hosts: Hosts) -> Survey:
    """Returns a calibrated survey on the pixels of the hosts."""
    return dataclasses.replace(
        survey,
        size=hosts.images.shape[1],
        pixel_scale=hosts.pixel_scale,
        pixel_scale_range=0.0,
        # The cutouts come from one survey, the middle of whose seeing is stated.
        seeing_range=min(survey.seeing_range, 0.12),
    )


def with_all_lenses(survey: Survey) -> Survey:
    """Returns the survey with the lenses, too, that no search would find: arcs however hidden,
    Einstein radii down to half the seeing, and small ones not as rare as in training."""
    return dataclasses.replace(
        survey, strictness=0.0, einstein_radius_over_seeing=0.5, einstein_radius_weight=0.0
    )


def inject(
    hosts: Hosts, survey: Survey, count: int, seed: int, sources: Stamps | None = None
) -> Cutouts:
    """Returns hosts with arcs around their central galaxy, each host as often as any other.

    Which lenses there are is the survey's to say (see `with_all_lenses`).
    The arcs are those of `lensjax.sky`, seen through the survey's PSF, with the noise of their own
    photons, in the flux units of the hosts. Columns: id, host, theta_e (arcsec), arc_snr (see
    `visibility`), lens_mag (the host's), source_mag and arc_mag (AB, before and after lensing, in
    the selection band), magnification. The same seed gives the same injections. Of `count` those
    are missing whose arcs lie beyond the edge of the cutout (magnification below one).
    """
    survey = survey_of_hosts(survey, hosts)
    with runtime.progress("injecting", count, "cutouts") as advance:
        sky = simulate(
            survey,
            count=count,
            lens_fraction=1.0,
            seed=seed,
            backgrounds=hosts.images,
            sources=sources,
            progress=advance,
        )
    truth, inside = sky.truth, sky.truth["magnification"] >= 1
    host = truth["group"]
    with np.errstate(divide="ignore"):
        arc_mag = truth["source_magnitude"] - 2.5 * np.log10(truth["magnification"])
    columns = {
        "id": np.array([f"{survey.name}-{seed}-{number:07d}" for number in range(count)]),
        "host": hosts.id[host],
        "theta_e": truth["einstein_radius"],
        "arc_snr": truth["arc_snr"],
        "lens_mag": hosts.magnitude[host],
        "source_mag": truth["source_magnitude"],
        "arc_mag": arc_mag,
        "magnification": truth["magnification"],
    }
    images = sky.images if inside.all() else sky.images[inside]
    columns = {name: values[inside] for name, values in columns.items()}
    return Cutouts(images, survey.bands, hosts.pixel_scale, columns)


def _check_units(images: Array, survey: Survey, pixel_scale: float) -> None:
    """Raises UsageError where the noise of cutouts is not that of the survey, by far, or they are
    pictures of 8 bits."""
    if are_levels(images):
        raise UsageError("--data holds pictures of 8 bits, not fluxes: give FITS files or a stack")
    expected = np.array(survey.sky_sigma) * pixel_scale / survey.pixel_scale
    off = float(np.median(np.exp(np.log(sky_of(images)[1] / expected).mean(axis=1))))
    if abs(np.log(off)) > survey.sky_range + np.log(MOST_OFF):
        shown = ",".join(f"{value:g}" for value in survey.zero_points)
        raise UsageError(
            f"the sky of the cutouts is {off:.2g} times as noisy as that of {survey.name} at the "
            f"zero point {shown}: give that of their fluxes with --zero-point, or another --survey"
        )
