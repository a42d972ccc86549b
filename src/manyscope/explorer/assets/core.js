// What all parts of the program share. The parts are joined, in the order of PARTS in page.py, into the body of one
// function; each sees what those before it declare.
//
// A SOURCE answers all questions about the objects; static.js asks the arrays in the page, served.js the server. An
// object is named by its row. Lists of rows are Int32Arrays in ascending order unless said otherwise. All answers but
// `about` and `picture` are promises.
//
//   about                     see Contents.about in contents.py, and: notes (sentences), neighbours (how many at most
//                             are known of an object), version (a text that changes with the data),
//                             search {text, image} (whether new vectors can be sought), all (whether `points` gives
//                             every object), experiments (names for the menu; one if there is no choice), and of the
//                             served page pictures (whether objects have any)
//   find(filters)             rows of the objects that pass every filter; null when all do because there is no filter.
//                             filters: {name: {low, high} | {levels: [text or null for missing]} | {part: text}}.
//                             low and high are included, either may be null, missing values fail; `part` is sought
//                             in lower case; the name "object_id" filters by id
//   within(shape)             rows inside {kind: "box", corners: [[x, y], [x, y]]} or {kind: "lasso", points: [[x, y], …]},
//                             by the even-odd rule; with `camera` (16 numbers, column-major, map to clip space) the
//                             shape is in x/w and y/w of the picture of a 3-D map, and objects behind the eye are outside
//   points({view, colour, size, filters, always})   {rows, axes: [x, y(, z)], colour, size}: the objects to draw, arrays
//                             in the order of rows; colour and size are the values of the named column (number: NaN
//                             where missing; category: codes, -1 where missing) or null. The rest matters only where
//                             not all are drawn: view: [[x0, x1], [y0, y1]] or null, the part that is seen; filters:
//                             objects that pass come first; always: rows that are drawn in any case
//   records(rows, names)      [{row, id, values}]: values in the order of the names, null where missing; the rows in any order
//   sorted(rows, name, descending)   the same rows (null: all) ordered by a column or "object_id"; missing ones last, ties by row
//   histogram(name, rows)     number: {low, high, all: [counts], chosen: [counts], missing}; category: {all, chosen, missing}
//                             in the order of the levels. `chosen` counts only `rows` (null: all of them)
//   neighbours(row)           [{row, id, distance}], nearest first
//   rowOf(id)                 its row, or null
//   search({text} or {image: File})   [{row, id, distance}] of the objects nearest to what is given
//   picture(row)              an element with the picture of the object, or null
//   csv(rows)                 a Blob: object_id, map_x, map_y(, map_z), then every column, of these rows in this order
//   training()                null, or {metrics: [ROW of metrics.json], headline, curves: [{name, step, value}], figures: [{name, caption, address}]}

const $ = (id) => document.getElementById(id);

/** Text from the data only ever becomes a property or a text node. */
const element = (tag, properties = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-")) made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
};

const shown = (value) => {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number" || !Number.isFinite(value)) return String(value);
  return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(5)));
};
const reasonOf = (error) => String(error?.message ?? error).split("\n")[0];
const counted = (number) => number.toLocaleString("en");
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const ARRAYS = {
  float32: Float32Array, float64: Float64Array, int32: Int32Array, int16: Int16Array, uint8: Uint8Array,
};
/** The bytes in a base64 text; a plain loop, since it may be tens of megabytes. */
function bytesOf(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}
/** An array from its form in JSON: {dtype, data}, see `packed` in payload.py. */
const unpack = ({ dtype, data }) => new ARRAYS[dtype](bytesOf(data).buffer);

// Of levels. Eight, since no more can be told apart by everyone: tests/unit/explorer/test_palette.py.
const PALETTE = ["#005bb9", "#c98000", "#009c70", "#b63f1f", "#55c9fc", "#ae69ad", "#decf1d", "#7c203c"];

// ---- what the user has chosen ----
// Changed only by `change`, which tells everyone who asked for one of the keys.
const state = {
  tab: "map", // or "training"
  colour: null, // name of a column
  size: null, // name of a number column
  opacity: 0.8,
  filters: {}, // see `find`
  selection: null, // {shape} or {rows: Int32Array}
  focus: null, // the row that was clicked
  fields: [], // names of the columns in the table
  sort: null, // {name, descending}; the name may be "object_id"
  view: null, // [[x0, x1], [y0, y1]] of a flat map, {eye, center, up} of one in space; null is all
  theme: "auto", // or "light", "dark"
};
// What follows from it, found by the source: also changed only by `change`.
const chosen = {
  passing: null, // rows that pass the filters; null is all
  selected: null, // rows of the selection; null without one
  listed: null, // those in both; null when nothing is chosen
  of: { filters: {}, selection: null }, // those of `state` to which the others belong: older ones while the source is asked
};
const listeners = [];
/** Call `heard(changed)` after each change of one of the keys, of `state` or `chosen`. */
const on = (keys, heard) => listeners.push({ keys: new Set(keys.split(" ")), heard });
function change(values) {
  for (const [key, value] of Object.entries(values)) (key in state ? state : chosen)[key] = value;
  const changed = Object.keys(values);
  for (const { keys, heard } of listeners) if (changed.some((key) => keys.has(key))) heard(changed);
}

/** The filter of a column, null without one. Columns may have names that every object knows, such as "constructor". */
const filterOf = (name) => (Object.hasOwn(state.filters, name) ? state.filters[name] : null);
/** Replace the filter of a column; null takes it away. */
function setFilter(name, filter) {
  const { [name]: _, ...others } = state.filters;
  change({ filters: filter === null ? others : { ...others, [name]: filter } });
}

/** Only the last call counts: `latest()` gives a function that says whether no later one was made. */
const latest = () => {
  let last = 0;
  return () => {
    const own = ++last;
    return () => own === last;
  };
};
