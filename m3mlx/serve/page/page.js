// The page: ask, show answers as they grow with their sources, memorize, list and forget.
// Text of models and documents only ever becomes text nodes.

const TITLES = { explicit: "Memory", text: "Text", off: "Off" };
const MANY = 10; // documents, from which on one may want to search for one
const SPAN = 64; // tokens of an answer between two retrievals
const at = (id) => document.getElementById(id);

// What was said, once for each kind of memory: side by side, answers go apart.
const said = { explicit: [], text: [], off: [] };
let asking = null; // aborts the answer that is being written

// --- the server

function headers(more = {}) {
  const token = sessionStorage.getItem("token");
  return token ? { ...more, Authorization: `Bearer ${token}` } : more;
}

async function call(path, options = {}) {
  for (;;) {
    const response = await fetch(path, { ...options, headers: headers(options.headers) });
    if (response.status === 401) {
      await login();
      continue;
    }
    if (!response.ok) {
      const told = await response.json().catch(() => null);
      throw new Error(told?.error?.message ?? `The server answers ${response.status}.`);
    }
    return response;
  }
}

let loggingIn = null;
function login() {
  loggingIn ??= new Promise((done) => {
    at("login").addEventListener("close", () => {
      sessionStorage.setItem("token", at("token").value);
      at("token").value = "";
      loggingIn = null;
      done();
    }, { once: true });
    at("login").showModal();
  });
  return loggingIn;
}

// The objects of server-sent events.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const lines = text.split("\n");
    text = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

// --- building

function make(tag, options = {}, ...children) {
  const element = Object.assign(document.createElement(tag), options);
  element.append(...children);
  return element;
}

function notice(text) {
  at("notice").textContent = text;
  at("notice").hidden = false;
  clearTimeout(notice.timer);
  notice.timer = setTimeout(() => { at("notice").hidden = true; }, 5000);
}

const count = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

function bytes(n) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let power = 0;
  while (n >= 1000 && power < 4) { n /= 1000; power += 1; }
  return `${n.toFixed(power ? 1 : 0)} ${units[power]}`;
}

function name(path) {
  return path.replace(/^(upload|text):/, "").split(/[\\/]/).pop();
}

function place(source) {
  const part = source.page !== null ? `, page ${source.page}` : source.line !== null ? `, line ${source.line}` : "";
  return `${name(source.path)}${part}${source.store ? ` (in ${name(source.store)})` : ""}`;
}

// --- answers

// One answer on the page: its words in spans of 64 tokens, and what each span drew on.
class Answer {
  constructor(mode, titled) {
    this.words = make("p", { className: "words" });
    this.element = make("article", { className: "answer waiting" }, this.words);
    if (titled) this.element.prepend(make("h3", { textContent: TITLES[mode] }));
    this.spans = [];
    this.text = "";
  }

  begin(number, sources) {
    const part = make("span", { className: "span" });
    this.words.append(part);
    this.spans.push({ number, sources, part });
  }

  // All sources of the answer, once it is known how much of the attention each received.
  settle(sources, note) {
    for (const span of this.spans) span.sources = sources.filter((source) => source.span === span.number);
    this.note = note;
  }

  add(text) {
    if (!text) return;
    this.text += text;
    const part = this.spans.at(-1)?.part ?? this.words;
    part.append(text);
  }

  fail(message) {
    this.element.append(make("p", { className: "error", textContent: message }));
  }

  end(timings) {
    this.element.classList.remove("waiting");
    if (!this.text) this.words.textContent = "…";
    const told = this.spans.filter((span) => span.sources.length);
    const places = new Set(told.flatMap((span) => span.sources.filter((s) => s.used).map((s) => s.path)));
    const facts = this.note ? [this.note] : [];
    if (places.size) facts.push(`Drew on ${count(places.size, "document")}`);
    if (timings) facts.push(`${facts.length ? "first" : "First"} word after ${timings.first_token_seconds.toFixed(1)} s`);
    if (!told.length) {
      if (facts.length) this.element.append(make("p", { className: "sources", textContent: facts.join(" · ") }));
      return;
    }
    const summary = make("summary", { textContent: facts.join(" · ") });
    this.element.append(make("details", { className: "sources" }, summary, ...told.map((span) => this.passage(span))));
  }

  // A span of the answer, and the references it drew on; pointing at it shows its words.
  passage({ number, sources, part }) {
    const first = number * SPAN + 1;
    const title = make("button", {
      className: "link", type: "button", textContent: `Tokens ${first} to ${first + SPAN - 1}`,
    });
    const rows = sources.map((source) => make("li", {},
      make("span", { className: "place", textContent: place(source), title: source.path }),
      source.share === null
        ? make("span", { className: "near", textContent: source.distance.toFixed(3), title: "Distance from the question" })
        : make("span", { className: "near", title: "Share of the attention",
          textContent: `${Math.round(100 * source.share)} %${source.used ? "" : ", not used"}` }),
      ...(source.store ? [] : [inside(source.path, source.document, source.start)]),
      make("span", { className: "quote", textContent: source.text.replace(/\s+/g, " ").trim() }),
    ));
    const passage = make("section", { className: "passage" }, title, make("ol", {}, ...rows));
    const show = (on) => () => part.classList.toggle("shown", on);
    passage.addEventListener("pointerenter", show(true));
    passage.addEventListener("pointerleave", show(false));
    passage.addEventListener("focusin", show(true));
    passage.addEventListener("focusout", show(false));
    title.addEventListener("click", () => part.scrollIntoView({ block: "nearest" }));
    return passage;
  }
}

async function answer(mode, messages, shown, signal) {
  let timings = null;
  try {
    const response = await call("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ messages, memory: at("list").children.length ? mode : undefined, stream: true }),
      signal,
    });
    for await (const event of events(response)) {
      const more = event.m3mlx ?? {};
      if ("span" in more) shown.begin(more.span, more.sources);
      else if (more.sources) shown.settle(more.sources, more.note);
      timings = more.timings ?? timings;
      shown.add(event.choices[0]?.delta?.content);
      scroll();
    }
  } catch (error) {
    if (error.name !== "AbortError") shown.fail(error.message);
  }
  shown.end(timings);
  return shown.text;
}

function scroll(always = false) {
  const log = at("log");
  if (always || log.scrollHeight - log.scrollTop - log.clientHeight < 120) log.scrollTop = log.scrollHeight;
}

async function ask(question) {
  at("welcome")?.remove();
  const mode = document.querySelector("input[name=mode]:checked").value;
  const modes = mode === "compare" ? Object.keys(said) : [mode];
  at("log").append(make("div", { className: "question" }, make("p", { textContent: question })));
  const answers = modes.map((one) => new Answer(one, modes.length > 1));
  const elements = answers.map((one) => one.element);
  if (modes.length > 1) at("log").append(make("div", { className: "side" }, ...elements));
  else at("log").append(...elements);
  const here = { ...said }; // a new conversation may begin before this answer ends
  for (const one of Object.values(here)) one.push({ role: "user", content: question });
  asking = new AbortController();
  busy(true);
  scroll(true);
  const texts = {};
  for (const [number, one] of modes.entries()) {
    texts[one] = await answer(one, here[one], answers[number], asking.signal);
  }
  for (const one of Object.keys(said)) {
    const text = texts[one] ?? texts[modes[0]];
    if (text) here[one].push({ role: "assistant", content: text });
    else here[one].pop(); // what was not answered is not part of what was said
  }
  asking = null;
  busy(false);
  scroll();
}

function busy(on) {
  at("send").hidden = on;
  at("stop").hidden = !on;
  at("log").setAttribute("aria-busy", on);
}

// --- documents

async function refresh() {
  const { data } = await (await call("v1/memories")).json();
  at("list").replaceChildren(...data.map(row).reverse()); // the newest first
  at("find").hidden = data.length < MANY;
  find();
  at("none").hidden = data.length > 0;
  const state = await (await call("v1/memories/status")).json();
  at("about").textContent = state.collection ? `${state.model} · ${state.collection}` : state.model;
  const size = Object.values(state.bytes).reduce((sum, part) => sum + part, 0);
  at("store").textContent = data.length ? `${count(state.references, "reference")}, ${bytes(size)} on disk` : "";
}

// Shows the documents whose names hold what is typed.
function find() {
  const wanted = at("find").hidden ? "" : at("find").value.trim().toLowerCase();
  for (const item of at("list").children) {
    item.hidden = !item.querySelector(".name").title.toLowerCase().includes(wanted);
  }
}

// A button that opens what is kept of a document, or of its reference that starts there.
function inside(path, id, start) {
  const button = make("button", { className: "link", type: "button", textContent: "Look inside" });
  button.setAttribute("aria-label", `Look inside ${name(path)}`);
  button.addEventListener("click", async () => {
    const view = open("", "_blank"); // at once, or a browser takes it for an advertisement
    try {
      const response = await call(`v1/memories/${id}/view`, {
        method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ start }),
      });
      view.location.replace(new URL((await response.json()).page, location.href));
    } catch (error) {
      view?.close();
      notice(error.message);
    }
  });
  return button;
}

function row(document) {
  const forget = make("button", { className: "link", type: "button", textContent: "Forget" });
  forget.setAttribute("aria-label", `Forget ${name(document.path)}`);
  forget.addEventListener("click", () => {
    if (forget.dataset.sure) {
      forget.disabled = true;
      erase(document);
      return;
    }
    forget.dataset.sure = "yes";
    forget.textContent = "Really forget?";
    setTimeout(() => { delete forget.dataset.sure; forget.textContent = "Forget"; }, 4000);
  });
  const state = document.state === "warm" ? "" : `, ${document.state}`;
  return make("li", {},
    make("div", { className: "name", textContent: name(document.path), title: document.path }),
    make("div", { className: "small" },
      make("span", { textContent: `${count(document.references, "reference")}${state}` }),
      make("span", { className: "actions" }, inside(document.path, document.id), forget)),
  );
}

async function erase(document) {
  try {
    await call(`v1/memories/${document.id}`, { method: "DELETE" });
    notice(`Forgot ${name(document.path)}.`);
  } catch (error) {
    notice(error.message);
  }
  await refresh();
}

async function memorize(files) {
  showDocuments(true);
  const items = [...files].map((file) => {
    const bar = make("progress", { max: 1 });
    bar.setAttribute("aria-label", `Memorizing ${file.name}`);
    const text = make("span", { textContent: "waiting" });
    const item = make("li", {}, make("div", { className: "name", textContent: file.name }), bar,
      make("div", { className: "small" }, text));
    at("uploads").append(item);
    return { file, bar, text, item };
  });
  for (const { file, bar, text, item } of items) {
    try {
      const form = new FormData();
      form.append("file", file);
      const response = await call("v1/memories", {
        method: "POST", headers: { Accept: "text/event-stream" }, body: form,
      });
      for await (const event of events(response)) {
        if (!event.total) continue;
        bar.value = event.done / event.total;
        text.textContent = `${event.progress}, ${Math.round(100 * bar.value)} %`;
      }
      item.remove();
      await refresh();
      notice(`Remembered ${file.name}.`);
    } catch (error) {
      bar.remove();
      text.className = "error";
      text.textContent = error.message;
      const close = make("button", { className: "link", type: "button", textContent: "Close" });
      close.addEventListener("click", () => item.remove());
      text.after(close);
    }
  }
}

function showDocuments(on) {
  at("documents").classList.toggle("open", on);
  at("show-documents").setAttribute("aria-expanded", on);
  at("show-documents").textContent = on ? "Conversation" : "Documents";
}

// --- what people do

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = at("question").value.trim();
  if (!question || asking) return;
  at("question").value = "";
  ask(question);
});
at("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("ask").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") asking?.abort(); });
at("stop").addEventListener("click", () => asking?.abort());
at("reset").addEventListener("click", () => {
  asking?.abort();
  for (const one of Object.keys(said)) said[one] = [];
  at("log").replaceChildren();
  at("question").focus();
});
at("show-documents").addEventListener("click", () => showDocuments(!at("documents").classList.contains("open")));
at("find").addEventListener("input", find);
at("add").addEventListener("click", () => at("files").click());
at("files").addEventListener("change", () => {
  memorize(at("files").files).then(() => { at("files").value = ""; });
});

let over = 0; // elements that a dragged file is over
const carries = (event) => event.dataTransfer?.types.includes("Files");
addEventListener("dragenter", (event) => {
  if (!carries(event)) return;
  over += 1;
  at("drop").hidden = false;
});
addEventListener("dragleave", (event) => {
  if (carries(event) && --over <= 0) at("drop").hidden = true;
});
addEventListener("dragover", (event) => { if (carries(event)) event.preventDefault(); });
addEventListener("drop", (event) => {
  if (!carries(event)) return;
  event.preventDefault();
  over = 0;
  at("drop").hidden = true;
  memorize(event.dataTransfer.files);
});

refresh().catch((error) => notice(error.message));
