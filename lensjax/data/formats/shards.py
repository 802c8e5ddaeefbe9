"""Cutouts packed into ArrayRecord shards, so that a million small files are read once.

A folder holds `shard-00000.array_record` and so on, a record a cutout in the order of the rows, and
`index.parquet`: the table of the source, and of each cutout its size, type, pixel scale and, where
it could not be read, why. A record is the pixels row by row, (height, width, band), in the
narrowest type that holds them exactly, or a PNG file of them.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import grain
import imagecodecs
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from astropy.table import Table

from lensjax.data.bands import Wanted, select
from lensjax.data.formats.tables import plain, read_table, standardise
from lensjax.data.identity import content_sha256
from lensjax.data.planes import Cutout, Unreadable, place_of
from lensjax.data.source import (
    ONE_A_CORE,
    Source,
    Stack,
    describe,
    pixel_scale_of,
    rows_of_file,
    source_of,
)
from lensjax.errors import LensjaxError, UsageError, one_line
from lensjax.files import draft_of, make_folder, remove_drafts, replacing
from lensjax.resume import PartialRows

Encoding = Literal["raw", "png"]

INDEX = "index.parquet"
PROGRESS = ".partial"
SHARD_ROWS = 4096
TYPES = ("uint8", "uint16", "float32")
PNG = "png"
# What the index says of each cutout beside the table of the source.
HEIGHT, WIDTH, TYPE, SCALE, MASKED, REASON = OF_CUTOUT = tuple(
    f"_{name}" for name in ("height", "width", "type", "pixel_scale", "masked", "reason")
)
_BANDS = "lensjax_bands"

Shards = list[tuple[str, int]]
"""Files of SHARD_ROWS records each, and when each was changed."""


class Packed(NamedTuple):
    """A cutout as a record, and what the index says of it. `type` is one of TYPES or PNG, `masked`
    the number of values that are NaN."""

    record: bytes
    height: int = 0
    width: int = 0
    type: str = ""
    pixel_scale: float = float("nan")
    masked: int = 0
    ra: float = float("nan")
    dec: float = float("nan")
    reason: str = ""


def pack(
    source: Source,
    folder: Path,
    *,
    rows: range | None = None,
    settings: Mapping[str, Any] = {},
    encoding: Encoding = "raw",
    resume: bool = True,
    threads: int | None = None,
    progress: Callable[[int], object] = lambda count: None,
) -> int:
    """Writes cutouts of `source` to shards in `folder` and returns how many could be read.

    All of them, or those of `rows`, which begin and end with a shard; then no index is written, and
    a run for all of them goes on from there. A run that was killed goes on with the shard that it
    was writing, where the data, the `settings` that they were opened with and the encoding are the
    same. Raises UsageError where the folder holds something else, LensjaxError where it cannot be
    written to.
    """
    make_folder(folder)
    if (folder / INDEX).exists() and resume:
        raise UsageError(f"{folder} holds shards already: give another folder, or --no-resume")
    every = range(len(source))
    rows = every if rows is None else rows
    if not rows:
        return 0
    data = {"data_sha256": content_sha256(source), "bands": source.bands, "encoding": encoding}
    parts = PartialRows(folder / PROGRESS, {**settings, **data}, rows, resume=resume)
    with closing(parts):
        (folder / INDEX).unlink(missing_ok=True)
        for gap in parts.missing():
            for first in range(gap.start, gap.stop, SHARD_ROWS):
                shard = range(first, min(first + SHARD_ROWS, gap.stop))
                packed = _write_shard(
                    shard_path(folder, first // SHARD_ROWS),
                    _packed(source, shard, encoding, threads),
                    progress,
                )
                # A row of the index without its record, which is in the shard by now.
                of_index = zip(*(item[1:] for item in packed), strict=True)
                columns = dict(zip(Packed._fields[1:], map(np.array, of_index), strict=True))
                parts.add(first, columns)
                parts.save()
        columns = parts.columns()
        if rows == every:
            _write_index(folder / INDEX, source, columns)
            parts.remove()
    return int((columns["reason"] == "").sum())


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.array_record"


def are_shards(folder: Path) -> bool:
    """True for a folder that `pack` has written."""
    return (folder / INDEX).is_file()


def open_shards(path: Path, wanted: Wanted, pixel_scale: float | None) -> Source:
    """The cutouts that `pack` wrote to a folder. Raises `UsageError` where it is not whole."""
    from lensjax.data.formats import arrow

    if not are_shards(path):
        raise UsageError(f"{path} is no folder of shards: it has no {INDEX}")
    index = read_table(path / INDEX)
    missing = [name for name in OF_CUTOUT if name not in index.colnames]
    described = arrow.parquet_metadata(path / INDEX).get(_BANDS)
    if missing or described is None or not len(index):
        raise UsageError(f"{path / INDEX} is no index of shards: pack the cutouts again")
    count = len(index)
    shards = [shard_path(path, number) for number in range(-(-count // SHARD_ROWS))]
    absent = [shard.name for shard in shards if not shard.is_file()]
    if absent:
        raise UsageError(f"{path} lacks {', '.join(absent)}: pack the cutouts again")
    names = tuple(json.loads(described))
    try:
        bands, planes = select(names, wanted)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    records = _whole(path, shards, count)
    form = {name: np.ma.filled(np.ma.asarray(index[name])) for name in (HEIGHT, WIDTH, TYPE, SCALE)}
    reasons = np.ma.filled(np.ma.asarray(index[REASON]), "").astype(str)
    if pixel_scale is not None:
        form[SCALE] = np.full(count, pixel_scale)
    for scale in np.unique(form[SCALE]).tolist():
        if scale == scale:  # unknown where it is NaN
            pixel_scale_of(scale, f"{path / INDEX}: {SCALE}")

    def scale_of(row: int) -> float | None:
        scale = float(form[SCALE][row])
        return scale if scale > 0 else None

    def read(row: int) -> Cutout:
        if reasons[row]:
            raise Unreadable(str(reasons[row]))
        shape = (int(form[HEIGHT][row]), int(form[WIDTH][row]), len(names))
        (record,) = _records(records, range(row, row + 1))
        image = _pixels(record, str(form[TYPE][row]), shape)
        return Cutout(np.ascontiguousarray(image[..., planes], np.float32), scale_of(row))

    table = standardise(index, str(path))
    table.remove_columns(list(OF_CUTOUT))
    if "path" not in table.colnames:
        table["path"] = rows_of_file(path, count)
    readable = np.flatnonzero(reasons == "")
    files = tuple(map(str, (path / INDEX, *shards)))
    if not len(readable):
        none = f"shards {path}: none can be read"
        return source_of(table, bands, none, ONE_A_CORE, read, files=lambda: files)
    first = int(readable[0])
    height, width = int(form[HEIGHT][first]), int(form[WIDTH][first])
    example = Cutout(np.empty((height, width, len(bands)), np.float32), scale_of(first))
    stack = None
    is_one = all(len(np.unique(values)) == 1 for values in form.values())
    if is_one and len(readable) == count and form[TYPE][0] in TYPES:
        whole = not np.any(index[MASKED])
        stack = _stack(records, example, str(form[TYPE][0]), len(names), planes, whole)
    text = f"shards {path}: {describe(table, bands, example)}"
    source = source_of(table, bands, text, ONE_A_CORE, read, stack, lambda: files)
    return replace(source, bands_from=tuple(place_of("channel", p, names[p]) for p in planes))


def _packed(
    source: Source, rows: range, encoding: Encoding, threads: int | None
) -> Iterator[Packed]:
    """The cutouts of some rows, read ahead by threads, in order."""
    ra, dec = source.places

    def read(row: int) -> Packed:
        try:
            cutout = source[row]
        except Unreadable as error:
            return Packed(b"", reason=str(error), ra=ra[row], dec=dec[row])
        record, kind = _record(cutout.image, encoding)
        return Packed(
            record,
            cutout.image.shape[0],
            cutout.image.shape[1],
            kind,
            cutout.pixel_scale or float("nan"),
            cutout.masked,
            ra[row] if np.isfinite(ra[row]) else cutout.ra,
            dec[row] if np.isfinite(dec[row]) else cutout.dec,
        )

    threads = source.threads if threads is None else threads
    dataset = grain.MapDataset.range(rows.start, rows.stop).map(read)
    ahead = 64 * threads
    return iter(dataset.to_iter_dataset(grain.ReadOptions(threads, ahead)))


def _record(image: np.ndarray, encoding: Encoding) -> tuple[bytes, str]:
    """An image (height, width, band) float32 as bytes, and their type."""
    kind = "float32"
    with np.errstate(invalid="ignore"):
        for name in ("uint8", "uint16"):
            if np.array_equal(image.astype(name), image):
                kind = name
                break
    pixels = np.ascontiguousarray(image, kind)
    if encoding == "png" and kind != "float32" and pixels.shape[2] in (1, 3):
        return bytes(imagecodecs.png_encode(pixels)), PNG
    return pixels.tobytes(), kind


def _pixels(record: bytes, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """The image of a record. Raises `Unreadable` where it is not of the size that is stated."""
    try:
        found = imagecodecs.png_decode(record) if kind == PNG else np.frombuffer(record, kind)
        return found.reshape(shape)
    except Exception as error:
        raise Unreadable(f"the record is damaged: {one_line(error, 100)}") from error


def _stack(
    records: Shards,
    example: Cutout,
    kind: str,
    channels: int,
    planes: tuple[int, ...],
    whole: bool,
) -> Stack:
    """The same cutouts many at a time: all of one size and type."""
    height, width, bands = example.image.shape
    shape, all_planes = (height, width, channels), planes == tuple(range(channels))

    def read(rows: slice) -> Iterator[np.ndarray]:
        for record in _records(records, range(rows.start, rows.stop)):
            image = _pixels(record, kind, shape)
            yield image if all_planes else image[..., planes]

    return Stack((height, width, bands), np.dtype(kind), example.pixel_scale, read, whole)


def _whole(path: Path, shards: list[Path], count: int) -> Shards:
    """The shards, which hold `count` records. Raises `UsageError` where they are damaged."""
    try:
        found = len(grain.sources.ArrayRecordDataSource([str(shard) for shard in shards]))
    # The library has errors of its own, and of the operating system.
    except Exception as error:
        reason = one_line(error, 160)
        raise UsageError(f"the shards of {path} cannot be read: {reason}") from error
    if found != count:
        raise UsageError(f"{path} has an index of {count} cutouts, and {found} of them in shards")
    return [(str(shard), shard.stat().st_mtime_ns) for shard in shards]


def _records(shards: Shards, rows: range) -> Iterator[bytes]:
    """The records of some rows. Raises `Unreadable`."""
    try:
        for number in range(rows.start // SHARD_ROWS, -(-rows.stop // SHARD_ROWS)):
            first = number * SHARD_ROWS
            places = range(max(rows.start - first, 0), min(rows.stop - first, SHARD_ROWS))
            reader = _reader(*shards[number])
            for place in places:
                # Several at once would be read by threads of the library's, in twice the time of
                # the cores, and by a list of places in nearly that.
                yield from reader.read(place, place + 1)
    except Exception as error:
        raise Unreadable(f"the shard is damaged: {one_line(error, 100)}") from error


# In a third of the time of Grain's source, which starts threads for each batch.
@lru_cache(maxsize=16)
def _reader(shard: str, changed: int) -> ArrayRecordReader:
    """What reads a shard as it was when it `changed`; opened by each process for itself."""
    del changed
    return ArrayRecordReader(shard, options="readahead_buffer_size:0")


def _write_shard(
    path: Path, packed: Iterator[Packed], progress: Callable[[int], object]
) -> list[Packed]:
    """Writes a shard, whole or not at all, and returns its cutouts without their records."""
    remove_drafts(path)
    draft = draft_of(path, os.getpid())
    done = []
    try:
        # One record a group: any of them is found without reading its neighbours.
        writer = ArrayRecordWriter(str(draft), "group_size:1,uncompressed")
        for item in packed:
            writer.write(item.record)
            done.append(item._replace(record=b""))
            progress(1)
        writer.close()
        os.replace(draft, path)
    except (OSError, RuntimeError) as error:
        raise LensjaxError(f"cannot write {path}: {error}; choose another folder") from error
    finally:
        draft.unlink(missing_ok=True)
    return done


def _write_index(path: Path, source: Source, columns: dict[str, np.ndarray]) -> None:
    from lensjax.data.formats import arrow

    table: Table = source.table.copy(copy_data=False)
    table["ra"], table["dec"] = columns["ra"], columns["dec"]
    for name in OF_CUTOUT:
        table[name] = columns[name.removeprefix("_")]
    index = arrow.from_table(Table([plain(table[name]) for name in table.colnames]))
    with replacing(path, index.nbytes) as file:
        arrow.write_parquet(file, index, {_BANDS: json.dumps(source.bands)})
