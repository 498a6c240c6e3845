// What stands where no question was asked yet: what this is, how to begin, what one could ask.

import { ask } from "./conversation.js";
import { at, button, count } from "./dom.js";
import { get } from "./server.js";
import { demo } from "./uploads.js";

let known = -1; // documents that the questions were made from

export async function update({ all }) {
  at("begin").hidden = all > 0;
  at("invite").hidden = all === 0;
  at("invite").textContent = all ? `${count(all, "document")} ${all === 1 ? "is" : "are"} remembered. Ask anything, or begin with one of these.` : "";
  if (all === known) return;
  known = all;
  const { data } = all ? await get("v1/page/questions") : { data: [] };
  at("examples").replaceChildren(...data.map((question) => button(question, () => ask(question), { className: "example", dir: "auto" })));
  if (all && !data.length) at("invite").textContent = `${count(all, "document")} ${all === 1 ? "is" : "are"} remembered. Ask anything about ${all === 1 ? "it" : "them"}.`;
}

export function prepare() {
  at("choose-files").addEventListener("click", () => at("files").click());
  at("choose-folder").addEventListener("click", () => at("folder").click());
  at("try-demo").addEventListener("click", async () => {
    at("try-demo").disabled = true;
    await demo();
    at("try-demo").disabled = false;
  });
}
