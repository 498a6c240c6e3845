// The conversation on the page: questions, their answers, and how it is kept.

import { Answer, TITLES, newAnswer } from "./answer.js";
import { at, button, copy, make, notice } from "./dom.js";
import { call, events, get, headers, send } from "./server.js";
import { settings } from "./settings.js";

const AGAIN_TEMPERATURE = 0.7; // at 0 another answer would be the same
const DRAFT = "draft"; // a conversation that no store keeps yet, until the tab is closed

// Turns are { question, answers }, side by side with several answers; `name` is that under which the
// store keeps the conversation, `kept` how many messages the store has of it.
const blank = () => ({ turns: [], name: null, kept: 0 });
let here = blank();
let saving = Promise.resolve();
let asking = null; // aborts the answer that is being written
let editing = null; // index of the turn that is asked anew
let told = () => {}; // after the conversation was saved or has got another name

export function onKept(action) { told = action; }
export const current = () => here.name;
export const isAsking = () => asking !== null;
export const stop = () => asking?.abort();

const log = () => at("log");

function scroll(always = false) {
  const view = log();
  if (always || view.scrollHeight - view.scrollTop - view.clientHeight < 160) view.scrollTop = view.scrollHeight;
}

// --- keeping

// Messages of the first turns, as the store keeps them; only the last may lack an answer.
function messages({ turns }) {
  return turns.flatMap(({ question, answers }, i) => {
    const asked = { role: "user", content: question };
    if (!answers && i === turns.length - 1) return [asked];
    const [first, ...others] = answers ?? [newAnswer("off")];
    return [asked, { role: "assistant", content: first.text, details: { ...details(first), others: others.map((one) => ({ ...details(one), text: one.text })) } }];
  });
}

// What is kept of an answer beside its words. Texts of documents are not: to forget one erases it.
function details({ mode, thoughts, spans, sources, note, timings, error, stopped, cut }) {
  const bare = sources.map(({ document, start, end, page, line, span, share, used, store }) => ({ document, start, end, page, line, span, share, used, store }));
  return { mode, thoughts, spans, sources: bare, note, timings, error, stopped, cut };
}

// Keeps a conversation from a message on, one save after the other.
function save(talk, from) {
  if (!settings().keep) return saving;
  const all = messages(talk);
  saving = saving.then(async () => {
    const first = talk.uneven ? 0 : Math.min(from, talk.kept);
    if (talk.name !== null) {
      try {
        await send(path(talk), { keep: first, expect: talk.kept, messages: all.slice(first) }, "PUT");
        Object.assign(talk, { kept: all.length, uneven: false });
        return told();
      } catch (error) {
        if (![404, 409].includes(error.status)) throw error; // else it was changed or deleted elsewhere: keep this one beside it
      }
    }
    talk.name = (await send("v1/sessions", { title: all[0].content, messages: all })).name;
    talk.kept = all.length;
    sessionStorage.removeItem(DRAFT);
    if (talk === here) address();
    told();
  }).catch((error) => {
    sessionStorage.setItem(DRAFT, JSON.stringify(all));
    if (error.status !== 404) notice(`Not kept: ${error.message}`);
  });
  return saving;
}

const path = (talk) => `v1/sessions/${encodeURIComponent(talk.name)}`;

// Shows the conversation's name in the address, so that a reload finds it.
function address() {
  document.title = here.name ? `${here.name} · m3mlx` : "m3mlx";
  history.replaceState(null, "", here.name ? `#${encodeURIComponent(here.name)}` : location.pathname);
}

// Keeps the half of an answer that is there when the page is closed.
addEventListener("pagehide", () => {
  if (!asking || here.name === null || !settings().keep) return;
  const all = messages(here), { kept } = here;
  fetch(path(here), {
    method: "PUT", keepalive: true, headers: headers({ "Content-Type": "application/json" }),
    body: JSON.stringify({ keep: kept, expect: kept, messages: all.slice(kept) }),
  }).catch(() => {});
});

function answerOf({ content, details: kept }) {
  return { ...newAnswer(kept?.mode ?? "explicit"), ...kept, text: content };
}

function turnsOf(said) {
  const found = [];
  for (const { role, content, details: about } of said) {
    if (role === "user") found.push({ question: content, answers: null });
    else if (role === "assistant" && found.length) {
      found.at(-1).answers = [answerOf({ content, details: about }), ...(about?.others ?? []).map((one) => answerOf({ content: one.text, details: one }))];
    }
  }
  return found;
}

// --- showing

function questionElement(turn, index) {
  const actions = make("div", { className: "foot" },
    button("Copy", () => copy(turn.question).then(() => notice("Copied.")), { ariaLabel: "Copy this question" }),
    button("Edit", () => edit(index), { ariaLabel: "Edit this question" }));
  return make("div", { className: "question" }, make("p", { textContent: turn.question, dir: "auto" }), actions);
}

// The elements of a turn; `answers` are filled as they come.
function turnElement(turn, index) {
  const side = turn.answers?.length > 1;
  turn.shown = (turn.answers ?? []).map((data) => new Answer(data, actionsOf(index, data)));
  const answers = turn.shown.map((one) => one.element);
  const element = make("section", { className: "turn", ariaLabel: `Question ${index + 1}` }, questionElement(turn, index),
    ...(side ? [make("div", { className: "side" }, ...answers)] : answers));
  if (!turn.answers) element.append(unanswered(index));
  turn.element?.replaceWith(element);
  turn.element = element;
  return element;
}

function unanswered(index) {
  return make("article", { className: "answer" },
    make("p", { className: "soft", textContent: "This question was not answered." }),
    make("div", { className: "foot" }, button("Ask again", () => again(index))));
}

function actionsOf(index, data) {
  if (data.error) return [["Try again", () => again(index), { className: "quiet retry" }]];
  const title = `Answer again${settings().temperature === 0 ? `, at temperature ${AGAIN_TEMPERATURE}` : ""}`;
  return [["Answer again", () => again(index, true), { title, ariaLabel: "Answer this question again" }]];
}

function show() {
  const { turns } = here;
  at("welcome").hidden = turns.length > 0;
  log().replaceChildren(at("welcome"), ...turns.map(turnElement));
  for (const turn of turns) turn.shown.forEach((one) => one.end());
  address();
  scroll(true);
}

function busy(on) {
  at("send").hidden = on;
  at("stop").hidden = !on;
  log().setAttribute("aria-busy", on);
}

// --- asking

function request(turns, turn, mode, options) {
  const { temperature, length, system, collection, memories, think } = settings();
  const before = turns.slice(0, turns.indexOf(turn)).flatMap(({ question, answers }) => {
    const answer = answers?.find((one) => one.mode === mode && one.text) ?? answers?.find((one) => one.text);
    return answer ? [{ role: "user", content: question }, { role: "assistant", content: answer.text }] : [];
  });
  const said = [...before, { role: "user", content: turn.question }];
  if (system.trim()) said.unshift({ role: "system", content: system });
  const body = { messages: said, memory: mode, stream: true, temperature, max_tokens: length, ...options };
  if (collection) body.collection = collection;
  if (memories) body.memories = memories;
  if (think) body.chat_template_kwargs = { enable_thinking: true };
  return body;
}

async function answer(turns, turn, one, options, signal) {
  const { data } = one;
  one.wait("Waiting for the model");
  one.grown = scroll;
  try {
    const response = await call("v1/chat/completions", { body: request(turns, turn, data.mode, options), signal });
    for await (const event of events(response)) {
      one.take(event);
      scroll();
    }
  } catch (error) {
    if (error.name === "AbortError") data.stopped = true;
    else data.error = error.message;
  }
  one.actions = actionsOf(turns.indexOf(turn), data);
  one.end();
}

async function run(turn, index, modes, options = {}) {
  if (asking) return;
  const talk = here, { turns } = talk, mine = asking = new AbortController();
  at("welcome").hidden = true;
  turn.answers = null;
  for (const late of turns.slice(index)) late.element?.remove();
  turns.splice(index, turns.length, turn);
  save(talk, 2 * index); // the question, before anything can fail
  turn.answers = modes.map(newAnswer);
  log().append(turnElement(turn, index));
  busy(true);
  scroll(true);
  turn.shown.slice(1).forEach((one, i) => one.wait(`After ${TITLES[modes[i]]}`));
  for (const one of turn.shown) {
    if (mine.signal.aborted) {
      one.data.stopped = true;
      one.end();
    } else await answer(turns, turn, one, options, mine.signal);
  }
  save(talk, 2 * index + 1);
  if (asking !== mine) return; // another conversation is shown by now
  asking = null;
  busy(false);
  scroll();
  at("said").textContent = turn.answers[0].error ? "" : "The answer is complete.";
}

// The modes to answer in: without documents there is nothing to read.
function modes() {
  const { value } = document.querySelector("input[name=mode]:checked");
  if (value === "compare") return Object.keys(TITLES);
  return [at("documents").dataset.total === "0" ? "off" : value];
}

export function ask(question) {
  const index = editing ?? here.turns.length;
  cancelEdit();
  fork(index);
  return run({ question }, index, modes());
}

function again(index, differently = false) {
  if (asking) return;
  const turn = here.turns[index], { temperature } = settings();
  fork(index);
  const options = differently ? { temperature: temperature || AGAIN_TEMPERATURE, seed: Math.floor(Math.random() * 2 ** 31) } : {};
  run({ question: turn.question }, index, turn.answers?.length > 1 ? turn.answers.map((one) => one.mode) : modes(), options);
}

// Before an earlier question is asked anew, goes on in a copy, so that what followed it is not lost.
function fork(index) {
  if (index >= here.turns.length - 1) return;
  if (here.name !== null) notice("The earlier course of this conversation stays in the list.");
  here = { ...blank(), turns: here.turns.slice(0, index) };
  show();
}

function edit(index) {
  if (asking) return;
  editing = index;
  at("question").value = here.turns[index].question;
  at("editing").hidden = false;
  at("question").focus();
}

export function cancelEdit() {
  if (editing === null) return;
  editing = null;
  at("editing").hidden = true;
  at("question").value = "";
}

// --- conversations

function replace(talk) {
  stop();
  asking = null;
  cancelEdit();
  here = talk;
  busy(false);
  show();
}

export function begin() {
  sessionStorage.removeItem(DRAFT);
  replace(blank());
  at("question").focus();
}

export function renamed(to) {
  here.name = to;
  address();
}

// Shows a kept conversation, and then the texts of its sources.
export async function load(name) {
  const { data } = await get(path({ name }));
  const talk = { turns: turnsOf(data), name, kept: data.length };
  // what another program has kept otherwise than in pairs is saved anew, as a whole
  talk.uneven = messages(talk).length !== data.length;
  replace(talk);
  await quote();
}

async function quote() {
  const talk = here, answers = talk.turns.flatMap((turn) => turn.shown);
  const sources = answers.flatMap((one) => one.data.sources).filter((source) => !source.store && source.path === undefined);
  if (!sources.length) return;
  const { data } = await send("v1/memories/quotes", { sources: sources.map(({ document, start }) => ({ document, start })) });
  sources.forEach((source, i) => Object.assign(source, data[i] ?? { path: null, text: "This document was forgotten, or has changed." }));
  for (const one of answers) if (talk === here) one.settle();
}

// Shows again what was there before a reload.
export async function restore() {
  const wanted = decodeURIComponent(location.hash.slice(1));
  if (wanted) {
    try {
      return await load(wanted);
    } catch (error) {
      notice(error.message);
    }
  }
  const draft = sessionStorage.getItem(DRAFT);
  replace({ ...blank(), turns: draft ? turnsOf(JSON.parse(draft)) : [] });
}
