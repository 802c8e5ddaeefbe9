"""What libraries remark about odd files is silent while these are read, and only then."""

import logging
import threading
import warnings

import numpy as np
import pytest
from astropy.io import fits
from astropy.utils.exceptions import AstropyUserWarning
from PIL import Image

from lensjax.data.catalog import open_source
from lensjax.data.formats.fits import first_of
from lensjax.data.formats.reader_warnings import silenced
from lensjax.data.pipeline import batches
from lensjax.data.planes import Unreadable
from tests.data.wanted import preprocessing


@pytest.fixture
def odd_files(tmp_path):
    """Files about which astropy and Pillow have something to say, and a good one."""
    for name in ("a", "b", "c"):
        fits.writeto(tmp_path / f"{name}.fits", np.random.default_rng(0).normal(size=(2, 40, 40)))
    for name in ("a", "b"):
        whole = (tmp_path / f"{name}.fits").read_bytes()
        (tmp_path / f"{name}.fits").write_bytes(whole[:9000])
    return tmp_path


def test_the_users_filters_are_as_they_were_after_reading(odd_files):
    level = logging.getLogger("tifffile").level
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", category=AstropyUserWarning, message="mine")
        before = list(warnings.filters)
        source = open_source(odd_files, needed=("g", "r"))
        read = batches(source, [preprocessing(16, None)], how="auto", batch_size=2, threads=3)
        assert sum(batch.readable.sum() for batch in read) == 1
        assert warnings.filters == before and not heard
        warnings.warn("still heard", AstropyUserWarning, stacklevel=1)
        assert [str(warning.message) for warning in heard] == ["still heard"]
    assert logging.getLogger("tifffile").level == level


def test_asking_for_a_table_in_an_odd_file_is_silent_too(odd_files):
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        assert not first_of(odd_files / "a.fits").is_table
        assert not heard


def test_pillow_is_silent_about_large_pictures_and_stays_as_it_was(tmp_path, monkeypatch):
    Image.fromarray(np.zeros((30, 30, 3), np.uint8)).save(tmp_path / "a.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        with pytest.raises(Unreadable, match="all pixels are equal"):
            open_source(tmp_path, needed=None)[0]
        assert warnings.filters == before and not heard


def test_silences_that_overlap_leave_nothing_behind():
    """Also where the user opens and closes `catch_warnings` in between."""
    before = list(warnings.filters)
    ours, theirs = silenced(), silenced()
    ours.__enter__()
    caught = warnings.catch_warnings()
    caught.__enter__()
    thread = threading.Thread(target=theirs.__enter__)
    thread.start()
    thread.join()
    ours.__exit__(None, None, None)
    assert len(warnings.filters) == len(before) + 2
    theirs.__exit__(None, None, None)
    assert warnings.filters == before
    caught.__exit__(None, None, None)
    assert warnings.filters == before
