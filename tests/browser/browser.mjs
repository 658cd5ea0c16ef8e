// A Pixwarden that serves, and pages in Chromium that report what they must not do.

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import fs from "node:fs";
import { createRequire } from "node:module";
import os from "node:os";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

export const ROOT = path.resolve(import.meta.dirname ?? path.dirname(new URL(import.meta.url).pathname), "../..");
export const SAMPLES = path.join(ROOT, "models/samples");
const PIXWARDEN = path.resolve(process.env.PIXWARDEN ?? path.join(ROOT, "target/debug/pixwarden"));
const START_TIMEOUT_MS = 60_000;

const required = createRequire(path.join(ROOT, ".tools/browser/"));
const { chromium } = required("playwright-core");
const { AxeBuilder } = required("@axe-core/playwright");

/** Debian and others name it differently. */
function chromiumPath() {
  for (const folder of (process.env.PATH ?? "").split(path.delimiter)) {
    for (const name of ["chromium", "chromium-browser"]) {
      const program = path.join(folder, name);
      if (fs.existsSync(program)) return program;
    }
  }
  throw new Error("Chromium is not on the PATH\n  hint: tests/services/get browser");
}

export const launch = () => chromium.launch({ executablePath: chromiumPath() });

/** A process of `pixwarden serve` with the bundled detector, and the samples as the bucket `samples`. */
export class Pixwarden {
  /** @param {string} more  Lines of its configuration. */
  static async start(more = "") {
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), "pixwarden-browser-"));
    const config = path.join(folder, "pixwarden.toml");
    const lines = [
      `detectors = [${JSON.stringify(path.join(ROOT, "models/cifake-32"))}]`,
      `objects = ${JSON.stringify(`file://${path.dirname(SAMPLES)}`)}`,
      'buckets = ["samples"]',
      "[metrics]",
      'listen = "off"',
      more,
    ];
    fs.writeFileSync(config, lines.join("\n"));
    const child = spawn(PIXWARDEN, ["--config", config, "serve", "--listen", "127.0.0.1:0"], { stdio: ["ignore", "ignore", "pipe"] });
    const pixwarden = new Pixwarden();
    Object.assign(pixwarden, { child, folder, log: "" });
    child.stderr.setEncoding("utf8").on("data", (text) => { pixwarden.log += text; });
    const since = Date.now();
    for (;;) {
      const address = /screened over HTTP","address":"([^"]+)"/.exec(pixwarden.log);
      if (address !== null) {
        pixwarden.url = `http://${address[1]}`;
        break;
      }
      if (child.exitCode !== null || Date.now() - since > START_TIMEOUT_MS) throw new Error(`serve has not started:\n${pixwarden.log}`);
      await sleep(20);
    }
    pixwarden.link = /open (http:\S+)/.exec(pixwarden.log)?.[1];
    return pixwarden;
  }

  async stop() {
    if (this.child.exitCode === null) {
      const ended = new Promise((resolve) => this.child.once("exit", resolve));
      this.child.kill("SIGTERM");
      await ended;
    }
    fs.rmSync(this.folder, { recursive: true });
  }
}

/** A new key, and its table for the configuration. @param {string} name */
export function createKey(name) {
  const made = execFileSync(PIXWARDEN, ["key", "create", name, "--scope", "screen"], { encoding: "utf8", cwd: os.tmpdir() });
  const [key, ...table] = made.split("\n\n");
  return { key: key.trim(), table: table.join("\n\n") };
}

/** A page of its own session, which fails the test where the page does what it must not. */
export class Visit {
  /** @param {any} browser @param {Pixwarden} pixwarden */
  static async begin(browser, pixwarden, options = {}) {
    const context = await browser.newContext(options);
    const page = await context.newPage();
    const visit = new Visit();
    Object.assign(visit, { context, page, faults: [], url: pixwarden.url });
    page.on("console", (message) => message.type() === "error" && visit.faults.push(`console: ${message.text()}`));
    page.on("pageerror", (error) => visit.faults.push(`exception: ${error.message}`));
    page.on("request", (request) => {
      const url = request.url();
      if (!url.startsWith(`${pixwarden.url}/`) && !url.startsWith("data:")) visit.faults.push(`request to ${url}`);
    });
    return visit;
  }

  /** Ends the visit. Chromium writes every answer above 399 to the console; `expected` says which are meant. */
  async end(expected = /(?!)/) {
    await this.context.close();
    assert.deepEqual(this.faults.filter((fault) => !expected.test(fault)), []);
  }

  /** The text of each result, once none is being screened. @param {number} count */
  async results(count) {
    await this.page.waitForFunction(
      (wanted) => document.querySelectorAll(".result:not(.working)").length === wanted && document.querySelector(".result.working") === null,
      count,
      { timeout: START_TIMEOUT_MS },
    );
    const texts = await this.page.locator(".result").allInnerTexts();
    return texts.map((text) => text.replace(/\n+/g, "\n"));
  }

  /** Nothing that hinders people with assistive technology. */
  async expectAccessible() {
    const { violations } = await new AxeBuilder({ page: this.page }).analyze();
    const serious = violations.filter(({ impact }) => impact === "serious" || impact === "critical");
    const text = serious.map(({ id, help, nodes }) => `${id}: ${help}: ${nodes.map(({ html }) => html).join(" ")}`);
    assert.deepEqual(text, []);
  }

  /** No part is wider than the screen. */
  async expectNoSidewaysScrolling() {
    const [wide, screen] = await this.page.evaluate(() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]);
    assert.ok(wide <= screen, `the page is ${wide} wide on a screen of ${screen}`);
  }
}
