"""report.html: one page that opens anywhere, offline, with everything about a run in it."""

import base64
import io
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table
from numpy.typing import NDArray
from PIL import Image

from lensjax.columns import CARRIED, COLUMNS
from lensjax.files import replacing
from lensjax.metrics import Interval, Metrics
from lensjax.report.figures import Scored, as_svg, draw
from lensjax.report.pictures import as_bytes, score_text
from lensjax.report.style import PAGE, SCRIPT, STYLE
from lensjax.results import to_json

Array = NDArray[Any]

ON_A_CARD = 2  # columns of the user's that a candidate shows unfolded
LOOKED_AT = 24  # columns of the user's that the page has at most
EXAMPLES = 3  # of what was rejected for one reason
OF_THE_DATA = {
    "data": "read",
    "bands_from": "bands taken from",
    "fitted": "size and pixel scale",
    "field_of_view": "field of view",
    "masked_pixels": "masked pixels, filled in",
    "flagged": "flagged cutouts",
    "flags": "flagged for",
}
_NAME_OR_NUMBER = re.compile(r"\S*[./\d]\S*")

METRIC_NAMES = {
    "auroc": ("AUROC", "area under the ROC curve"),
    "average_precision": ("AP", "average precision"),
    "tpr0": ("TPR0", "lenses scored above every non-lens"),
    "tpr10": ("TPR10", "lenses scored above the tenth-ranked non-lens"),
    "expected_calibration_error": ("ECE", "expected calibration error, lower is better"),
    "log_loss": ("log loss", "in nats, lower is better"),
    "brier": ("Brier", "mean squared error of the probability, lower is better"),
}
FIGURE_TITLES = {
    "roc": (
        "What the ranking finds",
        "ROC curve, area in the legend; shaded: exact 95 % interval (Clopper-Pearson) of the "
        "ensemble at each threshold",
    ),
    "precision_recall": (
        "How pure the list is",
        "Average precision in the legend; shaded: exact 95 % interval of the ensemble (purity, for "
        "each length of the list)",
    ),
    "reliability": ("What a probability is worth", "Of the ensemble; bars: exact 95 % intervals"),
    "scores": ("Scores", "Of the ensemble"),
    "uncertainty": ("How sure each score is", "How far members and dropout samples disagree"),
}


def write_report(
    folder: str | os.PathLike[str],
    *,
    candidates: Table,
    pictures: Sequence[Array],
    run: Mapping[str, Any],
    rejects: Iterable[tuple[object, str]] = (),
    metrics: Mapping[str, Metrics] | None = None,
    top: int = 200,
) -> Path:
    """Write report.html into `folder` and return its path.

    `candidates` is the ranked table of `results.candidate_table` (its `label` column feeds the
    figures), `pictures` n images (H, W, 3) of its first n rows, `run` what run.json holds,
    `rejects` the id of each row that was rejected and why, `metrics` by name of the score. The
    first `top` rows are listed. Raises LensjaxError where it cannot be written.
    """
    sections = [
        _header(run, candidates),
        _gallery(candidates, pictures),
        _metrics(metrics or {}),
        _figures(candidates),
        _table(candidates, top),
        _data(run),
        _rejects(rejects),
        _run(run),
    ]
    page = PAGE.format(style=STYLE, script=SCRIPT, body="\n".join(filter(None, sections)))
    content = page.encode("utf-8", "replace")
    path = Path(folder) / "report.html"
    with replacing(path) as file:
        file.write(content)
    return path


def _header(run: Mapping[str, Any], candidates: Table) -> str:
    scored = run.get("scored", len(candidates))
    members = _members(run)
    tiles = [
        ("cutouts given", _number(run.get("given", scored))),
        ("scored", _number(scored)),
        ("rejected", _number(run.get("rejected", 0))),
        ("members", _number(len(members)) if members else None),
        ("images a second", _rounded(run.get("images_per_second"))),
    ]
    shown = "".join(
        f"<div><b>{escape(value)}</b><span>{name}</span></div>" for name, value in tiles if value
    )
    names = ", ".join(str(member.get("name", "?")) for member in members)
    line = f"<p>Ranked by {escape(names)}.</p>" if names else ""
    notes = "".join(
        f"<li>{_text(note)}</li>" for note in [*run.get("warnings", ()), *run.get("notes", ())]
    )
    notes = f'<ul class="notes">{notes}</ul>' if notes else ""
    return f'<header><h1>Lens candidates</h1>{line}<div class="tiles">{shown}</div>{notes}</header>'


def _gallery(candidates: Table, pictures: Sequence[Array]) -> str:
    cards, carried = [], _looked_at(candidates)
    for picture, row in zip(pictures, candidates, strict=False):
        value, error = _score(row)
        share = 100 * float(np.nan_to_num(row["probability"]))
        known = _label(row)
        place = _place(row)
        cards.append(
            f'<figure class="card"><div class="cutout"><img alt="" loading="lazy" '
            f'src="{_inline(picture)}"><i>{row["rank"]}</i>{known}</div>'
            f'<div class="bar"><div style="width:{share:.1f}%"></div></div>'
            f"<figcaption><b>{value}</b> <small>{error}</small>"
            f'<span class="id">{_text(row["id"])}</span>{place}{_flag(row)}{_own(row, carried)}'
            "</figcaption></figure>"
        )
    if not cards:
        return "" if len(candidates) else "<section><p>No cutout could be scored.</p></section>"
    return _section("Best candidates", f'<div class="gallery">{"".join(cards)}</div>')


def _own(row: Any, carried: Sequence[str]) -> str:
    """What the user's catalogue says of a candidate: a few columns, the others folded in."""
    values = {name: _value(row[name]) for name in carried}
    said = {name: value for name, value in values.items() if value}
    shown = list(said)[:ON_A_CARD]
    lines = "".join(
        f'<span class="own"><i>{_text(name)}</i> {_text(said[name])}</span>' for name in shown
    )
    if len(said) == len(shown):
        return lines
    return lines + _folded("columns of the input", said)


def _metrics(metrics: Mapping[str, Metrics]) -> str:
    if not metrics:
        return ""
    first = next(iter(metrics.values()))
    heads = "".join(
        f'<th class="n" title="{escape(meaning)}">{name}</th>'
        for name, meaning in METRIC_NAMES.values()
    )
    rows = "".join(
        f"<tr><th>{_text(name)}</th>"
        + "".join(f'<td class="n">{_interval(v)}</td>' for v in found.intervals().values())
        + "</tr>"
        for name, found in metrics.items()
    )
    left_out = [
        f"{count:,} {what}"
        for count, what in ((first.unlabelled, "without label"), (first.unscored, "without score"))
        if count
    ]
    note = f"{first.lenses:,} lenses, {first.others:,} others" + (
        f"; left out: {' and '.join(left_out)}" if left_out else ""
    )
    note += f". Below each value its 95 % interval, from {first.resamples:,} bootstrap resamples."
    table = f"<table><thead><tr><th>score</th>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    meanings = _folded("What they mean", dict(METRIC_NAMES.values()))
    return _section("Metrics", f'<p>{note}</p><div class="wide">{table}</div>{meanings}')


def _figures(candidates: Table) -> str:
    if not len(candidates):
        return ""
    scored = Scored(
        {"ensemble": candidates["probability"]}
        | {candidates[n].meta["member"]: candidates[n] for n in _of_members(candidates)},
        labels=candidates["label"] if _has_labels(candidates) else None,
        logit=candidates["logit"],
        logit_std=candidates["logit_std"],
    )
    figures = "".join(
        f'<figure class="plot"><figcaption><b>{FIGURE_TITLES[name][0]}</b> '
        f"<small>{FIGURE_TITLES[name][1]}</small></figcaption>{as_svg(figure)}</figure>"
        for name, figure in draw(scored).items()
    )
    return _section("Figures", f'<div class="plots">{figures}</div>') if figures else ""


def _table(candidates: Table, top: int) -> str:
    shown = candidates[:top]
    if not len(shown):
        return ""
    own, members, carried = _ours(candidates), _of_members(candidates), _looked_at(candidates)
    names = [name for name in own + carried + members if any(map(_value, shown[name]))]
    heads = "".join(
        f"<th{_numeric(shown[name])}{_title(shown[name])}>"
        f"<button>{_text(name if name in carried else name.replace('_', ' '))}</button></th>"
        for name in names
    )
    rows = "".join(f"<tr>{''.join(_cells(shown[names], row))}</tr>" for row in range(len(shown)))
    note = (
        f"The first {len(shown):,} of {len(candidates):,} candidates, all of which are in "
        "candidates.parquet and candidates.csv. A click on a heading sorts."
    )
    left_out = len(_carried(candidates)) - len(carried)
    if left_out > 0:
        note += f" {left_out:,} more columns of the input are in these files."
    meanings = {name: _meaning(candidates[name]) for name in _meant(candidates)}
    legend = _folded("What the columns mean", meanings)
    table = f'<table class="sortable"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'
    return _section("Catalogue", f'<p>{note}</p><div class="wide tall">{table}</div>{legend}')


def _data(run: Mapping[str, Any]) -> str:
    """What was read, and what was done to it before the members saw it."""
    facts = "".join(
        f"<dt>{title}</dt><dd>{_listed(run[key])}</dd>"
        for key, title in OF_THE_DATA.items()
        if run.get(key) not in (None, "", {}, [], 0)
    )
    return _section("Data", f"<dl>{facts}</dl>") if facts else ""


def _run(run: Mapping[str, Any]) -> str:
    members = "".join(
        f"<tr><td>{_text(member.get('name', ''))}</td><td>{_text(member.get('architecture', ''))}"
        f'</td><td class="n">{_rounded(member.get("share"))}</td>'
        f"<td><code>{_text(member.get('weights_sha256', ''))}</code></td></tr>"
        for member in _members(run)
    )
    parts = []
    if members:
        parts.append(
            '<div class="wide"><table><thead><tr><th>member</th><th>architecture</th>'
            '<th class="n">share in the stacked score</th><th>SHA-256 of the weights</th></tr>'
            f"</thead><tbody>{members}</tbody></table></div>"
        )
    facts = "".join(
        f"<dt>{_text(name.removesuffix('_bytes').replace('_', ' '))}</dt>"
        f"<dd>{_text(_fact(name, value))}</dd>"
        for name, value in run.items()
        if isinstance(value, str | int | float)
        and not isinstance(value, bool)
        and name not in ("given", "scored", "rejected", *OF_THE_DATA)
    )
    parts.append(f"<dl>{facts}</dl>" if facts else "")
    record = escape(json.dumps(to_json(run), indent=2, ensure_ascii=False))
    parts.append(f"<details><summary>Full record (run.json)</summary><pre>{record}</pre></details>")
    return _section("What was run", "".join(parts))


def _rejects(rejects: Iterable[tuple[object, str]]) -> str:
    """How many were rejected for which reason, names of files and numbers in it set aside, and a
    few of them."""
    kinds: dict[str, list[tuple[object, str]]] = {}
    for id_, reason in rejects:
        kinds.setdefault(_NAME_OR_NUMBER.sub("#", reason), []).append((id_, reason))
    if not kinds:
        return ""
    most = sorted(kinds.values(), key=len, reverse=True)
    rows = "".join(
        f'<tr><td>{_text(alike[0][1])}</td><td class="n">{len(alike):,}</td>'
        f"<td>{_text(', '.join(str(id_) for id_, _ in alike[:EXAMPLES]))}"
        f"{', …' if len(alike) > EXAMPLES else ''}</td></tr>"
        for alike in most[:20]
    )
    more = len(most) - 20
    note = "Each with its reason is in rejects.csv." + (
        f" {more:,} rarer reasons are left out here." if more > 0 else ""
    )
    head = '<tr><th>reason</th><th class="n">cutouts</th><th>such as</th></tr>'
    table = f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"
    return _section("Rejected", f'<p>{note}</p><div class="wide words">{table}</div>')


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>"


def _folded(title: str, said: Mapping[str, str]) -> str:
    lines = "".join(f"<dt>{_text(name)}</dt><dd>{_text(what)}</dd>" for name, what in said.items())
    return f"<details><summary>{title}</summary><dl>{lines}</dl></details>"


def _ours(candidates: Table) -> list[str]:
    """Our columns that the table shows first."""
    scores = ["probability", "logit", "logit_std", "total_entropy", "mutual_information"]
    shown = ["rank", "id", "ra", "dec", "label", "flag", *scores]
    return [name for name in shown if name in candidates.colnames]


def _of_members(candidates: Table) -> list[str]:
    return [name for name in candidates.colnames if "member" in candidates[name].meta]


def _meant(candidates: Table) -> list[str]:
    """The columns that say what they mean, ours and some of the user's."""
    return [name for name in candidates.colnames if candidates[name].description]


def _carried(candidates: Table) -> list[str]:
    """The user's own columns."""
    ours = {*COLUMNS, *CARRIED, *_of_members(candidates)}
    return [name for name in candidates.colnames if name not in ours]


def _looked_at(candidates: Table) -> list[str]:
    """Those of the user's columns that the page shows: not too many, of one value a row."""
    return [name for name in _carried(candidates) if candidates[name].ndim == 1][:LOOKED_AT]


def _meaning(column: Any) -> str:
    unit = f" ({column.unit})" if column.unit is not None else ""
    return f"{column.description or ''}{unit}".strip()


def _title(column: Any) -> str:
    said = _meaning(column)
    return f' title="{escape(said)}"' if said else ""


def _cells(table: Table, row: int) -> Iterator[str]:
    for name in table.colnames:
        value, numeric = table[name][row], _numeric(table[name])
        if value is np.ma.masked or value is None:
            yield f"<td{numeric}></td>"
        elif table[name].dtype.kind == "f":
            digits = 5 if name in ("ra", "dec") or name.endswith("probability") else 4
            shown = f"{value:.{digits}f}" if np.isfinite(value) else "–"
            key = f"{float(value):.9g}" if np.isfinite(value) else "-1e308"
            yield f'<td{numeric} data-key="{key}">{shown}</td>'
        else:
            yield f"<td{numeric}>{_text(value)}</td>"


def _value(value: Any) -> str:
    """A value of the user's as text, empty where there is none."""
    if value is np.ma.masked or value is None:
        return ""
    if isinstance(value, float | np.floating):
        return f"{value:.6g}" if np.isfinite(value) else ""
    return str(value)


def _listed(value: Any) -> str:
    """A part of the record as a list for people: `name: value` of a mapping, a line an item, what
    there is none of left out."""
    if isinstance(value, Mapping):
        items = {name: item for name, item in value.items() if item != 0}
        return "<br>".join(f"{_text(name)}: {_listed(item)}" for name, item in items.items())
    if isinstance(value, list | tuple):
        return "<br>".join(map(_listed, value))
    return f"{value:,}" if isinstance(value, int) else _text(value)


def _numeric(column: Any) -> str:
    return ' class="n"' if column.dtype.kind in "biuf" else ""


def _members(run: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    members = run.get("members") or []
    if isinstance(members, Mapping):
        members = [{"name": name, **dict(member)} for name, member in members.items()]
    return [m if isinstance(m, Mapping) else {"name": str(m)} for m in members]


def _has_labels(candidates: Table) -> bool:
    return "label" in candidates.colnames and candidates["label"].dtype.kind in "biuf"


def _label(row: Any) -> str:
    if not _has_labels(row.table) or row["label"] is np.ma.masked:
        return ""
    return {1: '<em class="lens">lens</em>', 0: "<em>not a lens</em>"}.get(row["label"], "")


def _flag(row: Any) -> str:
    said = _value(row["flag"]) if "flag" in row.colnames else ""
    return f'<span class="flag">{_text(said)}</span>' if said else ""


def _place(row: Any) -> str:
    ra, dec = (float(np.ma.filled(row[name], np.nan)) for name in ("ra", "dec"))
    return f'<span class="place">{ra:.5f} {dec:+.5f}</span>' if math.isfinite(ra + dec) else ""


def _score(row: Any) -> tuple[str, str]:
    value, error = score_text(*(float(row[k]) for k in ("logit", "logit_std", "probability")))
    return escape(value), escape(error)


def _interval(found: Interval) -> str:
    if math.isnan(found.value):
        return "–"
    return f"{found.value:.4f}<small>{found.low:.4f} – {found.high:.4f}</small>"


def _number(value: int | None) -> str:
    if value is None:
        return ""
    return f"{value:,}"


def _rounded(value: Any) -> str:
    if value is None or not math.isfinite(value):
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _fact(name: str, value: str | int | float) -> str:
    if isinstance(value, str):
        return value
    if not math.isfinite(value):
        return "–"
    if name.endswith("_bytes"):
        return f"{value / 2**20:,.0f} MiB"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _text(value: Any) -> str:
    return escape(str(value))


def _inline(picture: Array) -> str:
    data = io.BytesIO()
    Image.fromarray(as_bytes(picture)).save(data, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
