"use strict";
// Draws what /api/state says once a second. All text goes in as text, never as markup.

const history = new Map(); // endpoint -> [{time, rate, p95}]

function make(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  for (const child of children) node.append(child);
  return node;
}

function bar(share, className) {
  const outer = make("div", `bar ${className}`);
  const inner = make("i");
  inner.style.width = `${Math.round(share * 100)}%`;
  outer.append(inner);
  return outer;
}

function chart(points, value, label) {
  const top = Math.max(...points.map(value), 1e-9);
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 120 40");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", label);
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  const step = 120 / Math.max(1, points.length - 1);
  line.setAttribute("points", points.map((p, i) => `${i * step},${38 - (36 * value(p)) / top}`).join(" "));
  svg.append(line);
  return make("div", "", make("span", "soft", label), svg);
}

function remember(endpoint, now) {
  const seen = history.get(endpoint.name) ?? [];
  const former = seen.at(-1);
  const rate = former ? Math.max(0, endpoint.requests - former.requests) / Math.max(0.1, now - former.time) : 0;
  seen.push({ time: now, requests: endpoint.requests, rate, p95: endpoint.p95_ms });
  history.set(endpoint.name, seen.slice(-120));
  return history.get(endpoint.name);
}

function drawVersion(version) {
  const pids = version.replicas.map((r) => `${r.pid} ${r.state}`).join(", ") || "no replica";
  return make(
    "div", "row",
    make("span", "", `${version.role} `, make("b", "", version.ref)),
    bar(version.share, version.role === "new" ? "new" : ""),
    make("span", "soft", `${(version.share * 100).toFixed(0)} %, ${pids}`),
  );
}

function drawMetric(metric, threshold) {
  return make(
    "div", "row",
    make("span", "", `${metric.name}: ${metric.bad_new.toPrecision(3)} of ${metric.bad_all.toPrecision(3)} bad`),
    bar(Math.min(1, metric.assurance / 20), ""),
    make("span", "soft", `for it ${metric.assurance.toPrecision(3)} of 20, against ${metric.evidence.toPrecision(3)} of ${threshold}`),
  );
}

function drawEndpoint(endpoint, now) {
  const points = remember(endpoint, now);
  const card = make("article", "card");
  card.append(make("h3", "", endpoint.name, make("span", `state ${endpoint.state}`, endpoint.state), make("span", "soft", endpoint.url)));
  card.append(make("p", "soft", `${endpoint.requests} requests, ${endpoint.failed} failed, ${endpoint.waiting} waiting; median ${endpoint.p50_ms.toFixed(2)} ms, 95 % within ${endpoint.p95_ms.toFixed(2)} ms`));
  const rate = points.at(-1).rate;
  card.append(chart(points, (p) => p.rate, `requests per second: ${rate.toFixed(0)}`));
  card.append(chart(points, (p) => p.p95, `95 % within (ms): ${endpoint.p95_ms.toFixed(2)}`));
  for (const version of endpoint.versions) card.append(drawVersion(version));
  const rollout = endpoint.rollout;
  if (rollout) {
    card.append(make("h3", "", `rollout ${rollout.base} → ${rollout.to}`, make("span", "state", `${rollout.phase.replace("_", " ")}, ${rollout.verdict || "no evidence yet"}`)));
    for (const metric of rollout.metrics) card.append(drawMetric(metric, rollout.threshold));
    card.append(make("p", "soft", rollout.verdict_reason));
  } else if (endpoint.last) {
    const good = endpoint.last.outcome === "promoted" ? "good" : "bad";
    card.append(make("p", "", "last rollout: ", make("b", "", endpoint.last.to.ref), " ", make("span", good, endpoint.last.outcome.replace("_", " ")), `: ${endpoint.last.reason}`));
  }
  return card;
}

function reportOf(version) {
  const link = make("a", "", version);
  link.href = `/report?version=${encodeURIComponent(version)}`;
  link.title = "how it was trained";
  return link;
}

const when = (seconds) => new Date(seconds * 1000).toLocaleString();
const rows = (id, list, cells) => document.getElementById(id).replaceChildren(...list.map((item) => make("tr", "", ...cells(item).map((c) => make("td", "", c)))));
const get = async (path) => (await fetch(path)).json();

async function look() {
  const health = document.getElementById("health");
  try {
    const state = await get("/api/state");
    health.textContent = `gateway ${state.gateway}, controller ${state.controller}`;
    const empty = make("p", "soft", "nothing is deployed; begin with: argosy deploy model.onnx");
    const cards = state.endpoints.map((e) => drawEndpoint(e, state.time));
    document.getElementById("endpoints").replaceChildren(...(cards.length ? cards : [empty]));
  } catch {
    health.textContent = "the admin API does not answer";
  }
}

async function lookAtTheRest() {
  const [versions, log] = await Promise.all([get("/api/versions"), get("/api/log")]);
  rows("versions", versions, (v) => [v.has_report ? reportOf(v.version) : v.version, v.role, v.passed ? "passed" : "failed", Object.entries(v.metrics).slice(0, 1).map(([n, x]) => `${n} ${x.toPrecision(4)}`).join(" "), `${(v.size_bytes / 1000).toFixed(0)} kB`, when(v.created)]);
  rows("log", log, (e) => [String(e.seq), when(e.time), e.actor, e.kind, e.subject]);
}

look();
lookAtTheRest();
setInterval(look, 1000);
setInterval(lookAtTheRest, 5000);
