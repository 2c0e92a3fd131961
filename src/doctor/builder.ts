/** Looks at one builder as a client of the fleet does, link by link of the chain from its name to a finished build. */
import { lookup } from "node:dns/promises";
import { connect } from "node:net";
import {
  measureCommand,
  measurementLimits,
  measuredUsers,
  measureScript,
  parseMeasurement,
  type Measurement,
  type Peculiarities,
} from "../bootstrap/measure.ts";
import { clientEnvironment } from "../client/environment.ts";
import { withKeyFile } from "../client/scratch.ts";
import type { BuildMachine } from "../nix/buildMachine.ts";
import { storeUri } from "../nix/machinesFile.ts";
import { systems } from "../nix/system.ts";
import { fullTrust, rowObstacle } from "../nix/trust.ts";
import { oneLine } from "../machineText.ts";
import { runProgram, wordsOf } from "../process.ts";
import { administratorWords } from "../ssh/administration.ts";
import { SmokeBuilds } from "../smoke/builds.ts";
import { isAtLeast } from "../nix/version.ts";
import { explainFailure, loginKey } from "../smoke/failure.ts";
import { runSmokeTest } from "../smoke/smokeTest.ts";
import { tryTakeover } from "../smoke/takeover.ts";
import type { Verdict } from "../smoke/verdict.ts";
import type { Finding } from "./finding.ts";

/** How the fleet's administrator gets to a builder. */
export interface Administration {
  readonly user: string;
  readonly peculiarities: Peculiarities;
  /** OpenSSH private key. */
  readonly privateKey: string;
}

/** What is to be looked at. */
export interface BuilderToExamine {
  /** Name within the fleet. */
  readonly name: string;
  readonly machine: BuildMachine;
  /** Folder with the emitted files. */
  readonly clientDirectory: string;
  /** `undefined` where the machine isn't the fleet's to administer. */
  readonly administration: Administration | undefined;
  /** Version of the client's Nix. */
  readonly clientNix: string;
  /** Version of the builder's Nix, as the deployment measured it. */
  readonly builderNix?: string | undefined;
}

/** Seconds that each step may take. */
const patience = 20;

/** sshd drops connections above the first number of `MaxStartups`; clients that share no connection open many at once. */
const enoughStartups = 100;

/** Clocks that are further apart make builds see files from the future, and certificates that aren't valid yet. */
const clockTolerance = 30;

/** Examines a builder. Stops at the first broken link: what comes after it would only say the same again. */
export async function examineBuilder(builder: BuilderToExamine): Promise<Finding[]> {
  const findings: Finding[] = [];
  for (const step of [checkName, checkPort, checkLogin, checkHandshake, checkBuild, checkTakeover]) {
    const found = await step(builder);
    findings.push(...found);
    if (found.some(({ severity }) => severity === "error")) return findings;
  }
  return [...findings, ...(await checkInside(builder))];
}

async function checkName({ name, machine }: BuilderToExamine): Promise<Finding[]> {
  const about = { view: "fleet", builder: name, check: "name resolution" } as const;
  try {
    const { address } = await lookup(machine.hostName);
    const what = address === machine.hostName ? `${address} is an address` : `${machine.hostName} is ${address}`;
    return [{ ...about, severity: "ok", what }];
  } catch {
    return [
      {
        ...about,
        severity: "error",
        what: `${machine.hostName} does not resolve`,
        why: "ssh can't connect to it",
        fix: `correct \`address\` of the builder '${name}' in Pulumi.<stack>.yaml, or this machine's DNS (getent hosts ${machine.hostName})`,
      },
    ];
  }
}

async function checkPort({ name, machine }: BuilderToExamine): Promise<Finding[]> {
  const about = { view: "fleet", builder: name, check: "TCP" } as const;
  const place = `${machine.hostName} port ${machine.port}`;
  const started = performance.now();
  const problem = await new Promise<string | undefined>((resolve) => {
    const socket = connect({ host: machine.hostName, port: machine.port, timeout: 10_000 }, () => {
      resolve(undefined);
      socket.destroy();
    });
    socket.once("timeout", () => {
      resolve("does not answer within 10 s");
      socket.destroy();
    });
    socket.once("error", (error: NodeJS.ErrnoException) => {
      resolve(error.code === "ECONNREFUSED" ? "refuses the connection" : `can't be reached (${error.code ?? "error"})`);
    });
  });
  if (problem === undefined) {
    return [{ ...about, severity: "ok", what: `${place} answers in ${Math.round(performance.now() - started)} ms` }];
  }
  const fix = machine.hostName.startsWith("127.")
    ? "`npm start` starts local builders again that have stopped"
    : `switch the machine on, start sshd there, and let this machine through its firewall (nc -vz ${machine.hostName} ${machine.port})`;
  return [
    { ...about, severity: "error", what: `${place} ${problem}`, why: "every build would wait for it in vain", fix },
  ];
}

/** One connection that asks for a forbidden command: a refusal proves host key, client key and forced command at once. */
async function checkLogin({ name, machine, clientDirectory }: BuilderToExamine): Promise<Finding[]> {
  const probe = await probeLogin(["-F", `${clientDirectory}/ssh_config`], machine.alias);
  const about = { view: "fleet", builder: name, check: "SSH login" } as const;
  if (probe.outcome === "failed") {
    const { what, fix } =
      probe.cutOff === true
        ? { what: `a login was cut off: ${probe.output}`, fix: "look at sshd and the load on that machine" }
        : loginProblem(probe.output, name, machine);
    return [{ ...about, severity: "error", what, why: "no build can be sent to it", fix }];
  }
  const login = {
    ...about,
    severity: "ok",
    what: "the pinned host key is shown, and the client's key accepted",
  } as const;
  const forced = { view: "fleet", builder: name, check: "forced command" } as const;
  return [
    login,
    probe.outcome === "refused"
      ? { ...forced, severity: "ok", what: "the client's key runs nothing but the Nix protocols" }
      : {
          ...forced,
          severity: "warning",
          what: `the client's key may run any command as ${machine.sshUser}`,
          why: "whoever has a client's key owns the builder",
          fix: "put restrict,command=… in front of the key in authorized_keys, see docs/security.md",
        },
  ];
}

/** How an ssh that asked for `true` ended. */
export interface LoginProbe {
  /** `refused`: logged in, and the command was refused. `allowed`: it ran. */
  readonly outcome: "refused" | "allowed" | "failed";
  readonly output: string;
  /** True where it failed because it met a limit, which `output` says. Default: false. */
  readonly cutOff?: boolean;
}

/** Logs in on a connection of its own and asks for a command. */
export async function probeLogin(
  words: readonly string[],
  alias: string,
  program: readonly string[] = ["ssh"],
): Promise<LoginProbe> {
  const options = ["BatchMode=yes", "ConnectTimeout=10", "ControlMaster=no", "ControlPath=none"];
  const [command = "ssh", ...before] = program;
  const all = [...before, ...words, ...options.flatMap((option) => ["-o", option]), alias, "true"];
  const result = await runProgram(command, all, { milliseconds: patience * 1000 });
  const output = wordsOf(result);
  if (result.code === 0) return { outcome: "allowed", output };
  if (result.timedOut || result.tooMuch) return { outcome: "failed", output: result.problem, cutOff: true };
  if (result.code === 255 || result.code === undefined) return { outcome: "failed", output };
  return { outcome: "refused", output };
}

function loginProblem(output: string, name: string, machine: BuildMachine): { what: string; fix: string } {
  if (/Host key verification failed|IDENTIFICATION HAS CHANGED|host key is known/i.test(output)) {
    return {
      what: "it shows another host key than the pinned one; nothing was sent to it",
      fix: `if the machine was replaced on purpose, deploy again (npm run pulumi -- up), or correct \`hostKey\` of '${name}'; otherwise don't trust it`,
    };
  }
  if (/Permission denied \(|Too many authentication failures/i.test(output) && !/^Load key/m.test(output)) {
    if (machine.sshKey !== undefined) {
      return {
        what: `it refuses the key ${machine.sshKey} (sshKey of '${name}')`,
        fix: `put what \`ssh-keygen -y -f ${machine.sshKey}\` prints into authorized_keys of its user ${machine.sshUser}`,
      };
    }
    return {
      what: "it refuses the client's key",
      fix: "deploy again (npm run pulumi -- up); on a host of your own, put `npm run pulumi -- stack output clientPublicKey` into authorized_keys of its user",
    };
  }
  return { what: explainFailure(output, loginKey(machine)).reason, fix: "see docs/troubleshooting.md" };
}

async function checkHandshake({ name, machine, clientDirectory }: BuilderToExamine): Promise<Finding[]> {
  const about = { view: "fleet", builder: name, check: "Nix daemon" } as const;
  const env = clientEnvironment({ clientDirectory, store: `${clientDirectory}/../doctor` });
  const ping = await runProgram("nix", ["store", "ping", "--store", storeUri(machine)], {
    env,
    milliseconds: patience * 1000,
  });
  if (ping.code === 0) return [{ ...about, severity: "ok", what: `its store answers over ${machine.protocol}` }];
  const what = ping.timedOut
    ? `its store does not answer within ${patience} s`
    : ping.tooMuch
      ? ping.problem
      : explainFailure(wordsOf(ping), loginKey(machine)).reason;
  const why = "sshd alone builds nothing: each build fails, or hangs, once it is sent";
  const fix = `on the builder: systemctl restart nix-daemon; sudo -u ${machine.sshUser} nix store ping`;
  return [{ ...about, severity: "error", what, why, fix }];
}

async function checkBuild(builder: BuilderToExamine): Promise<Finding[]> {
  const { name, machine, clientDirectory, builderNix } = builder;
  const about = { view: "fleet", builder: name, check: "trust, features and a build" } as const;
  try {
    const verdict = await runSmokeTest({
      alias: machine.alias,
      clientDirectory,
      level: "quick",
      bootId: undefined,
      ownMachine: true,
      trust: machine.trust,
      builderNix,
      timeout: patience,
    });
    const { seconds, clockOffset = 0, system = "", way } = verdict;
    const clock = { view: "fleet", builder: name, check: "clock" } as const;
    return [
      { ...about, severity: "ok", what: `a new derivation for ${system} was built in ${seconds.toFixed(1)} s` },
      ...trustFindings(builder, way),
      Math.abs(clockOffset) <= clockTolerance
        ? { ...clock, severity: "ok", what: "right" }
        : {
            ...clock,
            severity: "warning",
            what: `${Math.abs(clockOffset)} s ${clockOffset > 0 ? "ahead of" : "behind"} this machine's`,
            why: "builds see files from the future, and TLS certificates may count as invalid there",
            fix: "switch time synchronisation on there: timedatectl set-ntp true",
          },
    ];
  } catch (error) {
    const what = error instanceof Error ? error.message.replace(/^builder \S+ is not verified: /, "") : String(error);
    const why = "builds that the fleet promises to do would fail";
    return [{ ...about, severity: "error", what: what.replace(/\.$/, ""), why, fix: "see docs/troubleshooting.md" }];
  }
}

/** A build that looks for what it could take over. */
async function checkTakeover({ name, machine, clientDirectory, administration }: BuilderToExamine): Promise<Finding[]> {
  const about = { view: "fleet", builder: name, check: "what builds reach" } as const;
  const builds = new SmokeBuilds(machine, clientDirectory, patience);
  try {
    const { outcome, detail = "" } = await tryTakeover(machine, builds, administration !== undefined);
    if (outcome === "passed")
      return [{ ...about, severity: "ok", what: "nothing of the machine, nor of other builds" }];
    const why = "whatever is built there can do it, and needs no key";
    return [{ ...about, severity: outcome === "failed" ? "error" : "warning", what: detail, why }];
  } finally {
    builds.remove();
  }
}

/** What the client's level means for it, and for whoever has its key. */
function trustFindings({ name, machine, clientNix, builderNix }: BuilderToExamine, way: Verdict["way"]): Finding[] {
  const about = { view: "fleet", builder: name, check: "level of trust" } as const;
  const { trust } = machine;
  if (trust === undefined)
    return [{ ...about, severity: "note", what: "the host itself decides what it takes from clients" }];
  if (trust === "full") {
    return [{ ...about, severity: "note", what: `open, as configured: ${fullTrust} (trust: full)` }];
  }
  const noRow = way === "store" ? rowObstacle(machine, clientNix, builderNix) : undefined;
  if (noRow === undefined)
    return [{ ...about, severity: "ok", what: `${trust}: its Nix does not trust the client's user` }];
  return [
    {
      ...about,
      severity: "warning",
      what: `Nix can't use it as one of its builders: ${noRow}`,
      why: "a build by `builders` ends with “you are not privileged to build input-addressed derivations”",
      fix: `use it as a store: npx fleet build --remote-store ${name} …; or install a newer Nix; or set \`trust: full\``,
    },
  ];
}

/** What only its administrator sees: the measurement of the deployment, made again. */
async function checkInside(builder: BuilderToExamine): Promise<Finding[]> {
  const { name, machine, administration, clientDirectory } = builder;
  const about = { view: "fleet", builder: name, check: "from the inside" } as const;
  const system = systems.find((known) => known === machine.systems[0]);
  if (administration === undefined || system === undefined) {
    return [{ ...about, severity: "note", what: "not looked at: it isn't the fleet's to administer" }];
  }
  const features = [...machine.supportedFeatures, ...machine.mandatoryFeatures];
  const declared = {
    name,
    system,
    features,
    users: machine.sshUsers === undefined ? [] : measuredUsers(machine.sshUsers, ["none", machine.trust ?? "none"]),
  };
  const { user, privateKey, peculiarities } = administration;
  const result = await withKeyFile(clientDirectory, privateKey, (keyFile) =>
    runProgram("ssh", administratorWords({ machine, user, keyFile, clientDirectory }, measureCommand), {
      input: measureScript(declared, peculiarities),
      milliseconds: patience * 1000,
      bytes: measurementLimits.bytes,
    }),
  );
  if (result.timedOut || result.tooMuch) {
    const why = "what it has and how it is set up can't be known, and a deployment would measure it in vain";
    return [{ ...about, severity: "error", what: `its administrator looked, but ${result.problem}`, why }];
  }
  if (result.code === 0) return judge(builder, result.stdout);
  // The words are the machine's own: no more of them than the script has.
  const sentences = result.stderr
    .split("\n")
    .filter((line) => line.startsWith(`builder '${name}': `))
    .slice(0, 10)
    .map((line) => oneLine(line));
  const why = "what the fleet declares is no longer so";
  return sentences.length > 0
    ? sentences.map((what) => ({
        ...about,
        severity: "error",
        what: what.slice(`builder '${name}': `.length, -1),
        why,
      }))
    : [
        {
          ...about,
          severity: "warning",
          what: `its administrator can't log in: ${explainFailure(result.stderr || result.problem, "administrator").reason}`,
        },
      ];
}

function judge(builder: BuilderToExamine, printed: string): Finding[] {
  try {
    return judgeMeasurement(builder, parseMeasurement(printed));
  } catch (error) {
    const what = error instanceof Error ? error.message : String(error);
    return [{ view: "fleet", builder: builder.name, check: "from the inside", severity: "error", what }];
  }
}

/** What follows from a measurement that contradicts nothing. */
export function judgeMeasurement(
  { name, clientNix, machine }: Pick<BuilderToExamine, "name" | "clientNix" | "machine">,
  found: Measurement,
): Finding[] {
  const about = { view: "fleet", builder: name } as const;
  const free = `${(found.diskFreeMiB / 1024).toFixed(1)} GiB of ${(found.diskMiB / 1024).toFixed(1)} GiB are free`;
  const minFreeMiB = Number(found.minFree) / 2 ** 20;
  const startups = Number(found.maxStartups.split(":")[0]);
  const disk = { ...about, check: "disk" };
  const clean = "on the builder: nix-collect-garbage --delete-older-than 7d; or give it a larger disk";
  return [
    found.diskFreeMiB < 1024
      ? {
          ...disk,
          severity: "error",
          what: free,
          why: "the next large build ends with “No space left on device”",
          fix: clean,
        }
      : found.diskFreeMiB < minFreeMiB
        ? {
            ...disk,
            severity: "warning",
            what: `${free}, less than its min-free`,
            why: "each build begins with collecting garbage",
            fix: clean,
          }
        : { ...disk, severity: "ok", what: free },
    ...(found.maxStartups === ""
      ? []
      : [
          startups >= Math.min(enoughStartups, machine.maxJobs * 10)
            ? ({ ...about, check: "sshd limits", severity: "ok", what: `MaxStartups ${found.maxStartups}` } as const)
            : ({
                ...about,
                check: "sshd limits",
                severity: "warning",
                what: `MaxStartups ${found.maxStartups}`,
                why: "Nix opens a connection for each derivation, and sshd drops some of them from the first number on",
                fix: `set MaxStartups ${enoughStartups}:30:200 in its sshd_config`,
              } as const),
        ]),
    versionFinding(name, clientNix, found.nixVersion),
  ];
}

/** Both ways round were tried between 2.8 and 2.34; older than 2.8 nothing was. */
function versionFinding(name: string, clientNix: string, builderNix: string): Finding {
  const about = { view: "fleet", builder: name, check: "Nix versions" } as const;
  const what = `${clientNix} here, ${builderNix} there`;
  return isAtLeast(clientNix, "2.8") && isAtLeast(builderNix, "2.8")
    ? { ...about, severity: "ok", what }
    : { ...about, severity: "warning", what, why: "nothing older than 2.8 was tried", fix: "install a newer Nix" };
}
