// The page: asks for the status every few seconds, and for the lists when something has changed.

import { get, post } from "./api.js";
import { throughput } from "./chart.js";
import { counted, el, followTheme, link, memory, ms, number, pairs, percent, say, speed, visible } from "./dom.js";
import { List } from "./list.js";
import { other, verdict, waits } from "./state.js";
import { certificate, events, findings, runs, showTeam, teams } from "./tables.js";
import { dayOf, duration, followZone, seconds, time, zoneName } from "./time.js";

const LOOK_EVERY = 2000;
const LOOK_AT_REST_EVERY = 15000;
const $ = (id) => document.getElementById(id);
const asked = new URLSearchParams(location.search.replaceAll("+", "%2B")); // Airflow 3.1 gives a run's id as it is
const shownIn = asked.get("dag");
const ofRun = asked.get("run");

const lists = [
  new List($("teams"), teams((teamId) => showTeam($("team"), $("team-body"), teamId).catch(trouble))),
  new List($("findings"), findings),
  new List($("events"), events),
];
const listOfRuns = new List($("runs"), runs);
lists[0].filterBy($("teams-filter"));
lists[1].filterBy($("findings-filter"));
lists[2].filterBy($("events-filter"));

function show(seen) {
  const { run } = seen;
  say($("verdict"), verdict(seen));
  $("migration").hidden = !run;
  say($("phase"), phase(seen));
  say($("run"), ...about(seen));
  say($("waits"), ...waits(seen));
  say($("other"), ...other(seen.other));
  $("other").hidden = !seen.other;
  $("runs-section").hidden = false;
  actions(seen);
  if (!run) return;
  progress(seen);
  say($("throughput"), ...throughput(seen.throughput));
  say($("switch"), ...pairs(switches(seen)));
  say($("findings-sum"), sumOfFindings(seen.findings));
  // Hidden for a run that another one followed, because the ledger has gone on with its teams.
  for (const id of ["throughput-section", "teams-section", "findings-section", "events-section"]) $(id).hidden = !run.newest;
  if (!seen.steps.length) $("throughput-section").hidden = true; // of a rollback
}

const going = (other) => ["queued", "running"].includes(other?.state);
const phase = (seen) => (seen.run ? seen.phase : ofRun ? `This run ${seen.airflow.repairs ? "is an audit with repair" : did(seen.other)}` : seen.other ? "No migration has changed anything yet" : "No migration has begun");
const did = (other) => (other?.old_writes_end ? "only ends old writes" : going(other) ? "has changed nothing yet" : "changed nothing");

function about({ run, alive, now, links, airflow }) {
  const zone = `Times are in ${zoneName()}.`;
  if (!run) return [zone];
  const took = run.ended_at || alive ? `, ${duration(seconds(run.started_at, run.ended_at ?? now))}` : "";
  const state = run.outcome ?? (alive ? (airflow.unknown ? "not ended" : "running") : "stopped without a report");
  const followed = run.newest ? "" : `Another run followed this one${run.certificate ? "; what it left is in its certificate" : ""}. `;
  return ["Started by ", visible(run.actor), " at ", time(run.started_at), `${took}, ${state}. `, followed, link(links.run, "Open the run"), " ", el("span", { class: "id" }, visible(run.airflow_run)), `. ${zone}`];
}

function actions({ user, paused, links, waits: reasons = [], run, alive, airflow, switch: now }) {
  const made = [];
  if ((run?.newest || airflow.old_writes_end) && user.may_act) {
    if (paused) made.push(el("button", { type: "button", id: "resume", class: "main", onclick: () => act("resume") }, "Resume"));
    else if (alive || airflow.old_writes_end) made.push(el("button", { type: "button", id: "pause", onclick: () => act("pause") }, "Pause after the current slices"));
    if (reasons.some((wait) => wait.about === "approval")) made.push(link(links.approval, "Approve the switch", { class: "main" }));
    if (now.reads === "new" && now.writes === "both") made.push(link(links.rollback, "Roll back"));
    if (airflow.pool && alive) made.push(link(links.pool, `Copies at once: ${airflow.pool.slots}`));
  }
  if (now.by_somebody_else || now.wrong) made.push(link(links.audit, user.may_act ? "Trigger the audit" : "Open the audit"));
  made.push(link(links.dag, user.may_act ? "Trigger the DAG" : "Open the DAG"));
  const words = (nodes) => [...nodes].map((child) => `${child.textContent} ${child.href ?? ""}`).join();
  const before = [...$("actions").children];
  if (words(before) === words(made)) return;
  const focused = before.indexOf(document.activeElement); // Pause, which becomes Resume
  $("actions").replaceChildren(...made);
  if (focused >= 0) made[Math.min(focused, made.length - 1)].focus();
}

async function act(what) {
  try {
    await post(what);
  } catch (error) {
    trouble(error);
  }
  look();
}

function progress(seen) {
  const { rows, teams: byStatus, share, speed: rate, seconds_left: left, copy, steps, findings: kinds, report, alive, last } = seen;
  $("progress-section").hidden = !steps.length; // of a rollback
  for (const bar of document.querySelectorAll(".bar")) bar.hidden = !rows;
  if (rows) {
    const known = share !== null;
    for (const kind of ["copied", "verified"]) {
      $(kind).value = known && rows.source ? rows[kind] / rows.source : share === 1 ? 1 : 0;
      say($(`${kind}-rows`), known ? `${number(rows[kind])} of ${counted(rows.source, "row")}` : "not planned yet");
    }
    const all = Object.values(byStatus).reduce((sum, count) => sum + count, 0);
    say($("numbers"), ...pairs({
      "Work done": percent(share),
      "Teams verified": known ? `${number(byStatus.verified ?? 0)} of ${number(all)}` : "–",
      "Teams failed": known ? number(byStatus.failed ?? 0) : "–",
      "Copy speed": speed(rate.copied),
      "Verification speed": speed(rate.verified),
      "Time left": alive && left !== null && !seen.airflow.unanswered ? `about ${duration(left)}` : "–",
      "Last row copied": time(last.copied),
      "Replication lag": seen.lag ? [lagged(seen.lag), " at ", time(seen.lag.at)] : "–",
      "Peak memory": known ? memory(copy.peak_memory) : "–",
      Slices: known ? number(copy.slices) : "–",
      "Open findings": number(Object.values(kinds).reduce((sum, kind) => sum + kind.remaining, 0)),
    }));
  } else {
    say($("numbers"), ...(report ? pairs({
      "Teams verified": `${number(report.verified)} of ${number(report.teams)}`,
      "Rows copied": number(report.rows_copied),
      Slices: number(report.slices),
      "Peak memory": memory(report.peak_memory),
    }) : []));
  }
  const words = { done: "done", now: alive && seen.airflow.unanswered ? "stuck" : "running", waiting: "pending", skipped: "skipped", rejected: "rejected", stopped: "not done" };
  say($("steps"), ...steps.map((step, place) =>
    el("li", { class: step.state, "aria-current": step.state === "now" ? "step" : null }, el("b", {}, step.title), el("span", {}, step.at ? time(step.at) : words[step.state]), ...took(step, steps.slice(0, place)), ...counts(step, seen)),
  ));
}

// Between two looks, so it is known only within limits.
const lagged = ({ seconds: lag, waiting }) => (waiting ? `over ${duration(lag)}` : lag < 1 ? "under 1 s" : `at most ${duration(Math.ceil(lag))}`);

// Teams are copied and verified side by side, so verifying begins where copying does.
function took({ at }, earlier) {
  const before = at && earlier.findLast((step) => step.at && step.task !== "team.copy");
  const lasted = before ? seconds(before.at, at) : 0;
  return lasted >= 1 ? [el("span", {}, `took ${duration(lasted)}`)] : [];
}

// Airflow's count of a step's tasks, if there is more than one.
function counts({ task, state }, { airflow: { states = {} } }) {
  const found = Object.entries(states[task] ?? {}).filter(([name]) => name !== "success" && name !== "skipped");
  if (state !== "now" || !found.length) return [];
  return [el("span", {}, found.map(([name, count]) => `${number(count)} ${name.replaceAll("_", " ")}`).join(", "))];
}

function switches({ switch: now, run, rows, alive, read_times: reads, copy, certificate: certified, replicas }) {
  const old = reads && `${ms(reads.read_old)} from the old table, ${ms(reads.read_new)} from the new one`;
  const given = Object.entries(run.settings).filter(([, value]) => value !== null);
  return {
    "The application reads": now.reads ? `the ${now.reads} table` : now.status === "COMPLETED_SUCCESSFULLY" ? "the new table" : "the old table",
    "The application writes": now.writes === "both" ? "both tables" : now.writes ? `the ${now.writes} table` : "both tables, until the migration is complete",
    "PostHog's migration row": now.status ? `${now.status.toLowerCase().replaceAll("_", " ")}, ${now.progress} %` : "not there",
    "Switched at": time(now.status === "COMPLETED_SUCCESSFULLY" ? now.finished_at : null),
    "Read speed-up": reads ? [el("b", {}, `${(reads.read_old / reads.read_new).toFixed(1)} times as fast`), ` for ${counted(reads.ids, "id")} of team ${reads.team_id}: ${old}`] : alive ? "measured when the teams are certified" : null,
    "Ids the old table gets wrong": rows?.verified ? `about ${number(copy.old_differs)}` : null,
    Certified: certified ? `${counted(certified.teams, "team")}, ${counted(certified.rows_copied, "row")} copied, one per distinct_id${certified.trial ? ", a trial" : ""}` : alive ? "not yet" : "no",
    Certificate: run.certificate ? certificate(run.id) : alive ? "written when the run ends" : "none",
    Replicas: replicas ? [el("ul", { class: "parameters" }, ...replicas.each.map(({ name, has }) => el("li", {}, visible(name), `: ${has}`))), "as of ", time(replicas.at)] : null,
    Parameters: given.length ? el("ul", { class: "parameters" }, ...given.map(([name, value]) => el("li", {}, `${name}: ${setting(value)}`))) : null,
  };
}

const setting = (value) => (Array.isArray(value) ? value.join(", ") : typeof value === "boolean" ? (value ? "on" : "off") : typeof value === "number" ? number(value) : String(value));

function sumOfFindings(kinds) {
  const words = Object.entries(kinds).map(([kind, { repaired, remaining }]) => `${kind.replace("_", " ")}: ${number(repaired)} repaired, ${number(remaining)} open`);
  return words.length ? words.join("; ") : "None so far.";
}

// What was last seen stays, dimmed, with its time.
let seenAt;
function trouble(error) {
  $("trouble").hidden = !error;
  document.body.classList.toggle("stale", Boolean(error && seenAt));
  if (error && !seenAt) say($("phase"), "Nothing is known yet");
  say($("trouble"), ...(error ? [error.message, ...(seenAt ? [" Everything below is as of ", time(seenAt, { named: true }), "."] : [])] : []));
}

let timer;
let last;
async function look() {
  clearTimeout(timer);
  let atRest = document.hidden;
  try {
    const seen = await get("status", ofRun ? { dag: shownIn, run: ofRun } : {});
    show(seen);
    const { now, seconds_left, speed: rate, throughput: chart, ...facts } = seen;
    seenAt = now;
    const words = JSON.stringify([dayOf(Date.now()), facts]);
    if (words !== last) await Promise.all([...(seen.run?.newest ? lists : []), listOfRuns].map((list) => list.refresh()));
    last = words;
    trouble(null);
    atRest ||= !(seen.alive || going(seen.other));
  } catch (error) {
    trouble(error);
  }
  timer = setTimeout(look, atRest ? LOOK_AT_REST_EVERY : LOOK_EVERY);
}

document.addEventListener("visibilitychange", () => document.hidden || look());
followTheme();
followZone();
// Airflow shows this tab on every DAG. On a DAG that is not part of the migration, it says so and does nothing.
if (!shownIn || shownIn.endsWith("_person_distinct_id2")) look();
else {
  $("verdict").hidden = true;
  say($("phase"), "This tab is about another DAG");
  say($("run"), "It shows the migration of fill_person_distinct_id2, and has nothing to say about ", visible(shownIn), ".");
}
