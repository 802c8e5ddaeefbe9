"""How report.html looks, and how its tables are sorted."""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Lens candidates</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<style>{style}</style></head>
<body><main>
{body}
</main><script>{script}</script></body></html>
"""

STYLE = """
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
.card .own i { font-style:normal; color:var(--dim) } .card .own { color:var(--ink) }
.card .flag { color:var(--lens) }
.card details { margin-top:4px; font-size:12px } .card dl { font-size:12px; margin:6px 0 2px;
  gap:1px 8px; grid-template-columns:minmax(0,auto) minmax(0,1fr) }
.card dt { overflow-wrap:anywhere }
.notes { margin:18px 0 0; padding:0 0 0 18px; color:var(--dim); max-width:90ch }
.words td { white-space:normal; overflow-wrap:anywhere }
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

SCRIPT = """
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
