// The page: each part prepares itself, and the keyboard goes to all of them.

import { ask, cancelEdit, isAsking, restore, stop } from "./conversation.js";
import * as conversations from "./conversations.js";
import * as documents from "./documents.js";
import { at, copy, notice } from "./dom.js";
import * as settings from "./settings.js";
import * as uploads from "./uploads.js";
import * as welcome from "./welcome.js";

for (const part of [settings, conversations, documents, uploads, welcome]) part.prepare();
let before = null; // number of documents
documents.onChange((found) => {
  welcome.update(found).catch(() => {});
  if (before === 0 && found.all) conversations.refresh().catch(() => {}); // now there is a store to keep them in
  before = found.all;
});

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = at("question").value.trim();
  if (!question || isAsking()) return;
  ask(question);
  at("question").value = "";
  sessionStorage.removeItem("typed");
});
at("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  at("ask").requestSubmit();
});
at("question").addEventListener("input", () => sessionStorage.setItem("typed", at("question").value));
at("question").value = sessionStorage.getItem("typed") ?? "";
at("stop").addEventListener("click", stop);
at("cancel-edit").addEventListener("click", cancelEdit);

addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") {
    if (isAsking()) return stop();
    cancelEdit();
    conversations.showConversations(false);
    documents.showDocuments(false);
  }
  if (event.key === "/" && !event.target.matches("input, textarea, select")) {
    event.preventDefault();
    at("question").focus();
  }
});
at("log").addEventListener("click", (event) => {
  const pressed = event.target.closest(".copy");
  if (pressed) copy(pressed.closest(".code").querySelector("code").textContent).then(() => notice("Copied."));
});

addEventListener("hashchange", restore);

try {
  await Promise.all([
    settings.facts().then(uploads.limits), documents.refresh(), restore().finally(conversations.refresh),
  ]);
} catch (error) {
  notice(error.message);
}
