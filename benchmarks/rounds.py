"""Shows what rounds of grading and learning gain, on a simulated sky with a simulated grader.

    python -m benchmarks.rounds --output FOLDER

The members know a sky as seen from the ground. They search one that Euclid sees, whose VIS, Y and H
they take for g, r and i; one cutout in 200 is a lens. A grader who errs grades what each round asks
for: what teaches most, the best of the list, or cutouts at random. Given again the command goes on.
"""

import dataclasses
import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from scipy import stats

from lensjax import config, launch, results, runtime
from lensjax.cutouts import Cutouts
from lensjax.data.formats.tables import read_table, texts
from lensjax.errors import refuse
from lensjax.files import replacing
from lensjax.rounds import TOP, Round, RoundConfig, go_on, round_of
from lensjax.simulation import SimulateConfig, as_cutouts, simulate_survey, simulated
from lensjax.sky.survey import AS_THEY_ARE

WAYS = ("gain", "score", "random")
KNOWN = SimulateConfig(survey="ground", count=4000, test_fraction=0.0, seed=7)
"""The sky that is replayed: another draw of the kind that the members learned."""
SEARCHED = SimulateConfig(
    survey="euclid",
    size=140,
    lens_fraction=0.005,
    test_fraction=0.0,
    einstein_radius=1.0,
    shares=",".join(f"{kind}={share}" for kind, share in AS_THEY_ARE),
)
"""14 arcsec across, as the members see; then averaged over 2 x 2 pixels, to read and keep less."""
TAKEN_FOR = {"g": "VIS", "r": "NIR_Y", "i": "NIR_H"}
COMPLETENESS, FALSE_POSITIVE_RATE = 0.85, 0.03
"""Of the grader: the share of lenses, and of others, that get a B; all others get an X. Chosen."""


@dataclass(frozen=True)
class RoundsConfig:
    """Options of this benchmark."""

    output: Path
    """Folder of the skies and of the rounds."""
    checkpoints: Path = Path("checkpoints")
    """Folder of the first members."""
    ensemble: str | None = None
    """Which of them, as --ensemble of infer.py names them."""
    count: int = 8000
    """Cutouts of each sky."""
    rounds: int = 3
    """Rounds of grading."""
    ask: int = 200
    """Cutouts graded in each."""
    seeds: int = 3
    """Skies, each with a grader, draws and an order of learning of its own."""
    head_only: bool = True
    """The last layer alone learns."""

    def __post_init__(self) -> None:
        """Raises UsageError for numbers that make no sense."""
        names = ("count", "rounds", "ask", "seeds")
        refuse({f"--{name} must be at least 1": getattr(self, name) < 1 for name in names})


class Found(NamedTuple):
    """What a list holds: true lenses among its best TOP, the share of lenses in as many of its best
    as there are lenses, and the true lenses among all that was graded before."""

    top: int
    purity: float
    graded: int


def main(argv: Sequence[str]) -> None:
    """Prints the table: a line for each way to ask and each number of rounds."""
    options = config.parse(RoundsConfig, argv, description=__doc__.split("\n", 1)[0])
    runtime.set_up()
    known = options.output / "known"
    if not (known / "truth.csv").exists():
        print(simulate_survey(dataclasses.replace(KNOWN, output=known)), flush=True)
    found: dict[str, list[list[Found]]] = {way: [] for way in WAYS}
    # Seed by seed: what is printed until all is done compares as many skies of each way.
    for seed in range(options.seeds):
        truth = sky(options, seed)
        for way in WAYS:
            found[way].append(list(searched(options, way, seed, truth)))
            jax.clear_caches()  # each training leaves programs behind
            runtime.give_back_memory()
        lenses = sum(truth.values())
        print(f"\nsky {seed}: {lenses} lenses among {len(truth)}\n")
        print("\n".join(table(found)), flush=True)


def sky(options: RoundsConfig, seed: int) -> dict[str, int]:
    """Writes the cutouts of a sky without their labels, once, and returns the labels by id."""
    path, labels = survey_of(options, seed), options.output / f"truth-{seed}.csv"
    if not labels.exists():
        cutouts = seen_by_euclid(options.count, 100 + seed)
        names, label = (np.asarray(cutouts.columns[name]) for name in ("id", "label"))
        averaged(cutouts).save(path)
        write_rows(labels, ("id", "label"), zip(names, label, strict=True))
    known = read_table(labels)
    return dict(zip(texts(known["id"]), known["label"].tolist(), strict=True))


def seen_by_euclid(count: int, seed: int) -> Cutouts:
    """Returns cutouts of a sky that Euclid sees, its bands named as those that they are taken for,
    with the truth as columns."""
    survey, drawn, _ = simulated(dataclasses.replace(SEARCHED, count=count, seed=seed))
    channels = [survey.bands.index(band) for band in TAKEN_FOR.values()]
    cutouts = as_cutouts(survey, drawn)
    images = cutouts.images[..., channels]
    return dataclasses.replace(cutouts, images=images, bands=tuple(TAKEN_FOR))


def averaged(cutouts: Cutouts) -> Cutouts:
    """Returns cutouts whose pixels are the means of 2 x 2, with `id` alone as their column."""
    count, height, width, bands = cutouts.images.shape
    images = cutouts.images.reshape(count, height // 2, 2, width // 2, 2, bands).mean((2, 4))
    assert cutouts.pixel_scale is not None
    return Cutouts(images, cutouts.bands, 2 * cutouts.pixel_scale, {"id": cutouts.columns["id"]})


def survey_of(options: RoundsConfig, seed: int) -> Path:
    """Returns where the cutouts of a sky are."""
    return options.output / f"sky-{seed}.npz"


def searched(
    options: RoundsConfig, way: str, seed: int, truth: Mapping[str, int]
) -> Iterator[Found]:
    """Yields what the list holds before the first round and after each, with grades by the
    grader."""
    of_rounds = RoundConfig(
        data=str(survey_of(options, seed)),
        replay=str(options.output / "known" / "train.npz"),
        output=options.output / f"{way}-{seed}",
        checkpoints=options.checkpoints,
        ensemble=options.ensemble,
        reuse=options.output / "logits",
        ask=options.ask,
        by=way,  # type: ignore[arg-type]
        head_only=options.head_only,
        seed=seed,
    )
    for number in range(1, options.rounds + 2):
        here = round_of(of_rounds.output, number)
        if not (here.results / "ask.csv").exists() or not here.grades.exists():
            for line in go_on(of_rounds):
                print(f"[{way}, sky {seed}] {line}", flush=True)
        yield found_in(here, truth, [round_of(of_rounds.output, n) for n in range(1, number)])
        if number <= options.rounds:
            grade(here, truth, seed)


def grade(here: Round, truth: Mapping[str, int], seed: int) -> None:
    """Writes what the grader says of all that a round asks for: of one cutout always the same."""
    chance = dict(zip(truth, np.random.default_rng(seed).random(len(truth)), strict=True))
    rates = {1: COMPLETENESS, 0: FALSE_POSITIVE_RATE}
    asked = texts(read_table(here.results / "ask.csv")["id"])
    said = ((name, "B" if chance[name] < rates[truth[name]] else "X", "grader") for name in asked)
    write_rows(here.grades / "grader.csv", ("id", "grade", "grader"), said)


def found_in(here: Round, truth: Mapping[str, int], before: Sequence[Round]) -> Found:
    """Returns what the list of a round holds, and the grades of those before."""
    _, candidates = next(results.read_candidates(here.results))
    is_lens = [truth[name] for name in texts(candidates["id"])]
    lenses = sum(truth.values())
    asked = (name for each in before for name in texts(read_table(each.results / "ask.csv")["id"]))
    graded = sum(truth[name] for name in asked)
    return Found(sum(is_lens[:TOP]), sum(is_lens[:lenses]) / lenses, graded)


def table(found: Mapping[str, Sequence[Sequence[Found]]]) -> Iterator[str]:
    """Yields the lines of the table: means over skies with 95 % intervals by Student's t, which one
    sky alone does not give."""
    heads = ("asked by", "rounds", f"lenses in the top {TOP}", "purity", "lenses graded")
    yield f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}"
    for way, skies in found.items():
        for number, of_round in enumerate(zip(*skies, strict=True)):
            top, purity, graded = zip(*of_round, strict=True)
            cells = (with_interval(top, ".1f"), with_interval(purity, ".2f"))
            yield f"| {way} | {number} | {' | '.join(cells)} | {with_interval(graded, '.1f')} |"


def with_interval(values: Sequence[float], form: str) -> str:
    """Returns a mean, and its interval where there are several values."""
    mean, error = np.mean(values), 0.0
    if len(values) < 2:
        return f"{mean:{form}}"
    error = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{mean:{form}} [{mean - error:{form}}, {mean + error:{form}}]"


def write_rows(path: Path, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Writes a CSV, whole or not at all."""
    lines = (",".join(map(str, row)) for row in itertools.chain([heads], rows))
    with replacing(path) as file:
        file.write(("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    sys.exit(launch.run(main, sys.argv[1:]))
