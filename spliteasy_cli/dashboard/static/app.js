// The dashboard's page. All text of others goes in by textContent or append: it is never read as HTML.

import { draw, element, short } from "./charts.js";

const PARTS = ["rates", "losses", "events", "jobs", "gate", "fleets", "workers", "shards", "devices", "sessions", "now"];
const COLORS = 8;
const state = { operate: "no", parts: {}, job: "" };
const byId = (id) => document.getElementById(id);

// Times and sizes ----------------------------------------------------------------------------------

const clock = (at) => new Date(at * 1000).toLocaleTimeString([], { hour12: false });

function ago(at) {
  if (at === null || at === undefined) return "never";
  const seconds = Math.max(0, state.parts.now.at - at);
  for (const [unit, length] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds >= length) return `${Math.floor(seconds / length)} ${unit} ago`;
  }
  return seconds < 3 ? "now" : `${Math.floor(seconds)} s ago`;
}

function span(seconds) {
  return ago(state.parts.now.at - seconds).replace(" ago", "");
}

// A colour for each name, the same for as long as the page is open.
function colors() {
  const taken = new Map();
  return (name) => {
    if (!taken.has(name)) taken.set(name, taken.size % COLORS);
    return taken.get(name);
  };
}
const colorOf = colors();
const workerColor = colors();

// Tables -------------------------------------------------------------------------------------------

/** Columns: {label, text(row), class, state(row), swatch(row), actions(row)}. Rows keep their elements, and so the focus. */
function table(id, columns, rows, keyOf) {
  const [head, body] = byId(id).children;
  if (!head.children.length) {
    const titles = columns.map((column) => element("th", { scope: "col", class: column.class || "" }, column.label));
    head.append(element("tr", {}, ...titles));
  }
  const old = new Map([...body.children].map((row) => [row.dataset.key, row]));
  const wanted = rows.map((row) => {
    const key = keyOf(row);
    const line = old.get(key) || element("tr", { "data-key": key }, ...columns.map(cell));
    columns.forEach((column, at) => fill(line.children[at], column, row));
    return line;
  });
  if (wanted.length !== body.children.length || wanted.some((line, at) => body.children[at] !== line)) {
    body.replaceChildren(...wanted);
  }
  byId(id).hidden = !rows.length;
  byId(id).nextElementSibling.hidden = Boolean(rows.length);
}

function cell(column) {
  const made = element("td", { class: column.class || "", "data-label": column.label });
  if (!column.actions) made.append(element("span"));
  return made;
}

function fill(box, column, row) {
  if (column.actions) return fillActions(box, column.actions(row));
  const inner = box.firstChild;
  const text = column.text(row);
  if (inner.textContent !== text) inner.textContent = text;
  if (column.state) {
    inner.className = "state";
    inner.dataset.state = column.state(row);
  }
  if (column.swatch) inner.className = `swatch c${column.swatch(row)}`;
}

function fillActions(box, actions) {
  const key = actions.map((each) => each.label).join();
  if (box.dataset.actions === key) return;
  box.dataset.actions = key;
  box.replaceChildren(...actions.map((each) => {
    const button = element("button", { type: "button", class: each.danger ? "danger" : "", "aria-label": each.name }, each.label);
    button.addEventListener("click", () => confirmed(each));
    return button;
  }));
}

// What is shown ------------------------------------------------------------------------------------

const none = "–";
const ofJob = (row) => !state.job || row.job === state.job;

const SESSIONS = [
  { label: "Session", class: "name", text: (row) => row.session },
  { label: "State", text: (row) => (row.state === "silent" ? `silent, ${ago(row.seen_at)}` : row.state), state: (row) => row.state },
  { label: "Step", class: "number", text: (row) => (row.total_steps === null ? String(row.step) : `${row.step} of ${row.total_steps}`) },
  { label: "Steps/s", class: "number", text: (row) => row.rate.toFixed(1) },
  { label: "Loss", class: "number", text: (row) => (row.loss === null ? none : short(row.loss)) },
  { label: "Worker", text: (row) => row.workers.join(", ") || none },
  { label: "Last fault", text: (row) => (row.fault === null ? none : `${row.fault}, ${ago(row.fault_at)}`) },
  { label: "", class: "actions", actions: sessionActions },
];

const WORKERS = [
  { label: "Worker", class: "name", text: (row) => row.worker, swatch: (row) => workerColor(row.worker) },
  { label: "State", text: (row) => row.state, state: (row) => row.state },
  { label: "Host", text: (row) => row.host },
  { label: "Sessions", class: "number", text: (row) => String(row.sessions) },
  { label: "Steps", class: "number", text: (row) => String(row.steps) },
  { label: "Up", class: "number", text: (row) => span(state.parts.now.at - row.started_at) },
];

const DEVICES = [
  { label: "Device", class: "name", text: (row) => row.device },
  { label: "Link", text: linkOf, state: linkOf },
  { label: "Last seen", text: (row) => ago(row.seen_at) },
  { label: "Version", text: (row) => row.version || none },
  { label: "Job", text: (row) => row.job || none },
  { label: "May train", text: (row) => (row.allowed === null ? "any job" : row.allowed.map(version).join(", ") || "nothing") },
  { label: "Step", class: "number", text: (row) => (row.step === null ? none : String(row.step)) },
  { label: "", class: "actions", actions: deviceActions },
];

const FLEETS = [
  { label: "Job", text: (row) => row.job },
  { label: "Mode", text: (row) => row.mode },
  { label: "Round", class: "number", text: (row) => String(row.round) },
  { label: "Began", text: (row) => ago(row.began_at) },
  { label: "In it", text: (row) => (row.paused ? "paused: too many void rounds" : row.in.join(", ") || "nobody") },
  { label: "Handed in", text: (row) => row.handed_in.join(", ") || "–" },
  { label: "Late", text: (row) => row.late.join(", ") || "–" },
  {
    label: "Accuracy",
    text: (row) => (row.accuracy ? `${row.accuracy.least.toFixed(3)} at least, median ${row.accuracy.median.toFixed(3)}` : "–"),
  },
];
const ROUNDS = [
  { label: "Job", text: (row) => row.job },
  { label: "Round", class: "number", text: (row) => String(row.round) },
  { label: "Took part", class: "number", text: (row) => (row.void ? "void" : String(row.took_part)) },
  { label: "Left out", text: (row) => row.absent.join(", ") || "–" },
  { label: "Samples", class: "number", text: (row) => String(row.samples) },
  { label: "Mean", text: (row) => row.mean || "not taken yet" },
  { label: "Ended", text: (row) => ago(row.closed_at) },
];
const JOBS = [
  { label: "Job", class: "name", text: (row) => row.job },
  { label: "Newest version", text: (row) => row.newest.slice(0, 12) },
  { label: "Gate", text: (row) => row.gate },
];

function version(job) {
  const [name, digest] = job.split("@");
  return digest ? `${name}@${digest.slice(0, 12)}` : name;
}

function linkOf(row) {
  if (row.enrolled === null) return "no account known";
  if (!row.enrolled) return "revoked";
  return row.connected ? "connected" : "away";
}

function sessionActions(row) {
  if (state.operate !== "yes" || row.state === "finished") return [];
  if (row.state === "paused") {
    const what = "Its device goes on within seconds, from the step where it was held.";
    return [{ label: "Resume", name: `Resume ${row.session}`, title: `Resume ${row.session}?`, what, path: "resume", body: { session: row.session } }];
  }
  const what = "The current step ends, and no other begins until you resume it. Nothing is lost.";
  return [{ label: "Pause", name: `Pause ${row.session}`, title: `Pause ${row.session}?`, what, path: "pause", body: { session: row.session } }];
}

function deviceActions(row) {
  if (state.operate !== "yes" || !row.enrolled || !state.parts.now.revoke) return [];
  const what = "Its account ends and its connections are closed at once. It can't come back until it is enrolled again.";
  return [{ label: "Revoke", name: `Revoke ${row.device}`, title: `Revoke ${row.device}?`, what, path: "revoke", body: { device: row.device }, danger: true }];
}

function totals(parts) {
  const sessions = parts.sessions.filter(ofJob);
  const all = state.job ? parts.now.by_job[state.job] : parts.now.sessions;
  const waiting = [parts.shards.front, ...parts.shards.shards.map((each) => each.waiting)];
  const rows = [
    ["Training", `${sessions.filter((each) => each.state === "training").length} of ${all || 0}`],
    ["Steps/s", sessions.reduce((sum, each) => sum + each.rate, 0).toFixed(1)],
    ["Workers", String(parts.workers.length), !parts.workers.length],
    ["Devices", String(parts.devices.length)],
    ["Waiting", String(waiting.reduce((sum, each) => sum + (each || 0), 0))],
    ["Dead letters", String(parts.shards.dead || 0), parts.shards.dead > 0],
  ];
  const made = rows.map(([name, value, bad]) => element("div", bad ? { class: "bad" } : {}, element("dt", {}, name), element("dd", {}, value)));
  byId("totals").replaceChildren(...made);
}

function shards(parts) {
  const made = parts.shards.shards.map((each) => {
    const number = String(each.shard).padStart(2, "0");
    const workers = each.workers.join(", ");
    const label = `shard ${number}: ${workers || "no active session"}, ${each.waiting || 0} waiting`;
    const classes = [each.waiting ? "busy" : "", each.workers.length ? `c${workerColor(each.workers[0])}` : ""];
    const small = element("small", {}, each.waiting ? `${each.waiting} waiting` : each.consumers ? "" : "no reader");
    return element("li", { class: classes.join(" ").trim(), title: label, "aria-label": label }, number, small);
  });
  byId("shards").replaceChildren(...made);
}

function events(parts) {
  const made = parts.events.map((each) => {
    const when = element("time", { datetime: new Date(each.at * 1000).toISOString() }, clock(each.at));
    const what = element("span", {}, each.subject ? `${each.subject} ${each.text}` : each.text);
    return element("li", { "data-kind": each.kind }, when, element("b", {}, each.kind), what);
  });
  byId("events").replaceChildren(...made);
}

function charts(parts) {
  draw(byId("rates"), [{ name: "", color: 0, points: parts.rates }], {
    what: "Steps a second over time", showX: clock, none: "Nothing to draw yet.", fromZero: true,
  });
  const newest = parts.sessions.filter(ofJob).sort((one, other) => other.seen_at - one.seen_at);
  const curves = newest.map((each) => each.session).filter((name) => (parts.losses[name] || []).length > 1).slice(0, COLORS).sort();
  draw(byId("losses"), curves.map((name) => ({ name, color: colorOf(name), points: parts.losses[name] })), {
    what: "Loss by step of each session", showX: (step) => String(Math.round(step)),
    none: "No losses: they stay on the devices unless the job says share_loss = true.",
  });
}

function jobs(parts) {
  const names = Object.keys(parts.jobs);
  const choice = byId("job");
  byId("job-choice").hidden = names.length < 2;
  if (choice.dataset.names === names.join()) return;
  choice.dataset.names = names.join();
  choice.replaceChildren(element("option", { value: "" }, "all"), ...names.map((name) => element("option", { value: name }, name)));
  choice.value = state.job = names.includes(state.job) ? state.job : "";
}

function show() {
  const { parts } = state;
  byId("log-in").hidden = state.operate !== "with-token";
  byId("log-out").hidden = state.operate !== "yes";
  if (!parts.now) return;
  byId("fault").hidden = !parts.now.fault;
  byId("fault").textContent = parts.now.fault ? `${parts.now.fault}. What is shown is from before.` : "";
  events(parts);
  if (!parts.sessions) return;
  jobs(parts);
  totals(parts);
  table("sessions", SESSIONS, parts.sessions.filter(ofJob), (row) => row.session);
  table("workers", WORKERS, parts.workers, (row) => row.worker);
  table("devices", DEVICES, parts.devices, (row) => row.device);
  table("jobs", JOBS, Object.entries(parts.gate).map(([job, gate]) => ({ job, gate, newest: parts.jobs[job][0] })).filter(ofJob), (row) => row.job);
  const fleets = (parts.fleets || []).filter(ofJob);
  byId("fleets-section").hidden = !fleets.length;
  table("fleets", FLEETS, fleets, (row) => row.job);
  table("rounds", ROUNDS, fleets.flatMap((fleet) => fleet.rounds.map((each) => ({ ...each, job: fleet.job }))), (row) => `${row.job}/${row.round}`);
  shards(parts);
  charts(parts);
  document.title = `SplitEasy: ${parts.sessions.filter((each) => each.state === "training").length} training`;
}

let due = false;
function soon() {
  if (due) return;
  due = true;
  requestAnimationFrame(() => {
    due = false;
    show();
  });
}

// The server ---------------------------------------------------------------------------------------

function say(kind, text) {
  if (byId("status").textContent === text) return;
  byId("status").dataset.state = kind;
  byId("status").textContent = text;
}

function follow() {
  const source = new EventSource("/api/events");
  for (const part of PARTS) {
    source.addEventListener(part, (event) => {
      state.parts[part] = JSON.parse(event.data);
      say("live", "live");
      soon();
    });
  }
  source.addEventListener("error", () => {
    say("lost", "the dashboard does not answer, trying again");
    if (source.readyState === EventSource.CLOSED) setTimeout(follow, 5000);
  });
}

async function load() {
  try {
    const answer = await fetch("/api/state");
    Object.assign(state, await answer.json());
    say("live", "live");
    show();
  } catch {
    say("lost", "the dashboard does not answer, trying again");
  }
}

async function post(path, body) {
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const answer = await fetch(`/api/${path}`, options);
  if (!answer.ok) throw new Error((await answer.json()).error);
}

// Dialogs ------------------------------------------------------------------------------------------

/** Open a dialog; `act` runs on its button, and what it throws is shown in it. */
function ask(dialog, act) {
  const [wrong, go] = [dialog.querySelector(".wrong"), dialog.querySelector(".go")];
  wrong.textContent = "";
  dialog.querySelector(".cancel").onclick = () => dialog.close();
  dialog.querySelector("form").onsubmit = async (event) => {
    event.preventDefault();
    go.disabled = true;
    try {
      await act();
      dialog.close();
    } catch (error) {
      wrong.textContent = error.message;
    } finally {
      go.disabled = false;
    }
  };
  dialog.showModal();
}

function confirmed(action) {
  const dialog = byId("confirm");
  byId("confirm-title").textContent = action.title;
  dialog.querySelector(".what").textContent = action.what;
  dialog.querySelector(".go").textContent = action.label;
  dialog.querySelector(".go").classList.toggle("danger", Boolean(action.danger));
  ask(dialog, () => post(action.path, action.body));
}

byId("log-in").addEventListener("click", () => {
  byId("token").value = "";
  ask(byId("login"), async () => {
    await post("login", { token: byId("token").value });
    byId("token").value = "";
    await load();
  });
});
byId("log-out").addEventListener("click", async () => {
  await post("logout", {});
  await load();
});
byId("job").addEventListener("change", (event) => {
  state.job = event.target.value;
  show();
});
new ResizeObserver(soon).observe(byId("rates"));
await load();
follow();
