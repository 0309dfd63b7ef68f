"use strict";
// Everything that comes from the index or the user is put in as text, never as markup.

const SHOWN = 24;
const PAUSE = 90; // milliseconds between the last key and the question
const at = (name) => document.getElementById(name);
const query = at("query"), results = at("results"), status = at("status"), file = at("file");
let waiting = null, asking = false, next = null, address = null;

function tell(text, wrong = false) {
  status.textContent = text;
  status.classList.toggle("wrong", wrong);
}

function part(tag, className, text) {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

function card(found) {
  const link = document.createElement("a");
  link.href = `image/${found.picture}`;
  link.target = "_blank";
  link.rel = "noopener";
  link.title = found.id;
  const image = document.createElement("img");
  image.className = "shown";
  image.alt = found.id;
  image.loading = "lazy";
  image.decoding = "async";
  image.src = `thumb/${found.picture}`;
  image.onerror = () => image.replaceWith(part("div", "shown gone", "no picture to show"));
  const told = part("span", "told", "");
  const id = part("span", "id", found.id);
  id.dir = "auto";
  told.append(id, part("span", "score", found.score.toFixed(3)));
  link.append(image, told);
  const item = document.createElement("li");
  item.dataset.picture = found.picture;
  item.append(link);
  return item;
}

function show(found) {
  // A picture that stays keeps its element, so that nothing is loaded or flickers twice.
  const there = new Map([...results.children].map((item) => [item.dataset.picture, item]));
  results.replaceChildren(
    ...found.map((hit) => {
      const kept = there.get(hit.picture);
      if (kept) kept.querySelector(".score").textContent = hit.score.toFixed(3);
      return kept || card(hit);
    }),
  );
}

// One question is on its way at a time; of those that come meanwhile the last one is asked next.
async function ask(question) {
  if (asking) {
    next = question;
    return;
  }
  asking = true;
  const start = performance.now();
  try {
    const answer = await fetch(question.url, { method: "POST", headers: question.headers, body: question.body });
    const told = await answer.json();
    if (!answer.ok) throw new Error(told.error);
    if (!next && question.valid()) {
      show(told.results);
      const seconds = ((performance.now() - start) / 1000).toFixed(2);
      tell(told.results.length ? `${told.results.length} pictures in ${seconds} s` : "no pictures");
    }
  } catch (error) {
    if (!next && question.valid()) tell(error instanceof TypeError ? "the server does not answer" : error.message, true);
  }
  asking = false;
  const following = next;
  next = null;
  if (following) ask(following);
}

function clear() {
  next = null;
  show([]);
  tell("");
}

function askText() {
  const text = query.value.trim();
  history.replaceState(null, "", text ? `#q=${encodeURIComponent(text)}` : location.pathname);
  if (!text) return clear();
  ask({
    url: "search",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ query: text, k: SHOWN }),
    valid: () => query.value.trim() === text,
  });
}

function forget() {
  if (address) URL.revokeObjectURL(address);
  address = null;
  at("asked").hidden = true;
  file.value = "";
}

function askImage(image) {
  forget();
  query.value = "";
  clearTimeout(waiting);
  history.replaceState(null, "", location.pathname);
  const mine = URL.createObjectURL(image);
  address = mine;
  at("asked-image").src = mine;
  at("asked").hidden = false;
  tell("looking at the picture …");
  const kind = image.type.startsWith("image/") ? image.type : "application/octet-stream";
  ask({ url: "search/image", headers: { "Content-Type": kind }, body: image, valid: () => address === mine });
}

query.addEventListener("input", () => {
  forget();
  clearTimeout(waiting);
  waiting = setTimeout(askText, PAUSE);
});
at("forget").addEventListener("click", () => {
  forget();
  clear();
  query.focus();
});
file.addEventListener("change", () => file.files.length && askImage(file.files[0]));
at("choose").addEventListener("click", () => file.click());

let depth = 0;
const carriesFile = (event) => event.dataTransfer && [...event.dataTransfer.types].includes("Files");
addEventListener("dragenter", (event) => {
  if (carriesFile(event)) at("drop").hidden = ++depth < 1;
});
addEventListener("dragleave", (event) => {
  if (carriesFile(event)) at("drop").hidden = --depth < 1;
});
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  at("drop").hidden = true;
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
  if (event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return; // an input method is writing
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

fetch("about").then((answer) => answer.json()).then((found) => {
  const spoken = found.languages.length ? ` · learned ${found.languages.join(", ")}` : "";
  at("about").textContent = `${found.name} · ${found.images.toLocaleString()} pictures · ${found.model}${spoken}`;
});
const asked = new URLSearchParams(location.hash.slice(1)).get("q");
if (asked) {
  query.value = asked;
  askText();
}
