"""The objects of a run that has no catalogue: its tiles are searched, and what is selected becomes
the catalogue objects.parquet.

Beside it a folder keeps the sources of each tile: a run that was killed goes on from them, and for
another selection no tile is searched again. Processes that share a run share the tiles as well, and
none waits for one that has not begun.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from astropy.table import Table

from lensjax import __version__, runtime, stored
from lensjax.columns import FOUND, describe
from lensjax.data import identity
from lensjax.data.bands import parse, reddest
from lensjax.data.designations import designations
from lensjax.data.footprints import once
from lensjax.data.formats import arrow
from lensjax.data.objects_in_tiles import planes_of
from lensjax.data.photometry import APERTURE
from lensjax.data.planes import Unreadable
from lensjax.data.tile_search import SATURATED, Search, search
from lensjax.data.tiles import Planes
from lensjax.data.zero_points import KEYWORDS, parse_zero_points
from lensjax.detection import Colour, left_out
from lensjax.errors import Interrupted, LensjaxError, UsageError
from lensjax.files import remove, replacing
from lensjax.inference_config import InferenceConfig
from lensjax.ledger import (
    BEYOND_ALL_ROWS,
    LOCK,
    SETTINGS,
    fingerprint,
    joined,
    locked,
    open_lock,
    unlock,
)
from lensjax.settings import differences, write_settings

CATALOGUE, SOURCES = "objects.parquet", ".sources"
RECORD = "detection"
SAME = 1.0
"""Arcsec within which sources in two tiles are one."""
ELSEWHERE = "found deeper in another tile"
SELECTION = ("faintest", "least_snr", "least_size", "colour")


class Survey(NamedTuple):
    """Tiles, how they are searched, the names of their `bands`, and for each tile where its sources
    are kept; `settings` are all on which the catalogue depends."""

    tiles: list[Planes]
    how: Search
    bands: tuple[str, ...]
    pieces: list[Path]
    settings: Mapping[str, Any]


def find(
    config: InferenceConfig, bands: Sequence[str], has_scores: bool
) -> tuple[InferenceConfig, dict[str, Any]]:
    """Returns the options with the catalogue of the objects that are found in the tiles of
    `config.data`, and what run.json says of the search. `bands`: those that the members see.

    Raises UsageError where tiles or options do not allow the search, and where the folder of the
    results has another catalogue of that name, or `has_scores` of other objects; LensjaxError where
    nothing is selected.
    """
    if config.catalogue is not None:
        raise UsageError("--detect finds the objects that --catalogue lists: drop one of them")
    survey = _survey(config, bands)
    path, folder = config.folder / CATALOGUE, config.folder / SOURCES
    known = _written_with(path)
    if path.exists() and not known:
        raise UsageError(f"{path} is of no run with --detect: give another --output")
    if not config.resume and config.part is None:
        remove(path)
        remove(folder)
        known = {}
    if known.get("settings") != fingerprint(survey.settings):
        if known and has_scores and config.resume:
            raise UsageError(
                f"{config.folder} holds scores of objects that were found with "
                f"{', '.join(differences(folder / SETTINGS, survey.settings))}: give another "
                "output folder, or --no-resume to start over"
            )
        known = _searched(survey, path, folder, config)
    record = known[RECORD]
    for reason in record["not_searched"].values():
        print(f"warning: not searched: {reason}", file=sys.stderr)
    if not record["selected"]:
        raise LensjaxError(f"there are no objects to score: {words(record)}")
    return replace(config, catalogue=str(path)), record


def words(record: Mapping[str, Any]) -> str:
    """Returns in words how many sources were found and why others than the objects were left
    out."""
    said = [f"{record['found']} sources found in {record['band']}, {record['selected']} selected"]
    said += [f"{count} {reason}" for reason, count in record["left_out"].items()]
    if record["not_searched"]:
        said.append(f"{len(record['not_searched'])} of {record['tiles']} tiles not searched")
    return ", ".join(said)


def _survey(config: InferenceConfig, bands: Sequence[str]) -> Survey:
    """Returns the tiles of the data and how the options say that they are searched."""
    colour, band = config.colour_range(), config.detect_band or reddest(bands)
    of_colour = colour[:2] if colour else ()
    needed = tuple(dict.fromkeys((*bands, band, *of_colour)))
    names, tiles = planes_of(str(config.data), parse(needed, config.bands))
    blue_and_red = (names.index(colour.blue), names.index(colour.red)) if colour else None
    said = config.zero_point
    zero_points = None if said is None else parse_zero_points(said, names)
    how = Search(
        names.index(band), blue_and_red, config.detect_sigma, config.mask_bits, zero_points
    )
    if config.faintest is not None:
        _refuse_unknown(tiles, how, [how.band], "--faintest None")
    if colour and colour.is_cut:
        _refuse_unknown(tiles, how, how.planes, "no range of --colour")
    files = [tuple(_read_of(tile, how)) for tile in tiles]
    states = dict(identity.states(dict.fromkeys(file for each in files for file in each)))
    search_by = {
        **how._asdict(),
        "saturated": SATURATED,
        "bands": [names[plane] for plane in how.planes],
        "version": __version__,
        "sep": version("sep"),
    }
    of_tiles = [{file: states[file] for file in each} for each in files]
    folder = config.folder / SOURCES
    pieces = [folder / f"{fingerprint({**search_by, 'files': each})}.parquet" for each in of_tiles]
    selection = {name: getattr(config, name) for name in SELECTION}
    settings = search_by | selection | {"files": fingerprint({"tiles": of_tiles})}
    return Survey(tiles, how, names, pieces, json.loads(json.dumps(settings)))


def _read_of(tile: Planes, how: Search) -> Iterator[str]:
    """Yields the paths of the files of a tile that are read."""
    chosen = tile.files._replace(
        planes=tuple(tile.files.planes[plane] for plane in how.planes),
        companions=tuple(tile.files.companions[plane] for plane in how.planes),
    )
    yield from chosen.files()


def _refuse_unknown(
    tiles: Sequence[Planes], how: Search, planes: Sequence[int], otherwise: str
) -> None:
    """Raises UsageError where it is not known what magnitude one unit of flux has."""
    for tile in tiles:
        for plane in planes:
            if not tile.wrong and how.zero_point(tile, plane) is None:
                raise UsageError(
                    f"{tile.files.planes[plane]} has no zero point in its header "
                    f"({', '.join(KEYWORDS)}): give --zero-point, or {otherwise} to select without"
                )


def _written_with(path: Path) -> dict[str, Any]:
    """Returns what a catalogue of objects says of itself: the fingerprint of its settings and the
    record of the search; nothing where there is none that was written here."""
    try:
        return dict(json.loads(stored.parquet_metadata(path)[RECORD]))
    except (OSError, KeyError, ValueError):  # ValueError: no Parquet, or no JSON
        return {}


def _searched(survey: Survey, path: Path, folder: Path, config: InferenceConfig) -> dict[str, Any]:
    """Searches what is left of the tiles, writes the catalogue where no other process has done so
    meanwhile, and returns what it says of itself."""
    with open_lock(folder / LOCK) as lock:
        unlock(lock, BEYOND_ALL_ROWS, 1)
        lost = _search_tiles(survey, folder, lock)
        locked(lock, BEYOND_ALL_ROWS, 1, wait=True)
        known, settings = _written_with(path), fingerprint(survey.settings)
        if known.get("settings") != settings:
            table, record = _selected(survey, lost, config)
            known = {"settings": settings, RECORD: record}
            write_settings(folder / SETTINGS, survey.settings)
            with replacing(path) as file:
                arrow.write_parquet(file, table, {RECORD: json.dumps(known)})
    return known


def _search_tiles(survey: Survey, folder: Path, lock: IO[bytes]) -> dict[int, str]:
    """Searches the tiles that no process has searched, and returns which could not be, and why.

    First those that are free, then those that others were at, which may have died.
    """
    lost = {number: tile.wrong for number, tile in enumerate(survey.tiles) if tile.wrong}
    there = {piece.name for piece in folder.glob("*.parquet")}
    left = [n for n, piece in enumerate(survey.pieces) if n not in lost and piece.name not in there]
    sizes = {n: int(np.prod(survey.tiles[n].stored[survey.how.band].shape)) for n in left}
    with (
        runtime.asked_to_stop() as asked_to_stop,
        runtime.progress("searching", _million(sum(sizes.values())), "million pixels") as advance,
    ):
        done = 0
        for wait in (False, True):
            for number in tuple(left):
                if asked_to_stop():
                    raise Interrupted(
                        f"stopped with {len(left)} of {len(survey.tiles)} tiles not searched; the "
                        "same command goes on there"
                    )
                if not locked(lock, number, 1, wait=wait):
                    continue
                try:
                    if not survey.pieces[number].exists():
                        found = search(survey.tiles[number], survey.how)
                        with replacing(survey.pieces[number]) as file:
                            stored.write_columns(file, found, {})
                except Unreadable as error:
                    lost[number] = str(error)
                finally:
                    unlock(lock, number, 1)
                left.remove(number)
                before, done = done, done + sizes[number]
                advance(_million(done) - _million(before))
    return lost


def _million(count: int) -> int:
    return -(-count // 10**6)


def _selected(
    survey: Survey, lost: Mapping[int, str], config: InferenceConfig
) -> tuple[Table, dict[str, Any]]:
    """Returns the catalogue of the objects in the tiles, and the record of the search. Raises
    LensjaxError where no tile could be searched."""
    searched = [number for number in range(len(survey.tiles)) if number not in lost]
    if not searched:
        raise LensjaxError(f"none of the {len(lost)} tiles can be searched: {lost[0]}")
    band, found = survey.bands[survey.how.band], 0
    counts: Counter[str] = Counter()
    parts, tile = [], []
    for number in searched:
        columns = stored.read_columns(survey.pieces[number])
        reasons = left_out(columns, config, band)
        counts.update({reason: int(those.sum()) for reason, those in reasons.items()})
        chosen = ~np.any(list(reasons.values()), axis=0)
        found += len(chosen)
        parts.append({name: values[chosen] for name, values in columns.items()})
        tile.append(np.full(chosen.sum(), number))
    columns, of_tile = joined(parts), np.concatenate(tile)
    footprints = [
        None if number in lost else tile.footprint for number, tile in enumerate(survey.tiles)
    ]
    kept = once(footprints, of_tile, columns["ra"], columns["dec"], SAME)
    counts[ELSEWHERE] = int((~kept).sum())
    columns = {name: values[kept] for name, values in columns.items()}
    names = np.array([tile.files.name for tile in survey.tiles], object)
    table = _catalogue(columns, names[of_tile[kept]], band, config.colour_range())
    record = {
        "band": band,
        "zero_points": _zero_points(survey, searched),
        "found": found,
        "selected": len(table),
        "left_out": {reason: count for reason, count in counts.items() if count},
        "tiles": len(survey.tiles),
        "not_searched": {survey.tiles[n].files.name: reason for n, reason in sorted(lost.items())},
    }
    return table, record


def _zero_points(survey: Survey, searched: Sequence[int]) -> dict[str, list[float]]:
    """Returns the lowest and the highest magnitude of one unit of flux in each band that was read,
    where they are known."""
    ends = {}
    for plane in survey.how.planes:
        values = [survey.how.zero_point(survey.tiles[number], plane) for number in searched]
        known = [value for value in values if value is not None]
        if known:
            ends[survey.bands[plane]] = [min(known), max(known)]
    return ends


def _catalogue(
    columns: Mapping[str, np.ndarray], tile: np.ndarray, band: str, colour: Colour | None
) -> Table:
    """Returns the objects as a table; columns of which nothing is known are left out."""
    table = Table({"id": list(designations(columns["ra"], columns["dec"]))}, dtype=[str])
    for name, meaning in FOUND.items():
        values = tile.astype(str) if name == "found_in" else columns[name]
        if name == "mag":
            name, meaning = f"mag_{band}", meaning._replace(description=f"Kron magnitude in {band}")
        elif name == "colour" and colour is not None:
            name = f"{colour.blue}_{colour.red}"
            meaning = meaning._replace(description=f"{colour} within {APERTURE:g} arcsec")
        if values.dtype.kind != "f" or np.isfinite(values).any():
            table[name] = values
            describe(table[name], meaning)
    return table
