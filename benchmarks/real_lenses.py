"""Scores real lenses, real galaxies and real galaxies with simulated arcs, and says what is found.

    python -m benchmarks.real_lenses --images FOLDER

FOLDER holds sets of real images, each of which may be missing:

- `cfhtls_candidates/catalog.csv`: colour pictures of the candidates of Space Warps in the CFHTLS
  (More et al. 2016, MNRAS 455, 1191), with the experts' `grade`, and a `group` for each object;
- `cfhtls_fields/catalog.csv`: ordinary galaxies of the same survey in the same kind of picture;
- `legacy_thumbs`: colour pictures of known lenses in the Legacy Surveys;
- `des_lrg_grizY/{band}.fits`: luminous red galaxies of the Dark Energy Survey.
"""

import dataclasses
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from astropy.table import Table
from sklearn.metrics import roc_auc_score

from lensjax import config, launch, load_ensemble
from lensjax.api import LensFinder
from lensjax.errors import UsageError
from lensjax.simulation import SimulateConfig, simulate_survey

PICTURES: dict[str, Any] = {"bands": "i,r,g", "pixel_scale": 0.1875}
CANDIDATES, ORDINARY = "cfhtls_candidates/catalog.csv", "cfhtls_fields/catalog.csv"
KNOWN, GALAXIES = "legacy_thumbs", "des_lrg_grizY/{band}.fits"
SETS: dict[str, dict[str, Any]] = {
    GALAXIES: {},
    CANDIDATES: PICTURES,
    ORDINARY: PICTURES,
    KNOWN: PICTURES | {"pixel_scale": 0.262},
}
"""How each set is to be read: what its files do not say."""
GOOD, POOR = 2.0, 0.7
"""Grades from which on a candidate is good, and up to which it is poor."""
RESAMPLES = 1000
ARCS = SimulateConfig(
    survey="ground", bands="g,r,i", pixel_scale=0.263, size=45, count=168, lens_fraction=5 / 6,
    test_fraction=1.0, seed=3,
)  # fmt: skip
"""Five arcs for each of 28 galaxies, and the bare galaxies."""
ARC_SNR = 30, 100
"""Of the arcs that count."""


@dataclass(frozen=True)
class RealLenses:
    """Options of this benchmark."""

    images: Path
    """Folder of the sets of real images."""
    checkpoints: Path = Path("checkpoints")
    """Folder of the members."""
    ensemble: str | None = None
    """Which of them, as --ensemble of infer.py names them."""
    symmetries: Literal[1, 8] = 1
    """8: logits are the mean over rotations and mirror images."""


def main(argv: Sequence[str]) -> None:
    """Prints the table: a line a figure, a column a score.

    Raises UsageError where the folder has nothing to compare.
    """
    options = config.parse(RealLenses, argv, description=__doc__.split("\n", 1)[0])
    finder = load_ensemble(
        options.checkpoints, options.ensemble, mc_samples=1, symmetries=options.symmetries
    )
    found = of_pictures(finder, options.images) | of_arcs(finder, options.images)
    if not found:
        raise UsageError(f"--images {options.images} holds too few of the sets to compare any")
    print(table(found))


def table(found: Mapping[str, Mapping[str, str]]) -> str:
    """Returns a Markdown table: a line a figure, a column a score."""
    names = next(iter(found.values()))
    lines = ["| | " + " | ".join(names) + " |", "|" + "---|" * (len(names) + 1)]
    lines += [f"| {figure} | " + " | ".join(told.values()) + " |" for figure, told in found.items()]
    return "\n".join(lines)


def sets_in(images: Path) -> list[str]:
    """Returns which of SETS a folder holds. Raises UsageError where it holds none."""
    there = [name for name in SETS if any(images.glob(name.replace("{band}", "*")))]
    if not there:
        raise UsageError(f"--images {images} holds none of the sets of real images")
    return there


def of_pictures(finder: LensFinder, images: Path) -> dict[str, dict[str, str]]:
    """Returns the figures of candidates, known lenses and ordinary galaxies in colour pictures."""
    there = sets_in(images)
    candidates, ordinary, known = (
        finder.score(images / name, **SETS[name]).candidates if name in there else None
        for name in (CANDIDATES, ORDINARY, KNOWN)
    )
    found = {}
    if candidates is not None:
        grade = np.asarray(candidates["grade"], float)
        good, poor = candidates[grade >= GOOD], candidates[grade <= POOR]
        found["good candidates against poor ones, AUROC"] = compared(auroc, good, poor)
        if ordinary is not None:
            found["good candidates against galaxies, AUROC"] = compared(auroc, good, ordinary)
            found["good candidates above 5 % of galaxies"] = compared(above, good, ordinary)
    if known is not None and ordinary is not None:
        found["known lenses above 5 % of galaxies"] = compared(above, known, ordinary)
    return found


def of_arcs(finder: LensFinder, images: Path) -> dict[str, dict[str, str]]:
    """Returns the figures of real galaxies with simulated arcs, against the same without."""
    if GALAXIES not in sets_in(images):
        return {}
    with tempfile.TemporaryDirectory() as folder:
        backgrounds = str(images / GALAXIES)
        simulate_survey(dataclasses.replace(ARCS, backgrounds=backgrounds, output=Path(folder)))
        scored = finder.score(Path(folder) / "test.npz").candidates
    faintest, brightest = ARC_SNR
    arcs = scored[(scored["arc_snr"] >= faintest) & (scored["arc_snr"] <= brightest)]
    bare = scored[scored["label"] == 0]
    what = f"galaxies with an arc of S/N {faintest} to {brightest}"
    return {
        f"{what} against bare ones, AUROC": compared(auroc, arcs, bare),
        f"{what} above their bare selves": compared(above_own, arcs, bare),
    }


def compared(figure: Callable[..., float], lenses: Table, others: Table) -> dict[str, str]:
    """Returns the figure with its 95 % interval, of all scores by name: over resamples of the
    objects, those of one `group` together."""
    ending = "_probability"
    names = ["probability", *(name for name in lenses.colnames if name.endswith(ending))]
    rng = np.random.default_rng(0)
    drawn = [(resample(rng, lenses), resample(rng, others)) for _ in range(RESAMPLES)]
    told = {}
    for name in names:
        values = [figure(lenses[a], others[b], name) for a, b in drawn]
        low, high = np.quantile(values, [0.025, 0.975])
        score = name.removesuffix(ending) if name != "probability" else "ensemble"
        told[score] = f"{figure(lenses, others, name):.3f} [{low:.3f}, {high:.3f}]"
    return told


def resample(rng: np.random.Generator, table: Table) -> np.ndarray:
    """Returns rows of as many groups as there are, drawn with replacement."""
    column = "group" if "group" in table.colnames else "id"
    _, group = np.unique(np.asarray(table[column]).astype(str), return_inverse=True)
    rows = [np.flatnonzero(group == one) for one in range(group.max() + 1)]
    return np.concatenate([rows[one] for one in rng.integers(len(rows), size=len(rows))])


def auroc(lenses: Table, others: Table, name: str) -> float:
    """Returns the area under the ROC curve."""
    labels = np.repeat([1, 0], [len(lenses), len(others)])
    return roc_auc_score(labels, np.concatenate([lenses[name], others[name]]))


def above(lenses: Table, others: Table, name: str) -> float:
    """Returns the fraction of lenses above the score that 5 % of the others exceed."""
    return float(np.mean(np.asarray(lenses[name]) > np.quantile(others[name], 0.95)))


def above_own(lenses: Table, others: Table, name: str) -> float:
    """Returns the fraction of lenses that score higher than the galaxy of the same `group` does
    without an arc; groups of which a resample has no such galaxy do not count."""
    bare = dict(zip(others["group"].tolist(), others[name].tolist(), strict=True))
    pairs = zip(lenses["group"].tolist(), lenses[name].tolist(), strict=True)
    return float(np.mean([score > bare[group] for group, score in pairs if group in bare]))


if __name__ == "__main__":
    sys.exit(launch.run(main, sys.argv[1:]))
