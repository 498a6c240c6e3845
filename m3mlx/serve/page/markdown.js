// Answers as Markdown: tables, code with highlighting, formulas. Raw HTML stays text; what the
// libraries make of the rest is sanitized once more; images and foreign hosts are links only.

const { markdownit, hljs, temml, DOMPurify } = globalThis;

const EDGE = "\uE000"; // stands in the text where a span ends
const ALLOWED = {
  ALLOWED_TAGS: (
    "a p br hr h1 h2 h3 h4 h5 h6 ul ol li blockquote pre code em strong s span div button table thead "
    + "tbody tr th td math mrow mi mn mo ms mtext mspace mfrac msqrt mroot msub msup msubsup munder "
    + "mover munderover mtable mtr mtd mpadded mphantom menclose mstyle merror mmultiscripts "
    + "mprescripts none #text"
  ).split(" "),
  ALLOWED_ATTR: (
    "class href dir type start tabindex target rel role aria-label display mathvariant stretchy fence "
    + "separator form lspace rspace minsize maxsize accent accentunder columnalign rowspan colspan width "
    + "height depth voffset linethickness displaystyle scriptlevel symmetric movablelimits"
  ).split(" "),
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

const md = markdownit({ html: false, linkify: true, breaks: false });
md.linkify.set({ fuzzyLink: false, fuzzyEmail: false });

const bare = (text) => text.replaceAll(EDGE, "");
// The edges inside of code and formulas, which come behind them.
const edges = (text) => text.replace(/[^\uE000]/g, "");
const escape = md.utils.escapeHtml;

const normalize = md.normalizeLink;
md.normalizeLink = (url) => normalize(bare(url));
const valid = md.validateLink;
md.validateLink = (url) => valid(url) && /^(https?:|mailto:|#)/i.test(bare(url).trim());

function codeBlock(text, language) {
  const code = bare(text).replace(/\n$/, ""), known = hljs.getLanguage(language);
  const shown = known && code.length < 20_000 ? hljs.highlight(code, { language, ignoreIllegals: true }).value : escape(code);
  return `<div class="code" dir="ltr"><div class="bar"><span>${escape(language || "text")}</span>`
    + `<button type="button" class="link copy">Copy</button></div>`
    + `<pre tabindex="0" role="region" aria-label="Code"><code>${shown}</code></pre></div>${edges(text)}`;
}

Object.assign(md.renderer.rules, {
  fence: (tokens, i) => codeBlock(tokens[i].content, bare(tokens[i].info).trim().split(/\s+/)[0]),
  code_block: (tokens, i) => codeBlock(tokens[i].content, ""),
  code_inline: (tokens, i) => `<code>${escape(bare(tokens[i].content))}</code>${edges(tokens[i].content)}`,
  image: (tokens, i) => {
    const [, href] = tokens[i].attrs.find(([name]) => name === "src");
    const text = escape(bare(tokens[i].content) || href);
    return `<a href="${escape(href)}" target="_blank" rel="noopener noreferrer">${text}</a>${edges(tokens[i].content)}`;
  },
  link_open: (tokens, i, options, env, self) => {
    tokens[i].attrSet("target", "_blank");
    tokens[i].attrSet("rel", "noopener noreferrer");
    return self.renderToken(tokens, i, options);
  },
  table_open: () => '<div class="table" tabindex="0" role="region" aria-label="Table"><table>',
  table_close: () => "</table></div>",
  formula: (tokens, i) => {
    const { content, block } = tokens[i];
    const made = temml.renderToString(bare(content), {
      displayMode: block, throwOnError: false, trust: false, maxExpand: 100, maxSize: [20, 20],
    });
    return made.replace(/ style="[^"]*"/g, "") + edges(content);
  },
});

for (const kind of ["paragraph", "heading", "blockquote", "bullet_list", "ordered_list", "list_item", "th", "td"]) {
  const before = md.renderer.rules[`${kind}_open`];
  md.renderer.rules[`${kind}_open`] = (tokens, i, options, env, self) => {
    const style = tokens[i].attrGet("style")?.replace("text-align:", "");
    if (style) tokens[i].attrs = [["class", `align-${style}`]];
    tokens[i].attrSet("dir", "auto");
    return before ? before(tokens, i, options, env, self) : self.renderToken(tokens, i, options);
  };
}

const FORMULAS = [["$$", "$$", true], ["\\[", "\\]", true], ["\\(", "\\)", false], ["$", "$", false]];
md.inline.ruler.before("escape", "formula", (state, silent) => {
  for (const [open, close, block] of FORMULAS) {
    if (!state.src.startsWith(open, state.pos)) continue;
    const start = state.pos + open.length, end = state.src.indexOf(close, start);
    if (end <= start || end > state.posMax - close.length) continue;
    const content = state.src.slice(start, end);
    // one dollar begins a formula, and not a price, where no blank is inside and no digit follows
    if (open === "$" && (/^\s|\s$|\n\n/.test(content) || /[\dA-Za-z]/.test(state.src[end + 1] ?? ""))) continue;
    if (!silent) Object.assign(state.push("formula", "math", 0), { content, block });
    state.pos = end + close.length;
    return true;
  }
  return false;
});

const INSIDE = /^\s*(```|~~~|\$\$|\\\[)/; // a line on which a mark would change what it means
const MARKER = /^[\s>]*([-*+#]+|\d+[.)])?$/;

// Puts an edge after each of some places, at the end of the word there.
function withEdges(text, ends) {
  const clean = text.replaceAll(EDGE, " ");
  const fit = /[\p{L}\p{N}][.,;:!?)\]]*(?=\s|$)/gu;
  const places = [];
  for (const end of ends) {
    fit.lastIndex = Math.max(end - 1, 0);
    for (let found; (found = fit.exec(clean));) {
      const place = found.index + found[0].length;
      const line = clean.lastIndexOf("\n", found.index) + 1;
      if (place < end || INSIDE.test(clean.slice(line)) || MARKER.test(clean.slice(line, place))) continue;
      places.push(place);
      break;
    }
  }
  let made = "", before = 0;
  for (const place of places) {
    made += clean.slice(before, place) + EDGE;
    before = place;
  }
  return made + clean.slice(before);
}

// Replaces the marks in a rendered answer by elements, in order; those that found no place end it.
function edgeElements(fragment, wanted) {
  const walker = document.createTreeWalker(fragment, NodeFilter.SHOW_TEXT);
  const texts = [];
  while (walker.nextNode()) if (walker.currentNode.data.includes(EDGE)) texts.push(walker.currentNode);
  const made = [];
  for (const text of texts) {
    const parts = text.data.split(EDGE);
    const pieces = parts.flatMap((part, i) => {
      if (i === parts.length - 1) return [part];
      made.push(Object.assign(document.createElement("span"), { className: "edge" }));
      return [part, made.at(-1)];
    });
    text.replaceWith(...pieces);
  }
  for (const edge of [...made].reverse()) {
    const around = edge.closest("a, code");
    if (around) around.after(edge);
  }
  const last = [...fragment.children].filter((each) => each.matches("p, ul, ol")).at(-1);
  const end = (last?.matches("p") ? last : last?.querySelector(":scope > li:last-child")) ?? fragment;
  while (made.length < wanted) {
    made.push(Object.assign(document.createElement("span"), { className: "edge" }));
    end.append(made.at(-1));
  }
  return made;
}

// Renders an answer; returns a fragment, and an element at the end of each span.
export function render(text, ends = []) {
  const fragment = DOMPurify.sanitize(md.render(withEdges(text, ends)), ALLOWED);
  return { fragment, edges: edgeElements(fragment, ends.length) };
}

// Shows a fragment in place of what is there, and leaves what has not changed.
export function patch(target, fragment) {
  const fresh = [...fragment.childNodes];
  let same = 0;
  while (same < fresh.length && target.childNodes[same]?.isEqualNode(fresh[same])) same += 1;
  while (target.childNodes.length > same) target.lastChild.remove();
  target.append(...fresh.slice(same));
}
