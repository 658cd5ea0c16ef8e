// The demo page in a real browser: by mouse, by keyboard, on a phone, in both colour schemes, and when something fails.
//
//     PIXWARDEN=target/debug/pixwarden node tests/browser/demo.test.mjs
//
// With SCREENSHOTS=FOLDER it also makes the pictures of the guide.

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { after, before, test } from "node:test";

import { Pixwarden, SAMPLES, Visit, createKey, launch } from "./browser.mjs";

const MOST_SCREENSHOT_BYTES = 150_000;
const sample = (name) => path.join(SAMPLES, name);
const SHOWN_AS_FINE = /passed|may be shown/i;

let browser;
let pixwarden;
/** The session that the link of `pixwarden` has opened. */
let storageState;

before(async () => {
  pixwarden = await Pixwarden.start();
  browser = await launch();
  const visit = await Visit.begin(browser, pixwarden);
  await visit.page.goto(pixwarden.link);
  assert.equal(visit.page.url(), `${pixwarden.url}/`);
  storageState = await visit.context.storageState();
  await visit.end();
});

after(async () => {
  await browser?.close();
  await pixwarden?.stop();
});

/** A signed-in visit of the page, once it has loaded the cards. */
async function visitPage(options = {}) {
  const visit = await Visit.begin(browser, pixwarden, { storageState, viewport: { width: 1000, height: 800 }, ...options });
  await visit.page.goto(pixwarden.url);
  await visit.page.getByText("What the authors of cifake-32 state").waitFor();
  return visit;
}

/** Gives the page a file as dragging or pasting would. */
async function give(page, kind, name) {
  const bytes = fs.readFileSync(sample(name)).toString("base64");
  await page.evaluate(
    ([kind, name, bytes]) => {
      const data = new DataTransfer();
      data.items.add(new File([Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0))], name, { type: "image/png" }));
      const target = document.querySelector(kind === "drop" ? "#drop" : "body");
      const options = { bubbles: true, cancelable: true };
      target.dispatchEvent(kind === "drop" ? new DragEvent("drop", { ...options, dataTransfer: data }) : new ClipboardEvent("paste", { ...options, clipboardData: data }));
    },
    [kind, name, bytes],
  );
}

test("chosen, dropped, pasted and named pictures show their verdict", async () => {
  const visit = await visitPage();
  const { page } = visit;
  await page.getByText("It must not be used for real decisions.", { exact: true }).waitFor();
  const choosing = page.waitForEvent("filechooser");
  await page.getByText("Choose pictures").click();
  await (await choosing).setFiles(["baseline.jpg", "animated-12-frames.gif", "bad-cut-short.png", "bad-text.jpg"].map(sample));
  const [flagged, passed, review, unscreened] = await visit.results(4);
  assert.match(flagged, /Flagged\nDo not show the picture\.[^]*allow: false[^]*by AI\n0\.92[^]*review from 0\.5, flagged from 0\.9[^]*Findings\nFlagged: cifake-32/);
  assert.match(flagged, /decode [\d.]+ ms/);
  assert.match(passed, /Passed\nNo rule asks for more\. It may be shown\.\nallow: true[^]*frame 1 of 12[^]*frames 12/);
  assert.match(review, /For review[^]*Damage\nPNG: rows of a picture are missing/);
  assert.match(unscreened, /Not screened[^]*do not show it[^]*allow: false not an image/);
  assert.doesNotMatch(flagged + review + unscreened, SHOWN_AS_FINE);
  // Every picture is the decoder's, and none is the file.
  const sources = await page.locator(".result img").evaluateAll((images) => images.map((image) => [image.src.slice(0, 22), image.naturalWidth]));
  assert.ok(sources.length > 8, `${sources.length} pictures`);
  for (const source of sources) assert.deepEqual(source, ["data:image/png;base64,", 32]);
  assert.equal(await page.locator(".result.unscreened img").count(), 0);
  const marks = await page.locator(".result.flagged .mark").evaluateAll((found) => found.map((mark) => mark.style.left));
  assert.deepEqual(marks, ["calc(50% - 1px)", "calc(90% - 1px)"]);

  await give(page, "drop", "alpha.png");
  assert.match((await visit.results(5))[0], /^alpha\.png\n✓Passed\n[^]*over black/);
  await give(page, "paste", "palette.png");
  assert.match((await visit.results(6))[0], /^palette\.png/);
  await page.getByLabel("Or name an object in a bucket").fill("s3://samples/lossy.webp");
  await page.getByRole("button", { name: "Screen", exact: true }).click();
  assert.match((await visit.results(7))[0], /^s3:\/\/samples\/lossy\.webp[^]*fetch [\d.]+ ms/);
  await page.getByLabel("Or name an object in a bucket").fill("s3://elsewhere/a.jpg");
  await page.getByRole("button", { name: "Screen", exact: true }).click();
  assert.match((await visit.results(8))[0], /Not screened\nPixwarden does not take this picture\. Hold/);
  await visit.expectAccessible();
  await visit.end();
});

test("everything can be done by keyboard", async () => {
  const visit = await visitPage();
  const { page } = visit;
  const focused = () => page.evaluate(() => document.activeElement.id || document.activeElement.textContent);
  const order = [];
  for (let step = 0; step < 4; step += 1) {
    await page.keyboard.press("Tab");
    order.push(await focused());
  }
  assert.deepEqual(order, ["OpenAPI", "files", "reference", "Screen"]);
  const outline = () => page.evaluate(() => getComputedStyle(document.querySelector(".drop .button")).outlineStyle);
  assert.equal(await outline(), "none");
  await page.keyboard.press("Shift+Tab");
  await page.keyboard.press("Shift+Tab");
  assert.equal(await outline(), "solid", "the focus is seen");
  const choosing = page.waitForEvent("filechooser");
  await page.keyboard.press("Space");
  await (await choosing).setFiles(sample("palette.png"));
  await visit.results(1);
  assert.match(await page.locator("#status").textContent(), /palette\.png: Passed/, "it is announced");
  assert.equal(await focused(), "files", "the focus stays");
  await page.keyboard.press("Tab");
  await page.keyboard.type("samples/a.jpg");
  await page.keyboard.press("Enter");
  assert.equal(await page.locator("#reference-error").innerText(), "Write s3://, the bucket, a slash and the key.");
  await page.keyboard.press("Control+A");
  await page.keyboard.type("s3://samples/palette.png");
  await page.keyboard.press("Enter");
  await visit.results(2);
  await page.keyboard.press("Tab");
  await page.keyboard.press("Tab");
  assert.equal(await focused(), "The whole answer");
  await page.keyboard.press("Enter");
  await page.getByRole("region", { name: "The whole answer as JSON" }).getByText('"outcome": "passed"').waitFor();
  await visit.end();
});

for (const colorScheme of ["light", "dark"]) {
  test(`a phone and a page at 200 % show all of it, in the colours ${colorScheme}`, async () => {
    for (const viewport of [{ width: 390, height: 844 }, { width: 500, height: 400 }]) {
      const visit = await visitPage({ viewport, deviceScaleFactor: 2, colorScheme });
      await visit.page.locator("#files").setInputFiles(sample("progressive.jpg"));
      await visit.results(1);
      await visit.page.getByText("The whole answer").click();
      await visit.page.getByText("The whole card of").click();
      await visit.expectNoSidewaysScrolling();
      await visit.expectAccessible();
      const background = await visit.page.evaluate(() => getComputedStyle(document.body).backgroundColor);
      const isDark = Number(/\d+/.exec(background)[0]) < 128;
      assert.equal(isDark, colorScheme === "dark", background);
      await visit.end();
    }
  });
}

/** What `POST /v1/screen` answers in a test, and what the page must say. */
const ANSWERS = [
  [401, { detail: "no session", allow: true }, /Not screened[^]*Open the link that Pixwarden printed[^]*no session/],
  [403, { outcome: "passed", allow: true }, /Not screened[^]*may not do that/],
  [413, { detail: "an image may have 9 bytes" }, /Not screened[^]*smaller picture[^]*may have 9 bytes/],
  [429, {}, /Not screened[^]*Wait, then try again/],
  [500, { outcome: "passed", allow: true }, /Not screened[^]*not expected/],
  [503, { detail: "too many", outcome: "passed", allow: true }, /Not screened[^]*no room[^]*wait 7 s[^]*too many/],
  [504, {}, /Not screened[^]*longer than the time limit/],
  [202, { job_id: "a", allow: false }, /Not screened/],
  [202, { outcome: "passed", allow: true }, /Not screened/],
  [200, { outcome: "passed", allow: false }, /No clear answer[^]*do not show it/],
  [200, { outcome: "passed" }, /No clear answer/],
  [200, { outcome: "passed", allow: "true" }, /No clear answer/],
  [200, { outcome: "excellent", allow: true }, /No clear answer/],
  [200, { allow: true }, /Not screened/],
  [200, "<html>", /Not screened/],
];

test("nothing but 200 with allow true reads as passed, and every error says what to do", async () => {
  const visit = await visitPage();
  const { page } = visit;
  let answer;
  await page.route("**/v1/screen*", (route) => {
    if (answer === undefined) return route.abort();
    const [status, body] = answer;
    return route.fulfill({ status, body: typeof body === "string" ? body : JSON.stringify(body), headers: { "retry-after": "7" } });
  });
  await page.locator("#files").setInputFiles(sample("palette.png"));
  const [unreachable] = await visit.results(1);
  assert.match(unreachable, /No answer\nHold the picture: do not show it\.[^]*could not be reached[^]*Check that Pixwarden still runs/);
  for (const [status, body, expected] of ANSWERS) {
    answer = [status, body];
    await page.reload();
    await page.locator("#files").setInputFiles(sample("palette.png"));
    const [text] = await visit.results(1);
    const seen = `${status} ${JSON.stringify(body)}: ${text}`;
    assert.match(text, expected, seen);
    assert.doesNotMatch(text.split("The whole answer")[0], SHOWN_AS_FINE, seen);
    if (status === 503) await visit.expectAccessible();
  }
  answer = [503, {}];
  await page.reload();
  await page.locator("#files").setInputFiles(sample("palette.png"));
  await visit.results(1);
  await page.unroute("**/v1/screen*");
  await page.getByRole("button", { name: "Try again" }).click();
  await page.locator(".result.passed").waitFor();
  await visit.end(/Failed to load resource/);
});

test("a restricted image shows no picture", async () => {
  const visit = await visitPage();
  const { page } = visit;
  await page.route("**/v1/screen*", async (route) => {
    const answer = await route.fetch();
    const verdict = await answer.json();
    assert.ok(verdict.pictures.length > 0);
    const finding = { outcome: "flagged", source: "bank", bank: "known", entry: 7, distance: 3, restricted: true };
    // More than the interface gives.
    await route.fulfill({ response: answer, json: { ...verdict, restricted: true, outcome: "flagged", allow: false, findings: [finding] } });
  });
  await page.locator("#files").setInputFiles(sample("palette.png"));
  const [text] = await visit.results(1);
  assert.match(text, /Flagged[^]*Restricted: no picture[^]*like entry 7 of the bank known, 3 bits apart/);
  assert.equal(await page.locator(".result img").count(), 0);
  await visit.end();
});

test("texts of an answer are never read as HTML", async () => {
  const visit = await visitPage();
  const hostile = "<img src=/x onerror=alert(1)><b>bold</b>";
  await visit.page.route("**/v1/screen*", (route) => route.fulfill({ json: { outcome: "review", allow: false, reason: hostile, damage: hostile, scores: { [hostile]: { [hostile]: 0.5 } }, findings: [{ outcome: hostile, source: hostile, rule: hostile }], policy: { name: hostile, sha256: "" } } }));
  await visit.page.locator("#files").setInputFiles({ name: hostile, mimeType: "image/png", buffer: Buffer.from("x") });
  const [text] = await visit.results(1);
  assert.equal(text.split("<b>bold</b>").length - 1 >= 6, true, text);
  assert.equal(await visit.page.locator(".result img, .result b").count(), 0);
  await visit.end();
});

test("without a session the page says how to sign in, and takes a key", async () => {
  const { key, table } = createKey("browser");
  const guarded = await Pixwarden.start(table);
  try {
    const visit = await Visit.begin(browser, guarded, { viewport: { width: 1000, height: 800 } });
    const { page } = visit;
    await page.goto(guarded.url);
    await page.getByText("You are not signed in").waitFor();
    await visit.expectAccessible();
    await page.locator("#files").setInputFiles(sample("palette.png"));
    assert.match((await visit.results(1))[0], /Not screened[^]*Open the link that Pixwarden printed/);
    await page.getByLabel("enter one that has the scope").fill("pixwarden_guess");
    await page.keyboard.press("Enter");
    await page.getByText("Pixwarden does not accept this key.").waitFor();
    await page.getByLabel("enter one that has the scope").fill(key);
    await page.getByRole("button", { name: "Use this key" }).click();
    await page.getByText("What the authors of cifake-32 state").waitFor();
    assert.equal(await page.getByText("You are not signed in").isVisible(), false);
    await page.getByRole("button", { name: "Try again" }).click();
    await page.locator(".result.passed").waitFor();
    await visit.end(/Failed to load resource.*401/);
  } finally {
    await guarded.stop();
  }
});

const folder = process.env.SCREENSHOTS;
test("pictures for the guide", { skip: folder ? false : "SCREENSHOTS is not set" }, async () => {
  for (const [name, options, files] of [
    ["demo.png", { viewport: { width: 860, height: 1060 } }, ["progressive.jpg", "palette.png"]],
    ["demo-phone-dark.png", { viewport: { width: 390, height: 844 }, colorScheme: "dark" }, ["progressive.jpg"]],
  ]) {
    const visit = await visitPage(options);
    await visit.page.locator("#files").setInputFiles(files.map(sample));
    await visit.results(files.length);
    // On a phone the result is below the first screen.
    if (options.colorScheme === "dark") await visit.page.locator(".result").evaluate((result) => result.scrollIntoView());
    const file = path.join(folder, name);
    await visit.page.screenshot({ path: file });
    assert.ok(fs.statSync(file).size < MOST_SCREENSHOT_BYTES, `${file} has ${fs.statSync(file).size} bytes`);
    await visit.end();
  }
});
