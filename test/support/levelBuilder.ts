/**
 * A builder as NixOS makes one of itself: one Nix daemon, and for each level of trust a user who may run its two protocols. No user has an
 * account: Nix knows one without by its number. A current Nix's daemon is nobody's either, so that no attack on it reaches this machine.
 */
import { execFileSync, spawn, type ChildProcess } from "node:child_process";
import {
  chmodSync,
  chownSync,
  closeSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { basename, dirname } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { clientEnvironment } from "../../src/client/environment.ts";
import { writeClientDirectory } from "../../src/client/directory.ts";
import { findLocalTools } from "../../src/local/tools.ts";
import type { BuildMachine } from "../../src/nix/buildMachine.ts";
import { clientFiles } from "../../src/nix/clientFiles.ts";
import type { SigningKey } from "../../src/nix/signing.ts";
import { systemOfThisMachine } from "../../src/nix/system.ts";
import { trustLevels, type Trust } from "../../src/nix/trust.ts";
import { toPublicHostKey } from "../../src/ssh/hostKey.ts";
import { keyPair, type KeyPair } from "./localFleet.ts";
import { newSigningKey } from "./signingKey.ts";

/** Users without accounts, one for each level that the daemon tells apart. */
const uids = { none: 64_101, signed: 64_101, full: 64_103 } as const;

/** How a `LevelBuilder` differs from the usual. */
export interface LevelBuilderOptions {
  /** Folder with the Nix that it runs. Default: the installed one. */
  readonly bin?: string;
  /** Default: `levels`. */
  readonly alias?: string;
  /** Its own signing key. Default: a new one. */
  readonly signer?: SigningKey;
  /** Whose signatures it takes beside its own. */
  readonly trusts?: readonly string[];
  /** Further lines of its nix.conf. */
  readonly settings?: readonly string[];
}

/** A running builder. */
export class LevelBuilder {
  readonly directory: string;
  readonly alias: string;
  readonly signer: SigningKey;
  /** The client's key of each level. */
  readonly keys: Readonly<Record<Trust, KeyPair>>;
  readonly port: number;
  readonly #address: string;
  readonly #host: KeyPair;
  readonly #processes: ChildProcess[] = [];

  private constructor({ alias = "levels", signer = newSigningKey(`${alias}-signer`) }: LevelBuilderOptions) {
    // The daemon and its users go through this folder.
    this.directory = mkdtempSync(`${tmpdir()}/fleet-levels-`);
    chmodSync(this.directory, 0o755);
    this.alias = alias;
    this.signer = signer;
    this.keys = { none: keyPair(this.directory), signed: keyPair(this.directory), full: keyPair(this.directory) };
    this.#host = keyPair(this.directory);
    const unique = (process.pid * 31 + builders++) % 60_000;
    this.#address = `127.66.${Math.floor(unique / 250)}.${1 + (unique % 250)}`;
    this.port = 2298;
  }

  /** Starts sshd and the daemon, and waits until both listen. Needs root, for the users. */
  static async start(options: LevelBuilderOptions = {}): Promise<LevelBuilder> {
    const builder = new LevelBuilder(options);
    try {
      await builder.#start(options);
    } catch (error) {
      await builder.stop();
      throw error;
    }
    return builder;
  }

  async #start({ bin, trusts = [], settings = [] }: LevelBuilderOptions): Promise<void> {
    const { directory } = this;
    const tools = findLocalTools(system);
    // Nix 2.8 gives each user folders of their own, which takes root.
    const daemon = bin === undefined ? 0 : 64_100;
    // Its users can't go through root's home; a link to each file costs nothing.
    if (bin !== undefined) execFileSync("cp", ["-a", "--link", dirname(bin), `${directory}/nix`]);
    const nix = (name: string): string =>
      bin === undefined ? execFileSync("which", [name], { encoding: "utf8" }).trim() : `${directory}/nix/bin/${name}`;
    for (const folder of ["root", "state", "log", "home", "socket"]) {
      mkdirSync(`${directory}/${folder}`);
      chownSync(`${directory}/${folder}`, daemon, daemon);
    }
    copyFileSync(tools.shell, `${directory}/busybox`);
    chmodSync(`${directory}/busybox`, 0o755);
    writeFileSync(`${directory}/signing-key`, this.signer.secretKey, { mode: 0o600 });
    chownSync(`${directory}/signing-key`, daemon, daemon);
    const trusted = [this.signer.publicKey, ...trusts].join(" ");
    const conf = [
      "sandbox = true",
      "sandbox-fallback = false",
      `sandbox-paths = /bin/sh=${directory}/busybox`,
      "build-users-group =",
      "substituters =",
      `trusted-users = ${uids.full}`,
      `trusted-public-keys = ${trusted}`,
      `secret-key-files = ${directory}/signing-key`,
      "extra-experimental-features = nix-command",
      ...settings,
      "",
    ];
    writeFileSync(`${directory}/nix.conf`, conf.join("\n"));
    const socket = `${directory}/socket/nix`;
    const common = [
      `NIX_CONF_DIR=${directory}`,
      "NIX_USER_CONF_FILES=",
      `HOME=${directory}/home`,
      "USER=nobody",
      `PATH=${process.env["PATH"] ?? ""}`,
    ];
    const own = [`NIX_STATE_DIR=${directory}/state`, `NIX_LOG_DIR=${directory}/log`];
    const as = (uid: number) => ["--reuid", String(uid), "--regid", String(uid), "--clear-groups", "--no-new-privs"];
    this.#spawn("setpriv", [
      ...as(daemon),
      ...[
        "env",
        "-i",
        ...common,
        ...own,
        `NIX_REMOTE=local?root=${directory}/root`,
        `NIX_DAEMON_SOCKET_PATH=${socket}`,
      ],
      ...[nix("nix-daemon"), "--daemon"],
    ]);
    const forced = (trust: Trust) => {
      const path = `${directory}/force-${trust}`;
      const enter = `exec setpriv ${as(uids[trust]).join(" ")} env -i ${common.map((one) => `'${one}'`).join(" ")} NIX_REMOTE='unix://${socket}?root=${directory}/root'`;
      const text = `#!/bin/sh
case "$SSH_ORIGINAL_COMMAND" in
  "nix-daemon --stdio") ${enter} ${nix("nix-daemon")} --stdio ;;
  "nix-store --serve --write") ${enter} ${nix("nix-store")} --serve --write ;;
  *) echo "refused" >&2; exit 1 ;;
esac
`;
      writeFileSync(path, text, { mode: 0o755 });
      return path;
    };
    const authorized = trustLevels.map(
      (trust) => `restrict,command="${forced(trust)}" ${this.keys[trust].publicKey}\n`,
    );
    writeFileSync(`${directory}/authorized_keys`, authorized.join(""), { mode: 0o600 });
    writeFileSync(`${directory}/host_key`, this.#host.privateKey, { mode: 0o600 });
    const sshd = [
      `HostKey ${directory}/host_key`,
      `AuthorizedKeysFile ${directory}/authorized_keys`,
      `ListenAddress ${this.#address}:${this.port}`,
      ...["PidFile none", "AuthenticationMethods publickey", "StrictModes no", "UsePAM no", "MaxStartups 100:30:200"],
      ...["MaxSessions 100", "DisableForwarding yes", "PermitRootLogin prohibit-password", "SetEnv SHLVL=1", ""],
    ];
    writeFileSync(`${directory}/sshd_config`, sshd.join("\n"), { mode: 0o600 });
    mkdirSync("/run/sshd", { recursive: true, mode: 0o755 });
    this.#spawn(tools.sshd, ["-D", "-f", `${directory}/sshd_config`, "-E", `${directory}/sshd.log`]);
    await Promise.all([listens({ path: socket }), listens({ host: this.#address, port: this.port })]);
    chmodSync(socket, 0o666);
  }

  #spawn(program: string, words: readonly string[]): void {
    const log = openSync(`${this.directory}/${basename(program)}.output`, "a");
    this.#processes.push(spawn(program, words, { stdio: ["ignore", log, log], detached: true }));
    closeSync(log);
  }

  /** The builder as a client of a level has it. */
  machine(trust: Trust): BuildMachine {
    return {
      alias: this.alias,
      hostName: this.#address,
      port: this.port,
      protocol: "ssh-ng",
      systems: [system],
      sshUser: "root",
      trust,
      maxJobs: 4,
      speedFactor: 1,
      supportedFeatures: [],
      mandatoryFeatures: [],
      publicHostKey: toPublicHostKey(this.#host.publicKey),
    };
  }

  /** A client's folder, written anew. @param changed What the client is told otherwise. */
  writeClient(trust: Trust, changed: Partial<BuildMachine> = {}, others: readonly BuildMachine[] = []): string {
    const directory = `${mkdtempSync(`${this.directory}/client-`)}/client`;
    const machines = [{ ...this.machine(trust), ...changed }, ...others];
    writeClientDirectory(directory, {
      ...clientFiles(machines, { directory }),
      id_ed25519: this.keys[trust].privateKey,
    });
    return directory;
  }

  /** Whether it has a store path. */
  has(storePath: string): boolean {
    return existsSync(`${this.directory}/root${storePath}`);
  }

  /** Stops everything and removes the folder. */
  async stop(): Promise<void> {
    await Promise.all(
      this.#processes.map(async (child) => {
        if (child.exitCode !== null || child.signalCode !== null || child.pid === undefined) return;
        const ended = new Promise((resolve) => child.once("exit", resolve));
        // Each is the leader of a group of its own.
        process.kill(-child.pid, "SIGTERM");
        await ended;
      }),
    );
    execFileSync("chmod", ["-R", "u+w", this.directory]);
    rmSync(this.directory, { recursive: true, force: true });
  }
}

/** This machine's own system. */
export const system = systemOfThisMachine() ?? "x86_64-linux";

let builders = 0;

/** Environment of a client of such a builder, with a store of its own. @param bin Folder with the client's Nix. */
export function levelClient(clientDirectory: string, bin?: string): Record<string, string> {
  const path = process.env["PATH"] ?? "";
  return {
    ...clientEnvironment({ clientDirectory, store: `${clientDirectory}/../store` }),
    PATH: bin === undefined ? path : `${bin}:${path}`,
  };
}

async function listens(
  where: { readonly path: string } | { readonly host: string; readonly port: number },
): Promise<void> {
  const deadline = Date.now() + 20_000;
  for (;;) {
    const open = await new Promise<boolean>((resolve) => {
      const socket = connect(where, () => {
        resolve(true);
      }).once("error", () => {
        resolve(false);
      });
      socket.once("close", () => {
        resolve(false);
      });
      socket.once("connect", () => socket.destroy());
    });
    if (open) return;
    if (Date.now() > deadline) throw new Error(`nothing listens at ${JSON.stringify(where)}`);
    await delay(50);
  }
}
