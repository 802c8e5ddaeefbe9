"""Trains a network at one size and at two, by each schedule: the table of docs/training.md.

    python docs/schedules.py FOLDER

Three seeds of each, trained together, on a simulated sky that is made in FOLDER; every network is
then tried at both sizes on cutouts that no training saw. At a size that is not its own, its batch
normalisation takes the statistics of the training cutouts at that size. Brackets hold 95 % of 1000
resamples of seeds and test cutouts. A run that was killed goes on where it was, so that its minutes
can be had in parts.
"""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from scipy.special import expit

from lensjax import metrics, runtime
from lensjax.cli.simulate import SimulateConfig, simulate_survey
from lensjax.data.catalog import open_source
from lensjax.data.on_device import seen
from lensjax.data.preprocess import Preprocessing
from lensjax.ensemble.checkpoint import Member, nnx_state
from lensjax.train.config import Hyperparameters
from lensjax.train.dataset import Labelled, read_labelled, split
from lensjax.train.loop import train_team
from lensjax.train.scales import views_at

ARCHITECTURE, SEEDS, SIZES = "resnet18", (0, 1, 2), (24, 48)
PLAIN = Hyperparameters(batch_size=32, epochs=3.0, learning_rate=1e-3)
RECIPES = {
    "24 px alone": dataclasses.replace(PLAIN, scales="24"),
    "48 px alone": dataclasses.replace(PLAIN, scales="48"),
    "progressive": dataclasses.replace(PLAIN, scales="24,48", schedule="progressive"),
    "alternating": dataclasses.replace(PLAIN, scales="24,48", schedule="alternating"),
    "joint": dataclasses.replace(PLAIN, scales="24,48"),
    "joint, consistency 1": dataclasses.replace(PLAIN, scales="24,48", consistency_weight=1.0),
}


def opened(path: Path, size: int) -> Labelled:
    """Returns the labelled cutouts of a file as a network of this input size sees them."""
    source = open_source(str(path), needed=None)
    preprocessing = Preprocessing.unnormalised(
        source.bands, size, source[0].pixel_scale, "asinh", softening=2.0
    )
    return read_labelled(source, preprocessing, "resize", path.parent)


def scores(member: Member, training: Labelled, test: Labelled, size: int) -> np.ndarray:
    """Returns the probabilities (n,) of the test cutouts at an input size, by the plain logits."""
    own = member.info.preprocessing
    preprocessing = dataclasses.replace(own, input_size=max(SIZES))
    (view,) = views_at(dataclasses.replace(test.view, preprocessing=preprocessing), [size])
    abstract = member.info.outline()
    graph, state = nnx.graphdef(abstract), nnx_state(abstract, member.state)

    @jax.jit
    def settled(state: nnx.State, images: jax.Array, bounds: jax.Array) -> nnx.State:
        model = nnx.merge(graph, state)
        model(seen(view, images, bounds), train=True)
        return nnx.state(model)

    @jax.jit
    def logits(state: nnx.State, images: jax.Array, bounds: jax.Array) -> jax.Array:
        return nnx.merge(graph, state)(seen(view, images, bounds))

    def parts(data: Labelled) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for rows in np.array_split(np.arange(len(data)), len(data) // 50):
            yield data.arrays["images"][rows], data.arrays["bounds"][rows]

    if size != own.input_size:
        for part in parts(training):
            state = settled(state, *part)
    return expit(np.concatenate([logits(state, *part) for part in parts(test)]))


def with_interval(probability: np.ndarray, label: np.ndarray, metric: str) -> str:
    """Returns the mean over the seeds of a metric of probabilities (seed, n), and its interval."""
    measure = {"AUROC": metrics.auroc, "TPR10": lambda s, y: metrics.tpr_at(s, y, 10)}[metric]
    rng = np.random.default_rng(0)

    def mean(seeds: np.ndarray, rows: np.ndarray) -> float:
        return float(np.mean([measure(probability[seed, rows], label[rows]) for seed in seeds]))

    count = len(probability)
    draws = [
        mean(rng.integers(count, size=count), rng.integers(len(label), size=len(label)))
        for _ in range(1000)
    ]
    low, high = np.quantile(draws, (0.025, 0.975))
    return f"{mean(np.arange(count), np.arange(len(label))):.3f} [{low:.3f}, {high:.3f}]"


def main(folder: Path) -> None:
    runtime.set_up()
    sky = SimulateConfig(
        output=folder / "sky", size=48, count=3200, test_fraction=0.25, seed=1,
        einstein_radius=1.5, arc_snr=100.0, sources="hubble",
    )  # fmt: skip
    if not (folder / "sky" / "truth.csv").exists():
        simulate_survey(sky)
    columns = [f"{metric} at {size} px" for size in SIZES for metric in ("AUROC", "TPR10")]
    print(f"| trained | {' | '.join(columns)} |\n|{'---|' * (1 + len(columns))}", flush=True)
    test = opened(folder / "sky" / "test.npz", max(SIZES))
    every = opened(folder / "sky" / "train.npz", max(SIZES))
    label = test.arrays["label"]
    for number, (name, hyperparameters) in enumerate(RECIPES.items()):
        data = opened(folder / "sky" / "train.npz", max(hyperparameters.sizes()))
        training, validation = split(data, 0.15)
        members = train_team(
            *(training, validation, ARCHITECTURE, hyperparameters, SEEDS, folder / str(number))
        )
        cells = []
        for size in SIZES:
            found = np.stack([scores(member, every, test, size) for member in members])
            cells += [with_interval(found, label, metric) for metric in ("AUROC", "TPR10")]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
