// The map. main.js calls, once:
//
//   const map = makeMap(source, hovered)   hovered(row or null, {x, y}): the object at the pointer (client pixels); main.js shows its card
//   await map.start()                      draws for the first time; from then on the map follows `state` and `chosen` by itself
//   map.pixel(row)                         {x, y} in client pixels; null if the object is not drawn or not in view
//
// It owns #map, #legend, #tool-pan, #tool-box, #tool-lasso, #zoom-in, #zoom-out and #reset. Of `state` it changes `view`,
// `focus`, `selection` (to {shape}) and, through the buttons of the legend, `filters`.
//
// Plotly draws the points and nothing else: pointer, keys, hover, rings and outlines are handled here, on a layer over it.
// Its own tools would have to find and redraw each point, which takes seconds for 200,000 of them. For the same reason
// objects of one colour form one trace: an array of colours, or Plotly's selected points, cost several times as much.

const MAP_SCALES = {
  // Viridis, without the end that is lost on white or on black; for every eye each colour is lighter than the one before.
  light: ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#a9d03e", "#dbcd3a"],
  dark: ["#6459b8", "#4c74c0", "#338bb3", "#239c9f", "#2fae85", "#56c267", "#8ed045", "#c6dc3a", "#f3e64a", "#fff6a0"],
};
const MAP_STEPS = 20; // colours of a scale
const MAP_LAYERS = 3; // each colour is drawn in so many rounds, so that none lies wholly under another
const MAP_MANY = 20000; // objects from which the map is drawn for speed rather than for smooth edges
const MAP_SLOW_MS = 70; // a redraw that takes longer is put off until a movement has ended
const MAP_NEAR_PX = 12;
const MAP_DOT_CHANGE = 0.25; // a change of the size of marks, as a logarithm, that is worth drawing all anew
const MAP_ALWAYS = 2000; // selected objects that are drawn even where the server sends a part of all
const MAP_FOV = Math.PI / 4; // of Plotly's camera; checked in `checkCamera`
const MAP_DEPTHS = [0.01, 1000];

/** Colour number `step` of `steps`, from one end of the stops to the other. */
function mapColour(stops, step, steps) {
  const place = (step / (steps - 1)) * (stops.length - 1);
  const [from, to] = [Math.floor(place), Math.min(stops.length - 1, Math.floor(place) + 1)];
  const channel = (i) => {
    const [a, b] = [from, to].map((stop) => parseInt(stops[stop].slice(1 + 2 * i, 3 + 2 * i), 16));
    return Math.round(a + (b - a) * (place - from));
  };
  return `rgb(${channel(0)}, ${channel(1)}, ${channel(2)})`;
}

/** The range of a number column that is told apart, [first, last]; null if it has no finite value. */
function mapRange({ first, last, low, high }) {
  if (low === null) return null;
  return first < last ? [first, last] : [low, high];
}
/** Where a value lies in a range, in [0, 1]; NaN where missing. */
const mapShare = (value, [first, last]) => {
  if (first < last) return Math.max(0, Math.min(1, shareOf(value, { low: first, high: last })));
  return Number.isNaN(value) ? NaN : value < first ? 0 : value > last ? 1 : 0.5;
};

/** The codes of the commonest levels, in the order of the levels: those that have a colour of their own. */
function mapCommon(column) {
  const codes = column.levels.map((_, code) => code);
  codes.sort((a, b) => column.counts[b] - column.counts[a] || a - b);
  return codes.slice(0, PALETTE.length).sort((a, b) => a - b);
}

/** The colours of a column and which of them each object has: {colours, of}; `of(value)` is a place in colours, of
 * which the first is for missing values. */
function mapColouring(column, stops) {
  if (!column) return { colours: [css("--accent")], of: () => 0 };
  const missing = css("--grey");
  if (column.kind === "number") {
    const range = mapRange(column);
    const colours = Array.from({ length: MAP_STEPS }, (_, step) => mapColour(stops, step, MAP_STEPS));
    const step = (value) => Math.min(MAP_STEPS - 1, Math.floor(mapShare(value, range) * MAP_STEPS)) + 1;
    return { colours: [missing, ...colours], of: (value) => (range === null || Number.isNaN(value) ? 0 : step(value)) };
  }
  const places = new Uint8Array(column.levels.length).fill(1);
  mapCommon(column).forEach((code, i) => (places[code] = i + 2));
  return { colours: [missing, css("--faint"), ...PALETTE], of: (code) => (code < 0 ? 0 : places[code]) };
}

/** Places sorted by a small key: {start, order}; those with key k are order[start[k]] to order[start[k + 1]]. */
function mapSorted(keys, different) {
  const start = new Int32Array(different + 1);
  for (const key of keys) if (key >= 0) start[key + 1]++;
  for (let key = 0; key < different; key++) start[key + 1] += start[key];
  const next = start.slice();
  const order = new Int32Array(start[different]);
  for (let i = 0; i < keys.length; i++) if (keys[i] >= 0) order[next[keys[i]]++] = i;
  return { start, order };
}

/** Product of two 4 x 4 matrices of 16 numbers, column by column. */
function mapProduct(a, b) {
  const made = new Float64Array(16);
  for (let column = 0; column < 4; column++) {
    for (let row = 0; row < 4; row++) {
      for (let k = 0; k < 4; k++) made[4 * column + row] += a[4 * k + row] * b[4 * column + k];
    }
  }
  return made;
}

const mapVector = {
  minus: (a, b) => a.map((value, i) => value - b[i]),
  plus: (a, b, times) => a.map((value, i) => value + times * b[i]),
  dot: (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0),
  cross: (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]],
  unit: (a) => a.map((value) => value / (Math.hypot(...a) || 1)),
};

/** The camera as Plotly understands {eye, center, up}: [right, up, back, eye]. */
function mapFrame(view) {
  const [eye, center, up] = ["eye", "center", "up"].map((key) => ["x", "y", "z"].map((axis) => view[key][axis]));
  const back = mapVector.unit(mapVector.minus(eye, center));
  const right = mapVector.unit(mapVector.cross(up, back));
  return [right, mapVector.cross(back, right), back, eye];
}

/** From the coordinates of the map to clip space. `ranges` are drawn as a box with sides `sides` around the origin. */
function mapCamera(view, ranges, sides, aspect) {
  const [right, up, back, eye] = mapFrame(view);
  const look = [0, 1, 2].flatMap((i) => [right[i], up[i], back[i], 0]);
  look.push(...[right, up, back].map((axis) => -mapVector.dot(axis, eye)), 1);
  const scales = ranges.map(([low, high], i) => sides[i] / (high - low));
  const model = [scales[0], 0, 0, 0, 0, scales[1], 0, 0, 0, 0, scales[2], 0];
  model.push(...ranges.map(([low, high], i) => (-scales[i] * (low + high)) / 2), 1);
  const near = 1 / Math.tan(MAP_FOV / 2);
  const [front, end] = MAP_DEPTHS;
  const depth = [0, 0, (end + front) / (front - end), -1, 0, 0, (2 * end * front) / (front - end), 0];
  return mapProduct([near / aspect, 0, 0, 0, 0, near, 0, 0, ...depth], mapProduct(look, model));
}

/** The legend of #colour and #size; `note` stands below it. */
function mapLegend(column, size, stops, note) {
  const missing = (count) =>
    count ? [mapLegendRow(css("--grey"), "no value", count, { "data-missing": "true" })] : [];
  const parts = [];
  if (column) parts.push(element("h2", { textContent: column.name }));
  if (column?.kind === "number") {
    const range = mapRange(column);
    if (range) {
      const bar = element("div", { className: "ramp" });
      bar.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
      // A percentile of integers may lie between two of them.
      const text = (value) => shown(column.whole ? Math.round(value) : value);
      const ends = element("div", { className: "ends" },
        element("span", { textContent: (column.low < range[0] ? "≤ " : "") + text(range[0]) }),
        element("span", { textContent: (column.high > range[1] ? "≥ " : "") + text(range[1]) }));
      ends.title = `from ${shown(column.low)} to ${shown(column.high)}; values beyond the ends have the colour of the end`;
      parts.push(bar, ends);
    }
    parts.push(...missing(column.missing));
  } else if (column) {
    const common = mapCommon(column);
    const wanted = filterOf(column.name)?.levels ?? null;
    const button = (colour, text, levels, count, more) => {
      const pressed = wanted !== null && levels.every((level) => wanted.includes(level));
      const made = mapLegendRow(colour, text, count, { ...more, "aria-pressed": String(pressed) }, "button");
      made.classList.toggle("off", wanted !== null && !pressed);
      made.addEventListener("click", () => {
        const rest = (wanted ?? []).filter((level) => !levels.includes(level));
        const next = pressed ? rest : [...rest, ...levels];
        setFilter(column.name, next.length ? { levels: next } : null);
      });
      return made;
    };
    parts.push(...common.map((code, i) => {
      const level = column.levels[code];
      return button(PALETTE[i], level === "" ? "(empty)" : level, [level], column.counts[code], { "data-level": level });
    }));
    const others = column.levels.map((_, code) => code).filter((code) => !common.includes(code));
    if (others.length) {
      const count = others.reduce((sum, code) => sum + column.counts[code], 0);
      const levels = others.map((code) => column.levels[code]);
      parts.push(button(css("--faint"), `${counted(others.length)} other values`, levels, count, { "data-others": "true" }));
    }
    if (column.missing) {
      parts.push(button(css("--grey"), "no value", [null], column.missing, { "data-missing": "true", "data-level": "" }));
    }
  }
  const range = size && mapRange(size);
  if (range) {
    parts.push(element("h2", { textContent: `Size: ${size.name}` }),
      element("div", { className: "ends", textContent: `small ${shown(range[0])} – large ${shown(range[1])}` }));
  }
  if (note) parts.push(element("p", { className: "note", textContent: note }));
  $("legend").hidden = parts.length === 0;
  $("legend").replaceChildren(...parts);
}
function mapLegendRow(colour, text, count, properties, kind = "div") {
  const swatch = element("span", { className: "swatch" });
  swatch.style.background = colour;
  const label = element("span", { className: "label", textContent: text, title: text });
  const row = element(kind, { className: "key", ...properties }, swatch, label, element("span", { className: "far", textContent: counted(count) }));
  if (kind === "button") row.type = "button";
  return row;
}

function makeMap(source, hovered) {
  const { about } = source;
  const map = $("map");
  const solid = about.axes === 3;
  const webgl = Boolean(document.createElement("canvas").getContext("webgl"));
  const type = solid ? "scatter3d" : webgl ? "scattergl" : "scatter";
  const columns = new Map(about.columns.map((column) => [column.name, column]));
  const darkSystem = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => {
    const { theme } = document.documentElement.dataset;
    return theme === "dark" || (theme !== "light" && darkSystem.matches);
  };
  const stops = () => MAP_SCALES[isDark() ? "dark" : "light"];
  const offered = (name, kinds) => (kinds.includes(columns.get(name)?.kind) ? columns.get(name) : null);
  const colourColumn = () => offered(state.colour, ["number", "category"]);
  const sizeColumn = () => offered(state.size, ["number"]);

  const legend = () => {
    const { colour, size } = points?.asked ?? { colour: colourColumn(), size: sizeColumn() };
    mapLegend(colour, size, stops(), told);
  };

  // ---- the layer over the points ----
  const made = (kind, properties = {}) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", kind);
    for (const [name, value] of Object.entries(properties)) node.setAttribute(name, value);
    return node;
  };
  const layer = made("svg", { class: "layer", width: "100%", height: "100%" });
  Object.assign(layer.style, { position: "absolute", inset: "0", zIndex: "2", touchAction: "none" });
  const behind = made("svg", { width: "100%", height: "100%" });
  Object.assign(behind.style, { position: "absolute", inset: "0" });
  const box = made("path", { fill: "none", stroke: "var(--line)" });
  behind.append(box);
  const outline = made("path", {
    fill: "var(--accent)", "fill-opacity": "0.08", "fill-rule": "evenodd", stroke: "var(--accent)", "stroke-width": "1.5", "stroke-dasharray": "5 3",
  });
  const rings = made("g", { fill: "none", "stroke-width": "2" });
  layer.append(outline, rings);
  const preview = element("canvas", { className: "preview", hidden: true });
  Object.assign(preview.style, { position: "absolute", inset: "0" });
  map.tabIndex = 0;

  // ---- what is drawn, and where ----
  let points = null; // the answer of source.points, and asked: {colour, size}, the columns that it is about
  let groups = []; // {colour, opacity, at}: places in `points`, in the order in which they are drawn
  let listed = null; // 1 for each place in `points` that is listed; null is all
  let [width, height] = [0, 0];
  let sized = [0, 0]; // of the map when `view` was made
  let view = null; // flat: [[x0, x1], [y0, y1]] as wide as the map; in space: {eye, center, up}
  let drawn = null; // the view that Plotly has drawn
  let settles = false; // while `view` is put into `state` here
  let camera = null; // of a map in space, for `view`
  let grid = null; // to find the object at the pointer; null when out of date
  let lastRedraw = 0; // ms
  let ringed = []; // rows: the focused one and its neighbours
  let shape = null; // pixels of the shape being drawn
  let told = ""; // how many of the objects in view are drawn, if not all

  const padded = (() => {
    const spans = about.extent.map(([low, high]) => high - low);
    // An axis without width still needs some, or nothing could be scaled to it.
    const least = 0.02 * Math.max(...spans) || 1;
    return about.extent.map(([low, high], i) => {
      const half = 0.53 * Math.max(spans[i], least);
      return [(low + high) / 2 - half, (low + high) / 2 + half];
    });
  })();
  const sides = (() => {
    const spans = padded.map(([low, high]) => high - low);
    return spans.map((span) => span / Math.max(...spans));
  })();
  const HOME = { eye: { x: 1.25, y: 1.25, z: 0.95 }, center: { x: 0, y: 0, z: 0 }, up: { x: 0, y: 0, z: 1 } };
  let dot = 0; // pixels across the mark of an object
  /** The fewer objects are in view, the larger their marks. */
  function fittingDot() {
    if (!solid) grid ??= makeGrid();
    const seen = solid ? points.rows.length : grid.order.length;
    return (solid ? 0.8 : 1) * Math.max(2.2, Math.min(12, 11 - 1.75 * Math.log10(Math.max(1, seen))));
  }

  /** The smallest view as wide as the map that holds these ranges beside `margin` pixels at the top and on the right. */
  function fitted([[x0, x1], [y0, y1]], [top, right] = [0, 0]) {
    const scale = Math.max((x1 - x0) / (width - right), (y1 - y0) / (height - top));
    const [left, bottom] = [(x0 + x1 - scale * (width - right)) / 2, (y0 + y1 - scale * (height - top)) / 2];
    return [[left, left + scale * width], [bottom, bottom + scale * height]];
  }
  /** The view of the whole flat map. Tools and legend lie over it, but should not lie over objects. */
  function whole() {
    const { hidden, offsetWidth, offsetHeight } = $("legend");
    const top = Math.min(44, height / 6);
    const below = [Math.max(top, offsetHeight + 16), 0];
    const beside = [top, offsetWidth + 16];
    const places = [below, beside].filter(([above, right]) => above < 0.6 * height && right < 0.6 * width);
    const views = (hidden || !places.length ? [[top, 0]] : places).map((margin) => fitted(padded, margin));
    return views.reduce((one, other) => (other[0][1] - other[0][0] < one[0][1] - one[0][0] ? other : one));
  }
  const proper = (wanted) => {
    const finite = (value) => typeof value === "number" && Number.isFinite(value);
    if (!solid) return [0, 1].every((i) => wanted?.[i]?.every(finite) && wanted[i][0] < wanted[i][1]);
    return ["eye", "center", "up"].every((key) => ["x", "y", "z"].every((axis) => finite(wanted?.[key]?.[axis])));
  };
  /** The view that `state` asks for, which may come from a link written by hand. */
  function adopt() {
    const wanted = proper(state.view) ? state.view : null;
    look(solid ? wanted ?? HOME : wanted ? fitted(wanted) : whole());
  }
  function look(next) {
    view = next;
    sized = [width, height];
    if (solid) camera = mapCamera(view, padded, sides, width / height);
    grid = null;
    place();
  }
  function measure() {
    [width, height] = [map.clientWidth, map.clientHeight];
    return width > 20 && height > 20;
  }
  /** Whether the view was made for a map of the present size: whoever draws first after a change must make another. */
  const fits = () => view !== null && sized[0] === width && sized[1] === height;

  /** Pixels of a place on the map, from its upper left corner; null behind the eye. */
  function project(x, y, z = 0) {
    if (!solid) {
      const [[x0, x1], [y0, y1]] = view;
      return [((x - x0) / (x1 - x0)) * width, ((y1 - y) / (y1 - y0)) * height];
    }
    const c = camera;
    const w = c[3] * x + c[7] * y + c[11] * z + c[15];
    if (w <= 0) return null;
    const [right, up] = [0, 1].map((i) => (c[i] * x + c[4 + i] * y + c[8 + i] * z + c[12 + i]) / w);
    return [((1 + right) / 2) * width, ((1 - up) / 2) * height];
  }
  const projected = (at) => project(points.axes[0][at], points.axes[1][at], solid ? points.axes[2][at] : 0);
  /** The other way: the map's coordinates of a pixel; in space x/w and y/w of the picture. */
  const unprojected = ([x, y]) => {
    if (solid) return [(2 * x) / width - 1, 1 - (2 * y) / height];
    const [[x0, x1], [y0, y1]] = view;
    return [x0 + (x / width) * (x1 - x0), y1 - (y / height) * (y1 - y0)];
  };
  /** Where a row is in `points`; -1 if it is not drawn. */
  function placeOf(row) {
    const { rows } = points;
    let [low, high] = [0, rows.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (rows[middle] < row) low = middle + 1;
      else high = middle;
    }
    return rows[low] === row ? low : -1;
  }
  const inside = (pixel) => pixel !== null && pixel[0] >= 0 && pixel[1] >= 0 && pixel[0] <= width && pixel[1] <= height;

  function pixel(row) {
    const at = points && view ? placeOf(row) : -1;
    const found = at < 0 ? null : projected(at);
    if (!inside(found)) return null;
    const { left, top } = map.getBoundingClientRect();
    return { x: left + map.clientLeft + found[0], y: top + map.clientTop + found[1] };
  }

  // ---- drawing ----
  /** Sort the objects by colour, those that are not listed first. */
  function sortIntoGroups() {
    const n = points.rows.length;
    listed = null;
    if (chosen.listed) {
      listed = new Uint8Array(n);
      const marked = new Uint8Array(about.objects);
      for (const row of chosen.listed) marked[row] = 1;
      for (let i = 0; i < n; i++) listed[i] = marked[points.rows[i]];
    }
    const { colours, of } = mapColouring(points.asked.colour, stops());
    const layers = solid && n > MAP_MANY ? 1 : MAP_LAYERS; // in space each trace is dear
    const keys = new Int16Array(n);
    for (let i = 0; i < n; i++) {
      const layered = Math.imul(points.rows[i], 0x9e3779b1) >>> 16;
      keys[i] = listed && !listed[i] ? 0 : 1 + (layered % layers) * colours.length + (points.colour ? of(points.colour[i]) : 0);
    }
    const { start, order } = mapSorted(keys, 1 + layers * colours.length);
    groups = [];
    for (let key = 0; key + 1 < start.length; key++) {
      const at = order.subarray(start[key], start[key + 1]);
      if (!at.length) continue;
      const place = (key - 1) % colours.length;
      const faded = key > 0 && points.colour && place === 0 ? 0.7 : 1; // missing values recede
      groups.push(key === 0
        ? { colour: css("--grey"), opacity: 0.25, at, behind: true }
        : { colour: colours[place], opacity: state.opacity * faded, at });
    }
  }
  /** Diameters in pixels: one number, or one for each place. The area grows evenly over the range. */
  function diameters(group) {
    const range = points.asked.size && mapRange(points.asked.size);
    if (group.behind || !range) return dot;
    const [least, most] = [0.8 * dot, Math.max(10, 3.2 * dot)];
    const area = (value) => least ** 2 + (most ** 2 - least ** 2) * (mapShare(value, range) || 0);
    return Float32Array.from(group.at, (at) => Math.sqrt(area(points.size[at])));
  }
  function traces() {
    const along = (axis, at) => {
      const values = new Float32Array(at.length);
      for (let i = 0; i < at.length; i++) values[i] = axis[at[i]];
      return values;
    };
    // Without any trace Plotly would take its canvas away.
    const shownGroups = groups.length ? groups : [{ colour: css("--grey"), opacity: 1, at: new Int32Array(0) }];
    return shownGroups.map((group) => ({
      type, mode: "markers", hoverinfo: "skip", showlegend: false,
      ...Object.fromEntries(points.axes.map((axis, i) => ["xyz"[i], along(axis, group.at)])),
      marker: {
        color: group.colour, opacity: group.opacity, size: diameters(group), line: { width: 0 },
        // A ball in space is made of many triangles, a square of two.
        symbol: solid && points.rows.length > 5000 ? "square" : "circle",
      },
    }));
  }
  function layout() {
    const bare = { type: "linear", visible: false, showgrid: false, zeroline: false, autorange: false };
    const common = {
      width, height, margin: { l: 0, r: 0, t: 0, b: 0 }, hovermode: false, dragmode: false, showlegend: false,
      paper_bgcolor: "transparent", plot_bgcolor: "transparent",
    };
    if (!solid) return { ...common, xaxis: { ...bare, range: view[0], fixedrange: true }, yaxis: { ...bare, range: view[1], fixedrange: true } };
    const axes = padded.map((range, i) => [`${"xyz"[i]}axis`, { ...bare, range, showspikes: false, showbackground: false }]);
    const aspectratio = { x: sides[0], y: sides[1], z: sides[2] };
    const scene = { ...Object.fromEntries(axes), camera: view, aspectmode: "manual", aspectratio, dragmode: false, hovermode: false };
    return { ...common, scene };
  }
  /** Wait for the graphics card: only a pixel read back says that the orders were carried out. */
  function finishDrawing() {
    for (const canvas of surface()?.querySelectorAll("canvas") ?? []) {
      const gl = canvas.getContext("webgl");
      gl?.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4));
    }
  }
  const frame = () => new Promise((resolve) => requestAnimationFrame(resolve));

  let [again, drawing] = [false, null];
  /** Draw everything anew; calls while it is at work lead to one more drawing. */
  function redraw() {
    again = true;
    drawing ??= (async () => {
      while (again) {
        again = false;
        await redrawOnce();
      }
    })().finally(() => (drawing = null));
    return drawing;
  }
  async function redrawOnce() {
    legend();
    if (!points || !measure()) return;
    if (!fits() && drawn) fillSoon();
    if (!fits() || state.view === null && !drawn) adopt(); // anew at first, now that the width of the legend is known
    dot = fittingDot();
    sortIntoGroups();
    drawn = view;
    const settings = { staticPlot: !solid, displayModeBar: false, plotGlPixelRatio: pixelRatio(), plotlyServerURL: "" };
    if (webgl || !solid) await Plotly.react(map, traces(), layout(), settings);
    if (!layer.isConnected) {
      map.prepend(behind);
      map.append(preview, layer);
    }
    grid = null;
    place();
    if (solid && !webgl) sketch();
    if (solid) checkCamera();
  }
  // Plotly's own choice, two pixels for one, costs four times the work.
  const pixelRatio = () => (points.rows.length > MAP_MANY ? Math.min(2, devicePixelRatio) : 2);

  let queued = 0;
  /** Redraw soon: several changes in one go cost one drawing. A slider in motion waits for its end. */
  function redrawSoon(wait = 0) {
    clearTimeout(queued);
    queued = setTimeout(() => redraw().catch(failed), wait);
  }

  let returning = false;
  /** Choose the columns that are drawn, since those that were chosen cannot be. */
  function putBack() {
    if (!points) return;
    const [colour, size] = [points.asked.colour?.name ?? null, points.asked.size?.name ?? null];
    returning = true;
    if (colour !== state.colour || size !== state.size) change({ colour, size });
    returning = false;
  }

  const asked = latest();
  /** Ask for the objects again: for another column, or another part of the map. */
  async function fetchPoints() {
    const current = asked();
    const [colour, size] = [colourColumn(), sizeColumn()];
    const question = { view: null, colour: colour?.name ?? null, size: size?.name ?? null };
    // Where not all are drawn, those that the user looks for should be among them.
    if (!about.all) {
      const always = Int32Array.from(new Set([...ringed, ...(chosen.selected ?? []).slice(0, MAP_ALWAYS)])).sort();
      Object.assign(question, { view: solid ? null : view, filters: state.filters, always });
    }
    let answer;
    try {
      answer = await source.points(question);
    } catch (error) {
      if (!current()) return;
      putBack();
      throw error;
    }
    if (!current()) return;
    if (points === null) lastRedraw = answer.rows.length > MAP_MANY ? 2 * MAP_SLOW_MS : 0;
    points = { ...answer, asked: { colour, size } };
    await redraw();
    if (!about.all && view) await tellShare(current);
  }
  async function tellShare(current) {
    const seen = points.rows.length;
    const [[x0, x1], [y0, y1]] = solid ? padded : view;
    const whole = solid || about.extent.slice(0, 2).every(([low, high], i) => view[i][0] <= low && view[i][1] >= high);
    const total = seen === about.objects || whole ? about.objects : (await source.within({ kind: "box", corners: [[x0, y0], [x1, y1]] })).length;
    if (!current()) return;
    const before = told;
    told = seen < total ? `${counted(seen)} of the ${counted(total)} objects in view are drawn.${solid ? "" : " Zoom in to see more."}` : "";
    legend();
    if (told && !before) say(told); // the legend goes on saying it
    else if (before && !told && $("message").textContent === before) say("");
  }

  // ---- moving ----
  const surface = () => map.querySelector(".plot-container");
  let [moves, settling] = [0, 0];
  /** Show another view. Where Plotly is slow its last picture is moved, or a sample drawn, until the movement ends. */
  function move(next, wait = 160) {
    look(next);
    clearTimeout(settling);
    settling = setTimeout(() => settle().catch(failed), wait);
    if (lastRedraw < MAP_SLOW_MS) commit().catch(failed);
    else if (solid) sketch();
  }
  let committing = false;
  async function commit() {
    if (solid && !webgl) return sketch();
    if (committing || !drawn) return;
    committing = true;
    const next = view;
    const began = performance.now();
    try {
      drawn = next;
      await Plotly.relayout(map, solid ? { "scene.camera": structuredClone(next) } : { "xaxis.range": [...next[0]], "yaxis.range": [...next[1]] });
      place();
      if (solid) await frame(); // Plotly draws these in the next frame
      finishDrawing();
      lastRedraw = performance.now() - began;
    } finally {
      committing = false;
    }
    if (view !== next && lastRedraw < MAP_SLOW_MS) commit();
    else if (view === next) hideSketch();
  }
  async function settle() {
    const move = ++moves;
    const round = (value) => Number(value.toPrecision(9));
    const triple = ({ x, y, z }) => ({ x: round(x), y: round(y), z: round(z) });
    const { eye, center, up } = view;
    const rounded = solid ? { eye: triple(eye), center: triple(center), up: triple(up) } : view.map((range) => range.map(round));
    settles = true;
    change({ view: rounded });
    settles = false;
    while (committing) await frame();
    if (move !== moves) return;
    if (drawn !== view) await commit();
    if (move === moves) await settled();
  }
  /** What a new view asks for beside the points that are there. */
  async function settled() {
    if (solid || !points) return;
    if (!about.all) await fetchPoints();
    else if (Math.abs(Math.log(fittingDot() / dot)) > MAP_DOT_CHANGE) redrawSoon(200);
  }
  function reset() {
    change({ view: null });
  }
  /** A sample of the objects, drawn at once, in place of a map in space that Plotly takes long to turn. */
  function sketch() {
    preview.hidden = false;
    if (surface()) surface().style.visibility = "hidden";
    Object.assign(preview, { width, height });
    const pen = preview.getContext("2d", { willReadFrequently: true }); // keeps it off a graphics card that is busy
    const every = webgl ? Math.max(1, Math.ceil(points.rows.length / 12000)) : 1;
    const side = Math.max(2, dot * 0.9);
    for (const { colour, opacity, at } of groups) {
      pen.fillStyle = colour;
      pen.globalAlpha = opacity;
      for (let i = 0; i < at.length; i += every) {
        const found = projected(at[i]);
        if (found) pen.fillRect(found[0] - side / 2, found[1] - side / 2, side, side);
      }
    }
  }
  function hideSketch() {
    if (!webgl) return;
    preview.hidden = true;
    if (surface()) surface().style.visibility = "";
  }

  const zoomed = (factor, [x, y] = [width / 2, height / 2]) => {
    if (solid) {
      const { eye, center, up } = view;
      const towards = (axis) => center[axis] + (eye[axis] - center[axis]) * factor;
      const next = { eye: { x: towards("x"), y: towards("y"), z: towards("z") }, center, up };
      const far = Math.hypot(...["x", "y", "z"].map((axis) => next.eye[axis] - center[axis]));
      return far < 0.02 || far > 20 ? view : next;
    }
    const [px, py] = unprojected([x, y]);
    const next = [[px, view[0]], [py, view[1]]].map(([at, range]) => range.map((end) => at + (end - at) * factor));
    const share = (next[0][1] - next[0][0]) / (fitted(padded)[0][1] - fitted(padded)[0][0]);
    return share < 1e-6 || share > 20 ? view : next;
  };
  /** Moved by so many pixels; in space the camera turns around the centre, or with `slide` moves beside it. */
  const shifted = (dx, dy, slide = false) => {
    if (!solid) {
      const [sx, sy] = [(view[0][1] - view[0][0]) / width, (view[1][1] - view[1][0]) / height];
      return [view[0].map((end) => end - dx * sx), view[1].map((end) => end + dy * sy)];
    }
    const axes = ["x", "y", "z"];
    const named = (vector) => Object.fromEntries(axes.map((axis, i) => [axis, vector[i]]));
    const [eye, center] = [view.eye, view.center].map((at) => axes.map((axis) => at[axis]));
    const arm = mapVector.minus(eye, center);
    const far = Math.hypot(...arm);
    if (slide) {
      const [right, up] = mapFrame(view);
      const pixelSize = (2 * far * Math.tan(MAP_FOV / 2)) / height;
      const by = (at) => mapVector.plus(mapVector.plus(at, right, -dx * pixelSize), up, dy * pixelSize);
      return { eye: named(by(eye)), center: named(by(center)), up: view.up };
    }
    const turn = Math.atan2(arm[1], arm[0]) - dx * 0.008;
    const tilt = Math.max(-1.5, Math.min(1.5, Math.asin(arm[2] / far) + dy * 0.008));
    const next = [Math.cos(tilt) * Math.cos(turn), Math.cos(tilt) * Math.sin(turn), Math.sin(tilt)];
    return { eye: named(mapVector.plus(center, next, far)), center: view.center, up: HOME.up };
  };

  // ---- what lies over the points ----
  const path = (pixels, closed = true) => {
    const ends = pixels.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`);
    return ends.length ? `M${ends.join("L")}${closed ? "Z" : ""}` : "";
  };
  const rectangle = ([[x0, y0], [x1, y1]]) => [[x0, y0], [x1, y0], [x1, y1], [x0, y1]];
  function place() {
    if (!points || !view) return;
    const picture = surface();
    if (picture && !solid && drawn) {
      const scale = (drawn[0][1] - drawn[0][0]) / (view[0][1] - view[0][0]);
      const [x, y] = project(drawn[0][0], drawn[1][1]);
      picture.style.transformOrigin = "0 0";
      picture.style.transform = drawn === view ? "" : `translate(${x}px, ${y}px) scale(${scale})`;
    }
    const finished = state.selection?.shape;
    outline.setAttribute("d", shape ? path(tool === "box" ? rectangle(shape) : shape) : finished ? path(placed(finished)) : "");
    if (solid) box.setAttribute("d", edges());
    rings.replaceChildren(...ringed.flatMap((row, i) => {
      const at = placeOf(row);
      const found = at < 0 ? null : projected(at);
      if (!inside(found)) return [];
      const r = dot / 2 + (i ? 3.5 : 6);
      const pen = { stroke: i ? "var(--text)" : "var(--accent)", "stroke-width": i ? 1.5 : 3 };
      return [made("circle", { cx: found[0], cy: found[1], r, ...pen, "data-row": row })];
    }).reverse());
  }
  /** Pixels of a finished shape; none for one that was drawn with another camera. */
  function placed(finished) {
    const ends = finished.kind === "box" ? rectangle(finished.corners) : finished.points;
    if (!solid) return ends.map(([x, y]) => project(x, y));
    if (!finished.camera?.every((value, i) => Math.abs(value - camera[i]) < 1e-6 * (1 + Math.abs(value)))) return [];
    return ends.map(([x, y]) => [((1 + x) / 2) * width, ((1 - y) / 2) * height]);
  }
  /** The box around a map in space: without it a turn is hard to read. */
  function edges() {
    const lines = [];
    for (const axis of [0, 1, 2]) {
      for (const [a, b] of [[0, 0], [0, 1], [1, 0], [1, 1]]) {
        const end = (last) => [0, 1, 2].map((i) => padded[i][i === axis ? last : i === (axis + 1) % 3 ? a : b]);
        const line = [project(...end(0)), project(...end(1))];
        if (line.every(Boolean)) lines.push(path(line, false));
      }
    }
    return lines.join("");
  }
  let warned = false;
  /** The selection counts on the projection that Plotly draws with. It is not part of Plotly's public face, so another
   * version may have another; then say so rather than select wrong objects in silence. */
  function checkCamera() {
    const params = map._fullLayout?.scene?._scene?.glplot?.cameraParams;
    const scales = map._fullLayout?.scene?._scene?.dataScale;
    if (warned || committing || drawn !== view || !webgl) return;
    warned = true;
    if (!params?.projection || !params.view || !params.model || !scales) {
      say("This version of Plotly does not tell its camera: check selections in space before you rely on them.");
      return;
    }
    frame().then(frame).then(() => {
      if (drawn !== view) return void (warned = false);
      const data = [scales[0], 0, 0, 0, 0, scales[1], 0, 0, 0, 0, scales[2], 0, 0, 0, 0, 1];
      const theirs = mapProduct(params.projection, mapProduct(params.view, mapProduct(params.model, data)));
      const most = Math.max(...camera.map(Math.abs));
      const same = theirs.every((value, i) => Math.abs(value - camera[i]) < 1e-3 * most);
      if (!same) say("Plotly's camera is not the expected one: selections in space may miss objects.");
    });
  }

  // ---- finding the object at the pointer ----
  /** The objects in view by squares of MAP_NEAR_PX pixels. */
  function makeGrid() {
    const n = points.rows.length;
    const across = Math.ceil((width + 1) / MAP_NEAR_PX);
    const keys = new Int32Array(n);
    const [xs, ys, zs] = points.axes;
    for (let i = 0; i < n; i++) {
      const found = project(xs[i], ys[i], zs ? zs[i] : 0);
      keys[i] = inside(found) ? Math.floor(found[1] / MAP_NEAR_PX) * across + Math.floor(found[0] / MAP_NEAR_PX) : -1;
    }
    const down = Math.ceil((height + 1) / MAP_NEAR_PX);
    return { across, down, ...mapSorted(keys, across * down) };
  }
  /** Row of the nearest drawn object within MAP_NEAR_PX pixels, listed ones before others; null without one. */
  function rowAt([x, y]) {
    if (!points || !view) return null;
    grid ??= makeGrid();
    const [column, line] = [x, y].map((value) => Math.floor(value / MAP_NEAR_PX));
    let [best, least] = [null, Infinity];
    for (let i = Math.max(0, line - 1); i <= Math.min(grid.down - 1, line + 1); i++) {
      for (let j = Math.max(0, column - 1); j <= Math.min(grid.across - 1, column + 1); j++) {
        const key = i * grid.across + j;
        for (let k = grid.start[key]; k < grid.start[key + 1]; k++) {
          const at = grid.order[k];
          const [px, py] = projected(at);
          const far = Math.hypot(px - x, py - y);
          const rank = far + (listed && !listed[at] ? 2 * MAP_NEAR_PX : 0);
          if (far <= MAP_NEAR_PX && rank < least) [best, least] = [points.rows[at], rank];
        }
      }
    }
    return best;
  }

  // ---- pointer and keys ----
  let tool = "pan";
  const TOOLS = ["pan", "box", "lasso"];
  function choose(name) {
    tool = name;
    for (const each of TOOLS) $(`tool-${each}`).setAttribute("aria-pressed", String(each === name));
    layer.style.cursor = name === "pan" ? "grab" : "crosshair";
  }
  const local = (event) => {
    const { left, top } = layer.getBoundingClientRect();
    return [event.clientX - left, event.clientY - top];
  };
  let press = null; // {from, last, moved}
  let hovering = null;
  let pointing = null;
  function point(event) {
    const queue = pointing === null;
    pointing = event;
    if (queue) requestAnimationFrame(() => {
      const last = pointing;
      pointing = null;
      if (!last || press) return;
      const row = rowAt(local(last));
      layer.style.cursor = row !== null ? "pointer" : tool === "pan" ? "grab" : "crosshair";
      if (row !== null || hovering !== null) hovered(row, { x: last.clientX, y: last.clientY });
      hovering = row;
    });
  }
  function leave() {
    pointing = null;
    if (hovering !== null) hovered(null, { x: 0, y: 0 });
    hovering = null;
  }
  layer.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !view) return;
    map.focus({ preventScroll: true });
    layer.setPointerCapture(event.pointerId);
    press = { from: local(event), last: local(event), moved: false };
    leave();
  });
  layer.addEventListener("pointermove", (event) => {
    if (!press) return point(event);
    const here = local(event);
    press.moved ||= Math.hypot(here[0] - press.from[0], here[1] - press.from[1]) > 3;
    if (!press.moved) return;
    if (tool === "pan") {
      layer.style.cursor = "grabbing";
      move(shifted(here[0] - press.last[0], here[1] - press.last[1], event.shiftKey), 400);
      press.last = here;
      return;
    }
    if (tool === "box") shape = [press.from, here];
    else if (!shape) shape = [press.from, here];
    else if (Math.hypot(here[0] - shape.at(-1)[0], here[1] - shape.at(-1)[1]) > 2) shape.push(here);
    place();
  });
  layer.addEventListener("pointerup", (event) => {
    if (!press) return;
    const { moved } = press;
    const pixels = shape;
    [press, shape] = [null, null];
    choose(tool);
    if (!moved) {
      const row = rowAt(local(event));
      if (row !== null) change({ focus: row });
    } else if (tool === "pan") {
      clearTimeout(settling);
      settle().catch(failed);
    } else if (pixels) finish(pixels);
    place();
  });
  layer.addEventListener("pointercancel", () => {
    [press, shape] = [null, null];
    place();
  });
  layer.addEventListener("pointerleave", () => {
    if (!press) leave();
  });
  function finish(pixels) {
    const ends = pixels.map(unprojected);
    if (tool === "lasso" && ends.length < 3) return;
    const lowest = (i) => Math.min(ends[0][i], ends[1][i]);
    const highest = (i) => Math.max(ends[0][i], ends[1][i]);
    const done = tool === "box"
      ? { kind: "box", corners: [[lowest(0), lowest(1)], [highest(0), highest(1)]] }
      : { kind: "lasso", points: ends };
    change({ selection: { shape: solid ? { ...done, camera: Array.from(camera) } : done } });
  }
  layer.addEventListener("wheel", (event) => {
    event.preventDefault();
    if (!view) return;
    leave();
    const lines = event.deltaMode === 1 ? 33 : 1; // some browsers count lines, not pixels
    move(zoomed(Math.exp(Math.max(-300, Math.min(300, event.deltaY * lines)) * 0.0015), local(event)), 200);
  }, { passive: false });
  map.addEventListener("keydown", (event) => {
    if (event.target !== map || !view || event.ctrlKey || event.metaKey || event.altKey) return;
    const step = 40;
    const acts = {
      ArrowLeft: () => move(shifted(step, 0)), ArrowRight: () => move(shifted(-step, 0)),
      ArrowUp: () => move(shifted(0, step)), ArrowDown: () => move(shifted(0, -step)),
      "+": () => move(zoomed(1 / 1.5)), "=": () => move(zoomed(1 / 1.5)), "-": () => move(zoomed(1.5)), 0: reset,
    };
    if (!(event.key in acts)) return;
    event.preventDefault();
    leave();
    acts[event.key]();
  });
  addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !shape) return;
    [press, shape] = [null, null];
    event.stopImmediatePropagation(); // the shape in the making goes, the selection stays
    place();
  }, true);

  function resize() {
    if (!measure() || !points || (fits() && drawn)) return;
    adopt();
    redrawSoon();
    fillSoon();
  }
  const fillSoon = paused(200, () => settled().catch(failed)); // another size shows another part of the objects

  const neighboursAsked = latest();
  async function ring() {
    const current = neighboursAsked();
    ringed = state.focus === null ? [] : [state.focus];
    place();
    if (state.focus === null) return;
    const near = await source.neighbours(state.focus).catch(() => []); // the side panel says why there are none
    if (!current()) return;
    ringed = [state.focus, ...near.map(({ row }) => row)];
    if (!about.all && points && ringed.some((row) => placeOf(row) < 0)) await fetchPoints();
    place();
  }

  async function start() {
    for (const each of TOOLS) $(`tool-${each}`).addEventListener("click", () => choose(each));
    $("zoom-in").addEventListener("click", () => view && move(zoomed(1 / 1.5), 0));
    $("zoom-out").addEventListener("click", () => view && move(zoomed(1.5), 0));
    $("reset").addEventListener("click", reset);
    choose(tool);
    on("colour size", () => {
      if (!returning) fetchPoints().catch(failed);
    });
    on("listed", () => (about.all ? redrawSoon() : fetchPoints().catch(failed)));
    on("opacity", () => redrawSoon(120));
    // Later, when whoever shows the theme has shown it.
    on("theme", () => redrawSoon());
    darkSystem.addEventListener("change", () => redrawSoon());
    on("filters", legend);
    on("selection", place);
    on("focus", () => ring().catch(failed));
    on("view", () => {
      if (settles || !points || !measure()) return;
      clearTimeout(settling);
      moves++;
      adopt();
      commit().then(settled).catch(failed);
    });
    if (measure()) adopt();
    await fetchPoints();
    new ResizeObserver(resize).observe(map);
    map.on?.("plotly_webglcontextlost", () => say("The browser took the drawing context away: load the page again to see the map."));
    await ring();
  }

  return { start, pixel };
}
