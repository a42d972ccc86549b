// The SOURCE of the page that stands alone: every answer comes out of the arrays embedded in it (see payload.py).

const PICTURES_FROM = 64; // a cell smaller than this many pixels is drawn with sharp edges
const LINES_AT_ONCE = 5000; // of a CSV, joined into one text

/** The JSON in `packed`: base64 of a raw deflate stream. */
async function unpackedJson(packed) {
  if (typeof DecompressionStream === "undefined") throw new Error("this browser is too old to unpack the page");
  const stream = new Blob([bytesOf(packed)]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return JSON.parse(await new Response(stream).text());
}

/** Of the rows 0 … n - 1 those that are marked. */
function markedRows(marks) {
  let n = 0;
  for (const mark of marks) n += mark;
  const rows = new Int32Array(n);
  for (let row = 0, i = 0; i < n; row++) if (marks[row]) rows[i++] = row;
  return rows;
}

/** Where a value lies between two ends, 0 to 1 at these; of ends that are too large to differ all is in the middle.
 * By halves, since the distance between the ends may be more than a number holds. */
function shareOf(value, { low, high }) {
  return low / 2 < high / 2 ? (value / 2 - low / 2) / (high / 2 - low / 2) : 0.5;
}
/** The bar of a value; one below or above all bars counts with the first or last. */
const barOf = (value, ends, bars) => Math.max(0, Math.min(bars - 1, Math.floor(shareOf(value, ends) * bars)));

/** Ends of a histogram: the 1st and 99th percentile where they differ, so that a few strange values do not hide the
 * rest; the values beyond count with the bars at the ends. */
function histogramEnds({ low, high, first, last }) {
  if (low === null) return null;
  if (first < last) return { low: first, high: last };
  return low < high ? { low, high } : { low: low - 0.5, high: high + 0.5 };
}

/** Whether the even-odd rule puts (x, y) inside; xs and ys are the corners. */
function insideLasso(x, y, xs, ys) {
  let inside = false;
  for (let i = 0, j = xs.length - 1; i < xs.length; j = i++) {
    if (ys[i] > y !== ys[j] > y && x < ((xs[j] - xs[i]) * (y - ys[i])) / (ys[j] - ys[i]) + xs[i]) inside = !inside;
  }
  return inside;
}

const csvCell = (value) => {
  const text = value === null ? "" : typeof value === "number" ? String(Number(value.toPrecision(15))) : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};

async function staticSource(data) {
  const { about, ids, ...packed } = await unpackedJson(data.packed);
  const n = ids.length;
  const axes = packed.coordinates.map(unpack);
  const all = new Int32Array(n).map((_, row) => row);
  const once = (make) => {
    let made;
    return () => (made ??= make());
  };
  // Unpacked when first asked for: most visits look at few of the columns.
  const columns = new Map(about.columns.map((column, i) => {
    const { values, codes, texts } = packed.columns[i];
    const array = once(() => texts ?? unpack(values ?? codes));
    return [column.name, { ...column, array, lowered: once(() => array().map((text) => text?.toLowerCase())) }];
  }));
  const loweredIds = once(() => ids.map((id) => id.toLowerCase()));
  const neighbours = once(() => unpack(packed.neighbours));
  const distances = once(() => unpack(packed.distances));
  const slots = once(() => unpack(packed.pictures.slots));
  const sheets = packed.pictures.sheets.map((address) => once(() => Object.assign(new Image(), { src: address })));

  const known = (name) => {
    const column = columns.get(name);
    if (!column) throw new Error(`there is no column “${name}”`);
    return column;
  };
  const valueAt = (column, row) => {
    const value = column.array()[row];
    if (column.kind === "category") return value < 0 ? null : column.levels[value];
    return column.kind === "number" && Number.isNaN(value) ? null : value;
  };
  // A float32 has about seven digits; the rest of its decimal form would be noise.
  const exact = (array, value) =>
    array instanceof Float32Array && value !== null ? Number(value.toPrecision(7)) : value;

  /** A function that says of a row whether it passes one filter. */
  function test(name, filter) {
    if (name === "object_id") {
      const [part, texts] = [filter.part.toLowerCase(), loweredIds()];
      return (row) => texts[row].includes(part);
    }
    const column = known(name);
    if (filter.part !== undefined) {
      const part = filter.part.toLowerCase();
      if (column.kind === "text") {
        const texts = column.lowered();
        return (row) => texts[row]?.includes(part) ?? false;
      }
      return (row) => String(valueAt(column, row) ?? "").toLowerCase().includes(part);
    }
    const array = column.array();
    if (column.kind === "number") {
      const [low, high] = [filter.low ?? -Infinity, filter.high ?? Infinity];
      return (row) => array[row] >= low && array[row] <= high; // false of NaN
    }
    const wanted = new Set(filter.levels);
    if (column.kind === "text") return (row) => wanted.has(array[row]);
    const passing = Uint8Array.from([null, ...column.levels], (level) => wanted.has(level));
    return (row) => passing[array[row] + 1] === 1;
  }

  function find(filters) {
    const tests = Object.entries(filters).map(([name, filter]) => test(name, filter));
    if (tests.length === 0) return null;
    return all.filter((row) => tests.every((passes) => passes(row)));
  }

  function within({ kind, corners, points, camera }) {
    const outline = kind === "box" ? corners : points;
    const [xs, ys] = [0, 1].map((axis) => Float64Array.from(outline, (point) => point[axis]));
    const [left, right, bottom, top] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    const marks = new Uint8Array(n);
    const [mapX, mapY, mapZ] = axes;
    for (let row = 0; row < n; row++) {
      let [x, y] = [mapX[row], mapY[row]];
      if (camera) {
        const z = mapZ ? mapZ[row] : 0;
        const clip = (i) => camera[i] * x + camera[i + 4] * y + camera[i + 8] * z + camera[i + 12];
        const w = clip(3);
        if (!(w > 0)) continue; // behind the eye
        [x, y] = [clip(0) / w, clip(1) / w];
      }
      if (x < left || x > right || y < bottom || y > top) continue;
      if (kind === "box" || insideLasso(x, y, xs, ys)) marks[row] = 1;
    }
    return markedRows(marks);
  }

  function sorted(rows, name, descending) {
    const order = rows ? Int32Array.from(rows) : all.slice();
    const sign = descending ? -1 : 1;
    const column = name === "object_id" ? null : known(name);
    const array = column ? column.array() : ids;
    const lacks = { number: Number.isNaN, category: (code) => code < 0, text: (text) => text === null };
    const missing = lacks[column?.kind] ?? (() => false); // every object has an id
    return order.sort((a, b) => {
      const [one, other] = [array[a], array[b]];
      if (missing(one) || missing(other)) return missing(one) - missing(other) || a - b;
      return one < other ? -sign : one > other ? sign : a - b;
    });
  }

  function histogram(name, rows) {
    const column = known(name);
    const array = column.array();
    const count = (some, bars, bar) => {
      const counts = new Array(bars).fill(0);
      for (const row of some) {
        const at = bar(array[row]);
        if (at >= 0) counts[at]++;
      }
      return counts;
    };
    const both = (bars, bar) => {
      const every = (column.counted ??= count(all, bars, bar));
      return { all: every, chosen: rows ? count(rows, bars, bar) : every, missing: column.missing };
    };
    if (column.kind === "category") return both(column.levels.length, (code) => code);
    const ends = histogramEnds(column);
    if (!ends) return { low: null, high: null, all: [], chosen: [], missing: column.missing };
    return { ...ends, ...both(about.bars, (value) => (Number.isNaN(value) ? -1 : barOf(value, ends, about.bars))) };
  }

  function nearest(row) {
    const k = neighbours().length / n;
    const found = [];
    for (let i = row * k; i < (row + 1) * k; i++) {
      const other = neighbours()[i];
      found.push({ row: other, id: ids[other], distance: distances()[i] });
    }
    return found;
  }

  function picture(row) {
    const slot = slots()[row];
    if (slot < 0) return null;
    const { cell, across } = packed.pictures;
    const sheet = sheets[Math.floor(slot / across ** 2)]();
    const place = slot % across ** 2;
    const label = { role: "img", "aria-label": `picture of ${ids[row]}` };
    const className = cell < PICTURES_FROM ? "picture sharp" : "picture";
    const canvas = element("canvas", { className, width: cell, height: cell, ...label });
    const draw = () => {
      const [x, y] = [(place % across) * cell, Math.floor(place / across) * cell];
      canvas.getContext("2d").drawImage(sheet, x, y, cell, cell, 0, 0, cell, cell);
    };
    if (sheet.complete) draw();
    else sheet.addEventListener("load", draw, { once: true });
    return canvas;
  }

  function csv(rows) {
    const names = ["object_id", ...axes.map((_, i) => `map_${"xyz"[i]}`), ...columns.keys()];
    const cell = (column, row) => {
      const value = valueAt(column, row);
      if (column.whole && value !== null) return String(value); // of integers every digit counts
      return exact(column.array(), value);
    };
    const line = (row) => [
      ids[row],
      ...axes.map((axis) => exact(axis, axis[row])),
      ...Array.from(columns.values(), (column) => cell(column, row)),
    ].map(csvCell).join(",");
    const texts = [`${names.map(csvCell).join(",")}\r\n`];
    for (let i = 0; i < rows.length; i += LINES_AT_ONCE) {
      texts.push(Array.from(rows.slice(i, i + LINES_AT_ONCE), (row) => `${line(row)}\r\n`).join(""));
    }
    return new Blob(texts, { type: "text/csv" });
  }

  return {
    about,
    picture,
    find: async (filters) => find(filters),
    within: async (shape) => within(shape),
    points: async ({ colour, size }) => {
      const values = (name) => (name === null || name === undefined ? null : known(name).array());
      return { rows: all, axes, colour: values(colour), size: values(size) };
    },
    records: async (rows, names) => {
      const wanted = names.map(known);
      return Array.from(rows, (row) => ({ row, id: ids[row], values: wanted.map((column) => valueAt(column, row)) }));
    },
    sorted: async (rows, name, descending) => sorted(rows, name, descending),
    histogram: async (name, rows) => histogram(name, rows),
    neighbours: async (row) => nearest(row),
    rowOf: async (id) => {
      const row = ids.indexOf(id);
      return row < 0 ? null : row;
    },
    search: async () => {
      throw new Error("only the served page can search for something new");
    },
    csv: async (rows) => csv(rows),
    training: async () => null,
  };
}
