// Elements and words of the page. Text of models and documents becomes text nodes here; only
// markdown.js makes markup of it, sanitized.

export const at = (id) => document.getElementById(id);

export function make(tag, options = {}, ...children) {
  const element = Object.assign(document.createElement(tag), options);
  element.append(...children);
  return element;
}

export function button(text, action, options = {}) {
  const made = make("button", { type: "button", className: "link", textContent: text, ...options });
  made.addEventListener("click", action);
  return made;
}

// A button that acts at the second click.
export function sureButton(text, action, options = {}) {
  const made = button(text, () => {
    if (made.dataset.sure) {
      made.disabled = true;
      action();
      return;
    }
    made.dataset.sure = "yes";
    made.textContent = `Really ${text.toLowerCase()}?`;
    setTimeout(() => {
      delete made.dataset.sure;
      made.textContent = text;
    }, 4000);
  }, options);
  return made;
}

export function notice(text) {
  at("notice").textContent = text;
  at("notice").hidden = false;
  clearTimeout(notice.timer);
  notice.timer = setTimeout(() => { at("notice").hidden = true; }, 5000);
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // not a secure context, such as http by another machine's address
    const field = make("textarea", { value: text, className: "unseen" });
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
}

export const number = (n) => n.toLocaleString("en");
export const count = (n, word) => `${number(n)} ${word}${n === 1 ? "" : "s"}`;

export function bytes(n) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let power = 0;
  while (n >= 1000 && power < 4) { n /= 1000; power += 1; }
  return `${n.toFixed(power ? 1 : 0)} ${units[power]}`;
}

export function seconds(n) {
  if (n < 10) return `${n.toFixed(1)} s`;
  return n < 90 ? `${Math.round(n)} s` : `${Math.round(n / 60)} min`;
}

export function day(iso) {
  const then = new Date(iso), now = new Date();
  const same = then.toDateString() === now.toDateString();
  return same ? then.toLocaleTimeString("en", { hour: "2-digit", minute: "2-digit", hourCycle: "h23" })
    : then.toLocaleDateString("en", { day: "numeric", month: "short", year: then.getFullYear() === now.getFullYear() ? undefined : "numeric" });
}

// The last part of a document's path.
export function name(path) {
  return path.replace(/^(upload|text|demo|chat):/, "").split(/[\\/]/).pop();
}

export function listed(names, most = 3) {
  const shown = names.slice(0, most), more = names.length - shown.length;
  if (more > 0) return `${shown.join(", ")} and ${more} more`;
  return shown.length > 1 ? `${shown.slice(0, -1).join(", ")} and ${shown.at(-1)}` : shown.join("");
}
