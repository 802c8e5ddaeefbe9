"""The output files hold what was scored, whole, in every format, and come back as they went in."""

import csv
import errno
import json
import math
import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet
import pytest
from astropy.io import fits
from astropy.io.votable import ucd
from astropy.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st

from lensjax import results
from lensjax.columns import CARRIED, COLUMNS, OF_MEMBERS, TRUST
from lensjax.data.formats import fits_table
from lensjax.errors import LensjaxError
from lensjax.predictions import Predictions, read_probabilities
from tests.scored import scored


class Run(NamedTuple):
    catalogue: Table
    predictions: Predictions


TEXTS = ["a,b", 'say "x"', "two\nlines", "ünïcødé ☃", "plain", "=1+2", "<script>"]


def run(size: int = 12, unreadable: tuple[int, ...] = (3, 7), **columns: object) -> Run:
    """A small catalogue, with these columns besides, and its scores."""
    flag = np.where(np.arange(size) == 2, "no data in r", "")
    catalogue = Table(
        {
            "id": 2**53 + 1 + 2 * np.arange(size),
            "path": [f"f/{row}.fits" for row in range(size)],
        }
        | columns
    )
    return Run(catalogue, scored(size, unreadable, flag=flag))


def write(folder: Path, job: Run) -> None:
    results.write_outputs(folder, *job)


def write_candidates(folder: Path, table: Table) -> None:
    for name, write_form in results.CANDIDATES.items():
        write_form(folder / name, table)


def from_parquet(folder: Path) -> dict[str, list]:
    return pyarrow.parquet.read_table(folder / "candidates.parquet").to_pydict()


def from_fits(folder: Path) -> Table:
    table = Table.read(folder / "candidates.fits")
    table.convert_bytestring_to_unicode()
    return table


def test_columns_come_in_the_order_of_the_contract() -> None:
    table = results.candidate_table(*run(label=np.zeros(12), group=["a"] * 12))
    assert table.colnames == [
        "rank", "id", "ra", "dec", "probability", "logit", "logit_std", "total_entropy",
        "aleatoric_entropy", "mutual_information", "flag",
        "resnet18.0_probability", "vit_b16_probability", "_healpix_29", "path", "label", "group",
    ]  # fmt: skip


def test_many_candidates_are_in_several_files_which_together_are_the_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = run()
    write(tmp_path / "one", job)
    monkeypatch.setattr(results, "PARTITION_ROWS", 4)
    write(tmp_path / "several", job)
    for name, read in (("candidates.parquet", Table.read), ("candidates.csv", Table.read)):
        stem, _, form = name.partition(".")
        names = [name, f"{stem}-2.{form}", f"{stem}-3.{form}"]
        parts = [read(tmp_path / "several" / each) for each in names]
        assert [len(part) for part in parts] == [4, 4, 2]
        whole = read(tmp_path / "one" / name)
        for column in whole.colnames:
            together = [str(value) for part in parts for value in np.ma.filled(part[column], 0)]
            assert together == [str(value) for value in np.ma.filled(whole[column], 0)]
    assert (tmp_path / "several" / "candidates-3.fits").exists()
    (said,) = results.notes(results.candidate_table(*job), 10)
    assert "the best 4 of 10 candidates" in said and "candidates-2.* to candidates-3.*" in said
    results.clear(tmp_path / "several")
    assert list((tmp_path / "several").iterdir()) == []


def test_best_first_and_every_readable_row_once() -> None:
    job = run()
    table = results.candidate_table(*job)
    assert list(table["rank"]) == list(range(1, 11))
    assert (np.diff(table["probability"]) <= 0).all()
    assert set(table["id"]) == set(job.catalogue["id"][job.predictions.readable])
    row = {id_: k for k, id_ in enumerate(job.catalogue["id"])}
    for line in table:
        probability = job.predictions.scores.member_probs[1, row[line["id"]]]
        assert line["vit_b16_probability"] == probability
        assert line["path"] == job.catalogue["path"][row[line["id"]]]


def test_clashing_columns_are_renamed_also_where_only_the_case_differs() -> None:
    job = run(probability=np.arange(12.0), RANK=np.arange(12), logit_input=np.arange(12))
    job.catalogue["logit"] = np.arange(12.0)
    table = results.candidate_table(*job)
    assert table.colnames[-5:] == [
        "path",
        "probability_input",
        "RANK_input",
        "logit_input",
        "logit_input_input",
    ]
    assert (table["probability"].dtype, table["probability_input"].dtype) == ("f4", "f8")


def test_the_three_files_hold_the_same_table(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    texts = np.array((TEXTS * 2)[:12])
    gaps = rng.random(12) < 0.4
    job = run(
        text=texts,
        redshift=np.where(gaps, np.nan, rng.random(12)).astype(np.float32),
        flag=rng.random(12) < 0.5,
        small=rng.integers(0, 255, 12).astype(np.uint8),
        big_endian=rng.random(12).astype(">f4"),
        half=rng.random(12).astype(np.float16),
        tiny=rng.integers(-9, 9, 12).astype(np.int8),
        text_gaps=np.ma.masked_array(texts, gaps),
        number_gaps=np.ma.masked_array(np.full(12, 999999), gaps),
        float_gaps=np.ma.masked_array(rng.random(12), gaps),
        flag_gaps=np.ma.masked_array(np.ones(12, bool), gaps),
        byte_gaps=np.ma.masked_array(np.zeros(12, np.uint8), gaps),
        none=np.array([None if gap else "x" for gap in gaps], object),
        nothing=np.array([None] * 12, object),
        raw=np.char.encode(texts, "utf-8"),
    )
    table = results.candidate_table(*job)
    write_candidates(tmp_path, table)
    parquet, binary = from_parquet(tmp_path), from_fits(tmp_path)
    text = Table.read(tmp_path / "candidates.csv", format="ascii.csv")
    assert list(parquet) == text.colnames == binary.colnames == table.colnames
    for name in table.colnames:
        kind = table[name].dtype.kind
        blank = {"f": math.nan, "U": ""}.get(kind)  # what a gap is where the format has no mask
        for source in (table[name], parquet[name], text[name], binary[name]):
            values = source if isinstance(source, list) else np.ma.asarray(source).tolist()
            values = [blank if value is None else value for value in values]
            if source is table[name]:
                expected = np.array(values, "f8" if kind == "f" else object)
            found = np.array(values, expected.dtype)
            np.testing.assert_array_equal(found, expected, err_msg=name)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.floats(width=32), min_size=2, max_size=8), st.data())
def test_any_float_and_any_id_survive(tmp_path_factory, values: list[float], data) -> None:
    folder = tmp_path_factory.mktemp("any")
    ids = data.draw(
        st.lists(st.integers(-(2**63) + 1, 2**63 - 1), min_size=len(values), max_size=len(values))
    )
    job = run(size=len(values), unreadable=())
    job.catalogue["id"] = np.array(ids, np.int64)
    job.catalogue["carried"] = np.array(values, np.float32)
    table = results.candidate_table(*job)
    write_candidates(folder, table)
    text = Table.read(folder / "candidates.csv", format="ascii.csv")
    for source in (text, from_fits(folder), Table(from_parquet(folder))):
        np.testing.assert_array_equal(source["id"], table["id"])
        found = np.ma.filled(np.ma.asarray(source["carried"], float), np.nan)
        np.testing.assert_array_equal(found.astype(np.float32), np.asarray(table["carried"]))
        np.testing.assert_array_equal(source["ra"], table["ra"])


def test_vectors_are_kept(tmp_path: Path) -> None:
    shapes, flux = np.arange(48).reshape(12, 2, 2), np.arange(36.0).reshape(12, 3)
    table = results.candidate_table(*run(flux=flux, shapes=shapes))
    write_candidates(tmp_path, table)
    np.testing.assert_array_equal(from_fits(tmp_path)["shapes"], table["shapes"])
    np.testing.assert_array_equal(np.array(from_parquet(tmp_path)["shapes"]), table["shapes"])
    text = Table.read(tmp_path / "candidates.csv", format="ascii.csv")
    assert json.loads(text["flux"][0]) == table["flux"][0].tolist()


@pytest.mark.parametrize("size", [1, 2])
def test_few_or_no_rows(tmp_path: Path, size: int) -> None:
    job = run(size=size, unreadable=(0,))
    table = results.candidate_table(*job)
    write(tmp_path, job)
    assert len(table) == size - 1
    assert len(from_parquet(tmp_path)["id"]) == len(from_fits(tmp_path)) == size - 1
    lines = (tmp_path / "candidates.csv").read_text().splitlines()
    assert len(lines) == size and lines[0].startswith("rank,id,ra,dec,probability")


def test_rejects_are_listed_with_their_reason(tmp_path: Path) -> None:
    job = run()
    job.catalogue["path"][3] = '"b",.fits'
    job.catalogue["path"][7] = "f\r.fits"
    write(tmp_path, job)
    table = Table.read(tmp_path / "rejects.csv", format="ascii.csv")
    assert table.colnames == ["path", "id", "reason"]
    assert table["id"].tolist() == job.catalogue["id"][[3, 7]].tolist()
    assert table["path"].tolist()[0] == '"b",.fits'
    assert b'\n"f\r.fits",' in (tmp_path / "rejects.csv").read_bytes()
    assert set(table["reason"]) == {"truncated, or empty"}


def test_rejects_without_any_are_a_header(tmp_path: Path) -> None:
    job = run(unreadable=())
    job.catalogue.remove_column("path")
    write(tmp_path, job)
    assert (tmp_path / "rejects.csv").read_text() == "path,id,reason\n"


def test_run_record_is_strict_json(tmp_path: Path) -> None:
    record = {
        "a": math.nan, "b": np.float32(0.5), "c": [np.int64(3), math.inf], "d": Path("x"),
        "e": np.array([1.0, np.nan]), "f": True, "g": None, 7: {"h": (math.nan,)},
    }  # fmt: skip
    results.write_json(Path(tmp_path) / "run.json", record)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    found = json.loads((tmp_path / "run.json").read_text(), parse_constant=refuse)
    assert found == {
        "a": None, "b": 0.5, "c": [3, None], "d": "x", "e": [1.0, None], "f": True, "g": None,
        "7": {"h": [None]},
    }  # fmt: skip


def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path: Path, monkeypatch) -> None:
    job = run()
    write(tmp_path, job)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    table = results.candidate_table(*run(size=5, unreadable=()))
    writers = (
        lambda: write_candidates(tmp_path, table),
        lambda: results.write_predictions(tmp_path, *job),
        lambda: results.write_json(Path(tmp_path) / "run.json", {}),
    )
    for writer in writers:
        with pytest.raises(LensjaxError, match="no room left in") as caught:
            writer()
        assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LensjaxError, match="cannot write"):
        results.write_json(tmp_path / "file" / "run.json", {})


def test_all_that_is_written_is_named_once(tmp_path: Path) -> None:
    """A new run removes by name what a former one left."""
    write(tmp_path, run())
    written = {path.name for path in tmp_path.iterdir()}
    assert len(written) == 7 and written <= set(results.OUTPUTS)
    assert len(set(results.OUTPUTS)) == len(results.OUTPUTS)


ODD = [
    "x" * 5000,
    "X" * 5000,
    "größe ☃",
    "two\nlines",
    "a\rb",
    "it's",
    " ",
    "Flux",
    "flux",
    "FLUX",
    "\udcff",
]


def test_a_catalogue_of_any_number_of_columns_and_any_names_is_written_whole(
    tmp_path: Path,
) -> None:
    odd = {name: [f"{name[:9]}{k}" for k in range(3)] for name in ODD}
    many = {f"c{number}": np.arange(3) + number for number in range(1200)}
    job = run(size=3, unreadable=(1,), **odd, **many)
    table = results.candidate_table(*job)
    write(tmp_path, job)
    assert {path.name for path in tmp_path.iterdir()} <= set(results.OUTPUTS)
    assert [len(line) for line in from_csv(tmp_path)] == [len(table.colnames)] * 3
    assert from_csv(tmp_path)[0] == list(from_parquet(tmp_path)) == table.colnames
    assert not any(name.endswith("_input") for name in table.colnames)
    header = fits.getheader(tmp_path / "candidates.fits", 1)
    assert header["TFIELDS"] == 999
    called = [header[f"TTYPE{number}"] for number in range(1, 1000)]
    assert called[:15] == table.colnames[:15] and len(set(map(str.lower, called))) == 999
    assert called[15:25] == [
        "x" * 68, f"{'X' * 66}_2", "gro_e _", "two_lines", "a_b", "it_s", "column", "Flux",
        "flux_2", "FLUX_3",
    ]  # fmt: skip
    for original, kept in zip(table.colnames, from_fits(tmp_path).columns.values(), strict=False):
        # An empty text is read back as a gap.
        assert [v or "" for v in kept] == [v or "" for v in table[original]]
    assert header["TCOMM18"] == "column gr\\xf6\\xdfe \\u2603"
    first, second = results.notes(table, len(table))
    assert "candidates.fits has the first 999 of 1,226 columns" in first
    assert "candidates.parquet and candidates.csv" in first and "9 of the columns" in second
    assert results.notes(results.candidate_table(*run()), 10) == []


def from_csv(folder: Path) -> list[list[str]]:
    with open(folder / "candidates.csv", newline="") as file:
        return list(csv.reader(file))


def test_one_form_that_fails_loses_no_other(tmp_path: Path, monkeypatch) -> None:
    def fail(*arguments: object) -> None:
        raise ValueError("no such\ntable")

    monkeypatch.setattr(fits_table, "hdu", fail)
    with pytest.raises(ValueError, match="no such"):
        write(tmp_path, run())
    assert {path.name for path in tmp_path.iterdir()} == {
        *("predictions.npz", "rejects.csv", "candidates.parquet", "candidates.csv"),
        *("candidates.vot", "candidates.reg"),
    }
    (tmp_path / "second").mkdir()
    monkeypatch.setattr(results, "write_predictions", fail)
    with pytest.raises(LensjaxError, match="no such table; not written either: candidates.fits"):
        write(tmp_path / "second", run())
    assert (tmp_path / "second" / "candidates.csv").exists()


def test_columns_say_what_they_mean_in_fits_and_parquet(tmp_path: Path) -> None:
    job = run(label=np.zeros(12, int), redshift=np.zeros(12))
    job.catalogue["redshift"].unit, job.catalogue["redshift"].description = (
        "km / s",
        "of lens",
    )
    write(tmp_path, job)
    header = fits.getheader(tmp_path / "candidates.fits", 1)
    cards = {
        header[f"TTYPE{k}"]: tuple(
            header.get(f"{key}{k}", "") for key in ("TUNIT", "TUCD", "TCOMM")
        )
        for k in range(1, header["TFIELDS"] + 1)
    }
    members = {f"{name}_probability": OF_MEMBERS for name in job.predictions.members}
    expected = COLUMNS | members | CARRIED | {"redshift": ("km s-1", "", "of lens")}
    assert cards == {name: tuple(meaning) for name, meaning in expected.items()}
    assert cards["ra"][:2] == ("deg", "pos.eq.ra;meta.main")

    table = Table.read(tmp_path / "candidates.parquet")
    schema = pyarrow.parquet.read_schema(tmp_path / "candidates.parquet")
    for name, (unit, word, description) in COLUMNS.items():
        assert str(table[name].unit or "") == unit and table[name].description == description
        assert table[name].meta.get("ucd", "") == word
        fields = {"unit": unit, "ucd": word, "description": description}
        found = schema.field(name).metadata
        assert {key: found.get(key.encode(), b"").decode() for key in fields} == fields
    assert (str(table["redshift"].unit), table["redshift"].description) == ("km / s", "of lens")


def test_without_any_position_there_are_no_cells_and_no_regions(tmp_path: Path) -> None:
    job = run(size=3, unreadable=())
    job.predictions.ra[:] = np.nan
    write(tmp_path, job)
    assert "_healpix_29" not in results.candidate_table(*job).colnames
    assert not (tmp_path / "candidates.reg").exists()


def test_regions_are_at_the_best_candidates(tmp_path: Path) -> None:
    job = run(size=300, unreadable=())
    job.predictions.dec[5] = np.nan
    write(tmp_path, job)
    first, frame, *points = (tmp_path / "candidates.reg").read_text().splitlines()
    assert first.startswith("# Region file format: DS9") and frame == "icrs"
    table = results.candidate_table(*job)[:200]
    table = table[~np.ma.getmaskarray(np.ma.asarray(table["dec"]))]
    form = r"point\((.+),(.+)\) # point=circle text=\{(\d+): (.+)\}"
    found = np.array([re.fullmatch(form, point).groups() for point in points], float).T
    columns = np.ma.array([table[name] for name in ("ra", "dec", "rank", "probability")])
    np.testing.assert_allclose(found, columns, atol=1e-4)


def test_words_for_quantities_are_those_of_the_ivoa() -> None:
    for name, meaning in (COLUMNS | TRUST | CARRIED | {"member": OF_MEMBERS}).items():
        assert meaning.description and meaning.ucd, name
        assert ucd.check_ucd(meaning.ucd, check_controlled_vocabulary=True), name


def test_the_documentation_has_the_same_meanings() -> None:
    text = (Path(__file__).parents[1] / "docs" / "usage.md").read_text()
    for name, meaning in (COLUMNS | {"<member>_probability": OF_MEMBERS} | CARRIED).items():
        assert f"| `{name}` | {meaning.unit} | {meaning.description} |" in text


def test_a_position_that_is_not_known_is_empty(tmp_path: Path) -> None:
    job = run(size=3, unreadable=())
    job.predictions.ra[1] = job.predictions.dec[1] = np.nan
    job.catalogue["flux"] = [1.5, np.nan, 2.5]
    write(tmp_path, job)
    lines = Table.read(tmp_path / "candidates.csv", format="ascii.csv")
    row = int(np.flatnonzero(lines["id"] == job.catalogue["id"][1])[0])
    columns, *rows = from_csv(tmp_path)
    assert [rows[row][columns.index(name)] for name in ("ra", "dec", "flux")] == ["", "", ""]
    assert "nan" not in (tmp_path / "candidates.csv").read_text().lower()
    assert from_parquet(tmp_path)["ra"][row] is None
    assert from_fits(tmp_path)["ra"].mask.tolist() == [k == row for k in range(3)]


def test_names_that_are_no_utf8_are_written_in_every_form(tmp_path: Path) -> None:
    """As the names of files come that were written under another encoding."""
    job = run(size=3, unreadable=(2,))
    job.catalogue["path"] = [os.fsdecode(b"caf\xe9.fits")] * 3
    job.catalogue["id"] = [os.fsdecode(b"caf\xe9%d" % k) for k in range(3)]
    write(tmp_path, job)
    assert sorted(from_parquet(tmp_path)["id"]) == ["caf\ufffd0", "caf\ufffd1"]
    assert sorted(from_fits(tmp_path)["path"]) == ["caf\ufffd.fits"] * 2
    assert (
        (tmp_path / "rejects.csv").read_text().splitlines()[1].startswith('"caf\ufffd.fits","caf')
    )
    assert read_probabilities(tmp_path)[0]["id"][0] == "caf\ufffd0"


def test_what_a_run_and_its_evaluation_left_goes_and_nothing_else(tmp_path):
    for name in (*results.OUTPUTS, "notes.txt", "benchmark.json", "my-roc.png"):
        (tmp_path / name).write_text("before")
    results.clear(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"notes.txt", "benchmark.json", "my-roc.png"}
    assert {"roc.png", "metrics.json", "mosaic.png"} <= set(results.OUTPUTS)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.zeros(3, [("a", "i4"), ("b", "f4")]), ["(0, 0.0)"] * 2),
        (np.ma.masked_all(3, [("a", "i4"), ("b", "U2")]), None),
        (np.ones(3, np.longdouble) / 4, [0.25] * 2),
        (np.zeros((3, 0)), [[], []]),
        (np.zeros((3, 2, 0), int), [[], []]),
        (np.ma.masked_array(np.full(3, 2**64 - 1, np.uint64), [0, 1, 0]), [str(2**64 - 1), None]),
        (np.array(["2020-01-01"] * 3, "M8[s]"), ["2020-01-01T00:00:00"] * 2),
        (np.array([[1, 2], [3], None], object), None),
        (np.array([1 + 2j] * 3), ["(1+2j)"] * 2),
        (np.array([["a", "é"]] * 3), [["a", "é"]] * 2),
    ],
)
def test_columns_of_any_type_are_written(tmp_path: Path, values: np.ndarray, expected) -> None:
    job = run(size=3, unreadable=(0,), values=values)
    write(tmp_path, job)
    found = from_fits(tmp_path)["values"].tolist()
    if expected is not None:
        assert sorted(([] if np.size(v) == 0 else v for v in found), key=str) == expected
    assert len(from_parquet(tmp_path)["values"]) == 2 and len(from_csv(tmp_path)) == 3
