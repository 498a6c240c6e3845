// What an answer drew on: passages in the order of their use, numbered, cited beside the words.

import { button, count, listed, make, name, notice } from "./dom.js";
import { send } from "./server.js";

const SHOWN = 3; // used passages that are not folded
const CITED = 3; // numbers beside one span
const MARK = "cited"; // name of the highlight

export function place(source) {
  const part = source.page != null ? `, page ${source.page}` : source.line != null ? `, line ${source.line}` : "";
  return `${source.path ? name(source.path) : "A document"}${part}${source.store ? ` (in ${name(source.store)})` : ""}`;
}

// The passages of an answer, each once, used ones first: with the spans that used it and its number.
export function gather(sources) {
  const found = new Map();
  const spans = new Set(sources.map((source) => source.span)).size;
  for (const source of sources) {
    const key = JSON.stringify([source.store, source.document, source.start]);
    const passage = found.get(key) ?? { ...source, used: false, share: 0, spans: [] };
    found.set(key, passage);
    passage.share = source.share == null || passage.share == null ? null : passage.share + source.share / spans;
    if (!source.used) continue;
    passage.used = true;
    passage.spans.push(source.span);
  }
  const passages = [...found.values()].sort((a, b) => b.used - a.used || (b.share ?? 0) - (a.share ?? 0));
  passages.forEach((passage, i) => { passage.number = passage.used ? i + 1 : null; });
  return passages;
}

export function documentsOf(sources) {
  return [...new Set(sources.map((source) => (source.path ? name(source.path) : "a document")))];
}

// A button that opens what is kept of a document, or of its reference that starts there.
export function inside(path, id, start, text = "Look inside") {
  return button(text, async () => {
    const view = open("", "_blank"); // at once, or a browser takes it for an advertisement
    try {
      const { page } = await send(`v1/memories/${id}/view`, start === undefined ? {} : { start });
      view.location.replace(new URL(page, location.href));
    } catch (error) {
      view?.close();
      notice(error.message);
    }
  }, { ariaLabel: `Look inside ${name(path)}` });
}

// `top` is the largest share, to which the bars are drawn.
function row(passage, show, top) {
  const title = `${place(passage)}${passage.share ? `, ${Math.round(100 * passage.share)} % of the attention` : ""}`;
  const item = make("li", { className: "passage", tabIndex: 0 },
    make("span", { className: "number", textContent: passage.number ?? "" }),
    make("div", {},
      make("span", { className: "place", textContent: place(passage), title: passage.path ?? title, dir: "auto" }),
      ...(passage.share ? [make("meter", { value: passage.share, max: top, title, ariaLabel: title })] : []),
      ...(passage.store || !passage.path ? [] : [inside(passage.path, passage.document, passage.start)]),
      make("span", { className: "quote", dir: "auto", textContent: (passage.text ?? "").replace(/\s+/g, " ").trim() }),
    ));
  for (const [on, off] of [["pointerenter", "pointerleave"], ["focusin", "focusout"]]) {
    item.addEventListener(on, () => show(passage.spans));
    item.addEventListener(off, () => show([]));
  }
  return item;
}

// Shows the words of some spans; `ranges` are those of each span.
function shower(ranges) {
  return (spans) => {
    if (!globalThis.Highlight) return;
    CSS.highlights.delete(MARK);
    const shown = spans.map((span) => ranges.get(span)).filter(Boolean);
    if (shown.length) CSS.highlights.set(MARK, new Highlight(...shown));
  };
}

// The passages below an answer. `edges` are the ends of its spans, by number, in `words`.
export function sourcesList(passages, words, edges) {
  const ranges = new Map();
  let before = null;
  for (const [span, edge] of edges) {
    const range = document.createRange();
    if (before) range.setStartAfter(before);
    else range.setStart(words, 0);
    range.setEndBefore(edge);
    ranges.set(span, range);
    before = edge;
  }
  const show = shower(ranges);
  const top = Math.max(...passages.map((passage) => passage.share ?? 0));
  const rows = passages.map((passage) => row(passage, show, top));
  const used = passages.filter((passage) => passage.used);
  cite(used, rows, edges, show);
  const first = rows.slice(0, Math.min(SHOWN, used.length)), rest = rows.slice(first.length);
  const list = make("section", { className: "sources", ariaLabel: "Sources" },
    make("h4", { textContent: `Drew on ${listed(documentsOf(used))}` }), make("ol", {}, ...first));
  if (rest.length) {
    const idle = passages.length - used.length;
    const facts = [
      ...(used.length > first.length ? [`${count(used.length - first.length, "more passage")}`] : []),
      ...(idle ? [`${idle} read and hardly used`] : []),
    ];
    list.append(make("details", {}, make("summary", { textContent: facts.join(", ") }), make("ol", {}, ...rest)));
  }
  return list;
}

// Puts the numbers of the used passages beside each run of spans that used the same ones.
function cite(used, rows, edges, show) {
  const spans = [...edges];
  const numbers = spans.map(([span]) => used.filter((passage) => passage.spans.includes(span)));
  spans.forEach(([, edge], i) => {
    if (!numbers[i].length || String(numbers[i].map((p) => p.number)) === String((numbers[i + 1] ?? []).map((p) => p.number))) return;
    const run = spans.filter(([span]) => numbers[i].every((passage) => passage.spans.includes(span))).map(([span]) => span);
    const cites = numbers[i].slice(0, CITED).map((passage) => {
      const made = button(passage.number, () => {
        const target = rows[passage.number - 1]; // used ones come first
        target.closest("details")?.setAttribute("open", "");
        target.focus();
        target.scrollIntoView({ block: "nearest" });
      }, { className: "cite", title: place(passage), ariaLabel: `Source ${passage.number}, ${place(passage)}` });
      for (const [on, off] of [["pointerenter", "pointerleave"], ["focus", "blur"]]) {
        made.addEventListener(on, () => show(run));
        made.addEventListener(off, () => show([]));
      }
      return made;
    });
    edge.append(make("span", { className: "cites" }, ...cites));
  });
}
