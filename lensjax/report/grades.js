// Grades: kept in the browser as they are given, undone, written to CSV and read from it.
const GRADES = ["A", "B", "C", "X"];
const COLUMNS = ["id", "ra", "dec", "grade", "class", "grader", "time", "seconds", "notes"];
const NOTHING = {grade: "", class: "", time: "", seconds: "", notes: ""};
const PREFIX = `lensjax/${DATA.key}/`;
const entries = new Map();  // by id, then by grader

const idle = entry => !entry.grade && !entry.class && !entry.notes;
const keyOf = (id, grader) => PREFIX + JSON.stringify([id, grader]);

// Each entry has a key of its own, so that two windows of a page do not overwrite each other.
function keep(id, grader, entry) {
  remember(id, grader, entry);
  try {
    if (idle(entry)) localStorage.removeItem(keyOf(id, grader));
    else localStorage.setItem(keyOf(id, grader), JSON.stringify(entry));
    return true;
  } catch {
    return false;
  }
}

function remember(id, grader, entry) {
  if (!entries.has(id)) entries.set(id, new Map());
  if (idle(entry)) entries.get(id).delete(grader);
  else entries.get(id).set(grader, entry);
}

function remembered(key, value) {
  if (!key?.startsWith(PREFIX)) return false;
  try {
    const [id, grader] = JSON.parse(key.slice(PREFIX.length));
    remember(id, grader, value === null ? NOTHING : {...NOTHING, ...JSON.parse(value)});
    return true;
  } catch {
    return false;  // not one of ours
  }
}

function recall() {
  try {
    for (let k = 0; k < localStorage.length; k++) {
      const key = localStorage.key(k);
      remembered(key, localStorage.getItem(key));
    }
    localStorage.setItem("lensjax", "");
    return true;
  } catch {
    return false;
  }
}

const entryOf = (id, grader) => entries.get(id)?.get(grader) ?? NOTHING;
const othersOn = (id, grader) => [...entries.get(id) ?? []].filter(([name]) => name !== grader);

// What a grader did before giving a name is that grader's.
function rename(grader) {
  for (const [id, by] of entries) {
    const unnamed = by.get("");
    if (!unnamed) continue;
    if ((by.get(grader)?.time ?? "") < unnamed.time) keep(id, grader, unnamed);
    keep(id, "", NOTHING);
  }
}

function toCsv() {
  const seen = new Set(), rows = [COLUMNS];
  for (const {id, ra, dec} of DATA.candidates) {
    if (seen.has(id)) continue;
    seen.add(id);
    for (const [grader, entry] of entries.get(id) ?? [])
      rows.push(COLUMNS.map(name => ({id, ra: ra ?? "", dec: dec ?? "", grader, ...entry})[name]));
  }
  const quoted = cell => /[",\r\n]|^\s|\s$/.test(cell) ? `"${String(cell).replaceAll('"', '""')}"` : cell;
  return rows.map(row => row.map(quoted).join(",") + "\r\n").join("");
}

// The rows of a CSV (RFC 4180), each an object by the names of its header.
function fromCsv(text) {
  const rows = [[]], cell = /("(?:[^"]|"")*"|(?:[^",\r\n][^,\r\n]*)?)(,|\r\n|\r|\n|$)/y;
  text = text.replace(/^\ufeff/, "");
  while (cell.lastIndex < text.length) {
    const found = cell.exec(text);
    if (!found) throw new Error("a quotation mark is not closed");
    const [, value, end] = found;
    rows.at(-1).push(value.startsWith('"') ? value.slice(1, -1).replaceAll('""', '"') : value);
    if (end !== "," && cell.lastIndex < text.length) rows.push([]);
    if (end === "," && cell.lastIndex === text.length) rows.at(-1).push("");
  }
  const [names, ...others] = rows;
  return others.map(row => Object.fromEntries(names.map((name, k) => [name.trim(), row[k] ?? ""])));
}

// Takes the rows of another file: of two by the same grader the later one counts. Returns how many
// were taken, were known, and are of other candidates. Raises an Error for what holds no grades.
function merge(text) {
  const rows = fromCsv(text), ids = new Set(DATA.candidates.map(({id}) => id));
  const counts = {taken: 0, known: 0, others: 0, kept: true};
  if (rows.length && !("id" in rows[0] && "grade" in rows[0]))
    throw new Error("it has no columns id and grade");
  const given = rows.map(row => {
    const entry = Object.fromEntries(Object.keys(NOTHING).map(name => [name, row[name] ?? ""]));
    entry.grade = entry.grade.trim().toUpperCase();
    if (entry.grade && !GRADES.includes(entry.grade))
      throw new Error(`${entry.grade} is no grade: they are ${GRADES.join(", ")}`);
    return [row.id, row.grader ?? "", entry];
  });
  for (const [id, grader, entry] of given) {
    const there = entryOf(id, grader);
    if (!ids.has(id)) counts.others++;
    else if (idle(entry) || !idle(there) && entry.time <= there.time) counts.known++;
    else {
      counts.kept &&= keep(id, grader, entry);
      counts.taken++;
    }
  }
  return counts;
}
