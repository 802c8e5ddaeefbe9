"""Opens thousands of damaged files of every kind, in a process: python -m tests.data.formats.fuzz.

Prints, as JSON, how many cases of each kind were refused, and how many cutouts of the others were
read and rejected. Ends with an error where a case takes too long, takes too much memory, raises
what it should not, or gives a reason of several lines.
"""

import faulthandler
import gzip
import io
import json
import resource
import signal
import sys
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import tifffile
import zarr
from astropy.io import fits
from astropy.table import Table
from PIL import Image

from lensjax.data.catalog import open_source
from lensjax.data.formats import shards
from lensjax.data.planes import Unreadable
from lensjax.errors import UsageError

SECONDS_A_CASE = 60
BYTES_BEYOND_START = 3 * 2**30
MUTATIONS = 130

rng = np.random.default_rng(0)
PICTURE = rng.integers(0, 256, (12, 10, 3), np.uint8)
CUBE = rng.normal(size=(3, 12, 10)).astype(np.float32)


def _bytes(write: Callable[[io.BytesIO], object]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def _extensions() -> fits.HDUList:
    header = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CDELT1": -1e-4})
    planes = [
        fits.ImageHDU(plane, header, name=name) for plane, name in zip(CUBE, "GRI", strict=True)
    ]
    return fits.HDUList([fits.PrimaryHDU(), *planes, fits.ImageHDU(CUBE[0], name="G_RMS")])


def _scaled() -> fits.PrimaryHDU:
    hdu = fits.PrimaryHDU((CUBE[0] * 100).astype(np.int16))
    hdu.header["BZERO"], hdu.header["BSCALE"] = 32768, 0.5
    return hdu


def _hdf5(file: io.BytesIO) -> None:
    with h5py.File(file, "w") as out:
        images = np.moveaxis(CUBE, 0, 2)[None]
        out.create_dataset("images", data=images, chunks=(1, 4, 5, 3), compression="gzip")
        out["id"], out["mag"] = ["a"], [20.5]
        out.attrs["bands"] = "g,r,i"


def store(folder: Path) -> None:
    """Writes a Zarr store of the stack."""
    group = zarr.open_group(folder, mode="w")
    group.create_array("images", data=np.moveaxis(CUBE, 0, 2)[None], chunks=(1, 4, 5, 3))
    group.create_array("id", data=np.array([7]))


def files() -> dict[str, bytes]:
    """Returns a whole file of each kind, by name."""
    table = Table({"id": [1, 2], "path": ["a.png", "../b.png"], "label": [0, 1]})
    parquet = pa.table({name: table[name].tolist() for name in table.colnames})
    compressed = fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(CUBE[0])])
    whole = {
        "a.png": _bytes(lambda f: Image.fromarray(PICTURE).save(f, "PNG")),
        "a.jpg": _bytes(lambda f: Image.fromarray(PICTURE).save(f, "JPEG")),
        "a.tif": _bytes(lambda f: tifffile.imwrite(f, PICTURE.astype(np.uint16) * 257)),
        "z.tif": _bytes(lambda f: tifffile.imwrite(f, PICTURE, compression="zlib")),
        "a.npy": _bytes(lambda f: np.save(f, np.moveaxis(CUBE, 0, 2)[None])),
        "a.npz": _bytes(lambda f: np.savez(f, images=CUBE[..., None], label=np.arange(3) % 2)),
        "a.fits": _bytes(fits.PrimaryHDU(CUBE).writeto),
        "x.fits": _bytes(_extensions().writeto),
        "s.fits": _bytes(_scaled().writeto),
        "c.fits.fz": _bytes(compressed.writeto),
        "t.fits": _bytes(fits.HDUList([fits.PrimaryHDU(), fits.table_to_hdu(table)]).writeto),
        "a.h5": _bytes(_hdf5),
        "a.csv": b'id,path,label\n1,"a,b.png",1\n2,c.png,0\n',
        "a.tsv": b"# comment\nid\tpath\n1\ta.npz[0]\n2\t../a.npz/a.npz[1]\n",
        "a.parquet": _bytes(lambda f: pa.parquet.write_table(parquet, f)),
        "a.vot": _bytes(lambda f: table.write(f, format="votable")),
    }
    packed = {name: gzip.compress(whole[name[:-3]]) for name in ("a.fits.gz", "a.csv.gz")}
    return whole | packed


def mutated(content: bytes, seed: int) -> bytes:
    """Returns the content cut short, with bits turned, pieces overwritten, repeated or left out."""
    draw = np.random.default_rng(seed)
    data = bytearray(content)
    # Headers matter most: half of the damage is done to the first bytes.
    length = len(data) if draw.random() < 0.5 else min(len(data), 400)
    place = int(draw.integers(length))
    match seed % 6:
        case 0:
            del data[place:]
        case 1:
            for _ in range(int(draw.integers(1, 9))):
                data[int(draw.integers(length))] ^= 1 << int(draw.integers(8))
        case 2:
            size = int(draw.integers(1, 40))
            data[place : place + size] = draw.integers(0, 256, size, np.uint8).tobytes()
        case 3:
            data[place:place] = data[place : place + int(draw.integers(1, 3000))]
        case 4:
            del data[place : place + int(draw.integers(1, 200))]
        case _:
            digits = [at for at, byte in enumerate(data[:6000]) if chr(byte).isdigit()]
            for at in draw.choice(digits or [0], 3):
                data[at] = ord(str(draw.integers(10)))
    return bytes(data)


def hostile(folder: Path) -> list[Path]:
    """Returns files that are made to do harm: bombs, absurd sizes, links, odd names."""
    bomb = gzip.compress(bytes(2**28))
    made: dict[str, bytes] = {"empty.png": b"", "bomb.fits.gz": bomb}
    for number, value in enumerate(("-5", "0", "99999999", "9223372036854775807", "T", "1e9")):
        head = _bytes(fits.PrimaryHDU(CUBE).writeto).decode("latin1")
        for axis in ("NAXIS1", "NAXIS3", "NAXIS ", "BITPIX"):
            at = head.index(f"{axis:8}=") + 10
            content = head[:at] + f"{value:>20}" + head[at + 20 :]
            made[f"{axis.strip()}-{number}.fits"] = content.encode("latin1")
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }"
    for number, shape in enumerate((b"99999,99999,9", b"-1,4,4", b"0,4,4", b"4,4", b"10**9,1,1")):
        made[f"shape-{number}.npy"] = (header % shape).ljust(127) + b"\n" + bytes(64)
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../images.npy", _bytes(lambda f: np.save(f, CUBE)))
        archive.writestr("images.npy", b"\x93NUMPY")
    made["archive.npz"] = zipped.getvalue()
    made["bomb.csv.gz"] = bomb
    made["itself.csv"] = b"path\nitself.csv[0]\narchive.npz[0]\n.[0]\n/dev/zero[1]\n\x00[1]\n[1]\n"
    made["pickle.npz"] = _bytes(lambda f: np.savez(f, images=np.array([{}], object)))
    made["pickle.npy"] = _bytes(lambda f: np.save(f, np.array([{}]), allow_pickle=True))
    made["a\n'\"$(x).png"] = files()["a.png"]
    made["wide.png"] = files()["a.png"].replace(b"\0\0\0\x0a\0\0\0\x0c", b"\x7f\xff\xff\xff" * 2)
    for name, content in made.items():
        (folder / name).write_bytes(content)
    (folder / "folder.fits").mkdir()
    (folder / "loop").symlink_to(folder)
    (folder / "nowhere.png").symlink_to(folder / "missing.png")
    (folder / "self.png").symlink_to(folder / "self.png")
    return [folder / name for name in (*made, "nowhere.png", "self.png", "folder.fits")]


def attempt(data: Path) -> Counter:
    """Returns what became of the cutouts of a case: none is lost."""
    try:
        source = open_source(data, needed=None)
    except UsageError as error:
        assert len(str(error).splitlines()) == 1 and len(str(error)) < 800, str(error)
        return Counter(refused=1)
    found = Counter(opened=1)
    rows = range(min(len(source), 8))
    for row in rows:
        try:
            image = source[row].image
            assert image.ndim == 3 and image.dtype == np.float32 and image.size
            found["read"] += 1
        except Unreadable as error:
            assert len(str(error).splitlines()) == 1 and len(str(error)) < 400, str(error)
            found["rejected"] += 1
    assert found["read"] + found["rejected"] == len(rows) > 0
    return found


def main() -> None:
    warnings.simplefilter("ignore")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + BYTES_BEYOND_START
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    faulthandler.register(signal.SIGALRM, chain=True)  # says where it stands

    def too_long(*_: object) -> None:
        sys.exit(f"{case} took too long")

    case: object = None
    signal.signal(signal.SIGALRM, too_long)
    outcomes: dict[str, Counter] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = []
        for kind, content in files().items():
            (folder / kind).mkdir()
            (folder / kind / kind).write_bytes(content)
            assert attempt(folder / kind / kind)["opened"], kind
            cases += [(kind, kind, content, seed) for seed in range(MUTATIONS)]
        packed = folder / "shards"
        shards.pack(open_source(folder / "a.npz" / "a.npz", needed=None), packed)
        for part in ("index.parquet", "shard-00000.array_record"):
            content = (packed / part).read_bytes()
            cases += [("shards", part, content, seed) for seed in range(MUTATIONS)]
        store(folder / "zarr")
        for path in sorted(folder.glob("zarr/**/*")):
            if path.is_file():
                part, content = str(path.relative_to(folder / "zarr")), path.read_bytes()
                cases += [("zarr", part, content, seed) for seed in range(MUTATIONS // 4)]
        for case in cases:
            kind, part, content, seed = case
            signal.alarm(SECONDS_A_CASE)
            (folder / kind / part).write_bytes(mutated(content, seed))
            given = folder / kind if kind in ("shards", "zarr") else folder / kind / part
            outcomes.setdefault(kind, Counter()).update(attempt(given))
            (folder / kind / part).write_bytes(content)
        (folder / "hostile").mkdir()
        for case in hostile(folder / "hostile"):
            signal.alarm(SECONDS_A_CASE)
            outcomes.setdefault("hostile", Counter()).update(attempt(case))
        signal.alarm(0)
        everything = open_source(folder / "hostile", needed=None)
        assert len(everything) == len(hostile_names(folder / "hostile"))
    print(json.dumps(outcomes))


def hostile_names(folder: Path) -> list[str]:
    """Returns what a folder of hostile files holds for a scan: all but archives and loops."""
    return [
        path.name
        for path in folder.iterdir()
        if path.suffix not in (".npz", ".csv", "") and path.name != "bomb.csv.gz"
    ]


if __name__ == "__main__":
    main()
