// The dashboard: asks the HTTP interface, shows the answers, keeps the question in the URL.
//
// What comes from the server reaches the document as text only. Nothing is written into it as HTML, and the
// content security policy allows neither inline scripts nor inline styles.
"use strict";

const STATS_MS = 2_000;
const VIEW_MS = 5_000;
const CATALOG_MS = 60_000;
const PREVIOUS_MS = 60_000; // only late events change a period that is over
const ANSWER_MS_MAX = 35_000; // more than the server's own default deadline
const BACKOFF_MS_MAX = 30_000;
const RATE_WINDOW_S = 120;
const SERIES_MAX = 5;
const BUCKETS_MAX = 1_000; // the server's default limit
const BARS_MAX = 120;
const Z95 = 1.96;
const LOCALE = "en-GB";

// ---- Theme: before anything is painted ------------------------------------------------------------------------------

const systemIsDark = matchMedia("(prefers-color-scheme: dark)");

function storedTheme() {
  try { return localStorage.getItem("traqq-theme"); } catch { return null; }
}

function applyTheme() {
  const theme = storedTheme() ?? (systemIsDark.matches ? "dark" : "light");
  document.documentElement.dataset.theme = theme;
  $("theme")?.setAttribute("aria-label", `Switch to the ${theme === "dark" ? "light" : "dark"} theme`);
  redrawCharts();
}

function toggleTheme() {
  const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  // What the system says anyway is not worth remembering.
  const isSystem = (next === "dark") === systemIsDark.matches;
  try {
    if (isSystem) localStorage.removeItem("traqq-theme");
    else localStorage.setItem("traqq-theme", next);
  } catch { /* a browser that stores nothing */ }
  document.documentElement.dataset.theme = next;
  applyTheme();
}

// ---- Document -------------------------------------------------------------------------------------------------------

function $(id) { return document.getElementById(id); }

function make(tag, { class: name, text, ...attributes } = {}, ...children) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  for (const [key, value] of Object.entries(attributes)) if (value !== undefined) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

/** Leaves the document alone when nothing changes, so that nothing flickers and selections stay. */
function setText(node, text) { if (node.textContent !== text) node.textContent = text; }
function setHidden(node, isHidden) { if (node.hidden !== isHidden) node.hidden = isHidden; }
function setList(node, items) {
  const wanted = items.map((item) => item.textContent).join("\n");
  if (node.dataset.shown !== wanted) {
    node.dataset.shown = wanted;
    node.replaceChildren(...items);
  }
}

function announce(text) { setText($("announce"), text); }

// ---- Numbers and times ----------------------------------------------------------------------------------------------

const formats = {
  whole: new Intl.NumberFormat(LOCALE, { maximumFractionDigits: 0 }),
  tenth: new Intl.NumberFormat(LOCALE, { minimumFractionDigits: 1, maximumFractionDigits: 1 }),
  money: new Intl.NumberFormat(LOCALE, { minimumFractionDigits: 2, maximumFractionDigits: 2 }),
  fine: new Intl.NumberFormat(LOCALE, { maximumFractionDigits: 6 }),
  short: new Intl.NumberFormat(LOCALE, { notation: "compact", maximumFractionDigits: 1 }),
  day: new Intl.DateTimeFormat(LOCALE, { timeZone: "UTC", day: "numeric", month: "short" }),
  weekday: new Intl.DateTimeFormat(LOCALE, { timeZone: "UTC", weekday: "short", day: "numeric", month: "short" }),
  year: new Intl.DateTimeFormat(LOCALE, { timeZone: "UTC", day: "numeric", month: "short", year: "numeric" }),
};

const UNKNOWN = "–";
const count = (number) => (number == null ? UNKNOWN : formats.whole.format(number));

/** Whole numbers as such, small ones to the last of the six digits that are counted, others like money. */
function decimal(number) {
  if (number == null) return UNKNOWN;
  if (Number.isInteger(number)) return formats.whole.format(number);
  return Math.abs(number) < 0.1 ? formats.fine.format(number) : formats.money.format(number);
}

/** Half the width of the interval that holds the true number 95 times of 100. */
const margin = (unique, error) => Math.ceil(unique * error * Z95);
const percent = (share) => `${formats.tenth.format(share * 100)} %`;
const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

/** The local clock of a bucket, as the server wrote it: `2026-03-29T00:00:00+01:00`. No time zone rules are needed. */
function clockOf(text) {
  const [, year, month, day, hour, minute] = /^(\d+)-(\d+)-(\d+)T(\d+):(\d+)/.exec(text).map(Number);
  return { date: text.slice(0, 10), utc: Date.UTC(year, month - 1, day), hour, minute };
}

const pad = (number) => String(number).padStart(2, "0");
const hourText = ({ hour, minute }) => `${pad(hour)}:${pad(minute)}`;

function bucketText(start, bucket) {
  const clock = clockOf(start);
  return bucket === "d" ? formats.weekday.format(clock.utc) : `${formats.weekday.format(clock.utc)}, ${hourText(clock)}`;
}

function addDays(date, days) {
  return new Date(Date.parse(`${date}T00:00:00Z`) + days * 86_400_000).toISOString().slice(0, 10);
}
const daysBetween = (from, to) => Math.round((Date.parse(`${to}T00:00:00Z`) - Date.parse(`${from}T00:00:00Z`)) / 86_400_000);

function ago(ms) {
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (seconds < 90) return `${seconds} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

// ---- Server ---------------------------------------------------------------------------------------------------------

class Unreachable extends Error {}
class Unauthorized extends Error {}
class Problem extends Error {
  constructor(status, detail) { super(detail); this.status = status; }
}

/** How it is to reach the server. */
const reach = { lastGood: null, failures: 0, retryAt: 0, skewMs: 0 };

function token() {
  try { return sessionStorage.getItem("traqq-token"); } catch { return heldToken; }
}
let heldToken = null;
function keepToken(text) {
  heldToken = text;
  try { sessionStorage.setItem("traqq-token", text); } catch { /* held in memory */ }
}

const authorization = () => (token() ? { authorization: `Bearer ${token()}` } : {});

/** The browser's own cache sends `If-None-Match`: an answer that did not change is not sent again. */
async function ask(path) {
  const headers = authorization();
  let response;
  let body;
  try {
    response = await fetch(path, { headers, cache: "no-cache", signal: AbortSignal.timeout(ANSWER_MS_MAX) });
    body = await response.text();
  } catch {
    throw new Unreachable();
  }
  if (response.status === 401) throw new Unauthorized();
  let answer = null;
  try { answer = JSON.parse(body); } catch { /* not ours: a proxy's page */ }
  if (response.status === 502 || response.status === 504 || (response.status === 503 && !answer)) throw new Unreachable();
  const date = Date.parse(response.headers.get("date") ?? "");
  if (date) reach.skewMs = date - Date.now();
  if (!response.ok) throw new Problem(response.status, answer?.detail ?? `The server answered ${response.status}.`);
  if (answer === null) throw new Problem(response.status, "The server's answer is no JSON.");
  return answer;
}

const serverNow = () => (Date.now() + reach.skewMs) / 1000;

// ---- The question, as the URL has it --------------------------------------------------------------------------------

/** Names come from the URL and from the server: without a prototype none of them finds what is not here. */
const KINDS = {
  __proto__: null,
  add: { group: "Counters", eyebrow: "Counter", title: (m) => `Events by ${fields(m.pattern)}`, label: (m) => fields(m.pattern) },
  add_value: { group: "Sums", eyebrow: "Sum", title: (m) => `Sum of ${m.add_key} by ${fields(m.pattern)}`, label: (m) => `${m.add_key} by ${fields(m.pattern)}` },
  bitmap: { group: "Unique counts", eyebrow: "Unique count", title: (m) => `Unique ${fields(m.pattern)}`, label: (m) => fields(m.pattern) },
  bitmap_by: { group: "Unique counts by value", eyebrow: "Unique count by value", title: (m) => `Unique ${fields(m.of)} by ${fields(m.pattern)}`, label: (m) => `${fields(m.of)} by ${fields(m.pattern)}` },
  top: { group: "Leaderboards", eyebrow: "Leaderboard", title: (m) => `Top ${fields(m.pattern)}`, label: (m) => fields(m.pattern) },
};
// Pairs come by themselves, and are many: last.
const GROUPS = [...Object.values(KINDS).map(({ group }) => group), "Counters of several fields"];
const groupOf = ({ metric, pattern }) => (metric === "add" && pattern.includes("~") ? GROUPS.at(-1) : KINDS[metric].group);
const RANGES = [
  { value: "1h", label: "1 h", minutes: 60, buckets: "m" },
  { value: "6h", label: "6 h", minutes: 360, buckets: "m" },
  { value: "1", label: "Today", days: 1 },
  { value: "7", label: "7 d", days: 7 },
  { value: "30", label: "30 d", days: 30 },
  { value: "90", label: "90 d", days: 90 },
  { value: "custom", label: "Custom" },
];
const BUCKETS = [
  { value: "d", label: "Day", noun: "day", perDay: 1 },
  { value: "h", label: "Hour", noun: "hour", perDay: 24 },
  { value: "m", label: "Minute", noun: "minute", perDay: 1440 },
];
const MEASURES = [{ value: "sum", label: "Sum" }, { value: "count", label: "Count" }, { value: "average", label: "Average" }];

const fields = (pattern) => pattern.split("~").join(" × ");
const nounOf = (bucket) => BUCKETS.find((known) => known.value === bucket).noun;

const state = { metric: null, range: "7", from: "", to: "", bucket: "d", value: null, measure: "sum", limit: 10 };
/** Kinds of bucket the server said it does not count, with its words. */
const uncounted = new Map();

/** `add/event~geo`, `add_value/event/amount`; a slash inside a name is `%2F`. */
function keyOf(metric) {
  const parts = [metric.metric, metric.pattern, metric.add_key ?? metric.of];
  return parts.filter((part) => part !== undefined).map((part) => part.replace(/[%/]/g, encodeURIComponent)).join("/");
}

function metricOf(key) {
  let parts;
  try { parts = key.split("/").map(decodeURIComponent); } catch { return null; }
  const [metric, pattern, detail] = parts;
  if (!KINDS[metric] || !pattern) return null;
  if (metric === "add_value") return { metric, pattern, add_key: detail ?? "" };
  return metric === "bitmap_by" ? { metric, pattern, of: detail ?? "" } : { metric, pattern };
}

const readable = (text) => encodeURIComponent(text).replace(/'/g, "%27").replace(/%2F/g, "/").replace(/%3A/g, ":");
const encoded = (pairs) => pairs.map(([name, value]) => `${name}=${readable(value)}`).join("&");

function readHash() {
  const given = new URLSearchParams(location.hash.slice(1));
  const one = (name, known, otherwise) => (known.some((each) => each.value === given.get(name)) ? given.get(name) : otherwise);
  const date = (name) => (/^\d{4}-\d\d-\d\d$/.test(given.get(name) ?? "") ? given.get(name) : "");
  state.metric = metricOf(given.get("q") ?? "");
  state.range = one("range", RANGES, "7");
  state.bucket = one("bucket", BUCKETS, "d");
  state.measure = one("measure", MEASURES, "sum");
  state.value = given.get("value");
  state.limit = [10, 25, 100].includes(Number(given.get("limit"))) ? Number(given.get("limit")) : 10;
  state.from = date("from");
  state.to = date("to");
  if (state.range === "custom" && !(state.from && state.to && state.from <= state.to)) state.range = "7";
}

function writeHash() {
  const pairs = [];
  if (state.metric) pairs.push(["q", keyOf(state.metric)]);
  pairs.push(["range", state.range], ["bucket", state.bucket]);
  if (state.range === "custom") pairs.push(["from", state.from], ["to", state.to]);
  if (state.metric?.metric === "add_value" && state.measure !== "sum") pairs.push(["measure", state.measure]);
  if (state.limit !== 10) pairs.push(["limit", String(state.limit)]);
  if (state.value !== null) pairs.push(["value", state.value]);
  const hash = `#${encoded(pairs)}`;
  if (hash !== location.hash) history.replaceState(null, "", hash);
}

/** How many buckets a range has at least; `null` when that is not to be known. */
function daysOf(range) {
  if (range === "custom") return state.from && state.to ? daysBetween(state.from, state.to) + 1 : 1;
  return RANGES.find((known) => known.value === range).days ?? null;
}

/** Why a kind of bucket cannot be asked for in the chosen range, or `null`. */
function refusal(bucket) {
  if (uncounted.has(bucket.value)) return uncounted.get(bucket.value);
  const range = RANGES.find((known) => known.value === state.range);
  if (range.buckets) return bucket.value === range.buckets ? null : `${range.label} are shown by the minute`;
  if (daysOf(state.range) * bucket.perDay <= BUCKETS_MAX) return null;
  return `More than ${count(BUCKETS_MAX)} ${bucket.noun}s; choose a shorter range`;
}

function metricPairs({ metric, pattern, add_key, of }) {
  const names = [pattern, add_key, of].filter(Boolean);
  if (!names.some((name) => name.includes("/"))) return [["q", [metric, ...names].join("/")]];
  const pairs = [["metric", metric], ["pattern", pattern]];
  if (add_key) pairs.push(["add_key", add_key]);
  return of ? [...pairs, ["of", of]] : pairs;
}

function rangePairs() {
  const range = RANGES.find((known) => known.value === state.range);
  if (range.days) return [["days", String(range.days)]];
  if (range.minutes) {
    const to = (Math.floor(serverNow() / 60) + 1) * 60;
    return [["from", String(to - range.minutes * 60)], ["to", String(to)]];
  }
  return [["from", state.from], ["to", addDays(state.to, 1)]];
}

/** The period of the same length before the one that was answered: as local dates, so that no day is cut in two. */
function previousPairs(answer) {
  if (RANGES.find((known) => known.value === state.range).minutes) {
    const length = answer.to_epoch - answer.from_epoch;
    return [["from", String(answer.from_epoch - length)], ["to", String(answer.from_epoch)]];
  }
  const first = answer.from.slice(0, 10);
  return [["from", addDays(first, -daysOf(state.range))], ["to", first]];
}

/** What `value=` takes for a row of an answer; the store escapes what could be mistaken. */
function labelOf(row) {
  if (row.other) return "__other__";
  if (Array.isArray(row.value)) return row.value.map((part) => part.replace(/[\\~]/g, "\\$&")).join("~");
  return /^\\*__other__$/.test(row.value) ? `\\${row.value}` : row.value;
}

const valueText = (value) => (Array.isArray(value) ? value.join(" · ") : value);
const rowText = (row) => (row.other ? "all other values" : valueText(row.value));

// ---- Vital signs ----------------------------------------------------------------------------------------------------

const rates = [];
let lastStats = null;
let spark = null;

async function pollStats() {
  const stats = await ask("api/v1/stats");
  const at = Date.now() / 1000;
  const events = stats.totals?.events ?? 0;
  if (lastStats && events >= lastStats.events) {
    const seconds = at - lastStats.at;
    // A gap is drawn as one: what happened meanwhile is not known second by second.
    if (seconds > 3 * STATS_MS / 1000) rates.push([lastStats.at + 0.1, null]);
    rates.push([at, (events - lastStats.events) / seconds]);
  }
  while (rates.length && rates[0][0] < at - RATE_WINDOW_S - 5) rates.shift();
  lastStats = { at, events };
  showStats(stats, at);
  return stats;
}

async function pollReadiness() {
  try {
    // The reason is told to those who may ask.
    const response = await fetch("readyz", { headers: authorization(), cache: "no-store", signal: AbortSignal.timeout(ANSWER_MS_MAX) });
    if (response.ok) return null;
    return JSON.parse(await response.text()).detail;
  } catch {
    throw new Unreachable();
  }
}

function showHealth(kind, text) {
  const pill = $("health");
  if (pill.dataset.state !== kind) pill.dataset.state = kind;
  if ($("health-text").textContent !== text) {
    const before = $("health-text").textContent;
    setText($("health-text"), text);
    if (before !== "Connecting" || kind !== "good") announce(`traqq: ${text}`);
  }
}

function showObstacle(reason) {
  setHidden($("obstacle"), !reason);
  if (reason) setText($("obstacle-text"), reason);
}

/** Whether what comes in comes to nothing, for the most part. */
function isMostlyUncounted({ most_uncounted: isMost, ingest }) {
  return isMost === true || ingest?.most_rejected === true;
}

const placeText = ({ topic, partition, offset }) => `${topic}/${partition} at offset ${offset}`;

/** One reason for which records or events came to nothing, with the places of the first and the last. */
function reasonText({ reason, explanation, records, events, first, last, last_detail: told }) {
  // What is wrong with the last one begins with the explanation.
  const why = last?.detail ?? told ?? explanation;
  const isOne = first && last && placeText(first) === placeText(last);
  const places = !first ? "" : isOne || !last ? ` It is ${placeText(first)}.` : ` First ${placeText(first)}, last ${placeText(last)}.`;
  return `${reason}, ${count(records ?? events)}: ${why}.${places}`;
}

/** What of records that were counted is in no number, and records without anything to count. */
function leftOut({ records = 0, tombstones = 0, values_skipped: skipped = 0, buckets_expired: buckets = 0, keys_expired: keys = 0 }) {
  const lines = [];
  if (skipped) lines.push(`${plural(skipped, "value")} left out: no number where one was needed (amounts of add_value).`);
  if (buckets + keys) lines.push(`${plural(buckets + keys, "bucket")} of late events not written: their retention had passed (buckets.retention).`);
  // Here and there one is how a compacted topic works.
  if (tombstones * 2 > records) lines.push(`${count(tombstones)} of ${plural(records, "record")} have no value.`);
  return lines;
}

/** What came in and is in no number: how much, why, and where it is. */
function showUncounted(stats) {
  const { dead_letters: letters, ingest, totals } = stats;
  const lost = totals?.dead_letters ?? 0;
  const refused = ingest?.rejected ?? 0;
  const left = leftOut(totals ?? {});
  setHidden($("uncounted"), !lost && !refused && !left.length);
  setHidden($("events-lost"), !lost);
  if (lost) setText($("events-lost"), `${count(lost)} not counted`);
  if (!lost && !refused && !left.length) return;
  const banner = $("uncounted");
  const isMost = isMostlyUncounted(stats);
  banner.classList.toggle("bad", isMost);
  banner.classList.toggle("warn", !isMost);
  const parts = [];
  if (lost) parts.push(`${count(lost)} of ${plural(totals.events + lost, "event")} could not be counted`);
  if (refused) parts.push(`${count(refused)} of ${plural(refused + ingest.accepted, "event")} sent here ${refused === 1 ? "was" : "were"} refused`);
  if (!parts.length) parts.push("Not everything is in the numbers");
  setText($("uncounted-title"), `${parts.join("; ")}, since this process started.`);
  const reasons = [...(lost ? letters?.reasons ?? [] : []), ...(refused ? ingest.reasons : [])];
  setList($("uncounted-list"), [...reasons.map(reasonText), ...left].map((text) => make("li", { text })));
  const hints = [];
  if (lost) hints.push(letters?.to === "discard" ? "The records are discarded; with a dead-letter topic or subject they would be kept." : `The records, each with its reason: ${letters?.to}.`);
  if (refused) hints.push("Whoever sent what was refused was told why.");
  hints.push("traqq explain event.json shows what an event becomes.");
  setText($("uncounted-hint"), hints.join(" "));
}

function showStats(stats, at) {
  const partitions = stats.partitions ?? [];
  const stopped = partitions.filter((partition) => partition.state === "stopped" || partition.reason);
  // What cannot be read for the moment goes on by itself.
  const needsSomebody = stopped.some((partition) => partition.state !== "unreadable");
  const how = needsSomebody ? "stopped" : "cannot be read";
  if (stats.ready === false) showHealth("warn", "Not ready");
  else if (stopped.length) showHealth("bad", `${plural(stopped.length, "partition")} ${how}`);
  else if (isMostlyUncounted(stats)) showHealth("bad", "Most events are not counted");
  else showHealth("good", "Ready");
  showUncounted(stats);
  showObstacle(stats.ready === false ? stats.not_ready_because || "The process gives no reason." : null);

  setHidden($("stopped"), !stopped.length);
  if (stopped.length) {
    const until = needsSomebody ? "until somebody acts" : "until then";
    setText($("stopped-title"), `${plural(stopped.length, "partition")} ${how}; what is in ${stopped.length === 1 ? "it" : "them"} is not counted ${until}:`);
    setList($("stopped-list"), stopped.map((each) => make("li", { text: `${each.topic}/${each.partition}: ${each.reason ?? "no reason given"}` })));
  }

  const rate = rates.length ? rates[rates.length - 1][1] : null;
  setText($("rate"), rate === null ? UNKNOWN : rate > 0 && rate < 10 ? formats.tenth.format(rate) : count(rate));
  const peak = Math.max(0, ...rates.map(([, each]) => each ?? 0));
  setText($("rate-sub"), rates.length > 1 ? `peak ${count(peak)} in ${ago(Math.min(RATE_WINDOW_S, at - rates[0][0]) * 1000)}` : "measuring");
  const events = stats.totals?.events;
  setText($("events"), events >= 1e9 ? formats.short.format(events) : count(events));
  $("events").title = count(events);

  const lag = stats.lag_records ?? 0;
  const seconds = Math.max(0, ...partitions.map((partition) => partition.lag_seconds ?? 0));
  setText($("lag"), partitions.length ? count(lag) : UNKNOWN);
  setText($("lag-sub"), !partitions.length ? "this process only answers" : lag ? `records, ${ago(seconds * 1000)} behind` : "up to date");
  setText($("partitions"), partitions.length ? count(partitions.length) : UNKNOWN);
  setText($("partitions-sub"), stopped.length ? `${count(stopped.length)} ${how}` : partitions.length ? "all running" : "none here");
  $("partitions-sub").classList.toggle("bad", stopped.length > 0);
  setHidden($("positions"), !partitions.length);
  if ($("positions").open) {
    const rows = partitions.map((each) => [`${each.topic}/${each.partition}`, each.state, count(each.position), count(each.end), count(each.lag_records)]);
    fillTable($("positions-rows"), rows);
  }
  drawSpark(at);
}

/** Writes rows of text into a table's body, and touches only cells that differ. The first cell is the row's header. */
function fillTable(body, rows) {
  while (body.rows.length > rows.length) body.lastElementChild.remove();
  rows.forEach((cells, index) => {
    const row = body.rows[index] ?? body.appendChild(make("tr"));
    while (row.cells.length > cells.length) row.lastElementChild.remove();
    cells.forEach((text, column) => {
      const cell = row.cells[column] ?? row.appendChild(column ? make("td") : make("th", { scope: "row" }));
      const isNumber = /^[-–\d]/.test(text) && column > 0;
      if (cell.classList.contains("num") !== isNumber) cell.classList.toggle("num", isNumber);
      setText(cell, text);
    });
  });
}

function drawSpark(at) {
  const data = [rates.map(([time]) => time), rates.map(([, rate]) => rate)];
  if (spark) {
    spark.at = at;
    spark.plot.setData(data);
    return;
  }
  const box = $("spark");
  spark = { at };
  spark.plot = new uPlot({
    width: Math.max(40, box.clientWidth),
    height: box.clientHeight,
    legend: { show: false },
    cursor: { show: false },
    padding: [4, 0, 2, 0],
    axes: [{ show: false }, { show: false }],
    scales: {
      x: { time: false, range: () => [spark.at - RATE_WINDOW_S, spark.at] },
      y: { range: (_, low, high) => [0, Math.max(1, high ?? 1) * 1.08] },
    },
    series: [{}, { stroke: () => color("--series-0"), fill: () => color("--accent-soft"), width: 1.5, points: { show: false } }],
  }, data, box);
}

// ---- Picker ---------------------------------------------------------------------------------------------------------

let catalog = [];

function catalogPath() {
  const days = daysOf(state.range);
  if (state.range === "custom") return `api/v1/catalog?${encoded(rangePairs())}`;
  return `api/v1/catalog?days=${days ?? 1}`;
}

const isBare = (answer) => answer.metrics.every((metric) => metric.values === 0);

/** Whether there is anything to show. A quiet week is not an empty store. */
async function loadCatalog() {
  let answer;
  try {
    answer = await ask(catalogPath());
    if (isBare(answer) && !(lastStats?.events > 0)) {
      const longer = await ask("api/v1/catalog?days=90");
      if (isBare(longer)) return false;
    }
  } catch (error) {
    if (error instanceof Problem && error.status === 404) return false;
    throw error;
  }
  // A later server may have kinds that this page does not know.
  catalog = answer.metrics.filter(({ metric }) => KINDS[metric]);
  setText($("zone"), `Days and hours are those of ${answer.time_zone}.`);
  if (!state.metric && catalog.length) {
    state.metric = catalog.find((each) => each.metric === "add" && each.values) ?? catalog.find((each) => each.values) ?? catalog[0];
    writeHash();
  }
  showPicker();
  return true;
}

function showPicker() {
  const list = $("metrics");
  const wanted = $("filter").value.trim().toLowerCase();
  const words = wanted.split(/\s+/).filter(Boolean);
  const current = state.metric && keyOf(state.metric);
  const shown = catalog.filter((metric) => {
    const { group, title } = KINDS[metric.metric];
    const text = `${keyOf(metric)} ${group} ${title(metric)}`.toLowerCase();
    return words.every((word) => text.includes(word));
  });
  const signature = shown.map(keyOf).join("\n");
  if (list.dataset.shown !== signature) {
    list.dataset.shown = signature;
    const groups = GROUPS.map((group) => ({ group, metrics: shown.filter((metric) => groupOf(metric) === group) }));
    list.replaceChildren(...groups.filter(({ metrics }) => metrics.length).flatMap(({ group, metrics }) => [
      make("h3", { text: group }),
      ...metrics.map((metric) => {
        const button = make("button", { class: "metric", type: "button" }, make("span", { text: KINDS[metric.metric].label(metric) }), make("span", { class: "seen" }));
        button.dataset.key = keyOf(metric);
        return button;
      }),
    ]));
  }
  const buttons = [...list.querySelectorAll("button")];
  const byKey = new Map(shown.map((metric) => [keyOf(metric), metric]));
  for (const button of buttons) {
    const { values, at_least: atLeast } = byKey.get(button.dataset.key);
    const seen = values == null ? "" : `${formats.short.format(values)}${atLeast ? "+" : ""}`;
    setText(button.lastElementChild, seen);
    button.title = values == null ? "" : `${count(values)}${atLeast ? " or more" : ""} different values in this range`;
    const isCurrent = button.dataset.key === current;
    if (isCurrent) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
  // One stop for the Tab key; the arrows go on from there.
  const stop = buttons.find((button) => button.hasAttribute("aria-current")) ?? buttons[0];
  for (const button of buttons) button.tabIndex = button === stop ? 0 : -1;
  setHidden($("metrics-none"), buttons.length > 0);
  setText($("picker-now"), state.metric ? KINDS[state.metric.metric].title(state.metric) : "none");
}

function togglePicker(isOpen) {
  $("picker-toggle").setAttribute("aria-expanded", String(isOpen));
}

function walkPicker(event) {
  const buttons = [...$("metrics").querySelectorAll("button")];
  const at = buttons.indexOf(document.activeElement);
  const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
  if (event.key === "Escape" && $("filter").value) {
    $("filter").value = "";
    showPicker();
    $("filter").focus();
  } else if (event.key === "Escape") {
    togglePicker(false);
  } else if (event.key === "Enter" && event.target === $("filter") && buttons.length) {
    buttons[0].click();
  } else if (to !== undefined && !(event.target === $("filter") && ["Home", "End"].includes(event.key))) {
    event.preventDefault();
    if (to < 0) $("filter").focus();
    else buttons[Math.min(to, buttons.length - 1)]?.focus();
  }
}

// ---- Controls -------------------------------------------------------------------------------------------------------

function buildSegments(id, options, choose) {
  for (const { value, label } of options) {
    const input = make("input", { type: "radio", name: id, value });
    $(id).append(make("label", {}, input, make("span", { text: label })));
    input.addEventListener("change", () => choose(value));
  }
}

function showSegments(id, chosen, refused = () => null) {
  for (const input of $(id).querySelectorAll("input")) {
    const why = refused(input.value);
    if (input.checked !== (input.value === chosen)) input.checked = input.value === chosen;
    if (input.disabled !== Boolean(why)) input.disabled = Boolean(why);
    input.parentElement.title = why ?? "";
  }
}

function showControls() {
  showSegments("range", state.range, (value) => {
    const range = RANGES.find((known) => known.value === value);
    return range.buckets && uncounted.has(range.buckets) ? uncounted.get(range.buckets) : null;
  });
  showSegments("bucket", state.bucket, (value) => refusal(BUCKETS.find((known) => known.value === value)));
  showSegments("measure", state.measure);
  setHidden($("measure"), state.metric?.metric !== "add_value");
  setHidden($("dates"), state.range !== "custom");
  if (document.activeElement !== $("from")) $("from").value = state.from;
  if (document.activeElement !== $("to")) $("to").value = state.to;
  $("limit").value = String(state.limit);
  const words = [...uncounted.values()];
  setHidden($("hint"), !words.length);
  setText($("hint"), words.join(" "));
}

function chooseRange(value) {
  if (value === "custom" && !state.from) {
    const today = new Date(serverNow() * 1000).toISOString().slice(0, 10);
    state.to = shown?.base.to ? addDays(shown.base.to.slice(0, 10), -1) : today;
    state.from = shown?.base.from?.slice(0, 10) ?? addDays(today, -6);
    if (state.from > state.to) state.to = state.from;
  }
  state.range = value;
  const fits = BUCKETS.filter((bucket) => !refusal(bucket));
  // A single day says more by the hour.
  const better = value === "1" && fits.some((bucket) => bucket.value === "h") ? "h" : fits[0]?.value;
  if (value === "1" || !fits.some((bucket) => bucket.value === state.bucket)) state.bucket = better ?? "d";
  changed({ catalog: true });
}

function chooseDates() {
  const [from, to] = [$("from").value, $("to").value];
  if (!from || !to) return;
  if (from > to) {
    showProblem("The first day lies after the last one.");
    return;
  }
  Object.assign(state, { from, to });
  const fits = BUCKETS.filter((bucket) => !refusal(bucket));
  if (!fits.some((bucket) => bucket.value === state.bucket)) state.bucket = fits[0]?.value ?? "d";
  changed({ catalog: true });
}

function chooseMetric(key) {
  state.metric = metricOf(key);
  state.value = null;
  togglePicker(false);
  showPicker();
  changed();
}

function chooseValue(label) {
  state.value = state.value === label ? null : label;
  changed();
}

// ---- The view: questions and answers --------------------------------------------------------------------------------

let asked = 0;
/** The answers on the screen. */
let shown = null;
const previousAnswers = new Map();

const findPath = (range, ...extra) => `api/v1/find?${encoded([...metricPairs(state.metric), ...range, ["bucket", state.bucket], ...extra])}`;

/** An answer about a period that is over. */
async function askPrevious(path) {
  const held = previousAnswers.get(path);
  if (held && Date.now() - held.at < PREVIOUS_MS) return held.answer;
  const answer = await ask(path);
  if (previousAnswers.size > 60) previousAnswers.clear();
  previousAnswers.set(path, { at: Date.now(), answer });
  return answer;
}

function measureOf(data) {
  if (data == null) return null;
  if (data.unique !== undefined) return data.unique;
  if (data.sum === undefined) return data.count ?? null;
  if (state.measure === "average") return data.count ? data.sum / data.count : null;
  return state.measure === "count" ? data.count : data.sum;
}

/** One number per bucket for one value. The rows at hand suffice where they hold it, or hold all that there are. */
async function valueSeries(answer, range, limit, label, asker) {
  const rowOf = ({ data }) => data?.values.find((row) => labelOf(row) === label);
  const isKnown = answer.results.every((result) => !result.data || rowOf(result) || result.data.values.length < limit);
  if (isKnown) {
    const none = state.metric.metric === "add_value" ? { sum: 0, count: 0 } : { count: 0 };
    return answer.results.map((result) => result.data && measureOf(rowOf(result) ?? (state.metric.metric === "bitmap_by" ? { unique: 0 } : none)));
  }
  const own = await asker(findPath(range, ["value", label]));
  return own.results.map((result) => measureOf(result.data));
}

/** Asks everything the view needs. */
async function loadView() {
  const { metric } = state.metric;
  const range = rangePairs();
  const isFiltered = state.value !== null && metric !== "bitmap";
  const hasRows = metric !== "bitmap" && !isFiltered;
  const rowsLimit = 10;
  const extra = isFiltered ? [["value", state.value]] : hasRows ? [["limit", String(rowsLimit)]] : [];
  const paths = {
    base: findPath(range, ...extra),
    whole: findPath(range, ...(isFiltered ? [["value", state.value]] : []), ["merge", "true"]),
    ranking: metric === "bitmap" ? null : findPath(range, ["merge", "true"], ["limit", String(state.limit)]),
  };
  if (hasRows) paths.whole = paths.ranking;
  const [base, whole, ranking] = await Promise.all([
    ask(paths.base),
    paths.whole === paths.ranking ? null : ask(paths.whole),
    paths.ranking && ask(paths.ranking),
  ]);
  const view = { paths, base, whole: whole ?? ranking, ranking, isFiltered, bucket: state.bucket, metric: state.metric, measure: state.measure };

  const before = previousPairs(base);
  try {
    view.previous = await askPrevious(findPath(before, ...extra));
  } catch (error) {
    // Before the first of all days there is nothing to compare with.
    if (!(error instanceof Problem)) throw error;
    view.previous = null;
  }

  const picks = hasRows ? (ranking.results[0].data?.values ?? []).filter((row) => !row.other).slice(0, SERIES_MAX) : [];
  view.picks = await Promise.all(picks.map(async (row) => {
    const label = labelOf(row);
    const needsBefore = view.previous && (metric === "top" || metric === "bitmap_by");
    const [values, previous] = await Promise.all([
      valueSeries(base, range, rowsLimit, label, ask),
      needsBefore ? valueSeries(view.previous, before, rowsLimit, label, askPrevious) : null,
    ]);
    return { label, text: rowText(row), total: measureOf(row), values, previous };
  }));
  view.delta = await loadDelta(view, extra);
  return view;
}

/** The buckets that are over, compared with as many of the period before. Half a day against a whole one says nothing. */
async function loadDelta({ base, previous, isFiltered }, extra) {
  if (!previous || state.measure === "average") return null;
  const now = serverNow();
  const over = base.results.filter((result) => result.end_epoch <= now).length;
  const [current, before] = [base.results.slice(0, over), previous.results.slice(0, over)];
  if (!over || before.length < over || [...current, ...before].some((result) => result.data === null)) return null;
  const add = (results) => results.reduce((sum, { data }) => sum + (measureOf(data) ?? 0), 0);
  const { metric } = state.metric;
  if (metric === "add" || metric === "add_value" || (metric === "top" && isFiltered)) {
    return { over, current: add(current), before: add(before) };
  }
  if (metric === "bitmap" || (metric === "bitmap_by" && isFiltered)) {
    const merged = async (results) => {
      const bounds = [["from", String(results[0].start_epoch)], ["to", String(results[over - 1].end_epoch)]];
      return measureOf((await askPrevious(findPath(bounds, ...extra, ["merge", "true"]))).results[0].data);
    };
    const [unique, uniqueBefore] = await Promise.all([merged(current), merged(before)]);
    return unique === null || uniqueBefore === null ? null : { over, current: unique, before: uniqueBefore };
  }
  return null;
}

// ---- The view: words ------------------------------------------------------------------------------------------------

const REASONS = {
  __proto__: null,
  expired: "have expired: their retention is over",
  before_since: "lie before this metric began to be counted",
  unreadable: "cannot be read",
};

function notesOf(answer) {
  const noun = nounOf(answer.bucket);
  const notes = [];
  const missing = new Map();
  for (const result of answer.results) {
    if (result.reason && !answer.merged) missing.set(result.reason, (missing.get(result.reason) ?? 0) + 1);
    for (const [reason, number] of Object.entries(result.missing ?? {})) missing.set(reason, number);
  }
  for (const [reason, number] of missing) {
    const words = REASONS[reason] ?? reason;
    notes.push(`${plural(number, noun)} of ${count(answer.buckets)} ${number === 1 ? words.replace("have", "has").replace("their", "its").replace("lie", "lies") : words}. ${answer.merged ? "The numbers are without " : "Shown as a gap, not as zero: the chart is without "}${number === 1 ? "it" : "them"}.`);
  }
  const has = (flag) => answer.results.some((result) => result[flag]);
  if (has("incomplete")) notes.push("Incomplete: a write failed or a key cannot be read, so the true numbers are different.");
  if (has("capped")) notes.push("Capped: there are more values than are kept apart (events.max_values_per_key). What came later is counted together as “all other values”; totals are right.");
  if (has("partial")) notes.push(`Counting of this metric began inside a ${noun}${answer.since ? `, at ${answer.since}` : ""}; that ${noun} holds a part only.`);
  if (answer.results.some((result) => result.data?.exact === false)) notes.push("The limit on reading was met, so the order of the values may not be exact.");
  return notes;
}

function showNotes(id, notes) { setList($(id), [...new Set(notes)].map((text) => make("li", { text }))); }

function kpi(name, value, more, direction) {
  const parts = [make("dt", { text: name }), make("dd", { class: "value", text: value })];
  if (more) parts.push(direction ? make("dd", { class: "more" }, make("span", { class: direction.class, text: direction.text }), ` ${more}`) : make("dd", { class: "more", text: more }));
  return make("div", {}, ...parts);
}

function deltaOf({ delta, bucket, base }) {
  if (!delta) return {};
  const { over, current, before } = delta;
  const isWhole = over === base.results.length;
  const span = isWhole ? "than in the period before" : `than before, over the ${over === 1 ? `first ${nounOf(bucket)}` : `${over} full ${nounOf(bucket)}s`}`;
  if (before <= 0) return { more: current > 0 ? "nothing in the period before" : "" };
  const change = (current - before) / before;
  if (Math.abs(change) < 0.0005) return { more: `as much as before${isWhole ? "" : `, over ${plural(over, `full ${nounOf(bucket)}`)}`}` };
  return {
    more: span,
    direction: change > 0 ? { class: "up", text: `▲ ${percent(change)} more` } : { class: "down", text: `▼ ${percent(-change)} less` },
  };
}

function kpisOf(view) {
  const data = view.whole.results[0].data;
  const { metric } = view.metric;
  if (!data) return [kpi("In this range", "not known", view.whole.results[0].reason ? `all of it ${(REASONS[view.whole.results[0].reason] ?? "").replace(/^have/, "has").replace(/^lie/, "lies")}` : "")];
  const { more, direction } = deltaOf(view);
  const peak = () => {
    const best = view.base.results.reduce((best, result) => (measureOf(result.data) > (best ? measureOf(best.data) : 0) ? result : best), null);
    return best && view.base.results.length > 1 ? [kpi(`Busiest ${nounOf(view.bucket)}`, decimal(measureOf(best.data)), bucketText(best.start, view.bucket))] : [];
  };
  const leader = () => {
    const row = data.values.find((each) => !each.other);
    return row ? [kpi("In front", rowText(row), decimal(measureOf(row)))] : [];
  };
  const unique = () => {
    const around = margin(data.unique, data.error);
    return [
      kpi("Unique", `${count(data.unique)} ± ${count(around)}`, more, direction),
      kpi("95 % interval", `${count(Math.max(0, data.unique - around))} – ${count(data.unique + around)}`, `the union of all ${nounOf(view.bucket)}s: nothing counts twice`),
      ...peak(),
    ];
  };
  if (data.unique !== undefined) return unique();
  if (metric === "bitmap_by") return [kpi("Values seen", count(data.values_seen)), ...leader(), kpi("Each unique count", `± ${percent(data.error * Z95)}`, "95 % of the time")];
  if (data.sum !== undefined) {
    const average = data.count ? data.sum / data.count : null;
    const change = (measure) => (view.measure === measure ? [more, direction] : []);
    const kpis = [kpi(`Sum of ${view.metric.add_key}`, decimal(data.sum), ...change("sum")), kpi("Count", count(data.count), ...change("count")), kpi("Average", decimal(average === null ? null : Math.round(average * 1e6) / 1e6))];
    return data.min === undefined ? kpis : [...kpis, kpi("Smallest", decimal(data.min)), kpi("Largest", decimal(data.max))];
  }
  if (metric === "top" && !view.isFiltered) return [...leader(), kpi("Order", data.exact ? "exact" : "approximate", data.exact ? "over the whole range" : "the limit on reading was met")];
  const total = kpi("Events", count(data.count), more, direction);
  if (view.isFiltered) return [total, ...peak()];
  return [total, kpi("Values seen", count(data.values_seen)), ...peak()];
}

function showView(view) {
  shown = view;
  const kind = KINDS[view.metric.metric];
  setText($("eyebrow"), `${kind.eyebrow}, ${rangeText(view.base)}`);
  setText($("title"), kind.title(view.metric));
  setHidden($("chip"), !view.isFiltered);
  if (view.isFiltered) {
    const text = state.value === "__other__" ? "all other values" : valueText(view.base.value ?? state.value);
    setText($("chip-text"), `Only ${fields(view.metric.pattern)} = ${text}`);
  }
  setList($("kpis"), kpisOf(view));
  showQuestion("chart-question", view.paths.base);
  showQuestion("ranking-question", view.paths.ranking);
  const model = modelOf(view);
  showLegend(model);
  drawChart(model);
  if ($("numbers").open) showNumbers(model);
  showNotes("notes", notesOf(view.base));
  showRanking(view);
}

function rangeText(answer) {
  const [first, last] = [answer.results[0], answer.results.at(-1)];
  const [from, to] = [clockOf(answer.from), clockOf(last.start)];
  if (answer.bucket === "m") return `${formats.weekday.format(from.utc)}, ${hourText(from)} to ${hourText(clockOf(last.end))}`;
  if (clockOf(first.start).date === to.date) return formats.year.format(to.utc);
  return `${formats.day.format(from.utc)} to ${formats.year.format(to.utc)}`;
}

function showQuestion(id, path) { setText($(id), path ? `GET /${decodeURI(path)}` : ""); }

function showRanking({ ranking, metric, base }) {
  setHidden($("ranking"), !ranking);
  if (!ranking) return;
  const data = ranking.results[0].data;
  const rows = data?.values ?? [];
  const isSum = metric.metric === "add_value";
  const isUnique = metric.metric === "bitmap_by";
  const amount = (row) => (isUnique ? row.unique : isSum ? row.sum : row.count);
  const total = isSum ? data?.sum : data?.count;
  const hasShare = total > 0 && !isUnique && rows.every((row) => amount(row) >= 0);
  const heads = [fields(metric.pattern), isUnique ? "Unique" : isSum ? "Sum" : "Count"];
  if (isUnique) heads.push("±");
  if (isSum) heads.push("Count", "Average");
  if (hasShare) heads.push("Share");
  const head = $("ranking-head");
  if (head.dataset.shown !== heads.join("\n")) {
    head.dataset.shown = heads.join("\n");
    head.replaceChildren(make("tr", {}, ...heads.map((text, at) => make("th", { text, scope: "col", class: at ? (isSum && at > 1 && at < 4 ? "num roomy" : "num") : "" }))));
  }
  const top = Math.max(...rows.filter((row) => !row.other).map(amount), 0);
  // What is counted together is no value of its own, so it has no rank.
  const ordered = [...rows.filter((row) => !row.other), ...rows.filter((row) => row.other)];
  const body = $("ranking-rows");
  while (body.rows.length > ordered.length) body.lastElementChild.remove();
  ordered.forEach((row, at) => {
    const cells = [decimal(amount(row))];
    if (isUnique) cells.push(count(margin(row.unique, data.error)));
    if (isSum) cells.push(count(row.count), decimal(row.count ? Math.round(row.sum / row.count * 100) / 100 : null));
    if (hasShare) cells.push(percent(amount(row) / total));
    const line = body.rows[at] ?? body.appendChild(make("tr", {}, make("td", {}, make("div", { class: "meter" }, make("i"), make("button", { type: "button" })))));
    const [bar, button] = line.cells[0].firstElementChild.children;
    const label = labelOf(row);
    if (button.dataset.label !== label) button.dataset.label = label;
    setText(button, rowText(row));
    button.title = row.other ? "Values beyond the limit, counted together" : rowText(row);
    button.classList.toggle("other", Boolean(row.other));
    line.classList.toggle("other", Boolean(row.other));
    button.setAttribute("aria-pressed", String(state.value === label));
    const width = `${top > 0 ? Math.max(0, Math.min(100, amount(row) / top * 100)) : 0}%`;
    if (bar.style.width !== width) bar.style.width = width;
    while (line.cells.length > cells.length + 1) line.lastElementChild.remove();
    cells.forEach((text, column) => {
      const cell = line.cells[column + 1] ?? line.appendChild(make("td"));
      const name = `num${isSum && column > 0 && column < 3 ? " roomy" : ""}${hasShare && column === cells.length - 1 ? " share" : ""}`;
      if (cell.className !== name) cell.className = name;
      setText(cell, text);
    });
  });
  const seen = data?.values_seen;
  const named = rows.filter((row) => !row.other).length;
  setText($("ranking-title"), metric.metric === "top" ? "Leaderboard" : "Values");
  setText($("ranking-sub"), `${seen > named ? `${count(named)} of ${count(seen)} values` : plural(named, "value")} over the whole range. Choose one to see it alone.`);
  setHidden($("ranking-none"), rows.length > 0);
  const above = notesOf(base);
  showNotes("ranking-notes", notesOf(ranking).filter((note) => !above.includes(note)));
}

function showProblem(text) {
  setHidden($("problem"), !text);
  setText($("problem"), text ?? "");
}

// ---- The chart ------------------------------------------------------------------------------------------------------

let chart = null;
const colorsOf = new Map();

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** A value keeps its colour while it is among the first, whatever its rank becomes. */
function assignColors(labels) {
  for (const label of colorsOf.keys()) if (!labels.includes(label)) colorsOf.delete(label);
  for (const label of labels) {
    if (colorsOf.has(label)) continue;
    const taken = new Set(colorsOf.values());
    colorsOf.set(label, [...Array(SERIES_MAX).keys()].find((each) => !taken.has(each)) ?? 0);
  }
}

/** What the chart shows, apart from how it is drawn. */
function modelOf(view) {
  const { base, previous, picks, metric, bucket, isFiltered } = view;
  const now = serverNow();
  const size = base.results.length;
  // What has not begun is no zero.
  const begun = (values) => values.map((value, at) => (base.results[at].start_epoch > now ? null : value));
  const fit = (values) => values && Array.from({ length: size }, (_, at) => values[at] ?? null);
  const own = begun(base.results.map((result) => measureOf(result.data)));
  const before = fit(previous?.results.map((result) => measureOf(result.data)));
  const model = {
    size, bucket, results: base.results, previousResults: previous?.results ?? [],
    format: metric.metric === "add_value" && view.measure !== "count" ? decimal : count,
    current: base.results.findIndex((result) => result.start_epoch <= now && now < result.end_epoch),
  };
  assignColors(picks.map((pick) => pick.label));
  const series = picks.map((pick) => ({ ...pick, values: begun(pick.values), previous: fit(pick.previous), color: `--series-${colorsOf.get(pick.label)}` }));
  const hasTotal = metric.metric === "add" || metric.metric === "add_value";
  const isSigned = [...own, ...series.flatMap((each) => each.values)].some((value) => value < 0);
  if (metric.metric === "bitmap" || isFiltered || !series.length) {
    const error = base.results.find((result) => result.data?.error)?.data.error;
    const text = isFiltered ? valueText(base.value ?? state.value) : KINDS[metric.metric].title(metric);
    const total = measureOf(view.whole.results[0].data);
    return { ...model, mode: "single", error, series: [{ label: null, text, total, values: own, color: "--series-0" }], previous: before };
  }
  if (metric.metric === "bitmap_by" || view.measure === "average" && metric.metric === "add_value" || isSigned) {
    return { ...model, mode: "lines", series, previous: hasTotal ? before : null, overall: hasTotal ? own : null, error: base.results.find((result) => result.data?.error)?.data.error };
  }
  // A stack: the first values, and what is left of the total.
  const layers = [...series];
  if (hasTotal) {
    const rest = own.map((total, at) => (total === null ? null : Math.max(0, total - series.reduce((sum, each) => sum + (each.values[at] ?? 0), 0))));
    const restSum = rest.reduce((sum, value) => sum + (value ?? 0), 0);
    if (restSum > 1e-6) layers.push({ label: null, text: "all others", total: restSum, values: rest, color: "--series-rest" });
    return { ...model, mode: "stack", series: layers, overall: own, previous: before };
  }
  const sums = (name) => Array.from({ length: size }, (_, at) => {
    const all = series.map((each) => each[name]?.[at]);
    return all.some((value) => value == null) ? null : all.reduce((sum, value) => sum + value, 0);
  });
  return { ...model, mode: "stack", series: layers, overall: null, previous: previous ? sums("previous") : null };
}

/** The data of uPlot: x, series back to front, the period before and its halo. */
function dataOf(model) {
  const x = Array.from({ length: model.size }, (_, at) => at);
  const twice = model.previous ? [model.previous, model.previous] : [];
  if (model.mode === "stack") {
    const sums = [];
    for (const { values } of model.series) {
      const below = sums.at(-1);
      sums.push(values.map((value, at) => (value === null ? below?.[at] ?? null : value + (below?.[at] ?? 0))));
    }
    return [x, ...sums.reverse(), ...twice];
  }
  const befores = model.series.filter((each) => each.previous).map((each) => each.previous);
  return [x, ...model.series.map((each) => each.values), ...befores, ...(model.overall && model.mode === "lines" ? [model.overall] : []), ...twice];
}

function seriesOptions(model) {
  const isBars = model.size <= BARS_MAX;
  const bars = uPlot.paths.bars({ size: model.size <= 40 ? [0.74, 64] : [0.86, 40], radius: model.mode === "single" ? [0.12, 0] : 0 });
  const dashed = (stroke, alpha = 1) => ({ stroke: () => color(stroke), width: 1.75, dash: [5, 4], alpha, points: { show: false }, spanGaps: false });
  const filled = (each) => (isBars
    ? { fill: () => color(each.color), paths: bars, width: 0, points: { show: false } }
    : { fill: () => color(each.color) + (model.mode === "single" ? "26" : "d9"), stroke: () => color(each.color), width: model.mode === "single" ? 1.75 : 0.5, points: { show: false } });
  // What lies under the dashes is kept away from them.
  const halo = { stroke: () => color("--card"), width: 4, alpha: 0.6, points: { show: false } };
  const options = [{}];
  if (model.mode === "lines") {
    const points = model.size <= 40 ? { show: true, size: 6, fill: () => color("--card") } : { show: false };
    options.push(...model.series.map((each) => ({ stroke: () => color(each.color), width: 2, points: { ...points, stroke: () => color(each.color) } })));
    options.push(...model.series.filter((each) => each.previous).map((each) => dashed(each.color, 0.5)));
    if (model.overall) options.push({ stroke: () => color("--text"), width: 2, points });
  } else {
    options.push(...[...model.series].reverse().map(filled));
  }
  if (model.previous) options.push(halo, dashed("--previous"));
  return options;
}

/** Which buckets are named on the axis: round ones, as many as there is room for. */
function ticksOf(model, room) {
  const clocks = model.results.map((result) => clockOf(result.start));
  const fitting = (steps, isTick) => steps.map((step) => [...clocks.keys()].filter((at) => isTick(at, step))).find((ticks) => ticks.length <= room);
  const byDay = () => {
    const starts = [...clocks.keys()].filter((at) => at === 0 ? clocks[0].hour + clocks[0].minute === 0 || model.bucket === "d" : clocks[at].date !== clocks[at - 1].date);
    for (const step of [1, 2, 3, 7, 14, 28, 56, 112]) {
      const ticks = starts.filter((_, at) => (starts.length - 1 - at) % step === 0);
      if (ticks.length <= room) return ticks;
    }
    return starts.slice(0, 1);
  };
  if (model.bucket === "d" || (model.bucket === "h" && model.size > 50)) return byDay();
  if (model.bucket === "h") return fitting([1, 2, 3, 6, 12, 24], (at, step) => clocks[at].hour % step === 0 && clocks[at].minute % 60 === clocks[0].minute) ?? [0];
  return fitting([1, 2, 5, 10, 15, 30, 60, 120, 240], (at, step) => (clocks[at].hour * 60 + clocks[at].minute) % step === 0) ?? [0];
}

function tickText(model, at) {
  const clock = clockOf(model.results[at].start);
  if (model.bucket === "d" || model.size > 50 && model.bucket === "h") return formats.day.format(clock.utc);
  return model.bucket === "h" && clock.hour === 0 && clock.minute === 0 && model.size > 24 ? formats.day.format(clock.utc) : hourText(clock);
}

function drawChart(model) {
  const isBars = model.size <= BARS_MAX;
  const signature = [model.mode, model.size, isBars, Boolean(model.previous), Boolean(model.overall), ...model.series.map((each) => `${each.color}${Boolean(each.previous)}`)].join();
  if (chart?.signature === signature) {
    chart.model = model;
    chart.plot.setData(dataOf(model));
    showTip();
    return;
  }
  const at = chart?.plot.cursor.idx;
  chart?.plot.destroy();
  const box = $("chart");
  const axis = { stroke: () => color("--muted"), font: "12px system-ui, sans-serif", ticks: { show: false } };
  chart = { signature, model, tip: chart?.tip ?? make("div", { class: "tip", "aria-hidden": "true" }) };
  chart.plot = new uPlot({
    width: box.clientWidth,
    height: box.clientHeight,
    legend: { show: false },
    padding: [10, 8, 0, 0],
    cursor: {
      y: false,
      drag: { x: false, y: false },
      points: { show: false },
      // From bucket to bucket: there is nothing between two of them.
      move: (plot, left, top) => [left < 0 ? left : plot.valToPos(plot.posToIdx(left), "x"), top],
    },
    scales: {
      x: { time: false, range: (plot) => (isBars ? [-0.5, chart.model.size - 0.5] : [0, Math.max(1, chart.model.size - 1)]) },
      y: { range: (_, low, high) => yRange(low, high) },
    },
    axes: [
      {
        ...axis,
        grid: { show: false },
        border: { show: true, stroke: () => color("--line"), width: 1 },
        splits: (plot) => ticksOf(chart.model, Math.max(2, Math.floor(plot.width / 76))),
        values: (_, ticks) => ticks.map((tick) => tickText(chart.model, tick)),
        size: 30,
        gap: 8,
      },
      {
        ...axis,
        grid: { stroke: () => color("--grid"), width: 1 },
        values: (_, ticks) => ticks.map((tick) => (Math.abs(tick) >= 10_000 ? formats.short.format(tick) : formats.fine.format(tick))),
        incrs: model.format === count ? [1, 2, 5].flatMap((each) => Array.from({ length: 16 }, (_, power) => each * 10 ** power)).sort((a, b) => a - b) : undefined,
        size: 54,
        gap: 8,
        space: 44,
      },
    ],
    series: seriesOptions(model),
    hooks: { setCursor: [() => showTip()], draw: [drawOver] },
  }, dataOf(model), box);
  box.append(chart.tip);
  if (at != null && at < model.size) pointAt(at);
  else hideTip();
}

function yRange(low, high) {
  if (low == null || high == null || (low === 0 && high === 0)) return [0, 1];
  return [low < 0 ? low * 1.08 : 0, high > 0 ? high * 1.06 : 0];
}

/** What is still going on is fainter; a unique count has whiskers where it lies 95 times of 100. */
function drawOver(plot) {
  if (!chart) return;
  const { model } = chart;
  const { ctx, bbox } = plot;
  const ratio = devicePixelRatio;
  const isBars = model.size <= BARS_MAX;
  const x = (value) => plot.valToPos(value, "x", true);
  const y = (value) => plot.valToPos(value, "y", true);
  ctx.save();
  ctx.setLineDash([]);
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  if (isBars && model.current >= 0 && model.mode !== "lines") {
    // Taken away rather than painted over, so that the ground keeps its colour.
    ctx.globalCompositeOperation = "destination-out";
    ctx.globalAlpha = 0.42;
    ctx.fillStyle = "#000";
    ctx.fillRect(x(model.current - 0.5), bbox.top, x(model.current + 0.5) - x(model.current - 0.5), bbox.height);
    ctx.globalAlpha = 1;
    ctx.globalCompositeOperation = "source-over";
  }
  if (model.mode === "single" && model.error) drawError(ctx, model, x, y, isBars, ratio);
  if (model.size === 1 && model.previous?.[0] != null) {
    ctx.strokeStyle = color("--previous");
    ctx.lineWidth = 2 * ratio;
    ctx.setLineDash([5 * ratio, 4 * ratio]);
    ctx.beginPath();
    ctx.moveTo(x(0) - 60 * ratio, y(model.previous[0]));
    ctx.lineTo(x(0) + 60 * ratio, y(model.previous[0]));
    ctx.stroke();
  }
  ctx.restore();
}

function drawError(ctx, model, x, y, isBars, ratio) {
  const bounds = model.series[0].values.map((value) => (value === null ? null : [value * (1 - model.error * Z95), value * (1 + model.error * Z95)]));
  if (!isBars) {
    ctx.fillStyle = `${color("--series-0")}40`;
    const known = [...bounds.keys()].filter((at) => bounds[at]);
    ctx.beginPath();
    for (const at of known) ctx.lineTo(x(at), y(bounds[at][1]));
    for (const at of known.reverse()) ctx.lineTo(x(at), y(bounds[at][0]));
    ctx.fill();
    return;
  }
  const arm = Math.min(6 * ratio, (x(1) - x(0)) * 0.18);
  ctx.strokeStyle = color("--text");
  ctx.lineWidth = 1.25 * ratio;
  ctx.beginPath();
  bounds.forEach((bound, at) => {
    if (!bound || bound[1] === 0) return;
    ctx.moveTo(x(at), y(bound[0]));
    ctx.lineTo(x(at), y(bound[1]));
    for (const end of bound) {
      ctx.moveTo(x(at) - arm, y(end));
      ctx.lineTo(x(at) + arm, y(end));
    }
  });
  ctx.stroke();
}

function redrawCharts() {
  spark?.plot.redraw(false);
  chart?.plot.redraw(false);
}

/** Name, colour and text of everything the chart says about one bucket. */
function reading(model, at) {
  const result = model.results[at];
  const rows = model.series.map((each) => {
    const value = each.values[at];
    const around = model.error && value !== null ? ` ± ${count(margin(value, model.error))}` : "";
    const before = each.previous && model.mode === "lines" ? `, before ${model.format(each.previous[at])}` : "";
    return { text: each.text, color: each.color, value: `${model.format(value)}${around}${before}` };
  });
  if (model.overall && model.series.length > 1) rows.push({ text: model.mode === "lines" ? "over all values" : "total", value: model.format(model.overall[at]) });
  const before = model.previousResults[at];
  if (before && model.previous) rows.push({ text: `before: ${bucketText(before.start, model.bucket)}`, dashed: true, value: model.format(model.previous[at]) });
  const isFuture = result.start_epoch > serverNow();
  const status = result.reason ? (REASONS[result.reason] ?? result.reason).replace(/^have/, "has").replace("their", "its").replace(/^lie /, "lies ") : isFuture ? "still to come" : at === model.current ? "so far" : "";
  return { title: `${bucketText(result.start, model.bucket)}${status ? `, ${status}` : ""}`, rows };
}

function swatch(row) {
  const mark = make("span", { class: row.dashed ? "swatch dashed" : "swatch" });
  if (row.color) mark.style.background = `var(${row.color})`;
  return mark;
}

function hideTip() { if (chart) setHidden(chart.tip, true); }

function showTip() {
  const at = chart?.plot?.cursor.idx;
  if (at == null || at >= chart.model.size || chart.plot.cursor.left < 0) {
    hideTip();
    return;
  }
  const { title, rows } = reading(chart.model, at);
  chart.tip.replaceChildren(make("h4", { text: title }), ...rows.map((row) => make("div", {}, swatch(row), make("span", { text: row.text }), make("b", { text: row.value }))));
  setHidden(chart.tip, false);
  const { left } = chart.plot.cursor;
  const start = chart.plot.over.offsetLeft + left;
  const room = $("chart").clientWidth;
  const width = chart.tip.offsetWidth;
  const place = start + 14 + width <= room ? start + 14 : Math.max(0, start - 14 - width);
  chart.tip.style.transform = `translate(${Math.round(Math.min(place, Math.max(0, room - width)))}px, 4px)`;
}

function pointAt(at) {
  chart.plot.setCursor({ left: chart.plot.valToPos(at, "x"), top: 10 });
}

function walkChart(event) {
  if (!chart) return;
  const { size, current } = chart.model;
  const at = chart.plot.cursor.left >= 0 ? chart.plot.cursor.idx : null;
  const first = current >= 0 ? current : size - 1;
  const to = { ArrowRight: at === null ? first : at + 1, ArrowLeft: at === null ? first : at - 1, Home: 0, End: size - 1 }[event.key];
  if (event.key === "Escape") {
    chart.plot.setCursor({ left: -10, top: -10 });
  } else if (to !== undefined) {
    event.preventDefault();
    pointAt(Math.max(0, Math.min(size - 1, to)));
    const { title, rows } = reading(chart.model, Math.max(0, Math.min(size - 1, to)));
    setText($("reading"), `${title}: ${rows.map((row) => `${row.text} ${row.value}`).join("; ")}`);
  }
}

function showLegend(model) {
  const hasBefore = model.previous || model.series.some((each) => each.previous);
  const signature = [...model.series.map((each) => `${each.label}|${each.text}|${each.color}`), hasBefore, model.overall && model.mode].join("\n");
  const list = $("legend");
  if (list.dataset.shown === signature) return;
  list.dataset.shown = signature;
  const items = model.series.map((each) => {
    const inner = [swatch(each), make("span", { class: "label", text: each.text })];
    if (each.label === null) return make("li", {}, make("span", {}, ...inner));
    const button = make("button", { type: "button", title: `Only ${each.text}` }, ...inner);
    button.dataset.label = each.label;
    return make("li", {}, button);
  });
  if (model.mode === "lines" && model.overall) items.push(make("li", {}, make("span", {}, swatch({ color: "--text" }), make("span", { class: "label", text: "over all values" }))));
  if (hasBefore) items.push(make("li", {}, make("span", {}, swatch({ dashed: true }), make("span", { class: "label", text: model.mode === "stack" && !model.overall ? "the same values in the period before" : "the period before" }))));
  if (model.error && model.mode === "single") items.push(make("li", {}, make("span", { text: `± ${percent(model.error * Z95)}, 95 % of the time` })));
  list.replaceChildren(...items);
}

function showNumbers(model) {
  const heads = [nounOf(model.bucket), ...model.series.map((each) => each.text)];
  if (model.error) heads.push("±");
  if (model.overall) heads.push("total");
  if (model.previous) heads.push("before");
  const befores = model.mode === "lines" ? model.series.filter((each) => each.previous) : [];
  heads.push(...befores.map((each) => `${each.text}, before`));
  heads[0] = heads[0][0].toUpperCase() + heads[0].slice(1);
  setList($("numbers-head"), [make("tr", {}, ...heads.map((text, at) => make("th", { text, scope: "col", class: at ? "num" : "" })))]);
  fillTable($("numbers-rows"), model.results.map((result, at) => {
    const cells = [bucketText(result.start, model.bucket), ...model.series.map((each) => model.format(each.values[at]))];
    if (model.error) cells.push(model.mode === "single" && model.series[0].values[at] !== null ? count(margin(model.series[0].values[at], model.error)) : percent(model.error * Z95));
    if (model.overall) cells.push(model.format(model.overall[at]));
    if (model.previous) cells.push(model.format(model.previous[at]));
    cells.push(...befores.map((each) => model.format(each.previous[at])));
    return cells;
  }));
}

// ---- Copying and keeping --------------------------------------------------------------------------------------------------------

/** A line for a shell. The token is not in it: it would end up in somebody's history. */
function curlOf(path) {
  const secret = token() ? "-H \"Authorization: Bearer $TRAQQ_SERVER__TOKEN\" " : "";
  return `curl -s ${secret}'${new URL(path, document.baseURI)}'`;
}

/** The clipboard is there only on https and localhost; elsewhere the old way has to do. */
async function copy(text, button) {
  let isDone = false;
  try {
    await navigator.clipboard.writeText(text);
    isDone = true;
  } catch {
    const area = make("textarea", { class: "unseen", readonly: "" });
    area.value = text;
    document.body.append(area);
    area.select();
    isDone = document.execCommand("copy");
    area.remove();
    button.focus();
  }
  tell(button, isDone, isDone ? "Copied" : "Not allowed", isDone ? "Copied." : "The browser does not allow copying here.");
}

/** The answer as a file for a spreadsheet, in which no value of an event is a formula. A link could not send the token. */
async function download(path, button) {
  let response;
  let blob;
  try {
    const headers = authorization();
    response = await fetch(`${path}&format=spreadsheet`, { headers, cache: "no-store", signal: AbortSignal.timeout(ANSWER_MS_MAX) });
    blob = await response.blob();
  } catch {
    tell(button, false, "Failed", "The file could not be downloaded.");
    failed(new Unreachable());
    return;
  }
  if (response.ok) {
    const link = make("a", { href: URL.createObjectURL(blob), download: /filename="([^"]+)"/.exec(response.headers.get("content-disposition"))?.[1] ?? "traqq.csv" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    tell(button, true, "Downloaded", "Downloaded.");
    return;
  }
  tell(button, false, "Failed", "The file could not be downloaded.");
  if (response.status === 401) {
    failed(new Unauthorized());
    return;
  }
  let detail = `The server answered ${response.status}.`;
  try { ({ detail } = JSON.parse(await blob.text())); } catch { /* not ours: a proxy's page */ }
  showProblem(detail);
}

/** A word on the button for a moment, and a sentence for who does not see it. */
function tell(button, isDone, text, sentence) {
  const label = button.dataset.text ?? button.textContent;
  button.dataset.text = label;
  button.classList.toggle("done", isDone);
  setText(button, text);
  announce("");
  announce(sentence);
  clearTimeout(button.timer);
  button.timer = setTimeout(() => {
    setText(button, label);
    button.classList.remove("done");
  }, 1_600);
}

// ---- Loops ----------------------------------------------------------------------------------------------------------

let statsTimer;
let viewTimer;
let catalogAt = 0;
let isEmpty = null;
let wantsToken = false;

function isAway() { return reach.failures > 0 || wantsToken; }

function reached() {
  const wasAway = reach.failures > 0;
  reach.lastGood = Date.now();
  reach.failures = 0;
  setHidden($("unreachable"), true);
  document.querySelectorAll(".vitals, #board").forEach((node) => node.classList.remove("stale"));
  if (wasAway) {
    announce("traqq answers again.");
    scheduleView(0);
  }
}

function lost() {
  reach.failures += 1;
  const wait = Math.min(BACKOFF_MS_MAX, STATS_MS * 2 ** (reach.failures - 1));
  reach.retryAt = Date.now() + wait;
  clearTimeout(viewTimer);
  showHealth("bad", "Unreachable");
  showObstacle(null);
  document.querySelectorAll(".vitals, #board").forEach((node) => node.classList.add("stale"));
  showUnreachable();
  scheduleStats(wait);
}

function showUnreachable() {
  if (!reach.failures) return;
  const last = reach.lastGood === null ? "It has not answered since this page was opened." : `The last answer came ${ago(Date.now() - reach.lastGood)} ago; what you see is from then.`;
  const wait = Math.ceil((reach.retryAt - Date.now()) / 1000);
  setText($("unreachable-text"), `${last} ${wait > 0 ? `Trying again in ${wait} s.` : "Trying again now."}`);
  setHidden($("unreachable"), false);
}

function failed(error) {
  if (error instanceof Unreachable) lost();
  else if (error instanceof Unauthorized) askToken();
  else throw error;
}

function scheduleStats(wait) {
  clearTimeout(statsTimer);
  if (!document.hidden) statsTimer = setTimeout(statsTurn, wait);
}

async function statsTurn() {
  clearTimeout(statsTimer);
  const begun = Date.now();
  try {
    const stats = await pollStats();
    if (stats.ready === undefined) showObstacle(await pollReadiness());
    reached();
    scheduleStats(Math.max(0, STATS_MS - (Date.now() - begun)));
  } catch (error) {
    if (error instanceof Problem) {
      reached();
      showHealth("bad", "Trouble");
      showObstacle(error.message);
      scheduleStats(STATS_MS);
    } else {
      failed(error);
    }
  }
}

function scheduleView(wait) {
  clearTimeout(viewTimer);
  if (!document.hidden && !isAway()) viewTimer = setTimeout(viewTurn, wait);
}

/** Somebody chose something: what is on the screen is not the answer any more. */
function changed({ catalog: wantsCatalog = false } = {}) {
  if (wantsCatalog) catalogAt = 0;
  asked += 1;
  writeHash();
  showControls();
  showProblem(null);
  for (const id of ["chart", "kpis"]) $(id).classList.add("busy");
  $("ranking-rows").querySelectorAll("button").forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.label === state.value)));
  scheduleView(0);
}

async function viewTurn() {
  clearTimeout(viewTimer);
  const turn = asked;
  const begun = Date.now();
  let next = VIEW_MS;
  try {
    if (Date.now() - catalogAt > CATALOG_MS) {
      const wasEmpty = isEmpty;
      isEmpty = !(await loadCatalog());
      if (!isEmpty) catalogAt = Date.now();
      setHidden($("empty"), !isEmpty);
      setHidden($("board"), isEmpty);
      if (wasEmpty && !isEmpty) announce("The first event has been counted.");
      showControls();
    }
    if (!isEmpty && state.metric && turn === asked) {
      const view = await loadView();
      if (turn !== asked) return;
      showView(view);
      showProblem(null);
      settled();
    }
    // A question that takes long is asked less often.
    next = Math.max(VIEW_MS - (Date.now() - begun), 4 * (Date.now() - begun), 250);
    if (isEmpty) next = STATS_MS;
  } catch (error) {
    if (turn !== asked) return;
    if (!(error instanceof Problem)) {
      failed(error);
      return;
    }
    if (isUncounted(error)) {
      scheduleView(0);
      return;
    }
    showProblem(error.status === 503 ? `${error.message} Trying again.` : error.message);
    if (shown && keyOf(shown.metric) !== keyOf(state.metric)) setText($("title"), KINDS[state.metric.metric].title(state.metric));
  }
  scheduleView(next);
}

function settled() {
  for (const id of ["chart", "kpis"]) $(id).classList.remove("busy");
}

/** A kind of bucket that is not counted is struck out, and the view goes back to days, which always are. */
function isUncounted(error) {
  if (error.status !== 400 || state.bucket === "d" || !/is not counted/.test(error.message)) return false;
  const noun = nounOf(state.bucket);
  uncounted.set(state.bucket, `${noun[0].toUpperCase()}${noun.slice(1)}s are not counted here; buckets.${noun} = true in the configuration counts them from then on.`);
  state.bucket = "d";
  if (RANGES.find((known) => known.value === state.range).buckets) state.range = "1";
  changed();
  return true;
}

function askToken() {
  clearTimeout(viewTimer);
  clearTimeout(statsTimer);
  // Several questions may be refused at once.
  if (wantsToken) return;
  wantsToken = true;
  setHidden($("token-wrong"), !token());
  showHealth("warn", "Token needed");
  $("token-dialog").showModal();
}

function giveToken(event) {
  event.preventDefault();
  const text = $("token").value.trim();
  if (!text) return;
  keepToken(text);
  $("token").value = "";
  $("token-dialog").close();
  wantsToken = false;
  catalogAt = 0;
  statsTurn();
  scheduleView(0);
}

function start() {
  applyTheme();
  readHash();
  buildSegments("range", RANGES, chooseRange);
  buildSegments("bucket", BUCKETS, (value) => { state.bucket = value; changed(); });
  buildSegments("measure", MEASURES, (value) => { state.measure = value; changed(); });
  showControls();
  setText($("first-event"), `curl -X POST '${new URL("api/v1/events", document.baseURI)}' -H 'Content-Type: application/json' -d '{"event":"purchase","geo":"US","url":"/cart","amount":99.99}'`);

  $("theme").addEventListener("click", toggleTheme);
  systemIsDark.addEventListener("change", applyTheme);
  $("skip").addEventListener("click", (event) => {
    // The hash is the question's.
    event.preventDefault();
    ($("board").hidden ? $("empty") : $("main")).scrollIntoView();
    $("main").focus();
  });
  $("retry").addEventListener("click", () => { reach.retryAt = Date.now(); showUnreachable(); statsTurn(); });
  $("filter").addEventListener("input", showPicker);
  $("picker").addEventListener("keydown", walkPicker);
  $("picker-toggle").addEventListener("click", () => {
    const isOpen = $("picker-toggle").getAttribute("aria-expanded") !== "true";
    togglePicker(isOpen);
    if (isOpen) $("filter").focus();
  });
  $("metrics").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) chooseMetric(button.dataset.key);
  });
  for (const id of ["from", "to"]) $(id).addEventListener("change", chooseDates);
  $("limit").addEventListener("change", () => { state.limit = Number($("limit").value); changed(); });
  $("chip-clear").addEventListener("click", () => chooseValue(state.value));
  for (const id of ["ranking-rows", "legend"]) {
    $(id).addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) chooseValue(button.dataset.label);
    });
  }
  $("chart").addEventListener("keydown", walkChart);
  $("chart").addEventListener("blur", () => chart?.plot.setCursor({ left: -10, top: -10 }));
  $("numbers").addEventListener("toggle", () => { if ($("numbers").open && chart) showNumbers(chart.model); });
  $("copy-chart").addEventListener("click", () => { if (shown) copy(curlOf(shown.paths.base), $("copy-chart")); });
  $("copy-ranking").addEventListener("click", () => { if (shown?.paths.ranking) copy(curlOf(shown.paths.ranking), $("copy-ranking")); });
  $("download-chart").addEventListener("click", () => { if (shown) download(shown.paths.base, $("download-chart")); });
  $("download-ranking").addEventListener("click", () => { if (shown?.paths.ranking) download(shown.paths.ranking, $("download-ranking")); });
  for (const button of document.querySelectorAll("[data-copy]")) button.addEventListener("click", () => copy($(button.dataset.copy).textContent, button));
  $("token-form").addEventListener("submit", giveToken);
  $("token-dialog").addEventListener("cancel", (event) => event.preventDefault());

  new ResizeObserver(() => {
    const box = $("chart");
    if (chart && box.clientWidth) chart.plot.setSize({ width: box.clientWidth, height: box.clientHeight });
    if (spark && $("spark").clientWidth) spark.plot.setSize({ width: $("spark").clientWidth, height: $("spark").clientHeight });
  }).observe(document.body);
  addEventListener("hashchange", () => {
    readHash();
    catalogAt = 0;
    showPicker();
    changed();
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      clearTimeout(statsTimer);
      clearTimeout(viewTimer);
    } else if (!wantsToken) {
      statsTurn();
      scheduleView(0);
    }
  });
  setInterval(showUnreachable, 1_000);
  statsTurn();
  scheduleView(0);
}

applyTheme();
document.addEventListener("DOMContentLoaded", start);
