"""Any catalogue of any files: each row comes out once, with its id, read or with a reason."""

import csv
import tracemalloc

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lensjax.data.catalog import open_source
from lensjax.data.pipeline import batches
from tests.data.wanted import preprocessing

PREPROCESSING = preprocessing(8, None, ("g",))
TYPES = ("f2", ">f4", "f8", "u1", ">i2", "i4")
READABLE = {f"{kind.strip('>')}.fits": kind for kind in TYPES if kind != "f2"}
BROKEN = ("none.fits", "empty.fits", "folder.fits", "text.png", "cut.fits", "words.npy", "")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Readable cutouts of mixed shapes, types and byte orders, and broken ones."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    for number, (name, kind) in enumerate(READABLE.items()):
        pixels = 50 + 40 * rng.random((9 + number, 12 - number))
        fits.writeto(folder / name, pixels.astype(kind))
    np.save(folder / "f2.npy", rng.normal(size=(9, 9)).astype("f2"))
    Image.fromarray(rng.integers(0, 255, (10, 10), np.uint8)).save(folder / 'o\'dd, "name".png')
    (folder / "empty.fits").touch()
    (folder / "folder.fits").mkdir()
    (folder / "text.png").write_text("no picture")
    (folder / "cut.fits").write_bytes((folder / "f8.fits").read_bytes()[:3000])
    np.save(folder / "words.npy", np.array([["a"]]))
    return folder


GOOD = (*READABLE, "f2.npy", 'o\'dd, "name".png')
identifiers = st.one_of(
    st.integers(2**53, 2**63 - 1).map(str),
    st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8),
    st.sampled_from(["a,b", 'a"b', "a\nb", "äö", "same", "same"]),
)
rows = st.lists(
    st.tuples(
        st.sampled_from(GOOD + BROKEN),
        identifiers,
        st.sampled_from(["0", "1", "", "nan", "-1", "lens", "nonlens"]),
    ),
    min_size=1,
    max_size=11,
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows)
def test_counts_add_up_and_identifiers_stay(files, catalogue):
    with open(files / "list.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("path", "id", "label"), *catalogue])
    source = open_source(files / "list.csv", needed=("g",), bands="g")
    made = list(batches(source, [PREPROCESSING], how="resize", batch_size=4))
    assert len(source) == sum(batch.count for batch in made) == len(catalogue)
    assert [str(name) for name in source.table["id"]] == [name for _, name, _ in catalogue]
    assert set(source.table["label"].tolist()) <= {-1, 0, 1}
    found = np.concatenate([batch.rows[: batch.count] for batch in made])
    np.testing.assert_array_equal(found, np.arange(len(catalogue)))
    readable = np.concatenate([batch.readable[: batch.count] for batch in made])
    reasons = [reason for batch in made for reason in batch.reasons[: batch.count]]
    for (path, *_), is_readable, reason in zip(catalogue, readable, reasons, strict=True):
        assert is_readable == (path in GOOD) == (reason == ""), (path, reason)
        assert "\n" not in reason


def test_the_memory_that_reading_takes_stays_the_same(files):
    with open(files / "long.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path",), *((name,) for name in GOOD * 30)])
    source = open_source(files / "long.csv", needed=("g",), bands="g")
    read = batches(source, [PREPROCESSING], how="resize", batch_size=8)
    half = len(source) // 16
    next(read)
    tracemalloc.start()
    try:
        peaks = []
        for _ in range(2):
            tracemalloc.reset_peak()
            for _ in range(half - 1):
                next(read)
            peaks.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] + 2**16
