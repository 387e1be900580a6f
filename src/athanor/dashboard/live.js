// The dashboard keeps itself up to date: it asks for its own page again and puts in what has changed.
// Below, what a reader has chosen in the list stays chosen. The page says the same without it.
const EVERY = 3000;
const main = document.querySelector("main");
let parts = [...main.children].map((part) => part.outerHTML), tag = "";

function leadOn(root) {
  const addresses = JSON.parse(document.querySelector("[data-nodes]")?.dataset.nodes || "{}");
  for (const node of root.querySelectorAll(".node")) {
    const address = addresses[node.dataset.node];
    if (!address) continue;
    node.classList.add("leads");
    node.addEventListener("click", () => location.assign(address));
  }
}

const filter = document.querySelector("#filter"), chosen = new Set();

function sift() {
  if (!filter) return;
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  const state = document.querySelector("#states [aria-pressed=true]").dataset.state;
  let shown = 0;
  for (const row of document.querySelectorAll("tr[data-text]")) {
    row.hidden = Boolean(state && row.dataset.state !== state) || !words.every((word) => row.dataset.text.includes(word));
    shown += !row.hidden;
    row.querySelector("input").checked = chosen.has(row.querySelector("input").value);
  }
  const empty = document.querySelector("#nothing");
  if (empty) empty.hidden = shown > 0;
  document.querySelector("#compare").disabled = chosen.size < 1 || chosen.size > Number(main.dataset.most);
  const query = new URLSearchParams();
  if (filter.value) query.set("q", filter.value);
  if (state) query.set("state", state);
  history.replaceState(null, "", query.size ? `?${query}` : location.pathname);
}

async function refresh() {
  if (document.hidden) return;
  let answer;
  try {
    answer = await fetch(location.pathname + location.search, { headers: tag ? { "If-None-Match": tag } : {}, cache: "no-store" });
  } catch { /* the server has ended */ }
  document.body.classList.toggle("lost", !answer || answer.status >= 400);
  if (!answer || answer.status !== 200) return;
  tag = answer.headers.get("etag");
  const fresh = [...new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("main").children];
  const texts = fresh.map((part) => part.outerHTML), old = [...main.children];
  if (fresh.length !== old.length) return location.reload();
  fresh.forEach((part, i) => {
    if (texts[i] === parts[i]) return;
    const open = [...old[i].querySelectorAll("details")].map((details) => details.open);
    part.querySelectorAll("details").forEach((details, n) => { details.open = Boolean(open[n]); });
    old[i].replaceWith(part);
    enliven(part);
    leadOn(part);
  });
  parts = texts;
  sift();
}

if (filter) {
  const query = new URLSearchParams(location.search);
  filter.value = query.get("q") || "";
  for (const button of document.querySelectorAll("#states button"))
    button.setAttribute("aria-pressed", button.dataset.state === (query.get("state") || ""));
  filter.addEventListener("input", sift);
  document.querySelector("#states").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    for (const other of document.querySelectorAll("#states button")) other.setAttribute("aria-pressed", other === button);
    sift();
  });
  main.addEventListener("change", (event) => {
    if (event.target.name !== "run") return;
    if (event.target.checked) chosen.add(event.target.value); else chosen.delete(event.target.value);
    sift();
  });
  sift();
}
leadOn(document);
setInterval(refresh, EVERY);
