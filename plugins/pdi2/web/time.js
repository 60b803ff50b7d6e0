// Times in the time zone picked in Airflow, on a 24-hour clock, with the zone's name where it matters.

import { el } from "./dom.js";

const PICKED = "timezone"; // Airflow's key in localStorage, a JSON string; nothing is there until somebody picks

function picked() {
  try {
    const zone = JSON.parse(localStorage.getItem(PICKED));
    new Intl.DateTimeFormat("en", { timeZone: zone ?? undefined });
    return zone ?? undefined;
  } catch {
    return undefined;
  }
}

const zone = picked() ?? Intl.DateTimeFormat().resolvedOptions().timeZone;
const clock = { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23", timeZone: zone };
const day = { day: "numeric", month: "short", year: "numeric", timeZone: zone };
const today = new Intl.DateTimeFormat("en-GB", clock);
const date = new Intl.DateTimeFormat("en-GB", day);
const moment = new Intl.DateTimeFormat("en-GB", { ...day, ...clock });
const withZone = new Intl.DateTimeFormat("en-GB", { ...day, ...clock, timeZoneName: "short" });
const withShortZone = new Intl.DateTimeFormat("en-GB", { ...clock, timeZoneName: "short" });

export const dayOf = (at) => date.format(new Date(at));

export function time(at, { named = false } = {}) {
  if (!at) return "–";
  const when = new Date(at);
  const isToday = dayOf(when) === dayOf(Date.now());
  const form = named ? (isToday ? withShortZone : withZone) : isToday ? today : moment;
  return el("time", { datetime: at, title: withZone.format(when) }, form.format(when));
}

// "Europe/Berlin, GMT+1"
export function zoneName() {
  const short = withZone.formatToParts(new Date()).find((part) => part.type === "timeZoneName").value;
  return short === zone ? zone : `${zone}, ${short}`;
}

// With spaces that do not break, so that no line holds an "s" alone.
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const left = Math.max(0, Math.round(seconds));
  const parts = [Math.floor(left / 86400), Math.floor(left / 3600) % 24, Math.floor(left / 60) % 60, left % 60];
  const first = Math.min(parts.findIndex((part) => part), 3);
  return first < 0 ? "0\u00a0s" : parts.slice(first, first + 2).map((part, at) => `${part}\u00a0${["d", "h", "min", "s"][first + at]}`).join("\u00a0");
}

export const seconds = (from, to) => (new Date(to) - new Date(from)) / 1000;

// If somebody picks another zone in Airflow, this page follows.
export function followZone() {
  window.addEventListener("storage", (event) => event.key === PICKED && location.reload());
}
