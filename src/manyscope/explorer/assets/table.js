// The drawer with the objects that are chosen: sorted, listed and saved.

const ROWS_AT_ONCE = 200;
const LONGEST_TEXT = 160; // characters in a cell; the side panel has all of them

const cut = (text) => (text.length > LONGEST_TEXT ? `${text.slice(0, LONGEST_TEXT)}…` : text);

/** Hand a file to the user. */
function download(blob, name) {
  const address = URL.createObjectURL(blob);
  element("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

function makeTable(source) {
  const { columns, objects, experiment } = source.about;
  const drawer = $("rows");
  const [head, body, scroll, more] = [drawer.querySelector("thead"), drawer.querySelector("tbody"), $("listing"), $("more")];
  const kinds = new Map(columns.map(({ name, kind }) => [name, kind]));
  const [orderAsked, recordsAsked] = [latest(), latest()];
  let order = null; // rows as they are listed; null while they are not known
  let listed = 0; // how many of them are in the table
  let filling = false; // while further records are asked for
  let saving = false;

  /** The chosen rows in the order of the table: sorted, or as the search that found them ranked them. */
  async function inOrder() {
    if (state.sort) return source.sorted(chosen.listed, state.sort.name, state.sort.descending);
    const ranked = chosen.of.selection?.order;
    if (!ranked) return chosen.listed;
    const passing = new Set(chosen.listed);
    return ranked.filter((row) => passing.has(row));
  }
  /** Only what is chosen now can be saved: no list of a former choice, in no former order. */
  const offer = () => {
    const current = chosen.of.filters === state.filters && chosen.of.selection === state.selection;
    for (const button of ["csv", "ids"]) $(button).disabled = saving || order === null || !current;
    $("listing").ariaBusy = String(order === null || !current);
  };

  function title(name) {
    const sorted = state.sort?.name === name ? (state.sort.descending ? "descending" : "ascending") : "none";
    const sign = { none: "", ascending: " ▲", descending: " ▼" }[sorted];
    const label = { textContent: name + sign, title: `sort by ${name}` };
    const button = element("button", { type: "button", "data-sort": name, ...label });
    // Ascending, descending, and back to the order in which they were found.
    const next = { none: { name, descending: false }, ascending: { name, descending: true }, descending: null };
    button.addEventListener("click", () => change({ sort: next[sorted] }));
    return element("th", { scope: "col", className: kinds.get(name) === "number" ? "number" : "", "aria-sort": sorted }, button);
  }
  const headings = () => {
    const distance = { scope: "col", className: "number", textContent: "distance" };
    const far = chosen.of.selection?.far ? [element("th", distance)] : [];
    const names = state.fields.map(title);
    const picture = element("th", {}, element("span", { className: "unseen", textContent: "picture" }));
    head.replaceChildren(element("tr", {}, picture, title("object_id"), ...far, ...names));
  };
  const line = ({ row, id, values }) => {
    const far = chosen.of.selection?.far;
    const cells = values.map((value, i) =>
      element("td", { className: kinds.get(state.fields[i]) === "number" ? "number" : "", textContent: cut(shown(value)) }));
    return element("tr", { tabIndex: 0, "data-row": String(row), className: row === state.focus ? "current" : "" },
      element("td", {}, source.picture(row)), element("td", { textContent: cut(id) }),
      far ? element("td", { className: "number", textContent: shown(far.get(row)) }) : null, ...cells);
  };

  async function further() {
    const still = recordsAsked();
    filling = true;
    try {
      const rows = order.slice(listed, listed + ROWS_AT_ONCE);
      const records = rows.length ? await source.records(rows, state.fields) : [];
      if (!still()) return;
      body.append(...records.map(line));
      listed += records.length;
      more.hidden = listed >= order.length;
      more.textContent = `Show more (${counted(order.length - listed)} are not listed yet)`;
    } catch (error) {
      if (still()) failed(error);
    } finally {
      if (still()) filling = false;
    }
  }
  /** Nothing is listed, and no answer on its way will be. */
  function empty() {
    recordsAsked();
    [filling, listed, more.hidden] = [false, 0, true];
    body.replaceChildren();
  }
  /** List from the beginning, in the order that is known. */
  function show() {
    headings();
    if (order === null) return; // when it is known all is listed
    empty();
    further();
  }
  /** The rows or their order changed. */
  async function list() {
    const still = orderAsked();
    order = null;
    offer();
    drawer.hidden = chosen.listed === null;
    if (drawer.hidden) return empty();
    const number = chosen.listed.length;
    const { filters, selection } = chosen.of;
    const filtered = Object.keys(filters).length > 0;
    const what = !selection ? "left by the filters" : filtered ? "selected and left by the filters" : "selected";
    $("count").textContent = number
      ? `${counted(number)} of ${counted(objects)} objects ${what}`
      : `No object is ${what}; a file would hold a header only.`;
    for (const control of [scroll, $("fields")]) control.hidden = number === 0;
    try {
      const rows = await inOrder();
      if (!still()) return;
      order = rows;
      offer();
      show();
      scroll.scrollTop = 0;
    } catch (error) {
      if (!still()) return;
      headings();
      empty();
      $("listing").ariaBusy = "false";
      failed(error);
    }
  }
  const next = () => {
    if (order !== null && !filling && listed < order.length) further();
  };
  more.addEventListener("click", next);
  scroll.addEventListener("scroll", paused(80, () => {
    if (scroll.scrollTop + scroll.clientHeight > scroll.scrollHeight - 200) next();
  }));

  const rowOf = (event) => {
    const found = event.target.closest("tr[data-row]");
    return found ? Number(found.dataset.row) : null;
  };
  body.addEventListener("click", (event) => {
    if (rowOf(event) !== null) change({ focus: rowOf(event) });
  });
  body.addEventListener("keydown", (event) => {
    if ((event.key === "Enter" || event.key === " ") && rowOf(event) !== null) {
      event.preventDefault();
      change({ focus: rowOf(event) });
    }
  });

  const boxes = columns.map(({ name }) => {
    const box = element("input", { type: "checkbox" });
    box.addEventListener("change", () => {
      const wanted = new Set(state.fields);
      wanted[box.checked ? "add" : "delete"](name);
      change({ fields: columns.map((column) => column.name).filter((one) => wanted.has(one)) });
    });
    return { name, box, label: element("label", {}, box, ` ${name}`) };
  });
  addEventListener("click", (event) => {
    if (!$("fields").contains(event.target)) $("fields").open = false;
  });
  $("fields").querySelector("div").append(...boxes.map(({ label }) => label));
  const tick = () => {
    for (const { name, box } of boxes) box.checked = state.fields.includes(name);
  };

  async function ids(rows) {
    const records = await source.records(rows, []);
    return new Blob([records.map(({ id }) => `${id}\n`).join("")], { type: "text/plain" });
  }
  const saved = (button, make, ending) => $(button).addEventListener("click", async () => {
    saving = true;
    offer();
    try {
      download(await make(order), `${experiment}-${ending}`);
    } catch (error) {
      failed(error);
    }
    saving = false;
    offer();
  });
  saved("csv", (rows) => source.csv(rows), "objects.csv");
  saved("ids", ids, "ids.txt");
  $("clear").addEventListener("click", () => change({ selection: null, filters: {}, sort: null }));

  on("filters selection", offer);
  on("listed sort", list);
  on("fields", () => {
    tick();
    if (!drawer.hidden) show();
  });
  on("focus", () => {
    for (const row of body.children) row.classList.toggle("current", Number(row.dataset.row) === state.focus);
  });
  tick();
  list();
}
