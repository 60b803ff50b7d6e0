// The page: asks for the status every few seconds, and for the lists when something has changed.

import { get, post } from "./api.js";
import { throughput } from "./chart.js";
import { compact, duration, el, followTheme, link, memory, ms, number, percent, say, speed, time, visible, visibleLines } from "./dom.js";
import { List } from "./list.js";
import { events, findings, pairs, showTeam, teams } from "./tables.js";

const LOOK_EVERY = 2000;
const LOOK_AT_REST_EVERY = 15000;
const $ = (id) => document.getElementById(id);

const lists = [
  new List($("teams"), teams((teamId) => showTeam($("team"), $("team-body"), teamId).catch(trouble))),
  new List($("findings"), findings),
  new List($("events"), events),
];
lists[0].filterBy($("teams-filter"));
lists[1].filterBy($("findings-filter"));

function show(seen) {
  const { run } = seen;
  $("migration").hidden = !run;
  say($("phase"), run ? seen.phase : "No migration has begun");
  say($("run"), ...(run ? about(seen) : ["Trigger the DAG to begin; try dry_run first, which writes nothing."]));
  say($("waits"), ...waits(seen));
  actions(seen);
  if (!run) return;
  progress(seen);
  say($("throughput"), ...throughput(seen.throughput));
  say($("switch"), ...pairs(switches(seen)));
  say($("findings-sum"), sumOfFindings(seen.findings));
}

function about({ run, now, airflow, links }) {
  const took = (new Date(run.ended_at ?? now) - new Date(run.started_at)) / 1000;
  const state = run.outcome ?? (airflow.state && airflow.state !== "running" ? `Airflow says ${airflow.state}` : "at work");
  return ["Begun by ", visible(run.actor), " at ", time(run.started_at), `, ${duration(took)}, ${state}. `, link(links.run, "Open the run")];
}

function waits({ run, waits: reasons, paused, failure, now, airflow, phase }) {
  if (!run) return [];
  const told = [];
  if (paused) told.push(el("li", {}, "Paused by ", visible(paused.actor), " since ", time(paused.at), ". What is at work ends with its slice; nothing else begins until somebody resumes."));
  for (const wait of reasons) {
    const left = wait.until && (new Date(wait.until) - new Date(now)) / 1000;
    told.push(el("li", {}, visibleLines(wait.text), left > 0 ? ` ${duration(left)} left, until ` : "", left > 0 ? time(wait.until) : ""));
  }
  if (airflow.pool?.slots === 0 && !run.ended_at) told.push(el("li", {}, "The pool of the copies has no slots: no copy begins until it has."));
  if (failure && phase.startsWith("Failed")) told.push(el("li", { class: "bad" }, visibleLines(failure.error)));
  else if (!run.ended_at && airflow.state === "failed") told.push(el("li", { class: "bad" }, "Airflow says that this run failed, and it left no report: it was killed or marked. What is finished is kept; trigger the DAG again."));
  return told;
}

function actions({ user, paused, links, steps, run, airflow, switch: now }) {
  const made = [];
  if (run && user.may_act) {
    if (paused) made.push(el("button", { type: "button", id: "resume", class: "main", onclick: () => act("resume") }, "Resume"));
    else if (!run.ended_at) made.push(el("button", { type: "button", id: "pause", onclick: () => act("pause") }, "Pause after the current slices"));
    if (steps?.some((step) => step.task === "approve" && step.state === "now")) made.push(link(links.approval, "Approve the switch", { class: "main" }));
    if (now.reads === "new" && now.writes === "both") made.push(link(links.rollback, "Roll back"));
    if (airflow.pool && !run.ended_at) made.push(link(links.pool, `Copies at once: ${airflow.pool.slots}`));
  }
  made.push(link(links.dag, user.may_act ? "Trigger the DAG" : "Open the DAG"));
  const old = [...$("actions").children].map((child) => child.textContent).join();
  if (old !== made.map((child) => child.textContent).join()) $("actions").replaceChildren(...made);
}

async function act(what) {
  try {
    await post(what);
  } catch (error) {
    trouble(error);
  }
  look();
}

function progress({ rows, teams: byStatus, speed: rate, seconds_left: left, copy, steps, findings: kinds }) {
  const share = rows.source ? rows.done / rows.source : 1;
  const all = Object.values(byStatus).reduce((sum, count) => sum + count, 0);
  $("bar").value = share;
  say($("share"), percent(share));
  const numbers = {
    Rows: `${number(rows.done)} of ${number(rows.source)}`,
    "Teams verified": `${number(byStatus.verified ?? 0)} of ${number(all)}`,
    "Teams failed": number(byStatus.failed ?? 0),
    Speed: rate ? `${compact(rate)} rows/s` : "–",
    "Time left": share < 1 ? duration(left) : "–",
    "Peak memory": memory(copy.peak_memory),
    Slices: number(copy.slices),
    "Findings left": number(Object.values(kinds).reduce((sum, kind) => sum + kind.remaining, 0)),
  };
  say($("numbers"), ...pairs(numbers));
  const words = { done: "done", now: "at work", waiting: "to come", skipped: "skipped", stopped: "not reached" };
  say($("steps"), ...steps.map((step) =>
    el("li", { class: step.state, "aria-current": step.state === "now" ? "step" : null }, el("b", {}, step.title), el("span", {}, step.at ? time(step.at) : words[step.state])),
  ));
}

function switches({ switch: now, run, read_times: reads, copy, certificate }) {
  const old = reads && `${ms(reads.read_old)} of the old table, ${ms(reads.read_new)} of the new one`;
  return {
    "The application reads": now.reads ? `the ${now.reads} table` : "as PostHog's row says",
    "The application writes": now.writes === "both" ? "both tables" : now.writes ? `the ${now.writes} table` : "both, until the row is complete",
    "PostHog's migration row": now.status ? `${now.status.toLowerCase().replaceAll("_", " ")}, ${now.progress} %` : "not there",
    "Switched at": time(now.status === "COMPLETED_SUCCESSFULLY" ? now.finished_at : null),
    "Payoff of a read": reads ? [el("b", {}, `${(reads.read_old / reads.read_new).toFixed(1)} times as fast`), ` for ${number(reads.ids)} ids of team ${reads.team_id}: ${old}`] : "measured when the teams are certified",
    "Ids the old table gets wrong": number(copy.old_differs),
    Certificate: certificate ? `${number(certificate.teams)} teams, ${number(certificate.rows_copied)} ids copied${certificate.trial ? ", a trial" : ""}` : "not yet",
    Parameters: el("span", { class: "detail" }, Object.entries(run.settings).filter(([, value]) => value !== null).map(([name, value]) => `${name} ${value}`).join(", ")),
  };
}

function sumOfFindings(kinds) {
  const told = Object.entries(kinds).map(([kind, { repaired, remaining }]) => `${kind.replace("_", " ")}: ${number(repaired)} repaired, ${number(remaining)} remaining`);
  return told.length ? told.join("; ") : "None so far.";
}

function trouble(error) {
  $("trouble").hidden = !error;
  say($("trouble"), error ? error.message : "");
}

let timer;
let last;
async function look() {
  clearTimeout(timer);
  let atRest = document.hidden;
  try {
    const seen = await get("status");
    show(seen);
    const { now, seconds_left, speed: rate, throughput: chart, ...facts } = seen;
    const told = JSON.stringify(facts);
    if (seen.run && told !== last) await Promise.all(lists.map((list) => list.refresh()));
    last = told;
    trouble(null);
    atRest ||= !seen.run || seen.run.ended_at !== null;
  } catch (error) {
    trouble(error);
  }
  timer = setTimeout(look, atRest ? LOOK_AT_REST_EVERY : LOOK_EVERY);
}

document.addEventListener("visibilitychange", () => document.hidden || look());
followTheme();
// Airflow shows this tab on every DAG; on one that is not about the migration it says so and rests.
const shownIn = new URLSearchParams(location.search).get("dag");
if (!shownIn || shownIn.endsWith("_person_distinct_id2")) look();
else {
  say($("phase"), "This tab is about another DAG");
  say($("run"), "It shows the migration of fill_person_distinct_id2, and has nothing to say about ", visible(shownIn), ".");
}
