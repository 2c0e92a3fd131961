import { describe, expect, it } from "vitest";
import { runProgram } from "../src/process.ts";

const seconds = 10_000;

describe("running a program", () => {
  it("tells what it printed, without the final newline, and each line as it comes", async () => {
    const lines: string[] = [];
    const input = "echo a; echo b >&2; printf 'c\\nd'; exit 3\n";
    const ended = await runProgram("sh", ["-s"], { input, milliseconds: seconds, onLine: (line) => lines.push(line) });
    expect(ended).toMatchObject({ code: 3, timedOut: false, stdout: "a\nc\nd", stderr: "b" });
    expect(lines).toEqual(["a", "c", "d"]);
  });

  it("adds to the environment", async () => {
    const { stdout } = await runProgram("sh", ["-c", 'echo "$A ${PATH:+set}"'], {
      env: { A: "1" },
      milliseconds: seconds,
    });
    expect(stdout).toBe("1 set");
  });

  it("ends at its time limit, though a descendant holds its output open", async () => {
    const started = Date.now();
    const ended = await runProgram("sh", ["-c", "sleep 30 & sleep 30"], { milliseconds: 200 });
    expect(ended).toMatchObject({ code: undefined, timedOut: true });
    expect(Date.now() - started).toBeLessThan(seconds);
  });

  it("takes what is left of a time that was counted in seconds: no whole number of milliseconds", async () => {
    expect(await runProgram("true", [], { milliseconds: 4070.9999999999995 })).toMatchObject({ code: 0 });
  });

  it("says so when there is no such program, or one that doesn't read its input", async () => {
    const absent = await runProgram("no-such-program", [], { milliseconds: seconds });
    expect(absent).toMatchObject({
      code: undefined,
      timedOut: false,
      problem: expect.stringContaining("ENOENT") as unknown,
    });
    expect(await runProgram("true", [], { input: "x".repeat(1e6), milliseconds: seconds })).toMatchObject({ code: 0 });
  });
});
