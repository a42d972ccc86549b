// The SOURCE of the served page: every answer comes from the server that the page came from (see routes.py).

const FOUND = 50; // objects that a search for something new selects
const OFTEN_KEPT = 32; // answers that are remembered: charts and tables ask again for what they have just shown

/** Base64 of the bytes of an array. */
function base64Of(array) {
  const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  const texts = [];
  for (let i = 0; i < bytes.length; i += 0x8000) texts.push(String.fromCharCode(...bytes.subarray(i, i + 0x8000)));
  return btoa(texts.join(""));
}

/** Rows as the server reads them: a bit for each object where their order says nothing and that is shorter. */
function packedRows(rows, objects, ordered = false) {
  if (rows === null || rows === undefined) return null;
  if (ordered || rows.length * 32 < objects) return { form: "list", data: base64Of(Int32Array.from(rows)) };
  const bits = new Uint8Array(Math.ceil(objects / 8));
  for (const row of rows) bits[row >> 3] |= 128 >> (row & 7);
  return { form: "bits", data: base64Of(bits) };
}

/** A list in parts of at most so many; an empty one has one part. */
function partsOf(list, most) {
  const parts = [];
  for (let i = 0; i === 0 || i < list.length; i += most) parts.push(list.slice(i, i + most));
  return parts;
}

async function servedSource() {
  const asked = async (path, { body, version, ...parameters } = {}) => {
    const query = new URLSearchParams(parameters);
    if (version) query.set("version", version);
    const options = { credentials: "same-origin", cache: "no-store" };
    if (body instanceof Blob) Object.assign(options, { method: "POST", body, headers: { "content-type": "application/octet-stream" } });
    else if (body) Object.assign(options, { method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json" } });
    let answer;
    try {
      answer = await fetch(`api/${path}${String(query) ? `?${query}` : ""}`, options);
    } catch {
      throw new Error("the server does not answer: is `manyscope explore` still running?");
    }
    if (answer.ok) return answer;
    let sentence = `the server answered with status ${answer.status}`;
    try {
      sentence = (await answer.json()).detail;
    } catch {
      // Not from this server's program: the status has to do.
    }
    throw new Error(sentence);
  };
  const json = async (...question) => (await asked(...question)).json();

  const wanted = new URLSearchParams(location.search).get("experiment");
  const name = wanted ?? (await json("experiments")).experiments[0];
  const place = `experiments/${encodeURIComponent(name)}`;
  const about = await json(`${place}/about`);
  const { version, objects } = about;
  const numbers = new Set(about.columns.filter(({ kind }) => kind === "number").map((column) => column.name));

  const get = (path, parameters = {}) => json(`${place}/${path}`, { version, ...parameters });
  const post = (path, body) => asked(`${place}/${path}`, { version, body });
  const rowsOf = async (answer) => new Int32Array(await (await answer).arrayBuffer());
  const unpacked = (packed) => packed && unpack(packed);

  const kept = new Map(); // question -> promise, the last asked last
  const remembered = (path, body) => {
    const question = `${path} ${JSON.stringify(body)}`;
    const answer = kept.get(question) ?? post(path, body).then((found) => found.json());
    kept.delete(question);
    kept.set(question, answer);
    answer.catch(() => kept.delete(question));
    if (kept.size > OFTEN_KEPT) kept.delete(kept.keys().next().value);
    return answer;
  };

  function picture(row) {
    if (!about.pictures) return null;
    const image = element("img", { className: "picture", alt: "", loading: "lazy", decoding: "async" });
    // One that there is not takes no place.
    image.addEventListener("error", () => (image.hidden = true));
    image.addEventListener("load", () => image.classList.toggle("sharp", Math.max(image.naturalWidth, image.naturalHeight) < PICTURES_FROM));
    image.src = `api/${place}/pictures/${row}?version=${version}`;
    return image;
  }

  return {
    about,
    picture,
    find: async (filters) => (Object.keys(filters).length ? rowsOf(post("find", { filters })) : null),
    within: ({ kind, corners, points, camera }) => rowsOf(post("within", { kind, corners, points, camera })),
    points: async ({ view, colour, size, filters = {}, always = [] }) => {
      const found = await (await post("points", { view, colour, size, filters, always: [...always] })).json();
      return { rows: unpack(found.rows), axes: found.axes.map(unpack), colour: unpacked(found.colour), size: unpacked(found.size) };
    },
    records: async (rows, names) => {
      const records = [];
      for (const some of partsOf([...rows], about.records_at_once)) {
        records.push(...(await (await post("records", { rows: some, names })).json()));
      }
      // What JSON cannot say of a number comes as a text: Infinity.
      const number = names.map((column) => numbers.has(column));
      for (const { values } of records) {
        values.forEach((value, i) => {
          if (number[i] && value !== null) values[i] = Number(value);
        });
      }
      return records;
    },
    sorted: (rows, column, descending) =>
      rowsOf(post("sorted", { rows: packedRows(rows, objects), name: column, descending: Boolean(descending) })),
    histogram: (column, rows) => remembered("histogram", { name: column, rows: packedRows(rows, objects) }),
    neighbours: async (row) => (about.neighbours ? get(`neighbours/${row}`, { k: about.neighbours }) : []),
    rowOf: async (id) => (await get("row", { id })).row,
    search: async ({ text, image }) => {
      const question = { version, k: FOUND, body: image ?? { text } };
      return json(`${place}/search/${image ? "image" : "text"}`, question);
    },
    csv: async (rows) => (await post("csv", { rows: packedRows(rows, objects, true) })).blob(),
    training: () => get("training"),
  };
}
