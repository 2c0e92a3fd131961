/** A real Nix, reading files without a store and without the system's configuration. */
import { execFileSync, spawnSync } from "node:child_process";
import { chmodSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { BuildMachine } from "../../src/nix/buildMachine.ts";

/** A directory for one test, removed by `[Symbol.dispose]`. */
export function temporaryDirectory(): { path: string; [Symbol.dispose](): void } {
  const path = mkdtempSync(join(tmpdir(), "fleet-test-"));
  return {
    path,
    [Symbol.dispose]: () => {
      rmSync(path, { recursive: true, force: true });
    },
  };
}

/** Directory of the Nix to run; default: the installed one. */
export interface WhichNix {
  readonly bin?: string;
}

/** The search path on which this Nix is found first. */
export function nixPath({ bin }: WhichNix): string {
  return `${bin === undefined ? "" : `${bin}:`}${process.env["PATH"] ?? ""}`;
}

/** Environment in which Nix touches nothing outside of `directory` and reads its configuration from there. */
function isolated(directory: string, which: WhichNix): NodeJS.ProcessEnv {
  return {
    PATH: `${directory}/bin:${nixPath(which)}`,
    HOME: directory,
    NIX_REMOTE: "dummy://",
    NIX_CONF_DIR: directory,
    NIX_STATE_DIR: `${directory}/state`,
    NIX_LOG_DIR: `${directory}/log`,
    NIX_CONFIG: "experimental-features = nix-command flakes",
  };
}

/** The value of a Nix expression, fully evaluated. */
export function evaluate(expression: string, which: WhichNix = {}): unknown {
  using directory = temporaryDirectory();
  const file = join(directory.path, "expression.nix");
  writeFileSync(file, expression);
  const json = execFileSync("nix-instantiate", ["--eval", "--strict", "--json", "--store", "dummy://", file], {
    env: isolated(directory.path, which),
    encoding: "utf8",
    timeout: 60_000,
    maxBuffer: 2 ** 26,
    stdio: ["ignore", "pipe", "pipe"],
  });
  return JSON.parse(json);
}

/** Nix's settings as it reads them from `nix.conf` in `directory`. */
export function readNixConf(directory: string, which: WhichNix = {}): Record<string, { value: unknown }> {
  const json = execFileSync("nix", ["show-config", "--json"], {
    env: isolated(directory, which),
    encoding: "utf8",
    timeout: 60_000,
    stdio: ["ignore", "pipe", "pipe"],
  });
  return JSON.parse(json) as Record<string, { value: unknown }>;
}

/** What Nix asks of its build hook: where may this derivation be built? */
export interface HookRequest {
  readonly system: string;
  readonly requiredFeatures?: readonly string[];
  /** Whether the client would build it itself; default: false. */
  readonly amWilling?: boolean;
}

/** What the hook did. */
export interface HookAnswer {
  /** Its messages. For a request that no builder fits they hold the table of all builders as Nix parsed them. */
  readonly messages: string;
  /** The arguments of each ssh that it started. */
  readonly ssh: readonly (readonly string[])[];
  /** The file that it passed as `UserKnownHostsFile`: the pin of column 8. */
  readonly pins: readonly string[];
}

/**
 * Asks Nix's own build hook, as `nix-build` would, with the `machines` and `nix.conf` in `directory` and an ssh that only notes
 * how it was called.
 */
export function askBuildHook(directory: string, request: HookRequest, which: WhichNix = {}): HookAnswer {
  const log = join(directory, "ssh.log");
  const pinLog = join(directory, "pins.log");
  mkdirs(`${directory}/bin`, `${directory}/state`);
  writeFileSync(
    join(directory, "bin/ssh"),
    `#!/bin/sh
for argument; do
  printf '%s\\n' "$argument" >>'${log}'
  case "$argument" in -oUserKnownHostsFile=*) cat "\${argument#*=}" >>'${pinLog}' ;; esac
done
echo --- >>'${log}'
exit 1
`,
  );
  chmodSync(join(directory, "bin/ssh"), 0o755);
  const settings: [string, string][] = [
    ["builders", `@${directory}/machines`],
    ["max-jobs", request.amWilling === true ? "1" : "0"],
  ];
  const input = Buffer.concat([
    ...settings.flatMap(([name, value]) => [integer(1), string(name), string(value)]),
    integer(0),
    string("try"),
    integer(request.amWilling === true ? 1 : 0),
    string(request.system),
    string("/nix/store/00000000000000000000000000000000-x.drv"),
    integer(request.requiredFeatures?.length ?? 0),
    ...(request.requiredFeatures ?? []).map(string),
  ]);
  const hook = String(readNixConf(directory, which)["build-hook"]?.value).split(/[ ,]/);
  const { stderr } = spawnSync(hook[0] ?? "nix", [...hook.slice(1), "5"], {
    env: isolated(directory, which),
    input,
    encoding: "utf8",
    timeout: 60_000,
    // Nix writes its answers to descriptor 4 of a real hook; here they go to the messages.
    stdio: ["pipe", "pipe", "pipe"],
  });
  const lines = (file: string) => (existsSync(file) ? readFileSync(file, "utf8") : "");
  return {
    messages: stderr,
    ssh: lines(log)
      .split("---\n")
      .filter((call) => call !== "")
      .map((call) => call.trimEnd().split("\n")),
    pins: lines(pinLog)
      .split("\n")
      .filter((line) => line !== ""),
  };
}

function mkdirs(...paths: string[]): void {
  execFileSync("mkdir", ["-p", ...paths]);
}

/** Nix's wire format: 64-bit little-endian numbers, strings padded to 8 bytes. */
function integer(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeUInt32LE(value);
  return bytes;
}

function string(text: string): Buffer {
  const bytes = Buffer.from(text);
  return Buffer.concat([integer(bytes.length), bytes, Buffer.alloc((8 - (bytes.length % 8)) % 8)]);
}

/**
 * What the hook says of all builders when none fits: `(systems, maxjobs, supportedFeatures, mandatoryFeatures)` for each, without
 * the brackets that newer versions put around lists.
 */
export function machineTable(messages: string): string[] {
  const text = messages.replaceAll("\\n", "\n").replaceAll(/\\u001b\[[0-9;]*m/g, "");
  return [...text.matchAll(/^(\([^()]*-[^()]*\))"?/gm)].map(([, row = ""]) =>
    sortSystems(row.replaceAll(/[[\]]/g, "")),
  );
}

/** Newer versions keep the systems as a set. */
function sortSystems(row: string): string {
  return row.replace(/^\((.*?)(?=, \d+, )/, (_, systems: string) => `(${systems.split(", ").sort().join(", ")}`);
}

/** The rows that the hook must say of these builders. */
export function expectedTable(fleet: readonly BuildMachine[]): string[] {
  const sorted = (words: readonly string[]) => [...words].sort().join(", ");
  return fleet.map((m) => {
    const features = sorted([...m.supportedFeatures, ...m.mandatoryFeatures]);
    return `(${sorted(m.systems)}, ${m.maxJobs}, ${features}, ${sorted(m.mandatoryFeatures)})`;
  });
}
