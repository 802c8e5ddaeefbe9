"""Catalogues keep what they hold: identifiers to the last digit, text as it is."""

import bz2
import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.table import Column, MaskedColumn, Table

from lensjax.data.formats.fits import First, first_of
from lensjax.data.formats.tables import (
    column_texts,
    label_column,
    label_of,
    plain,
    read_table,
    standardise,
)
from lensjax.errors import UsageError

LARGE = 2**53 + 1


def csv(tmp_path, text):
    (tmp_path / "a.csv").write_bytes(text.encode())
    return read_table(tmp_path / "a.csv")


def test_identifiers_stay_untouched(tmp_path):
    assert csv(tmp_path, f"id,path\n{LARGE},a\n-3,b\n")["id"].tolist() == [LARGE, -3]
    assert csv(tmp_path, "id,path\n007,a\n8,b\n")["id"].tolist() == ["007", "8"]
    assert csv(tmp_path, 'id,path\n"J12, α\nβ",a\n1e5,b\n')["id"].tolist() == ["J12, α\nβ", "1e5"]
    assert csv(tmp_path, "id,path\n1.50,a\n2.0,b\n")["id"].tolist() == ["1.50", "2.0"]
    assert csv(tmp_path, f"id,path\n{2**64},a\n")["id"].tolist() == [str(2**64)]


def test_numbers_text_and_gaps_of_a_csv(tmp_path):
    table = csv(tmp_path, "\ufeffn,x,s,tile\r\n1,1.5,a,0012\r\n,,,0013\r\n3,-2e3,NA,0014\r\n")
    assert table.colnames == ["n", "x", "s", "tile"]
    assert table["n"].dtype == np.int64 and table["n"].mask.tolist() == [False, True, False]
    np.testing.assert_array_equal(table["x"], [1.5, np.nan, -2000.0])
    assert table["s"][2] == "NA" and table["s"].mask[1]
    assert table["tile"].tolist() == ["0012", "0013", "0014"]


def test_parquet_keeps_types(tmp_path):
    columns = {
        "id": pa.array([LARGE, None, 3]),
        "name": pa.array(["a", None, "γ"]).dictionary_encode(),
        "flag": pa.array([True, False, True]),
        "mag": pa.array([20.5, None, 22.0], pa.float32()),
        "fluxes": pa.array([[1.0], [2.0, 3.0], []]),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    table = read_table(tmp_path / "a.parquet")
    assert table["id"][0] == LARGE and table["id"].mask.tolist() == [False, True, False]
    assert table["name"][2] == "γ" and table["flag"].tolist() == [True, False, True]
    assert table["mag"].dtype == np.float32 and np.isnan(table["mag"][1])
    assert len(table["fluxes"][1]) == 2


def test_fits_table_keeps_types(tmp_path):
    made = Table({"ID": [LARGE, 5], "filename": ["a.fits", "b.fits"], "v": np.ones((2, 3))})
    made.write(tmp_path / "a.fits")
    table = read_table(tmp_path / "a.fits")
    assert table["ID"].tolist() == [LARGE, 5] and table["v"].shape == (2, 3)
    assert table["filename"].tolist() == ["a.fits", "b.fits"]
    assert first_of(tmp_path / "a.fits").is_table and first_of(tmp_path / "none.fits") == First()


def test_votable_keeps_types_and_gaps(tmp_path):
    written = Table(
        {
            "id": 2**60 + np.arange(3),
            "path": ["a,b.fits", "ä.fits", 'c".fits'],
            "grade": MaskedColumn([1, 2, 3], mask=[0, 1, 0]),
        }
    )
    written.write(tmp_path / "list.vot", format="votable")
    table = read_table(tmp_path / "list.vot")
    assert table["id"].tolist() == [2**60, 2**60 + 1, 2**60 + 2]
    assert table["path"].tolist() == ["a,b.fits", "ä.fits", 'c".fits']
    assert table["grade"].tolist() == [1, None, 3]
    (tmp_path / "torn.xml").write_bytes((tmp_path / "list.vot").read_bytes()[:300])
    with pytest.raises(UsageError, match="cannot be read as a table"):
        read_table(tmp_path / "torn.xml")


def test_known_columns_are_found_in_any_case_and_checked():
    table = Table({"FilePath": ["a"], "RA": ["10.5"], "Dec": [-3], "ID": ["x"], "Label": ["Lens"]})
    table["filename"], table["path_length"] = ["n"], [1]
    result = standardise(table, "cat")
    assert set(result.colnames) == {"path", "ra", "dec", "id", "label", "filename", "path_length"}
    assert (result["ra"][0], result["dec"][0], result["label"][0]) == (10.5, -3.0, 1)
    assert table.colnames[0] == "FilePath"


def test_missing_positions_are_nan():
    table = Table({"ra": MaskedColumn([1.0, 2.0], mask=[False, True]), "dec": ["", "4"]})
    result = standardise(table, "cat")
    np.testing.assert_array_equal(result["ra"], [1.0, np.nan])
    np.testing.assert_array_equal(result["dec"], [np.nan, 4.0])
    with pytest.raises(UsageError, match="ra of cat is not in decimal degrees"):
        standardise(Table({"ra": ["12:34:56"]}), "cat")


@pytest.mark.parametrize(
    ("text", "label"),
    [
        *[(text, 1) for text in (1, 1.0, True, "1", "Lens", "lenses", "POSITIVE", " true ")],
        *[(text, 0) for text in (0, "0.0", False, "nonlens", "non-lens", "Non_Lenses", "negative")],
        *[(text, -1) for text in ("", -1, "-99", float("nan"), "unknown", None)],
        *[(text, None) for text in ("A", 2, 0.5, "galaxies", "candidates_2024")],
    ],
)
def test_labels_by_their_text(text, label):
    assert label_of(text) == label


def test_columns_are_found_by_what_surveys_call_them():
    euclid = Table({"OBJECT_ID": [2**60 + 1], "RIGHT_ASCENSION": [1.5], "DECLINATION": [-2.5]})
    found = standardise(euclid, "cat")
    assert found.colnames == ["id", "ra", "dec"] and found["id"].tolist() == [2**60 + 1]
    both = standardise(Table({"object_id": [1], "Id": ["a"], "RAJ2000": [3.0], "ra": [4.0]}), "cat")
    assert both["id"].tolist() == ["a"] and both["object_id"].tolist() == [1]
    assert both["ra"].tolist() == [4.0] and both["RAJ2000"].tolist() == [3.0]


def test_label_columns():
    labels = label_column(MaskedColumn([1, 0, 1], mask=[False, False, True]), "cat")
    assert labels.tolist() == [1, 0, -1] and labels.dtype == np.int64
    with pytest.raises(UsageError, match="label of cat holds 'B'.*another column name"):
        label_column(["lens", "B"], "cat")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b""),
        ("a.csv", b"path,id\na\n"),
        ("a.csv", "path\n\xe9\n".encode("latin-1")),
        ("a.csv", b"path,path\na,b\n"),
        ("a.parquet", b"PAR1 and no more"),
        ("a.fits", b"SIMPLE"),
    ],
)
def test_files_that_are_no_tables(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=name) as caught:
        read_table(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "a.vot", "a.fits", "a"])
def test_a_table_that_is_not_there_is_missed_in_these_words(tmp_path, name):
    with pytest.raises(UsageError, match=f"^{tmp_path / name}: no such file$"):
        read_table(tmp_path / name)


@pytest.mark.parametrize("text", ["", ".", "+", "e5"])
def test_text_without_a_digit_is_no_number(tmp_path, text):
    (tmp_path / "a.csv").write_text(f'path,artefact\na.fits,"{text}"\nb.fits,"{text}"\n')
    assert read_table(tmp_path / "a.csv")["artefact"].tolist() == [text, text]


def test_numbers_after_many_gaps_are_numbers(tmp_path):
    (tmp_path / "a.csv").write_text("id,z\n" + "1,\n" * 200 + "2,0.5\n")
    column = read_table(tmp_path / "a.csv")["z"]
    assert column.dtype == np.float64 and np.isnan(column[0]) and column[200] == 0.5


@pytest.mark.parametrize("kind", ["U", "S", "O"])
def test_control_characters_are_replaced(kind):
    """NUL ends a text of NumPy and of FITS, but not one of CSV and Parquet."""
    given = ["a\0b", "tab\t, line\n", "\x1b[31mred", "del\x7f", "", "plain ü"]
    values = np.array([text.encode() if kind == "S" else text for text in given], kind)
    cleaned = ["a\ufffdb", "tab\t, line\n", "\ufffd[31mred", "del\ufffd", "", "plain ü"]
    assert plain(Column(values)).tolist() == cleaned
    ends = plain(Column(np.array(["end\0", "x"], object)))
    assert ends.tolist() == ["end\ufffd", "x"]
    untouched = np.array(["a", "bc"])
    assert np.shares_memory(np.asarray(plain(Column(untouched, copy=False))), untouched)


def test_texts_with_gaps_stay_so_in_the_results(tmp_path):
    table = csv(tmp_path, "id,note,none\na,x,\nb,,\n,z,\n")
    for name, expected in {"id": ["a", "b", None], "note": ["x", None, "z"]}.items():
        assert plain(table[name]).tolist() == expected and plain(table[name]).dtype.kind == "U"
    assert plain(table["none"]).tolist() == [None] * 3


ROWS = [("id", "ra", "path"), ("7", "1.5", "a b.png"), ("8", "", "c,d;e.png")]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("comments", ["", "# by hand, in May; really\n#\n\n"])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "csv.gz", "csv.bz2"])
def test_tables_of_text_of_any_kind(tmp_path, delimiter, comments, suffix):
    lines = [delimiter.join(f'"{cell}"' if "." in cell else cell for cell in row) for row in ROWS]
    text = (comments + "\n".join(lines) + "\n").encode()
    compress = {"gz": gzip.compress, "bz2": bz2.compress}.get(suffix[4:], bytes)
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(compress(text))
    table = read_table(path)
    assert table["id"].tolist() == [7, 8] and table.colnames == ["id", "ra", "path"]
    assert table["path"].tolist() == ["a b.png", "c,d;e.png"]
    assert list(column_texts(path, "path")) == ["a b.png", "c,d;e.png"]
    assert table["ra"][0] == 1.5 and np.isnan(table["ra"][1])


@pytest.mark.parametrize("delimiter", [" ", ","])
def test_enhanced_csv_of_astropy(tmp_path, delimiter):
    made = Table({"id": [LARGE, 5], "path": ["a b.fits", "c.fits"], "mag": [20.5, 21.0]})
    made["mag"].unit, made.meta["comments"] = "mag", ["one", "two, three"]
    made.write(tmp_path / "a.ecsv", delimiter=delimiter)
    table = read_table(tmp_path / "a.ecsv")
    for name in made.colnames:
        assert table[name].tolist() == made[name].tolist()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"id,path\n1,a\n2,b,c\n", "Expected 2 columns, got 3"),
        ("a.csv", b"id;path\n1;\xff\n", "UTF8"),
        ("a.csv", b'id,path\n1,"a\n2,b\n', "cannot be read as a table"),
        ("a.csv", b"# nothing but this\n", "cannot be read as a table"),
        ("a.csv.gz", b"id,path\n1,a\n", "cannot be read as a table"),
        (
            "a.csv.gz",
            gzip.compress(b"id,path\n" + b"1,a\n" * 5000, mtime=0)[:60],
            "cannot be read as a table",
        ),
        ("a.tsv", bytes(100), "cannot be read as a table"),
    ],
)
def test_damaged_tables_of_text_are_refused_in_one_line(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=words) as caught:
        read_table(tmp_path / name)
    assert "\n" not in str(caught.value) and name in str(caught.value)
