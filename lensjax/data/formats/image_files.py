"""Sources of image files: one file per cutout, or one file per band by a template."""

import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from astropy.table import Table

from lensjax.data.bands import Selection, Wanted, select, select_in
from lensjax.data.formats.fits import first_of, fits_stack
from lensjax.data.formats.pictures import FITS_SUFFIXES, has_suffix, read_planes, stem
from lensjax.data.planes import COLOURS, Cutout, Names, Plane, Unreadable
from lensjax.data.preprocess import join
from lensjax.data.source import (
    MOST_THREADS,
    Arrays,
    Source,
    describe,
    source_of,
    source_of_arrays,
)
from lensjax.errors import UsageError
from lensjax.places import place, template_matches

# How many readable files are looked at before the bands of a data set are called wrong.
PROBES = 16
# How many are tried where no more is to be learned from them than whether they hold known bands:
# to ask for each of a million absent files takes ten seconds.
MOST_TRIES = 10_000

_BAND_FILE = re.compile(r"(u|g|r|i|z|y|j|h|ks?|vis|b|v|w[1-4]|f\d{3,4}[a-z]{1,2}\d?)", re.I)


class FileCutout(NamedTuple):
    """A cutout, its bands, and where in its files each of these was found, in words."""

    bands: tuple[str, ...]
    places: tuple[str, ...]
    cutout: Cutout


def source_of_files(
    table: Table,
    kind: str,
    wanted: Wanted,
    pixel_scale: float | None,
    band_names: Names = (),
    of_stack: Callable[[str, Wanted], FileCutout | None] = lambda path, wanted: None,
) -> Source:
    """Returns a source of image files, one row per cutout, with its absolute `path`.

    `{band}` in a path stands for each of the `band_names`: one file per band. `of_stack` reads a
    path that is no file but names a cutout of a stack, and gives None for any other.
    """
    paths = np.asarray(table["path"])
    tried = _tried(len(paths)) if wanted.needed else range(len(paths))
    probed = (str(paths[row]) for row in tried)

    def read_path(path: str, wanted: Wanted) -> FileCutout:
        return of_stack(path, wanted) or _read_bands(path, wanted, band_names)

    example, threads = _probe(probed, kind, lambda path: read_path(path, wanted))
    bands = (wanted.needed or ()) if example is None else example.bands
    settled = wanted._replace(needed=bands) if bands else wanted

    def read(row: int) -> Cutout:
        try:
            cutout = read_path(str(paths[row]), settled).cutout
        except UsageError as error:
            raise Unreadable(str(error)) from error
        return cutout if pixel_scale is None else replace(cutout, pixel_scale=pixel_scale)

    def files() -> Iterable[str]:
        for path in paths.tolist():
            yield from (path.replace("{band}", str(name)) for name in band_names or [""])

    if example is None:
        seen = f"none of {len(tried)} files tried of {len(paths)} can be read"
    else:
        cutout = example.cutout
        scale = pixel_scale or cutout.pixel_scale
        seen = describe(table, bands, cutout.image.shape, scale)
    return source_of(
        table,
        bands=bands,
        description=f"{kind}: {seen}",
        read=read,
        threads=threads,
        files=files,
        bands_from=() if example is None else example.places,
    )


def _tried(count: int) -> Sequence[int]:
    """Returns the first of `count` rows, then others evenly apart, at most about MOST_TRIES."""
    return [*range(min(PROBES, count)), *range(PROBES, count, count // MOST_TRIES + 1)]


def _probe(
    paths: Iterable[str], kind: str, read: Callable[[str], FileCutout]
) -> tuple[FileCutout | None, int]:
    """Returns the first file that has the bands that most of the first readable files hold, and how
    many threads it takes to keep a processor busy while others wait for the disk.

    Decoding holds the interpreter: where files do not have to be waited for, a second thread would
    only take it from the first. Raises `UsageError` where none of them holds the wanted bands.
    """
    found: list[FileCutout] = []
    refused: list[UsageError] = []
    shares = []
    for path in paths:
        began, busy = time.perf_counter(), time.thread_time()
        try:
            found.append(read(path))
        except Unreadable:
            continue
        except UsageError as error:
            refused.append(error)
        shares.append((time.perf_counter() - began) / max(time.thread_time() - busy, 1e-6))
        if len(found) + len(refused) == PROBES:
            break
    if refused and not found:
        raise UsageError(f"{kind}: {refused[0]}") from refused[0]
    if not found:
        return None, 1
    # The first file brings in the library that reads it.
    threads = min(MOST_THREADS, max(1, round(statistics.median(shares))))
    most = Counter(each.bands for each in found).most_common(1)[0][0]
    return next(each for each in found if each.bands == most), threads


def _read_bands(path: str, wanted: Wanted, band_names: Names) -> FileCutout:
    """Returns the cutout of one file, or of one file per band, and which bands it has from where.

    Raises `Unreadable`, and `UsageError` where a readable file does not hold the wanted bands.
    """
    if not path:
        raise Unreadable("no path is given")
    if "{band}" in path:
        if not band_names:
            raise Unreadable(f"no such file: {path}")
        chosen = select(band_names, wanted)
        files = [path.replace("{band}", str(band_names[plane])) for plane in chosen.planes]
        planes = [_only_plane(file, wanted.most_values) for file in files]
        return FileCutout(chosen.bands, tuple(Path(file).name for file in files), join(planes))
    chosen = Selection((), ())

    def choose(names: Names) -> tuple[int, ...]:
        nonlocal chosen
        chosen = select(names, wanted)
        return chosen.planes

    planes = read_planes(path, choose, wanted.most_values)
    return FileCutout(chosen.bands, tuple(plane.place for plane in planes), join(planes))


def _only_plane(path: str, most_values: int) -> Plane:
    """Returns the plane of a file of one band, the first where others (of other filters) follow."""

    def choose(names: Names) -> tuple[int, ...]:
        if len(names) > 1 and (names == COLOURS or not any(names)):
            raise Unreadable(f"{Path(path).name} holds {len(names)} channels, not one band")
        return (0,)

    try:
        return read_planes(path, choose, most_values)[0]
    except Unreadable as error:
        raise Unreadable(f"{Path(path).name}: {error}") from error


def open_template(data: str | Path, wanted: Wanted, pixel_scale: float | None) -> Source:
    """Returns cutouts of one file per band: `{band}` stands for the band, `{id}` for the object.

    Without `{id}` the files are one cutout, or, where they are (N, H, W), a stack of N.
    """
    template = str(data)
    if template.count("{band}") != 1 or template.count("{id}") > 1:
        raise UsageError(f"--data {template}: a template has {{band}} once and {{id}} at most once")
    found = template_matches(
        template, "|".join(map(re.escape, wanted.declared))
    ) or template_matches(template)
    if not found:
        raise UsageError(f"--data {template}: no file is of this form")
    band_names = tuple(sorted({band for _, band in found}))
    kind, absolute = f"one file per band {template}", str(place(template).absolute())
    if "{id}" in template:
        objects = sorted({name for name, _ in found})
        paths = [absolute.replace("{id}", name) for name in objects]
        table = Table({"id": objects, "path": paths})
        return source_of_files(table, kind, wanted, pixel_scale, band_names)
    bands, planes = select_in(kind, band_names, wanted)
    files = [template.replace("{band}", str(band_names[plane])) for plane in planes]
    if has_suffix(template, FITS_SUFFIXES) and len(first_of(files[0]).shape) == 3:
        stacks, _, skies = zip(*(fits_stack(file) for file in files), strict=True)
        if len({stack.shape for stack in stacks}) > 1:
            shapes = ", ".join(f"{b} {s.shape}" for b, s in zip(bands, stacks, strict=True))
            raise UsageError(f"{kind}: the bands differ in shape: {shapes}")
        arrays = Arrays(_Bands(stacks), {}, bands, pixel_scale or skies[0].pixel_scale)
        own = wanted._replace(needed=bands, order=(), called=())
        source = source_of_arrays(arrays, place(template), own, lambda: tuple(files))
        return replace(source, bands_from=tuple(Path(file).name for file in files))
    table = Table({"id": [Path(template).parent.name or "cutout"], "path": [absolute]})
    return source_of_files(table, kind, wanted, pixel_scale, band_names)


@dataclass(frozen=True)
class _Bands:
    """Arrays (N, H, W), one a band, as one (N, H, W, band)."""

    stacks: tuple[np.ndarray, ...]

    def __getitem__(self, rows: slice) -> np.ndarray:
        return np.stack([images[rows] for images in self.stacks], axis=-1)

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.stacks[0].shape, len(self.stacks))

    @property
    def dtype(self) -> np.dtype:
        return np.result_type(*self.stacks)


def band_folder(path: Path, files: list[str], wanted: Wanted) -> str | None:
    """Returns the template of a folder of files named by bands (`g.fits`, `r.fits`), else None."""
    stems = [stem(file) for file in files]
    suffixes = {file[len(name) :] for file, name in zip(files, stems, strict=True)}
    said = wanted.declared
    if len(files) < 2 or len(suffixes) > 1 or len(set(stems)) < len(stems):
        return None
    if not all(name in said or _BAND_FILE.fullmatch(name) for name in stems):
        return None
    return str(path / ("{band}" + suffixes.pop()))
