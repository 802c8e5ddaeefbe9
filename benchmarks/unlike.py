"""Shows which cutouts are called unlike those that the members were validated on.

    python -m benchmarks.unlike --images FOLDER

A cutout is called so where its `outlier_p_value` is at most 0.01. FOLDER holds the sets of real
images of `benchmarks.real_lenses`, each of which may be missing. Odd cutouts are made of these and
of a simulated sky, as fluxes and as pictures.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from skimage.util import view_as_blocks
from sklearn.datasets import load_sample_images

from benchmarks.real_lenses import PICTURES, SETS, sets_in
from benchmarks.rounds import averaged, seen_by_euclid
from lensjax import config, launch, load_ensemble
from lensjax.api import LensFinder
from lensjax.cutouts import Cutouts
from lensjax.data.catalog import open_source
from lensjax.data.levels import WHITE, are_levels
from lensjax.data.preprocess import Preprocessing
from lensjax.errors import refuse
from lensjax.simulation import SimulateConfig, as_cutouts, simulated
from lensjax.sky.artefacts import ARTEFACTS
from lensjax.train.data import read_labelled
from lensjax.train.known_pixels import pictured
from lensjax.trust.outliers import UNLIKE

SEED = 41
"""No sky was drawn by it that the members saw."""
AS_THEY_ARE = "as they are"
OF_ARTEFACTS = {
    "": AS_THEY_ARE,
    "saturated": "a saturated column",
    "trail": "a trail in one band",
    "edge": "nothing beyond an edge",
    "missing_band": "an empty band",
    "border": "a black border",
}
FACTORS = 4, 12
"""By which pictures are saturated."""


@dataclass(frozen=True)
class UnlikeConfig:
    """Options of this benchmark."""

    images: Path | None = None
    """Folder of the sets of real images (None: simulated cutouts and photographs alone)."""
    checkpoints: Path = Path("checkpoints")
    """Folder of the members."""
    ensemble: str | None = None
    """Which of them, as --ensemble of infer.py names them."""
    count: int = 300
    """Simulated cutouts of each kind: about as many."""

    def __post_init__(self) -> None:
        """Raises UsageError for a count that makes no sense."""
        refuse({"--count must be at least 1": self.count < 1})


class Kind(NamedTuple):
    """Cutouts of one kind, and their row and column in the table."""

    row: str
    column: str
    cutouts: Cutouts


class Told(NamedTuple):
    """How many cutouts were called unlike, scored, and rejected."""

    unlike: int = 0
    scored: int = 0
    rejected: int = 0

    def __str__(self) -> str:
        share = f"{self.unlike / max(self.scored, 1):.0%} of {self.scored}".replace("%", " %")
        return share + (f", {self.rejected} rejected" if self.rejected else "")


def main(argv: Sequence[str]) -> None:
    """Prints the table: a line a kind of cutouts, a column a form in which they come."""
    options = config.parse(UnlikeConfig, argv, description=__doc__.split("\n", 1)[0])
    finder = load_ensemble(options.checkpoints, options.ensemble, mc_samples=1)
    first = next(iter(finder.members.values())).preprocessing
    kinds = [*simulated_kinds(options.count, first)]
    if options.images is not None:
        kinds += real_kinds(options.images, first.bands)
    kinds.append(Kind("everyday photographs", "real pictures", photographs(first)))
    print("\n".join(table(told(finder, kinds))))


def told(finder: LensFinder, kinds: Iterable[Kind]) -> dict[tuple[str, str], Told]:
    """Returns what the members say of each row and column."""
    found: dict[tuple[str, str], Told] = {}
    for row, column, cutouts in kinds:
        scored, rejects = finder.score(cutouts)
        unlike = int((scored["outlier_p_value"] <= UNLIKE).sum()) if len(scored) else 0
        new, before = (unlike, len(scored), len(rejects)), found.get((row, column), Told())
        found[row, column] = Told(*map(sum, zip(before, new, strict=True)))
    return found


def table(found: Mapping[tuple[str, str], Told]) -> Iterator[str]:
    """Yields the lines of the table."""
    rows, columns = (list(dict.fromkeys(names)) for names in zip(*found, strict=True))
    yield "| | " + " | ".join(columns) + " |"
    yield "|" + "---|" * (len(columns) + 1)
    for row in rows:
        cells = [row, *(str(found.get((row, column), "-")) for column in columns)]
        yield "| " + " | ".join(cells) + " |"


def simulated_kinds(count: int, preprocessing: Preprocessing) -> Iterator[Kind]:
    """Yields cutouts of a simulated sky, with each artefact and odd in other ways, as fluxes and as
    pictures."""
    share = 1 - 1 / len(ARTEFACTS)
    wanted = SimulateConfig(
        survey="ground", count=count * len(ARTEFACTS), artefact_fraction=share,
        test_fraction=0.0, seed=SEED,
    )  # fmt: skip
    survey, sky, _ = simulated(wanted)
    cutouts, artefact = as_cutouts(survey, sky), np.asarray(sky.truth["artefact"])
    groups = {name: cutouts[artefact == name] for name in ARTEFACTS}
    groups = {name: group for name, group in groups.items() if len(group)}
    for column, seen in (
        ("simulated fluxes", groups),
        ("simulated pictures", {n: as_pictures(g, preprocessing) for n, g in groups.items()}),
    ):
        for name, group in seen.items():
            yield Kind(OF_ARTEFACTS[name], column, group)
        yield from odd_kinds(column, seen[""])
    yield from euclid_kinds(seen_by_euclid(count, SEED))


def euclid_kinds(cutouts: Cutouts) -> Iterator[Kind]:
    """Yields cutouts as Euclid sees them, 14 arcsec across as the members' are, and changed."""
    column, middle = "simulated fluxes", slice(20, -20)
    yield Kind("Euclid's", column, cutouts)
    yield Kind("Euclid's, means of 2 x 2 pixels", column, averaged(cutouts))
    smaller = replace(cutouts, images=cutouts.images[:, middle, middle])
    yield Kind("Euclid's, 10 arcsec across", column, smaller)


def as_pictures(cutouts: Cutouts, preprocessing: Preprocessing) -> Cutouts:
    """Returns colour pictures of cutouts with a `label`."""
    read = read_labelled(cutouts.source(preprocessing.bands), preprocessing, "crop")
    images = np.asarray(pictured(read).arrays["images"])
    return Cutouts(images, preprocessing.bands, cutouts.pixel_scale)


def real_kinds(images: Path, bands: tuple[str, ...]) -> Iterator[Kind]:
    """Yields the cutouts of each set that a folder holds, as they are and odd."""
    for name in sets_in(images):
        source = open_source(images / name, needed=bands, **SETS[name])
        read = [source[row] for row in range(len(source))]
        pixels = np.stack([cutout.image for cutout in read])
        column = "real pictures" if are_levels(pixels) else "real fluxes"
        cutouts = Cutouts(pixels, source.bands, read[0].pixel_scale)
        yield Kind(AS_THEY_ARE, column, cutouts)
        yield from odd_kinds(column, cutouts)


def odd_kinds(column: str, cutouts: Cutouts) -> Iterator[Kind]:
    """Yields what nobody would call cutouts of galaxies in these bands, made of such cutouts."""
    images = np.asarray(cutouts.images, np.float32)
    is_picture = are_levels(images)
    mean, scatter = (of(images, axis=(1, 2), keepdims=True) for of in (np.mean, np.std))
    made: dict[str, np.ndarray] = {
        "noise alone": np.random.default_rng(SEED).normal(mean, scatter, images.shape),
        "negatives": (WHITE if is_picture else 0) - images,
        "bands in reverse order": images[..., ::-1],
    }
    if is_picture:
        made |= {f"{factor} times as bright": factor * images for factor in FACTORS}
        made = {row: np.clip(np.round(odd), 0, WHITE) for row, odd in made.items()}
    for row, odd in made.items():
        yield Kind(row, column, replace(cutouts, images=odd.astype(np.float32)))


def photographs(preprocessing: Preprocessing) -> Cutouts:
    """Returns pieces of the photographs that come with scikit-learn, as large as members see."""
    side, pieces = preprocessing.input_size, []
    for photograph in load_sample_images().images:
        height, width = (length // side * side for length in photograph.shape[:2])
        blocks = view_as_blocks(photograph[:height, :width], (side, side, 3))
        pieces.append(blocks.reshape(-1, side, side, 3))
    bands = tuple(PICTURES["bands"].split(","))
    return Cutouts(np.concatenate(pieces), bands, preprocessing.pixel_scale)


if __name__ == "__main__":
    sys.exit(launch.run(main, sys.argv[1:]))
