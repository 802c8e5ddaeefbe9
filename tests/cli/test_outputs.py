"""What a run leaves behind whatever its data and their labels are, written from scores by hand."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from astropy.table import Table

from lensjax import inference, outcome, report, results
from lensjax.data.catalog import open_source
from lensjax.data.planes import Unreadable
from lensjax.data.preprocess import Preprocessing
from lensjax.errors import LensjaxError
from tests.scored import scored

OF_A_RUN = {name for name in results.OUTPUTS if not name.endswith(".pdf")} - {
    *(
        "metrics.json",
        "inspection.html",
        "grading.html",
        "ask.html",
        *results.WORST,
        *(f"{name}.png" for name in results.FIGURES),
    )
}


def written(
    folder: Path, labels: list[int] | None = None, count: int = 3, rejected: tuple[int, ...] = ()
) -> outcome.Outcome:
    """The Outcome of `outcome.write` for `count` cutouts, with the files in `folder`."""
    arrays = {} if labels is None else {"label": np.array(labels)}
    images = np.random.default_rng(0).normal(size=(count, 8, 8, 3)).astype(np.float32)
    np.savez(folder / "stack.npz", images=images, **arrays)
    source = open_source(folder / "stack.npz", needed=None, bands="g,r,i")
    predictions = scored(count, rejected, ("vit_s16",))
    infos = {"vit_s16": SimpleNamespace(architecture="vit_s16", weights_sha256="0" * 64)}
    ensemble = SimpleNamespace(
        names=("vit_s16",),
        fusion_params=SimpleNamespace(share=[1.0]),
        weights_origin="nothing",
        validated_on=None,
        preprocessings=(Preprocessing.unnormalised(("g", "r", "i"), 64, 0.2, "asinh", 2.0),),
    )
    options = inference.InferenceConfig(output=folder / "results")
    known = {"infos": infos, "validations": {}, "pixels": None, "left_out": ()}
    members = SimpleNamespace(**known, ensemble=ensemble)
    return outcome.write(options, members, source, predictions, {})


@pytest.mark.parametrize(
    ("how", "count", "said"),
    [
        ({}, 3, "the data have no labels"),
        ({"labels": [1, 1, 1]}, 3, "that have a label and a score (3) are lenses"),
        ({"labels": [1, 0, 0], "rejected": (0,)}, 2, "(2) are no lenses"),
        ({"labels": [1, 0, 0], "rejected": (0, 1, 2)}, 0, "none of the cutouts that were scored"),
        ({"labels": [1], "count": 1}, 1, "(1) are lenses"),
    ],
)
def test_all_files_are_there_and_say_why_metrics_are_not(
    tmp_path: Path, how: dict, count: int, said: str
) -> None:
    outcome = written(tmp_path, **how)
    folder = tmp_path / "results"
    of_candidates = {"candidates.reg", "searched.moc.fits", "searched.moc.json"}
    assert {path.name for path in folder.iterdir()} == OF_A_RUN - (
        set() if count else of_candidates
    )
    record = json.loads((folder / "run.json").read_text())
    assert record["scored"] == count and record["scored"] + record["rejected"] == record["given"]
    assert len(Table.read(folder / "candidates.fits")) == count
    (note,) = record["notes"]
    assert said in note and note in outcome.summary(folder)
    assert said in (folder / "report.html").read_text()
    assert "nan" not in outcome.summary(folder)
    with np.load(folder / "predictions.npz") as arrays:
        assert (arrays["ensemble_preds"] == -1).sum() == record["rejected"]


def test_a_picture_that_fails_loses_nothing_else(tmp_path: Path, monkeypatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise LensjaxError("no picture")

    monkeypatch.setattr(report, "write_mosaic", fail)
    with pytest.raises(LensjaxError, match="no picture"):
        written(tmp_path)
    assert {path.name for path in (tmp_path / "results").iterdir()} == OF_A_RUN - {"mosaic.png"}


def test_a_cutout_that_is_gone_when_it_is_to_be_drawn_is_blank(tmp_path: Path, monkeypatch) -> None:
    opened = open_source

    def gone(*arguments: object, **options: object):
        def read(row: int):
            raise Unreadable("no such file")

        return dataclasses.replace(opened(*arguments, **options), read=read)

    monkeypatch.setitem(globals(), "open_source", gone)
    written(tmp_path)
    assert {path.name for path in (tmp_path / "results").iterdir()} == OF_A_RUN
