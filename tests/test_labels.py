"""Labels of every form find the predictions that they are for."""

from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from astropy.table import Table

from lensjax.errors import UsageError
from lensjax.labels import match, read_labels


def test_labels_in_an_npz_are_one_a_cutout(tmp_path: Path) -> None:
    for label in (np.zeros((1, 3)), np.zeros(2), np.array(1)):
        np.savez(tmp_path / "labels.npz", id=np.arange(3), label=label)
        with pytest.raises(UsageError, match="id and label must have one value for each cutout"):
            read_labels(tmp_path / "labels.npz")


@pytest.mark.parametrize("name", ["labels.csv", "labels.parquet", "labels.fits", "labels.npz"])
def test_labels_of_every_format(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    columns = {"id": np.array([5, 6, 7]), "label": np.array([1.0, np.nan, 0.0])}
    columns["size"] = np.array([0.5, 1.5, 2.5])
    if name.endswith("npz"):
        np.savez(file, **columns)
    elif name.endswith("parquet"):
        pyarrow.parquet.write_table(pyarrow.table(columns), file)
    else:
        Table(columns).write(file)
    found = read_labels(file)
    assert found["id"].tolist() == [5, 6, 7]
    assert found["label"].tolist() == [1, -1, 0] and found["size"].tolist() == [0.5, 1.5, 2.5]


def test_labels_with_gaps_and_words(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path,label,other\nx.png,1,a\ny.png,,b\n")
    found = read_labels(tmp_path / "a.csv")
    assert found["label"].tolist() == [1, -1] and found["other"].tolist() == ["a", "b"]
    (tmp_path / "b.csv").write_text("id,label\n1,ring\n2,arc\n")
    with pytest.raises(UsageError, match="b.csv"):
        read_labels(tmp_path / "b.csv")
    (tmp_path / "c.csv").write_text("id,class\n1,1\n")
    with pytest.raises(UsageError, match="has the columns id, class"):
        read_labels(tmp_path / "c.csv")
    with pytest.raises(UsageError, match="none.csv"):
        read_labels(tmp_path / "none.csv")


def test_grades_that_a_page_exported_are_labels(tmp_path: Path) -> None:
    head = "id,ra,dec,grade,class,grader,time,seconds,notes\r\n"
    rows = [
        "p,1,2,A,,Ann,2026-01-01T00:00:00Z,1.5,",
        'q,,,b,,Ann,2026-01-01T00:00:01Z,,"two\r\nlines, and ""more"""',
        "r,,,C,,Ann,,,",
        "s,,,X,ring,Ann,,,",
        "t,,,,,Ann,,,look again",
        "t,,,A,,Ben,,,",
    ]
    file = tmp_path / "grades.csv"
    file.write_text(head + "".join(f"{row}\r\n" for row in rows), newline="")
    labels = read_labels(file)
    assert labels["id"].tolist() == list("pqrstt")
    assert labels["label"].tolist() == [1, 1, 0, 0, -1, 1]
    # Who gave no grade says nothing against who did, in either order.
    for order in (labels, labels[::-1]):
        found = match(Table({"id": list("tsrqp")}), order)
        assert found.labels.tolist() == [1, 0, 0, 1, 1]
        assert np.asarray(order["label"])[found.rows].tolist() == [1, 0, 0, 1, 1]
    file.write_text(head + "p,,,A,,Ann,,,\np,,,X,,Ben,,,\n")
    with pytest.raises(UsageError, match="id p has two labels"):
        match(Table({"id": ["p"]}), read_labels(file))
    file.write_text(head + "p,,,2.3,,Ann,,,\n")
    with pytest.raises(UsageError, match="column grade of .* holds '2.3'"):
        read_labels(file)
    file.write_text("id,label,grade\np,0,A\n")  # a label stands above a grade
    assert read_labels(file)["label"].tolist() == [0]


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
    found = match(Table({"id": mine}), Table({"id": theirs, "label": [1, 0, -1]}))
    assert found.labels.tolist() == [-1, 1, 0]
    assert (found.without_label, found.without_prediction) == (0, 0)


def test_what_finds_no_partner_is_counted() -> None:
    labels = Table({"id": ["a", "b", "x", "y"], "label": [1, 0, 1, 1]})
    found = match(Table({"id": ["b", "c", "a"]}), labels)
    assert found.labels.tolist() == [0, -1, 1] and found.rows.tolist() == [1, -1, 0]
    assert (found.without_label, found.without_prediction) == (1, 2)


def test_labels_by_path() -> None:
    labels = Table({"path": ["d/a.png", "d/b.png"], "label": [1, 0]})
    found = match(Table({"path": ["d/b.png", "d/a.png"]}), labels)
    assert found.labels.tolist() == [0, 1]
    with pytest.raises(UsageError, match="know no paths"):
        match(Table({"id": [1, 2]}), labels)


def test_labels_of_other_data_or_in_conflict_are_refused() -> None:
    with pytest.raises(UsageError, match="no id of the labels"):
        match(Table({"id": [1, 2]}), Table({"id": ["p", "q"], "label": [0, 1]}))
    with pytest.raises(UsageError, match="id 1 has two labels"):
        match(Table({"id": [1, 2]}), Table({"id": [1, 1], "label": [0, 1]}))
    twice = match(Table({"id": [1, 2]}), Table({"id": [1, 1], "label": [1, 1]}))
    assert twice.labels.tolist() == [1, -1]


def test_paths_of_labels_are_those_of_a_run(tmp_path: Path) -> None:
    """Relative ones are below the folder of the file, as in the catalogue that was scored."""
    (tmp_path / "a.csv").write_text(f"path,label\nx.png,1\n{tmp_path}/y.png,0\n,1\n")
    labels = read_labels(tmp_path / "a.csv")
    assert labels["path"].tolist() == [f"{tmp_path}/x.png", f"{tmp_path}/y.png", ""]
    found = match(Table({"path": [f"{tmp_path}/y.png", f"{tmp_path}/x.png"]}), labels)
    assert found.labels.tolist() == [0, 1]
