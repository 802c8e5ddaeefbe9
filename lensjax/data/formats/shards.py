"""Cutouts packed into ArrayRecord shards, so that a million small files are read once.

A folder holds `shard-00000.array_record` and so on, one record per cutout in the order of the rows,
and `index.parquet`: the table of the source, and of each cutout its size, type, pixel scale and,
where it could not be read, why. A record is the pixels row by row, (height, width, band), in the
narrowest type that holds them exactly, or a PNG file of them.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import grain
import imagecodecs
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from astropy.table import Table

from lensjax.data.bands import Wanted, select_in
from lensjax.data.copies import local
from lensjax.data.formats.tables import plain, read_table, standardise
from lensjax.data.identity import content_sha256
from lensjax.data.planes import Cutout, Unreadable, place_of, refusing
from lensjax.data.source import (
    Source,
    Stack,
    describe,
    pixel_scale_of,
    rows_of_file,
    source_of,
)
from lensjax.errors import LensjaxError, UsageError, one_line
from lensjax.files import draft_of, make_folder, remove_drafts, replacing
from lensjax.ledger import claimed
from lensjax.places import entries, is_local

Encoding = Literal["raw", "png"]

INDEX = "index.parquet"
PROGRESS = ".partial"
SHARD_ROWS = 4096
TYPES = ("uint8", "uint16", "float32")
PNG = "png"
# What the index says of each cutout in addition to the table of the source.
HEIGHT, WIDTH, TYPE, SCALE, REASON = OF_CUTOUT = tuple(
    f"_{name}" for name in ("height", "width", "type", "pixel_scale", "reason")
)
_BANDS = "lensjax_bands"
# One thread opens a shard, others wait for it.
_OPENING = Lock()
# Was written there by earlier versions.
_MASKED = "_masked"


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
    with claimed(folder / PROGRESS, {**settings, **data}, rows, resume=resume) as ledger:
        (folder / INDEX).unlink(missing_ok=True)
        for gap in ledger.missing():
            for first in range(gap.start, gap.stop, SHARD_ROWS):
                shard = range(first, min(first + SHARD_ROWS, gap.stop))
                packed = _packed(source, shard, encoding, threads)
                path = shard_path(folder, first // SHARD_ROWS)
                ledger.add(first, _write_shard(path, packed, progress))
                ledger.save()
        columns = ledger.columns()
        if rows == every:
            _write_index(folder / INDEX, source, columns)
            ledger.finish()
    return int((columns[REASON] == "").sum())


def shard_path(folder: Path, number: int) -> Path:
    """Returns where the shard of this number lies."""
    return folder / f"shard-{number:05d}.array_record"


def are_shards(folder: Path) -> bool:
    """Returns True for a folder that `pack` has written."""
    return (folder / INDEX).is_file()


def open_shards(path: Path, wanted: Wanted, pixel_scale: float | None) -> Source:
    """Returns the cutouts that `pack` wrote to a folder. Raises `UsageError` where it is not
    whole."""
    index, names = _read_index(path)
    count, channels = len(index), len(names)
    shards = [shard_path(path, number) for number in range(-(-count // SHARD_ROWS))]
    with refusing(f"the shards of {path} cannot be read"):
        records = _records(path, shards, count)
    if len(records) != count:
        raise UsageError(
            f"{path} has an index of {count} cutouts, and {len(records)} of them in shards"
        )
    bands, planes = select_in(path, names, wanted)
    reasons = np.ma.filled(np.ma.asarray(index[REASON]), "").astype(str)
    form = {name: np.ma.filled(np.ma.asarray(index[name])) for name in (HEIGHT, WIDTH, TYPE, SCALE)}
    if pixel_scale is not None:
        form[SCALE] = np.full(count, pixel_scale)
    for scale in np.unique(form[SCALE][~np.isnan(form[SCALE])]).tolist():
        pixel_scale_of(scale, f"{path / INDEX}: {SCALE}")

    def pixels(row: int) -> np.ndarray:
        if reasons[row]:
            raise Unreadable(str(reasons[row]))
        kind, shape = form[TYPE][row], (form[HEIGHT][row], form[WIDTH][row], channels)
        try:
            image = np.asarray(_decoded(records[row], kind)).reshape(shape)
        except LensjaxError:
            raise
        # Arbitrary bytes: the libraries have errors of their own.
        except Exception as error:
            raise Unreadable(f"the shard is damaged: {one_line(error, 100)}") from error
        return image[..., planes]

    def scale_of(row: int) -> float | None:
        return None if np.isnan(form[SCALE][row]) else float(form[SCALE][row])

    def cutout(row: int) -> Cutout:
        return Cutout(np.ascontiguousarray(pixels(row), np.float32), scale_of(row))

    table = standardise(index, str(path))
    table.remove_columns([name for name in (*OF_CUTOUT, _MASKED) if name in table.colnames])
    if "path" not in table.colnames:
        table["path"] = rows_of_file(path, count)
    places = [place_of("channel", plane, names[plane]) for plane in planes]
    seen, stack, readable = "none can be read", None, np.flatnonzero(reasons == "")
    if len(readable):
        first = int(readable[0])
        shape = (int(form[HEIGHT][first]), int(form[WIDTH][first]), len(bands))
        kind, seen = str(form[TYPE][first]), describe(table, bands, shape, scale_of(first))
        if kind in TYPES and all(len(np.unique(each[readable])) == 1 for each in form.values()):
            many = lambda rows: map(pixels, range(rows.start, rows.stop))  # noqa: E731
            stack = Stack(shape, np.dtype(kind), scale_of(first), many)
    return source_of(
        table,
        bands=bands,
        description=f"shards {path}: {seen}",
        read=cutout,
        stack=stack,
        files=lambda: map(str, (path / INDEX, *shards)),
        bands_from=tuple(places) if len(readable) else (),
    )


def _records(path: Path, shards: list[Path], count: int) -> Any:
    """Returns the records of all shards. Those at an address are copied when they are needed: the
    library only reads files of this machine, and takes others for empty ones."""
    if is_local(path):
        return grain.sources.ArrayRecordDataSource([str(shard) for shard in shards])
    missing = {shard.name for shard in shards} - {name for name, _ in entries(path)}
    if missing:
        raise UsageError(f"{path} lacks {min(missing)}: pack the cutouts again")
    return _Copied(tuple(map(str, shards)), count)


@dataclass(frozen=True)
class _Copied:
    """The records of shards at an address."""

    shards: tuple[str, ...]
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> bytes:
        shard = row // SHARD_ROWS
        rows = min(self.count - shard * SHARD_ROWS, SHARD_ROWS)
        with _OPENING:
            records = _opened(self.shards[shard], rows)
        return records[row % SHARD_ROWS]


@lru_cache(maxsize=8)
def _opened(shard: str, rows: int) -> grain.sources.ArrayRecordDataSource:
    records = grain.sources.ArrayRecordDataSource([str(local(shard))])
    if len(records) != rows:
        raise LensjaxError(f"{shard} has {len(records)} cutouts instead of {rows}: pack them again")
    return records


def _read_index(path: Path) -> tuple[Table, tuple[str | None, ...]]:
    """Returns the index of a folder of shards and the names of the bands in its records."""
    from lensjax import stored

    if not are_shards(path):
        raise UsageError(f"{path} is no folder of shards: it has no {INDEX}")
    index, bands = read_table(path / INDEX), None
    with suppress(ValueError):
        bands = json.loads(stored.parquet_metadata(path / INDEX).get(_BANDS, ""))
    if not isinstance(bands, list) or not len(index) or not set(OF_CUTOUT) <= set(index.colnames):
        raise UsageError(f"{path / INDEX} is no index of shards: pack the cutouts again")
    return index, tuple(bands)


def _decoded(record: bytes, kind: str) -> np.ndarray:
    return imagecodecs.png_decode(record) if kind == PNG else np.frombuffer(record, kind)


def _packed(
    source: Source, rows: range, encoding: Encoding, threads: int | None
) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yields the records of some rows, read ahead by threads, in order, and what the index says of
    each."""
    ra, dec = source.places

    def read(row: int) -> tuple[bytes, dict[str, Any]]:
        entry: dict[str, Any] = {HEIGHT: 0, WIDTH: 0, TYPE: "", SCALE: np.nan, REASON: ""}
        entry |= {"ra": ra[row], "dec": dec[row]}
        try:
            cutout = source[row]
        except Unreadable as error:
            return b"", entry | {REASON: str(error)}
        entry[HEIGHT], entry[WIDTH], _ = cutout.image.shape
        entry[SCALE] = cutout.pixel_scale or np.nan
        for name in ("ra", "dec"):
            if not np.isfinite(entry[name]):
                entry[name] = getattr(cutout, name)
        record, entry[TYPE] = _record(cutout.image, encoding)
        return record, entry

    threads = source.threads if threads is None else threads
    dataset = grain.MapDataset.range(rows.start, rows.stop).map(read)
    yield from dataset.to_iter_dataset(grain.ReadOptions(threads, 64 * threads))


def _record(image: np.ndarray, encoding: Encoding) -> tuple[bytes, str]:
    """Returns an image (height, width, band) float32 as bytes, and their type."""
    with np.errstate(invalid="ignore"):
        exact = (name for name in TYPES[:2] if np.array_equal(image.astype(name), image))
        kind = next(exact, "float32")
    pixels = np.ascontiguousarray(image, kind)
    if encoding == "png" and kind != "float32" and pixels.shape[2] in (1, 3):
        return bytes(imagecodecs.png_encode(pixels)), PNG
    return pixels.tobytes(), kind


def _write_shard(
    path: Path, packed: Iterator[tuple[bytes, dict[str, Any]]], progress: Callable[[int], object]
) -> dict[str, np.ndarray]:
    """Writes a shard, whole or not at all, and returns the columns of the index for it."""
    remove_drafts(path.parent)
    draft = draft_of(path, os.getpid())
    entries = []
    try:
        # One record a group: any of them is found without reading its neighbours.
        writer = ArrayRecordWriter(str(draft), "group_size:1,uncompressed")
        for record, entry in packed:
            writer.write(record)
            entries.append(entry)
            progress(1)
        writer.close()
        os.replace(draft, path)
    except (OSError, RuntimeError) as error:
        raise LensjaxError(f"cannot write {path}: {error}; choose another folder") from error
    finally:
        draft.unlink(missing_ok=True)
    return {name: np.array([entry[name] for entry in entries]) for name in entries[0]}


def _write_index(path: Path, source: Source, columns: dict[str, np.ndarray]) -> None:
    from lensjax.data.formats import arrow

    table: Table = source.table.copy(copy_data=False)
    for name, values in columns.items():
        table[name] = values
    index = Table([plain(table[name]) for name in table.colnames])
    with replacing(path) as file:
        arrow.write_parquet(file, index, {_BANDS: json.dumps(source.bands)})
