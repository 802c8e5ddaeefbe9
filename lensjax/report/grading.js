// Grading: what is shown of the candidates, and what keys and clicks do.
const PAGE = 100;      // candidates of a mosaic
const COLUMNS_OF_MOSAIC = 10;
const BUDGET = 6;      // ms that drawing may take at a time
const LONGEST = 600;   // s: who takes longer for a candidate has left it
const SCORED = DATA.kind === "report";
const find = id => document.getElementById(id);

const view = {  // what a reload brings back
  which: "all", measure: "score", lowest: "", highest: "", find: "",
  order: SCORED ? "score" : "shuffled", seed: "0",
  stretch: "Lupton", brush: "", blind: !SCORED, advance: true, single: false, focus: "",
};
let grader = "";
let list = [];         // numbers of the candidates that are shown, in order
let place = 0;         // of the candidate in focus, in the list
let since = performance.now(), spent = 0;
const undoes = [];

const inFocus = () => DATA.candidates[list[place]];
const mine = number => entryOf(DATA.candidates[number].id, grader);
const firstOfPage = () => place - place % PAGE;

function make(tag, text = "", attributes = {}) {
  const made = Object.assign(document.createElement(tag), {textContent: text});
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// ---- the list

function shuffled(numbers, seed) {
  let state = Number(seed) | 0;
  const random = () => {  // mulberry32
    state = state + 0x6d2b79f5 | 0;
    let mixed = Math.imul(state ^ state >>> 15, 1 | state);
    mixed = mixed + Math.imul(mixed ^ mixed >>> 7, 61 | mixed) ^ mixed;
    return ((mixed ^ mixed >>> 14) >>> 0) / 2 ** 32;
  };
  for (let k = numbers.length - 1; k > 0; k--) {
    const other = Math.floor(random() * (k + 1));
    [numbers[k], numbers[other]] = [numbers[other], numbers[k]];
  }
  return numbers;
}

const KINDS_SHOWN = {
  all: () => true,
  ungraded: number => !mine(number).grade,
  graded: number => mine(number).grade,
  "A or B": number => "AB".includes(mine(number).grade || "-"),
  ...Object.fromEntries(GRADES.map(grade => [grade, number => mine(number).grade === grade])),
  "with notes": number => mine(number).notes,
  "graders differ": number => {
    const {id} = DATA.candidates[number];
    return new Set([...entries.get(id)?.values() ?? []].map(({grade}) => grade).filter(Boolean)).size > 1;
  },
};
const ORDERS = {
  score: () => 0,
  disagreement: (a, b) => (DATA.candidates[b].disagreement ?? -1) - (DATA.candidates[a].disagreement ?? -1),
  grade: (a, b) => (mine(a).grade || "Z").localeCompare(mine(b).grade || "Z"),
  shuffled: null,
};

function chosen() {
  const text = view.find.trim().toLowerCase(), {lowest, highest} = view;
  const numbers = [...DATA.candidates.keys()].filter(number => {
    const {id, [view.measure]: value} = DATA.candidates[number];
    return KINDS_SHOWN[view.which](number)
      && (view.blind || (lowest === "" || value >= lowest) && (highest === "" || value <= highest))
      && (!text || `${id}\n${mine(number).notes}`.toLowerCase().includes(text));
  });
  const order = view.blind && view.order !== "grade" ? null : ORDERS[view.order];
  return order ? numbers.sort((a, b) => order(a, b) || a - b) : shuffled(numbers, view.seed);
}

// Makes the list anew: only when somebody asks for another, so that none moves while it is graded.
function relist(focus = inFocus()?.id) {
  list = chosen();
  place = Math.max(list.findIndex(number => DATA.candidates[number].id === focus), 0);
  show();
}

// ---- drawing

const first = new Map(), waiting = new Map();  // canvases, and what is to be drawn on each
let drawing = false;

function drawLater(canvases, canvas, number, stretch = view.stretch, band = null) {
  canvases.set(canvas, [number, stretch, band]);
  if (DATA.candidates[number].pixels) stepsOf(number);  // decoded beside others, in threads of the browser
  if (drawing) return;
  drawing = true;
  setTimeout(drawWaiting);
}

async function drawWaiting() {
  const start = performance.now();
  while (first.size + waiting.size && performance.now() - start < BUDGET) {
    const canvases = first.size ? first : waiting, [canvas, how] = canvases.entries().next().value;
    canvases.delete(canvas);
    await draw(canvas, ...how);
  }
  drawing = first.size + waiting.size > 0;
  if (drawing) setTimeout(drawWaiting);  // keys and frames come between
}

const seen = new IntersectionObserver(changes => {
  for (const {target, isIntersecting} of changes) {
    const canvas = target.firstChild;
    if (!isIntersecting) waiting.delete(canvas);
    else if (canvas.dataset.drawn !== view.stretch) drawLater(waiting, canvas, +target.dataset.number);
  }
}, {root: find("mosaic"), rootMargin: "80px"});

function show() {
  const from = firstOfPage(), page = list.slice(from, from + PAGE);
  const focused = find("mosaic").contains(document.activeElement);
  seen.disconnect();
  waiting.clear();
  find("mosaic").replaceChildren(...page.map((number, k) => {
    const card = make("div", "", {role: "option", class: "card", tabindex: -1, "data-number": number});
    card.append(make("canvas"), make("b"), make("i"), make("small"));
    card.dataset.place = from + k;
    return card;
  }));
  for (const card of find("mosaic").children) {
    label(card);
    seen.observe(card);
  }
  find("nothing").hidden = list.length > 0;
  find("work").classList.toggle("single", view.single);
  find("work").classList.toggle("blind", view.blind);
  find("one").hidden = !list.length;
  find("to-mosaic").ariaPressed = !view.single;
  find("to-single").ariaPressed = view.single;
  const pages = Math.ceil(list.length / PAGE) || 1;
  find("page").textContent = view.single ? `${list.length ? place + 1 : 0} of ${list.length}`
    : `${from / PAGE + 1} of ${pages}`;
  focusOn(place, focused);
}

function label(card) {
  const number = +card.dataset.number, {id, text, flag} = DATA.candidates[number], entry = mine(number);
  const [, grade, others, small] = card.children;
  grade.textContent = entry.grade;
  card.dataset.grade = entry.grade;
  others.textContent = view.blind ? "" : othersOn(id, grader).map(([, other]) => other.grade).join("");
  small.textContent = view.blind ? "" : text;
  const says = [`${+card.dataset.place + 1}: ${id}`, view.blind ? "" : text, flag,
    entry.grade ? `grade ${entry.grade}` : "not graded", entry.class, entry.notes];
  card.ariaLabel = card.title = says.filter(Boolean).join(", ");
}

// ---- one candidate

function focusOn(where, focused = find("mosaic").contains(document.activeElement)) {
  if (!list.length) return count();
  if (where !== place) [since, spent] = [performance.now(), 0];
  place = Math.min(Math.max(where, 0), list.length - 1);
  const before = find("mosaic").querySelector("[aria-selected=true]");
  const card = find("mosaic").querySelector(`[data-place="${place}"]`);
  if (!card) return show();
  if (before) Object.assign(before, {ariaSelected: "false", tabIndex: -1});
  Object.assign(card, {ariaSelected: "true", tabIndex: 0});
  if (view.single) find("page").textContent = `${place + 1} of ${list.length}`;
  else card.scrollIntoView({block: "nearest"});
  if (focused) card.focus({preventScroll: true});
  view.focus = inFocus().id;
  saveView();
  enlarge();
  count();
}

function enlarge() {
  const number = list[place], {id, ra, dec, pixels, flag, label: known} = DATA.candidates[number];
  drawLater(first, find("large").firstChild, number);
  const {share, text} = pixels ? scaleBar(pixels) : {share: 0, text: ""};
  find("bar").style.setProperty("--share", `${100 * share}%`);
  find("bar").lastChild.textContent = text;
  find("large").style.aspectRatio = pixels ? pixels.size.join("/") : 1;
  strip(find("stretches"), pixels ? stretchesOf(pixels) : [], name => [name, null]);
  strip(find("bands"), pixels ? DATA.bands : [], (_, band) => [view.stretch, band]);
  const [name, where, marks] = find("name").children;
  name.textContent = id;
  where.textContent = ra === null || dec === null ? ""
    : `${ra.toFixed(5)} ${dec < 0 ? "−" : "+"}${Math.abs(dec).toFixed(5)}`;
  const truth = view.blind ? "" : {0: "labelled no lens", 1: "labelled a lens"}[known];
  marks.textContent = [flag, truth].filter(Boolean).join(" · ");
  links(ra, dec, pixels);
  facts(number);
  verdict();
}

// A row of small pictures, which are made once and drawn for each candidate.
function strip(parent, names, how) {
  if ([...parent.children].map(figure => figure.lastChild.textContent).join() !== names.join())
    parent.replaceChildren(...names.map(name => {
      const figure = make(parent.id === "stretches" ? "button" : "figure", "", {title: name});
      figure.append(make("canvas"), make("span", name));
      if (parent.id === "stretches") figure.onclick = () => change({stretch: name});
      return figure;
    }));
  names.forEach((name, k) => {
    const [stretch, band] = how(name, k), figure = parent.children[k];
    const pressed = names.includes(view.stretch) ? view.stretch : names[0];
    if (band === null) figure.ariaPressed = stretch === pressed;
    drawLater(first, figure.firstChild, list[place], stretch, band);
  });
}

function links(ra, dec, pixels) {
  if (ra === null || dec === null) return find("links").replaceChildren();
  const field = pixels?.scale ? pixels.scale * pixels.size[0] / 3600 * 3 : 0.02;
  const survey = "CDS%2FP%2FDESI-Legacy-Surveys%2FDR10%2Fcolor", target = `${ra}%20${dec}`;
  const at = {
    "Legacy viewer": "https://www.legacysurvey.org/viewer"
      + `?ra=${ra}&dec=${dec}&layer=ls-dr10&zoom=16&mark=${ra},${dec}`,
    ESASky: "https://sky.esa.int/esasky/"
      + `?target=${target}&hips=DSS2%20color&fov=${field}&cooframe=J2000&sci=true`,
    Aladin: "https://aladin.cds.unistra.fr/AladinLite/"
      + `?target=${target}&fov=${field}&survey=${survey}`,
  };
  find("links").replaceChildren(...Object.entries(at).map(([name, href]) =>
    make("a", name, {href, target: "_blank", rel: "noopener noreferrer"})));
}

function facts(number) {
  const {text, error, score, of_members: said, own} = DATA.candidates[number];
  const hidden = view.blind || !SCORED;
  find("score").replaceChildren();
  if (!hidden) {
    const total = make("div", "", {class: "total"});
    total.append(make("b", text), make("small", error));
    find("score").append(total, ...DATA.members.map((name, k) => meter(name, said[k], score)));
  }
  const says = hidden ? [] : DATA.says.map(([name, meaning, cells]) => [name, cells[number], meaning]);
  const known = [...own ?? [], ...says].filter(([, value]) => value !== "");
  find("facts").replaceChildren(...known.flatMap(([name, value, meaning]) =>
     [make("dt", name, {title: meaning ?? ""}), make("dd", value, {title: value})]));
}

function meter(name, value, ensemble) {
  const row = make("div", "", {class: "meter", title: name});
  const line = make("i", "", {style: `--at:${100 * (value ?? 0)}%;--ensemble:${100 * (ensemble ?? 0)}%`});
  row.append(make("span", name), line, make("small", value === null ? "–" : value.toFixed(3)));
  return row;
}

function verdict() {
  const number = list[place], entry = mine(number), {id} = DATA.candidates[number];
  for (const button of find("verdict").children) button.ariaPressed = button.value === entry.grade;
  for (const button of find("kinds").children) button.ariaPressed = button.value === entry.class;
  if (document.activeElement !== find("notes")) find("notes").value = entry.notes;
  find("others").replaceChildren(...(view.blind ? [] : othersOn(id, grader)).map(([name, other]) =>
    make("p", `${name || "no name"}: ${[other.grade, other.class, other.notes].filter(Boolean).join(", ")}`)));
}

// ---- grades

function write(number, changes, undone = null) {
  const {id} = DATA.candidates[number], old = mine(number);
  const entry = {...old, ...changes, time: new Date().toISOString()};
  undone?.push([id, grader, old]);
  if (!keep(id, grader, entry)) notKept();
  for (const card of find("mosaic").children)
    if (DATA.candidates[card.dataset.number].id === id) label(card);
}

function notKept() {
  find("alarm").hidden = false;
  find("alarm").textContent = "This browser does not keep grades for this page: "
    + "export them before you close it.";
}

const seconds = () => Math.min((spent + performance.now() - since) / 1000, LONGEST).toFixed(1);

// Gives the candidate in focus a grade, or a kind of impostor, and goes on.
function give(changes) {
  if (!list.length) return;
  const undone = [];
  write(list[place], {...changes, seconds: seconds()}, undone);
  undoes.push([place, undone]);
  const {grade, class: kind} = mine(list[place]);
  say(`${inFocus().id}: ${[grade, kind].filter(Boolean).join(", ") || "no grade"}`);
  [since, spent] = [performance.now(), 0];
  if (view.advance && changes.grade !== "" && place < list.length - 1) focusOn(place + 1);
  else { verdict(); count(); }
}

const giveKind = kind => list.length && give({class: kind, grade: mine(list[place]).grade || "X"});
const clear = () => give({grade: "", class: ""});

function restOfPage() {
  const from = firstOfPage(), undone = [];
  for (const number of list.slice(from, from + PAGE))
    if (!mine(number).grade) write(number, {grade: "X", seconds: ""}, undone);
  if (undone.length) undoes.push([place, undone]);
  say(`${undone.length} of this page are X`);
  verdict();
  count();
}

function undo() {
  const last = undoes.pop();
  if (!last) return;
  for (const [id, by, old] of last[1]) if (!keep(id, by, old)) notKept();
  for (const card of find("mosaic").children) label(card);
  focusOn(last[0]);
  say(`undone: ${inFocus().id}`);
}

function nextUngraded() {
  for (let k = 1; k <= list.length; k++) {
    const where = (place + k) % list.length;
    if (!mine(list[where]).grade) return focusOn(where);
  }
  say("All that are shown are graded");
}

function count() {
  const of = Object.fromEntries(["", ...GRADES].map(grade => [grade, 0]));
  for (const number of list) of[mine(number).grade]++;
  const graded = list.length - of[""], [bar, text] = find("progress").children;
  Object.assign(bar, {max: list.length || 1, value: graded});
  text.textContent = `${graded} of ${list.length}`;
  find("counts").replaceChildren(...GRADES.map(grade =>
    make("span", `${grade} ${of[grade]}`, {"data-grade": grade})));
  find("undo").disabled = !undoes.length;
}

function say(text) {
  find("toast").textContent = text;
  find("toast").classList.add("on");
  clearTimeout(say.timer);
  say.timer = setTimeout(() => find("toast").classList.remove("on"), 2500);
}
