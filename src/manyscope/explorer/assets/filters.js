// The panel of filters: a section for each column. What is chosen is shown in every open one.

const FIRST_SECTIONS = 6; // open at first where no card says which
const FIRST_LEVELS = 12;
const MANY_COLUMNS = 12; // more than these can be sought by name
const HISTOGRAM = { width: 232, height: 56 }; // of the drawing, scaled to the panel
const GRIP = 7; // pixels around an end of the brush in which it can be taken

/** An SVG element; the name of its kind of markup is taken from one that the page holds. */
function drawn(tag, attributes, ...children) {
  const made = document.createElementNS($("mark").namespaceURI, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** `act` once the last call lies some milliseconds back. */
function paused(milliseconds, act) {
  let timer;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(act, milliseconds, ...values);
  };
}

function makeFilters(source) {
  const { card } = source.about;
  // What says the most comes first.
  const place = ({ name }) => (card.includes(name) ? card.indexOf(name) : card.length);
  const columns = [...source.about.columns].sort((a, b) => place(a) - place(b));
  const first = new Set(card.length ? card : columns.slice(0, FIRST_SECTIONS).map(({ name }) => name));
  const makers = { number: numberSection, category: categorySection, text: textSection };
  const sections = columns.map((column) => {
    const details = element("details", { open: first.has(column.name) });
    const used = element("span", { className: "used", textContent: "active", hidden: true });
    details.append(element("summary", { title: column.name }, element("span", { textContent: column.name }), used));
    const section = element("section", { className: "filter", "data-column": column.name }, details);
    return { column, details, used, section, body: null };
  });
  const search = element("input", {
    type: "search", placeholder: "column name", autocomplete: "off", spellcheck: false, "aria-label": "find a column",
  });
  search.addEventListener("input", () => {
    const part = search.value.trim().toLowerCase();
    for (const { column, section } of sections) section.hidden = !column.name.toLowerCase().includes(part);
  });
  const clear = element("button", { type: "button", textContent: "Clear all", hidden: true });
  clear.addEventListener("click", () => change({ filters: {} }));
  const heading = element("div", { className: "heading" }, element("h2", { textContent: "Filters" }), clear);
  const none = element("p", { className: "faint", textContent: "No column is known of these objects." });
  const parts = columns.length ? sections.map(({ section }) => section) : [none];
  $("filters").replaceChildren(heading, ...(columns.length > MANY_COLUMNS ? [search] : []), ...parts);

  /** What belongs to a section is built when it is opened, and brought up to date while it is open. */
  const bring = (one) => {
    one.used.hidden = filterOf(one.column.name) === null;
    if (!one.details.open) return;
    if (!one.body) {
      const reset = element("button", { type: "button", className: "reset", textContent: "Reset" });
      reset.addEventListener("click", () => setFilter(one.column.name, null));
      one.body = makers[one.column.kind](source, one.column);
      one.reset = reset;
      one.details.append(...one.body.elements, reset);
    }
    const filter = filterOf(one.column.name);
    one.reset.hidden = filter === null;
    one.body.show(filter);
  };
  const count = async (one) => {
    if (!one.details.open || !one.body?.count) return;
    const current = one.asked ??= latest();
    const still = current();
    try {
      const counts = await source.histogram(one.column.name, chosen.listed);
      if (still()) one.body.count(counts, filterOf(one.column.name));
    } catch (error) {
      if (still()) failed(error);
    }
  };
  for (const one of sections) {
    one.details.addEventListener("toggle", () => {
      bring(one);
      count(one);
    });
  }
  const all = () => {
    clear.hidden = Object.keys(state.filters).length === 0;
    sections.forEach(bring);
  };
  on("filters", all);
  on("listed", () => sections.forEach(count));
  all();
}

function textSection(source, { name, missing }) {
  const input = element("input", {
    type: "search", placeholder: "part of the text", autocomplete: "off", spellcheck: false, "aria-label": `${name} contains`,
  });
  let typing = false; // what is being typed is newer than the filter
  const typed = paused(200, () => {
    typing = false;
    const part = input.value.trim();
    setFilter(name, part ? { part } : null);
  });
  input.addEventListener("input", () => {
    typing = true;
    typed();
  });
  return {
    elements: [input, missingLine(missing)],
    show: (filter) => {
      const part = filter?.part ?? "";
      if (!typing && input.value.trim() !== part) input.value = part;
    },
  };
}

const missingLine = (missing) =>
  missing ? element("p", { className: "faint", textContent: `${counted(missing)} without a value` }) : "";

function categorySection(source, { name, levels, counts, missing }) {
  const places = levels.map((_, place) => place);
  // Few levels stand in their own order, of many the commonest come first.
  if (levels.length > FIRST_LEVELS) places.sort((a, b) => counts[b] - counts[a] || a - b);
  const most = Math.max(1, missing, ...counts);
  const rows = [...places, ...(missing ? [null] : [])].map((place) => {
    const level = place === null ? null : levels[place];
    const box = element("input", { type: "checkbox" });
    const bar = element("span", { className: "bar" }, element("span"), element("span"));
    const text = level === null ? "no value" : level === "" ? "(empty text)" : level;
    const label = element("span", { className: level === null ? "level faint" : "level", textContent: text });
    const number = element("span", { className: "number" });
    const row = element("label", { title: text }, box, label, number, bar);
    box.addEventListener("change", () => {
      const wanted = rows.filter((other) => other.box.checked).map((other) => other.level);
      setFilter(name, wanted.length ? { levels: wanted } : null);
    });
    return { place, level, box, bar, number, row };
  });
  const list = element("div", { className: "levels" }, ...rows.map(({ row }) => row));
  const more = element("button", { type: "button", className: "more" });
  let open = false;
  const fold = () => {
    rows.forEach(({ row, box }, i) => (row.hidden = !open && i >= FIRST_LEVELS && !box.checked));
    more.hidden = rows.length <= FIRST_LEVELS;
    more.textContent = open ? "Fewer" : `${counted(rows.length - FIRST_LEVELS)} more`;
  };
  more.addEventListener("click", () => {
    open = !open;
    fold();
  });
  return {
    elements: [list, more],
    show: (filter) => {
      for (const { box, level } of rows) box.checked = filter?.levels?.includes(level) ?? false;
      fold();
    },
    count: (found) => {
      // Objects without a value are not counted among the chosen ones: only their whole number is known.
      for (const { place, bar, number } of rows) {
        const all = place === null ? found.missing : found.all[place];
        const some = place === null || chosen.listed === null ? all : found.chosen[place];
        number.textContent = some === all ? counted(all) : `${counted(some)} / ${counted(all)}`;
        bar.firstChild.style.width = `${(100 * all) / most}%`;
        bar.lastChild.style.width = place === null && chosen.listed !== null ? "0" : `${(100 * some) / most}%`;
      }
    },
  };
}

function numberSection(source, { name, low, high, whole, missing }) {
  const { width, height } = HISTOGRAM;
  const bars = drawn("g", {});
  const brush = drawn("rect", { class: "brush", y: 0, height, visibility: "hidden" });
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img" }, bars, brush);
  svg.setAttribute("aria-label", `how ${name} is distributed; drag to choose a range`);
  const input = (what, end) => {
    const placeholder = end === null ? "" : shown(end);
    return element("input", { type: "number", step: "any", "aria-label": `${name}: ${what}`, placeholder });
  };
  const [from, to] = [input("at least", low), input("at most", high)];
  const inputs = element("div", { className: "ends" }, from, element("span", { textContent: "to" }), to);
  const finite = low !== null;
  const nothing = element("p", { className: "faint", textContent: "No value is a finite number." });
  let ends = null; // of the axis

  const put = (range) => setFilter(name, range.low === null && range.high === null ? null : range);
  const typed = () => {
    const number = (field) => (Number.isFinite(field.valueAsNumber) ? field.valueAsNumber : null);
    const range = { low: number(from), high: number(to) };
    const { low: before = null, high: after = null } = filterOf(name) ?? {};
    if (range.low !== before || range.high !== after) put(range); // else a number is half typed
  };
  for (const field of [from, to]) {
    field.addEventListener("change", typed);
    field.addEventListener("input", paused(400, typed));
  }

  const toX = (value) => shareOf(value, ends) * width;
  const mark = (range) => {
    if (!ends || !range) return brush.setAttribute("visibility", "hidden");
    const inView = (x) => Math.max(0, Math.min(width, x));
    const left = range.low === null ? 0 : inView(toX(range.low));
    const right = range.high === null ? width : inView(toX(range.high));
    brush.setAttribute("x", left);
    brush.setAttribute("width", Math.max(0.5, right - left));
    return brush.setAttribute("visibility", "visible");
  };
  /** A value of the axis, as short as a thousandth of it allows; null at its ends, beyond which there may be more. */
  const valueAtX = (x) => {
    if (x <= 0 || x >= width) return null;
    if (!(ends.low < ends.high)) return ends.low; // the one value that there is
    const share = x / width;
    const value = ends.low * (1 - share) + ends.high * share;
    const step = 10 ** Math.floor(Math.log10((ends.high / 2 - ends.low / 2) / 500));
    if (whole && step <= 1) return Math.round(value);
    const short = Number((Math.round(value / step) * step).toPrecision(12));
    return Number.isFinite(short) ? short : value; // the axis may be as short or as long as numbers can be
  };

  // A drag draws a new range, moves the one that there is, or one of its ends; a click takes it away.
  let drag = null;
  const xOf = (event) => {
    const box = svg.getBoundingClientRect();
    return ((event.clientX - box.left) / box.width) * width;
  };
  svg.addEventListener("pointerdown", (event) => {
    if (!ends || event.button !== 0) return;
    const x = xOf(event);
    const filter = filterOf(name);
    const edges = filter && [filter.low === null ? 0 : toX(filter.low), filter.high === null ? width : toX(filter.high)];
    drag = { x, moved: false, keep: (now) => [x, now] };
    if (edges && Math.abs(x - edges[0]) < GRIP) drag.keep = (now) => [edges[1], now];
    else if (edges && Math.abs(x - edges[1]) < GRIP) drag.keep = (now) => [edges[0], now];
    else if (edges && x > edges[0] && x < edges[1] && (filter.low !== null || filter.high !== null)) {
      drag.keep = (now) => edges.map((edge) => edge + now - x);
    }
    svg.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  const dragged = (event) => {
    const [left, right] = drag.keep(xOf(event)).sort((a, b) => a - b);
    return { low: valueAtX(left), high: valueAtX(right) };
  };
  const fill = (range) => {
    for (const [field, value] of [[from, range?.low ?? null], [to, range?.high ?? null]]) {
      // What is being typed ("0.") may say the same in another form.
      if (field.valueAsNumber !== value) field.value = value ?? "";
    }
  };
  svg.addEventListener("pointermove", (event) => {
    if (!drag) return;
    drag.moved ||= Math.abs(xOf(event) - drag.x) > 2;
    if (!drag.moved) return;
    const range = dragged(event);
    mark(range);
    fill(range);
  });
  svg.addEventListener("pointerup", (event) => {
    if (!drag) return;
    const range = drag.moved ? dragged(event) : { low: null, high: null };
    drag = null;
    put(range);
  });
  svg.addEventListener("pointercancel", () => {
    drag = null;
    mark(filterOf(name));
  });

  const draw = (found) => {
    ends = found.low === null ? null : { low: found.low, high: found.high };
    const most = Math.max(1, ...found.all);
    const step = width / found.all.length;
    // Square roots: a few chosen objects among very many remain to be seen.
    const tall = (count) => (count ? Math.max(2, height * Math.sqrt(count / most)) : 0);
    const bar = (name) => (count, i) =>
      drawn("rect", { class: name, x: i * step + 0.5, width: step - 1, y: height - tall(count), height: tall(count) });
    bars.replaceChildren(...found.all.map(bar("all")), ...(chosen.listed === null ? [] : found.chosen.map(bar("chosen"))));
    svg.classList.toggle("whole", chosen.listed === null);
  };
  return {
    elements: finite ? [svg, inputs, missingLine(missing)] : [nothing, missingLine(missing)],
    show: (filter) => {
      if (!drag) {
        fill(filter);
        mark(filter);
      }
    },
    count: finite
      ? (found, filter) => {
          draw(found);
          if (!drag) mark(filter);
        }
      : null,
  };
}
