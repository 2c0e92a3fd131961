/** What a builder must refuse, tried with the client's own key: all but the two Nix protocols, and in those what its level doesn't give. */
import { execFileSync } from "node:child_process";
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { networkInterfaces } from "node:os";
import { scratchFolder } from "../client/scratch.ts";
import { oneLine } from "../machineText.ts";
import { isLoopback, type BuildMachine } from "../nix/buildMachine.ts";
import { runProgram, wordsOf } from "../process.ts";
import { knownHostNames } from "../ssh/knownHosts.ts";
import type { Trust } from "../nix/trust.ts";
import { tryPrivileges } from "./privileges.ts";
import type { CaseResult } from "./verdict.ts";

/** Whose refusals are tried, and how they count. */
export interface RefusalOptions {
  /** Folder with the emitted files. */
  readonly clientDirectory: string;
  /** Whether the fleet set the machine up: a hole fails. Otherwise it is a warning to its owner. */
  readonly ownMachine: boolean;
  /** Level of the client; `undefined`: the host decides. */
  readonly trust?: Trust | undefined;
  /** Seconds for each attempt. Default: 20. */
  readonly patience?: number;
}

/** One thing to try. */
interface Attempt {
  readonly name: string;
  /** Arguments of ssh after `-F FILE`; `ALIAS` stands for the builder. */
  readonly words: readonly string[];
  readonly input?: string;
  /** Whether what ssh printed, and its exit code, mean that it was refused. */
  readonly refused: (output: string, exitCode: number | undefined) => boolean;
  /** What a person should do about the hole. */
  readonly advice: string;
}

/** Tries everything that the builder must refuse, one after the other. */
export async function tryRefusals(machine: BuildMachine, options: RefusalOptions): Promise<CaseResult[]> {
  const scratch = scratchFolder(options.clientDirectory, "refusals");
  try {
    const results: CaseResult[] = [];
    for (const attempt of attempts(machine, options.clientDirectory, scratch))
      results.push(await tryOne(machine, options, attempt));
    results.push(...(await tryPrivileges(machine, { ...options, patience: 20 })));
    if (machine.sshUser === "root") {
      const detail = "clients log in as root here, with the forced command as the only thing that they may run";
      results.push({ name: "refuses root", outcome: "skipped", seconds: 0, detail });
    }
    if (!isLoopback(machine.hostName)) {
      const detail = "needs a place in the network from which it must not be reached; see the provider's firewall";
      results.push({ name: "refuses other networks", outcome: "skipped", seconds: 0, detail });
    }
    return results;
  } finally {
    rmSync(scratch, { recursive: true });
  }
}

async function tryOne(machine: BuildMachine, options: RefusalOptions, attempt: Attempt): Promise<CaseResult> {
  const { name, words, input, refused, advice } = attempt;
  const { patience = 20 } = options;
  const started = performance.now();
  // An open shared connection would answer in place of what is tried.
  const own = ["-F", `${options.clientDirectory}/ssh_config`, "-o", "ControlMaster=no", "-o", "ControlPath=none"];
  const result = await runProgram("ssh", [...own, ...words.map((word) => (word === "ALIAS" ? machine.alias : word))], {
    milliseconds: patience * 1000,
    ...(input !== undefined && { input }),
  });
  const output = wordsOf(result);
  const seconds = Math.round((performance.now() - started) / 10) / 100;
  const ended = !result.timedOut && !result.tooMuch;
  if (ended && refused(output, result.code)) return { name, outcome: "passed", seconds };
  const said = result.timedOut
    ? `it did not refuse within ${patience} s`
    : `it answered: ${result.tooMuch ? result.problem : oneLine(output, 300)}`;
  return { name, outcome: options.ownMachine ? "failed" : "warned", seconds, detail: `${said}. ${advice}` };
}

function attempts(machine: BuildMachine, clientDirectory: string, scratch: string): Attempt[] {
  const forcedCommand = "The client's key needs restrict,command=… in front of it in authorized_keys";
  const noCommand = (output: string, exitCode: number | undefined): boolean =>
    exitCode !== 0 && !/\buid=\d+/.test(output) && !unreachable.test(output);
  const denied = (output: string): boolean => /Permission denied \(/.test(output);
  const command = (text: string): Attempt => ({
    name: `refuses the command ${text}`,
    words: ["ALIAS", text],
    refused: noCommand,
    advice: forcedCommand,
  });
  execFileSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", `${scratch}/key`]);
  const otherHostKey = execFileSync("ssh-keygen", ["-y", "-f", `${scratch}/key`], { encoding: "utf8" });
  const sshConfig = readFileSync(`${clientDirectory}/ssh_config`, "utf8");
  writeFileSync(`${scratch}/ssh_config`, sshConfig.replaceAll(/(IdentityFile ).*/g, `$1${scratch}/key`));
  writeFileSync(`${scratch}/known_hosts`, `${knownHostNames(machine).join(",")} ${otherHostKey}`);
  return [
    { name: "refuses a shell", words: ["ALIAS"], input: "id\n", refused: noCommand, advice: forcedCommand },
    ...["id", "nix-daemon --stdio; id", "nix-daemon --stdio --version", "nix-store --version"].map(command),
    {
      name: "refuses file transfer (sftp)",
      words: ["-s", "ALIAS", "sftp"],
      refused: noCommand,
      advice: forcedCommand,
    },
    {
      name: "refuses a terminal",
      words: ["-tt", "ALIAS", "nix-daemon --stdio"],
      refused: (output) => /PTY allocation request failed/.test(output),
      advice: forcedCommand,
    },
    {
      name: "refuses forwarding to its networks",
      words: ["-W", `127.0.0.1:${machine.port}`, "ALIAS"],
      refused: (output) => /administratively prohibited/.test(output),
      advice: "Set DisableForwarding yes in its sshd_config, or restrict in authorized_keys",
    },
    {
      name: "refuses forwarding from its networks",
      words: ["-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:9", "ALIAS", "nix-daemon --stdio"],
      refused: (output) => /remote port forwarding failed/.test(output),
      advice: "Set DisableForwarding yes in its sshd_config, or restrict in authorized_keys",
    },
    ...(machine.sshUser === "root"
      ? []
      : [
          {
            name: "refuses root",
            words: ["-l", "root", "ALIAS", "nix-daemon --stdio"],
            refused: denied,
            advice: "The client's key must not be in root's authorized_keys",
          },
        ]),
    {
      name: "refuses passwords",
      words: [
        "-o",
        "PubkeyAuthentication=no",
        "-o",
        "PreferredAuthentications=password,keyboard-interactive",
        "ALIAS",
        "id",
      ],
      refused: (output) => /Permission denied \(publickey\)/.test(output),
      advice: "Set PasswordAuthentication no and KbdInteractiveAuthentication no in its sshd_config",
    },
    {
      name: "refuses another key",
      words: ["-F", `${scratch}/ssh_config`, "ALIAS", "nix-daemon --stdio"],
      refused: denied,
      advice:
        "It lets keys in that aren't the fleet's: look at AuthorizedKeysFile and AuthenticationMethods in its sshd_config",
    },
    {
      name: "is refused with another host key",
      words: ["-o", `UserKnownHostsFile=${scratch}/known_hosts`, "ALIAS", "nix-daemon --stdio"],
      refused: (output) => /Host key verification failed/.test(output),
      advice: "The client must have StrictHostKeyChecking yes for it",
    },
    ...otherAddresses(machine).map((address) => ({
      name: `does not listen on ${address}`,
      words: ["-o", `HostName=${address}`, "-o", "ConnectTimeout=3", "ALIAS", "nix-daemon --stdio"],
      // Someone else's sshd may be there; it has another host key.
      refused: (output: string) => unreachable.test(output) || /Host key verification failed/.test(output),
      advice: "A local builder is for this machine only: its ListenAddress must be its loopback address",
    })),
  ];
}

const unreachable = /Connection refused|timed out|No route to host|Network is unreachable|Could not resolve/;

/** Where a local builder must not be reached: the machine's own addresses in networks. */
function otherAddresses({ hostName }: BuildMachine): string[] {
  if (!isLoopback(hostName)) return [];
  return Object.values(networkInterfaces()).flatMap((addresses) =>
    (addresses ?? []).filter(({ internal, family }) => !internal && family === "IPv4").map(({ address }) => address),
  );
}
