// The documents, a page at a time: sorted, filtered, looked into, forgotten one or many at once.

import { at, button, bytes, count, day, make, name, notice, number, sureButton } from "./dom.js";
import { call, get, send } from "./server.js";
import { collections } from "./settings.js";
import { inside } from "./sources.js";

const PAGE = 50;
const LOOK_AGAIN = 2000; // milliseconds, while memories are being written
const FILTERS = { q: "find", collection: "filter-collection", type: "filter-type", since: "filter-since", sort: "sort" };
const DAYS = { day: 1, week: 7, month: 31, year: 366 };

let offset = 0, total = 0;
let chosen = new Map(); // documents that are ticked, by id
let changed = () => {};

export function onChange(action) { changed = action; }

function wanted() {
  const query = new URLSearchParams();
  for (const [key, id] of Object.entries(FILTERS)) {
    const { value } = at(id);
    if (!value) continue;
    query.set(key, key === "since" ? new Date(Date.now() - 86_400_000 * DAYS[value]).toISOString() : value);
  }
  return query;
}

const filtered = () => [...wanted().keys()].some((key) => key !== "sort");

let asked = 0;
export async function refresh() {
  const mine = ++asked, query = wanted();
  query.set("limit", PAGE);
  query.set("offset", offset);
  const found = await get(`v1/memories?${query}`);
  if (mine !== asked) return;
  if (!found.data.length && offset) {
    offset = Math.max(0, Math.ceil(found.total / PAGE) - 1) * PAGE;
    return refresh();
  }
  ({ total } = found);
  at("documents").dataset.total = found.all;
  at("list").replaceChildren(...found.data.map(row));
  at("filters").hidden = found.all < 2;
  at("none").hidden = total > 0;
  at("none").textContent = found.all ? "No document is like that." : "Nothing is remembered yet.";
  options("filter-collection", "All collections", found.collections);
  options("filter-type", "All types", found.types);
  collections(Object.keys(found.collections));
  at("pages").hidden = total <= PAGE;
  at("page-now").textContent = `${number(offset + 1)} to ${number(Math.min(offset + PAGE, total))} of ${number(total)}`;
  at("earlier").disabled = offset === 0;
  at("later").disabled = offset + PAGE >= total;
  at("show-documents").textContent = found.all ? `Documents ${number(found.all)}` : "Documents";
  choose();
  await progress();
  changed(found);
}

// Tells the size of the store, and how far the memories are that the server writes meanwhile.
let looking;
async function progress() {
  clearTimeout(looking);
  const state = await get("v1/memories/status");
  const size = Object.values(state.bytes).reduce((sum, part) => sum + part, 0);
  const waiting = state.cold ? `, ${number(state.cold)} not written yet` : "";
  at("store").textContent = state.references ? `${count(state.references, "reference")}${waiting}, ${bytes(size)} on disk` : "";
  at("writing").hidden = !state.cold;
  at("writing").max = Math.max(state.references, 1);
  at("writing").value = state.references - state.cold;
  if (state.cold) looking = setTimeout(() => progress().catch(() => {}), LOOK_AGAIN);
}

function options(id, all, counts) {
  const select = at(id), { value } = select, names = Object.keys(counts);
  select.hidden = names.length < 2 && !value;
  select.replaceChildren(make("option", { value: "", textContent: all }),
    ...names.map((each) => make("option", { value: each, textContent: `${each || "none"} (${number(counts[each])})` })));
  select.value = value;
}

function row(document) {
  const tick = make("input", { type: "checkbox", checked: chosen.has(document.id), ariaLabel: `Choose ${name(document.path)}` });
  tick.addEventListener("change", () => {
    if (tick.checked) chosen.set(document.id, document);
    else chosen.delete(document.id);
    choose();
  });
  const forget = sureButton("Forget", () => erase([document]), { ariaLabel: `Forget ${name(document.path)}` });
  const state = document.state === "partial" ? ", half read" : "";
  return make("li", {}, tick, make("div", {},
    make("div", { className: "name", textContent: name(document.path), title: document.path, dir: "auto" }),
    make("div", { className: "small" },
      make("span", { textContent: `${count(document.references, "reference")}${state} · ${day(document.added)}` }),
      make("span", { className: "actions" }, inside(document.path, document.id, undefined, "Inside"), forget))));
}

// --- several at once

function choose() {
  at("chosen").hidden = chosen.size === 0;
  at("chosen-count").textContent = `${count(chosen.size, "document")} chosen`;
  at("choose-all").hidden = total <= chosen.size || !filtered();
  at("choose-all").textContent = `Choose all ${number(total)} found`;
}

async function chooseAll() {
  const query = wanted();
  query.set("limit", total);
  for (const document of (await get(`v1/memories?${query}`)).data) chosen.set(document.id, document);
  await refresh();
}

function clear() {
  chosen = new Map();
  for (const tick of at("list").querySelectorAll("input")) tick.checked = false;
  choose();
}

async function erase(documents) {
  const told = documents.length === 1 ? name(documents[0].path) : count(documents.length, "document");
  try {
    if (documents.length === 1) await call(`v1/memories/${documents[0].id}`, { method: "DELETE" });
    else await send("v1/memories/forget", { ids: documents.map(({ id }) => id) });
    for (const { id } of documents) chosen.delete(id);
    notice(`Forgot ${told}.`);
  } catch (error) {
    notice(error.message);
  }
  await refresh();
}

export function showDocuments(on) {
  at("documents").classList.toggle("open", on);
  at("show-documents").setAttribute("aria-expanded", on);
}

export function prepare() {
  const act = () => refresh().catch((error) => notice(error.message));
  let later;
  for (const id of Object.values(FILTERS)) {
    at(id).addEventListener("input", () => {
      offset = 0;
      clearTimeout(later);
      later = setTimeout(act, id === "find" ? 150 : 0);
    });
  }
  for (const [id, step] of [["earlier", -PAGE], ["later", PAGE]]) {
    at(id).addEventListener("click", async () => {
      offset = Math.max(0, offset + step);
      await act();
      at("list").scrollIntoView({ block: "nearest" });
    });
  }
  at("show-documents").addEventListener("click", () => showDocuments(!at("documents").classList.contains("open")));
  at("hide-documents").addEventListener("click", () => {
    showDocuments(false);
    at("show-documents").focus();
  });
  at("chosen").append(
    sureButton("Forget", () => erase([...chosen.values()]).then(clear), { id: "forget-chosen", className: "quiet" }),
    button("Choose all", () => chooseAll().catch((error) => notice(error.message)), { id: "choose-all" }),
    button("Cancel", clear));
}
