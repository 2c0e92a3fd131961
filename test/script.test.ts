/** What the scripts behind commands print reaches the engine through a plugin, which logs their standard error line by line. */
import { spawnSync } from "node:child_process";
import { isUtf8 } from "node:buffer";
import { resolve } from "node:path";
import { describe, expect, it } from "vitest";

/** With a line of so many bytes the genuine plugin `command` 1.2.1 hangs. */
const hanging = 64 * 1024;

const src = resolve(import.meta.dirname, "../src");

/** Runs a script like those behind commands. */
function run(work: string): { status: number | null; stdout: Buffer; stderr: Buffer } {
  const program = `import { runScript } from "${src}/script.ts"; import { complain, say, sayJson } from "${src}/terminal.ts";
    await runScript(async () => { ${work} });`;
  return spawnSync(process.execPath, ["--input-type=module-typescript", "-e", program]);
}

describe("on standard error", () => {
  it.each([
    ["progress", "complain(text)", 0],
    ["an error", "throw new Error(text)", 1],
  ])("%s has lines that every plugin can log, and valid UTF-8", (_, act, status) => {
    // Three bytes a character, half a character, and bytes that are no text.
    const machine = `"first\\n" + "漢".repeat(200_000) + "\\ud83d\\n" + Buffer.from([0xff, 0xfe, 0x80]).toString() + "\\nlast"`;
    const ended = run(`const text = ${machine}; ${act};`);
    expect(ended.status).toBe(status);
    expect(isUtf8(ended.stderr)).toBe(true);
    const lines = ended.stderr.toString().trimEnd().split("\n");
    expect(lines).toHaveLength(4);
    for (const line of lines) expect(Buffer.byteLength(line)).toBeLessThan(hanging / 2);
    expect(lines[1]).toMatch(/^漢+… \(\d+ more characters\)$/);
    expect([lines[0], lines[3]]).toEqual(["first", "last"]);
  });
});

describe("on standard output, which is data and isn't logged", () => {
  it.each([
    ["text", `say("x".repeat(100_000) + "\\ud83d")`],
    ["JSON", `sayJson({ text: "x".repeat(100_000) + "\\ud83d" })`],
  ])("%s is whole, and valid UTF-8", (_, act) => {
    const { status, stdout } = run(act);
    expect(status).toBe(0);
    expect(isUtf8(stdout)).toBe(true);
    expect(stdout.toString()).toContain("x".repeat(100_000));
  });
});
