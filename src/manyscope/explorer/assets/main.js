// Puts the parts together: controls, the link that restores a state, keyboard, and what follows from a choice.

const MOST_IDS = 200; // in a link
const HINT_MS = 6000;

/** A line for the user: a "hint" goes by itself, "busy" is followed by another, an "error" stays until it is closed. */
function say(text, kind = "hint") {
  $("message").textContent = text;
  $("message").classList.toggle("error", kind === "error");
  clearTimeout(say.timer);
  if (kind === "hint") say.timer = setTimeout(() => ($("message").textContent = ""), HINT_MS);
}
function failed(error) {
  say(`That did not work: ${reasonOf(error)}`, "error");
}

const FEW_LEVELS = PALETTE.length;
const hasSeveral = (column) =>
  column.kind === "category" ? column.levels.length > 1 : column.kind === "number" && column.distinct;

/** The colour at first: of a column with a few levels if there is one, those of the card before others. */
function firstColour({ columns, card }) {
  const offered = columns.filter(hasSeveral);
  offered.sort((a, b) => card.includes(b.name) - card.includes(a.name));
  return (offered.find(({ levels }) => levels && levels.length <= FEW_LEVELS) ?? offered[0])?.name ?? null;
}

/** What a page shows that nobody has touched yet. */
const firstState = ({ columns, card }) => ({
  tab: "map",
  colour: firstColour({ columns, card }),
  size: null,
  opacity: 0.8,
  filters: {},
  selection: null,
  focus: null,
  fields: card.length ? [...card] : columns.slice(0, CARD_FIELDS).map(({ name }) => name),
  sort: null,
  view: null,
  theme: "auto",
});

// ---- the link ----
// The fragment is a list of NAME=VALUE as in a form. Texts stand for themselves, all else is JSON; objects are named by
// their ids, since rows change with the data. What is as at first is left out.

const isPlain = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const isPoint = (value) => Array.isArray(value) && value.length === 2 && value.every(isNumber);
const isTriple = (value) => isPlain(value) && ["x", "y", "z"].every((axis) => isNumber(value[axis]));
const isListOf = (value, is) => Array.isArray(value) && value.every(is);
const isShape = (value) =>
  isPlain(value) &&
  (value.camera === undefined || (isListOf(value.camera, isNumber) && value.camera.length === 16)) &&
  ((value.kind === "box" && isListOf(value.corners, isPoint) && value.corners.length === 2) ||
    (value.kind === "lasso" && isListOf(value.points, isPoint) && value.points.length > 2));
const isView = (value) =>
  (Array.isArray(value) && value.length === 2 && value.every(isPoint)) ||
  (isPlain(value) && ["eye", "center", "up"].every((key) => isTriple(value[key])));
function isFilter(column, filter) {
  if (!isPlain(filter)) return false;
  const end = (value) => value === null || isNumber(value);
  if (column === "object_id" || column?.kind === "text") return typeof filter.part === "string";
  if (column?.kind === "number") return "low" in filter && "high" in filter && end(filter.low) && end(filter.high);
  return column?.kind === "category" && isListOf(filter.levels, (level) => level === null || typeof level === "string");
}

/** The present state as a fragment. `idsOf`: rows to ids, a promise. */
async function linkOf(about, idsOf) {
  const first = firstState(about);
  const parts = new URLSearchParams();
  const put = (name, value) => parts.set(name, typeof value === "string" ? value : JSON.stringify(value));
  for (const name of ["tab", "theme", "opacity", "view"]) if (state[name] !== first[name]) put(name, state[name]);
  for (const name of ["colour", "size"]) if (state[name] !== first[name]) put(name, state[name] ?? "");
  if (Object.keys(state.filters).length) put("filters", state.filters);
  if (state.fields.join("\n") !== first.fields.join("\n")) put("fields", state.fields);
  if (state.sort) put("sort", state.sort);
  const { selection } = state;
  if (selection?.shape) put("shape", selection.shape);
  else if (selection && selection.rows.length <= MOST_IDS) put("ids", await idsOf(selection.order ?? selection.rows));
  if (state.focus !== null) put("focus", (await idsOf([state.focus]))[0]);
  if (parts.has("shape")) put("version", about.version ?? "");
  return parts.toString();
}

/** The state that a fragment stands for, and a hint for each part of it that is broken or unknown here. */
async function stateOf(fragment, { about, rowOf }) {
  const made = firstState(about);
  made.filters = Object.create(null); // so that a column may be called __proto__
  const hints = [];
  const columns = new Map(about.columns.map((column) => [column.name, column]));
  const isColumn = (name) => columns.has(name);
  const parsed = (text) => JSON.parse(text);
  const check = (holds, value) => {
    if (!holds) throw new Error("not as expected");
    return value;
  };
  const column = (name, kinds) => (name === "" ? null : check(kinds.includes(columns.get(name)?.kind), name));
  const readers = {
    tab: (text) => (made.tab = check(["map", "training"].includes(text), text)),
    theme: (text) => (made.theme = check(["auto", "light", "dark"].includes(text), text)),
    opacity: (text) => (made.opacity = check(Number(text) >= 0.1 && Number(text) <= 1, Number(text))),
    colour: (text) => (made.colour = column(text, ["number", "category"])),
    size: (text) => (made.size = column(text, ["number"])),
    view: (text) => (made.view = check(isView(parsed(text)), parsed(text))),
    filters: (text) => {
      for (const [name, filter] of Object.entries(check(isPlain(parsed(text)), parsed(text)))) {
        if (isFilter(name === "object_id" ? name : columns.get(name), filter)) made.filters[name] = filter;
        else hints.push(`the filter of “${cut(name)}”`);
      }
    },
    fields: (text) => {
      const names = check(Array.isArray(parsed(text)), parsed(text));
      made.fields = names.filter(isColumn);
      if (made.fields.length < names.length) hints.push("some columns of the table");
    },
    sort: (text) => {
      const { name, descending } = parsed(text);
      made.sort = check(name === "object_id" || isColumn(name), { name, descending: Boolean(descending) });
    },
    shape: (text) => (made.selection = { shape: check(isShape(parsed(text)), parsed(text)) }),
    ids: async (text) => {
      const ids = check(Array.isArray(parsed(text)) && parsed(text).length <= MOST_IDS, parsed(text));
      const rows = (await Promise.all(ids.map((id) => rowOf(String(id))))).filter((row) => row !== null);
      if (rows.length < ids.length) hints.push(`${ids.length - rows.length} selected objects`);
      made.selection = ranked(rows.map((row) => ({ row })));
    },
    focus: async (text) => {
      const row = await rowOf(text);
      made.focus = check(row !== null, row);
    },
    version: (text) => {
      if (text !== about.version) hints.push("the version of the data, which have changed: the shape may hold other objects now");
    },
  };
  for (const [name, text] of new URLSearchParams(fragment)) {
    try {
      check(Object.hasOwn(readers, name));
      await readers[name](text);
    } catch {
      hints.push(`“${cut(name)}”`);
    }
  }
  return { made, hints };
}

function keepLink(source) {
  const idsOf = async (rows) => (await source.records(rows, [])).map(({ id }) => id);
  const asked = latest();
  let written = null; // the last fragment that this page wrote itself
  const write = async () => {
    const still = asked();
    try {
      const fragment = await linkOf(source.about, idsOf);
      if (!still()) return;
      written = fragment;
      history.replaceState(null, "", fragment ? `#${fragment}` : location.pathname + location.search);
    } catch {
      // Some pages (inside a frame of a report, from a data: address) may not change their address; "Copy link" says it.
    }
  };
  on(Object.keys(state).join(" "), paused(250, write));
  addEventListener("hashchange", async () => {
    if (location.hash.slice(1) !== written) await restore(source);
  });
  $("link").addEventListener("click", async () => {
    try {
      const address = `${location.href.split("#")[0]}#${await linkOf(source.about, idsOf)}`;
      const long = state.selection?.rows?.length > MOST_IDS;
      const hint = long ? ` It leaves out the selection, of more than ${MOST_IDS} objects.` : "";
      if (await copied(address)) say(`The link is on the clipboard.${hint}`);
      else say(address, "error"); // so that it stays, to be copied by hand
    } catch (error) {
      failed(error);
    }
  });
}

async function restore(source) {
  const { made, hints } = await stateOf(location.hash.slice(1), source);
  change(made);
  if (hints.length) say(`The link names what is unknown here; left out: ${hints.join(", ")}.`);
}

// ---- what follows from filters and selection ----

const bothOf = (one, other) => {
  if (one === null || other === null) return one ?? other;
  // Both ascend, and may hold a million rows.
  let at = 0;
  return one.filter((row) => {
    while (at < other.length && other[at] < row) at++;
    return other[at] === row;
  });
};

function followChoice(source) {
  const asked = latest();
  let returning = false;
  const follow = async () => {
    const still = asked();
    if (returning) return;
    const { filters, selection } = state;
    try {
      const [passing, selected] = await Promise.all([
        Object.keys(filters).length ? source.find(filters) : null,
        selection?.shape ? source.within(selection.shape) : (selection?.rows ?? null),
      ]);
      if (still()) change({ passing, selected, listed: bothOf(selected, passing), of: { filters, selection } });
    } catch (error) {
      if (!still()) return;
      // Back to what is shown and saved: filters that look active must be so.
      returning = true;
      change({ ...chosen.of, listed: chosen.listed });
      returning = false;
      failed(`${reasonOf(error)}; what was chosen before is shown`);
    }
  };
  on("filters selection", follow);
  return follow;
}

// ---- controls ----

function fillHeader({ experiment, scope, title, objects, notes, experiments }) {
  document.querySelector("h1").textContent = title;
  document.title = `${title} · Manyscope`;
  const names = new Set([experiment, scope]);
  names.delete(title);
  $("about").textContent = [...names, `${counted(objects)} object${objects === 1 ? "" : "s"}`, ...notes].join(" · ");
  $("about").title = $("about").textContent;
  $("about").addEventListener("click", () => $("about").classList.toggle("whole"));
  $("notes").append(...notes.map((textContent) => element("p", { textContent })));
  if (experiments?.length > 1) {
    $("experiments-label").hidden = false;
    $("experiments").append(...experiments.map((name) => element("option", { value: name, textContent: name })));
    $("experiments").value = experiment;
    $("experiments").addEventListener("change", () => {
      const address = new URL(location.href);
      address.searchParams.set("experiment", $("experiments").value);
      address.hash = "";
      location.assign(address);
    });
  }
}

function makeControls(source) {
  const { columns, search } = source.about;
  const option = (value, text) => element("option", { value, textContent: cut(text) });
  const options = (kinds) => {
    const offered = columns.filter(({ kind }) => kinds.includes(kind));
    return [option("", "(nothing)"), ...offered.map(({ name }) => option(name, name))];
  };
  $("colour").append(...options(["number", "category"]));
  $("size").append(...options(["number"]));
  for (const name of ["colour", "size"]) {
    $(name).addEventListener("change", () => change({ [name]: $(name).value === "" ? null : $(name).value }));
    const show = () => ($(name).value = state[name] ?? "");
    on(name, show);
    show();
  }
  $("opacity").addEventListener("input", paused(60, () => change({ opacity: $("opacity").valueAsNumber })));
  $("theme").addEventListener("change", () => change({ theme: $("theme").value }));
  $("find").addEventListener("input", paused(150, () => {
    const part = $("find").value.trim();
    setFilter("object_id", part ? { part } : null);
  }));
  const find = () => {
    const part = state.filters.object_id?.part ?? "";
    if ($("find").value.trim() !== part) $("find").value = part;
  };
  const opacity = () => ($("opacity").value = String(state.opacity));
  on("opacity", opacity);
  on("filters", find);
  opacity();
  find();

  $("filters-open").addEventListener("click", () => {
    const open = $("filters").hidden;
    $("filters").hidden = !open;
    $("filters-open").setAttribute("aria-expanded", String(open));
  });
  $("message").addEventListener("click", () => {
    if (String(getSelection()) === "") say(""); // else its text is being copied
  });
  $("help-open").addEventListener("click", () => $("help").showModal());
  $("skip").addEventListener("click", () => {
    change({ tab: "map" });
    $("map").focus();
  });

  const tabs = ["map", "training"];
  const showTab = () => {
    for (const tab of tabs) {
      const chosenTab = tab === state.tab;
      $(`panel-${tab}`).hidden = !chosenTab;
      $(`tab-${tab}`).setAttribute("aria-selected", String(chosenTab));
      $(`tab-${tab}`).tabIndex = chosenTab ? 0 : -1;
    }
    $("controls").hidden = state.tab !== "map";
  };
  for (const tab of tabs) {
    $(`tab-${tab}`).addEventListener("click", () => change({ tab }));
    $(`tab-${tab}`).addEventListener("keydown", (event) => {
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
      const other = tabs.find((one) => one !== tab);
      change({ tab: other });
      $(`tab-${other}`).focus();
    });
  }
  on("tab", showTab);
  showTab();

  const asked = latest();
  const seek = async (query) => {
    const still = asked();
    say("Searching …", "busy");
    try {
      const found = await source.search(query);
      if (!still()) return;
      say("");
      change({ selection: ranked(found), sort: null, tab: "map" });
    } catch (error) {
      if (still()) failed(error);
    }
  };
  $("query-form").hidden = !search?.text;
  $("query-image-label").hidden = !search?.image;
  $("query-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if ($("query-text").value.trim()) seek({ text: $("query-text").value.trim() });
  });
  $("query-image").addEventListener("change", () => {
    const [image] = $("query-image").files;
    $("query-image").value = ""; // so that the same file can be chosen again
    if (image) seek({ image });
  });
}

function listenToKeys() {
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
    const typing = event.target.closest?.("textarea, select, input:not([type=checkbox], [type=range])");
    if (event.key === "Escape") {
      change({ selection: null, focus: null });
      if (typing) typing.blur();
    } else if (event.key === "/" && !typing) {
      event.preventDefault();
      change({ tab: "map" });
      $("find").focus();
    } else if (event.key === "?" && !typing) $("help").showModal();
  });
}

async function start() {
  const data = JSON.parse($("data").textContent);
  const source = await (data.served ? servedSource() : staticSource(data));
  window.manyscope.source = source;
  Object.assign(state, firstState(source.about));
  fillHeader(source.about);
  // Heard before all others, so that they draw with the colours of the new theme.
  const showTheme = () => {
    $("theme").value = state.theme;
    if (state.theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = state.theme;
  };
  on("theme", showTheme);
  const { made, hints } = await stateOf(location.hash.slice(1), source);
  Object.assign(state, made);
  showTheme();
  const follow = followChoice(source);
  makeControls(source);
  await follow(); // before the parts are made: they show it at once
  makeFilters(source);
  makeTable(source);
  const map = makeMap(source, makeDetails(source));
  window.manyscope.pixel = map.pixel;
  listenToKeys();
  keepLink(source);
  if (hints.length) say(`The link names what is unknown here; left out: ${hints.join(", ")}.`);
  await Promise.all([map.start(), makeTraining(source)]);
}

window.manyscope = { state, chosen, source: null, change, pixel: () => null };
window.manyscope.ready = start();
window.manyscope.ready.catch(failed);
