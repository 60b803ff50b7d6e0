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

// Leaves alone what already says the same, so that nothing flickers or loses focus, and no screen reader repeats itself.
export function say(element, ...children) {
  const made = element.cloneNode(false);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  const [before, after] = [element, made].map((one) => [...one.childNodes]);
  for (const [at, child] of after.entries()) {
    if (!before[at]) element.append(child);
    else if (!before[at].isEqualNode(child)) before[at].replaceWith(child);
  }
  for (const gone of before.slice(after.length)) gone.remove();
}

// A part that was unfolded stays unfolded when the page is drawn again; `name` identifies it.
const unfolded = new Set();
export function fold(name, summary, ...children) {
  const note = (event) => (event.currentTarget.open ? unfolded.add(name) : unfolded.delete(name));
  return el("details", { open: unfolded.has(name), ontoggle: note }, el("summary", {}, summary), ...children);
}

export const pairs = (facts) =>
  Object.entries(facts)
    .filter(([, value]) => value !== null && value !== undefined)
    .map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, ...[value].flat())));

// Characters that are invisible, or that change the direction of the text around them, are written out.
export const visible = (text) =>
  text.replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, (character) => `\\u{${character.codePointAt(0).toString(16)}}`);

export const visibleLines = (text) => text.split("\n").map(visible).join("\n");

const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });

export const number = (value) => (value === null || value === undefined ? "–" : whole.format(Math.round(value)));
export const compact = (value) => (value === null || value === undefined ? "–" : short.format(value));
export const speed = (value) => (value === null || value === undefined ? "–" : `${compact(value)} rows/s`);
export const memory = (bytes) => (bytes ? `${number(bytes / 1e6)} MB` : "not measured");
export const percent = (share) => (share === null || share === undefined ? "–" : `${(Math.floor(share * 1000) / 10).toFixed(1)} %`);
export const ms = (seconds) => `${(seconds * 1000).toFixed(seconds < 0.1 ? 1 : 0)} ms`;
export const counted = (value, one, many = `${one}s`) => `${number(value)} ${value === 1 ? one : many}`;

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

// Follows Airflow's choice of light or dark if this page is shown within Airflow, or else the system's.
export function followTheme() {
  if (window.parent === window) return;
  const airflow = window.parent.document.documentElement;
  const follow = () => {
    document.documentElement.dataset.theme = ["dark", "light"].find((theme) => airflow.classList.contains(theme)) ?? "";
  };
  follow();
  new MutationObserver(follow).observe(airflow, { attributes: true, attributeFilter: ["class"] });
}
