// The first line (safe or not, and what to do), what the run waits for, and what is wrong now.

import { counted, el, fold, link, visible, visibleLines } from "./dom.js";
import { seconds, time } from "./time.js";

export function verdict({ verdict: told }) {
  const words = [told.text, told.until ? " " : "", told.until ? time(told.until, { named: true }) : "", told.after];
  return el(
    "div",
    { class: `verdict ${told.tone}` },
    el("p", {}, el("strong", {}, ...words)),
    el("p", {}, "What to do: ", told.do),
    row(told.runbook, `verdict ${told.topic}`),
  );
}

export function waits(seen) {
  const { run, alive, waits: reasons = [], paused, airflow } = seen;
  const told = [];
  if (airflow.pool === null && seen.switch.status !== "COMPLETED_SUCCESSFULLY") told.push(el("li", { class: "bad" }, "Airflow has no pool pdi2_copies, and without it no copy begins. Create it under ", link(seen.links.pool, "Admin, Pools"), ", or with ", el("code", {}, "airflow pools set pdi2_copies 2 copies"), "."));
  if (paused) told.push(el("li", {}, "Paused by ", visible(paused.actor), " since ", time(paused.at), ". What is running ends with its slice; nothing else begins until somebody resumes."));
  if (!run) return told;
  if (alive && airflow.scheduler_away_since) told.push(el("li", { class: "bad" }, "Airflow's scheduler has given no sign of life since ", time(airflow.scheduler_away_since), ": no task begins, or is tried again, before it is back."));
  for (const wait of reasons) told.push(el("li", {}, visibleLines(wait.text), ...until(wait.until, seen.now)));
  if (alive && airflow.unanswered) told.push(unanswered(seen));
  if (alive && airflow.retrying) told.push(retrying(seen));
  if (alive && airflow.pool?.slots === 0) told.push(el("li", {}, "The pool pdi2_copies has no slots: no copy begins until somebody gives it some."));
  if (run.newest && !run.ended_at && !alive) told.push(el("li", { class: "bad" }, `Airflow says that this run is ${airflow.state}, and it left no report: it was killed or marked by hand. What is finished is kept; trigger the DAG again.`));
  return [...told, ...failures(seen)];
}

function until(at, now) {
  return at && seconds(now, at) > 0 ? [" Until ", time(at), "."] : [];
}

function unanswered({ airflow, last }) {
  const copied = last?.copied ? [" The last row was copied at ", time(last.copied), "."] : [" This run has copied no row yet."];
  return el("li", { class: "bad" }, `${airflow.unanswered} has not answered since `, time(airflow.unanswered_since), ".", ...copied);
}

function retrying({ airflow: { retrying: found }, now }) {
  const [first, last] = found.next_tries;
  const which = first === last ? `try ${first}` : `tries ${first} to ${last}`;
  const due = found.due ? [` The next ${seconds(now, found.due) > 0 ? "is" : "was"} due at `, time(found.due), "."] : [];
  return el(
    "li",
    {},
    `${counted(found.tasks, "task is", "tasks are")} up for retry: ${which} of ${found.tries}.`,
    ...due,
    el("ul", {}, ...found.causes.map(({ cause, tasks }) => el("li", {}, `${counted(tasks, "task")}: `, visible(cause)))),
    found.reason ? fold("retry", "What the last try met", el("pre", {}, visibleLines(found.reason))) : null,
  );
}

// Failures, grouped by cause, with the cause first.
function failures({ failures: groups = [] }) {
  return groups.map((group) => {
    const who = group.teams ? counted(group.teams, "team") : group.task;
    const whole = group.error === group.cause ? null : el("pre", {}, visibleLines(group.error));
    return el(
      "li",
      { class: "bad" },
      el("strong", {}, who, ": ", visible(group.cause)),
      whole && fold(`failure ${group.cause}`, group.teams ? `The whole error of team ${group.team_id}` : "The whole error", whole),
      row(group.runbook, `runbook ${group.cause}`),
    );
  });
}

// A row of docs/runbook.md, shown where it is needed.
export function row(found, name) {
  if (!found) return null;
  const facts = { Meaning: found.meaning, "Safe?": found.safe, "What to do": found.do };
  const lines = Object.entries(facts).map(([title, text]) => el("div", {}, el("dt", {}, title), el("dd", {}, ...marked(text))));
  return fold(name, el("span", {}, "Runbook: ", ...marked(found.about)), el("dl", { class: "facts" }, ...lines), link("runbook", "The whole runbook"));
}

const marked = (text) => text.replaceAll("**", "").split("`").map((part, at) => (at % 2 ? el("code", {}, part) : part));

// A run that does not own the ledger: the plan of a dry run, the reasons of preflight, or the end of old writes alone.
export function other(found) {
  if (!found) return [];
  const what = { "dry run": "Dry run", trial: "Trial", migration: "Run", audit: "Audit", rollback: "Rollback" }[found.kind];
  return [
    el("h2", {}, `${what}: ${found.outcome}`),
    el("p", { class: "quiet" }, "Started by ", visible(found.actor), " at ", time(found.started_at), ". ", link(found.link, "Open the run")),
    found.problems ? el("ol", { class: "problems" }, ...found.problems.map((problem) => el("li", {}, visibleLines(problem)))) : null,
    found.plan ? el("pre", { class: "plan", tabindex: "0", role: "region", "aria-label": "The plan" }, visibleLines(found.plan)) : null,
    !found.plan && !found.problems && found.message ? el("p", {}, visibleLines(found.message)) : null,
  ];
}
