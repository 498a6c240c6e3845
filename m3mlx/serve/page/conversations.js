// The list of kept conversations: open, find, rename, delete.

import { begin, current, load, onKept, renamed } from "./conversation.js";
import { at, button, day, make, notice, sureButton } from "./dom.js";
import { call, get, send } from "./server.js";

const SHOWN = 100; // more are found by searching

const path = (name) => `v1/sessions/${encodeURIComponent(name)}`;

async function act(action) {
  try {
    await action();
  } catch (error) {
    notice(error.message);
  }
}

function rename(item, name) {
  const field = make("input", { value: name, maxLength: 100, ariaLabel: `New name of ${name}` });
  const done = async (keep) => {
    field.onblur = null;
    const wanted = field.value.trim();
    if (keep && wanted && wanted !== name) {
      await act(async () => {
        await send(path(name), { name: wanted }, "PATCH");
        if (current() === name) renamed(wanted);
      });
    }
    await refresh();
  };
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter") done(true);
    if (event.key === "Escape") done(false);
    event.stopPropagation();
  });
  field.onblur = () => done(true);
  item.replaceChildren(field);
  field.select();
}

function row({ name, last, messages }) {
  const item = make("li", { className: name === current() ? "current" : "" });
  const open = button(name, () => act(async () => {
    await load(name);
    showConversations(false);
    await refresh();
  }), { className: "open", dir: "auto", title: `${name}, ${Math.ceil(messages / 2)} questions` });
  if (name === current()) open.setAttribute("aria-current", "true");
  item.append(open, make("div", { className: "small" },
    make("time", { dateTime: last, textContent: day(last) }),
    make("span", { className: "actions" },
      button("Rename", () => rename(item, name), { ariaLabel: `Rename ${name}` }),
      sureButton("Delete", () => act(async () => {
        await call(path(name), { method: "DELETE" });
        if (current() === name) begin();
        notice(`Deleted ${name}.`);
        await refresh();
      }), { ariaLabel: `Delete ${name}` }))));
  return item;
}

let asked = 0;
export async function refresh() {
  const words = at("find-conversation").value.trim(), mine = ++asked;
  const { data } = await get(`v1/sessions${words ? `?search=${encodeURIComponent(words)}` : ""}`);
  if (mine !== asked) return; // a later search has been answered
  at("kept").replaceChildren(...data.slice(0, SHOWN).map(row));
  at("no-kept").hidden = data.length > 0;
  at("no-kept").textContent = words ? "No conversation has these words." : "Conversations are kept here.";
}

export function showConversations(on) {
  at("conversations").classList.toggle("open", on);
  at("show-conversations").setAttribute("aria-expanded", on);
}

export function prepare() {
  let later;
  onKept(() => refresh().catch(() => {}));
  at("find-conversation").addEventListener("input", () => {
    clearTimeout(later);
    later = setTimeout(() => act(refresh), 150);
  });
  at("show-conversations").addEventListener("click", () => showConversations(!at("conversations").classList.contains("open")));
  at("reset").addEventListener("click", () => {
    begin();
    showConversations(false);
    act(refresh);
  });
}
