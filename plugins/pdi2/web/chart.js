// Rows a second over time, as bars. What they show is said in words as well.

import { el, compact, time } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 100;

function shape(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export function throughput(found) {
  if (!found) return [el("p", { class: "quiet" }, "No slice was copied in this run yet.")];
  const { began, width, rows_per_second: rates } = found;
  const most = Math.max(...rates, 1);
  const latest = rates.at(-1);
  const at = (bucket) => new Date(new Date(began).getTime() + bucket * width * 1000).toISOString();
  const bars = rates.map((rate, bucket) => {
    const height = (HEIGHT * rate) / most;
    return shape("rect", { x: bucket + 0.1, y: HEIGHT - height, width: 0.8, height });
  });
  const words = `Rows a second in steps of ${width} s: ${compact(most)} at most, ${compact(latest)} last.`;
  return [
    shape("svg", { viewBox: `0 0 ${rates.length} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": words }, ...bars),
    el("div", { class: "axis" }, time(at(0)), time(at(rates.length))),
    el("figcaption", {}, words),
  ];
}
