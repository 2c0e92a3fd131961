/** What the Pulumi CLI gets of a Ctrl-C: exactly one request to cancel, however often the signal comes. A CLI that notes it stands in. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { checkout } from "../../tools/launch.mjs";
import { startCancellable } from "../../tools/pulumi.ts";

let directory: string;
let running: ChildProcess | undefined;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "cancelling-test-"));
  mkdirSync(join(directory, "bin"));
  install(standIn);
});
afterEach(() => {
  if (running?.exitCode === null) running.kill("SIGKILL");
  rmSync(directory, { recursive: true, force: true });
});

function install(cli: string): void {
  writeFileSync(join(directory, "bin", "pulumi"), cli, { mode: 0o755 });
}

/** Says that it is under way; ends a moment after the first signal, so that a second one of the same Ctrl-C is noted as well. */
const standIn = `#!${process.execPath}
const seen = [];
const end = () => {
  require("node:fs").writeFileSync(process.env.SEEN, seen.join(" "));
  process.exit(255);
};
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"])
  process.on(signal, () => { if (seen.push(signal) === 1) setTimeout(end, 500); });
setTimeout(() => process.exit(3), 30_000);
console.log(JSON.stringify({ diagnosticEvent: { severity: "warning", message: "under way" } }));
`;

/** Has the process that started it get a Ctrl-C before that can do anything else. */
const interrupting = `#!/bin/sh
trap 'printf SIGINT >"$SEEN"; exit 255' INT
kill -INT "$PPID"
left=300
while [ $left -gt 0 ]; do sleep 0.1; left=$((left - 1)); done
`;

const programs = {
  "npm start": `import { deploy } from "${checkout}/tools/deployment.ts";
    const { exitCode, cancelled } = await deploy(process.env, console.log);
    console.log("ended with " + exitCode + ", cancelled: " + cancelled);`,
  "npm run pulumi": `import { runPulumi } from "${checkout}/tools/pulumi.ts";
    console.log("ended with " + (await runPulumi(["up"], process.env)));`,
};

/** Runs the program in a process group of its own, sends it `interrupt` when the CLI runs, and returns what it said and the CLI got. */
async function interrupted(
  program: keyof typeof programs,
  terminal = false,
  interrupt: (child: ChildProcess) => void = () => undefined,
) {
  const script = join(directory, "program.mts");
  writeFileSync(script, programs[program]);
  const seen = join(directory, "seen");
  const call = [process.execPath, script] as const;
  const [command, ...args] = terminal ? ["script", "-qec", call.join(" "), "/dev/null"] : call;
  const child = spawn(command, args, {
    detached: true,
    stdio: [terminal ? "pipe" : "ignore", "pipe", "inherit"],
    env: { ...process.env, PATH: [join(directory, "bin"), process.env["PATH"]].join(delimiter), SEEN: seen },
  });
  running = child;
  let said = "";
  let sent = false;
  child.stdout?.on("data", (chunk: Buffer) => {
    said += String(chunk);
    if (sent || !said.includes("under way")) return;
    sent = true;
    interrupt(child);
  });
  await once(child, "close");
  return { said, seen: existsSync(seen) ? readFileSync(seen, "utf8") : "the CLI was killed" };
}

const toGroup = (signal: NodeJS.Signals) => (child: ChildProcess) => process.kill(-(child.pid ?? NaN), signal);
const toProcess = (signal: NodeJS.Signals) => (child: ChildProcess) => child.kill(signal);

describe.each(["npm start", "npm run pulumi"] as const)(
  "%s asks the CLI once to cancel, and waits for it",
  (program) => {
    it.each([
      ["a Ctrl-C in a terminal", true, (child: ChildProcess) => child.stdin?.write("\x03")],
      ["a SIGINT to all of the process group", false, toGroup("SIGINT")],
      ["a SIGINT to the process", false, toProcess("SIGINT")],
      ["a SIGTERM", false, toProcess("SIGTERM")],
      ["a SIGHUP", false, toProcess("SIGHUP")],
    ])("on %s", async (_, terminal, interrupt) => {
      const { said, seen } = await interrupted(program, terminal, interrupt);
      expect(seen, said).toBe("SIGINT");
      expect(said).toContain("ended with 255");
      if (program === "npm start") expect(said).toMatch(/cancelling: waiting .*\s+ended with 255, cancelled: true/);
    });

    it("on a signal that comes while the CLI is being started", async () => {
      install(interrupting);
      const { said, seen } = await interrupted(program);
      expect(seen, said).toBe("SIGINT");
      expect(said).toContain("ended with 255");
    });
  },
);

it("a second Ctrl-C is passed on: the CLI stops at once", () => {
  vi.useFakeTimers({ toFake: ["performance"] });
  const kill = vi.fn();
  const asked = vi.fn();
  const { release } = startCancellable(() => ({ kill }), undefined, asked);
  const pass = process.listeners("SIGINT").at(-1);
  try {
    pass?.("SIGINT");
    pass?.("SIGINT");
    expect(kill.mock.calls).toEqual([["SIGINT"]]);
    vi.advanceTimersByTime(1500);
    pass?.("SIGINT");
    expect(kill.mock.calls).toEqual([["SIGINT"], ["SIGINT"]]);
    expect(asked).toHaveBeenCalledTimes(1);
  } finally {
    vi.useRealTimers();
    release();
  }
  expect(process.listeners("SIGINT")).not.toContain(pass);
});
