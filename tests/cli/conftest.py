"""Members, data and a way to run a script, shared by the tests of the commands."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import jax
import numpy as np
import pytest
from jax import monitoring

from lensjax import launch, pages
from lensjax.cluster import ray_engine
from lensjax.data.preprocess import Preprocessing
from lensjax.ensemble import checkpoint
from tests import networks
from tests.ensemble.members import random_member

PREPROCESSING = Preprocessing(
    bands=("g", "r", "i"),
    input_size=16,
    pixel_scale=0.2,
    stretch="asinh",
    softening=2.0,
    mean=(0.3, 0.4, 0.5),
    std=(1.5, 2.0, 1.0),
)
CUTOUTS = 22


@dataclass(frozen=True)
class Ended:
    status: int
    out: str
    error: str


@pytest.fixture
def run(capsys) -> Callable[..., Ended]:
    """Returns a function that runs a command's `main` as its script would."""

    def run_command(main, *argv) -> Ended:
        status = launch.run(main, [str(argument) for argument in argv])
        printed = capsys.readouterr()
        return Ended(status, printed.out, printed.err)

    return run_command


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """Has scoring draw no pictures, which take as long as all the rest of a small run."""
    monkeypatch.setattr(pages, "draw", lambda *_: None)


@contextmanager
def compiling() -> Iterator[list[str]]:
    """Notes the names of the programs that are compiled, those too that have been before."""
    names: list[str] = []

    def on_compilation(event: str, _: float, **about: str) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(about["fun_name"])

    jax.clear_caches()
    monitoring.register_event_duration_secs_listener(on_compilation)
    try:
        yield names
    finally:
        monitoring.unregister_event_duration_listener(on_compilation)


@pytest.fixture
def from_the_last(monkeypatch) -> None:
    """Has one actor, which is this process, score ranges from the last to the first."""

    def score(make, ledger, reject, folder, **_):
        score_rows, cut = make(), [0, 3, 11, len(ledger.rows)]
        for ends in reversed(list(zip(cut, cut[1:], strict=False))):
            score_rows(range(*ends))
        return {"actors": 1}

    monkeypatch.setattr(ray_engine, "score", score)


@pytest.fixture(scope="session")
def members(tmp_path_factory):
    """A folder of two small members with a common validation set, one good and one useless."""
    folder = tmp_path_factory.mktemp("members")
    rng = np.random.default_rng(0)
    label = (np.arange(200) % 2).astype(np.float32)
    for seed, strength in ((0, 2.0), (1, 0.0)):
        with networks.small():
            member = random_member("vit_s16", seed, PREPROCESSING)
        logit = strength * (label - 0.5) + rng.normal(0, 0.5, 200)
        validation = {"id": np.arange(200), "label": label, "logit": logit}
        member = dataclasses.replace(member, validation=validation)
        checkpoint.save_member(folder / "vit_s16" / str(seed), member)
    return folder


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    rng = np.random.default_rng(7)
    return rng.normal(10.0, 3.0, (CUTOUTS, 16, 16, 3)).astype(np.float32)


@pytest.fixture(scope="session")
def stack_file(tmp_path_factory, images):
    """An .npz with ids that only exact integers keep apart, labels and a column of its own."""
    path = tmp_path_factory.mktemp("data") / "stack.npz"
    np.savez(
        path,
        images=images,
        id=2**60 + np.arange(CUTOUTS),
        label=np.arange(CUTOUTS) % 2,
        ra=np.linspace(10, 11, CUTOUTS),
        dec=np.linspace(-5, -4, CUTOUTS),
        tile=np.array([f"tile {row}" for row in range(CUTOUTS)]),
        pixel_scale=np.array(0.2),
        bands=np.array(["g", "r", "i"]),
    )
    return path
