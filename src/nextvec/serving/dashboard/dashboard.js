"use strict";

// The dashboard of one server: fetches /v1/overview every two seconds and draws it.
// Text enters the page as text nodes only and positions as SVG attributes, so that no text is ever parsed as markup.

const EVERY = 2000, PATIENCE = 8000, SLOWEST = 10000; // milliseconds: between refreshes; until a refresh has failed; between refreshes of an unreachable server
const PLACES = { refused: 1, p50: 3, p95: 4, p99: 5 }; // indices in a point
const STREAMS = {
  fail: ["Failures", "the stable model answered instead"],
  slow: ["Slowness", "slower than the stable model’s usual P95"],
  miss: ["Misses", "the next vector was not among the predicted ones"],
  unlabelled: ["Unlabelled", "sessions that ended without a next vector"],
  assign: ["Assignment", "whether each arm gets its share of sessions"],
};

const ROOT = new URL(".", document.currentScript.src).pathname.slice(0, -1); // path of the server, behind a proxy perhaps
const $ = (id) => document.getElementById(id);
const page = { overview: null, drawn: {}, goneSince: null, answeredAt: null, timer: 0, wait: EVERY, cursor: null };

// Colours, set before the first paint

function paint(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

paint(localStorage.getItem("nextvec-theme") ?? "auto");

// Elements

function put(element, attributes, kids) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...kids.flat().filter((kid) => kid !== null && kid !== undefined && kid !== false));
  return element;
}

const make = (name, attributes = {}, ...kids) => put(document.createElement(name), attributes, kids);
const draw = (name, attributes = {}, ...kids) => put(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, kids);

/** Replace the content of an element only if it has changed, so that a selection or scroll position stays. */
function show(id, what, build) {
  const now = JSON.stringify(what);
  if (page.drawn[id] === now) return;
  page.drawn[id] = now;
  $(id).replaceChildren(...[build(what)].flat().filter(Boolean));
}

// Numbers as text

const count = (n) => Math.round(n).toLocaleString("en");
const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;
const clock = (date) => date.toLocaleTimeString("en-GB");
const short = (model) => model.replace(/@([0-9a-f]{8})[0-9a-f]*$/, " · $1");

function seconds(s) {
  const ms = s * 1000;
  if (ms >= 9995) return [(s).toPrecision(3), "s"];
  if (ms >= 999.5) return [s.toFixed(2), "s"];
  return [ms >= 99.5 ? ms.toFixed(0) : ms >= 9.95 ? ms.toFixed(1) : ms.toFixed(2), "ms"];
}

const duration = (s) => seconds(s).join(" ");
const plain = ([value, unit]) => `${Number(value)} ${unit}`;

function ago(s) {
  if (s < 2) return "now";
  if (s < 90) return `${Math.round(s)} s ago`;
  if (s < 5400) return `${Math.round(s / 60)} min ago`;
  return s < 129600 ? `${Math.round(s / 3600)} h ago` : `${Math.round(s / 86400)} days ago`;
}

function bytes(n) {
  if (n < 1024) return `${n} B`;
  const units = ["KiB", "MiB", "GiB", "TiB"];
  const power = Math.min(units.length, Math.floor(Math.log(n) / Math.log(1024)));
  return `${(n / 1024 ** power).toPrecision(3)} ${units[power - 1]}`;
}

function when(iso) {
  const date = new Date(iso);
  const today = date.toDateString() === new Date().toDateString();
  return today ? clock(date) : `${date.toLocaleDateString("en-GB", { day: "numeric", month: "short" })}, ${clock(date).slice(0, 5)}`;
}

// Requests

class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

async function ask(path, options = {}) {
  const key = sessionStorage.getItem("nextvec-key");
  const headers = { ...options.headers, ...(key ? { authorization: `Bearer ${key}` } : {}) };
  let answer, body;
  try {
    answer = await fetch(ROOT + path, { ...options, headers, signal: options.keepalive ? null : AbortSignal.timeout(options.patience ?? PATIENCE) });
    body = await answer.text(); // it can end early, or too late, as the answer can
  } catch {
    throw new Problem(0, "the server does not answer");
  }
  if (answer.ok) return answer.status === 204 ? null : JSON.parse(body);
  throw new Problem(answer.status, detail(body) ?? `the server answered ${answer.status}`);
}

function detail(body) {
  try {
    return JSON.parse(body).detail;
  } catch {
    return null; // not from this server, as the page of a proxy
  }
}

function schedule(wait) {
  clearTimeout(page.timer);
  page.timer = setTimeout(refresh, wait);
}

async function refresh() {
  if (document.hidden) return; // a visible page refreshes at once
  try {
    page.overview = await ask("/v1/overview");
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    missed(problem);
    return;
  }
  page.answeredAt = new Date();
  page.goneSince = null;
  page.wait = EVERY;
  $("forget").hidden = !sessionStorage.getItem("nextvec-key");
  document.body.classList.remove("stale", "waiting");
  const { ready, trouble } = page.overview.server;
  state(ready ? "ready" : "not ready", ready ? "good" : "bad");
  notice(ready ? null : ["Not ready.", `The server reports: ${trouble}.`]);
  render(page.overview);
  schedule(EVERY);
}

function missed(problem) {
  if (problem.status === 401) return askForKey(sessionStorage.getItem("nextvec-key") ? "The server does not know this key." : "");
  if (problem.status === 403) {
    state("not allowed", "bad");
    $("forget").hidden = !sessionStorage.getItem("nextvec-key");
    notice(["Not allowed.", `The server reports: ${problem.message}.`]);
    return schedule(SLOWEST);
  }
  page.goneSince ??= page.answeredAt ?? new Date();
  const since = clock(page.goneSince);
  const kept = page.overview ? "The page shows the last figures and keeps trying." : "The page keeps trying.";
  state("unreachable", "bad");
  document.body.classList.toggle("stale", page.overview !== null);
  notice(problem.status ? [`The server has reported an error since ${since}.`, `It says: ${problem.message}. ${kept}`] : [`No answer from the server since ${since}.`, kept]);
  if (!page.overview) $("served").textContent = "No figures yet.";
  page.wait = Math.min(SLOWEST, page.wait * 1.5);
  return schedule(page.wait);
}

function notice(said) {
  show("notice", said, (it) => it && make("p", { class: "notice" }, make("b", {}, it[0]), ` ${it[1]}`));
}

function state(word, kind) {
  $("state").className = `pill ${kind}`;
  if ($("state").textContent !== word) $("state").textContent = word;
}

// The key

function askForKey(why) {
  state("key needed", "");
  $("served").textContent = "The server shows its figures only with a key.";
  $("key-error").textContent = why;
  if (!$("key").open) $("key").showModal();
  $("secret").focus();
}

function takeKey(event) {
  event.preventDefault();
  const secret = $("secret").value.trim();
  const fault = !secret ? "Enter a key." : /^[\x21-\x7e]+$/.test(secret) ? "" : "A key has letters, digits, - and _ only.";
  $("key-error").textContent = fault;
  $("secret").setAttribute("aria-invalid", fault !== "");
  if (fault) return;
  sessionStorage.setItem("nextvec-key", secret);
  $("secret").value = "";
  $("key").close();
  refresh();
}

function forgetKey() {
  sessionStorage.removeItem("nextvec-key");
  location.reload();
}

// Now

function render(overview) {
  const names = overview.models.map((model) => model.name);
  document.title = `${names[0]} · nextvec`;
  show("served", { names, stable: overview.models.map((m) => m.stable), bank: overview.bank, started: overview.server.started, version: overview.server.version }, served);
  show("figures", [overview.sessions, overview.load], figures);
  latency(overview);
  histogram(overview);
  show("sessions", overview.sessions, sessions);
  $("lanes-card").hidden = overview.lanes === null;
  if (overview.lanes) show("lanes", overview.lanes, lanes);
  rollout(overview);
  show("runs-body", [overview.runs, overview.models], runs);
  tryable(overview);
}

function served({ bank, started, version }) {
  const models = page.overview.models.map((model, n) => [n ? ", " : "", make("b", {}, model.name), model.stable && page.overview.models.length > 1 ? " (stable)" : "", ` in ${model.weights}`]);
  return [
    "Serving ", ...models.flat(), " over ", make("b", {}, `${count(bank.rows)} ${bank.text ? "chunks" : "vectors"}`),
    ` of ${count(bank.documents)} documents (${bank.encoder}, ${bank.dim} dimensions), up since `, make("b", {}, when(started)), `. Version ${version}.`,
  ];
}

function figure(name, value, unit, note, kind = "") {
  return make("li", { class: kind }, make("span", { class: "name" }, name), make("b", {}, value, unit && make("small", {}, unit)), make("span", { class: "note" }, note));
}

function figures([held, load]) {
  const minute = load.minute;
  const [p50, p95] = [minute.p50, minute.p95].map((s) => (s === null ? ["–", ""] : seconds(s)));
  const over = minute.p95 !== null && minute.p95 > load.budget;
  const [refused, failed] = [minute.refused, minute.failed];
  const active = held.recent.filter((session) => session.idle < 60).length;
  return [
    figure("Open sessions", count(held.open), "", `${active}${active === 20 ? "+" : ""} active last minute`),
    figure("Answers per second", load.rate < 10 ? load.rate.toFixed(1) : count(load.rate), "", `${count(minute.answers)} last minute`, "main"),
    figure("Latency P50", ...p50, "last minute"),
    figure("Latency P95", ...p95, `${over ? "above" : "of"} ${plain(seconds(load.budget))} budget`, over ? "bad" : ""),
    figure("Refused", count(refused), "", failed ? `and ${count(failed)} failed` : "last minute", refused || failed ? "bad" : ""),
    figure("Queue", count(load.queue), "", load.queue === 1 ? "request waits" : load.queue ? "requests wait" : "no request waits"),
  ];
}

// Charts, drawn at their size on the screen, so that labels stay legible on a phone

const rect = (x, y, width, height, kind) => draw("rect", { x: x.toFixed(1), y: y.toFixed(1), width: Math.max(0, width).toFixed(1), height: Math.max(0, height).toFixed(1), class: kind });
const rule = (x1, y1, x2, y2, kind) => draw("line", { x1: x1.toFixed(1), y1: y1.toFixed(1), x2: x2.toFixed(1), y2: y2.toFixed(1), class: kind });
const words = (x, y, text, kind, anchor = "start") => draw("text", { x: x.toFixed(1), y: y.toFixed(1), class: kind, "text-anchor": anchor }, text);

/** The values 1, 2 and 5 times a power of ten between two values. */
function round(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    for (const step of [1, 2, 5]) found.push(step * 10 ** power);
  }
  return found.filter((value) => value >= low * 0.999 && value <= high * 1.001);
}

/** Move labels apart that overlap: from the top down, then up from the bottom. */
function apart(labels, least, floor) {
  labels.sort((a, b) => a.y - b.y);
  for (let n = 1; n < labels.length; n++) labels[n].y = Math.max(labels[n].y, labels[n - 1].y + least);
  for (let n = labels.length - 1, limit = floor; n >= 0; n--, limit -= least) labels[n].y = Math.min(labels[n].y, limit);
}

function visible(load, uptime) {
  const most = Math.ceil(Math.max(60, uptime) / load.step) + 1;
  return load.points.slice(-most);
}

function latency(overview) {
  const { load } = overview, points = visible(load, overview.server.uptime);
  const answered = points.filter((point) => point[PLACES.p50] !== null);
  const last = answered.at(-1);
  $("latency-text").textContent = last
    ? "P50, P95 and P99 of the time to an answer, on a logarithmic scale. Below: answers per second."
    : "No answers in the last minutes.";
  const width = $("latency").clientWidth;
  if (width < 120) return;
  page.shown = { points, step: load.step, count: points.length };
  $("latency").replaceChildren(latencyChart(points, load, width, answered));
  cursor();
}

function latencyChart(points, load, width, answered) {
  const height = 292, left = 50, right = 74, top = 12, low = 200, strip = 222, foot = 264;
  const values = answered.flatMap((point) => [point[PLACES.p50], point[PLACES.p99]]);
  const bottom = Math.min(load.budget / 4, ...values) / 1.25, ceiling = Math.max(load.budget, ...values) * 1.5;
  const x = (n) => left + ((n + 0.5) / points.length) * (width - left - right);
  const y = (s) => low - (Math.log(s / bottom) / Math.log(ceiling / bottom)) * (low - top);
  const ticks = round(bottom, ceiling);
  const shownTicks = ticks.length > 7 ? ticks.filter((s) => /^1/.test(s.toExponential())) : ticks;
  const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": described(points, load, answered) });
  for (const s of shownTicks) svg.append(rule(left, y(s), width - right, y(s), "grid"), words(left - 8, y(s) + 4, plain(seconds(s)), "tick", "end"));
  svg.append(...curves(points, x, y));
  svg.append(rule(left, y(load.budget), width - right, y(load.budget), "budget"));
  svg.append(words(left + 6, y(load.budget) - 6, `budget ${plain(seconds(load.budget))}`, "name warn halo"));
  const labels = [];
  const last = points.findLast((point) => point[PLACES.p50] !== null);
  if (last) for (const name of ["p50", "p95", "p99"]) labels.push({ y: y(last[PLACES[name]]) + 4, text: `${name.toUpperCase()} ${duration(last[PLACES[name]])}`, kind: "tick" });
  apart(labels, 15, low + 4);
  svg.append(...labels.map((label) => words(width - right + 7, label.y, label.text, label.kind)));
  svg.append(...rates(points, load.step, x, strip, foot, left, width - right));
  svg.append(...times(points.length, load.step, x, foot + 17, width - left - right));
  return svg;
}

function described(points, load, answered) {
  const last = answered.at(-1);
  if (!last) return "No answers in the last minutes.";
  const worst = Math.max(...answered.map((point) => point[PLACES.p95]));
  return `Latest: P50 ${duration(last[PLACES.p50])}, P95 ${duration(last[PLACES.p95])}, P99 ${duration(last[PLACES.p99])}. Highest P95 shown: ${duration(worst)}. Budget: ${duration(load.budget)}.`;
}

/** Lines over a band from P50 to P99, with gaps in intervals without answers. */
function curves(points, x, y) {
  const runs = [];
  points.forEach((point, n) => {
    if (point[PLACES.p50] === null) return;
    const run = runs.at(-1);
    if (run && run.at(-1) === n - 1) run.push(n);
    else runs.push([n]);
  });
  const path = (run, name) => run.map((n) => `${x(n).toFixed(1)},${y(points[n][PLACES[name]]).toFixed(1)}`);
  const drawn = runs.map((run) => draw("path", { class: "band", d: `M${[...path(run, "p50"), ...path(run, "p99").reverse()].join("L")}Z` }));
  for (const name of ["p99", "p95", "p50"]) {
    for (const run of runs) {
      if (run.length > 1) drawn.push(draw("path", { class: `line ${name}`, d: `M${path(run, name).join("L")}` }));
      else drawn.push(draw("circle", { class: "dot", cx: x(run[0]), cy: y(points[run[0]][PLACES[name]]), r: name === "p50" ? 2.2 : 1.4 }));
    }
  }
  return drawn;
}

function rates(points, step, x, top, foot, left, end) {
  const most = Math.max(1, ...points.map((point) => (point[0] + point[PLACES.refused]) / step));
  const tall = (n) => (n / step / most) * (foot - top), wide = Math.max(1, x(1) - x(0) - 1);
  const bars = points.flatMap((point, n) => {
    const [answers, refused] = [tall(point[0]), tall(point[PLACES.refused])];
    return [answers && rect(x(n) - wide / 2, foot - answers, wide, answers, "fill quiet"), refused && rect(x(n) - wide / 2, foot - answers - refused, wide, refused, "fill warn")];
  });
  const refused = points.some((point) => point[PLACES.refused]);
  return [...bars.filter(Boolean), rule(left, foot, end, foot, "axis"), words(left - 8, top + 9, `${most < 10 ? most.toFixed(1) : count(most)}/s`, "tick", "end"), words(end + 7, foot - 2, "answers/s", "tick"), refused ? words(end + 7, foot - 17, "refused", "name warn") : ""].filter(Boolean);
}

function times(points, step, x, y, width) {
  const span = points * step, every = [10, 15, 30, 60, 120, 180, 300].find((s) => (s / span) * width >= 62) ?? 300;
  const drawn = [];
  for (let back = 0; back < span; back += every) {
    const text = back === 0 ? "now" : back % 60 ? `−${back} s` : `−${back / 60} min`;
    drawn.push(words(x(points - 1 - back / step), y, text, "tick", "middle"));
  }
  return drawn;
}

// The cursor of the chart: follows the pointer or the arrow keys

function cursor() {
  const svg = $("latency").querySelector("svg");
  svg?.querySelector(".cursor")?.remove();
  if (!svg || page.cursor === null || !page.shown) return;
  const n = Math.min(page.shown.count - 1, Math.max(0, page.shown.count - 1 - page.cursor));
  const x = 50 + ((n + 0.5) / page.shown.count) * ($("latency").clientWidth - 124);
  svg.append(rule(x, 12, x, 264, "cursor"));
  const [answers, refused, failed, p50, p95, p99] = page.shown.points[n];
  const time = clock(new Date(page.answeredAt - (page.shown.count - n) * page.shown.step * 1000));
  const rates = `${(answers / page.shown.step).toFixed(1)} answers per second${refused ? `, ${refused} refused` : ""}${failed ? `, ${failed} failed` : ""}`;
  $("latency-readout").textContent = `${time}: ${p50 === null ? "no answers" : `P50 ${duration(p50)}, P95 ${duration(p95)}, P99 ${duration(p99)}; ${rates}`}`;
}

function pointed(event) {
  const box = $("latency").getBoundingClientRect();
  const share = (event.clientX - box.left - 50) / (box.width - 124);
  if (!page.shown) return;
  page.cursor = Math.round(page.shown.count - 0.5 - Math.min(1, Math.max(0, share)) * page.shown.count);
  cursor();
}

function stepped(event) {
  const move = { ArrowLeft: 1, ArrowRight: -1 }[event.key];
  if (!move || !page.shown) return;
  event.preventDefault();
  page.cursor = Math.min(page.shown.count - 1, Math.max(0, (page.cursor ?? -1) + move));
  cursor();
}

function unpointed() {
  page.cursor = null;
  $("latency-readout").textContent = "";
  cursor();
}

function histogram(overview) {
  const { edges, counts, within } = overview.load.histogram, budget = overview.load.budget;
  const total = counts.reduce((sum, n) => sum + n, 0);
  $("histogram-text").textContent = total ? `${count(total)} answers in the last 5 minutes; ${within === 1 ? "all" : percent(within, within > 0.999 ? 2 : 1)} within the budget.` : "No answers in the last 5 minutes.";
  const width = $("histogram").clientWidth;
  if (width < 120) return;
  const used = counts.flatMap((n, place) => (n ? [place] : []));
  const at = edges.findLastIndex((edge) => edge <= budget);
  const first = Math.max(0, Math.min(at - 5, used[0] ?? at) - 1), last = Math.min(counts.length - 1, Math.max(at, used.at(-1) ?? at) + 1);
  const height = 292, left = 4, right = 8, top = 26, foot = 264, most = Math.max(1, ...counts);
  const x = (s) => left + (Math.log(s / edges[first]) / Math.log(edges[last + 1] / edges[first])) * (width - left - right);
  const label = total ? `${count(total)} answers; ${percent(within)} within the budget of ${duration(budget)}.` : "No answers in the last 5 minutes.";
  const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  for (let n = first; n <= last; n++) {
    const tall = (counts[n] / most) * (foot - top - 4);
    if (counts[n]) svg.append(rect(x(edges[n]) + 1, foot - Math.max(tall, 1.5), x(edges[n + 1]) - x(edges[n]) - 2, Math.max(tall, 1.5), edges[n] >= budget * 0.99 ? "fill warn" : "fill"));
  }
  const limit = Math.min(x(budget), width - right); // a budget beyond the last bar lies at the end of the axis
  svg.append(rule(left, foot, width - right, foot, "axis"), rule(limit, top - 6, limit, foot, "budget"));
  svg.append(words(limit, top - 12, `budget ${plain(seconds(budget))}`, "name warn halo", limit > width - 60 ? "end" : "middle"));
  const places = round(edges[first], edges[last + 1]), sparse = places.length > width / 52 ? places.filter((s) => /^1/.test(s.toExponential())) : places;
  for (const s of sparse) svg.append(rule(x(s), foot, x(s), foot + 4, "axis"), words(Math.min(width - 16, Math.max(16, x(s))), foot + 17, plain(seconds(s)), "tick", "middle"));
  $("histogram").replaceChildren(svg);
}

// Tables, which a narrow screen shows as cards. The roles keep them tables for screen readers.

function table(heads, rows, label, kind = "stack") {
  const head = make("tr", { role: "row" }, heads.map(([name, kind]) => make("th", { role: "columnheader", scope: "col", class: kind }, name)));
  const body = rows.map((cells) => make("tr", { role: "row" }, cells.map((kids, n) => make("td", { role: "cell", class: heads[n][1], "data-label": heads[n][0] }, make("div", {}, ...[kids].flat())))));
  return make("table", { class: kind, role: "table", "aria-label": label }, make("thead", { role: "rowgroup" }, head), make("tbody", { role: "rowgroup" }, body));
}

function sessions(held) {
  if (!held.recent.length) {
    const rest = held.open ? `${count(held.open)} sessions from before the start are open.` : "";
    return make("p", { class: "empty" }, "No requests to sessions since this server started. ", rest || ["A client opens one with ", make("code", {}, "PUT /v1/sessions/NAME"), "."]);
  }
  const rows = held.recent.slice(0, 8).map((it) => [it.session, count(it.length), count(it.seq), bytes(it.bytes), ago(it.idle)]);
  const heads = [["Session", "name"], ["Vectors", "n"], ["Appends", "n spare"], ["On disk", "n spare"], ["Last request", "n"]];
  return [table(heads, rows, "Recent sessions", "brief"), held.open > rows.length ? make("p", { class: "empty aside" }, `${count(held.open - rows.length)} more sessions. All contexts take ${bytes(held.bytes)} on disk, all model states ${bytes(held.state_bytes)} of memory.`) : ""];
}

function lanes(states) {
  if (!states.length) return make("p", { class: "empty" }, "No lane has an expert, and no lane has had a request.");
  const health = (it) => (it.expert === null ? "shared model" : it.up ? it.expert : [it.expert, " ", make("b", { class: "down" }, "down")]);
  const rows = states.map((it) => [
    it.lane, health(it), count(it.answers), count(it.failures), it.p95 === null ? "–" : duration(it.p95), it.labels ? percent(it.hits / it.labels) : "–",
  ]);
  const heads = [["Lane", "name"], ["Answered by", "name"], ["Answers", "n"], ["Failures", "n spare"], ["P95", "n spare"], ["Hits", "n"]];
  return [table(heads, rows, "Lanes", "brief"), make("p", { class: "empty aside" }, "Since this server started. If an expert fails, the shared model answers.")];
}

// Rollout

const SHOWN = 6; // steps that are visible; earlier ones are folded
const DOWN = { ROLLING_BACK: "being rolled back", ROLLED_BACK: "rolled back", REJECTED: "rejected" };

/** The name of a state on the ladder of its rollout. */
function called(state, ladder) {
  const paused = state.match(/^PAUSED\((.*)\)$/);
  if (paused) return `paused at ${called(paused[1], ladder)}`;
  const canary = state.match(/^CANARY\((\d+)\)$/);
  if (canary) return `${ladder[Number(canary[1]) + 1].weight} %`;
  return { DRAFT: "draft", SHADOW: "shadow", FULL: "hold-back", PROMOTED: "promoted", ...DOWN }[state] ?? state;
}

function rollout(overview) {
  const held = overview.rollout, now = held?.current;
  const lead = now ? standing(now, held) : held?.trouble ? `Fault: ${held.trouble}.` : held ? "No rollout in progress." : "This server takes part in no rollouts.";
  if ($("rollout-lead").textContent !== lead) $("rollout-lead").textContent = lead;
  byHand(now);
  show("rollout-body", held, () => (now ? [trial(now), evidence(now), make("div", { class: "two half" }, steps(now), unseen(now)), past(held.past)] : [begin(overview), past(held?.past ?? [])]));
}

function standing(now, held) {
  const where = { shadow: "in the shadow: it gets the requests of the stable model, and its answers are discarded", canary: `answering ${now.weight} % of sessions`, "hold-back": `answering ${now.weight} % of sessions; the rest stay on the stable model for comparison`, promoted: "promoted" }[now.ladder[Math.max(0, now.at)].name];
  const what = now.down ? DOWN[now.state] : now.at < 0 ? "a draft" : where;
  const who = held.trouble ? ` Fault: ${held.trouble}.` : now.ended ? "" : held.watching ? " This server drives it." : " Another server drives it, or none yet.";
  return `${now.rollout}: the canary is ${what}${now.paused ? ", paused: its weight stays, and monitoring continues" : ""}.${who}`;
}

// Changes by hand: pause, resume, abort. A promotion needs the command line: `nextvec rollout promote`.

const ARMED = 6000; // milliseconds in which a second press confirms
const hand = { timer: 0 };

function byHand(now) {
  if (!live(now) && $("hand").contains(document.activeElement)) $("rollout").focus();
  $("hand").hidden = !live(now);
  if (live(now)) $("hold").textContent = now.paused ? "Resume" : "Pause";
}

function disarm() {
  clearTimeout(hand.timer);
  $("abort").classList.remove("armed");
  $("abort").textContent = "Abort";
}

function abort() {
  if ($("abort").classList.contains("armed")) return act("abort");
  $("abort").classList.add("armed");
  $("abort").textContent = "Abort now";
  $("hand-said").textContent = "Press again within 6 seconds to abort: all sessions return to the stable model, and the rollout ends.";
  hand.timer = setTimeout(() => {
    disarm();
    $("hand-said").textContent = "";
  }, ARMED);
}

async function act(verb) {
  disarm();
  const now = page.overview.rollout.current;
  try {
    const changed = await ask(`/v1/rollouts/${encodeURIComponent(now.rollout)}/${verb}`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ reason: $("why").value.trim() }) });
    $("why").value = "";
    $("hand-said").textContent = `Done: the rollout is ${called(changed.state, now.ladder)}.`;
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    $("hand-said").textContent = `No change: ${problem.message}.`;
  }
  await refresh();
}

function begin(overview) {
  const stable = overview.models.find((model) => model.stable)?.name ?? "RUN";
  const first = overview.rollout === null ? make("p", { class: "empty" }, "To follow the rollouts of a ledger, start the server with ", make("code", {}, "nextvec serve … --ledger rollouts.db"), ".") : "";
  return make("div", { class: "card" }, first, make("p", { class: "empty" }, "A rollout moves sessions to a new run step by step, and rolls it back when the evidence shows harm. To begin one: ", make("code", {}, `nextvec rollout start NEW_RUN --over ${stable}`)));
}

/** Why a rollout ended; or what its next step waits for, with the sessions of both arms. */
function waitsFor(now) {
  if (now.cause) return `Why it ended: ${now.cause}.`;
  if (!live(now)) return "";
  const units = `Sessions: ${count(now.next.sessions.stable)} on stable, ${count(now.next.sessions.canary)} on the canary; mirrored pairs: ${count(Math.max(...Object.values(now.next.pairs)))}.`;
  return `${units} The next step waits for ${now.next.missing.length ? now.next.missing.join("; ") : "nothing"}.`;
}

const live = (now) => Boolean(now) && !now.ended && !now.down && now.at >= 0;

function trial(now) {
  const next = now.ladder[now.at];
  const progress = live(now) && next.units ? `${count(Math.min(now.seen, next.units))} of ${count(next.units)}` : "–";
  const facts = [
    ["Stable", short(now.stable)], ["Canary", short(now.canary)], ["Weight now", `${now.weight} %`],
    [next?.name === "shadow" ? "Mirrored sessions" : "Sessions at this weight", progress], ["Detects failures from", `${now.harm}× the rate`], ["Next step", now.gated ? "by hand" : "automatic"],
  ];
  return make("div", { class: "card" },
    make("ol", { class: "ladder", "aria-label": "Steps" }, now.ladder.map((stop, n) => rung(stop, n, now))),
    make("dl", { class: "facts" }, facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))),
    make("p", { class: "legend" }, waitsFor(now)));
}

function rung(stop, n, now) {
  const here = n === now.at, done = n < now.at || (here && now.state === "PROMOTED"), fallen = here && now.down;
  const kind = fallen ? "fallen" : done ? "done" : here ? "here" : "";
  const name = stop.name === "canary" ? `${stop.weight} %` : stop.name;
  const said = fallen ? DOWN[now.state] : here && now.paused ? "paused here" : here && !done ? "here" : done ? "passed" : stop.name === "hold-back" ? `${stop.weight} %` : stop.name === "promoted" ? "all sessions" : `${count(stop.units)} sessions`;
  return make("li", { class: kind, "aria-current": here ? "step" : null }, make("span", { class: "dot", "aria-hidden": "true" }, fallen ? "×" : done ? "✓" : ""), make("b", {}, name), make("span", {}, said));
}

const near = (side) => Math.max(0, Math.min(1, side.log_e / side.bound));

function evidence(now) {
  return make("div", { class: "card" }, make("h3", {}, "Evidence"),
    make("p", { class: "legend" }, "Evidence for each verdict, as the logarithm of an e-value. A bar starts in the middle and reaches its verdict at the end. The test stays valid however often you look."),
    make("ul", { class: "streams" }, now.streams.map(stream)));
}

function stream(it) {
  const [name, what] = STREAMS[it.stream], ok = near(it.ok), worse = near(it.worse);
  const kind = { WORSE: "warn", OK: "", UNDECIDED: "quiet" }[it.verdict];
  const said = { WORSE: "✕ worse", OK: "✓ OK", UNDECIDED: "… undecided" }[it.verdict];
  const label = `${name}: ${it.verdict.toLowerCase()}; ${percent(ok, 0)} of the way to OK, ${percent(worse, 0)} of the way to worse`;
  const bar = draw("svg", { viewBox: "0 0 200 12", height: 12, preserveAspectRatio: "none", role: "img", "aria-label": label },
    rect(0, 2, 200, 8, "fill well"), rect(100 - 100 * ok, 2, 100 * ok, 8, "fill"), rect(100, 2, 100 * worse, 8, "fill warn"), rule(100, 0, 100, 12, "whisker"), rule(0, 0, 0, 12, "mark"), rule(200, 0, 200, 12, "mark"));
  const arm = (of) => [make("b", {}, `${count(it.arms[of].bad)}`), ` of ${count(it.arms[of].units)}`];
  const units = it.stream === "assign" ? ["stable ", make("b", {}, count(it.arms.stable.units)), ", canary ", make("b", {}, count(it.arms.canary.units))] : ["stable ", ...arm("stable"), ", canary ", ...arm("canary")];
  return make("li", {}, make("div", {}, make("b", {}, name), make("span", { class: "aside" }, what)),
    make("div", { class: "evidence" }, bar, make("div", { class: "ends", "aria-hidden": "true" }, make("span", {}, `OK ${percent(ok, 0)}`), make("span", {}, `${percent(worse, 0)} worse`))),
    make("div", { class: "said" }, make("span", { class: `tag ${kind}` }, said)),
    make("div", { class: "arms" }, ...units, it.pairs ? `; ${count(it.pairs)} mirrored` : ""));
}

function unseen(now) {
  const names = ["fail", "slow", "miss", "unlabelled"], weights = [...new Set(now.detectable.map((it) => it.weight))];
  const card = make("div", { class: "card" }, make("h3", {}, "Smallest detectable effect"));
  if (!weights.length) return put(card, {}, [make("p", { class: "empty" }, "No sessions were compared yet, so no effect is detectable.")]);
  const rows = weights.map((weight) => [`${weight} %`, ...names.map((name) => harm(now.detectable.find((it) => it.weight === weight && it.stream === name)))]);
  const heads = [["At weight", "name"], ...names.map((name) => [STREAMS[name][0], "n"])];
  return put(card, {}, [make("p", { class: "legend" }, "As a multiple of the stable model’s rate: 9 of 10 rollouts with as many sessions would detect it. Smaller effects can be present."), table(heads, rows, "Smallest detectable effect by weight", "brief")]);
}

function harm(it) {
  if (!it) return "–";
  return it.harm === null ? "none" : `${it.harm < 10 ? it.harm.toFixed(1) : count(it.harm)}×`;
}

function steps(now) {
  const rows = [...now.steps].reverse().map((it) => {
    const up = it.override && (it.to === "PROMOTED" || it.weight[1] > it.weight[0]);
    const said = it.from ? `${called(it.from, now.ladder)} → ${called(it.to, now.ladder)}` : called(it.to, now.ladder);
    return make("li", {}, make("time", { datetime: it.time }, when(it.time)), make("div", {}, make("b", {}, said),
      make("p", {}, `${it.cause}, by ${it.actor}`, up ? make("span", { class: "tag warn" }, "before the evidence sufficed") : "")));
  });
  const earlier = rows.slice(SHOWN);
  const rest = earlier.length ? make("details", {}, make("summary", {}, `${earlier.length} earlier`), make("ol", { class: "history", role: "list" }, earlier)) : "";
  return make("div", { class: "card" }, make("h3", { id: "steps-title" }, "Steps"), make("ol", { class: "history", role: "list", "aria-labelledby": "steps-title" }, rows.slice(0, SHOWN)), rest);
}

function past(rollouts) {
  if (!rollouts.length) return "";
  const rows = rollouts.map((it) => [it.rollout, make("span", { class: `tag ${it.state === "PROMOTED" ? "" : "warn"}` }, called(it.state, [])), when(it.time), make("span", { class: "aside" }, it.cause)]);
  return make("div", { class: "card" }, make("h3", {}, "Past rollouts"), table([["Rollout", "name"], ["Ended", ""], ["When", ""], ["Cause", ""]], rows, "Past rollouts"));
}

// Runs

function runs([held]) {
  const most = Math.max(0.05, ...held.flatMap((run) => [...run.exams.map((exam) => exam["hit@5"].high), run.valid?.high ?? 0])) * 1.04;
  const stable = page.overview.models.find((model) => model.stable)?.name;
  const rows = held.map((run) => [
    [run.name, run.name === stable ? [" ", make("span", { class: "tag" }, "stable")] : ""].flat(),
    run.model ?? "–", run.context === null ? "–" : count(run.context), run.updates === null ? "–" : [count(run.updates), make("i", {}, run.kept === null ? "" : `, best at ${count(run.kept)}`)].flat(),
    run.trouble ? run.trouble : run.exams.length ? run.exams.map((exam) => sat(exam, most)) : make("span", { class: "aside" }, "not evaluated"),
    run.valid ? rated(run.valid, most, "quiet") : make("span", { class: "aside" }, "–"),
  ]);
  const heads = [["Run", "name"], ["Model", ""], ["Context", "n"], ["Updates", "n"], ["Hit@5 on held-out documents", "wide rates"], ["Hit@5 while training", "rates"]];
  return table(heads, rows, "Runs served");
}

function rated(rate, most, kind) {
  const bar = draw("svg", { viewBox: "0 0 200 14", height: 14, preserveAspectRatio: "none", "aria-hidden": "true" }, rect(0, 2, (200 * rate.value) / most, 10, `fill ${kind}`), rule((200 * rate.low) / most, 7, (200 * rate.high) / most, 7, "whisker"));
  return make("div", { class: "rate" }, bar, make("span", {}, percent(rate.value), make("i", { class: "aside" }, ` ${(100 * rate.low).toFixed(1)} to ${(100 * rate.high).toFixed(1)}`)));
}

function among(candidates) {
  const { least, most } = candidates;
  return least === most ? count(least) : `${count(least)} to ${count(most)}`;
}

function sat(exam, most) {
  const read = exam.context === null ? "the whole context" : `${count(exam.context)} vectors of context`;
  return make("div", { class: "exam" }, rated(exam["hit@5"], most, ""),
    make("span", { class: "aside" }, `among ${among(exam.candidates)} candidates (chance ${percent(exam.chance)}), ${read}; ${count(exam.rows)} predictions in ${count(exam.documents)} documents, exam ${exam.exam.slice(0, 8)}`));
}

// Try it

const NAMED = 3; // rows of the context that are named for each predicted chunk
const trying = { session: null, seq: 0, appended: [], document: null, next: 0, work: Promise.resolve(), set: false, documents: [] };

function tryable(overview) {
  if (trying.set) return;
  trying.set = true;
  const [text, rows] = document.querySelectorAll("#try-modes input");
  if (!overview.bank.text) {
    text.disabled = true;
    rows.checked = true;
    $("try-why").hidden = false;
    $("try-why").textContent = "This bank holds vectors only, so the server cannot encode text. Append rows of a document instead; the true next row is marked if it is among the predictions.";
  }
  mode();
  nothingYet();
}

async function mode() {
  const rows = document.querySelector("#try-modes input[value=rows]").checked;
  $("try-text").hidden = rows;
  $("try-rows").hidden = !rows;
  wrong("");
  if (!rows || trying.documents.length) return;
  try {
    trying.documents = (await ask("/v1/overview?documents=1")).documents;
  } catch (problem) {
    return failed(problem);
  }
  $("document").replaceChildren(...trying.documents.map((it, n) => make("option", { value: n }, `${it.title} (${count(it.rows)} ${it.rows === 1 ? "row" : "rows"})`)));
}

function nothingYet() {
  trying.drawn = false;
  $("expected").replaceChildren(make("p", { class: "empty" }, "Nothing appended yet. Each paragraph is appended to a session of your own. The five chunks that the model predicts next appear here, with their scores and documents."));
  $("read-so-far").replaceChildren(make("li", { class: "aside" }, "nothing"));
}

function wrong(text, field = null) {
  $("try-error").textContent = text;
  for (const id of ["text", "document", "count"]) $(id).setAttribute("aria-invalid", text !== "" && id === field);
}

function failed(problem) {
  if (!(problem instanceof Problem)) throw problem;
  const rows = !$("try-rows").hidden;
  const hint = problem.status === 401 ? " Reload the page to enter one." : problem.status === 404 ? " Start over." : "";
  const said = problem.message.endsWith(".") ? problem.message : `${problem.message}.`;
  wrong(said[0].toUpperCase() + said.slice(1) + hint, rows ? "document" : "text");
}

/** Run work in the order in which it was given, one piece at a time. */
function queued(work) {
  trying.work = trying.work.then(async () => {
    $("expected").setAttribute("aria-busy", "true");
    try {
      await work();
      wrong("");
    } catch (problem) {
      failed(problem);
    } finally {
      $("expected").removeAttribute("aria-busy");
      $("read").textContent = "Append";
    }
  });
  $("read").textContent = "Appending …";
  return trying.work;
}

/** Append to the session; `placed` names the n-th vector of this append, counted from 0. */
async function append(body, placed) {
  if (trying.session === null) {
    const name = `try-${crypto.getRandomValues(new Uint32Array(2)).join("-")}`;
    await ask(`/v1/sessions/${name}`, { method: "PUT" });
    [trying.session, trying.seq, trying.appended] = [name, 0, []];
  }
  // The server loads the encoder with the first text, which takes longer than the default deadline.
  const headers = { "content-type": "application/json", "x-deadline-ms": "60000" };
  const named = page.overview.models.find((model) => model.stable).names_rows ? NAMED : 0;
  const found = await ask(`/v1/sessions/${trying.session}/append?k=5&text=1&because=${named}&seq=${trying.seq + 1}`, { method: "POST", headers, body: JSON.stringify(body), patience: 60000 });
  trying.seq = found.seq;
  trying.appended.push({ stop: found.length, placed });
  return found;
}

function hasRead(text) {
  const list = $("read-so-far");
  if (trying.seq <= 1) list.replaceChildren();
  list.append(make("li", {}, text));
  list.scrollTop = list.scrollHeight;
}

function readText(paragraphs) {
  for (const paragraph of paragraphs) {
    queued(async () => {
      try {
        expect(await append({ text: paragraph }, () => paragraph), null);
      } catch (problem) {
        $("text").value = [paragraph, $("text").value].filter(Boolean).join("\n\n"); // a failed paragraph returns to the field
        throw problem;
      }
      hasRead(paragraph);
    });
  }
}

function readRows() {
  const picked = trying.documents[$("document").value], many = Number($("count").value);
  if (!picked) return wrong("The list of documents is still loading.", "document");
  if (!Number.isInteger(many) || many < 1 || many > 1000) return wrong("Enter a whole number of rows from 1 to 1,000.", "count");
  if (trying.document !== picked) [trying.document, trying.next] = [picked, 0];
  const first = trying.next, last = Math.min(picked.rows, first + many);
  if (first >= picked.rows) return wrong(`All ${count(picked.rows)} rows of this document are appended. Choose another document, or start over.`, "document");
  return queued(async () => {
    const rows = Array.from({ length: last - first }, (_, n) => picked.first + first + n);
    const truth = last < picked.rows ? picked.first + last : null;
    expect(await append({ rows }, (n) => `${picked.title}: row ${count(first + n + 1)}`), truth);
    trying.next = last;
    hasRead(`${picked.title}: ${last - first === 1 ? `row ${count(last)}` : `rows ${count(first + 1)} to ${count(last)}`} of ${count(picked.rows)}`);
  });
}

function read(event) {
  event.preventDefault();
  if (!$("try-rows").hidden) return readRows();
  const paragraphs = $("text").value.split(/\n\s*\n/).map((it) => it.trim()).filter(Boolean);
  if (!paragraphs.length) return wrong("Enter some text first.", "text");
  $("text").value = "";
  wrong("");
  return readText(paragraphs);
}

/** An empty line ends a paragraph, which is appended while the user writes the next one. */
function typed() {
  const parts = $("text").value.split(/\n[^\S\n]*\n/);
  if (parts.length < 2) return;
  $("text").value = parts.pop().trimStart();
  readText(parts.map((it) => it.trim()).filter(Boolean));
}

function entered(event) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  read(event);
}

function expect(answer, truth) {
  const best = Math.max(...answer.expected.map(strength), 1e-9);
  const at = answer.expected.findIndex((it) => it.row === truth);
  const said = truth === null ? "" : at < 0 ? " The true next row is not among them." : ` The true next row is number ${at + 1}.`;
  const items = answer.expected.map((it, n) => expected(it, n, best, it.row === truth));
  const among = answer.probability === null ? "" : ` If the next vector is in the bank, it is among these with a probability of ${percent(answer.probability)}.`;
  const summary = `${answer.length === 1 ? "1 vector" : `${count(answer.length)} vectors`} in the context; ${answer.model} answered (${answer.arm}).${among}${said}`;
  $("expected").replaceChildren(make("p", { class: "legend" }, summary), items.length ? make("ol", { class: "expected" }, items) : make("p", { class: "empty" }, "The context holds every vector of the bank already."));
}

/** What the bar of a candidate shows: its probability; its score where the model has no calibration. */
function strength(it) {
  return it.probability ?? it.score;
}

function expected(it, n, best, isTrue) {
  const value = it.probability === null ? [make("span", { class: "unseen" }, "score "), it.score.toFixed(3)] : [make("span", { class: "unseen" }, "probability "), percent(it.probability)];
  const bar = draw("svg", { viewBox: "0 0 64 8", height: 8, preserveAspectRatio: "none", "aria-hidden": "true" }, rect(0, 0, 64, 8, "fill well"), rect(0, 0, 64 * Math.max(0, strength(it) / best), 8, "fill"));
  return make("li", { class: isTrue ? "true" : "" },
    make("div", { class: "head" }, make("span", { class: "place", "aria-hidden": "true" }, n + 1), make("b", {}, it.document || `row ${count(it.row)}`), isTrue ? make("span", { class: "tag" }, "✓ true") : "", make("span", { class: "score" }, bar, make("span", {}, value))),
    make("p", {}, it.text ?? `row ${count(it.row)}; this bank has no text`), because(it.because));
}

/** What stands at a position of the context. */
function readAt(position) {
  const n = trying.appended.findIndex((append) => position < append.stop);
  return trying.appended[n].placed(position - (n ? trying.appended[n - 1].stop : 0));
}

function because(reasons) {
  if (!reasons?.rows.length) return "";
  const signed = (part) => `${part < 0 ? "−" : "+"}${Math.abs(part).toFixed(3)}`;
  const rows = reasons.rows.map((row) => [readAt(row.position), row.part]);
  const rest = [["all other rows of the context", reasons.others], ["learned values", reasons.learned]].filter(([, part]) => Math.abs(part) >= 0.0005);
  return make("details", { class: "because" }, make("summary", {}, `Because of: ${rows[0][0]}`),
    make("dl", {}, [...rows, ...rest].map(([name, part]) => make("div", {}, make("dt", {}, name), make("dd", {}, signed(part))))));
}

function forgetSession() {
  if (trying.session === null) return Promise.resolve();
  const name = trying.session;
  [trying.session, trying.seq, trying.appended, trying.document, trying.next] = [null, 0, [], null, 0];
  return ask(`/v1/sessions/${name}`, { method: "DELETE", keepalive: true });
}

function again() {
  trying.work = trying.work.then(forgetSession).catch((problem) => {
    if (problem.status !== 404) failed(problem);
  });
  nothingYet();
  wrong("");
  $(document.querySelector("#try-modes input[value=rows]").checked ? "document" : "text").focus();
}

// Start

function begun() {
  const theme = localStorage.getItem("nextvec-theme") ?? "auto";
  for (const radio of document.querySelectorAll("input[name=theme]")) {
    radio.checked = radio.value === theme;
    radio.addEventListener("change", () => {
      localStorage.setItem("nextvec-theme", radio.value);
      paint(radio.value);
    });
  }
  for (const radio of document.querySelectorAll("input[name=mode]")) radio.addEventListener("change", mode);
  $("key-form").addEventListener("submit", takeKey);
  $("key").addEventListener("cancel", (event) => event.preventDefault()); // without a key there is nothing to show
  $("forget").addEventListener("click", forgetKey);
  $("hand").addEventListener("submit", (event) => event.preventDefault());
  $("hold").addEventListener("click", () => act($("hold").textContent.toLowerCase()));
  $("abort").addEventListener("click", abort);
  $("try-form").addEventListener("submit", read);
  $("text").addEventListener("keydown", entered);
  $("text").addEventListener("input", typed);
  $("again").addEventListener("click", again);
  $("latency").addEventListener("pointermove", pointed);
  $("latency").addEventListener("pointerleave", unpointed);
  $("latency").addEventListener("keydown", stepped);
  $("latency").addEventListener("blur", unpointed);
  new ResizeObserver(() => {
    if (!page.overview) return;
    latency(page.overview);
    histogram(page.overview);
  }).observe(document.body);
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) schedule(0);
  });
  addEventListener("pagehide", () => forgetSession().catch(() => {})); // the page is closed
  refresh();
}

addEventListener("DOMContentLoaded", begun);
