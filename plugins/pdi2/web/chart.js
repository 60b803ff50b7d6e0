// Rows per second over time, as bars with an axis. The page also says in words what they show.

import { el, speed } from "./dom.js";
import { time } from "./time.js";

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 100;

function shape(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export function throughput(found) {
  if (!found) return [el("p", { class: "quiet" }, "This run has copied and verified nothing yet.")];
  return [
    ...bars("Copied", found.copied, found),
    ...bars("Verified", found.verified, found),
    el("p", { class: "quiet" }, `Each bar is ${found.width} s. The peak is the best 5 s, whatever the width of the bars.`),
  ];
}

function bars(title, { rows_per_second: rates, peak }, { began, width }) {
  if (!peak) return [el("p", { class: "quiet" }, `${title}: nothing yet.`)];
  const top = ceiling(Math.max(...rates));
  const at = (bucket) => new Date(new Date(began).getTime() + bucket * width * 1000).toISOString();
  const words = `${title}: ${speed(peak)} at the peak.`;
  const drawn = rates.map((rate, bucket) => {
    const height = (HEIGHT * rate) / top;
    return shape("rect", { x: bucket + 0.1, y: HEIGHT - height, width: 0.8, height });
  });
  const line = shape("line", { x1: 0, x2: rates.length, y1: HEIGHT / 2, y2: HEIGHT / 2, "vector-effect": "non-scaling-stroke" });
  return [
    el("figcaption", {}, words),
    el(
      "div",
      { class: "chart" },
      el("div", { class: "scale" }, el("span", {}, speed(top)), el("span", {}, speed(top / 2)), el("span", {}, "0")),
      shape("svg", { viewBox: `0 0 ${rates.length} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": words }, line, ...drawn),
      el("div", { class: "axis" }, time(at(0)), time(at(rates.length))),
    ),
  ];
}

// Rounds up to 1, 2, 5, 10, 20 … so that the axis has plain numbers.
function ceiling(value) {
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * unit).find((step) => step >= value) ?? value;
}
