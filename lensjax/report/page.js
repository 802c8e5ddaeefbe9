// The page: its controls, keys, files, and what a reload brings back.
const VIEW = `lensjax-view/${DATA.key}`;

function saveView() {
  try {
    localStorage.setItem(VIEW, JSON.stringify(view));
  } catch { /* said where grades are not kept */ }
}

function change(changes) {
  Object.assign(view, changes);
  settle();
  if (Object.keys(changes).every(name => ["stretch", "single"].includes(name))) show();
  else if (!("brush" in changes || "advance" in changes)) relist();
  saveView();
}

// Brings the controls to the view.
function settle() {
  for (const name of ["which", "measure", "lowest", "highest", "find", "order", "seed", "brush"])
    find(name).value = view[name];
  for (const name of ["blind", "advance"]) find(name).checked = view[name];
  find("seed").hidden = !(view.blind || view.order === "shuffled");
  find("range").hidden = view.blind;
  for (const name of ["score", "disagreement"])
    for (const option of find("order").options) if (option.value === name) option.hidden = view.blind;
  if (view.blind && ["score", "disagreement"].includes(view.order)) find("order").value = "shuffled";
}

const KEYS = {
  ...Object.fromEntries(GRADES.map(grade => [grade.toLowerCase(), () => give({grade})])),
  ...Object.fromEntries(DATA.impostors.map((kind, k) => [k + 1, () => giveKind(kind)])),
  Backspace: clear,
  Delete: clear,
  u: undo,
  n: nextUngraded,
  s: () => {
    const next = (STRETCHES.indexOf(view.stretch) + 1) % STRETCHES.length;
    change({stretch: STRETCHES[next]});
  },
  m: () => find("notes").focus(),
  h: () => SCORED && change({blind: !view.blind}),
  X: restOfPage,
  Enter: () => change({single: !view.single}),
  Escape: () => change({single: false}),
  ArrowLeft: () => focusOn(place - 1),
  ArrowRight: () => focusOn(place + 1),
  ArrowUp: () => focusOn(view.single ? place - 1 : place - COLUMNS_OF_MOSAIC),
  ArrowDown: () => focusOn(view.single ? place + 1 : place + COLUMNS_OF_MOSAIC),
  PageUp: () => focusOn(Math.max(firstOfPage() - PAGE, 0)),
  PageDown: () => firstOfPage() + PAGE < list.length && focusOn(firstOfPage() + PAGE),
  Home: () => focusOn(0),
  End: () => focusOn(list.length - 1),
  "?": () => find("keys").showModal(),
};
const MEANINGS = {
  "a b c x": "grade", "1 – 9": DATA.impostors.map((kind, k) => `${k + 1} ${kind}`).join(", "),
  "← → ↑ ↓": "move", "PageUp PageDown": "page of the mosaic", "Home End": "first, last",
  Enter: "mosaic or single", n: "next ungraded", u: "undo", Backspace: "no grade", m: "notes (Escape ends)",
  s: "next stretch", h: SCORED ? "hide or show scores (blind)" : "", "Shift X": "X for the rest of the mosaic",
  "?": "this list",
};

document.addEventListener("keydown", event => {
  const {target, key} = event;
  if (find("keys").open || find("work").hidden) return;
  if (target.matches("input:not([type=checkbox]), textarea, select")) {
    if (key === "Escape") target.blur();
    return;
  }
  if ((event.ctrlKey || event.metaKey) && key === "z") {
    event.preventDefault();
    return undo();
  }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (key === "Enter" && target.matches("button, a, summary")) return;
  const act = KEYS[key] ?? (event.shiftKey ? null : KEYS[key.toLowerCase()]);
  if (!act) return;
  event.preventDefault();
  act();
});

for (const [name, options] of Object.entries({
  which: Object.keys(KINDS_SHOWN),
  order: Object.keys(ORDERS).filter(name => SCORED || !["score", "disagreement"].includes(name)),
}))
  find(name).append(...options.map(text => make("option", text, {value: text})));
find("brush").append(make("option", "click looks", {value: ""}),
  ...GRADES.map(grade => make("option", `click gives ${grade}`, {value: grade})));
for (const name of ["which", "measure", "lowest", "highest", "order", "brush", "seed"])
  find(name).onchange = () => { change({[name]: find(name).value}); find(name).blur(); };
find("find").oninput = () => change({find: find("find").value});
for (const name of ["blind", "advance"]) find(name).onchange = () => change({[name]: find(name).checked});

find("verdict").append(...GRADES.map(grade => {
  const button = make("button", grade, {value: grade, "data-grade": grade, title: grade.toLowerCase()});
  button.onclick = () => give({grade});
  return button;
}));
find("kinds").append(...DATA.impostors.map((kind, k) => {
  const button = make("button", "", {value: kind, title: k + 1});
  button.append(make("kbd", k + 1), kind);
  button.onclick = () => giveKind(kind);
  return button;
}));
find("notes").oninput = () => { write(list[place], {notes: find("notes").value}); count(); };
find("keys").querySelector("dl").append(...Object.entries(MEANINGS).filter(([, what]) => what)
  .flatMap(([key, what]) => [make("dt", key), make("dd", what)]));

find("mosaic").onclick = ({target}) => {
  const card = target.closest(".card");
  if (!card) return;
  focusOn(+card.dataset.place);
  card.focus({preventScroll: true});
  if (!view.brush) return;
  const grade = mine(list[place]).grade === view.brush ? "" : view.brush, {advance} = view;
  view.advance = false;
  give({grade});
  view.advance = advance;
};
find("mosaic").ondblclick = ({target}) => target.closest(".card") && !view.brush && change({single: true});
for (const [name, act] of Object.entries({
  undo, next: nextUngraded, back: () => view.single ? KEYS.ArrowLeft() : KEYS.PageUp(),
  forth: () => view.single ? KEYS.ArrowRight() : KEYS.PageDown(), help: KEYS["?"],
  "to-mosaic": () => change({single: false}), "to-single": () => change({single: true}),
  import: () => find("files").click(),
}))
  find(name).onclick = act;

for (const name of ["work", "run"])
  if (find(`to-${name}`)) find(`to-${name}`).onclick = () => showPart(name);

function showPart(name) {
  for (const each of ["work", "run"]) {
    if (find(each)) find(each).hidden = each !== name;
    if (find(`to-${each}`)) find(`to-${each}`).ariaPressed = each === name;
  }
}

find("export").onclick = () => {
  const file = new Blob([toCsv()], {type: "text/csv"}), name = grader.replace(/[^\p{L}\p{N}_.-]+/gu, "-");
  const link = make("a", "", {href: URL.createObjectURL(file), download: `grades${name && `-${name}`}.csv`});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
};
find("files").onchange = async () => {
  const said = [];
  for (const file of find("files").files) {
    try {
      const {taken, known, others, kept} = merge(await file.text());
      if (!kept) notKept();
      const counts = [`${taken} taken`, known && `${known} known`, others && `${others} of other candidates`];
      said.push(`${file.name}: ${counts.filter(Boolean).join(", ")}`);
    } catch (error) {
      said.push(`${file.name} is not taken: ${error.message}`);
    }
  }
  find("files").value = "";
  relist();
  say(said.join("; "));
};
find("grader").onchange = () => {
  const before = grader;
  grader = find("grader").value.trim();
  if (!before) rename(grader);
  undoes.length = 0;
  try {
    localStorage.setItem("lensjax-grader", grader);
  } catch {
    notKept();
  }
  relist();
};

addEventListener("storage", ({key, newValue}) => {  // another window of this page
  if (remembered(key, newValue) && list.length) {
    for (const card of find("mosaic").children) label(card);
    verdict();
    count();
  }
});
document.addEventListener("visibilitychange", () => {
  if (document.hidden) spent += performance.now() - since;
  since = performance.now();
});

if (!recall()) notKept();
try {
  grader = find("grader").value = localStorage.getItem("lensjax-grader") ?? "";
  Object.assign(view, JSON.parse(localStorage.getItem(VIEW) ?? "{}"), SCORED ? {} : {blind: true});
} catch { /* starts anew */ }
if (!(view.which in KINDS_SHOWN)) view.which = "all";
find("blind").parentElement.hidden = !SCORED;
settle();
relist(view.focus);
if (!DATA.candidates.length) showPart("run");
