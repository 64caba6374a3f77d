"use strict";
// The page is whole without this: it makes dots tell their numbers, legends switch lines, and the table sort and save.
(() => {
  const tip = document.getElementById("tip");
  const show = (event) => {
    const dot = event.target.closest && event.target.closest("[data-tip]");
    if (!dot) { tip.hidden = true; return; }
    tip.textContent = dot.dataset.tip;
    tip.hidden = false;
    const box = dot.getBoundingClientRect();
    const half = tip.offsetWidth / 2, middle = box.left + box.width / 2;
    const left = Math.min(Math.max(middle, half + 4), document.documentElement.clientWidth - half - 4);
    tip.style.left = `${left + window.scrollX - half}px`;
    tip.style.top = `${box.top + window.scrollY - tip.offsetHeight - 6}px`;
  };
  for (const kind of ["pointerover", "pointerdown", "focusin"]) document.addEventListener(kind, show);
  // A chart is one stop of the Tab key; the arrows walk along its dots.
  for (const chart of document.querySelectorAll("figure svg")) {
    const dots = [...chart.querySelectorAll("[data-tip]")];
    dots.forEach((dot, i) => {
      dot.setAttribute("tabindex", i ? -1 : 0);
      dot.setAttribute("role", "img");
      dot.setAttribute("aria-label", dot.dataset.tip);
      dot.addEventListener("keydown", (event) => {
        const to = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: dots.length - 1 }[event.key];
        if (to === undefined || !dots[to]) return;
        event.preventDefault();
        dots[to].focus();
      });
    });
  }

  for (const key of document.querySelectorAll("button.key-button")) {
    key.addEventListener("click", () => {
      const off = key.getAttribute("aria-pressed") === "true";
      key.setAttribute("aria-pressed", String(!off));
      const figure = key.closest("figure");
      for (const line of figure.querySelectorAll("g[data-series]"))
        if (line.dataset.series === key.dataset.series) line.style.display = off ? "none" : "";
    });
  }

  for (const choice of document.querySelectorAll("select[data-shows]")) {
    const update = () => {
      for (const part of document.querySelectorAll(`[data-group="${choice.dataset.shows}"]`))
        part.hidden = part.dataset.part !== choice.value;
    };
    choice.addEventListener("change", update);
    choice.hidden = false;
    update();
  }

  const table = document.getElementById("all-trials");
  if (!table) return;
  const body = table.tBodies[0];
  const text = (row, i) => row.cells[i].dataset.value ?? row.cells[i].textContent;
  const compare = (a, b) => {
    const empty = (v) => v === "" || v === "–";
    if (empty(a) || empty(b)) return empty(a) - empty(b);
    const x = Number(a), y = Number(b);
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
  };
  [...table.tHead.rows[0].cells].forEach((head, i) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [text(a, i), text(b, i)];
        const last = (v) => v === "" || v === "–";
        return last(x) || last(y) ? last(x) - last(y) : (up ? 1 : -1) * compare(x, y);
      });
      body.append(...rows);
    });
  });
  const filter = document.getElementById("filter-trials");
  filter.hidden = false;
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of body.rows) {
      const content = row.textContent.toLowerCase();
      row.hidden = !words.every((w) => content.includes(w));
    }
  });
  const save = document.getElementById("save-trials");
  save.hidden = false;
  save.addEventListener("click", () => {
    const quoted = (v) => /[",\n]/.test(v) ? `"${v.replaceAll('"', '""')}"` : v;
    const head = [...table.tHead.rows[0].cells].map((c) => quoted(c.textContent.trim()));
    const rows = [...body.rows].filter((r) => !r.hidden)
      .map((r) => [...r.cells].map((_, i) => quoted(text(r, i))).join(","));
    const link = document.createElement("a");
    link.download = "trials.csv";
    link.href = URL.createObjectURL(new Blob([[head.join(","), ...rows].join("\n") + "\n"], {type: "text/csv"}));
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
})();
