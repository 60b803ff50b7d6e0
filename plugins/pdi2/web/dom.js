// Elements, text and numbers. Text only ever becomes text nodes: a distinct_id may hold anything.

export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// Leaves an element alone that says the same already, so that nothing flickers and no screen reader repeats itself.
export function say(element, ...children) {
  const made = element.cloneNode(false);
  made.append(...children.filter((child) => child !== null));
  if (!element.isEqualNode(made)) element.replaceChildren(...made.childNodes);
}

// Characters that show nothing, or that turn the text around them, are written out.
export const visible = (text) =>
  text.replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, (character) => `\\u{${character.codePointAt(0).toString(16)}}`);

export const visibleLines = (text) => text.split("\n").map(visible).join("\n");

const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const moment = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const today = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });

export const number = (value) => (value === null || value === undefined ? "–" : whole.format(Math.round(value)));
export const compact = (value) => (value === null || value === undefined ? "–" : short.format(value));
export const speed = (value) => (value ? `${compact(value)}/s` : "–");
export const memory = (bytes) => (bytes ? `${number(bytes / 1e6)} MB` : "–");
export const percent = (share) => `${(Math.floor(share * 1000) / 10).toFixed(1)} %`;
export const ms = (seconds) => `${(seconds * 1000).toFixed(seconds < 0.1 ? 1 : 0)} ms`;

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const left = Math.max(0, Math.round(seconds));
  const parts = [Math.floor(left / 86400), Math.floor(left / 3600) % 24, Math.floor(left / 60) % 60, left % 60];
  const first = Math.min(parts.findIndex((part) => part), 3);
  return first < 0 ? "0 s" : parts.slice(first, first + 2).map((part, at) => `${part} ${["d", "h", "min", "s"][first + at]}`).join(" ");
}

export function time(at) {
  if (!at) return "–";
  const date = new Date(at);
  const form = date.toDateString() === new Date().toDateString() ? today : moment;
  return el("time", { datetime: at, title: moment.format(date) }, form.format(date));
}

// A link to Airflow's own pages. Airflow shows this page in a sandboxed frame that may not navigate the window around
// it, so the link is followed from there.
export function link(href, text, attributes = {}) {
  return el("a", { href, ...attributes, onclick: leave }, text);
}

function leave(event) {
  if (window.parent === window) return;
  event.preventDefault();
  const outside = window.parent.document.createElement("a");
  outside.href = event.currentTarget.href;
  if (event.ctrlKey || event.metaKey || event.shiftKey) Object.assign(outside, { target: "_blank", rel: "noopener" });
  outside.click();
}

// Airflow's own choice between light and dark, where this page is shown within Airflow; else the system's.
export function followTheme() {
  if (window.parent === window) return;
  const airflow = window.parent.document.documentElement;
  const follow = () => {
    document.documentElement.dataset.theme = ["dark", "light"].find((theme) => airflow.classList.contains(theme)) ?? "";
  };
  follow();
  new MutationObserver(follow).observe(airflow, { attributes: true, attributeFilter: ["class"] });
}
