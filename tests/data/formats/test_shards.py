"""Shards hold what the files held, whatever killed the packing, and say what is damaged."""

import numpy as np
import pytest
from PIL import Image

from lensjax.data import pipeline
from lensjax.data.catalog import open_source
from lensjax.data.formats import shards
from lensjax.data.planes import Unreadable
from lensjax.data.preprocess import Preprocessing
from lensjax.errors import UsageError

GRI = ("g", "r", "i")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_ROWS", 4)


@pytest.fixture
def pictures(tmp_path):
    """Ten pictures, two of which cannot be read, of two sizes."""
    folder = tmp_path / "pictures"
    rng = np.random.default_rng(0)
    for number in range(10):
        size = (9, 8, 3) if number == 5 else (8, 8, 3)
        (folder / ("lens" if number % 2 else "nonlens")).mkdir(parents=True, exist_ok=True)
        path = folder / ("lens" if number % 2 else "nonlens") / f"{number},α.png"
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(path)
        if number in (3, 8):
            path.write_bytes(path.read_bytes()[:40])
    return folder


@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_what_comes_out_is_what_went_in(pictures, tmp_path, encoding):
    source = open_source(pictures, needed=None)
    assert shards.pack(source, tmp_path / "packed", encoding=encoding) == 8
    packed = open_source(tmp_path / "packed", needed=GRI)
    assert packed.table["id"].tolist() == source.table["id"].tolist()
    assert packed.table["label"].tolist() == source.table["label"].tolist()
    assert packed.table["path"].tolist() == source.table["path"].tolist()
    assert sorted(path.name for path in (tmp_path / "packed").iterdir()) == [
        "index.parquet",
        *(f"shard-0000{number}.array_record" for number in range(3)),
    ]
    unreadable = 0
    plain = open_source(pictures, needed=GRI)
    for row in range(10):
        try:
            expected = plain[row]
        except Unreadable as error:
            with pytest.raises(Unreadable, match=str(error)[:30]):
                packed[row]
            unreadable += 1
            continue
        np.testing.assert_array_equal(packed[row].image, expected.image)
    assert unreadable == 2 and packed.stack is None


def stacked(tmp_path, images) -> None:
    np.savez(
        tmp_path / "stack.npz",
        images=images,
        id=2**60 + np.arange(len(images)),
        ra=np.linspace(0, 1, len(images)),
        bands=np.array(GRI),
        pixel_scale=np.array(0.2),
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_cutouts_of_one_form_are_read_many_at_a_time(tmp_path, dtype):
    images = (np.random.default_rng(0).random((10, 8, 8, 3)) * 60000 / 256).astype(dtype)
    images *= np.asarray(200 if dtype == np.uint16 else 1, dtype)
    stacked(tmp_path, images)
    shards.pack(open_source(tmp_path / "stack.npz", needed=None), tmp_path / "packed")
    source = open_source(tmp_path / "packed", needed=("i", "g"))
    assert source.stack.dtype == dtype and source.stack.pixel_scale == 0.2
    np.testing.assert_array_equal(list(source.stack.read(slice(2, 9))), images[2:9, ..., [2, 0]])
    assert source.table["id"].tolist() == (2**60 + np.arange(10)).tolist()
    np.testing.assert_array_equal(source.table["ra"], np.linspace(0, 1, 10))

    preprocessing = Preprocessing.unnormalised(("i", "g"), 8, None, "none", 1.0)
    found = [
        batch.inputs.images[0][: batch.count]
        for batch in pipeline.batches(source, (preprocessing,), how="auto", batch_size=3)
    ]
    np.testing.assert_array_equal(np.concatenate(found), images[..., [2, 0]])


def test_masked_pixels_stay_masked(tmp_path):
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    images[1, 2, 3, 0] = np.nan
    stacked(tmp_path, images)
    shards.pack(open_source(tmp_path / "stack.npz", needed=None), tmp_path / "packed")
    source = open_source(tmp_path / "packed", needed=GRI)
    np.testing.assert_array_equal(source[1].image, images[1])
    preprocessing = Preprocessing.unnormalised(GRI, 8, None, "none", 1.0)
    (batch,) = pipeline.batches(source, (preprocessing,), how="auto", batch_size=4)
    assert batch.masked.tolist() == [0, 1, 0, 0] and np.isfinite(batch.inputs.images[0]).all()


def test_a_killed_packing_goes_on(tmp_path):
    images = np.random.default_rng(0).normal(size=(10, 8, 8, 3)).astype(np.float32)
    stacked(tmp_path, images)
    source = open_source(tmp_path / "stack.npz", needed=None)
    done = []

    class Killed(Exception):
        pass

    def kill(count: int) -> None:
        done.append(count)
        if len(done) == 7:
            raise Killed

    with pytest.raises(Killed):
        shards.pack(source, tmp_path / "packed", progress=kill)
    with pytest.raises(UsageError):
        open_source(tmp_path / "packed", needed=GRI)
    done.clear()
    done += [0] * 100
    assert shards.pack(source, tmp_path / "packed", progress=done.append) == 10
    assert len(done) == 106  # the first shard of four was whole
    packed = open_source(tmp_path / "packed", needed=GRI)
    np.testing.assert_array_equal(list(packed.stack.read(slice(0, 10))), images)
    with pytest.raises(UsageError, match="holds shards already"):
        shards.pack(source, tmp_path / "packed")
    assert shards.pack(source, tmp_path / "packed", resume=False) == 10


def test_damage_is_said(tmp_path):
    images = np.random.default_rng(0).normal(size=(10, 8, 8, 3)).astype(np.float32)
    stacked(tmp_path, images)
    folder = tmp_path / "packed"
    shards.pack(open_source(tmp_path / "stack.npz", needed=None), folder)
    last = shards.shard_path(folder, 2)
    whole = last.read_bytes()
    last.write_bytes(b"nothing of the kind")
    with pytest.raises(UsageError, match="cannot be read"):
        open_source(folder, needed=GRI)
    last.write_bytes(shards.shard_path(folder, 1).read_bytes())
    with pytest.raises(UsageError, match="an index of 10 cutouts, and 12 of them in shards"):
        open_source(folder, needed=GRI)
    last.unlink()
    with pytest.raises(UsageError, match="cannot be read: .*shard-00002"):
        open_source(folder, needed=GRI)
    last.write_bytes(whole)
    assert len(open_source(folder, needed=GRI)) == 10


def test_a_damaged_record_is_rejected_and_no_other(tmp_path):
    images = np.random.default_rng(0).normal(size=(10, 8, 8, 3)).astype(np.float32)
    stacked(tmp_path, images)
    shards.pack(open_source(tmp_path / "stack.npz", needed=None), tmp_path / "packed")
    shard = shards.shard_path(tmp_path / "packed", 1)
    content = bytearray(shard.read_bytes())
    content[content.index(images[5].tobytes()) + 100] ^= 255
    shard.write_bytes(content)
    source = open_source(tmp_path / "packed", needed=GRI)
    plain = Preprocessing.unnormalised(GRI, 8, None, "none", 1.0)
    batches = pipeline.batches(source, [plain], how="auto", batch_size=4)
    pixels, reasons = zip(
        *((b.inputs.images[0][: b.count], b.reasons) for b in batches), strict=True
    )
    assert [row for row, reason in enumerate(np.concatenate(reasons)) if reason] == [5]
    assert "the shard is damaged" in reasons[1][1]
    images[5] = 0
    np.testing.assert_array_equal(np.concatenate(pixels), images)


def test_a_packing_goes_on_with_the_same_data_only(tmp_path):
    """Pixels that were replaced under the same name meanwhile would stand beside other ids."""
    images = np.random.default_rng(0).normal(size=(10, 8, 8, 3)).astype(np.float32)
    stacked(tmp_path, images)
    source = open_source(tmp_path / "stack.npz", needed=None)
    shards.pack(source, tmp_path / "packed", rows=range(0, 8))
    stacked(tmp_path, images + 1)
    other = open_source(tmp_path / "stack.npz", needed=None)
    with pytest.raises(UsageError, match=r"8 rows that were done with data_sha256 .*--no-resume"):
        shards.pack(other, tmp_path / "packed")
    with pytest.raises(UsageError, match=r"encoding raw \(now png\)"):
        shards.pack(source, tmp_path / "packed", encoding="png")
    with pytest.raises(UsageError, match=r"max_values None \(now 9\)"):
        shards.pack(source, tmp_path / "packed", settings={"max_values": 9})
    assert shards.pack(other, tmp_path / "packed", resume=False) == 10
    packed = open_source(tmp_path / "packed", needed=GRI)
    np.testing.assert_array_equal(list(packed.stack.read(slice(0, 10))), images + 1)


def test_parts_packed_apart_become_one(tmp_path):
    images = np.random.default_rng(0).normal(size=(10, 8, 8, 3)).astype(np.float32)
    stacked(tmp_path, images)
    source, done = open_source(tmp_path / "stack.npz", needed=None), []
    assert shards.pack(source, tmp_path / "packed", rows=range(4, 8)) == 4
    assert not shards.are_shards(tmp_path / "packed")
    assert shards.pack(source, tmp_path / "packed", progress=done.append) == 10
    assert len(done) == 6
    packed = open_source(tmp_path / "packed", needed=GRI)
    np.testing.assert_array_equal(list(packed.stack.read(slice(0, 10))), images)
