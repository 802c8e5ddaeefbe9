"""A source says which image, plane, channel or file became which band."""

import numpy as np
from astropy.io import fits
from PIL import Image

from lensjax.data.bands import colours
from lensjax.data.catalog import open_source
from lensjax.data.formats.shards import pack

PLANES = np.random.default_rng(0).normal(90, 20, (3, 8, 8)).astype(np.float32)


def bands_from(path, **said):
    source = open_source(path, needed=("g", "r"), **said)
    return dict(zip(source.bands, source.bands_from, strict=True))


def test_of_files(tmp_path):
    hdus = [fits.ImageHDU(plane, name=n) for plane, n in zip(PLANES, "rxg", strict=True)]
    hdus[0].name, hdus[2].name = "DES_R_BGSUB", "DES_G_BGSUB"
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(tmp_path / "a.fits")
    assert bands_from(tmp_path / "a.fits") == {
        "g": "image 3 (DES_G_BGSUB)", "r": "image 1 (DES_R_BGSUB)",
    }  # fmt: skip
    fits.writeto(tmp_path / "b.fits", PLANES, fits.Header([("BANDS", "grz")]))
    assert bands_from(tmp_path / "b.fits") == {"g": "plane 1 (g)", "r": "plane 2 (r)"}
    fits.writeto(tmp_path / "c.fits", PLANES[:2])
    assert bands_from(tmp_path / "c.fits") == {"g": "plane 1", "r": "plane 2"}
    Image.fromarray(np.moveaxis(PLANES, 0, 2).astype(np.uint8)).save(tmp_path / "d.png")
    taken = bands_from(tmp_path / "d.png")
    assert taken == {"g": "channel 3 (blue)", "r": "channel 2 (green)"}
    assert colours([*taken], [*taken.values()]) == [
        "colour pictures: green as r, blue as g (--bands says otherwise)"
    ]
    assert colours(["r", "g"], ["plane 1 (red)", "plane 2 (green)"]) == []


def test_of_the_first_file_that_has_them(tmp_path):
    (tmp_path / "a.fits").write_bytes(b"no")
    for name in "bc":
        fits.writeto(tmp_path / f"{name}.fits", PLANES, fits.Header([("BANDS", "grz")]))
    assert bands_from(tmp_path) == {"g": "plane 1 (g)", "r": "plane 2 (r)"}
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.fits").write_bytes(b"no")
    assert open_source(tmp_path / "none", needed=("g",)).bands_from == ()


def test_of_a_file_a_band(tmp_path):
    for name in "gr":
        fits.writeto(tmp_path / f"{name}.fits", PLANES)
        fits.writeto(tmp_path / f"one-{name}.fits", PLANES[0])
    assert bands_from(f"{tmp_path}/{{band}}.fits") == {"g": "g.fits", "r": "r.fits"}
    assert bands_from(f"{tmp_path}/one-{{band}}.fits") == {"g": "one-g.fits", "r": "one-r.fits"}


def test_of_stacks_and_shards(tmp_path):
    images = np.moveaxis(PLANES, 0, 2)[None]
    np.savez(tmp_path / "a.npz", images=images, bands=["i", "r", "g"])
    expected = {"g": "channel 3 (g)", "r": "channel 2 (r)"}
    assert bands_from(tmp_path / "a.npz") == expected
    pack(open_source(tmp_path / "a.npz", needed=None), tmp_path / "packed")
    assert bands_from(tmp_path / "packed") == expected
    np.save(tmp_path / "b.npy", images)
    assert bands_from(tmp_path / "b.npy", bands="r,x,g") == {"g": "channel 3", "r": "channel 1"}
