"use strict";
// Everything that comes from the index or the user is inserted as text, never as markup.

const STEP = 24; // images at first, and with each "More images"
const MOST = 96;
const PAUSE = 90; // milliseconds between the last key press and the request
const byId = (name) => document.getElementById(name);
const language = byId("language"); // shown for models that read each language in its own way
const query = byId("query"), results = byId("results"), status = byId("status"), file = byId("file");
const unique = byId("unique"), large = byId("large"), more = byId("more");
// asked: the image of the query: {blob, address} of an upload, or {picture} of an image of the index.
let waiting = null, asking = false, next = null, asked = null, count = STEP, enlarged = -1;

const names = new Intl.DisplayNames(["en"], { type: "language", fallback: "code" });
function languageName(code) {
  try {
    return names.of(code);
  } catch {
    return code; // not a code of a language
  }
}

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

function button(text, action) {
  const element = textElement("button", "", text);
  element.type = "button";
  element.addEventListener("click", action);
  return element;
}

function thumbnail(hit) {
  const image = document.createElement("img");
  image.className = "shown";
  image.alt = hit.caption || hit.id;
  image.loading = "lazy";
  image.decoding = "async";
  image.src = `thumb/${hit.picture}`;
  image.onerror = () => image.replaceWith(textElement("div", "shown missing", "image not available"));
  return image;
}

function card(hit) {
  const link = document.createElement("a");
  link.href = `image/${hit.picture}`;
  link.target = "_blank";
  link.rel = "noopener";
  link.title = hit.id;
  link.append(thumbnail(hit));
  if (hit.caption) {
    const words = textElement("span", "words", hit.caption);
    words.dir = "auto";
    link.append(words);
  }
  const caption = textElement("span", "caption", "");
  const id = textElement("span", "id", hit.id);
  id.dir = "auto";
  caption.append(id, textElement("span", "copies", ""), textElement("span", "score", ""));
  link.append(caption);
  const similar = button("Similar", () => askLike(hit.picture));
  similar.className = "similar";
  similar.setAttribute("aria-label", `Find images similar to ${hit.caption || hit.id}`);
  const item = document.createElement("li");
  item.dataset.picture = hit.picture;
  item.append(link, similar);
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return; // into a tab or window of its own
    event.preventDefault();
    enlarge([...results.children].indexOf(item));
  });
  return item;
}

function show(hits) {
  // An image that is already shown keeps its element, so that it is not loaded again and does not flicker.
  const shown = new Map([...results.children].map((item) => [item.dataset.picture, item]));
  results.replaceChildren(
    ...hits.map((hit) => {
      const item = shown.get(hit.picture) || card(hit);
      const score = item.querySelector(".score");
      score.textContent = hit.score.toFixed(3);
      score.title = hit.fit === undefined ? "" : `nearer than the best hit of ${Math.round(100 * hit.fit)} % of the bank's queries`;
      item.querySelector(".copies").textContent = hit.copies ? `+ ${hit.copies}` : "";
      item.querySelector(".copies").title = hit.copies ? `${hit.copies} further images are equal to it` : "";
      return item;
    }),
  );
}

function enlarge(place) {
  const item = results.children[place];
  if (!item) return;
  enlarged = place;
  const image = byId("large-image");
  image.src = item.querySelector("a").href;
  image.alt = item.querySelector("img")?.alt || "image not available";
  const words = [item.querySelector(".words")?.textContent, item.querySelector(".id").textContent];
  byId("large-name").textContent = words.filter(Boolean).join(" · ");
  byId("original").href = image.src;
  byId("previous").disabled = place === 0;
  byId("following").disabled = place === results.children.length - 1;
  if (!large.open) large.showModal();
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
      more.hidden = !content.more || count >= MOST;
      const seconds = ((performance.now() - start) / 1000).toFixed(2);
      setStatus(content.results.length ? `${content.results.length} images in ${seconds} s` : "no images");
      if (content.warning) setStatus(content.warning, true);
    }
  } catch (error) {
    if (!next && question.valid()) {
      setStatus(error instanceof TypeError ? "the server does not answer" : error.message, true);
      question.refused?.();
    }
  }
  asking = false;
  const following = next;
  next = null;
  if (following) ask(following);
}

function clear() {
  next = null;
  show([]);
  more.hidden = true;
  setStatus("");
  byId("start").hidden = false;
}

// Search with what is typed and chosen now.
function askAgain() {
  const text = query.value.trim(), spoken = language.value, image = asked, folded = unique.checked, wanted = count;
  history.replaceState(null, "", text ? `#q=${encodeURIComponent(text)}` : location.pathname);
  byId("start").hidden = Boolean(text || image);
  if (!text && !image) return clear();
  const valid = () =>
    query.value.trim() === text && language.value === spoken && asked === image && unique.checked === folded && count === wanted;
  if (!image || image.picture) {
    const question = { query: text || null, k: count, language: spoken || null, unique: folded };
    if (image) question.like = image.picture;
    ask({ url: "search", headers: { "Content-Type": "application/json" }, body: JSON.stringify(question), valid });
  } else {
    const parameters = new URLSearchParams({ k: count });
    if (text) parameters.set("query", text);
    if (spoken) parameters.set("language", spoken);
    if (folded) parameters.set("unique", "1");
    const refused = () => text || forget(); // the image alone was at fault
    const kind = image.blob.type.startsWith("image/") ? image.blob.type : "application/octet-stream";
    ask({ url: `search/image?${parameters}`, headers: { "Content-Type": kind }, body: image.blob, valid, refused });
  }
}

function askFirst() {
  count = STEP;
  askAgain();
}

function forget() {
  if (asked?.address) URL.revokeObjectURL(asked.address);
  asked = null;
  byId("asked").hidden = true;
  file.value = "";
}

// An image replaces the text; what is typed afterwards refines it.
function askWith(image, source) {
  forget();
  query.value = "";
  clearTimeout(waiting);
  asked = image;
  byId("asked-image").src = source;
  byId("asked").hidden = false;
  setStatus("searching with the image …");
  askFirst();
}

function askImage(blob) {
  const address = URL.createObjectURL(blob);
  askWith({ blob, address }, address);
}

function askLike(picture) {
  large.close();
  askWith({ picture }, `thumb/${picture}`);
  scrollTo(0, 0);
  query.focus({ preventScroll: true });
}

query.addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(askFirst, PAUSE);
});
language.addEventListener("change", askFirst);
unique.addEventListener("change", askFirst);
more.addEventListener("click", () => {
  count = Math.min(count + STEP, MOST);
  askAgain();
});
byId("forget").addEventListener("click", () => {
  forget();
  askFirst();
  query.focus();
});
file.addEventListener("change", () => file.files.length && askImage(file.files[0]));
byId("choose").addEventListener("click", () => file.click());

byId("previous").addEventListener("click", () => enlarge(enlarged - 1));
byId("following").addEventListener("click", () => enlarge(enlarged + 1));
byId("large-similar").addEventListener("click", () => askLike(results.children[enlarged].dataset.picture));
byId("close").addEventListener("click", () => large.close());
large.addEventListener("click", (event) => event.target === large && large.close());
large.addEventListener("close", () => results.children[enlarged]?.querySelector("a").focus());
large.addEventListener("keydown", (event) => {
  const steps = { ArrowLeft: -1, ArrowRight: 1 };
  if (event.key in steps) enlarge(enlarged + steps[event.key]);
  event.stopPropagation();
});

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
    askFirst();
    query.focus();
  } else if (event.key === "/" && document.activeElement !== query) {
    event.preventDefault();
    query.focus();
    query.select();
  } else if (document.activeElement === query && event.key === "ArrowDown" && links.length) {
    event.preventDefault();
    links[0].focus();
  } else if (here >= 0 && event.key.toLowerCase() === "s") {
    event.preventDefault();
    askLike(results.children[here].dataset.picture);
  } else if (here >= 0) {
    const wide = columns(links);
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: wide, ArrowUp: -wide, Home: -here, End: links.length - 1 - here };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const target = here + steps[event.key];
    (target < 0 ? query : links[Math.min(target, links.length - 1)]).focus();
  }
});

function example({ language: code, text }) {
  const element = button("", () => {
    query.value = text;
    forget();
    askFirst();
    query.focus();
  });
  const words = textElement("span", "", text);
  words.lang = code;
  words.dir = "auto";
  element.append(words, textElement("small", "", languageName(code)));
  const item = document.createElement("li");
  item.append(element);
  return item;
}

function sample(hit) {
  const element = button("", () => askLike(hit.picture));
  element.setAttribute("aria-label", `Find images like ${hit.id}`);
  const image = thumbnail(hit);
  image.className = "";
  image.onerror = () => item.remove();
  element.append(image);
  const item = document.createElement("li");
  item.append(element);
  return item;
}

fetch("about").then((answer) => answer.json()).then((index) => {
  const known = index.languages.map(languageName);
  const languages = known.length ? ` · trained on ${known.join(", ")}` : "";
  language.hidden = !index.choose_language;
  if (index.choose_language) language.append(...index.languages.map((code) => new Option(languageName(code), code)));
  byId("about").textContent = `${index.name} · ${index.images.toLocaleString()} images · ${index.model}${languages}`;
  byId("examples").replaceChildren(...index.examples.map(example));
  byId("samples").replaceChildren(...index.samples.map(sample));
  byId("try").hidden = !index.examples.length;
  byId("like").hidden = !index.samples.length;
});
const linked = new URLSearchParams(location.hash.slice(1)).get("q");
if (linked) query.value = linked;
askFirst();
