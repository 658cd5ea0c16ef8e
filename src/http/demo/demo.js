// The demo page: sends pictures to POST /v1/screen and shows the answers. No framework, and nothing is loaded from elsewhere.
//
// Only an answer 200 with `allow: true` reads as passed. A picture is shown only as the decoder made it: never the file itself.

/**
 * @typedef {{outcome: string, source: string, rule?: string, category?: string, severity?: number, detector?: string,
 *   label?: string, score?: number, threshold?: number, bank?: string, entry?: number, distance?: number,
 *   restricted?: boolean, view?: View}} Finding
 * @typedef {{frame: number, background: string, orientation: number}} View
 * @typedef {{outcome: string, allow: boolean, restricted: boolean, reason: string | null,
 *   scores: Record<string, Record<string, number>> | null, findings: Finding[], damage: string | null,
 *   policy: {name: string, sha256: string}, format: string | null, width: number | null, height: number | null,
 *   frames: number | null, bytes: number | null, pictures?: {view: View, picture: string}[],
 *   stages_ms?: Record<string, number>}} Verdict
 * @typedef {{detector?: string, label?: string, note_at?: number, review_at?: number, flag_at?: number}} Rule
 * @typedef {{detectors: {name: string, labels: string[], card: string | null}[],
 *   policies: {name: string, sha256: string, rules: Rule[]}[]}} Loaded
 * @typedef {{name: string, body: BodyInit, type: string}} Item  What is sent, and how it is called on the page.
 * @typedef {{kind: string, sign: string, title: string, advice: string}} Words
 */

/** Pictures that are sent at the same time. */
const AT_ONCE = 2;
/** Above this natural width, pixels are not shown as squares. */
const TINY_PX = 96;
/** A card's limits are cut here; the whole card stands below. */
const LIMITS_CHARS = 1500;

const HOLD = "Hold the picture: do not show it.";
const NOT_SCREENED = "Not screened";

/** @type {Record<string, Words>} By outcome. */
const OUTCOMES = {
  passed: { kind: "passed", sign: "✓", title: "Passed", advice: "No rule asks for more. It may be shown." },
  noted: { kind: "passed", sign: "✓", title: "Passed, with a note", advice: "It may be shown: labelled, or behind an age limit, as the note asks for." },
  review: { kind: "review", sign: "?", title: "For review", advice: "Hold the picture until a person has decided." },
  flagged: { kind: "flagged", sign: "✕", title: "Flagged", advice: "Do not show the picture." },
  undecodable: { kind: "unscreened", sign: "–", title: NOT_SCREENED, advice: `No picture could be read from the file. ${HOLD}` },
  missing: { kind: "unscreened", sign: "–", title: NOT_SCREENED, advice: "There is no such object in the bucket, or it has changed. Check the reference." },
  rejected: { kind: "unscreened", sign: "–", title: NOT_SCREENED, advice: `Pixwarden does not take this picture. ${HOLD}` },
  failed: { kind: "unscreened", sign: "–", title: NOT_SCREENED, advice: `Screening failed. ${HOLD}` },
};
const UNKNOWN_OUTCOME = { kind: "unscreened", sign: "–", title: "No clear answer", advice: HOLD };

/** @type {Record<number, string>} What to do after an error, by its status. */
const REMEDIES = {
  400: "Check what you sent.",
  401: "Open the link that Pixwarden printed at its start, or enter a key above. Then try again.",
  403: "This session or key may not do that. Use a key with the scope “screen” for this bucket, or open this page by the address that Pixwarden printed.",
  408: "The picture took too long to arrive. Try again over a faster connection.",
  410: "Its verdict was erased on request, and Pixwarden makes no other.",
  413: "Send a smaller picture, or raise the limit in the configuration.",
  421: "Open this page by the address that Pixwarden printed, or add this name to http.hosts.",
  422: "Change what the message names.",
  429: "Too many requests were sent with this key. Wait, then try again.",
  503: "Pixwarden has no room for it now, or is about to end. Wait, then try again.",
  504: "It took longer than the time limit. Try again when fewer pictures are being screened.",
};

/** @type {Record<string, string>} */
const FINDING_WORDS = { flagged: "Flagged", review: "For review", noted: "Noted" };
const THRESHOLDS = /** @type {const} */ ([["note_at", "noted"], ["review_at", "review"], ["flag_at", "flagged"]]);

/** @type {string | null} A key that a person has entered. It is kept in this page's memory only. */
let key = null;
/** @type {Loaded | null} */
let loaded = null;
let running = 0;
/** @type {(() => Promise<void>)[]} */
const waiting = [];

// Elements

/** @param {string} id @returns {any} */
const byId = (id) => document.getElementById(id);

/**
 * Makes an element. Texts are inserted as texts, never as HTML.
 * @param {string} name @param {Record<string, string>} attributes @param {...(Node | string)} children
 */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  made.append(...children);
  return made;
}

/** @param {number} value */
const decimals = (value) => value.toFixed(4);

/** @param {number} count */
const bytesText = (count) => count < 1000 ? `${count} bytes` : count < 1e6 ? `${(count / 1e3).toFixed(1)} kB` : `${(count / 1e6).toFixed(1)} MB`;

// Talking to Pixwarden

/** @param {string} path @param {RequestInit} options */
function ask(path, options = {}) {
  const headers = new Headers(options.headers);
  if (key !== null) headers.set("authorization", `Bearer ${key}`);
  return fetch(path, { ...options, headers });
}

/** Loads the detectors with their cards. It also shows whether the page may ask at all. */
async function loadDetectors() {
  try {
    const answer = await ask("/v1/detectors");
    byId("access").hidden = answer.status !== 401;
    if (answer.status === 200) {
      loaded = await answer.json();
      showCards();
    }
    return answer.status;
  } catch {
    // Nothing is lost: the limits that hold for every detector stand on the page.
    return 0;
  }
}

/** @param {Item} item @param {HTMLElement} article */
async function screenItem(item, article) {
  let answer;
  try {
    const headers = { "content-type": item.type };
    answer = await ask("/v1/screen?include=pictures,stages", { method: "POST", headers, body: item.body });
  } catch {
    showError(item, article, "No answer", "Pixwarden could not be reached, or the file could not be read. Check that Pixwarden still runs and that this is a file, not a folder. Then try again.", "");
    return;
  }
  let content = null;
  try {
    content = await answer.json();
  } catch {
    // The status alone is shown.
  }
  if (answer.status === 200 && content !== null && typeof content.outcome === "string") {
    showVerdict(item, article, content);
    return;
  }
  if (answer.status === 401) byId("access").hidden = false;
  const wait = answer.headers.get("retry-after");
  const remedy = REMEDIES[answer.status] ?? "This answer was not expected. Look into the log of Pixwarden.";
  const when = wait === null ? "" : ` It asks to wait ${wait} s.`;
  showError(item, article, NOT_SCREENED, remedy + when, content?.detail ?? `The answer has the status ${answer.status}.`);
}

/** Starts what waits, a few at a time. */
function next() {
  while (running < AT_ONCE && waiting.length > 0) {
    const work = waiting.shift();
    if (work === undefined) return;
    running += 1;
    work().finally(() => {
      running -= 1;
      next();
    });
  }
}

/** @param {Item} item @param {HTMLElement} article */
function start(item, article) {
  show(article, "working", item, { sign: "…", title: "Screening", advice: "" });
  waiting.push(() => screenItem(item, article));
  next();
}

/** @param {Item[]} items */
function startAll(items) {
  const articles = items.map((item) => ({ item, article: element("article", { class: "result", "aria-label": item.name }) }));
  byId("results").prepend(...articles.map(({ article }) => article));
  for (const { item, article } of articles) start(item, article);
}

// Answers

/**
 * Shows the head of a result, and announces it.
 * @param {HTMLElement} article @param {string} kind @param {Item} item
 * @param {{sign: string, title: string, advice: string}} words @param {...Node} rest
 */
function show(article, kind, item, { sign, title, advice }, ...rest) {
  article.className = `result ${kind}`;
  article.toggleAttribute("aria-busy", kind === "working");
  const heading = element("h2", {}, element("span", { class: "sign", "aria-hidden": "true" }, sign), title);
  article.replaceChildren(element("p", { class: "source" }, item.name), heading);
  if (advice !== "") article.append(element("p", { class: "what-to-do" }, advice));
  article.append(...rest);
  byId("status").textContent = `${item.name}: ${title}. ${advice}`;
}

/** @param {Item} item @param {HTMLElement} article @param {string} title @param {string} remedy @param {string} detail */
function showError(item, article, title, remedy, detail) {
  const again = element("button", { type: "button", class: "quiet" }, "Try again");
  again.addEventListener("click", () => start(item, article));
  const rest = [element("p", {}, remedy)];
  if (detail !== "") rest.push(element("p", { class: "note" }, `Pixwarden: ${detail}`));
  rest.push(element("p", {}, again));
  show(article, "unscreened", item, { sign: "–", title, advice: HOLD }, ...rest);
}

/** @param {Item} item @param {HTMLElement} article @param {Verdict} verdict */
function showVerdict(item, article, verdict) {
  const findings = verdict.findings ?? [];
  let words = OUTCOMES[verdict.outcome] ?? UNKNOWN_OUTCOME;
  if (verdict.outcome === "passed" && findings.length > 0) words = OUTCOMES.noted;
  if (words.kind === "passed" && verdict.allow !== true) words = UNKNOWN_OUTCOME;
  const rest = [element("p", {}, element("code", { class: "allow" }, `allow: ${verdict.allow}`), ` ${verdict.reason ?? ""}`)];
  if (verdict.restricted) {
    rest.push(element("p", { class: "error" }, "Restricted: no picture of it, or of one like it, is shown to anyone."));
  }
  const pictures = picturesOf(verdict);
  const parts = element("div", { class: "parts" });
  parts.append(...scoresOf(verdict, findings), ...findingsOf(findings), ...damageOf(verdict), factsOf(verdict), ...stagesOf(verdict), wholeAnswer(verdict));
  const body = element("div", { class: pictures.length > 0 ? "body pictured" : "body" }, ...pictures, parts);
  show(article, words.kind, item, words, ...rest, body);
}

/** @param {View} view @param {number | null} frames */
function viewText({ frame, background, orientation }, frames) {
  const words = [];
  if ((frames ?? 1) > 1) words.push(`frame ${frame + 1} of ${frames}`);
  if (background !== "white") words.push(`over ${background}`);
  if (orientation !== 1) words.push(`turned by EXIF ${orientation}`);
  return words.join(", ");
}

/** @param {Verdict} verdict */
function picturesOf(verdict) {
  const pictures = verdict.restricted ? [] : verdict.pictures ?? [];
  if (pictures.length === 0) return [];
  const figures = pictures.map(({ view, picture }, index) => {
    const text = viewText(view, verdict.frames) || "the picture";
    const image = element("img", { src: picture, alt: `As the detector was given it: ${text}` });
    image.addEventListener("load", () => image.classList.toggle("tiny", /** @type {HTMLImageElement} */ (image).naturalWidth <= TINY_PX));
    const caption = index === 0 ? `As decoded for the detector${text === "the picture" ? "" : `: ${text}`}` : text;
    return element("figure", {}, image, element("figcaption", {}, caption));
  });
  const note = element("p", { class: "note" }, "Reduced to the size that the detector asks for. The file itself is never shown.");
  return [element("div", { class: "pictures" }, ...figures, note)];
}

/**
 * The thresholds over one label: of the policy that judged, or else of the findings.
 * @param {Verdict} verdict @param {Finding[]} findings @param {string} detector @param {string} label
 * @returns {{at: number, word: string}[]}
 */
function thresholdsOf(verdict, findings, detector, label) {
  const policy = loaded?.policies.find(({ sha256 }) => sha256 === verdict.policy?.sha256);
  const marks = new Map();
  for (const rule of policy?.rules ?? []) {
    if (rule.detector !== detector || rule.label !== label) continue;
    for (const [field, word] of THRESHOLDS) {
      const at = rule[field];
      if (at !== undefined) marks.set(`${word} ${at}`, { at, word });
    }
  }
  for (const finding of findings) {
    if (finding.detector !== detector || finding.label !== label || finding.threshold === undefined) continue;
    const word = finding.outcome;
    marks.set(`${word} ${finding.threshold}`, { at: finding.threshold, word });
  }
  return [...marks.values()].sort((one, other) => one.at - other.at);
}

/** @param {Verdict} verdict @param {Finding[]} findings */
function scoresOf(verdict, findings) {
  return Object.entries(verdict.scores ?? {}).map(([detector, labels]) => {
    const rows = Object.entries(labels).sort(([, one], [, other]) => other - one).map(([label, score]) => {
      const fill = element("span", { class: "fill" });
      fill.style.width = `${100 * score}%`;
      const bar = element("div", { class: "bar", "aria-hidden": "true" }, fill);
      const row = element("div", { class: "score" }, element("span", {}, label), bar, element("span", { class: "value" }, decimals(score)));
      const thresholds = thresholdsOf(verdict, findings, detector, label);
      for (const { at } of thresholds) {
        const mark = element("span", { class: "mark" });
        mark.style.left = `calc(${100 * at}% - 1px)`;
        bar.append(mark);
      }
      if (thresholds.length > 0) {
        row.append(element("span", { class: "note" }, thresholds.map(({ at, word }) => `${word} from ${at}`).join(", ")));
      }
      return row;
    });
    return element("section", {}, element("h3", {}, `Scores of ${detector}`), ...rows);
  });
}

/** @param {Finding} finding */
function findingText(finding) {
  const words = [];
  if (finding.source === "detector") words.push(`${finding.detector} gives “${finding.label}” ${decimals(finding.score ?? 0)}, the rule begins at ${finding.threshold}`);
  else if (finding.source === "bank") words.push(`like entry ${finding.entry} of the bank ${finding.bank}, ${finding.distance} bits apart`);
  else if (finding.source === "damage") words.push("the file is damaged");
  else words.push(finding.source);
  if (finding.rule) words.push(`rule ${finding.rule}`);
  if (finding.category) words.push(finding.category);
  if (finding.severity) words.push(`severity ${finding.severity} of 5`);
  return words.join(" · ");
}

/** @param {Finding[]} findings */
function findingsOf(findings) {
  if (findings.length === 0) return [];
  const items = findings.map((finding) => element("li", {}, element("span", { class: "outcome" }, FINDING_WORDS[finding.outcome] ?? finding.outcome), `: ${findingText(finding)}`));
  return [element("section", {}, element("h3", {}, "Findings"), element("ul", { class: "findings" }, ...items))];
}

/** @param {Verdict} verdict */
function damageOf({ damage }) {
  return damage ? [element("section", {}, element("h3", {}, "Damage"), element("p", {}, damage))] : [];
}

/** @param {string} title @param {[string, string][]} pairs */
function listed(title, pairs) {
  const items = pairs.map(([name, value]) => element("li", {}, element("span", {}, `${name} `), value));
  return element("section", {}, element("h3", {}, title), element("ul", { class: "facts" }, ...items));
}

/** @param {Verdict} verdict */
function factsOf({ format, width, height, frames, bytes, policy }) {
  /** @type {[string, string][]} */
  const pairs = [];
  if (format) pairs.push(["format", format]);
  if (width && height) pairs.push(["size", `${width} × ${height}`]);
  if ((frames ?? 1) > 1) pairs.push(["frames", `${frames}`]);
  if (typeof bytes === "number") pairs.push(["file", bytesText(bytes)]);
  if (policy) pairs.push(["policy", policy.name]);
  return listed("File", pairs);
}

/** @param {Verdict} verdict */
function stagesOf({ stages_ms: stages }) {
  const pairs = Object.entries(stages ?? {}).map(([stage, ms]) => /** @type {[string, string]} */ ([stage, `${ms.toFixed(1)} ms`]));
  if (pairs.length === 0) {
    return [element("p", { class: "note" }, "This is the verdict of an earlier request: nothing was screened again, so that there is no picture and no time.")];
  }
  return [listed("Time", pairs)];
}

/** @param {Verdict} verdict */
function wholeAnswer(verdict) {
  const short = { ...verdict, pictures: verdict.pictures?.map(({ view }) => ({ view, picture: "…" })) };
  return element("details", {}, element("summary", {}, "The whole answer"), element("pre", { tabindex: "0", role: "region", "aria-label": "The whole answer as JSON" }, JSON.stringify(short, null, 2)));
}

// Limits, from the cards of the detectors

/**
 * What a card says of limits: the sections about them, or else what stands before the first section.
 * @param {string} card  Markdown.
 */
function limitsOf(card) {
  const lines = card.replace(/^---\n[\s\S]*?\n---\n/, "").replace(/<!--[\s\S]*?-->/g, "").split("\n");
  /** @type {string[]} */
  const limits = [];
  /** @type {string[]} */
  const before = [];
  let within = 0;
  let seen = 0;
  for (const line of lines) {
    const heading = /^(#+)\s+(.*)/.exec(line);
    if (heading !== null) {
      const [, { length: level }, title] = heading;
      if (level > 1) seen += 1;
      if (within === 0 || level <= within) within = /limit|risk|bias|out-of-scope|misuse/i.test(title) ? level : 0;
      // A heading separates paragraphs.
      (within > 0 ? limits : before).push("");
    } else if (!/^\s*(\||!\[|```)/.test(line)) {
      if (within > 0) limits.push(line);
      else if (seen === 0) before.push(line);
    }
  }
  const chosen = limits.some((line) => line.trim() !== "") ? limits : before;
  return chosen.join("\n").trim();
}

/** Inline Markdown as nodes: bold stays, links and code become their text. @param {string} text */
function inline(text) {
  const plain = text.replace(/\[([^\]]*)\]\([^)]*\)/g, "$1").replace(/`/g, "").replace(/\s+/g, " ");
  return plain.split(/\*\*/).map((part, index) => (index % 2 === 1 ? element("strong", {}, part) : part));
}

/** Paragraphs and lists. @param {string} text */
function blocks(text) {
  return text.split(/\n\s*\n/).filter((block) => block.trim() !== "").map((block) => {
    if (!/^\s*[-*] /.test(block)) return element("p", {}, ...inline(block));
    const items = block.split(/\n?\s*^[-*] /m).filter((item) => item.trim() !== "");
    return element("ul", {}, ...items.map((item) => element("li", {}, ...inline(item.trim()))));
  });
}

function showCards() {
  const cards = (loaded?.detectors ?? []).flatMap(({ name, card }) => {
    const title = element("h3", {}, `What the authors of ${name} state`);
    const limits = card === null ? "" : limitsOf(card);
    if (card === null || limits === "") {
      return [title, element("p", {}, "Its package states no limits. Treat its scores with more care, and measure it first.")];
    }
    const cut = limits.length > LIMITS_CHARS ? `${limits.slice(0, LIMITS_CHARS)}…` : limits;
    const whole = element("details", {}, element("summary", {}, `The whole card of ${name}`), element("pre", { tabindex: "0", role: "region", "aria-label": `Card of ${name}` }, card));
    return [title, ...blocks(cut), whole];
  });
  byId("cards").replaceChildren(...cards);
}

// What people do

/** @param {Iterable<File>} files @returns {Item[]} */
const fileItems = (files) => [...files].map((file) => ({ name: file.name || "pasted picture", body: file, type: file.type.startsWith("image/") ? file.type : "application/octet-stream" }));

/** @param {string} reference */
function sendReference(reference) {
  const isReference = /^s3:\/\/[^/]+\/./.test(reference);
  byId("reference-error").textContent = isReference ? "" : "Write s3://, the bucket, a slash and the key.";
  byId("reference").setAttribute("aria-invalid", String(!isReference));
  if (!isReference) {
    byId("reference").focus();
    return;
  }
  startAll([{ name: reference, body: JSON.stringify({ image: reference }), type: "application/json" }]);
}

byId("files").addEventListener("change", (/** @type {Event} */ event) => {
  const input = /** @type {HTMLInputElement} */ (event.target);
  startAll(fileItems(input.files ?? []));
  // So that the same file can be chosen again.
  input.value = "";
});

byId("reference-form").addEventListener("submit", (/** @type {Event} */ event) => {
  event.preventDefault();
  sendReference(byId("reference").value.trim());
});

byId("key-form").addEventListener("submit", async (/** @type {Event} */ event) => {
  event.preventDefault();
  key = byId("key").value.trim();
  const status = await loadDetectors();
  const isAccepted = status === 200;
  byId("key-error").textContent = isAccepted ? "" : "Pixwarden does not accept this key. Check that it was copied whole, and that its table is in the configuration.";
  byId("key").setAttribute("aria-invalid", String(!isAccepted));
  byId("status").textContent = isAccepted ? "The key is accepted." : "";
  byId(isAccepted ? "files" : "key").focus();
});

// Anywhere on the page, so that a browser does not open the file in its place.
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  byId("drop").classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (event.relatedTarget === null) byId("drop").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  byId("drop").classList.remove("over");
  const files = event.dataTransfer?.files ?? [];
  byId("drop-error").textContent = files.length > 0 ? "" : "What was dropped is no file. Save the picture first, then drop its file.";
  startAll(fileItems(files));
});

document.addEventListener("paste", (event) => {
  const files = event.clipboardData?.files ?? [];
  if (files.length > 0) {
    event.preventDefault();
    startAll(fileItems(files));
    return;
  }
  const text = event.clipboardData?.getData("text/plain").trim() ?? "";
  if (text.startsWith("s3://") && !(event.target instanceof HTMLInputElement)) {
    byId("reference").value = text;
    byId("reference").focus();
  }
});

loadDetectors();
