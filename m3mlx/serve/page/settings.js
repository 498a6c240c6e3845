// The panel of settings, kept in this browser.

import { at, bytes, count, make, number } from "./dom.js";
import { get } from "./server.js";

const KEY = "settings";
const DEFAULTS = { temperature: 0, length: 512, system: "", memories: 0, collection: "", keep: true, think: false };
const fields = Object.keys(DEFAULTS);
let now = { ...DEFAULTS, ...JSON.parse(localStorage.getItem(KEY) ?? "{}") };

export const settings = () => now;

function read() {
  for (const name of fields) {
    const field = at(`set-${name}`), kind = typeof DEFAULTS[name];
    now[name] = kind === "boolean" ? field.checked : kind === "number" ? field.valueAsNumber || 0 : field.value;
  }
  localStorage.setItem(KEY, JSON.stringify(now));
  tell();
}

function show() {
  for (const name of fields) {
    const field = at(`set-${name}`);
    if (typeof DEFAULTS[name] === "boolean") field.checked = now[name];
    else field.value = now[name];
  }
  tell();
}

function tell() {
  at("temperature-now").textContent = now.temperature ? now.temperature.toFixed(1) : "0: the likeliest words";
  at("memories-now").textContent = now.memories || "as the model suits";
  const changed = fields.some((name) => now[name] !== DEFAULTS[name] && name !== "keep");
  at("show-settings").textContent = changed ? "Settings •" : "Settings";
  at("show-settings").title = changed ? "Some differ from their defaults" : "";
}

// Fills in what the server says about its model.
export async function facts() {
  const about = await get("v1/page/about");
  const [scale, unit] = about.parameters >= 1e9 ? [1e9, "billion"] : about.parameters >= 1e6 ? [1e6, "million"] : [1e3, "thousand"];
  const large = `${(about.parameters / scale).toFixed(scale === 1e9 ? 1 : 0)} ${unit}`;
  at("about").textContent = [about.model, ...(about.parameters ? [large] : []), ...(about.collection ? [about.collection] : [])].join(" · ");
  const size = [
    about.parameters ? `${large} parameters` : null,
    about.weight_bytes ? bytes(about.weight_bytes) : null,
    about.context_tokens ? `context ${number(about.context_tokens)} tokens` : null,
  ].filter(Boolean);
  at("model-facts").replaceChildren(
    make("strong", { textContent: about.model }), make("span", { textContent: size.join(", ") }),
    make("span", { textContent: `Searches with ${about.encoder}, reads ${count(about.memories, "passage")} at a time.` }));
  at("set-think").closest("label").hidden = !about.can_think;
  return about;
}

export function collections(names) {
  const chosen = now.collection;
  at("set-collection").replaceChildren(
    make("option", { value: "", textContent: "All documents" }),
    ...[...new Set([...names, ...(chosen ? [chosen] : [])])].map((name) => make("option", { value: name, textContent: name })));
  at("set-collection").value = chosen;
}

export function prepare() {
  collections([]);
  show();
  for (const id of ["show-settings", "about"]) at(id).addEventListener("click", () => at("settings").showModal());
  at("settings").addEventListener("input", read);
  at("settings").addEventListener("click", (event) => { if (event.target === at("settings")) at("settings").close(); });
  at("defaults").addEventListener("click", () => {
    now = { ...DEFAULTS };
    localStorage.setItem(KEY, JSON.stringify(now));
    show();
  });
}
