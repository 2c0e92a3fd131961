/** Runs commands on a machine as root, over ssh with the pinned host key and nothing of this user's own configuration. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { runProgram } from "../process.ts";

/** Where to connect. */
export interface Target {
  readonly address: string;
  readonly port: number;
  /** OpenSSH public host key line; no other key is accepted. */
  readonly hostKey: string;
}

/** What came of one command. */
export interface Outcome {
  /** The command's exit code; 255 is ssh's own. */
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** A way to run commands on one machine with one private key. */
export interface Connection {
  /**
   * Runs a POSIX shell script, sent on standard input so that it appears in no process list.
   *
   * @param onLine Called with each line that it prints, as it comes.
   */
  readonly run: (script: string, seconds: number, onLine?: (line: string) => void) => Promise<Outcome>;
  /** Removes the key from this machine's disk. */
  readonly close: () => void;
}

/**
 * Arguments of ssh for one command as root.
 *
 * @param privateKey OpenSSH private key (PEM); on disk only until `close`, readable to this user alone.
 * @param stackDirectory Where it is until then: what is killed before `close` leaves it where `destroy` removes it.
 */
export function sshCommand(
  { address, port, hostKey }: Target,
  privateKey: string,
  stackDirectory: string,
  remoteCommand: string,
): { readonly args: readonly string[]; readonly close: () => void } {
  mkdirSync(stackDirectory, { recursive: true, mode: 0o700 });
  const directory = mkdtempSync(`${stackDirectory}/ssh-`);
  writeFileSync(`${directory}/key`, `${privateKey.trimEnd()}\n`, { mode: 0o600 });
  writeFileSync(`${directory}/known_hosts`, `machine ${hostKey.trim()}\n`);
  const options = [
    "HostKeyAlias=machine",
    `UserKnownHostsFile=${directory}/known_hosts`,
    "GlobalKnownHostsFile=/dev/null",
    "StrictHostKeyChecking=yes",
    "HostKeyAlgorithms=ssh-ed25519",
    `IdentityFile=${directory}/key`,
    "IdentitiesOnly=yes",
    "IdentityAgent=none",
    "BatchMode=yes",
    "ConnectTimeout=10",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=3",
    "LogLevel=ERROR",
  ].flatMap((option) => ["-o", option]);
  const args = ["-F", "none", "-T", ...options, "-p", String(port), `root@${address}`, remoteCommand];
  return {
    args,
    close: () => {
      rmSync(directory, { recursive: true, force: true });
    },
  };
}

/** Parameters as for `sshCommand`. */
export function connection(target: Target, privateKey: string, stackDirectory: string): Connection {
  const { args, close } = sshCommand(target, privateKey, stackDirectory, "sh -s");
  return {
    run: async (script, seconds, onLine) => {
      const input = `${script}\nexit\n`;
      const { code = 255, ...said } = await runProgram("ssh", args, {
        input,
        milliseconds: seconds * 1000,
        ...(onLine && { onLine }),
      });
      if (said.timedOut) return { code: 255, stdout: said.stdout, stderr: `timed out after ${seconds} s` };
      if (said.tooMuch) return { code: 255, stdout: said.stdout, stderr: said.problem };
      return { code, stdout: said.stdout, stderr: said.stderr || said.problem };
    },
    close,
  };
}
