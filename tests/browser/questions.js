// Every question of core.js whose answer the page in a file and the served one must give alike. Arrays come as texts, since
// some numbers are not finite.
async () => {
  const { source } = manyscope;
  const { experiment, scope, title, objects, axes, extent, columns, card } = source.about;
  const text = (number) => (Number.isFinite(number) ? number : String(number));
  const plain = (value) =>
    JSON.parse(JSON.stringify(value, (key, one) => (ArrayBuffer.isView(one) ? Array.from(one, text) : one)));
  const [[x0, x1], [y0, y1]] = extent;
  const at = (a, b) => [x0 + a * (x1 - x0), y0 + b * (y1 - y0)];
  const star = { kind: "lasso", points: [at(0.5, 0), at(0.8, 1), at(0, 0.4), at(1, 0.4), at(0.2, 1)] };
  const box = { kind: "box", corners: [at(0.7, 0.2), at(0.1, 0.9)] };
  const names = columns.map(({ name }) => name);
  const drawable = columns.filter(({ kind }) => kind !== "text");
  const inside = await source.within(star);

  const found = { about: { experiment, scope, title, objects, axes, extent, columns, card } };
  found.within = [inside, await source.within(box)];
  found.points = [];
  for (const { name, kind } of drawable) {
    found.points.push(await source.points({ view: null, colour: name, size: kind === "number" ? name : null }));
  }
  const ids = { object_id: { part: "1" } };
  found.find = [await source.find({}), await source.find(ids)];
  for (const { name, kind, levels, first, last } of columns) {
    const filters = {
      number: [{ low: first, high: null }, { low: null, high: last }, { low: first, high: (first + last) / 2 }],
      category: [{ levels: levels?.slice(0, 1) }, { levels: [null, ...(levels ?? []).slice(-1)] }],
      text: [{ part: "a" }, { part: "nothing like it" }],
    }[kind];
    for (const filter of filters) {
      found.find.push([name, await source.find({ [name]: filter }), await source.find({ ...ids, [name]: filter })]);
    }
  }
  found.sorted = [];
  for (const name of ["object_id", ...names]) {
    for (const descending of [false, true]) {
      const some = await source.sorted(inside, name, descending);
      found.sorted.push([name, some, await source.sorted(null, name, descending)]);
    }
  }
  found.histogram = [];
  for (const { name } of drawable) {
    found.histogram.push([name, await source.histogram(name, null), await source.histogram(name, inside)]);
  }
  const rows = Int32Array.from([objects - 1, 0, 3]);
  found.records = [await source.records(rows, names), await source.records(new Int32Array(0), names)];
  found.rowOf = [await source.rowOf(found.records[0][2].id), await source.rowOf("nobody")];
  const everything = await source.sorted(null, "object_id", true);
  const lines = async (rows) => (await (await source.csv(rows)).text()).split("\r\n");
  found.csv = [await lines(everything), await lines(new Int32Array(0))];
  return plain(found);
}
