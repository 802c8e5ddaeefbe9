"""The scores of a run come back, and labels of every form find theirs."""

from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from astropy.table import Table

from lensjax.errors import UsageError
from lensjax.predictions import Predictions, match, read_labels, read_predictions
from tests.test_results import run, write


def test_predictions_come_back(tmp_path: Path) -> None:
    write(tmp_path, run())
    found = read_predictions(tmp_path)
    assert list(found.probabilities) == ["ensemble", "resnet18.0", "vit_b16"]
    assert found.paths is not None and found.paths[0] == "f/0.fits"
    assert np.isnan(found.probabilities["ensemble"][[3, 7]]).all()


def test_no_predictions_is_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"predictions.npz"):
        read_predictions(tmp_path)
    np.savez(tmp_path / "other.npz", x=np.zeros(2))
    with pytest.raises(UsageError, match="lacks ensemble_probs and id"):
        read_predictions(tmp_path / "other.npz")
    (tmp_path / "predictions.npz").write_bytes(b"nothing of the kind")
    with pytest.raises(UsageError, match="no plain NPZ"):
        read_predictions(tmp_path)
    np.savez_compressed(tmp_path / "whole.npz", id=np.arange(5000), ensemble_probs=np.ones(5000))
    whole = (tmp_path / "whole.npz").read_bytes()
    for broken in (b"", b"PK\x03\x04", whole[:-30], whole[:2000] + 500 * b"\xff" + whole[2500:]):
        (tmp_path / "predictions.npz").write_bytes(broken)
        with pytest.raises(UsageError, match="no plain NPZ"):
            read_predictions(tmp_path)


@pytest.mark.parametrize("values", [np.zeros(2), np.array(["a"] * 3), np.zeros((3, 2))])
def test_predictions_that_are_not_one_number_an_id_are_wrong_use(tmp_path: Path, values) -> None:
    np.savez(tmp_path / "predictions.npz", id=np.arange(3), ensemble_probs=values)
    with pytest.raises(UsageError, match="ensemble are not one number for each of its 3 ids"):
        read_predictions(tmp_path)


def test_labels_in_an_npz_are_one_a_cutout(tmp_path: Path) -> None:
    for label in (np.zeros((1, 3)), np.zeros(2), np.array(1)):
        np.savez(tmp_path / "labels.npz", id=np.arange(3), label=label)
        with pytest.raises(UsageError, match="id and label must have one value for each cutout"):
            read_labels(tmp_path / "labels.npz")


@pytest.mark.parametrize("name", ["labels.csv", "labels.parquet", "labels.fits", "labels.npz"])
def test_labels_of_every_format(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    columns = {"id": np.array([5, 6, 7]), "label": np.array([1.0, np.nan, 0.0])}
    if name.endswith("npz"):
        np.savez(file, **columns)
    elif name.endswith("parquet"):
        pyarrow.parquet.write_table(pyarrow.table(columns), file)
    else:
        Table(columns).write(file)
    found = read_labels(file)
    assert found["id"].tolist() == [5, 6, 7]
    assert found["label"].tolist() == [1, -1, 0]


def test_labels_with_gaps_and_words(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path,label,other\nx.png,1,a\ny.png,,b\n")
    assert read_labels(tmp_path / "a.csv")["label"].tolist() == [1, -1]
    (tmp_path / "b.csv").write_text("id,label\n1,ring\n2,arc\n")
    with pytest.raises(UsageError, match="b.csv"):
        read_labels(tmp_path / "b.csv")
    (tmp_path / "c.csv").write_text("id,class\n1,1\n")
    with pytest.raises(UsageError, match="has the columns id, class"):
        read_labels(tmp_path / "c.csv")
    with pytest.raises(UsageError, match="none.csv"):
        read_labels(tmp_path / "none.csv")


def predictions(ids: object, paths: object = None) -> Predictions:
    ids = np.array(ids)
    return Predictions(
        ids, None if paths is None else np.array(paths), {"ensemble": np.zeros(ids.size)}
    )


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ([3, 1, 2], [1, 2, 3]),
        (["3", "1", "2"], [1, 2, 3]),
        ([3, 1, 2], ["1", "2", "3"]),
        ([3, 1, 2], [1.0, 2.0, 3.0]),
        (["003", "001", "002"], [1, 2, 3]),
        (["c", "a", "b"], ["a", "b", "c"]),
        ([2**53 + 3, 2**53 + 1, 2**53 + 2], [str(2**53 + k) for k in (1, 2, 3)]),
    ],
)
def test_labels_find_their_predictions_whatever_the_type(mine: list, theirs: list) -> None:
    found = match(predictions(mine), Table({"id": theirs, "label": [1, 0, -1]}))
    assert found.labels.tolist() == [-1, 1, 0]
    assert (found.without_label, found.without_prediction) == (0, 0)


def test_what_finds_no_partner_is_counted() -> None:
    labels = Table({"id": ["a", "b", "x", "y"], "label": [1, 0, 1, 1]})
    found = match(predictions(["b", "c", "a"]), labels)
    assert found.labels.tolist() == [0, -1, 1]
    assert (found.without_label, found.without_prediction) == (1, 2)


def test_labels_by_path() -> None:
    labels = Table({"path": ["d/a.png", "d/b.png"], "label": [1, 0]})
    found = match(predictions([1, 2], ["d/b.png", "d/a.png"]), labels)
    assert found.labels.tolist() == [0, 1]
    with pytest.raises(UsageError, match="know no paths"):
        match(predictions([1, 2]), labels)


def test_labels_of_other_data_or_in_conflict_are_refused() -> None:
    with pytest.raises(UsageError, match="no id of the labels"):
        match(predictions([1, 2]), Table({"id": ["p", "q"], "label": [0, 1]}))
    with pytest.raises(UsageError, match="id 1 has two labels"):
        match(predictions([1, 2]), Table({"id": [1, 1], "label": [0, 1]}))
    twice = match(predictions([1, 2]), Table({"id": [1, 1], "label": [1, 1]}))
    assert twice.labels.tolist() == [1, -1]


def test_paths_of_labels_are_those_of_a_run(tmp_path: Path) -> None:
    """Relative ones are below the folder of the file, as in the catalogue that was scored."""
    (tmp_path / "a.csv").write_text(f"path,label\nx.png,1\n{tmp_path}/y.png,0\n,1\n")
    labels = read_labels(tmp_path / "a.csv")
    assert labels["path"].tolist() == [f"{tmp_path}/x.png", f"{tmp_path}/y.png", ""]
    found = match(predictions([1, 2], [f"{tmp_path}/y.png", f"{tmp_path}/x.png"]), labels)
    assert found.labels.tolist() == [0, 1]
