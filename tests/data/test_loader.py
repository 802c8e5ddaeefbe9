"""Batches: every row once, in order, whole, and the same for any number of threads."""

import dataclasses

import numpy as np
import pytest
from astropy.io import fits

from lensjax.data.catalog import open_source
from lensjax.data.loader import batches, shuffled
from lensjax.data.preprocess import Preparation, fit, level_and_scale
from lensjax.errors import UsageError

rng = np.random.default_rng(3)


def preparation(size, bands=("g", "r"), scale=0.2):
    return Preparation(bands, size, scale, "asinh", 3.0, (0.0,) * len(bands), (1.0,) * len(bands))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eleven cutouts of two bands, of which two cannot be read; ids from the file names."""
    path = tmp_path_factory.mktemp("folder")
    for row in range(11):
        cube = np.random.default_rng(row).normal(size=(2, 12 + row % 3, 12)).astype(np.float32)
        cube[0, 2, 2] = np.nan
        fits.writeto(path / f"{row:02d}.fits", cube)
    (path / "03.fits").write_bytes(b"no")
    (path / "10.fits").write_bytes(b"")
    return path


PREPARATIONS = [preparation(8), preparation(16, ("r",), 0.3)]


def everything(source, **options):
    defaults = {"how": "auto", "batch_size": 4, "threads": 2}
    return list(batches(source, PREPARATIONS, **{**defaults, **options}))


def assert_same(one, other):
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, tuple) and isinstance(a[0], np.ndarray):
            for x, y in zip(a, b, strict=True):
                np.testing.assert_array_equal(x, y)
        else:
            np.testing.assert_array_equal(a, b)


def test_full_batches_in_order_with_padding_and_reasons(folder):
    source = open_source(folder, needed=("g", "r"), pixel_scale=0.2)
    made = everything(source)
    assert [batch.count for batch in made] == [4, 4, 3]
    rows = np.concatenate([batch.rows for batch in made])
    assert rows.tolist() == [*range(11), -1] and rows.dtype == np.int64
    readable = np.concatenate([batch.readable for batch in made])
    assert np.flatnonzero(~readable).tolist() == [3, 10, 11]
    reasons = [reason for batch in made for reason in batch.reasons]
    assert [bool(reason) for reason in reasons] == [row in (3, 10) for row in range(12)]
    for batch in made:
        assert [image.shape for image in batch.images] == [(4, 8, 8, 2), (4, 16, 16, 1)]
        assert [level.shape for level in batch.level] == [(4, 2), (4, 1)]
        for array in (*batch.images, *batch.level, *batch.scale):
            assert array.dtype == np.float32 and np.isfinite(array).all()
        assert all((scale > 0).all() for scale in batch.scale)
        np.testing.assert_array_equal(batch.images[0][~batch.readable], 0.0)
    assert made[0].masked.tolist() == [1, 1, 1, 0]
    assert made[0].actions == (
        ["cropped", "cropped", "cropped", ""],
        ["resampled", "resampled", "resampled", ""],
    )


def test_each_preparation_gets_its_bands(folder):
    source = open_source(folder, needed=("g", "r"), pixel_scale=0.2)
    batch = everything(source)[1]
    cutout = source[5]
    only_red = dataclasses.replace(cutout, image=cutout.image[..., 1:])
    fitted = fit(only_red, PREPARATIONS[1], "auto")
    np.testing.assert_array_equal(batch.images[1][1], fitted.image)
    level, scale = level_and_scale(fitted.image[fitted.inside], PREPARATIONS[1])
    np.testing.assert_array_equal(batch.level[1][1], level)
    np.testing.assert_array_equal(batch.scale[1][1], scale)


@pytest.mark.parametrize("threads", [0, 1, 5, None])
def test_the_number_of_threads_changes_nothing(folder, threads):
    source = open_source(folder, needed=("g", "r"), pixel_scale=0.2)
    expected = everything(source)
    for one, other in zip(expected, everything(source, threads=threads), strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("start", [0, 4, 5, 11])
def test_a_run_taken_up_at_a_row_goes_on_from_there(folder, start):
    source = open_source(folder, needed=("g", "r"), pixel_scale=0.2)
    rows = [batch.rows[: batch.count] for batch in everything(source, start=start)]
    assert [row for part in rows for row in part.tolist()] == list(range(start, 11))
    if start == 4:
        assert_same(everything(source, start=start)[0], everything(source)[1])


def test_places_from_the_table_come_before_those_of_the_file(tmp_path):
    header = fits.Header([("CTYPE1", "RA---TAN"), ("CTYPE2", "DEC--TAN"), ("CRPIX1", 4.5)])
    header.update({"CRPIX2": 4.5, "CRVAL1": 30.0, "CRVAL2": -5.0, "CDELT1": -1e-4, "CDELT2": 1e-4})
    for name in "ab":
        fits.writeto(tmp_path / f"{name}.fits", rng.normal(size=(8, 8)), header)
    (tmp_path / "cat.csv").write_text("path,ra,dec\na.fits,1.5,2.5\nb.fits,,\nc.fits,7,8\n")
    source = open_source(tmp_path / "cat.csv", needed=("g",))
    (batch,) = batches(source, [preparation(8, ("g",))], how="auto", batch_size=4)
    np.testing.assert_allclose(batch.ra, [1.5, 30.0, 7.0, np.nan])
    np.testing.assert_allclose(batch.dec, [2.5, -5.0, 8.0, np.nan])


def test_noise_is_measured_on_the_sky_and_not_on_padding(tmp_path):
    images = rng.normal(5.0, 2.0, size=(1, 20, 20, 1)).astype(np.float32)
    np.savez(tmp_path / "a.npz", images=images)
    source = open_source(tmp_path / "a.npz", needed=("g",), pixel_scale=0.2)
    (batch,) = batches(source, [preparation(64, ("g",))], how="auto", batch_size=1)
    assert batch.actions == (["padded"],)
    level, scale = level_and_scale(images[0], preparation(64, ("g",)))
    np.testing.assert_array_equal((batch.level[0][0], batch.scale[0][0]), (level, scale))


def test_a_member_of_other_bands_is_refused(folder):
    source = open_source(folder, needed=("g", "r"))
    with pytest.raises(UsageError, match="needs bands z.*opened with g, r"):
        batches(source, [preparation(8, ("z",))], how="auto", batch_size=2)


def test_leaving_off_early_is_harmless(folder):
    source = open_source(folder, needed=("g", "r"))
    assert next(iter(batches(source, PREPARATIONS, how="resize", batch_size=3))).count == 3


ARRAYS = {"x": np.arange(10), "y": np.arange(10)[:, None] * np.ones((10, 2))}


def test_shuffled_epochs_hold_each_row_once_and_differ():
    iterator = shuffled(ARRAYS, 5, seed=1)
    epochs = []
    for _ in range(3):
        first, second = next(iterator), next(iterator)
        np.testing.assert_array_equal(first["y"][:, 0], first["x"])
        epochs.append(np.concatenate([first["x"], second["x"]]).tolist())
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_shuffled_leaves_out_the_remainder_and_follows_the_seed():
    iterator, same, other = (shuffled(ARRAYS, 4, seed=seed) for seed in (1, 1, 2))
    for _ in range(5):
        epoch = np.concatenate([next(iterator)["x"] for _ in range(2)])
        assert len(set(epoch.tolist())) == 8
        np.testing.assert_array_equal(epoch, np.concatenate([next(same)["x"] for _ in range(2)]))
    assert any((next(iterator)["x"] != next(other)["x"]).any() for _ in range(3))


def test_shuffled_goes_on_from_a_saved_state():
    iterator = shuffled(ARRAYS, 3, seed=5)
    for _ in range(4):
        next(iterator)
    state = iterator.get_state()
    ahead = [next(iterator)["x"].tolist() for _ in range(5)]
    fresh = shuffled(ARRAYS, 3, seed=5)
    fresh.set_state(state)
    assert [next(fresh)["x"].tolist() for _ in range(5)] == ahead


def test_shuffled_arrays_that_fit_no_batch_are_refused():
    with pytest.raises(UsageError, match="10 cutouts do not fill a batch of 11"):
        shuffled(ARRAYS, 11, seed=0)
    with pytest.raises(UsageError, match="differ in length"):
        shuffled({**ARRAYS, "z": np.zeros(3)}, 2, seed=0)
