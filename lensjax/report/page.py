"""report.html: one page that opens anywhere, offline, with everything about a run in it."""

import base64
import io
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table
from numpy.typing import NDArray
from PIL import Image

from lensjax.files import replacing
from lensjax.metrics import Interval, Metrics
from lensjax.report.figures import Scored, as_svg, draw
from lensjax.report.pictures import as_bytes, score_text
from lensjax.results import to_json

Array = NDArray[Any]

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
    "uncertainty": ("How sure each score is", "Members and dropout samples disagreeing"),
}


def write_report(
    folder: str | os.PathLike[str],
    *,
    candidates: Table,
    pictures: Sequence[Array],
    run: Mapping[str, Any],
    reasons: Iterable[str] = (),
    metrics: Mapping[str, Metrics] | None = None,
    top: int = 200,
) -> Path:
    """Write report.html into `folder` and return its path.

    `candidates` is the ranked table of `results.candidate_table` (its `label` column feeds the
    figures), `pictures` n images (H, W, 3) of its first n rows, `run` what run.json holds,
    `reasons` why rows were rejected (empty ones are passed over), `metrics` by name of the score.
    The first `top` rows are listed. Raises LensjaxError where it cannot be written.
    """
    sections = [
        _header(run, candidates),
        _gallery(candidates, pictures),
        _metrics(metrics or {}),
        _figures(candidates),
        _table(candidates, top),
        _run(run),
        _rejects(Counter(reason for reason in map(str, reasons) if reason)),
    ]
    page = _PAGE.format(style=_STYLE, script=_SCRIPT, body="\n".join(filter(None, sections)))
    content = page.encode("utf-8", "replace")
    path = Path(folder) / "report.html"
    with replacing(path, len(content)) as file:
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
    return f'<header><h1>Lens candidates</h1>{line}<div class="tiles">{shown}</div></header>'


def _gallery(candidates: Table, pictures: Sequence[Array]) -> str:
    cards = []
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
            f'<span class="id">{_text(row["id"])}</span>{place}</figcaption></figure>'
        )
    if not cards:
        return "" if len(candidates) else "<section><p>No cutout could be scored.</p></section>"
    return _section("Best candidates", f'<div class="gallery">{"".join(cards)}</div>')


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
    return _section("Metrics", f'<p>{note}</p><div class="wide">{table}</div>')


def _figures(candidates: Table) -> str:
    if not len(candidates):
        return ""
    suffix = "_probability"
    members = [name for name in candidates.colnames if name.endswith(suffix)]
    scored = Scored(
        {"ensemble": candidates["probability"]}
        | {name.removesuffix(suffix): candidates[name] for name in members},
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
    names = [name for name in _columns(candidates) if name in candidates.colnames]
    heads = "".join(
        f"<th{_numeric(shown[name])}><button>{_text(name.replace('_', ' '))}</button></th>"
        for name in names
    )
    rows = "".join(f"<tr>{''.join(_cells(shown[names], row))}</tr>" for row in range(len(shown)))
    note = f"The first {len(shown):,} of {len(candidates):,}; all are in candidates.parquet."
    table = f'<table class="sortable"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'
    return _section("Catalogue", f'<p>{note}</p><div class="wide tall">{table}</div>')


def _run(run: Mapping[str, Any]) -> str:
    members = "".join(
        f"<tr><td>{_text(member.get('name', ''))}</td><td>{_text(member.get('architecture', ''))}"
        f"</td><td><code>{_text(member.get('weights_sha256', ''))}</code></td></tr>"
        for member in _members(run)
    )
    parts = []
    if members:
        parts.append(
            '<div class="wide"><table><thead><tr><th>member</th><th>architecture</th>'
            f"<th>SHA-256 of the weights</th></tr></thead><tbody>{members}</tbody></table></div>"
        )
    facts = "".join(
        f"<dt>{_text(name.replace('_', ' '))}</dt><dd>{_text(_fact(name, value))}</dd>"
        for name, value in run.items()
        if isinstance(value, str | int | float) and not isinstance(value, bool)
    )
    parts.append(f"<dl>{facts}</dl>" if facts else "")
    record = escape(json.dumps(to_json(run), indent=2, ensure_ascii=False))
    parts.append(f"<details><summary>Full record (run.json)</summary><pre>{record}</pre></details>")
    return _section("What was run", "".join(parts))


def _rejects(reasons: Counter[str]) -> str:
    if not reasons:
        return ""
    rows = "".join(
        f'<tr><td>{_text(reason)}</td><td class="n">{count:,}</td></tr>'
        for reason, count in reasons.most_common(20)
    )
    more = len(reasons) - 20
    note = f"<p>and {more:,} other reasons; all are in rejects.csv</p>" if more > 0 else ""
    table = '<table><thead><tr><th>reason</th><th class="n">cutouts</th></tr></thead>'
    return _section(
        "Rejected", f'<div class="wide">{table}<tbody>{rows}</tbody></table></div>{note}'
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>"


def _columns(candidates: Table) -> list[str]:
    members = [name for name in candidates.colnames if name.endswith("_probability")]
    scores = ["probability", "logit", "logit_std", "total_entropy", "mutual_information"]
    return ["rank", "id", "ra", "dec", *scores, *members, "label", "group"]


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


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Lens candidates</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<style>{style}</style></head>
<body><main>
{body}
</main><script>{script}</script></body></html>
"""

_STYLE = """
:root { --page:#f6f7f9; --panel:#fff; --ink:#1b2030; --dim:#626b80; --line:#e2e5ec;
  --accent:#23836b; --lens:#c4562c; color-scheme:light dark }
@media (prefers-color-scheme:dark) { :root { --page:#0b0d12; --panel:#151922; --ink:#e8ebf2;
  --dim:#98a1b6; --line:#262c3a; --accent:#5ed6b0; --lens:#f0926a } }
* { box-sizing:border-box }
body { margin:0; background:var(--page); color:var(--ink);
  font:15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif }
main { max-width:1280px; margin:0 auto; padding:clamp(16px,4vw,48px) clamp(14px,3vw,32px) }
h1 { margin:0; font-size:clamp(26px,4vw,36px); letter-spacing:-.02em; line-height:1.2 }
h2 { margin:0 0 14px; font-size:19px; letter-spacing:-.01em }
p { margin:4px 0 14px; color:var(--dim); max-width:75ch; overflow-wrap:anywhere }
section { margin-top:44px }
small { color:var(--dim); font-size:12px }
figure { margin:0 }
.tiles { display:flex; flex-wrap:wrap; gap:10px; margin-top:20px }
.tiles div { background:var(--panel); border:1px solid var(--line); border-radius:10px;
  padding:10px 18px; min-width:112px; flex:0 1 auto }
.tiles b { display:block; font-size:22px; font-weight:600; font-variant-numeric:tabular-nums }
.tiles span { color:var(--dim); font-size:13px }
.gallery { display:grid; grid-template-columns:repeat(auto-fill,minmax(168px,1fr)); gap:12px }
.card { background:var(--panel); border:1px solid var(--line); border-radius:10px;
  overflow:hidden }
.cutout { position:relative; aspect-ratio:1; background:#000 }
.cutout img { width:100%; height:100%; object-fit:contain; display:block }
.cutout i, .cutout em { position:absolute; top:7px; padding:1px 7px; border-radius:5px;
  background:#0b0d12cc; color:#e8ebf2; font:600 12px/1.5 system-ui, sans-serif }
.cutout i { left:7px } .cutout em { right:7px; font-weight:500 }
.cutout em.lens { background:#e0734a; color:#1b0d06 }
.bar { height:3px; background:var(--line) } .bar div { height:3px; background:var(--accent) }
.card figcaption { padding:8px 11px 10px; font-variant-numeric:tabular-nums }
.card b { font-size:16px } .card small { white-space:nowrap }
.card span { display:block; font-size:12px; color:var(--dim); overflow-wrap:anywhere }
.card .id { color:var(--ink); display:-webkit-box; -webkit-line-clamp:2; overflow:hidden;
  -webkit-box-orient:vertical }
.plots { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(340px,100%),1fr));
  gap:14px }
.plot { background:var(--panel); border:1px solid var(--line); border-radius:10px;
  padding:14px 16px 10px; color:var(--dim); max-width:620px }
.plot figcaption { margin-bottom:8px; color:var(--ink) }
.plot small { display:block }
.plot svg { width:100%; height:auto; display:block }
.plot svg * { stroke-linejoin:round; font-family:inherit !important }
.wide { overflow-x:auto; background:var(--panel); border:1px solid var(--line);
  border-radius:10px }
.tall { max-height:70vh; overflow-y:auto }
table { border-collapse:collapse; width:100%; font-size:13.5px }
th, td { padding:7px 13px; text-align:left; border-bottom:1px solid var(--line);
  white-space:nowrap; vertical-align:top; font-variant-numeric:tabular-nums }
td { max-width:44ch; overflow:hidden; text-overflow:ellipsis }
tbody tr:last-child > * { border-bottom:0 }
thead th { color:var(--dim); font-weight:500; position:sticky; top:0; background:var(--panel) }
tbody th { font-weight:600 }
.n { text-align:right }
td small { display:block }
tbody tr:hover { background:color-mix(in srgb,var(--accent) 7%,transparent) }
th button { all:unset; cursor:pointer } th button:hover { color:var(--ink) }
th button:focus-visible { outline:2px solid var(--accent); outline-offset:3px }
th[aria-sort] button { color:var(--accent) }
th[aria-sort=ascending] button::after { content:" \\2191" }
th[aria-sort=descending] button::after { content:" \\2193" }
dl { display:grid; grid-template-columns:max-content 1fr; gap:3px 20px; margin:18px 0;
  font-size:14px } dt { color:var(--dim) } dd { margin:0; overflow-wrap:anywhere }
details { margin-top:14px } summary { cursor:pointer; color:var(--dim) }
pre { overflow:auto; max-height:60vh; padding:14px 16px; background:var(--panel);
  border:1px solid var(--line); border-radius:10px; font-size:12.5px }
code { font-size:12px }
@media print { .tall { max-height:none } details { display:none } }
"""

_SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const key = (row, k) => row.cells[k].dataset.key ?? row.cells[k].textContent;
  heads.forEach((head, k) => head.addEventListener("click", () => {
    const numbers = head.classList.contains("n");
    const last = head.ariaSort ?? head.getAttribute("aria-sort");
    const down = last ? last === "ascending" : numbers && k > 0;
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const words = new Intl.Collator(undefined, {numeric: true});
    const order = numbers ? (a, b) => key(a, k) - key(b, k)
                          : (a, b) => words.compare(key(a, k), key(b, k));
    body.append(...[...body.rows].sort((a, b) => down ? order(b, a) : order(a, b)));
  }));
}
"""
