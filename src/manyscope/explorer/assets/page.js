"use strict";
(() => {
  const ARRAYS = { float32: Float32Array, float64: Float64Array, int32: Int32Array, int16: Int16Array };
  const PALETTE = ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#f0e442", "#882255", "#44aa99", "#999933", "#aa4499", "#ddcc77"];
  const DARK_VIRIDIS = [[0, "#3f6ea5"], [0.33, "#21918c"], [0.67, "#5ec962"], [1, "#fde725"]]; // its lower end is lost on black
  const MOST_ROWS = 200; // rows of the table in the page; the CSV holds all
  const FIRST_FIELDS = 6;

  const $ = (id) => document.getElementById(id);
  const unpack = ({ dtype, data: text }) => {
    const binary = atob(text);
    const bytes = new Uint8Array(binary.length);
    for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
    return new ARRAYS[dtype](bytes.buffer);
  };

  // ---- the data ----
  const data = JSON.parse($("data").textContent);
  const { ids, columns } = data;
  const axes = data.coordinates.map(unpack);
  const everything = Uint32Array.from(ids, (_, i) => i);
  const neighbours = unpack(data.neighbours);
  const distances = unpack(data.distances);
  const perObject = neighbours.length / ids.length;
  const pictures = { ...data.pictures, slots: unpack(data.pictures.slots) };
  const sheets = pictures.sheets.map((address) => Object.assign(new Image(), { src: address }));
  for (const column of columns) {
    if (column.kind === "number") column.values = unpack(column.values);
    if (column.kind === "category") column.codes = unpack(column.codes);
  }

  /** The value of a column for one object: a number, a text, or null where it is missing. */
  const valueOf = (column, row) => {
    if (column.kind === "category") return column.codes[row] < 0 ? null : column.levels[column.codes[row]];
    const value = column.values[row];
    return Number.isNaN(value) ? null : value;
  };
  const shown = (value) => {
    if (value === null) return "–";
    if (typeof value !== "number" || !Number.isFinite(value)) return String(value);
    return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(5)));
  };
  const counted = (number) => number.toLocaleString("en");

  // ---- building elements: text from the data only ever becomes a text node ----
  const element = (tag, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };
  const picture = (row) => {
    const slot = pictures.slots[row];
    if (slot < 0) return null;
    const { cell, across } = pictures;
    const sheet = sheets[Math.floor(slot / across ** 2)];
    const place = slot % across ** 2;
    const canvas = element("canvas", { className: cell < 64 ? "picture sharp" : "picture", width: cell, height: cell });
    const draw = () => {
      const [x, y] = [(place % across) * cell, Math.floor(place / across) * cell];
      canvas.getContext("2d").drawImage(sheet, x, y, cell, cell, 0, 0, cell, cell);
    };
    if (sheet.complete) draw();
    else sheet.addEventListener("load", draw, { once: true });
    return canvas;
  };
  const facts = (row, chosen) =>
    element("dl", {}, ...chosen.flatMap((column) => [
      element("dt", { textContent: column.name }),
      element("dd", { textContent: shown(valueOf(column, row)) }),
    ]));

  // ---- what the user has chosen ----
  const several = (column) =>
    column.kind === "category" ? column.levels.length > 1 : column.kind === "number" && new Set(column.values).size > 1;
  const state = {
    colour: columns.find(several) ?? null,
    matches: everything,
    selected: null, // rows in the lasso, or null without one
    focus: null, // the row that was clicked
    fields: new Set(columns.slice(0, FIRST_FIELDS)),
  };
  const fields = () => columns.filter((column) => state.fields.has(column));

  // ---- the map ----
  const map = $("map");
  const webgl = Boolean(document.createElement("canvas").getContext("webgl"));
  const type = axes.length === 3 ? "scatter3d" : webgl ? "scattergl" : "scatter";
  const pointSize = Math.max(2.2, Math.min(12, 11 - 1.75 * Math.log10(ids.length)));
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let draws = 0;
  let groups = []; // rows of each trace, in the order of the traces

  const split = (rows, key) => {
    const parts = new Map();
    for (const row of rows) {
      const at = key(row);
      if (!parts.has(at)) parts.set(at, []);
      parts.get(at).push(row);
    }
    return parts;
  };

  /** The objects in the parts that share a look: `{name, rows, marker, legend}`, drawn in this order. */
  function parts() {
    const { colour: column, matches } = state;
    const made = [];
    if (matches.length < ids.length) {
      const matching = new Set(matches);
      const rows = everything.filter((row) => !matching.has(row));
      made.push({ name: "other ids", rows, marker: { color: css("--grey"), opacity: 0.3 } });
    }
    if (!column) return [...made, { name: "objects", rows: matches, marker: { color: css("--accent") } }];
    const missing = { name: "no value", marker: { color: css("--grey"), opacity: 0.5 }, legend: true };
    if (column.kind === "number") {
      const byPresence = split(matches, (row) => Number.isFinite(column.values[row]));
      if (byPresence.has(false)) made.push({ ...missing, rows: byPresence.get(false) });
      const rows = byPresence.get(true) ?? [];
      return rows.length ? [...made, { name: column.name, rows, marker: scale(column, rows) }] : made;
    }
    const byLevel = split(matches, (row) => column.codes[row]);
    const frequency = new Array(column.levels.length).fill(0);
    for (const code of column.codes) if (code >= 0) frequency[code]++;
    const common = frequency.map((_, code) => code).sort((a, b) => frequency[b] - frequency[a] || a - b).slice(0, PALETTE.length);
    common.sort((a, b) => a - b);
    const others = [...byLevel.keys()].filter((code) => code >= 0 && !common.includes(code));
    if (byLevel.has(-1)) made.push({ ...missing, rows: byLevel.get(-1) });
    if (others.length) {
      const rows = others.flatMap((code) => byLevel.get(code));
      made.push({ name: `${column.levels.length - common.length} other values`, rows, marker: { color: css("--faint") }, legend: true });
    }
    common.forEach((code, i) => {
      if (byLevel.has(code)) made.push({ name: column.levels[code], rows: byLevel.get(code), marker: { color: PALETTE[i] }, legend: true });
    });
    return made;
  }

  /** A colour bar from the 1st to the 99th percentile, so that a few strange objects do not hide the rest. */
  function scale(column, rows) {
    const values = Float64Array.from(rows, (row) => column.values[row]);
    const sorted = values.slice().sort();
    const at = (share) => sorted[Math.round(share * (sorted.length - 1))];
    let [cmin, cmax] = [at(0.01), at(0.99)];
    if (cmin === cmax) [cmin, cmax] = [at(0), at(1)];
    if (cmin === cmax) [cmin, cmax] = [cmin - 0.5, cmax + 0.5];
    const colorbar = { title: { text: plain(column.name), side: "right" }, thickness: 12, outlinewidth: 0, len: 0.7 };
    return { color: values, colorscale: dark.matches ? DARK_VIRIDIS : "Viridis", cmin, cmax, showscale: true, colorbar };
  }

  /** Plotly reads some tags in the texts that it draws itself. */
  const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");

  const at = (rows) => Object.fromEntries(axes.map((axis, i) => ["xyz"[i], Array.from(rows, (row) => axis[row])]));
  const ringed = () => (state.focus === null ? [] : [state.focus, ...nearest(state.focus).map(([row]) => row)]);
  const nearest = (row) =>
    Array.from({ length: perObject }, (_, i) => [neighbours[row * perObject + i], distances[row * perObject + i]]);

  function draw() {
    $("card").hidden = true; // the point below the pointer may be another one now
    const made = parts();
    groups = made.map((part) => part.rows);
    const selected = new Set(state.selected ?? everything);
    const traces = made.map(({ name, rows, marker, legend }) => ({
      type, mode: "markers", name: plain(name), showlegend: Boolean(legend), hoverinfo: "none", ...at(rows),
      marker: { size: pointSize, opacity: 0.8, line: { width: 0 }, ...marker },
      // Always given, also when all are: Plotly's WebGL traces would go on showing an earlier selection.
      selectedpoints: [...rows.keys()].filter((i) => selected.has(rows[i])), unselected: { marker: { opacity: 0.08 } },
    }));
    const first = (one, other) => Array.from({ length: perObject + 1 }, (_, i) => (i ? other : one));
    const rings = { size: first(pointSize + 13, pointSize + 6), color: first(css("--accent"), css("--text")) };
    traces.push({
      type, mode: "markers", showlegend: false, hoverinfo: "skip", ...at(ringed()),
      marker: { symbol: "circle-open", line: { width: 2 }, ...rings }, selectedpoints: [...rings.size.keys()],
    });
    const bare = { visible: false, showgrid: false, zeroline: false };
    const flat = { ...bare, showspikes: false, title: "", showticklabels: false, showbackground: false };
    Plotly.react(map, traces, {
      // Zoom and tool stay as the user left them; which points are selected is ours to say.
      uirevision: "map", selectionrevision: ++draws, selections: state.selected ? map.layout?.selections : [],
      paper_bgcolor: "transparent", plot_bgcolor: "transparent", hovermode: "closest", hoverdistance: 12,
      margin: { l: 12, r: 12, t: 40, b: 12 }, dragmode: axes.length === 3 ? "orbit" : "pan",
      modebar: { bgcolor: "transparent", color: css("--faint"), activecolor: css("--accent") },
      font: { color: css("--text"), family: "system-ui, sans-serif", size: 13 },
      legend: { itemsizing: "constant", title: { text: state.colour ? plain(state.colour.name) : "" } },
      xaxis: bare, yaxis: { ...bare, scaleanchor: "x" }, scene: { xaxis: flat, yaxis: flat, zaxis: flat, aspectmode: "data" },
    }, {
      displaylogo: false, scrollZoom: true, displayModeBar: true, plotlyServerURL: "",
      modeBarButtons: axes.length === 3
        ? [["orbitRotation", "pan3d", "resetCameraDefault3d", "toImage"]]
        : [["pan2d", "zoom2d", "select2d", "lasso2d"], ["zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"]],
    });
  }

  const rowAt = (event) => {
    const point = event.points?.find(({ curveNumber }) => curveNumber < groups.length);
    // A late event can still speak of the traces before the last change.
    return (point && groups[point.curveNumber][point.pointNumber]) ?? null;
  };

  // ---- the card at the pointer, and the object that was clicked ----
  const card = $("card");
  const pointer = { x: 0, y: 0 };
  map.addEventListener("mousemove", (event) => Object.assign(pointer, { x: event.clientX, y: event.clientY }), true);
  function hover(row) {
    card.hidden = row === null;
    if (row === null) return;
    const parts = [picture(row), element("div", { className: "id", textContent: ids[row] }), facts(row, fields())];
    card.replaceChildren(...parts.filter(Boolean));
    const { width, height } = card.getBoundingClientRect();
    const x = pointer.x + 18 + width < innerWidth ? pointer.x + 18 : pointer.x - 18 - width;
    const y = Math.max(4, Math.min(pointer.y + 12, innerHeight - height - 4));
    card.style.transform = `translate(${Math.max(4, x)}px, ${y}px)`;
  }

  function focus(row) {
    state.focus = row;
    Plotly.restyle(map, Object.fromEntries(Object.entries(at(ringed())).map(([axis, values]) => [axis, [values]])), [groups.length]);
    if (row === null) {
      const lasso = axes.length === 3 ? "" : " Draw a box or a lasso to list objects and download them.";
      $("object").replaceChildren(element("p", { textContent: `Click a point to see it beside its nearest neighbours in latent space.${lasso}` }));
      return;
    }
    const strip = nearest(row).map(([other, distance]) => {
      const parts = [
        picture(other),
        element("span", { textContent: ids[other] }),
        element("span", { className: "far", textContent: shown(Number(distance.toPrecision(3))) }),
      ];
      const button = element("button", { type: "button", title: ids[other] }, ...parts.filter(Boolean));
      button.addEventListener("click", () => focus(other));
      return button;
    });
    $("object").replaceChildren(...[
      picture(row),
      element("div", { className: "id", textContent: ids[row] }),
      facts(row, columns),
      ...(strip.length
        ? [element("h2", { textContent: "Nearest in latent space" }), element("div", { className: "strip" }, ...strip)]
        : []),
    ].filter(Boolean));
    $("object").scrollTop = 0;
  }

  // ---- the table, and the CSV ----
  const filtered = () => state.matches.length < ids.length;
  /** The rows to list: the selected ones that also match the filter; null when nothing is chosen. */
  const listed = () => {
    if (!state.selected) return filtered() ? state.matches : null;
    const matching = new Set(state.matches);
    return state.selected.filter((row) => matching.has(row));
  };
  function list() {
    const rows = listed();
    $("rows").hidden = rows === null;
    if (rows === null) return;
    const what = state.selected ? "selected" : "with a matching id";
    const bound = rows.length > MOST_ROWS ? `; the first ${MOST_ROWS} are shown, the CSV holds all` : "";
    $("count").textContent = `${counted(rows.length)} of ${counted(ids.length)} objects ${what}${bound}`;
    const chosen = fields();
    const kind = (column) => (column.kind === "number" ? "number" : "");
    $("rows").querySelector("thead").replaceChildren(element("tr", {},
      element("th"), element("th", { textContent: "object_id" }),
      ...chosen.map((column) => element("th", { textContent: column.name, className: kind(column) }))));
    $("rows").querySelector("tbody").replaceChildren(...Array.from(rows.slice(0, MOST_ROWS), (row) => {
      const line = element("tr", {},
        element("td", {}, picture(row) ?? ""), element("td", { textContent: ids[row] }),
        ...chosen.map((column) => element("td", { textContent: shown(valueOf(column, row)), className: kind(column) })));
      line.addEventListener("click", () => focus(row));
      return line;
    }));
  }
  function csv() {
    const cell = (value) => {
      const text = value === null ? "" : typeof value === "number" ? String(Number(value.toPrecision(15))) : String(value);
      return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    // A float32 has about seven digits; the rest of its decimal form would be noise.
    const number = (values, value) => (values instanceof Float32Array && value !== null ? Number(value.toPrecision(7)) : value);
    const header = ["object_id", ...axes.map((_, i) => `map_${"xyz"[i]}`), ...columns.map((column) => column.name)];
    const lines = Array.from(listed(), (row) => [
      ids[row],
      ...axes.map((axis) => number(axis, axis[row])),
      ...columns.map((column) => number(column.values, valueOf(column, row))),
    ]);
    const text = [header, ...lines].map((line) => line.map(cell).join(",")).join("\r\n") + "\r\n";
    const address = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    element("a", { href: address, download: `${data.experiment}-objects.csv` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  }

  // ---- controls ----
  const objects = `${counted(ids.length)} object${ids.length === 1 ? "" : "s"}`;
  const named = document.querySelector("h1").textContent === data.experiment ? [] : [data.experiment];
  $("about").textContent = [...named, data.scope, objects, ...data.notes].join(" · ");
  const colourable = columns.filter((column) => column.kind !== "text");
  $("colour").append(element("option", { value: "-1", textContent: "nothing" }),
    ...colourable.map((column, i) => element("option", { value: String(i), textContent: column.name })));
  $("colour").value = String(colourable.indexOf(state.colour));
  $("colour").addEventListener("change", () => {
    state.colour = colourable[Number($("colour").value)] ?? null;
    draw();
  });
  $("fields").hidden = columns.length === 0;
  $("fields").querySelector("div").append(...columns.map((column) => {
    const box = element("input", { type: "checkbox", checked: state.fields.has(column) });
    box.addEventListener("change", () => {
      state.fields[box.checked ? "add" : "delete"](column);
      list();
    });
    return element("label", {}, box, ` ${column.name}`);
  }));
  const lowered = ids.map((id) => id.toLowerCase());
  let pause;
  $("filter").addEventListener("input", () => {
    clearTimeout(pause);
    pause = setTimeout(() => {
      const wanted = $("filter").value.trim().toLowerCase();
      state.matches = wanted ? everything.filter((row) => lowered[row].includes(wanted)) : everything;
      draw();
      list();
    }, 150);
  });
  const select = (rows) => {
    state.selected = rows;
    draw();
    list();
  };
  const clear = () => {
    $("filter").value = "";
    state.matches = everything;
    select(null);
    focus(null);
  };
  $("csv").addEventListener("click", csv);
  $("clear").addEventListener("click", clear);
  addEventListener("keydown", (event) => {
    if (event.key === "Escape") clear();
  });

  draw();
  focus(null);
  map.on("plotly_hover", (event) => hover(rowAt(event)));
  map.on("plotly_unhover", () => hover(null));
  map.on("plotly_click", (event) => {
    const row = rowAt(event);
    // Later, since a 3-D map redrawn from inside its own event sends the event again without end.
    if (row !== null) setTimeout(focus, 0, row);
  });
  map.addEventListener("mouseleave", () => hover(null));
  map.on("plotly_selected", (event) => {
    if (!event?.range && !event?.lassoPoints) return; // also fired when an outline is taken away
    const rows = event.points.filter((p) => p.curveNumber < groups.length).map((p) => groups[p.curveNumber][p.pointNumber]);
    select(rows.sort((a, b) => a - b));
  });
  map.on("plotly_deselect", () => select(null));
  new ResizeObserver(() => Plotly.Plots.resize(map)).observe(map);
  dark.addEventListener("change", draw);
})();
