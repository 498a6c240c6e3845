// Files and folders that are memorized: chosen or dropped, sent one after the other with progress.

import { refresh, showDocuments } from "./documents.js";
import { at, button, bytes, count, make, notice, seconds } from "./dom.js";
import { upload } from "./server.js";

const SHOWN = 20; // waiting files that have a row of their own
const OFTEN = 1000; // milliseconds between two looks at the list of documents

let types = new Set(), most = Infinity;
let waiting = [], running = null, done = 0, begun = 0, looked = 0;

export function limits(about) {
  types = new Set(about.types);
  most = about.upload_bytes;
}

const readable = ({ name }) => types.has(ending(name)) || types.has(name.toLowerCase());
const ending = (name) => (name.includes(".") ? name.slice(name.lastIndexOf(".")).toLowerCase() : "");

// Files with the folder that each lies in, "" for none.
async function* filesOf(entries) {
  for (const entry of entries) {
    if (entry.name.startsWith(".")) continue;
    if (entry.isFile) {
      const file = await new Promise((take, fail) => entry.file(take, fail));
      yield { file, folder: entry.fullPath.split("/").slice(1, -1).join("/") };
      continue;
    }
    const reader = entry.createReader();
    for (;;) { // a reader gives a hundred at a time
      const some = await new Promise((take, fail) => reader.readEntries(take, fail));
      if (!some.length) break;
      yield* filesOf(some);
    }
  }
}

function row({ file, folder }) {
  const bar = make("progress", { max: 1, ariaLabel: `Memorizing ${file.name}` });
  bar.value = 0;
  const text = make("span", { textContent: `waiting, ${bytes(file.size)}` });
  const small = make("div", { className: "small" }, text);
  const item = make("li", {}, make("div", { className: "name", textContent: folder ? `${folder}/${file.name}` : file.name, dir: "auto" }), bar, small);
  return { item, bar, text, small };
}

// Shows a file that waits or is sent.
function showRow(job) {
  if (job.item) return;
  Object.assign(job, row(job));
  job.small.append(button("Cancel", () => cancel(job), { ariaLabel: `Cancel ${job.file.name}` }));
  at("uploads").append(job.item);
}

function add(found) {
  const folders = found.some(({ folder }) => folder);
  const good = folders ? found.filter(({ file }) => readable(file)) : found; // of a folder, only what can be read
  if (found.length > good.length) notice(`${count(found.length - good.length, "file")} of other types left out.`);
  if (!good.length) return;
  showDocuments(true);
  if (!running && !waiting.length) [done, begun] = [0, Date.now()];
  waiting.push(...good.map(({ file, folder }) => ({ file, folder, abort: new AbortController() })));
  fill();
  work();
}

// Shows the rows of the next files, and what is left.
function fill() {
  waiting.slice(0, SHOWN).forEach(showRow);
  const left = waiting.length + (running ? 1 : 0);
  at("uploading").hidden = left < 2;
  const bytesLeft = waiting.reduce((sum, job) => sum + job.file.size, 0);
  const per = done ? (Date.now() - begun) / 1000 / done : null;
  at("uploading-text").textContent = `${count(left, "file")} left, ${bytes(bytesLeft)}${per ? `, about ${seconds(per * left)}` : ""}`;
}

function cancel(job) {
  job.abort.abort();
  waiting = waiting.filter((other) => other !== job);
  job.item.remove();
  fill();
}

export function cancelAll() {
  for (const job of waiting) job.item?.remove();
  waiting = [];
  if (running) cancel(running);
  fill();
}

async function work() {
  if (running) return;
  while ((running = waiting.shift() ?? null)) {
    const job = running;
    showRow(job);
    fill();
    try {
      await one(job);
      done += 1;
      job.item.remove();
      if (!waiting.length || Date.now() - looked > OFTEN) {
        await refresh();
        looked = Date.now();
      }
      if (!waiting.length) notice(done === 1 ? `Remembered ${job.file.name}.` : `Remembered ${count(done, "file")}.`);
    } catch (error) {
      if (error.name !== "AbortError") fail(job, error.message);
    }
  }
  fill();
}

async function one({ file, folder, bar, text, abort }) {
  if (file.size > most) throw new Error(`It has ${bytes(file.size)}; ${bytes(most)} is the limit. Start the server with a larger --max-upload, or memorize it in a terminal.`);
  const form = new FormData();
  form.append("file", file);
  if (folder) form.append("folder", folder);
  let start = Date.now(), doing = "sending";
  const tell = (share, what) => {
    if (what !== doing) [doing, start] = [what, Date.now()];
    const passed = (Date.now() - start) / 1000, left = share > 0.05 && passed > 1 ? `, ${seconds(passed * (1 - share) / share)} left` : "";
    text.textContent = `${what}${share ? `, ${Math.round(100 * share)} %` : ""}${left}`;
  };
  tell(0, "sending");
  let sentAll = false;
  await upload("v1/memories", form, {
    signal: abort.signal,
    sent: (loaded, total) => {
      if (sentAll) return;
      sentAll = loaded >= total;
      bar.value = 0.1 * loaded / total;
      tell(sentAll ? 0 : loaded / total, sentAll ? "waiting for the model" : "sending");
    },
    event: ({ progress, done: part, total }) => {
      if (!total) return;
      bar.value = 0.1 + 0.9 * part / total;
      tell(part / total, progress);
    },
  });
}

function fail(job, message) {
  job.bar.remove();
  job.text.className = "error";
  job.text.textContent = message;
  job.small.querySelector("button").remove();
  job.small.append(make("span", { className: "actions" },
    button("Try again", () => {
      job.item.remove();
      add([job]);
    }, { ariaLabel: `Try ${job.file.name} again` }),
    button("Close", () => job.item.remove(), { ariaLabel: `Close ${job.file.name}` })));
}

// Memorizes the documents that come with m3mlx.
export async function demo() {
  showDocuments(true);
  const job = { file: { name: "Wrenmoor Observatory", size: 0 }, folder: "" };
  Object.assign(job, row(job), { abort: new AbortController() });
  job.text.textContent = "reading";
  at("uploads").append(job.item);
  try {
    await upload("v1/page/demo", new FormData(), {
      signal: job.abort.signal,
      sent: () => {},
      event: ({ progress, done: part, total }) => {
        if (!total) return;
        job.bar.value = part / total;
        job.text.textContent = `${progress}, ${Math.round(100 * part / total)} %`;
      },
    });
    notice("Remembered the sample documents.");
  } catch (error) {
    notice(error.message);
  }
  job.item.remove();
  await refresh();
}

export function prepare() {
  for (const [opener, field] of [["add", "files"], ["add-folder", "folder"]]) {
    at(opener).addEventListener("click", () => at(field).click());
    at(field).addEventListener("change", () => {
      add([...at(field).files].map((file) => ({ file, folder: file.webkitRelativePath.split("/").slice(0, -1).join("/") })));
      at(field).value = "";
    });
  }
  at("cancel-all").addEventListener("click", cancelAll);
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
  addEventListener("drop", async (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    over = 0;
    at("drop").hidden = true;
    const { items, files } = event.dataTransfer; // both are empty after the first wait
    const entries = [...items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean), plain = [...files];
    const found = [];
    try {
      for await (const each of filesOf(entries)) found.push(each);
    } catch (error) {
      notice(`The folder cannot be read: ${error.message}`);
    }
    add(entries.length ? found : plain.map((file) => ({ file, folder: "" })));
  });
}
