// The tab with what evaluate and train found: metrics beside baselines, curves, figures.

const OF_VALIDATION = /^(validation|valid|val)$/;
const OF_TRAINING = /^(train|training)$/;

/** A name without its part that says train or validation: the chart that it belongs to, and its line in it. */
function chartOf(name) {
  const parts = name.split("/");
  const at = parts.findIndex((part) => OF_TRAINING.test(part) || OF_VALIDATION.test(part));
  if (at < 0) return [name, ""];
  return [parts.filter((_, i) => i !== at).join("/"), OF_TRAINING.test(parts[at]) ? "train" : "validation"];
}

function metricsTable(metrics, headline) {
  const units = metrics.some(({ unit }) => unit);
  const cell = (textContent, className = "") => element("td", { textContent, className });
  const title = (textContent, className = "") => element("th", { scope: "col", textContent, className });
  const range = (value, low, high) =>
    shown4(value) + (typeof low === "number" && typeof high === "number" ? ` [${shown4(low)}, ${shown4(high)}]` : "");
  const line = (row) => {
    const sure = row.difference_low !== null && (row.difference_low > 0 || row.difference_high < 0);
    const verdict = sure ? (row.difference > 0 === row.higher_is_better ? "better" : "worse") : "";
    const group = element("span", { className: "faint", textContent: ` ${row.group}` });
    return element("tr", { className: row.name === headline ? "headline" : "" },
      element("th", { scope: "row" }, row.name, row.group ? group : null),
      units ? cell(row.unit) : null,
      cell(counted(row.n), "number"),
      cell(range(row.value, row.low, row.high), "number"),
      cell(row.baseline ?? "–"),
      cell(shown4(row.baseline_value), "number"),
      cell(`${verdict} ${range(row.difference, row.difference_low, row.difference_high)}`, `number ${verdict}`));
  };
  return element("table", { className: "metrics" },
    element("thead", {}, element("tr", {}, title("metric"), units ? title("unit") : null, title("objects", "number"),
      title("model [95 %]", "number"), title("baseline"), title("its value", "number"), title("difference [95 %]", "number"))),
    element("tbody", {}, ...metrics.map(line)));
}
const shown4 = (value) => (typeof value === "number" ? String(Number(value.toPrecision(4))) : "–");

/** Charts of the curves: `draw()` draws them with the colours of the present theme. A value that is known at one step
 * only makes no curve; `single` says those. */
function curveCharts(curves) {
  const charts = new Map();
  for (const { name, step, value } of curves) {
    const [chart, part] = chartOf(name);
    if (!charts.has(chart)) charts.set(chart, new Map());
    const lines = charts.get(chart);
    if (!lines.has(part)) lines.set(part, { x: [], y: [] });
    lines.get(part).x.push(step);
    lines.get(part).y.push(value);
  }
  const single = [];
  for (const [name, lines] of charts) {
    if ([...lines.values()].some(({ x }) => x.length > 1)) continue;
    charts.delete(name);
    single.push(`${name} ${[...lines].map(([part, { y }]) => `${part} ${shown4(y[0])}`.trim()).join(", ")}`);
  }
  const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  const colours = { train: PALETTE[0], validation: PALETTE[3], "": PALETTE[0] };
  const made = [...charts].map(([name, lines]) => {
    const place = element("div", { className: "chart", role: "img", "aria-label": `curve of ${name}` });
    const draw = () => {
      const axis = { gridcolor: css("--line"), linecolor: css("--line"), zeroline: false, automargin: true };
      const dark = css("color-scheme") === "dark";
      const colour = (part) => (dark && part !== "validation" ? PALETTE[4] : colours[part]);
      const traces = [...lines].map(([part, { x, y }]) => ({
        type: "scatter", mode: x.length > 60 ? "lines" : "lines+markers", name: part, x, y, showlegend: lines.size > 1,
        line: { color: colour(part), width: 2 }, marker: { size: 4 },
      }));
      Plotly.react(place, traces, {
        title: { text: plain(name), font: { size: 13 }, x: 0.02, xanchor: "left" },
        margin: { l: 44, r: 10, t: 34, b: 34 }, paper_bgcolor: "transparent", plot_bgcolor: "transparent",
        font: { color: css("--text"), family: "system-ui, sans-serif", size: 11 },
        xaxis: { ...axis, title: { text: "step" } }, yaxis: axis,
        legend: { orientation: "h", x: 1, xanchor: "right", y: 1.14 },
      }, { displayModeBar: false, responsive: true, plotlyServerURL: "" });
    };
    return { place, draw };
  });
  return { single, places: made.map(({ place }) => place), draw: () => made.forEach(({ draw }) => draw()) };
}

/** Shows the tab if there is something to show in it. */
async function makeTraining(source) {
  const found = await source.training();
  const { metrics = [], headline = null, curves = [], figures = [] } = found ?? {};
  if (!metrics.length && !curves.length && !figures.length) {
    if (state.tab === "training") change({ tab: "map" }); // as an old link asked for
    return;
  }
  $("tabs").hidden = false;
  let charts = null;
  const build = () => {
    const heading = (text) => element("h2", { textContent: text });
    const faint = (text) => element("p", { className: "faint", textContent: text });
    const parts = [];
    if (metrics.length) {
      const sure = faint("Intervals are of the bootstrap, 95 %; a difference is coloured where its interval leaves out zero.");
      const table = element("div", { className: "wide" }, metricsTable(metrics, headline));
      parts.push(heading("Metrics beside baselines"), sure, table);
    }
    charts = curveCharts(curves);
    if (curves.length) parts.push(heading("Training"), element("div", { className: "charts" }, ...charts.places));
    if (charts.single.length) parts.push(faint(`Known at one step only: ${charts.single.join("; ")}.`));
    if (figures.length) {
      const figure = ({ name, caption, address }) => element("figure", {},
        element("img", { src: address, alt: caption || name, loading: "lazy" }),
        element("figcaption", { textContent: caption || name }));
      parts.push(heading("Figures"), element("div", { className: "figures" }, ...figures.map(figure)));
    }
    $("panel-training").replaceChildren(...parts);
  };
  const show = () => {
    if (state.tab !== "training") return;
    if (!charts) build();
    charts.draw(); // its place has a size only now
  };
  on("tab theme", show);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  show();
}
