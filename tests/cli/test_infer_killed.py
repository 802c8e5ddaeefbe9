"""A real process that scores, killed at any moment: its results are those of one left alone."""

import random
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table
from astropy.wcs import WCS

from lensjax import inference, ledger, pages, results
from lensjax.cli import infer
from tests import processes
from tests.data import skies

ROWS, BATCH, KILLS = 160, 4, 2
WHEN_WRITING = -1


def number_of(folder: Path) -> int:
    """Returns how many parts are there."""
    return len(list(folder.glob("*/*.parquet")))


def score(arguments: list[str], errors: Path, parts: int, seconds: float) -> None:
    """Scores with every batch on disk at once, and kills itself so many seconds after so many of
    them are there; or while it writes the results. Nothing is drawn, which is not what is
    tested."""
    ledger.SAVE_INTERVAL_SECONDS = -1.0
    pages.draw = lambda *_: None
    save = ledger.Ledger.save

    def save_and_end(rows: ledger.Ledger) -> None:
        save(rows)
        if number_of(errors.with_suffix("") / inference.PARTS) == parts:
            processes.signal_itself(signal.SIGKILL, seconds)

    def end(*_: object) -> None:
        processes.signal_itself(signal.SIGKILL)

    if parts > 0:
        ledger.Ledger.save = save_and_end
    if parts == WHEN_WRITING:
        results._write_csv = end
    processes.run(infer.main, arguments, errors)


@pytest.fixture(params=["stack", "tiles", "tiles in stages"])
def data(request, tmp_path) -> dict[str, object]:
    """Returns the options that name the data: cutouts, or objects in two tiles; or in which the
    second member sees what the first one passes on."""
    rng, bands = np.random.default_rng(7), ("g", "r", "i")
    if request.param == "stack":
        images = rng.normal(10.0, 3.0, (ROWS, 16, 16, 3)).astype(np.float32)
        images[::7] = np.nan
        np.savez(tmp_path / "x.npz", images=images, bands=bands, pixel_scale=np.array(0.2))
        return {"--data": tmp_path / "x.npz"}
    shape = (100, 120)
    headers = {name: skies.header(ra, 0.0, shape) for name, ra in (("a", 10.0), ("b", 20.0))}
    tiles = skies.write(tmp_path, headers, shape, bands)
    x, y = rng.uniform(0, 119, (2, ROWS // 2)), rng.uniform(0, 99, (2, ROWS // 2))
    sky = [WCS(h).all_pix2world(x[n], y[n], 0) for n, h in enumerate(headers.values())]
    Table(dict(zip(("ra", "dec"), np.hstack(sky), strict=True))).write(tmp_path / "o.parquet")
    stages = {"--cascade": "auto", "--cascade-loss": 0.1} if "stages" in request.param else {}
    return {"--data": tiles, "--catalogue": tmp_path / "o.parquet"} | stages


@pytest.fixture
def begin(members, data, tmp_path) -> Callable[..., BaseProcess]:
    """Returns a function that begins to score all cutouts into the folder of that name."""

    def begin_one(output: str, parts: int = 0, seconds: float = 0.0) -> BaseProcess:
        options = {
            "--checkpoints": members,
            **data,
            "--output": tmp_path / output,
            "--batch-size": BATCH,
            "--mc-samples": 2,
        }
        arguments = [str(word) for pair in options.items() for word in pair]
        return processes.begin(score, arguments, tmp_path / f"{output}.err", parts, seconds)

    return begin_one


@pytest.mark.slow
@pytest.mark.optimised
def test_a_run_killed_at_any_moment_ends_with_the_same_bytes(begin, tmp_path):
    assert processes.ended(begin("alone")) == 0, (tmp_path / "alone.err").read_text()
    moments, folder = random.Random(5), tmp_path / "killed" / inference.PARTS
    for _ in range(KILLS):
        parts = number_of(folder) + moments.randint(1, 12)
        process = begin("killed", parts, moments.uniform(0.0, 0.01))
        assert processes.ended(process) == -signal.SIGKILL, (tmp_path / "killed.err").read_text()
        assert parts <= number_of(folder) < ROWS / BATCH
    # Once more, while the results are being written.
    assert processes.ended(begin("killed", WHEN_WRITING)) == -signal.SIGKILL
    assert (tmp_path / "killed" / "predictions.npz").exists()
    assert processes.ended(begin("killed")) == 0, (tmp_path / "killed.err").read_text()
    names = {name for name in results.OUTPUTS if (tmp_path / "alone" / name).exists()}
    assert {"candidates.csv", "candidates.parquet", "predictions.npz"} <= names
    for name in names - {"run.json"}:
        first, second = ((tmp_path / run / name).read_bytes() for run in ("alone", "killed"))
        assert first == second, name
    assert {path.name for path in (tmp_path / "killed").iterdir()} == names
