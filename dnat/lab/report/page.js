"use strict";
// Draws the figures in the theme's colours, the visible ones first; theme, pickers, views, the table of runs, print.
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const figures = read("figures");
  const palettes = read("palettes");
  const root = document.documentElement;
  const systemDark = matchMedia("(prefers-color-scheme: dark)");
  const plots = [...document.querySelectorAll(".plot")];
  const shown = new Set();
  const config = { displaylogo: false, responsive: true, scrollZoom: false, doubleClick: "reset",
    modeBarButtons: [["toImage", "zoom2d", "resetScale2d"]], displayModeBar: "hover" };
  const PAPER = 690; // pixels of a printed page's width
  let printing = false;

  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches);

  // A copy of a figure in which "@name" under a key that ends in "color" is that colour.
  function painted(value, palette, isColour) {
    if (typeof value === "string") return isColour && value[0] === "@" ? palette[value.slice(1)] : value;
    if (Array.isArray(value)) return value.map((v) => painted(v, palette, isColour));
    if (value === null || typeof value !== "object") return value;
    const copy = {};
    for (const [key, inner] of Object.entries(value)) copy[key] = painted(inner, palette, /color$/i.test(key));
    return copy;
  }

  function draw(plot) {
    const views = figures[Number(plot.dataset.figure)];
    const names = Object.keys(views);
    const name = names.includes(plot.dataset.view) ? plot.dataset.view : names[0];
    const palette = palettes[isDark() && !printing ? "dark" : "light"];
    const { data, layout } = painted(views[name], palette, false);
    if (printing) Object.assign(layout, { width: PAPER, autosize: false });
    shown.add(plot);
    return Plotly.react(plot, data, layout, config);
  }

  const redraw = () => Promise.all([...shown].map(draw));
  const drawAll = () => Promise.all(plots.map(draw));

  // Theme.
  const button = document.getElementById("theme");
  function label() {
    button.textContent = isDark() ? "light" : "dark";
    button.setAttribute("aria-label", `use ${button.textContent} colours`);
  }
  function remembered(theme) {
    try {
      if (theme) localStorage.setItem("dnat-theme", theme);
      return localStorage.getItem("dnat-theme");
    } catch {
      return null; // a browser that keeps nothing for files
    }
  }
  const last = remembered();
  if (last === "light" || last === "dark") root.dataset.theme = last;
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    remembered(root.dataset.theme);
    label();
    redraw();
  });
  systemDark.addEventListener("change", () => {
    label();
    redraw();
  });
  label();

  // What a section shows: multiply-adds, parameters, latency.
  for (const set of document.querySelectorAll("fieldset.views")) {
    set.hidden = false;
    set.addEventListener("change", (event) => {
      for (const plot of document.querySelectorAll(`#${set.dataset.section} .plot`)) {
        plot.dataset.view = event.target.value;
        if (shown.has(plot)) draw(plot);
      }
    });
  }

  // One of many runs at a time.
  for (const pick of document.querySelectorAll(".pick")) {
    const options = [...pick.querySelectorAll(":scope > .option")];
    if (options.length < 2) continue;
    const select = document.createElement("select");
    options.forEach((option, i) => select.add(new Option(option.dataset.title, String(i))));
    const name = document.createElement("label");
    name.className = "picker";
    name.append(`${pick.dataset.name} `, select);
    pick.prepend(name);
    const choose = () => options.forEach((option, i) => { option.hidden = i !== Number(select.value); });
    select.addEventListener("change", choose);
    pick.classList.add("picking");
    choose();
  }

  // The table of runs: sorted by a column, filtered by words, downloaded as it is shown.
  const table = document.querySelector("table.runs");
  if (table) {
    const tools = document.querySelector(".tools");
    const [filter, download, status] = [tools.querySelector("input"), tools.querySelector("button"), tools.querySelector("span")];
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const value = (row, i) => row.cells[i].dataset.value;
    tools.hidden = false;

    function compare(a, b) {
      const [x, y] = [Number(a), Number(b)];
      if (a !== "" && b !== "" && !Number.isNaN(x) && !Number.isNaN(y)) return x - y;
      return a.localeCompare(b, "en", { numeric: true });
    }
    [...table.tHead.rows[0].cells].forEach((head, i) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(head.textContent);
      head.replaceChildren(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        rows.sort((a, b) => (up ? 1 : -1) * compare(value(a, i), value(b, i)));
        body.append(...rows);
      });
    });
    filter.addEventListener("input", () => {
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      }
      status.textContent = words.length ? `${rows.filter((row) => !row.hidden).length} of ${rows.length}` : "";
    });
    download.addEventListener("click", () => {
      const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
      const names = [...table.tHead.rows[0].cells].map((cell) => quoted(cell.textContent));
      const lines = rows.filter((row) => !row.hidden).map((row) => [...row.cells].map((cell, i) => quoted(value(row, i))));
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([[names, ...lines].map((line) => line.join(",")).join("\n") + "\n"], { type: "text/csv" }));
      link.download = "runs.csv";
      link.click();
      URL.revokeObjectURL(link.href);
    });
  }

  // Figures are drawn shortly before they are seen, the others when there is time, all before they are printed.
  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      watch.unobserve(entry.target);
      if (!shown.has(entry.target)) draw(entry.target);
    }
  }, { rootMargin: "600px" });
  plots.forEach((plot) => watch.observe(plot));
  addEventListener("beforeprint", () => {
    printing = true;
    document.querySelectorAll("details").forEach((part) => { part.open = true; });
    drawAll();
  });
  addEventListener("afterprint", () => {
    printing = false;
    redraw();
  });
  const later = window.requestIdleCallback || ((act) => setTimeout(act, 300));
  plots.forEach((plot) => later(() => { if (!shown.has(plot)) draw(plot); }));
  window.dnatDrawAll = drawAll;
})();
