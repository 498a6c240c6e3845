// One answer on the page: a line that says what happens, its words, and what it drew on.

import { button, copy, listed, make, notice, seconds } from "./dom.js";
import { patch, render } from "./markdown.js";
import { documentsOf, gather, sourcesList } from "./sources.js";

export const TITLES = { explicit: "Memory", text: "Text", off: "Off" };
const SLOW = 100; // milliseconds between two renderings of an answer that grows

// What is kept of an answer.
export function newAnswer(mode) {
  return { mode, text: "", thoughts: "", spans: [], sources: [], note: null, timings: null, error: null, stopped: false };
}

export class Answer {
  // `actions` are buttons at its end: [text, action, options].
  constructor(data, actions = []) {
    this.data = data;
    this.state = make("span", { className: "state" });
    this.words = make("div", { className: "words" });
    this.thoughts = make("div", { className: "thought" });
    this.thinking = make("details", { className: "thoughts", hidden: true }, make("summary", { textContent: "Thoughts" }), this.thoughts);
    this.foot = make("div", { className: "foot" });
    this.element = make("article", { className: "answer" },
      make("p", { className: "line" }, make("span", { className: "mode", textContent: TITLES[data.mode] ?? data.mode }), this.state),
      this.thinking, this.words, this.foot);
    this.actions = actions;
  }

  // --- while it grows

  wait(what) {
    this.element.classList.add("waiting");
    this.doing = what;
    this.since ??= Date.now();
    this.timer ??= setInterval(() => this.tell(), 1000);
    this.tell();
  }

  tell() {
    const waited = Math.round((Date.now() - this.since) / 1000);
    this.state.textContent = waited > 1 ? `${this.doing} · ${waited} s` : this.doing;
  }

  // Takes an event of the stream.
  take(event) {
    const more = event.m3mlx ?? {}, delta = event.choices?.[0]?.delta ?? {}, data = this.data;
    if (more.memory) {
      data.mode = more.memory;
      this.element.querySelector(".mode").textContent = TITLES[data.mode];
      this.wait(data.mode === "off" ? "Reading the question" : "Looking through the documents");
    }
    if ("span" in more) {
      data.spans.push([more.span, data.text.length]);
      data.sources.push(...more.sources);
      if (!data.text && more.sources.length) this.wait(`Reading ${listed(documentsOf(more.sources))}`);
    } else if (more.sources) {
      data.sources = more.sources;
      data.note = more.note ?? null;
    }
    data.timings = more.timings ?? data.timings;
    data.cut = event.choices?.[0]?.finish_reason === "length" || data.cut;
    if (delta.reasoning_content) {
      data.thoughts += delta.reasoning_content;
      this.wait("Thinking");
    }
    if (delta.content) {
      if (!data.text) this.wait(data.sources.length ? `Read ${listed(documentsOf(data.sources))}` : "Answering");
      data.text += delta.content;
    }
    if (delta.content || delta.reasoning_content) this.later ??= setTimeout(() => this.grow(), SLOW);
  }

  grow() {
    this.later = null;
    this.thinking.hidden = !this.data.thoughts;
    this.thoughts.textContent = this.data.thoughts;
    patch(this.words, render(this.data.text).fragment);
    this.grown?.();
  }

  // --- once it is whole

  end() {
    clearTimeout(this.later);
    clearInterval(this.timer);
    this.element.classList.remove("waiting");
    const { data } = this, { timings } = data;
    this.thinking.hidden = !data.thoughts;
    this.thoughts.textContent = data.thoughts;
    const facts = [];
    if (data.note) facts.push(data.note.replace(/\.$/, ""));
    if (data.stopped) facts.push("stopped");
    else if (data.cut) facts.push("cut at the length in the settings");
    if (timings?.first_token_seconds) facts.push(`first word after ${seconds(timings.first_token_seconds)}`);
    if (timings?.decode_tokens_per_second > 0 && timings.generated_tokens > 1) facts.push(`${timings.decode_tokens_per_second.toFixed(timings.decode_tokens_per_second < 10 ? 1 : 0)} tokens/s`);
    this.state.textContent = facts.join(" · ");
    this.settle();
    if (data.error) this.element.append(make("p", { className: "error", textContent: data.error, role: "alert" }));
    const buttons = data.text ? [["Copy", () => copy(data.text).then(() => notice("Copied.")), { ariaLabel: "Copy this answer" }]] : [];
    this.foot.replaceChildren(...[...buttons, ...this.actions].map((each) => button(...each)));
    this.element.append(this.foot);
  }

  // Shows words and sources; again when the texts of kept sources have come.
  settle() {
    const { data } = this;
    const ends = data.spans.map((_, i) => data.spans[i + 1]?.[1] ?? data.text.length);
    const { fragment, edges } = render(data.text, ends);
    if (!data.text && !data.error) fragment.append(make("p", { className: "soft", textContent: data.stopped ? "Stopped before the first word." : "The answer is empty." }));
    this.words.replaceChildren(fragment);
    this.sources?.remove();
    this.sources = null;
    const passages = gather(data.sources);
    if (!passages.length || !data.text) return;
    const numbered = data.spans.map(([span], i) => [span, edges[i]]);
    this.sources = sourcesList(passages, this.words, numbered);
    this.words.after(this.sources);
  }
}
