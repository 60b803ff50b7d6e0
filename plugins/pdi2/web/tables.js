// The columns of the lists, and the dialog of a team.

import { get } from "./api.js";
import { counted, el, fold, link, memory, number, pairs, speed, visible, visibleLines } from "./dom.js";
import { row } from "./state.js";
import { duration, seconds, time } from "./time.js";

const LONG = 300; // characters
const badge = (status) => el("span", { class: `badge ${status}` }, status.replace("_", " "));
const distinctId = (text) => el("bdi", { class: "id" }, text === "" ? '""' : visible(text));

// ClickHouse's name for the error comes first; the whole sentence is in the title and in the dialog.
export function causeFirst(error) {
  const found = error.match(/ClickHouse error \d+ \(\w+\).*|(ClickHouse|Postgres) does not answer.*/);
  return visible(found ? found[0] : error.split("\n")[0]);
}

export const teams = (open) => ({
  path: "teams",
  caption: "Teams of the migration. Copied counts one row per distinct_id; the old table may have several.",
  empty: "No team matches.",
  sort: "rows",
  key: (team) => team.team_id,
  columns: [
    {
      title: "Team",
      sort: "team_id",
      cell: (team) => el("button", { type: "button", class: "plain", onclick: () => open(team.team_id), "aria-label": `Team ${team.team_id}, details` }, String(team.team_id)),
    },
    { title: "Status", sort: "status", cell: (team) => [badge(team.status), team.error && el("span", { class: "error", title: visible(team.error) }, causeFirst(team.error))] },
    { title: "Rows", sort: "rows", numeric: true, cell: (team) => number(team.rows_source) },
    { title: "Copied", sort: "copied", numeric: true, cell: (team) => number(team.rows_copied) },
    { title: "Speed", sort: "speed", numeric: true, cell: (team) => speed(team.speed) },
    { title: "Tries", sort: "attempts", numeric: true, cell: (team) => number(team.attempts) },
    { title: "Peak memory", sort: "memory", numeric: true, cell: (team) => memory(team.peak_memory) },
    { title: "Verified", sort: "verified", cell: (team) => time(team.verified_at) },
    { title: "Findings", sort: "findings", numeric: true, cell: (team) => (team.remaining ? el("span", { class: "open" }, `${number(team.findings)}, ${number(team.remaining)} open`) : number(team.findings)) },
    { title: "Logs", cell: (team) => logs(team) },
  ],
});

const logs = (team) =>
  team.logs
    ? el("span", { class: "logs" }, ...["copy", "verify"].map((task) => link(team.logs[task], task, { "aria-label": `Log of ${task}, team ${team.team_id}` })))
    : "–";

export const findings = {
  path: "findings",
  caption: "Ids on which the tables and Postgres disagreed",
  empty: "No finding.",
  key: (found) => `${found.team_id} ${found.kind} ${found.distinct_id}`,
  columns: [
    { title: "distinct_id", cell: (found) => distinctId(found.distinct_id) },
    { title: "Team", numeric: true, cell: (found) => String(found.team_id) },
    { title: "Kind", cell: (found) => badge(found.kind) },
    { title: "Old table", cell: (found) => answer(found.old) },
    { title: "New table", cell: (found) => answer(found.clickhouse) },
    { title: "Postgres", cell: (found) => answer(found.postgres) },
    { title: "What was done", cell: (found) => [found.action ? `${visible(found.action)}: ` : "", el("span", { class: found.repaired ? "" : "open" }, found.repaired ? "repaired" : "open")] },
    { title: "Found", cell: (found) => time(found.found_at) },
  ],
};

function answer(row) {
  if (!row) return "no row";
  const who = row.is_deleted ? "deleted" : el("bdi", { class: "id" }, visible(String(row.person_id)));
  return [who, row.version === undefined ? null : el("span", { class: "quiet" }, ` version ${row.version}`)];
}

export const events = {
  path: "events",
  caption: "What happened, and who did it; the newest first",
  empty: "Nothing has happened yet.",
  key: (event) => event.id,
  columns: [
    { title: "When", cell: (event) => time(event.at) },
    { title: "Who", cell: (event) => visible(event.actor) },
    { title: "What", cell: (event) => sentence(event) },
  ],
};

// An engine's error may be a screenful, and an outage writes it once for each task.
function sentence({ id, text, until }) {
  const whole = el("span", { class: "sentence" }, visibleLines(text), until ? " " : "", until ? time(until) : "", until ? "." : "");
  return text.length > LONG ? fold(`event ${id}`, `${visible(text.slice(0, LONG / 2))}…`, whole) : whole;
}

export const runs = {
  path: "runs",
  caption: "Runs of the migration, its rollback and its audit; the newest first",
  empty: "No run yet.",
  key: (run) => run.airflow_run,
  columns: [
    { title: "Started", cell: (run) => time(run.started_at) },
    { title: "Kind", cell: (run) => run.kind },
    { title: "Outcome", cell: (run) => el("span", { class: `badge ${OUTCOMES[run.outcome] ?? ""}` }, run.outcome ?? "left no report") },
    { title: "Started by", cell: (run) => visible(run.actor) },
    { title: "Took", cell: (run) => (run.ended_at && run.started_at ? duration(seconds(run.started_at, run.ended_at)) : "–") },
    { title: "Certificate", cell: (run) => (run.certificate ? certificate(run.certificate) : "–") },
    { title: "Airflow", cell: (run) => (run.link ? link(run.link, "Open the run", { "aria-label": `Open the run ${run.run_id}` }) : "–") },
  ],
};

const OUTCOMES = {
  completed: "verified",
  "trial passed": "verified",
  "no drift": "verified",
  failed: "failed",
  "refused: nothing was changed": "failed",
  "drift found": "failed",
  running: "copying",
};

export const certificate = (run) =>
  el(
    "span",
    { class: "links" },
    link(`certificates/${run}`, "Open"),
    link(`certificates/${run}?download=true`, "Download"),
    link(`certificates/${run}?form=json&download=true`, "JSON"),
  );

export async function showTeam(dialog, body, teamId) {
  const [{ team, slices, events: happened }, found] = await Promise.all([get(`teams/${teamId}`), get("findings", { team_id: teamId, limit: 20 })]);
  dialog.querySelector("h2").textContent = `Team ${teamId}`;
  const facts = {
    Status: badge(team.status),
    "Rows in the old table": number(team.rows_source),
    Copied: `${counted(team.rows_copied, "row")} in ${counted(team.slices_done, "slice")}`,
    "Copying took": team.copy_seconds ? `${duration(team.copy_seconds)}, ${speed(team.rows_copied / team.copy_seconds)}` : "–",
    "Verifying took": team.verify_seconds ? duration(team.verify_seconds) : "–",
    Tries: number(team.attempts),
    "Peak memory": memory(team.peak_memory),
    "Memory limit per statement": team.memory_budget ? `${memory(team.memory_budget)}, after the server ran short` : "as the run's parameters say",
    "Copied at": time(team.copied_at),
    "Verified at": time(team.verified_at),
    "Ids that the old table's reader got wrong": team.verified_at ? `about ${number(team.old_differs)}` : "–",
    Logs: logs(team),
  };
  body.replaceChildren(
    ...(team.error ? [el("pre", { class: "error", tabindex: "0", role: "region", "aria-label": "Error" }, visibleLines(team.error)), row(team.runbook, "team")] : []).filter(Boolean),
    el("dl", { class: "facts" }, ...pairs(facts)),
    table(`Findings (${number(found.total)})`, findings.columns.filter((column) => column.title !== "Team"), found.lines),
    table("Newest slices", SLICES, slices),
    table("Newest events", events.columns, happened),
  );
  if (!dialog.open) dialog.showModal();
}

const SLICES = [
  { title: "Finished", cell: (slice) => time(slice.finished_at) },
  { title: "Rows", numeric: true, cell: (slice) => number(slice.rows_copied) },
  { title: "Took", numeric: true, cell: (slice) => `${slice.seconds.toFixed(2)} s` },
  { title: "Peak memory", numeric: true, cell: (slice) => memory(slice.peak_memory) },
];

function table(caption, columns, lines) {
  if (!lines.length) return el("p", { class: "quiet" }, `${caption}: none`);
  const row = (line) => el("tr", {}, ...columns.map((column) => el("td", { class: column.numeric && "numeric" }, ...[column.cell(line)].flat())));
  return el(
    "div",
    { class: "scroll", role: "region", tabindex: "0", "aria-label": caption },
    el("table", {}, el("caption", {}, caption), el("thead", {}, el("tr", {}, ...columns.map((column) => el("th", { scope: "col", class: column.numeric && "numeric" }, column.title)))), el("tbody", {}, ...lines.map(row))),
  );
}
