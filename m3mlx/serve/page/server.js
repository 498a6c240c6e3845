// Requests to the server: its token, its errors as sentences, its streams of events.

import { at } from "./dom.js";

const UNREACHABLE = "The server cannot be reached. See if m3mlx serve is still running, then try again.";
let loggingIn = null;

export class ServerError extends Error {
  constructor(status, told) {
    super(told?.error?.message ?? `The server answers ${status}. Try again.`);
    this.status = status;
  }
}

export function headers(more = {}) {
  const token = sessionStorage.getItem("token");
  return token ? { ...more, Authorization: `Bearer ${token}` } : more;
}

export function login() {
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

// The response to a request; a body that is no form is sent as JSON.
export async function call(path, { body, method = body ? "POST" : "GET", ...options } = {}) {
  const json = body !== undefined && !(body instanceof FormData);
  for (;;) {
    let response;
    try {
      response = await fetch(path, {
        ...options, method, body: json ? JSON.stringify(body) : body,
        headers: headers({ ...options.headers, ...(json ? { "Content-Type": "application/json" } : {}) }),
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error(UNREACHABLE);
    }
    if (response.status === 401) {
      await login();
      continue;
    }
    if (!response.ok) throw new ServerError(response.status, await response.json().catch(() => null));
    return response;
  }
}

export const get = async (path) => (await call(path)).json();
export const send = async (path, body, method = "POST") => (await call(path, { body, method })).json();

// Takes a stream of server-sent events apart as it arrives; returns the events of each piece.
export function eventParser() {
  let rest = "";
  return (text) => {
    const lines = (rest + text).split("\n");
    rest = lines.pop();
    const found = [];
    for (const line of lines) {
      if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new ServerError(200, event);
      found.push(event);
    }
    return found;
  };
}

export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const parse = eventParser();
  for (;;) {
    let piece;
    try {
      piece = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error(UNREACHABLE);
    }
    if (piece.done) return;
    yield* parse(piece.value);
  }
}

// Uploads a form, with progress of the bytes that are sent, and then the events of the answer.
export function upload(path, form, { signal, sent, event }) {
  return new Promise((done, fail) => {
    const request = new XMLHttpRequest(), parse = eventParser();
    let read = 0;
    const take = () => {
      if (request.status !== 200) return;
      const text = request.responseText.slice(read);
      read += text.length;
      try {
        parse(text).forEach(event);
      } catch (error) {
        fail(error);
      }
    };
    request.open("POST", path);
    request.setRequestHeader("Accept", "text/event-stream");
    for (const [key, value] of Object.entries(headers())) request.setRequestHeader(key, value);
    request.upload.addEventListener("progress", (e) => sent(e.loaded, e.total));
    request.addEventListener("progress", take);
    request.addEventListener("load", async () => {
      if (request.status === 401) {
        await login();
        upload(path, form, { signal, sent, event }).then(done, fail);
        return;
      }
      take();
      if (request.status === 200) return done();
      let told = null;
      try { told = JSON.parse(request.responseText); } catch { /* no JSON: its status says it */ }
      fail(new ServerError(request.status, told));
    });
    request.addEventListener("error", () => fail(new Error(UNREACHABLE)));
    request.addEventListener("abort", () => fail(new DOMException("cancelled", "AbortError")));
    signal.addEventListener("abort", () => request.abort());
    if (signal.aborted) request.abort();
    else request.send(form);
  });
}
