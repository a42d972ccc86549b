// One object: the card at the pointer, and the side panel with its nearest neighbours in latent space.

const CARD_FIELDS = 6;
const SHORT_ID = 7;
const LONG_TEXT = 120; // characters from which a value has a line and a scrolling box of its own

/** Names and values of some columns of one object. */
function facts(names, values, whole) {
  return element("dl", {}, ...names.flatMap((name, i) => {
    const text = shown(values[i]);
    const long = whole && text.length > LONG_TEXT;
    const value = element("dd", { className: long ? "long" : "", textContent: whole ? text : cut(text) });
    if (long) value.tabIndex = 0; // so that the keyboard can scroll it
    return [element("dt", { className: long ? "long" : "", textContent: name }), value];
  }));
}

/** Put a text on the clipboard; pages from disk may lack the modern way. Gives whether it worked. */
async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = element("textarea", { value: text, className: "unseen" });
    document.body.append(field);
    field.select();
    const worked = document.execCommand("copy");
    field.remove();
    return worked;
  }
}

/** Gives the function that the map calls with the object at the pointer, or null, and the pointer's place. */
function makeDetails(source) {
  const { columns, card: most } = source.about;
  const names = columns.map(({ name }) => name);
  const brief = most.length ? [...most] : names.slice(0, CARD_FIELDS);
  const panel = $("object");

  const cardAsked = latest();
  async function hovered(row, pointer) {
    const still = cardAsked();
    const card = $("card");
    if (row === null) {
      card.hidden = true;
      return;
    }
    const place = () => {
      const { width, height } = card.getBoundingClientRect();
      const x = pointer.x + 18 + width < innerWidth ? pointer.x + 18 : pointer.x - 18 - width;
      const y = Math.max(4, Math.min(pointer.y + 12, innerHeight - height - 4));
      card.style.transform = `translate(${Math.max(4, x)}px, ${y}px)`;
    };
    try {
      if (card.hidden || Number(card.dataset.row) !== row) {
        card.hidden = true; // not the values of another object until these are known
        const [record] = await source.records([row], brief);
        if (!still()) return;
        const id = element("div", { className: "id", textContent: cut(record.id) });
        const parts = [source.picture(row), id, facts(brief, record.values, false)];
        card.replaceChildren(...parts.filter(Boolean));
        card.dataset.row = String(row);
        card.hidden = false;
      }
      place();
    } catch (error) {
      if (still()) failed(error);
    }
  }

  const faint = (textContent) => element("p", { className: "faint", textContent });
  const hint = () => element("div", { className: "empty" },
    element("h2", { textContent: "No object in focus" }),
    element("p", { textContent: "Click a point to see its values, and the objects nearest to it in latent space." }),
    element("p", { textContent: "Draw a box or a lasso to list objects and to save them. Press ? for help." }));

  // Ids often begin alike: of a long one the end is shown.
  const ending = (id) => (id.length > SHORT_ID ? `…${[...id.slice(-2 * SHORT_ID)].slice(1 - SHORT_ID).join("")}` : id);
  /** Buttons for neighbours; those without a picture keep its place if another has one. */
  function stripOf(near) {
    const pictures = near.map(({ row }) => source.picture(row));
    const some = pictures.some(Boolean);
    return element("div", { className: "strip" }, ...near.map(({ row, id, distance }, i) => {
      const far = element("span", { className: "far", textContent: shown(Number(distance.toPrecision(3))) });
      const picture = pictures[i] ?? (some ? element("div", { className: "picture none" }) : null);
      const short = element("span", { textContent: ending(id) });
      const button = element("button", { type: "button", title: cut(id), "data-id": id }, picture, short, far);
      button.addEventListener("click", () => change({ focus: row }));
      return button;
    }));
  }
  const copyButton = (id) => {
    const button = element("button", { type: "button", className: "copy", textContent: "Copy id" });
    button.addEventListener("click", async () => {
      button.textContent = (await copied(id)) ? "Copied" : "Not allowed";
      setTimeout(() => (button.textContent = "Copy id"), 1500);
    });
    return button;
  };
  const selectButton = (row, near) => {
    const button = element("button", { type: "button", textContent: "Select these" });
    button.addEventListener("click", () =>
      change({ selection: ranked([{ row, distance: 0 }, ...near]), sort: null }));
    return button;
  };

  const panelAsked = latest();
  async function focus() {
    const still = panelAsked();
    const row = state.focus;
    if (row === null) {
      panel.replaceChildren(hint());
      return;
    }
    // Walking along the strip with the keyboard goes on in the new one.
    const walking = document.activeElement?.closest?.(".strip") !== null && panel.contains(document.activeElement);
    const heading = (...parts) => element("div", { className: "heading" }, ...parts);
    const close = element("button", { type: "button", className: "close", textContent: "×", "aria-label": "close" });
    close.addEventListener("click", () => change({ focus: null }));
    // Asked at the same time, but apart: the index may lack an object of which all else is known.
    const place = element("div", {});
    const strip = source.neighbours(row).then((near) => {
      const title = element("h2", { textContent: "Nearest in latent space" });
      return near.length ? [heading(title, selectButton(row, near)), stripOf(near)] : [];
    }).catch((error) => [faint(`Its neighbours cannot be shown: ${reasonOf(error)}`)]);
    try {
      const [record] = await source.records([row], names);
      if (!still()) return;
      const parts = [heading(element("div", { className: "id", textContent: record.id }), close)];
      parts.push(copyButton(record.id), source.picture(row), place);
      parts.push(element("h2", { textContent: "Values" }), facts(names, record.values, true));
      panel.replaceChildren(...parts.filter(Boolean));
    } catch (error) {
      if (!still()) return;
      const id = element("div", { className: "id", textContent: `Object ${row}` });
      panel.replaceChildren(heading(id, close), faint(`It cannot be shown: ${reasonOf(error)}`));
      return;
    }
    panel.scrollTop = 0;
    const found = await strip;
    if (!still()) return;
    place.replaceChildren(...found);
    if (walking) panel.querySelector(".strip button")?.focus();
  }
  panel.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const button = event.target.closest(".strip button");
    if (!step || !button) return;
    const buttons = [...button.parentElement.children];
    buttons[(buttons.indexOf(button) + step + buttons.length) % buttons.length].focus();
    event.preventDefault();
  });
  on("focus", focus);
  focus();
  return hovered;
}

/** A selection of objects that have an order, nearest first; `far` holds their distances where they are known. */
function ranked(found) {
  const order = Int32Array.from(found, ({ row }) => row);
  const known = found.every(({ distance }) => distance !== undefined);
  return { rows: order.slice().sort(), order, far: known ? new Map(found.map(({ row, distance }) => [row, distance])) : null };
}
