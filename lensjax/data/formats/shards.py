"""Cutouts packed into ArrayRecord shards, so that a million small files are read once.

A folder holds `shard-00000.array_record` and so on, one record per cutout in the order of the rows,
and `index.parquet`: the table of the source, and of each cutout its size, type, pixel scale and,
where it could not be read, why. A record is the pixels row by row, (height, width, band), in the
narrowest type that holds them exactly, or a PNG file of them.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import grain
import imagecodecs
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from astropy.table import Table

from lensjax.data.bands import Wanted, select_in
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
from lensjax.resume import PartialRows

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
    parts = PartialRows(folder / PROGRESS, {**settings, **data}, rows, resume=resume)
    with closing(parts):
        (folder / INDEX).unlink(missing_ok=True)
        for gap in parts.missing():
            for first in range(gap.start, gap.stop, SHARD_ROWS):
                shard = range(first, min(first + SHARD_ROWS, gap.stop))
                packed = _packed(source, shard, encoding, threads)
                path = shard_path(folder, first // SHARD_ROWS)
                parts.add(first, _write_shard(path, packed, progress))
                parts.save()
        columns = parts.columns()
        if rows == every:
            _write_index(folder / INDEX, source, columns)
            parts.remove()
    return int((columns[REASON] == "").sum())


def shard_path(folder: Path, number: int) -> Path:
    """Returns where the shard of this number lies."""
    return folder / f"shard-{number:05d}.array_record"


def are_shards(folder: Path) -> bool:
    """Returns True for a folder that `pack` has written."""
    return (folder / INDEX).is_file()


@dataclass(frozen=True)
class _Records:
    """The records of a folder of shards. `form`: height, width, type and pixel scale (arcsec, NaN
    where unknown) of each, `reasons`: why one could not be packed, "" where it was; `planes`:
    which of the `channels` of a record are given out."""

    data: grain.sources.ArrayRecordDataSource
    form: dict[str, np.ndarray]
    reasons: np.ndarray
    channels: int
    planes: tuple[int, ...]

    def pixels(self, row: int) -> np.ndarray:
        """Returns an image in the type of its record. Raises `Unreadable`."""
        if self.reasons[row]:
            raise Unreadable(str(self.reasons[row]))
        height, width, kind = (self.form[name][row] for name in (HEIGHT, WIDTH, TYPE))
        try:
            record = self.data[row]
            image = imagecodecs.png_decode(record) if kind == PNG else np.frombuffer(record, kind)
            return image.reshape(height, width, self.channels)[..., self.planes]
        # Arbitrary bytes: the libraries have errors of their own.
        except Exception as error:
            raise Unreadable(f"the shard is damaged: {one_line(error, 100)}") from error

    def many(self, rows: slice) -> Iterator[np.ndarray]:
        """Yields the images of some rows."""
        return map(self.pixels, range(rows.start, rows.stop))

    def cutout(self, row: int) -> Cutout:
        """Returns a cutout. Raises `Unreadable`."""
        return Cutout(np.ascontiguousarray(self.pixels(row), np.float32), self.scale(row))

    def scale(self, row: int) -> float | None:
        """Returns the pixel scale of a cutout, None where it is not known."""
        scale = float(self.form[SCALE][row])
        return scale if scale > 0 else None


def open_shards(path: Path, wanted: Wanted, pixel_scale: float | None) -> Source:
    """Returns the cutouts that `pack` wrote to a folder. Raises `UsageError` where it is not
    whole."""
    index, names = _read_index(path)
    count = len(index)
    shards = [shard_path(path, number) for number in range(-(-count // SHARD_ROWS))]
    data = _open_records(path, shards, count)
    bands, planes = select_in(path, names, wanted)
    reasons = np.ma.filled(np.ma.asarray(index[REASON]), "").astype(str)
    form = _forms(path, index, pixel_scale)
    records = _Records(data, form, reasons, len(names), planes)
    table = standardise(index, str(path))
    table.remove_columns([name for name in (*OF_CUTOUT, _MASKED) if name in table.colnames])
    if "path" not in table.colnames:
        table["path"] = rows_of_file(path, count)
    readable = np.flatnonzero(reasons == "")
    seen, stack = "none can be read", None
    if len(readable):
        first = int(readable[0])
        shape = (int(form[HEIGHT][first]), int(form[WIDTH][first]), len(bands))
        scale, kind = records.scale(first), str(form[TYPE][first])
        seen = describe(table, bands, shape, scale)
        if kind in TYPES and all(len(np.unique(each[readable])) == 1 for each in form.values()):
            stack = Stack(shape, np.dtype(kind), scale, records.many)
    return source_of(
        table,
        bands=bands,
        description=f"shards {path}: {seen}",
        read=records.cutout,
        stack=stack,
        files=lambda: map(str, (path / INDEX, *shards)),
        bands_from=tuple(place_of("channel", plane, names[plane]) for plane in planes)
        if len(readable)
        else (),
    )


def _read_index(path: Path) -> tuple[Table, tuple[str | None, ...]]:
    """Returns the index of a folder of shards and the names of the bands in its records."""
    from lensjax.data.formats import arrow

    if not are_shards(path):
        raise UsageError(f"{path} is no folder of shards: it has no {INDEX}")
    index = read_table(path / INDEX)
    described = arrow.parquet_metadata(path / INDEX).get(_BANDS)
    try:
        bands = json.loads(described or "")
    except ValueError:
        bands = None
    if not isinstance(bands, list) or not len(index) or not set(OF_CUTOUT) <= set(index.colnames):
        raise UsageError(f"{path / INDEX} is no index of shards: pack the cutouts again")
    return index, tuple(bands)


def _open_records(
    path: Path, shards: Sequence[Path], count: int
) -> grain.sources.ArrayRecordDataSource:
    """Returns the records of the shards. Raises `UsageError` where they are not `count`."""
    with refusing(f"the shards of {path} cannot be read"):
        records = grain.sources.ArrayRecordDataSource([str(shard) for shard in shards])
    if len(records) != count:
        raise UsageError(
            f"{path} has an index of {count} cutouts, and {len(records)} of them in shards"
        )
    return records


def _forms(path: Path, index: Table, pixel_scale: float | None) -> dict[str, np.ndarray]:
    """Returns height, width, type and pixel scale (NaN: unknown) of each cutout."""
    form = {name: np.ma.filled(np.ma.asarray(index[name])) for name in (HEIGHT, WIDTH, TYPE, SCALE)}
    if pixel_scale is not None:
        form[SCALE] = np.full(len(index), pixel_scale)
    for scale in np.unique(form[SCALE][~np.isnan(form[SCALE])]).tolist():
        pixel_scale_of(scale, f"{path / INDEX}: {SCALE}")
    return form


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
        record, kind = _record(cutout.image, encoding)
        height, width, _ = cutout.image.shape
        entry |= {HEIGHT: height, WIDTH: width, TYPE: kind}
        entry[SCALE] = cutout.pixel_scale or np.nan
        for name, value in (("ra", cutout.ra), ("dec", cutout.dec)):
            entry[name] = entry[name] if np.isfinite(entry[name]) else value
        return record, entry

    threads = source.threads if threads is None else threads
    dataset = grain.MapDataset.range(rows.start, rows.stop).map(read)
    yield from dataset.to_iter_dataset(grain.ReadOptions(threads, 64 * threads))


def _record(image: np.ndarray, encoding: Encoding) -> tuple[bytes, str]:
    """Returns an image (height, width, band) float32 as bytes, and their type."""
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


def _write_shard(
    path: Path,
    packed: Iterator[tuple[bytes, dict[str, Any]]],
    progress: Callable[[int], object],
) -> dict[str, np.ndarray]:
    """Writes a shard, whole or not at all, and returns the columns of the index for it."""
    remove_drafts(path)
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
