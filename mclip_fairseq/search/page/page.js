"use strict";
// Everything that comes from the index or the user is inserted as text, never as markup.

const SHOWN = 24;
const PAUSE = 90; // milliseconds between the last key press and the request
const byId = (name) => document.getElementById(name);
const language = byId("language"); // shown for models that read each language in its own way
const query = byId("query"), results = byId("results"), status = byId("status"), file = byId("file");
let waiting = null, asking = false, next = null, address = null;

function setStatus(text, wrong = false) {
  status.textContent = text;
  status.classList.toggle("wrong", wrong);
}

function textElement(tag, className, text) {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

function card(hit) {
  const link = document.createElement("a");
  link.href = `image/${hit.picture}`;
  link.target = "_blank";
  link.rel = "noopener";
  link.title = hit.id;
  const image = document.createElement("img");
  image.className = "shown";
  image.alt = hit.id;
  image.loading = "lazy";
  image.decoding = "async";
  image.src = `thumb/${hit.picture}`;
  image.onerror = () => image.replaceWith(textElement("div", "shown missing", "image not available"));
  const caption = textElement("span", "caption", "");
  const id = textElement("span", "id", hit.id);
  id.dir = "auto";
  caption.append(id, textElement("span", "score", hit.score.toFixed(3)));
  link.append(image, caption);
  const item = document.createElement("li");
  item.dataset.picture = hit.picture;
  item.append(link);
  return item;
}

function show(hits) {
  // An image that is already shown keeps its element, so that it is not loaded again and does not flicker.
  const shown = new Map([...results.children].map((item) => [item.dataset.picture, item]));
  results.replaceChildren(
    ...hits.map((hit) => {
      const item = shown.get(hit.picture);
      if (item) item.querySelector(".score").textContent = hit.score.toFixed(3);
      return item || card(hit);
    }),
  );
}

// One request at a time; of the questions that arrive meanwhile only the last one is sent.
async function ask(question) {
  if (asking) {
    next = question;
    return;
  }
  asking = true;
  const start = performance.now();
  try {
    const answer = await fetch(question.url, { method: "POST", headers: question.headers, body: question.body });
    // A server or a proxy that is too busy may answer with something else than JSON.
    const content = await answer.json().catch(() => ({ error: "the server is too busy; try again in a moment" }));
    if (!answer.ok || content.error) throw new Error(content.error);
    if (!next && question.valid()) {
      show(content.results);
      const seconds = ((performance.now() - start) / 1000).toFixed(2);
      setStatus(content.results.length ? `${content.results.length} images in ${seconds} s` : "no images");
      if (content.warning) setStatus(content.warning, true);
    }
  } catch (error) {
    if (!next && question.valid()) setStatus(error instanceof TypeError ? "the server does not answer" : error.message, true);
  }
  asking = false;
  const following = next;
  next = null;
  if (following) ask(following);
}

function clear() {
  next = null;
  show([]);
  setStatus("");
}

function askText() {
  const text = query.value.trim(), spoken = language.value;
  history.replaceState(null, "", text ? `#q=${encodeURIComponent(text)}` : location.pathname);
  if (!text) return clear();
  ask({
    url: "search",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ query: text, k: SHOWN, language: spoken || null }),
    valid: () => query.value.trim() === text && language.value === spoken,
  });
}

function forget() {
  if (address) URL.revokeObjectURL(address);
  address = null;
  byId("asked").hidden = true;
  file.value = "";
}

function askImage(image) {
  forget();
  query.value = "";
  clearTimeout(waiting);
  history.replaceState(null, "", location.pathname);
  const ownAddress = URL.createObjectURL(image);
  address = ownAddress;
  byId("asked-image").src = ownAddress;
  byId("asked").hidden = false;
  setStatus("searching with the image …");
  const kind = image.type.startsWith("image/") ? image.type : "application/octet-stream";
  ask({ url: "search/image", headers: { "Content-Type": kind }, body: image, valid: () => address === ownAddress });
}

query.addEventListener("input", () => {
  forget();
  clearTimeout(waiting);
  waiting = setTimeout(askText, PAUSE);
});
language.addEventListener("change", askText);
byId("forget").addEventListener("click", () => {
  forget();
  clear();
  query.focus();
});
file.addEventListener("change", () => file.files.length && askImage(file.files[0]));
byId("choose").addEventListener("click", () => file.click());

let depth = 0;
const carriesFile = (event) => event.dataTransfer && [...event.dataTransfer.types].includes("Files");
addEventListener("dragenter", (event) => {
  if (carriesFile(event)) byId("drop").hidden = ++depth < 1;
});
addEventListener("dragleave", (event) => {
  if (carriesFile(event)) byId("drop").hidden = --depth < 1;
});
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  byId("drop").hidden = true;
  if (event.dataTransfer.files.length) askImage(event.dataTransfer.files[0]);
});
addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) askImage(event.clipboardData.files[0]);
});

function columns(links) {
  const top = links[0].getBoundingClientRect().top;
  const wrapped = links.findIndex((link) => link.getBoundingClientRect().top > top + 1);
  return wrapped < 0 ? links.length : wrapped;
}

addEventListener("keydown", (event) => {
  if (event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return; // an input method is composing
  const links = [...results.querySelectorAll("a")], here = links.indexOf(document.activeElement);
  if (event.key === "Escape") {
    query.value = "";
    forget();
    askText();
    query.focus();
  } else if (event.key === "/" && document.activeElement !== query) {
    event.preventDefault();
    query.focus();
    query.select();
  } else if (document.activeElement === query && event.key === "ArrowDown" && links.length) {
    event.preventDefault();
    links[0].focus();
  } else if (here >= 0) {
    const wide = columns(links);
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: wide, ArrowUp: -wide, Home: -here, End: links.length - 1 - here };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const target = here + steps[event.key];
    (target < 0 ? query : links[Math.min(target, links.length - 1)]).focus();
  }
});

fetch("about").then((answer) => answer.json()).then((index) => {
  const languages = index.languages.length ? ` · trained on ${index.languages.join(", ")}` : "";
  language.hidden = !index.choose_language;
  if (index.choose_language) language.append(...index.languages.map((code) => new Option(code, code)));
  byId("about").textContent = `${index.name} · ${index.images.toLocaleString()} images · ${index.model}${languages}`;
});
const linked = new URLSearchParams(location.hash.slice(1)).get("q");
if (linked) {
  query.value = linked;
  askText();
}
