// A table of lines that the server sorts, filters and pages, so that thousands of lines stay fast.

import { get } from "./api.js";
import { el, number, say } from "./dom.js";
import { dayOf } from "./time.js";

export class List {
  // columns: [{title, cell(line) -> nodes, sort?, numeric?}]; key(line) identifies a line
  constructor(place, { path, caption, columns, key, sort, empty, pageSize = 25 }) {
    Object.assign(this, { path, columns, key, empty, pageSize });
    this.query = sort ? { sort, descending: true } : {};
    this.offset = 0;
    this.rows = new Map();
    this.body = el("tbody");
    this.heads = columns.map((column) => this.#head(column));
    const table = el("table", {}, el("caption", {}, caption), el("thead", {}, el("tr", {}, ...this.heads)), this.body);
    this.told = el("p", { role: "status", class: "quiet" });
    this.previous = el("button", { type: "button", onclick: () => this.#turn(-1) }, "Previous");
    this.next = el("button", { type: "button", onclick: () => this.#turn(1) }, "Next");
    place.append(
      el("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": caption }, table),
      el("div", { class: "pages" }, this.told, this.previous, this.next),
    );
    this.#showSort();
  }

  // Fetches the page again whenever the form changes, or after a pause in typing.
  filterBy(form) {
    let timer;
    const change = () => {
      clearTimeout(timer);
      timer = setTimeout(() => {
        Object.assign(this.query, Object.fromEntries(new FormData(form)));
        this.offset = 0;
        this.refresh();
      }, 250);
    };
    form.addEventListener("input", change);
    form.addEventListener("submit", (event) => (event.preventDefault(), change()));
  }

  async refresh() {
    const asked = (this.asked = { ...this.query, limit: this.pageSize, offset: this.offset });
    const page = await get(this.path, asked);
    if (asked !== this.asked) return;
    this.#show(page);
  }

  #show({ lines, total }) {
    if (!lines.length && this.offset) {
      this.offset = 0;
      this.refresh();
      return;
    }
    const rows = lines.map((line) => this.#row(line));
    if (rows.length !== this.body.children.length || rows.some((row, at) => this.body.children[at] !== row)) {
      const focused = document.activeElement;
      this.body.replaceChildren(...rows);
      if (rows.some((row) => row.contains(focused))) focused.focus();
    }
    const last = this.offset + lines.length;
    say(this.told, total ? `${number(this.offset + 1)} to ${number(last)} of ${number(total)}` : this.empty);
    this.previous.disabled = this.offset === 0;
    this.next.disabled = last >= total;
    this.previous.hidden = this.next.hidden = total <= this.pageSize;
  }

  #row(line) {
    const key = this.key(line);
    const told = JSON.stringify([dayOf(Date.now()), line]); // at midnight its times get a date
    const known = this.rows.get(key);
    if (known?.told === told) return known.row;
    const cells = this.columns.map((column, at) =>
      el(at ? "td" : "th", { scope: at ? null : "row", class: column.numeric && "numeric" }, ...[column.cell(line)].flat()),
    );
    const row = known?.row ?? el("tr");
    const at = [...row.querySelectorAll("a, button, summary")].indexOf(document.activeElement);
    row.replaceChildren(...cells);
    if (at >= 0) row.querySelectorAll("a, button, summary")[at]?.focus();
    this.rows.set(key, { row, told });
    return row;
  }

  #head(column) {
    const button = column.sort && el("button", { type: "button", onclick: () => this.#sortBy(column.sort) }, column.title);
    return el("th", { scope: "col", class: column.numeric && "numeric" }, button || column.title);
  }

  #sortBy(sort) {
    this.query.descending = this.query.sort === sort ? !this.query.descending : sort !== "team_id";
    this.query.sort = sort;
    this.offset = 0;
    this.#showSort();
    this.refresh();
  }

  #showSort() {
    this.columns.forEach((column, at) => {
      if (column.sort !== this.query.sort || !column.sort) this.heads[at].removeAttribute("aria-sort");
      else this.heads[at].setAttribute("aria-sort", this.query.descending ? "descending" : "ascending");
    });
  }

  #turn(pages) {
    this.offset = Math.max(0, this.offset + pages * this.pageSize);
    this.refresh();
  }
}
