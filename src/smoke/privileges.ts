/**
 * What only a trusted user may tell a Nix daemon, told by hand with the client's key. Each attempt names something that nobody has
 * (`/fleet-probe-…`): where the daemon looks for it, the setting is in force, and a client could as well name a program or file of its own.
 */
import { createHash, randomBytes } from "node:crypto";
import { rmSync, writeFileSync } from "node:fs";
import { clientEnvironment } from "../client/environment.ts";
import { scratchFolder } from "../client/scratch.ts";
import { oneLine } from "../machineText.ts";
import type { BuildMachine } from "../nix/buildMachine.ts";
import { storeUri } from "../nix/machinesFile.ts";
import { fullTrust, type Trust } from "../nix/trust.ts";
import { runProgram } from "../process.ts";
import { ConnectionLost, DaemonConnection, narOf, type Answer } from "./daemonConnection.ts";
import type { CaseResult } from "./verdict.ts";

/** Whose daemon, and how what is open counts. */
export interface PrivilegeOptions {
  /** Folder with the emitted files. */
  readonly clientDirectory: string;
  /** Whether the fleet set the machine up: then what its level doesn't give must be refused. Otherwise it is a warning to its owner. */
  readonly ownMachine: boolean;
  /** Level of the client; `undefined`: the host decides. */
  readonly trust?: Trust | undefined;
  /** Seconds for each attempt. */
  readonly patience: number;
}

/** Where an attempt may do what it likes. */
interface Field {
  readonly connect: () => Promise<DaemonConnection>;
  /** A new derivation on the builder that is not built: `PATH.drv!out`. */
  readonly derivation: () => string;
  /** What nobody else names. */
  readonly probe: string;
}

interface Attempt {
  readonly name: string;
  /** How it is open, in words; `undefined`: it was refused or had no effect. */
  readonly attempt: (field: Field) => Promise<string | undefined>;
}

/** What came of an attempt says neither that it is open nor that it was refused: a build failed for a reason of its own, as on a busy machine. */
class Inconclusive extends Error {
  override readonly name = "Inconclusive";
}

/** How often an attempt is made until it proves something. */
const tries = 2;

/** Tries them one after the other. */
export async function tryPrivileges(machine: BuildMachine, options: PrivilegeOptions): Promise<CaseResult[]> {
  const { clientDirectory, patience } = options;
  if (machine.protocol !== "ssh-ng") {
    const detail = "its protocol is ssh, so nobody knows of a Nix daemon behind it";
    return [{ name: "refuses what only a trusted user may say", outcome: "skipped", seconds: 0, detail }];
  }
  const scratch = scratchFolder(clientDirectory, "privileges");
  const probe = `fleet-probe-${randomBytes(8).toString("hex")}`;
  try {
    const derivations = await sendDerivations(machine, options, scratch, tries * attempts.length + 1);
    const field: Field = {
      probe,
      connect: () => DaemonConnection.open({ alias: machine.alias, clientDirectory, patience }),
      derivation: () => {
        const next = derivations.pop();
        if (next === undefined) throw new Error("there are fewer derivations than attempts");
        return `${next}!out`;
      },
    };
    await mustBuild(field);
    const results = [];
    for (const attempt of attempts) results.push(await tryOne(attempt, field, options));
    return results;
  } catch (error) {
    const detail = `it could not be tried: ${oneLine(error instanceof Error ? error.message : String(error))}`;
    return [
      {
        name: "refuses what only a trusted user may say",
        outcome: options.ownMachine ? "failed" : "warned",
        seconds: 0,
        detail,
      },
    ];
  } finally {
    // Derivations are plain files, in folders that their owner may write to.
    rmSync(scratch, { recursive: true, force: true });
  }
}

/** Without it, a build that fails would prove nothing. */
async function mustBuild({ connect, derivation }: Field): Promise<void> {
  const connection = await connect();
  try {
    await connection.setOptions({});
    const { error } = await connection.buildPaths([derivation()]);
    if (error !== undefined) throw new Error(`a plain build fails: ${error}`);
  } finally {
    connection.close();
  }
}

async function tryOne({ name, attempt }: Attempt, field: Field, options: PrivilegeOptions): Promise<CaseResult> {
  const started = performance.now();
  const finish = (outcome: CaseResult["outcome"], detail?: string): CaseResult => {
    const seconds = Math.round((performance.now() - started) / 10) / 100;
    return { name, outcome, seconds, ...(detail !== undefined && { detail }) };
  };
  for (let left = tries - 1; ; left -= 1) {
    try {
      const open = await attempt(field);
      if (open === undefined) return finish("passed");
      if (options.trust === "full") return finish("warned", `open, as configured (trust: full: ${fullTrust}): ${open}`);
      const remedy = "take the user that clients log in as, and its groups, out of `trusted-users` there";
      return finish(options.ownMachine ? "failed" : "warned", `open: ${open}; ${remedy}`);
    } catch (error) {
      if (!(error instanceof ConnectionLost || error instanceof Inconclusive)) throw error;
      // A silent builder isn't waited for twice.
      if (left > 0 && performance.now() - started < options.patience * 1000) continue;
      return finish(options.ownMachine ? "failed" : "warned", `it could not be tried: ${oneLine(error.message)}`);
    }
  }
}

/** Sets something, builds, and looks for the traces of it: a build that goes well without any proves that it was refused. */
function setting(
  name: string,
  overrides: (probe: string) => Readonly<Record<string, string>>,
  inForce: (answer: Answer, probe: string) => boolean,
  open: string,
  check = false,
): Attempt {
  return {
    name,
    attempt: async ({ connect, derivation, probe }) => {
      const connection = await connect();
      try {
        const set = await connection.setOptions(overrides(probe));
        if (inForce(set, probe)) return open;
        if (set.error !== undefined) return undefined;
        await connection.addToStoreNar(`/nix/store/${newPathHash()}-${probe}`, noArchive, "0".repeat(64), []);
        const path = derivation();
        const built = await connection.buildPaths([path]);
        if (inForce(built, probe)) return open;
        if (built.error !== undefined) throw new Inconclusive(`a build fails: ${built.error}`);
        if (!check) return undefined;
        const checked = await connection.buildPaths([path], true);
        if (inForce(checked, probe)) return open;
        if (checked.error?.includes("differs") === true) return undefined;
        throw new Inconclusive(`a second build is not compared with the first: ${checked.error ?? "it says nothing"}`);
      } finally {
        connection.close();
      }
    },
  };
}

/** The daemon speaks of what only the attempt has named, and not because it ignores it. */
function namesProbe({ error = "", said }: Answer, probe: string): boolean {
  return `${error}\n${said}`
    .split("\n")
    .some((line) => line.includes(probe) && !/ignoring|restricted setting|not trusted|\.drv/i.test(line));
}

/**
 * A current Nix has another process between the client and the daemon, which passes settings on only when it connects to the daemon: what
 * it can't read makes it connect anew.
 */
const noArchive = Buffer.from("this is no Nix archive, and long enough to be seen as none");

const runsPrograms = "a client can have the daemon run a program of its own, as the daemon's user";

const attempts: readonly Attempt[] = [
  setting(
    "refuses the client's post-build-hook",
    (probe) => ({ "post-build-hook": `/${probe}` }),
    namesProbe,
    runsPrograms,
  ),
  setting(
    "refuses the client's pre-build-hook",
    (probe) => ({ "pre-build-hook": `/${probe}` }),
    namesProbe,
    runsPrograms,
  ),
  setting("refuses the client's build-hook", (probe) => ({ "build-hook": `/${probe}` }), hookFails, runsPrograms),
  setting(
    "refuses the client's diff-hook",
    (probe) => ({ "run-diff-hook": "true", "diff-hook": `/${probe}` }),
    diffHookFails,
    runsPrograms,
    true,
  ),
  setting(
    "refuses the client's plugin-files",
    (probe) => ({ "plugin-files": `/${probe}` }),
    namesProbe,
    "a client can have the daemon load code of its own",
  ),
  setting(
    "refuses the client's sandbox-paths",
    () => ({ "extra-sandbox-paths": "/fleet-probe=/etc/passwd" }),
    ({ error = "", said }) => error.includes("/fleet-probe") || said.includes("FLEET-PROBE-PATH"),
    "a client's builds can have any file of the builder",
  ),
  setting(
    "keeps the sandbox on, whatever the client says",
    () => ({ sandbox: "false" }),
    ({ said }) => said.includes("FLEET-PROBE-NO-SANDBOX"),
    "a client's builds can run without a sandbox",
  ),
  setting(
    "refuses the client's builders",
    (probe) => ({ builders: `ssh-ng://root@${probe}.invalid - - 1 1 - -` }),
    namesProbe,
    "a client can have the daemon log in elsewhere",
  ),
  setting(
    "refuses the client's substituters",
    (probe) => ({
      substituters: `http://127.0.0.1:1/${probe}`,
      "trusted-public-keys": "",
      "connect-timeout": "5",
      "download-attempts": "1",
    }),
    namesProbe,
    "a client can choose where the builder takes store paths from, and whose signatures count",
  ),
  unsigned("refuses a store path that nobody signed", {}),
  unsigned("refuses to take store paths without signatures, whatever the client says", { "require-sigs": "false" }),
  {
    name: "refuses to delete store paths that are in use",
    attempt: async ({ connect, derivation }) => {
      const connection = await connect();
      try {
        const [path = ""] = derivation().split("!");
        const { error } = await connection.collectGarbage([path], true);
        return error === undefined ? "a client can delete what others use" : undefined;
      } finally {
        connection.close();
      }
    },
  },
];

/** Older ones don't name the program that they can't start. */
function hookFails(answer: Answer, probe: string): boolean {
  return (
    namesProbe(answer, probe) ||
    /hook.*(died|failed)|unexpected EOF|reading a line/i.test(`${answer.error ?? ""}\n${answer.said}`)
  );
}

/** Where it was refused none is run, so that whatever is said of one that fails says that it is in force. */
function diffHookFails(answer: Answer, probe: string): boolean {
  return namesProbe(answer, probe) || /diff.hook execution failed/i.test(answer.said);
}

function unsigned(name: string, overrides: Readonly<Record<string, string>>): Attempt {
  return {
    name,
    attempt: async ({ connect, probe }) => {
      const path = `/nix/store/${newPathHash()}-${probe}`;
      const nar = narOf(`${probe}\n`);
      const connection = await connect();
      try {
        await connection.setOptions(overrides);
        await connection.addToStoreNar(path, nar, createHash("sha256").update(nar).digest("hex"), []);
      } catch (error) {
        // Some end the connection where they refuse.
        if (!(error instanceof ConnectionLost)) throw error;
      } finally {
        connection.close();
      }
      const look = await connect();
      try {
        const isThere = await look.isValidPath(path);
        return isThere ? "a client can put anything into the builder's store under any name" : undefined;
      } finally {
        look.close();
      }
    },
  };
}

/** 32 digits of Nix's own base 32. */
function newPathHash(): string {
  return Array.from(randomBytes(32), (byte) => "0123456789abcdfghijklmnpqrsvwxyz".charAt(byte % 32)).join("");
}

/** Brings new derivations to the builder, with all that they need; says nothing of what is to be built. */
async function sendDerivations(
  machine: BuildMachine,
  { clientDirectory, patience }: PrivilegeOptions,
  scratch: string,
  count: number,
): Promise<string[]> {
  const nonce = randomBytes(8).toString("hex");
  const features = machine.mandatoryFeatures.map((feature) => `"${feature}"`).join(" ");
  // Each time it is built its output is another: then Nix has something to compare.
  const expression = `builtins.genList (number: derivation {
  name = "fleet-privileges-${nonce}-\${toString number}";
  system = "${machine.systems[0] ?? ""}";
  requiredSystemFeatures = [ ${features} ];
  builder = "/bin/sh";
  args = [ "-c" ''
    [ ! -e /fleet-probe ] || echo FLEET-PROBE-PATH >&2
    [ "$NIX_BUILD_TOP" = /build ] || [ $$ -lt 10 ] || echo FLEET-PROBE-NO-SANDBOX >&2
    read -r up rest < /proc/uptime
    echo "$up" > $out
  '' ];
}) ${count}`;
  writeFileSync(`${scratch}/probes.nix`, expression);
  const env = clientEnvironment({ clientDirectory, store: scratch });
  const run = async (program: string, words: readonly string[]): Promise<string> => {
    const { code, stdout, stderr, problem } = await runProgram(program, words, { env, milliseconds: patience * 1000 });
    if (code === 0) return stdout;
    throw new Error(stderr.trim() || problem);
  };
  const instantiated = await run("nix-instantiate", [`${scratch}/probes.nix`]);
  const derivations = instantiated.split("\n").flatMap((line) => (line === "" ? [] : [line.replace(/!.*/, "")]));
  await run("nix", ["copy", "--derivation", "--to", storeUri({ ...machine, protocol: "ssh-ng" }), ...derivations]);
  return derivations;
}
