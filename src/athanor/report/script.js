// What the pointer adds: values under it in charts, ancestors in the lineage, a language filter, copying, the current section.
// The page says the same without it.
"use strict";

const SVG = "http://www.w3.org/2000/svg";

function add(parent, name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return parent.appendChild(element);
}

function nearest(sorted, x) {
  let low = 0, high = sorted.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < x) low = middle; else high = middle;
  }
  return x - sorted[low] <= sorted[high] - x ? low : high;
}

// `root`: the page, or what of it is new.
function enliven(root) {
  for (const plot of root.querySelectorAll(".plot")) {
    const svg = plot.querySelector("svg");
    const lines = JSON.parse(plot.dataset.lines);
    const longest = lines.reduce((a, b) => (b.x.length > a.x.length ? b : a));
    let overlay, tip;

    function leave() {
      if (overlay) overlay.remove();
      if (tip) tip.remove();
      overlay = tip = null;
    }

    function move(event) {
      leave();
      const box = svg.getBoundingClientRect();
      const scale = svg.viewBox.baseVal.width / box.width;
      const at = nearest(longest.x, (event.clientX - box.left) * scale);
      const x = longest.x[at];
      overlay = add(svg, "g", {});
      add(overlay, "line", { class: "cross", x1: x, x2: x, y1: 12, y2: svg.viewBox.baseVal.height - 28 });
      tip = document.createElement("div");
      tip.className = "tip";
      tip.append(`step ${longest.step[at].toLocaleString("en")}`);
      for (const line of lines) {
        const i = nearest(line.x, x);
        add(overlay, "circle", { class: `hit tone-${line.tone}`, cx: line.x[i], cy: line.y[i], r: 4 });
        const row = document.createElement("div");
        const value = document.createElement("b");
        value.textContent = line.value[i];
        row.append(value, lines.length > 1 ? ` ${line.label}` : "");
        tip.append(row);
      }
      plot.append(tip);
      const half = tip.offsetWidth / 2;
      tip.style.left = `${Math.min(Math.max(x / scale, half), box.width - half)}px`;
      tip.style.transform = `translate(-50%, -${tip.offsetHeight}px)`;
    }

    plot.addEventListener("pointermove", move);
    plot.addEventListener("pointerdown", move);
    plot.addEventListener("pointerleave", leave);
  }

  for (const graph of root.querySelectorAll(".lineage")) {
    for (const node of graph.querySelectorAll(".node")) {
      const lit = new Set([node.dataset.node, ...node.dataset.from.split(" ")]);
      node.addEventListener("pointerenter", () => {
        graph.classList.add("lit");
        for (const other of graph.querySelectorAll(".node")) other.classList.toggle("on", lit.has(other.dataset.node));
        for (const edge of graph.querySelectorAll(".edge"))
          edge.classList.toggle("on", edge.dataset.edge.split(" ").every((end) => lit.has(end)));
      });
      node.addEventListener("pointerleave", () => graph.classList.remove("lit"));
    }
  }

  for (const group of root.querySelectorAll(".choices")) {
    group.hidden = false;
    group.addEventListener("click", (event) => {
      const chosen = event.target.closest("button");
      if (!chosen) return;
      for (const button of group.querySelectorAll("button")) button.setAttribute("aria-pressed", button === chosen);
      for (const sample of document.querySelectorAll(".sample"))
        sample.hidden = Boolean(chosen.dataset.language) && sample.dataset.language !== chosen.dataset.language;
    });
  }

  for (const code of root.querySelectorAll(".copy")) {
    code.title = "Copy";
    code.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(code.textContent);
        code.classList.add("copied");
        setTimeout(() => code.classList.remove("copied"), 1200);
      } catch { getSelection().selectAllChildren(code); }
    });
  }

  const links = new Map([...document.querySelectorAll("nav li a")].map((a) => [a.hash.slice(1), a]));
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const link = links.get(entry.target.id);
      if (!link) continue;
      if (entry.isIntersecting) {
        for (const other of links.values()) other.removeAttribute("aria-current");
        link.setAttribute("aria-current", "true");
      }
    }
  }, { rootMargin: "-20% 0px -70% 0px" });
  for (const section of [root, ...root.querySelectorAll("section")])
    if (section.matches?.("main section")) seen.observe(section);
}

enliven(document);
