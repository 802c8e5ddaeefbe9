"""report.html: one page that opens anywhere, offline, with everything about a run in it."""

import base64
import io
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
from PIL import Image

from lensjax.files import replacing
from lensjax.metrics import Metrics
from lensjax.report.figures import Scored, as_svg, draw
from lensjax.report.pictures import as_bytes, score_text
from lensjax.results import CARRIED, COLUMNS, LISTED, TRUST, to_json

Array = NDArray[Any]

LOOKED_AT = 24  # columns of the user's that the page has at most
SHOWN_FIRST = (
    *("rank", "id", "ra", "dec", "label", "flag", "probability", "logit", "logit_std"),
    *("total_entropy", "mutual_information", *TRUST),
)
_NAME_OR_NUMBER = re.compile(r"\S*[./\d]\S*")


def write_report(
    folder: Path,
    *,
    best: Table,
    scored: Scored,
    pictures: Sequence[Array],
    run: Mapping[str, Any],
    rejects: Iterable[tuple[object, str]] = (),
    metrics: Mapping[str, Metrics] | None = None,
) -> Path:
    """Writes report.html into `folder` and returns its path.

    `best` are the first rows of `results.candidate_table`, `scored` what the figures show of all,
    `pictures` n images (H, W, 3) of the first n rows, `run` what run.json holds,
    `rejects` the id of each row that was rejected and why, `metrics` by name of the score. The
    first LISTED rows of `best` are listed. Raises LensjaxError where it cannot be written.
    """
    carried = _looked_at(best)
    page = (
        templates()
        .get_template("page.html")
        .render(
            run=run,
            record=json.dumps(to_json(run), indent=2, ensure_ascii=False),
            candidates=run["scored"],
            cards=[_card(*each, carried) for each in zip(best, pictures, strict=False)],
            metrics=metrics,
            figures={name: as_svg(figure) for name, figure in draw(scored).items()},
            columns=_columns(best[:LISTED], carried),
            left_out=len(_carried(best)) - len(carried),
            meanings={c.name: _meaning(c) for c in best.itercols() if c.description},
            reasons=_reasons(rejects),
        )
    )
    content = page.encode("utf-8", "replace")
    path = folder / "report.html"
    with replacing(path) as file:
        file.write(content)
    return path


def templates() -> Environment:
    """Returns the templates of the pages."""
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


def _card(row: Row, picture: Array, carried: Sequence[str]) -> dict[str, Any]:
    said = {name: _value(row[name]) for name in ("id", "label", "flag") if name in row.colnames}
    own = {name: text for name in carried if (text := _value(row[name]))}
    ra, dec = (float(np.ma.filled(row[name], np.nan)) for name in ("ra", "dec"))
    scores = [float(row[name]) for name in ("logit", "logit_std", "probability")]
    probability, error = score_text(*scores)
    return said | {
        "rank": row["rank"],
        "image": inline(picture),
        "percent": f"{100 * float(np.nan_to_num(scores[2])):.1f}",
        "probability": probability,
        "error": error,
        "place": f"{ra:.5f} {dec:+.5f}" if math.isfinite(ra + dec) else "",
        "own": own,
    }


def _columns(shown: Table, carried: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the columns of the page's table that have any value in these rows."""
    ours = [name for name in SHOWN_FIRST if name in shown.colnames]
    columns = []
    for name in (*ours, *carried, *_of_members(shown)):
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


def inline(picture: Array) -> str:
    """Returns a picture (H, W, 3) as the address of an image that a page holds."""
    data = io.BytesIO()
    Image.fromarray(as_bytes(picture)).save(data, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
