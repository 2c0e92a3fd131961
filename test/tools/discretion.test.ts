/** What of a person's options and variables reaches the CLI; `test/engine/secrets.test.ts` shows that no secret comes out then. */
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { spawnSync } from "node:child_process";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it, onTestFinished, vi } from "vitest";
import { discreetArguments, discreetEnvironment, privately } from "../../tools/discretion.ts";

describe("the CLI", () => {
  it.each([
    ["up -v 9"],
    ["up -v9 --yes"],
    ["up -v=9"],
    ["up -yv 9"],
    ["up -yfv9"],
    ["--verbose 11 up"],
    ["--verbose=0x9 up"],
    ["up -v 1_0"],
    ["up -v 3 -v 9"],
  ])("gets %s and -v 8 after it", (line) => {
    const say = vi.fn();
    expect(discreetArguments(line.split(" "), say)).toEqual([...line.split(" "), "--verbose=8"]);
    expect(say).toHaveBeenCalledExactlyOnceWith("the CLI logs private keys in clear from -v 9 on: it gets -v 8");
  });

  it("gets -v 8 before what isn't its own", () => {
    expect(discreetArguments(["watch", "-v", "9", "--", "a"], vi.fn())).toEqual([
      "watch",
      "-v",
      "9",
      "--verbose=8",
      "--",
      "a",
    ]);
  });

  it.each(["up -v 8", "up -v=3", "up", "up --version", "stack select -sv9", "config set x -- -v 9", "up -v abc"])(
    "gets %s as it is",
    (line) => {
      const say = vi.fn();
      expect(discreetArguments(line.split(" "), say)).toEqual(line.split(" "));
      expect(say).not.toHaveBeenCalled();
    },
  );

  it.each(["--tracing file:x", "--tracing=file:x", "--otel-traces file://x"])("is not called with %s", (option) => {
    expect(() => discreetArguments(["up", ...option.split(" ")], vi.fn())).toThrow(
      /^--[\w-]+ records tokens and private keys in clear, so the CLI isn't called with it here: leave it out, -v 8 logs all but secrets\.$/,
    );
  });

  it.each(["PULUMI_OPTION_TRACING", "PULUMI_OPTION_OTEL_TRACES", "PULUMI_DEBUG_GRPC", "PULUMI_LOG_OTLP_ENDPOINT"])(
    "is not called with %s set",
    (name) => {
      expect(() => discreetEnvironment({ [name]: "x" }, vi.fn())).toThrow(`${name} records tokens`);
      expect(discreetEnvironment({ [name]: "" }, vi.fn())).toEqual({ [name]: "" });
    },
  );

  it("gets no more than 8 by its variable", () => {
    const say = vi.fn();
    expect(discreetEnvironment({ PULUMI_OPTION_VERBOSE: "9", A: "b" }, say)).toEqual({
      PULUMI_OPTION_VERBOSE: "8",
      A: "b",
    });
    expect(say).toHaveBeenCalledTimes(1);
    expect(discreetEnvironment({ PULUMI_OPTION_VERBOSE: "8" }, say)).toEqual({ PULUMI_OPTION_VERBOSE: "8" });
    expect(say).toHaveBeenCalledTimes(1);
  });

  it("writes what only this user can read, and this process goes on as before", () => {
    const directory = mkdtempSync(join(tmpdir(), "discretion-test-"));
    onTestFinished(() => {
      rmSync(directory, { recursive: true });
    });
    const usual = process.umask(0o022);
    onTestFinished(() => {
      process.umask(usual);
    });
    privately(() => spawnSync("sh", ["-c", `echo log > ${directory}/log`]));
    expect(readFileSync(join(directory, "log"), "utf8")).toBe("log\n");
    expect(statSync(join(directory, "log")).mode & 0o777).toBe(0o600);
    writeFileSync(join(directory, "ours"), "");
    expect(statSync(join(directory, "ours")).mode & 0o777).toBe(0o644);
  });
});
