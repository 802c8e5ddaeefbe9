"""report.html: one page that opens anywhere, offline: candidates to be graded, and the run."""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Row, Table
from jinja2 import Environment, FileSystemLoader
from numpy.typing import NDArray

from lensjax.columns import CARRIED, COLUMNS, TRUST
from lensjax.data.planes import Cutout
from lensjax.files import replacing
from lensjax.metrics import Metrics
from lensjax.places import paths_below
from lensjax.report.figures import Scored, as_svg, draw
from lensjax.report.pictures import score_text
from lensjax.report.pixels import packed
from lensjax.results import LISTED, to_json

Array = NDArray[Any]

LOOKED_AT = 24  # columns of the user's that the page has at most
SHOWN_FIRST = (
    *("rank", "id", "ra", "dec", "label", "flag", "probability", "logit", "logit_std"),
    *("total_entropy", "mutual_information", *TRUST),
)
# What stands beside a candidate below its score.
SAID = ("logit", "logit_std", "total_entropy", "mutual_information", *TRUST)
_NAME_OR_NUMBER = re.compile(r"\S*[./\d]\S*")


def write_report(
    folder: Path,
    *,
    best: Table,
    scored: Scored,
    cutouts: Sequence[Cutout | None],
    bands: Sequence[str],
    impostors: Sequence[str],
    run: Mapping[str, Any],
    rejects: Iterable[tuple[object, str]] = (),
    metrics: Mapping[str, Metrics] | None = None,
) -> Path:
    """Writes report.html into `folder` and returns its path.

    `best` are the first rows of `results.candidate_table`, `scored` what the figures show of all,
    `cutouts` those of the first n rows, in these `bands`, None where one cannot be read any more;
    `impostors` are the kinds of non-lens that can be named, `run` is what run.json holds, `rejects`
    the id of each row that was rejected and why, `metrics` by name of the score. The
    first LISTED rows of `best` are listed. Raises LensjaxError where it cannot be written.
    """
    carried = _looked_at(best)
    members = _of_members(best)
    said = _columns(best[: len(cutouts)], SAID)
    graded = graded_page(
        "report",
        run.get("config", {}).get("data"),
        [_candidate(row, carried, members) for row in best[: len(cutouts)]],
        cutouts,
        bands,
        impostors,
    ) | {
        "members": [best[name].meta["member"] for name in members],
        "says": [[column["heading"], column["meaning"], column["cells"]] for column in said],
    }
    return write_page(
        folder / "report.html",
        graded=graded,
        run=run,
        record=json.dumps(to_json(run), indent=2, ensure_ascii=False),
        candidates=run["scored"],
        metrics=metrics,
        figures={name: as_svg(figure) for name, figure in draw(scored).items()},
        columns=_columns(best[:LISTED], SHOWN_FIRST, carried, members),
        left_out=len(_carried(best)) - len(carried),
        meanings={c.name: _meaning(c) for c in best.itercols() if c.description},
        reasons=_reasons(rejects),
    )


def graded_page(
    kind: str,
    data: object,
    candidates: Sequence[Mapping[str, Any]],
    cutouts: Sequence[Cutout | None],
    bands: Sequence[str],
    impostors: Sequence[str],
) -> dict[str, Any]:
    """Returns what the script of a page needs to show candidates and to keep their grades.

    The browser keeps grades of a `kind` of page of the same `data` together, by id. Each of the
    `candidates` has `id`, `ra` and `dec` (degrees or None), and what else is known of it.
    """
    (path,) = paths_below(Path(), [str(data)])
    of_data = hashlib.sha256(path.encode("utf-8", "replace")).hexdigest()
    return {
        "key": f"{kind}-{of_data[:16]}",
        "kind": kind,
        "bands": list(bands),
        "impostors": list(impostors),
        "candidates": [
            {**candidate, "pixels": cutout and packed(cutout, bands)}
            for candidate, cutout in zip(candidates, cutouts, strict=True)
        ],
    }


def write_page(path: Path, *, graded: Mapping[str, Any], **of_run: Any) -> Path:
    """Writes a page to grade candidates, with `of_run` what is to be said of the run that found
    them, and returns its path. Raises LensjaxError where it cannot be written."""
    page = _templates().get_template("page.html").render(graded=to_json(graded), **of_run)
    content = page.encode("utf-8", "replace")
    with replacing(path) as file:
        file.write(content)
    return path


def _templates() -> Environment:
    loader = FileSystemLoader(Path(__file__).parent)
    found = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    found.filters["number"] = number
    return found


def number(value: Any) -> str:
    """Returns a value for people: thousands set apart, fractions with three digits; empty where it
    is not known, and as it is where it is no number."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return ""
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _candidate(row: Row, carried: Sequence[str], members: Sequence[str]) -> dict[str, Any]:
    """Returns what a page says of a candidate, beside its picture."""
    probability, logit, spread, disagreement = (
        float(row[name]) for name in ("probability", "logit", "logit_std", "mutual_information")
    )
    text, error = score_text(logit, spread, probability)
    return place_of(row) | {
        "label": _value(row["label"]) if "label" in row.colnames else "",
        "flag": _value(row["flag"]) if "flag" in row.colnames else "",
        "score": probability,
        "text": text,
        "error": error,
        "disagreement": disagreement,
        "of_members": [float(row[name]) for name in members],
        "own": [[name, text] for name in carried if (text := _value(row[name]))],
    }


def place_of(row: Row) -> dict[str, Any]:
    """Returns `id` as text, `ra` and `dec` (degrees, None where not known) of a row."""
    found: dict[str, Any] = {"id": str(row["id"])}
    for name in ("ra", "dec"):
        degrees = float(np.ma.filled(row[name], np.nan)) if name in row.colnames else math.nan
        found[name] = degrees if math.isfinite(degrees) else None
    return found


def _columns(
    shown: Table, ours: Sequence[str], carried: Sequence[str] = (), members: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Returns those of the columns that have any value in these rows, as text."""
    columns = []
    for name in (*(name for name in ours if name in shown.colnames), *carried, *members):
        digits = 5 if name in ("ra", "dec") or name.endswith("probability") else 4
        cells = [_value(value, f".{digits}f") for value in shown[name]]
        column = {
            "heading": name if name in carried else name.replace("_", " "),
            "meaning": _meaning(shown[name]),
            "kind": "n" if shown[name].dtype.kind in "biuf" else "",
            "cells": cells,
        }
        columns += [column] if any(cells) else []
    return columns


def _reasons(rejects: Iterable[tuple[object, str]]) -> list[tuple[str, list[str]]]:
    """Returns each reason for rejects, names of files and numbers in it set aside, and the ids that
    it concerns; the most frequent first."""
    kinds: dict[str, tuple[str, list[str]]] = {}
    for id_, reason in rejects:
        kind = _NAME_OR_NUMBER.sub("#", reason)
        kinds.setdefault(kind, (reason, []))[1].append(str(id_))
    return sorted(kinds.values(), key=lambda kind: -len(kind[1]))


def _of_members(candidates: Table) -> list[str]:
    return [name for name in candidates.colnames if "member" in candidates[name].meta]


def _carried(candidates: Table) -> list[str]:
    """Returns the user's own columns."""
    ours = {*COLUMNS, *TRUST, *CARRIED, *_of_members(candidates)}
    return [name for name in candidates.colnames if name not in ours]


def _looked_at(candidates: Table) -> list[str]:
    """Returns those of the user's columns that the page shows: not too many, and only those with
    one value per row."""
    return [name for name in _carried(candidates) if candidates[name].ndim == 1][:LOOKED_AT]


def _meaning(column: Any) -> str:
    unit = f" ({column.unit})" if column.unit is not None else ""
    return f"{column.description or ''}{unit}".strip()


def _value(value: Any, form: str = ".6g") -> str:
    """Returns a value of a table as text, empty where there is none."""
    if value is np.ma.masked or value is None:
        return ""
    if isinstance(value, float | np.floating):
        return f"{value:{form}}" if np.isfinite(value) else ""
    return str(value)
