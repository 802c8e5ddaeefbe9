"""Scores lenses that another simulator, lenstronomy, draws, and says how many are found.

    pip install '.[peers]'
    python -m benchmarks.other_simulator

Half of the cutouts are lenses: a power-law mass with shear (Tessore & Metcalf 2015, A&A 580, A79)
in an early-type galaxy, and a blue Sersic source behind it. A quarter are galaxies of the same kind
alone, and a quarter have the same kind of source beside them, not lensed. All are as the Rubin
Observatory takes them in g, r and i in two years: 0.2 arcsec a pixel, a Gaussian seeing of 0.71 to
0.77 arcsec. An arc's S/N is that of all its pixels in the three bands together, above the noise
of the sky and of the galaxy.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table
from lenstronomy.SimulationAPI.ObservationConfig.LSST import LSST
from lenstronomy.SimulationAPI.sim_api import SimAPI

from benchmarks.real_lenses import auroc, compared, table
from lensjax import config, launch, load_ensemble, metrics, runtime
from lensjax.cutouts import Cutouts

BANDS, YEARS = "gri", 2
SIZE, ARCSEC = 72, 0.2
LENS, ALONE, BESIDE = "lens", "alone", "beside"
SNR = 12.0, 120.0
"""Of the arcs, uniform in its logarithm; a source beside a galaxy has the same."""
BRIGHT, WIDE = 30, 1.0
"""S/N and Einstein radius, in arcsec, from which on lenses have lines of their own."""


@dataclass(frozen=True)
class OtherSimulator:
    """Options of this benchmark."""

    checkpoints: Path = Path("checkpoints")
    """Folder of the members."""
    ensemble: str | None = None
    """Which of them, as --ensemble of infer.py names them."""
    count: int = 2000
    """Cutouts, half of them lenses."""
    seed: int = 0


def main(argv: Sequence[str]) -> None:
    """Prints the table: a line a figure, a column a score."""
    options = config.parse(OtherSimulator, argv, description=__doc__.split("\n", 1)[0])
    finder = load_ensemble(options.checkpoints, options.ensemble, mc_samples=1)
    scored = finder.score(drawn(options.count, options.seed)).candidates
    print(table(figures(scored)))


def figures(scored: Table) -> dict[str, dict[str, str]]:
    """Returns the figures of scored cutouts, with their 95 % intervals, by score."""
    lenses, others = scored[scored["label"] == 1], scored[scored["label"] == 0]
    bright = lenses[lenses["arc_snr"] >= BRIGHT]
    wide = bright[bright["einstein_radius"] >= WIDE]
    kinds = {
        "all lenses": lenses,
        f"S/N of {BRIGHT} and more": bright,
        f"S/N of {BRIGHT} and more, Einstein radius of {WIDE:.0f} arcsec and more": wide,
    }
    found = {
        f"{kind}, against {against}, AUROC": compared(auroc, of_kind, rows)
        for against, rows in (
            ("all others", others),
            ("galaxies alone", others[others["kind"] == ALONE]),
        )
        for kind, of_kind in kinds.items()
    }
    return found | {"calibration error": compared(calibration_error, lenses, others)}


def calibration_error(lenses: Table, others: Table, name: str) -> float:
    """Returns the expected calibration error."""
    labels = np.repeat([1, 0], [len(lenses), len(others)])
    scores = np.concatenate([lenses[name], others[name]])
    return metrics.values(scores, labels)["expected_calibration_error"]


def drawn(count: int, seed: int) -> Cutouts:
    """Returns so many cutouts, in electrons a second, with columns: the `kind`, the `label`, and of
    lenses `arc_snr` and `einstein_radius` in arcsec (else NaN)."""
    rng, kinds = np.random.default_rng(seed), np.resize([LENS, ALONE, LENS, BESIDE], count)
    rows = []
    with runtime.progress("drawing", count, "cutouts") as advance:
        for kind in kinds:
            rows.append(cutout(rng, kind))
            advance(1)
    images, snr, radius = zip(*rows, strict=True)
    columns = {
        "kind": kinds,
        "label": (kinds == LENS).astype(int),
        "arc_snr": np.array(snr),
        "einstein_radius": np.array(radius),
    }
    return Cutouts(np.stack(images).astype(np.float32), (*BANDS,), ARCSEC, columns)


def cutout(rng: np.random.Generator, kind: str) -> tuple[np.ndarray, float, float]:
    """Returns a cutout (SIZE, SIZE, band) of a kind, and of a lens the S/N of its arc and its
    Einstein radius in arcsec."""
    mass, galaxy, source = system(rng, kind)
    bands = list(in_bands(mass, galaxy, source, lensed=kind == LENS))
    signal = np.sqrt(sum(np.sum((arc / noise) ** 2) for _, arc, noise, _ in bands))
    snr = np.exp(rng.uniform(*np.log(SNR)))
    share = 0.0 if kind == ALONE else snr / signal
    images = [
        (image := light + share * arc) + api.noise_for_model(image, seed=int(rng.integers(2**31)))
        for light, arc, _, api in bands
    ]
    known = (snr, mass[0]["theta_E"]) if kind == LENS else (np.nan, np.nan)
    return np.stack(images, axis=-1), *known


def in_bands(
    mass: list[dict], galaxy: dict, source: dict, *, lensed: bool
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, SimAPI]]:
    """Yields of each band the galaxy's light, the arc, the standard deviation (SIZE, SIZE) of the
    noise of sky and galaxy, and what draws noise."""
    models = {
        "lens_model_list": ["EPL", "SHEAR"] if lensed else [],
        "lens_light_model_list": ["SERSIC_ELLIPSE"],
        "source_light_model_list": ["SERSIC_ELLIPSE"],
    }
    for n, band in enumerate(BANDS):
        observed = LSST(band=band, psf_type="GAUSSIAN", coadd_years=YEARS).kwargs_single_band()
        api = SimAPI(SIZE, observed, models)
        light, behind, _ = api.magnitude2amplitude(
            *([each | {"magnitude": each["magnitude"][n]}] for each in (galaxy, source))
        )
        model = api.image_model_class({"supersampling_factor": 3})
        of_mass = mass if lensed else []
        alone = model.image(of_mass, behind, light, source_add=False)
        arc = model.image(of_mass, behind, light, lens_light_add=False)
        yield alone, arc, api.estimate_noise(alone), api


def system(rng: np.random.Generator, kind: str) -> tuple[list[dict], dict, dict]:
    """Returns the mass, the galaxy and the source; positions are from the centre, in arcsec, and
    magnitudes are those in g, r and i."""
    radius = rng.uniform(0.7, 2.2)
    centre = dict(zip(("center_x", "center_y"), rng.uniform(-ARCSEC, ARCSEC, 2), strict=True))
    shape = ellipticity(rng, 0.25)
    mass: list[dict[str, Any]] = [
        {"theta_E": radius, "gamma": rng.uniform(1.8, 2.2), **shape, **centre},
        {"gamma1": rng.normal(0, 0.03), "gamma2": rng.normal(0, 0.03)},
    ]
    i, colours = rng.uniform(18.0, 20.5), (rng.uniform(1.1, 1.7), rng.uniform(0.4, 0.9))
    galaxy = {
        "magnitude": (i + sum(colours), i + colours[1], i),
        "R_sersic": np.exp(rng.normal(0, 0.3)), "n_sersic": rng.uniform(3, 5), **shape, **centre,
    }  # fmt: skip
    # Within the caustics the inner half is where most arcs and rings come from.
    reach = (0.0, 0.4 * radius) if kind == LENS else (1.0, 4.0)
    far, angle = rng.uniform(*reach), rng.uniform(0, 2 * np.pi)
    colours = rng.uniform(0.0, 0.7), rng.uniform(0.0, 0.4)
    source = {
        "magnitude": (24 + sum(colours), 24 + colours[1], 24.0),
        "R_sersic": rng.uniform(0.1, 0.4), "n_sersic": rng.uniform(0.7, 2.0),
        **ellipticity(rng, 0.4),
        "center_x": centre["center_x"] + far * np.cos(angle),
        "center_y": centre["center_y"] + far * np.sin(angle),
    }  # fmt: skip
    return mass, galaxy, source


def ellipticity(rng: np.random.Generator, largest: float) -> dict[str, float]:
    """Returns an ellipticity of at most `largest`, in two components."""
    size, angle = rng.uniform(0, largest), rng.uniform(0, 2 * np.pi)
    return {"e1": size * np.cos(angle), "e2": size * np.sin(angle)}


if __name__ == "__main__":
    sys.exit(launch.run(main, sys.argv[1:]))
