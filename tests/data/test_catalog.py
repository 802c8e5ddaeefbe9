"""Every form of data: which rows it has, what each cutout holds, and what is refused."""

import re

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from PIL import Image

from lensjax.data.catalog import open_source
from lensjax.data.formats import image_files
from lensjax.data.planes import Unreadable
from lensjax.errors import UsageError

# pytest undoes the filters that the readers set.
pytestmark = pytest.mark.filterwarnings("ignore:File may have been truncated")

rng = np.random.default_rng(2)
GRI = ("g", "r", "i")


def picture(seed=0, size=(6, 5), channels=3):
    array = np.random.default_rng(seed).integers(0, 256, (*size, channels), dtype=np.uint8)
    return array[..., 0] if channels == 1 else array


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return array


def sky(scale=0.2):
    header = fits.Header()
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN", "DEC--TAN"
    header["CRVAL1"], header["CRVAL2"] = 30.0, -5.0
    header["CRPIX1"], header["CRPIX2"] = 3.0, 3.5
    header["CDELT1"], header["CDELT2"] = -scale / 3600, scale / 3600
    return header


def plane(seed, size=(6, 5)):
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


def refused(data, match, **options):
    with pytest.raises(UsageError, match=match) as caught:
        open_source(data, **{"needed": GRI, **options})
    assert "\n" not in str(caught.value)


# --- folders ---


def test_flat_folder_is_sorted_and_leaves_out_what_is_no_image(tmp_path):
    arrays = {name: save(tmp_path / name, picture(i)) for i, name in enumerate(["b.png", "a.PNG"])}
    save(tmp_path / ".hidden.png", picture())
    (tmp_path / "notes.txt").write_text("x")
    source = open_source(tmp_path, needed=GRI)
    assert source.table.colnames == ["id", "ra", "dec", "path"]
    assert source.table["id"].tolist() == ["a", "b"] and len(source) == 2
    assert np.isnan(source.table["ra"]).all()
    assert source.bands == GRI
    np.testing.assert_array_equal(source[0].image, arrays["a.PNG"][..., ::-1])
    for word in ("2 cutouts", "5x6", "g, r, i", "not known"):
        assert word in source.description


def test_class_folders_give_labels_and_others_give_none(tmp_path):
    for name in ("lenses/x", "nonlens/x", "other/y", "z", "train/non_lens/deep/w"):
        save(tmp_path / f"{name}.png", picture())
    table = open_source(tmp_path, needed=GRI).table
    labels = dict(zip(table["id"].tolist(), table["label"].tolist(), strict=True))
    assert labels == {
        "lenses/x": 1,
        "nonlens/x": 0,
        "other/y": -1,
        "train/non_lens/deep/w": 0,
        "z": -1,
    }


def test_a_folder_that_links_to_itself_is_read_once(tmp_path):
    save(tmp_path / "sub" / "a.png", picture())
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    assert open_source(tmp_path, needed=GRI).table["id"].tolist() == ["sub/a"]


def test_bad_files_in_a_folder_are_rows_and_unreadable(tmp_path):
    save(tmp_path / "grey.png", picture(channels=1))
    save(tmp_path / "good.png", picture())
    (tmp_path / "text.png").write_text("no")
    (tmp_path / "folder.fits").mkdir()
    (tmp_path / "zero.jpg").touch()
    (tmp_path / "self.png").symlink_to("self.png")
    source = open_source(tmp_path, needed=GRI)
    readable = []
    for row in range(len(source)):
        try:
            readable.append((source.table["id"][row], source[row].image.shape))
        except Unreadable as error:
            assert str(error)
    assert len(source) == 6 and readable == [("good", (6, 5, 3))]
    with pytest.raises(Unreadable, match="need bands g, r, i.*grey"):
        source[source.table["id"].tolist().index("grey")]


def test_a_folder_of_unreadable_files_is_still_a_source(tmp_path):
    (tmp_path / "a.png").write_text("no")
    source = open_source(tmp_path, needed=GRI)
    assert len(source) == 1 and source.bands == GRI


def test_folders_that_cannot_be_used(tmp_path):
    refused(tmp_path, r"no image.*\.png.*\.fits")
    refused(tmp_path / "nowhere", "no such file")
    save(tmp_path / "grey" / "a.png", picture(channels=1))
    refused(tmp_path / "grey", "need bands g, r, i.*1 channel.*--bands")
    refused(tmp_path / "grey", "no pixel scale", pixel_scale=0.0)
    (tmp_path / "a.docx").write_text("x")
    refused(tmp_path / "a.docx", "not a kind")


def test_the_bands_of_most_files_are_those_of_the_folder(tmp_path):
    save(tmp_path / "0.png", picture(channels=1))
    for name in ("1", "2"):
        save(tmp_path / f"{name}.png", picture())
    assert open_source(tmp_path, needed=None).bands == ("i", "r", "g")


def test_one_picture(tmp_path):
    array = save(tmp_path / "a.png", picture())
    source = open_source(tmp_path / "a.png", needed=("r",), bands="g,r,i", pixel_scale=0.3)
    np.testing.assert_array_equal(source[0].image, array[..., 1:2])
    assert (len(source), source[0].pixel_scale, source.bands) == (1, 0.3, ("r",))


# --- catalogues ---


def test_catalogue_rows_columns_and_relative_paths(tmp_path):
    arrays = [save(tmp_path / "img" / f"{i}.png", picture(i)) for i in range(2)]
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "cat.csv").write_text(
        f"note,ID,filepath,RA,dec,label,group,z\n"
        f'"a, b",{2**53 + 1},../img/0.png,10.5,,lens,t1,0.5\n'
        f"ü,5,{tmp_path}/img/1.png,,-3,,t2,0.7\n"
        f",5,missing.png,,,0,t2,\n"
        f",6,,,,0,t2,\n"
    )
    source = open_source(tmp_path / "lists" / "cat.csv", needed=("i", "r", "g"))
    table = source.table
    assert table.colnames == ["id", "ra", "dec", "path", "label", "group", "note", "z"]
    assert table["id"].tolist() == [2**53 + 1, 5, 5, 6]
    assert table["label"].tolist() == [1, -1, 0, 0]
    assert table["note"].tolist()[:2] == ["a, b", "ü"]
    np.testing.assert_array_equal(table["ra"], [10.5, np.nan, np.nan, np.nan])
    for row in range(2):
        np.testing.assert_array_equal(source[row].image, arrays[row])
    with pytest.raises(Unreadable, match="no such file"):
        source[2]
    with pytest.raises(Unreadable, match="no path"):
        source[3]
    assert "1 rows repeat" in source.description and "1 lenses" in source.description


@pytest.mark.parametrize("suffix", ["parquet", "fits"])
def test_other_catalogues_and_the_order_of_path_columns(tmp_path, suffix):
    array = save(tmp_path / "a.png", picture())
    table = Table({"filename": ["nothing"], "path": ["a.png"], "id": [7], "mag": [20.5]})
    if suffix == "fits":
        table.write(tmp_path / "cat.fits")
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {name: table[name].tolist() for name in table.colnames}
        pq.write_table(pa.table(columns), tmp_path / "cat.parquet")
    source = open_source(tmp_path / f"cat.{suffix}", needed=("i", "r", "g"))
    np.testing.assert_array_equal(source[0].image, array)
    assert source.table["filename"][0] == "nothing" and source.table["mag"][0] == 20.5


def test_catalogue_without_ids_and_with_one_file_a_band(tmp_path):
    for number, band in enumerate("gri"):
        fits.writeto(tmp_path / f"x_{band}.fits", plane(number), sky())
    (tmp_path / "cat.csv").write_text("path\nlost_{band}.fits\nx_{band}.fits\n")
    source = open_source(tmp_path / "cat.csv", needed=("i", "g"))
    assert source.table["id"].tolist() == ["lost_{band}", "x_{band}"]
    np.testing.assert_array_equal(source[1].image[..., 1], plane(0))
    with pytest.raises(Unreadable, match="lost_i.fits: no such file"):
        source[0]


def test_few_of_very_many_absent_files_are_asked_for_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "MOST_TRIES", 50)
    array = save(tmp_path / "here.png", picture())
    lines = [f"absent/{row}.png" for row in range(1000)]
    lines[777] = "here.png"
    (tmp_path / "cat.csv").write_text("\n".join(["path", *lines, ""]))
    source = open_source(tmp_path / "cat.csv", needed=("i", "r", "g"))
    tried = int(re.search(r"none of (\d+) files tried of 1000", source.description)[1])
    assert image_files.PROBES < tried <= 50 + image_files.PROBES
    np.testing.assert_array_equal(source[777].image, array)
    # The bands of data are learned from any file that there is.
    assert open_source(tmp_path / "cat.csv", needed=None).bands == ("i", "r", "g")


def test_paths_that_are_numbers_with_gaps(tmp_path):
    (tmp_path / "cat.csv").write_text("id,path\n1,5\n2,\n")
    source = open_source(tmp_path / "cat.csv", needed=GRI)
    assert source.table["path"].tolist() == [str(tmp_path / "5"), ""]


def test_catalogues_that_cannot_be_used(tmp_path):
    (tmp_path / "a.csv").write_text("id,file\n1,a.png\n")
    refused(tmp_path / "a.csv", "no column path.*id, file")
    (tmp_path / "b.csv").write_text("path\n")
    refused(tmp_path / "b.csv", "no rows")
    (tmp_path / "c.csv").write_text("path,label\na.png,grade A\n")
    refused(tmp_path / "c.csv", "grade A")


# --- FITS ---


def test_fits_headers_give_scale_and_place_and_the_user_stands_above(tmp_path):
    fits.writeto(tmp_path / "a.fits", plane(0), sky(0.4))
    cutout = open_source(tmp_path, needed=("g",))[0]
    assert cutout.pixel_scale == pytest.approx(0.4)
    assert (cutout.ra, cutout.dec) == pytest.approx((30.0, -5.0))
    source = open_source(tmp_path, needed=("g",), pixel_scale=0.1)
    assert source[0].pixel_scale == 0.1 and "0.1 arcsec" in source.description


def test_multi_extension_fits_by_band_names(tmp_path):
    hdus = [fits.PrimaryHDU()]
    for number, name in enumerate(("DES_I_BGSUB", "DES_G_BGSUB", "DES_G_PSF", "VIS_FLUX")):
        hdus.append(fits.ImageHDU(plane(number), sky(), name=name))
    fits.HDUList(hdus).writeto(tmp_path / "a.fits")
    cutout = open_source(tmp_path / "a.fits", needed=GRI, bands="r=VIS")[0]
    for band, number in enumerate((1, 3, 0)):
        np.testing.assert_array_equal(cutout.image[..., band], plane(number))
    assert open_source(tmp_path, needed=None).bands == ("I", "G", "VIS")
    refused(tmp_path, "need bands g, r, i.*DES_I_BGSUB, DES_G_BGSUB, VIS_FLUX.*--bands")


def test_bands_on_grids_of_their_own(tmp_path):
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(plane(0, (4, 4)), sky(0.3), name="NIR_H")]
    hdus.append(fits.ImageHDU(plane(1, (12, 12)), sky(0.1), name="VIS"))
    fits.HDUList(hdus).writeto(tmp_path / "a.fits")
    cutout = open_source(tmp_path / "a.fits", needed=("H", "VIS"))[0]
    assert cutout.image.shape == (12, 12, 2) and cutout.pixel_scale == pytest.approx(0.1)
    np.testing.assert_array_equal(cutout.image[..., 1], plane(1, (12, 12)))


def test_a_cube_is_one_cutout_or_a_stack_of_one_band(tmp_path):
    cube = rng.normal(size=(3, 8, 9)).astype(np.float32)
    fits.writeto(tmp_path / "a.fits", cube, sky())
    source = open_source(tmp_path / "a.fits", needed=("i", "g"), bands="g,r,i")
    assert len(source) == 1
    np.testing.assert_array_equal(source[0].image, np.moveaxis(cube[[2, 0]], 0, 2))
    stack = open_source(tmp_path / "a.fits", needed=("g",))
    assert len(stack) == 3 and stack[0].pixel_scale == pytest.approx(0.2)
    np.testing.assert_array_equal(stack[2].image[..., 0], cube[2])


def test_a_truncated_fits_file_is_one_rejected_row(tmp_path):
    fits.writeto(tmp_path / "whole.fits", np.ones((99, 99)))
    (tmp_path / "a.fits").write_bytes((tmp_path / "whole.fits").read_bytes()[:4000])
    source = open_source(tmp_path / "a.fits", needed=("g",))
    with pytest.raises(Unreadable):
        source[0]


def test_masked_and_blank_cutouts(tmp_path):
    spoilt = 1e-12 * plane(0)
    spoilt[1, 1:3] = 100.0
    fits.writeto(tmp_path / "a.fits", spoilt)
    fits.writeto(tmp_path / "b.fits", np.full((6, 5), 100.0))
    source = open_source(tmp_path, needed=("g",))
    assert np.isnan(source[0].image).sum() == 2 and np.nanmax(source[0].image) < 1e-10
    with pytest.raises(Unreadable, match=r"all pixels are equal \(100\)"):
        source[1]


# --- one file per band ---


def test_a_folder_named_by_bands_holds_stacks(tmp_path):
    stacks = {band: rng.normal(size=(4, 6, 5)).astype(np.float32) for band in "griYz"}
    for band, stack in stacks.items():
        fits.writeto(tmp_path / f"{band}.fits", stack)
    source = open_source(tmp_path, needed=GRI, pixel_scale=0.263)
    assert len(source) == 4 and source.table["id"].tolist() == [0, 1, 2, 3]
    for band, name in enumerate(GRI):
        np.testing.assert_array_equal(source[3].image[..., band], stacks[name][3])
    assert source[0].pixel_scale == 0.263 and "4 cutouts" in source.description
    same = open_source(f"{tmp_path}/{{band}}.fits", needed=("g",), bands="g=Y")
    np.testing.assert_array_equal(same[1].image[..., 0], stacks["Y"][1])
    fits.writeto(tmp_path / "r.fits", stacks["r"][:3], overwrite=True)
    refused(tmp_path, "differ in shape.*r \\(3, 6, 5\\)")


def test_a_folder_named_by_bands_holds_one_cutout(tmp_path):
    (tmp_path / "obj").mkdir()
    for number, band in enumerate(GRI):
        fits.writeto(tmp_path / "obj" / f"{band}.fits", plane(number), sky())
    source = open_source(tmp_path / "obj", needed=("r", "i"))
    assert source.table["id"].tolist() == ["obj"] and source[0].ra == pytest.approx(30.0)
    np.testing.assert_array_equal(source[0].image[..., 1], plane(2))


def test_templates_with_ids(tmp_path):
    for number, name in enumerate(("a_1_DES_g", "a_1_DES_r", "b_DES_g", "b_DES_r", "c_DES_g")):
        fits.writeto(tmp_path / f"{name}.fits", plane(number))
    source = open_source(f"{tmp_path}/{{id}}_DES_{{band}}.fits", needed=("r", "g"))
    assert source.table["id"].tolist() == ["a_1", "b", "c"]
    np.testing.assert_array_equal(source[1].image[..., 0], plane(3))
    with pytest.raises(Unreadable, match="c_DES_r.fits: no such file"):
        source[2]
    called = open_source(f"{tmp_path}/{{id}}_{{band}}.fits", needed=("r",), bands="r=DES_g")
    assert called.table["id"].tolist() == ["a_1", "b", "c"]
    np.testing.assert_array_equal(called[0].image[..., 0], plane(0))
    refused(f"{tmp_path}/{{id}}_DES_{{band}}.fits", "need bands g, r, i.*hold g, r")


def test_templates_with_a_folder_a_band(tmp_path):
    for number, band in enumerate(("g", "r")):
        (tmp_path / band).mkdir()
        fits.writeto(tmp_path / band / "x.fits", plane(number))
    source = open_source(f"{tmp_path}/{{band}}/{{id}}.fits", needed=("r", "g"))
    assert source.table["id"].tolist() == ["x"]
    np.testing.assert_array_equal(source[0].image[..., 0], plane(1))


def test_templates_that_cannot_be_used(tmp_path):
    refused(f"{tmp_path}/{{id}}.fits", "{band} once")
    refused(f"{tmp_path}/{{band}}.fits", "no file is of this form")
    save(tmp_path / "g.png", picture())
    save(tmp_path / "r.png", picture())
    source = open_source(f"{tmp_path}/{{band}}.png", needed=("g", "r"))
    with pytest.raises(Unreadable, match="g.png: .*3 channels, not one band"):
        source[0]


# --- stacks ---


@pytest.mark.parametrize(
    ("shape", "axes"), [((4, 9, 8, 3), "N, H, W, C"), ((4, 3, 9, 8), "N, C, H, W")]
)
@pytest.mark.parametrize("form", ["npy", "npz", "fits"])
def test_stacks_of_either_order(tmp_path, shape, axes, form):
    stack = rng.normal(size=shape).astype(np.float32)
    path = tmp_path / f"a.{form}"
    if form == "npy":
        np.save(path, stack)
    elif form == "npz":
        np.savez(path, images=stack)
    else:
        fits.writeto(path, stack)
    source = open_source(path, needed=GRI)
    expected = stack if shape[-1] == 3 else np.moveaxis(stack, 1, 3)
    assert len(source) == 4 and axes in source.description
    np.testing.assert_array_equal(source[2].image, expected[2])
    reordered = open_source(path, needed=("i", "g"), bands="i,r,g")
    np.testing.assert_array_equal(reordered[1].image, expected[1][..., [0, 2]])


def test_npz_carries_its_columns(tmp_path):
    np.savez(
        tmp_path / "a.npz",
        images=rng.integers(0, 255, (3, 6, 6, 2), dtype=np.uint8),
        id=np.array([b"x", b"y", b"z"]),
        label=np.array([1.0, 0.0, -1.0]),
        ra=np.array([1.0, 2.0, 3.0], np.float32),
        redshift=np.array([0.1, 0.2, 0.3]),
        matrix=np.ones((3, 3)),
        bands=np.array(["z", "u"]),
        pixel_scale=np.array(0.5),
    )
    source = open_source(tmp_path / "a.npz", needed=("u",))
    assert source.table.colnames == ["id", "ra", "dec", "path", "label", "redshift"]
    assert source.table["id"].tolist() == ["x", "y", "z"]
    assert source.table["label"].tolist() == [1, 0, -1]
    assert source.table["path"][2].endswith("a.npz[2]") and source[0].pixel_scale == 0.5
    images = np.load(tmp_path / "a.npz")["images"]
    np.testing.assert_array_equal(source[0].image[..., 0], images[0, :, :, 1])


def test_stacks_of_one_band_and_single_pictures(tmp_path):
    for shape, rows in [((5, 7, 8), 5), ((7, 8, 3), 1), ((7, 8), 1), ((5, 1, 7, 8), 5)]:
        array = rng.normal(size=shape).astype(np.float32)
        np.save(tmp_path / "a.npy", array)
        source = open_source(tmp_path / "a.npy", needed=None)
        assert len(source) == rows and source[0].image.shape == (7, 8, 3 if shape[-1] == 3 else 1)


def test_stacks_that_cannot_be_used(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 5, 6, 2)))
    refused(tmp_path / "a.npy", "need bands g, r, i.*2 channels")
    np.save(tmp_path / "b.npy", np.zeros((0, 5, 6, 3)))
    refused(tmp_path / "b.npy", "no stack of cutouts")
    np.save(tmp_path / "c.npy", np.array([[{}]]), allow_pickle=True)
    refused(tmp_path / "c.npy", "cannot be read")
    np.savez(tmp_path / "d.npz", x=np.zeros(3))
    refused(tmp_path / "d.npz", "no array of images .x.")
    (tmp_path / "e.npz").write_bytes(b"PK\x03\x04 and no more")
    refused(tmp_path / "e.npz", "cannot be read")
    np.savez(tmp_path / "f.npz", images=np.zeros((2, 6, 6, 3)), bands=np.array(["g"]))
    refused(tmp_path / "f.npz", "1 bands are named for 3 channels")


def test_a_wrong_format_is_one_clear_line(tmp_path):
    stack = np.ones((3, 8, 8, 3), np.float32)
    np.savez(tmp_path / "a.npz", images=stack)
    fits.writeto(tmp_path / "a.fits", stack)
    (tmp_path / "a.csv").write_text("path\nx.png\n")
    (tmp_path / "folder").mkdir()
    words = {
        "folder": "file that cannot be of the format folder",
        "image": "cannot be of the format image",
        "catalogue": "cannot be read as a table",
        "numpy": "no .npz file",
        "fits": "not a FITS file",
        "template": "{band} once",
        "hdf5": "cannot be read as HDF5",
        "zarr": "cannot be of the format zarr",
        "shards": "file that cannot be of the format shards",
    }
    own = {"a.npz": ("numpy",), "a.fits": ("fits", "image"), "a.csv": ("catalogue",)}
    for name, formats in own.items():
        for form in words.keys() - set(formats):
            with pytest.raises(UsageError, match=words[form]) as caught:
                open_source(tmp_path / name, needed=GRI, format=form)
            assert str(caught.value).isprintable() and len(str(caught.value)) < 400
    for form, said in {
        "shards": "no folder of shards",
        "zarr": "Zarr",
        "fits": "folder that",
    }.items():
        refused(tmp_path / "folder", said, format=form)
