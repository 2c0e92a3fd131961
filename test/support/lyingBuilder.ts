/** A builder that lies: a real sshd and a real Nix, whose store a test changes behind its back. It is none of this project's making. */
import { execFileSync, spawn, type ChildProcess } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir, userInfo } from "node:os";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { writeClientDirectory } from "../../src/client/directory.ts";
import { clientEnvironment } from "../../src/client/environment.ts";
import { findLocalTools } from "../../src/local/tools.ts";
import type { BuildMachine } from "../../src/nix/buildMachine.ts";
import { clientFiles } from "../../src/nix/clientFiles.ts";
import { storeUri } from "../../src/nix/machinesFile.ts";
import { toPublicHostKey } from "../../src/ssh/hostKey.ts";
import { keyPair, system, type KeyPair } from "./localFleet.ts";

/** What a builder may say of a path. */
export interface Claim {
  readonly path: string;
  readonly text: string;
  readonly references?: readonly string[];
}

/** Starts one, and makes a client of it. */
export async function startLyingBuilder(alias: string): Promise<LyingBuilder> {
  const directory = mkdtempSync(join(tmpdir(), "fleet-lying-"));
  const [host, client] = [keyPair(directory), keyPair(directory)];
  const { machine, sshd } = await startSshd(alias, directory, host, client);
  return new LyingBuilder(directory, machine, client, sshd);
}

/** An sshd whose only command is a Nix daemon on a store below the folder. */
async function startSshd(alias: string, directory: string, host: KeyPair, client: KeyPair) {
  const root = userInfo().uid === 0;
  const hostName = "127.78.0.1";
  const port = await freePort(hostName);
  const { sshd, nixDaemon, shell } = findLocalTools(system);
  for (const folder of ["root", "state", "log"]) mkdirSync(`${directory}/${folder}`);
  if (root) mkdirSync("/run/sshd", { recursive: true });
  // With a locked password, only PAM lets root in.
  const usePam = root && readFileSync("/etc/shadow", "utf8").startsWith("root:!");
  const files = {
    host_key: host.privateKey,
    authorized_keys: `restrict,command="${directory}/command" ${client.publicKey}\n`,
    command: `#!/bin/sh\nexec env ${Object.entries(storeEnvironment(directory))
      .map(([name, value]) => `'${name}=${value}'`)
      .join(" ")} ${nixDaemon} --stdio\n`,
    sshd_config: `HostKey ${directory}/host_key
PidFile none
ListenAddress ${hostName}:${port}
AuthorizedKeysFile ${directory}/authorized_keys
StrictModes no
UsePAM ${usePam ? "yes" : "no"}
PrintMotd no
SetEnv SHLVL=1
`,
    "nix.conf": `sandbox-paths = /bin/sh=${shell}\nbuild-users-group =\nmax-jobs = 2\nsubstituters =\nextra-experimental-features = nix-command\n`,
  };
  for (const [name, text] of Object.entries(files)) {
    writeFileSync(`${directory}/${name}`, text, { mode: name === "command" ? 0o755 : 0o600 });
  }
  const child = spawn(sshd, ["-D", "-e", "-f", `${directory}/sshd_config`], { stdio: ["ignore", "ignore", "pipe"] });
  await new Promise<void>((resolve, reject) => {
    let said = "";
    child.stderr.on("data", (chunk: Buffer) => {
      said += chunk.toString();
      if (said.includes("Server listening on")) resolve();
    });
    child.once("exit", () => {
      reject(new Error(`sshd ended: ${said}`));
    });
  });
  const machine: BuildMachine = {
    alias,
    hostName,
    port,
    protocol: "ssh-ng",
    systems: [system],
    sshUser: userInfo().username,
    maxJobs: 2,
    speedFactor: 1,
    supportedFeatures: [],
    mandatoryFeatures: [],
    publicHostKey: toPublicHostKey(host.publicKey),
  };
  return { machine, sshd: child };
}

function storeEnvironment(directory: string) {
  return {
    HOME: directory,
    NIX_REMOTE: `local?root=${directory}/root`,
    NIX_STATE_DIR: `${directory}/state`,
    NIX_LOG_DIR: `${directory}/log`,
    NIX_CONF_DIR: directory,
    NIX_USER_CONF_FILES: "",
  };
}

/** A running builder, and a client of it with a store of its own. */
export class LyingBuilder {
  readonly #sshd: ChildProcess;
  readonly uri: string;
  /** Root of the client's store. */
  readonly store: string;
  readonly directory: string;

  constructor(directory: string, machine: BuildMachine, client: KeyPair, sshd: ChildProcess) {
    this.directory = directory;
    this.#sshd = sshd;
    this.uri = storeUri(machine);
    this.store = `${directory}/client-store`;
    const [key, publicKey] = [`${directory}/cache-key`, `${directory}/cache-key.pub`];
    execFileSync("nix-store", ["--generate-binary-cache-key", "cache-1", key, publicKey]);
    const settings = { substituters: "", "trusted-public-keys": readFileSync(publicKey, "utf8") };
    const of = `${directory}/of-client`;
    // Without connections that are kept, nothing is left when the sshd ends.
    const files = clientFiles([machine], { directory: of, settings, multiplexing: false });
    writeClientDirectory(of, { ...files, id_ed25519: client.privateKey });
  }

  /**
   * The client's environment.
   *
   * @param bin Folder of another Nix than the installed one.
   */
  clientEnvironment(bin?: string): Record<string, string> {
    return {
      ...clientEnvironment({ clientDirectory: `${this.directory}/of-client`, store: this.store }),
      PATH: `${bin === undefined ? "" : `${bin}:`}${process.env["PATH"] ?? ""}`,
      HOME: this.directory,
    };
  }

  /** Runs a program of Nix on the client's store; returns what it prints. */
  client(program: string, ...words: readonly string[]): string {
    return execFileSync(program, words, {
      env: this.clientEnvironment(),
      encoding: "utf8",
      stdio: ["ignore", "pipe", "pipe"],
    }).trim();
  }

  /** Where something of the builder's store lies. */
  inStore(path: string): string {
    return `${this.directory}/root${path}`;
  }

  /** Runs a program on the builder's store. */
  onBuilder(program: string, words: readonly string[], input: string | Buffer = ""): string {
    return execFileSync(program, words, {
      input,
      encoding: "utf8",
      stdio: ["pipe", "pipe", "pipe"],
      env: { PATH: process.env["PATH"], ...storeEnvironment(this.directory) },
    });
  }

  /** Has it say that these paths are valid, with these references, whatever the derivations say. References come before what has them. */
  claim(claims: readonly Claim[]): void {
    for (const { path, text } of claims) {
      mkdirSync(this.inStore("/nix/store"), { recursive: true });
      writeFileSync(this.inStore(path), text, { mode: 0o444 });
    }
    const lines = claims.flatMap(({ path, references = [] }) => {
      const hash = execFileSync("nix-hash", ["--type", "sha256", this.inStore(path)], { encoding: "utf8" }).trim();
      const size = execFileSync("nix-store", ["--dump", this.inStore(path)]).length;
      return [path, hash, size, "", references.length, ...references];
    });
    this.onBuilder("nix-store", ["--load-db"], `${lines.join("\n")}\n`);
  }

  /** Has it say of a path what it has there by now. */
  nowHas(path: string): void {
    const hash = execFileSync("nix-hash", ["--type", "sha256", this.inStore(path)], { encoding: "utf8" }).trim();
    const size = execFileSync("sh", ["-c", `nix-store --dump "$1" | wc -c`, "sh", this.inStore(path)], {
      encoding: "utf8",
    });
    this.sql(`update ValidPaths set hash = 'sha256:${hash}', narSize = ${size.trim()} where path = '${path}'`);
  }

  /** Has it take a derivation of the client's, with all that it needs. */
  receive(drv: string): void {
    const paths = this.client("nix-store", "--query", "--requisites", drv).split("\n");
    execFileSync("sh", ["-c", 'exec nix-store --export "$@" >exported', "sh", ...paths], {
      cwd: this.directory,
      env: this.clientEnvironment(),
    });
    this.onBuilder("nix-store", ["--import"], readFileSync(`${this.directory}/exported`));
  }

  /** Changes its database. */
  sql(statement: string): void {
    const database = new DatabaseSync(`${this.directory}/root/nix/var/nix/db/db.sqlite`);
    database.exec(statement);
    database.close();
  }

  /** Signs a path there with the key of the cache that the client trusts. */
  sign(path: string): void {
    this.onBuilder("nix", ["store", "sign", "--key-file", `${this.directory}/cache-key`, path]);
  }

  /**
   * Puts a script in the place of what clients' connections start.
   *
   * @returns Undoes it.
   */
  replaceCommand(script: string): () => void {
    const command = `${this.directory}/command`;
    const honest = readFileSync(command);
    const write = (text: string | Buffer) => {
      // Renamed into place: the kernel doesn't write to a program that runs.
      writeFileSync(`${command}.new`, text, { mode: 0o755 });
      renameSync(`${command}.new`, command);
    };
    write(`#!/bin/sh\n${script}\n`);
    return () => {
      write(honest);
    };
  }

  /**
   * Slows down what it sends on all connections but the next one.
   *
   * @param bytesPerSecond Of what comes after the first 2 KiB.
   * @returns Undoes it.
   */
  throttle(bytesPerSecond: number): () => void {
    const [honest, first] = [`${this.directory}/honest`, `${this.directory}/first`];
    writeFileSync(honest, readFileSync(`${this.directory}/command`), { mode: 0o755 });
    writeFileSync(first, "");
    // It goes on for as long as there is a builder, though the client has gone.
    const slow = `
      import { existsSync } from "node:fs";
      let left = 2048;
      const tick = () => {
        if (left > 0) { const chunk = process.stdin.read(Math.min(left, process.stdin.readableLength)); if (chunk) { left -= chunk.length; process.stdout.write(chunk); } }
        if (process.stdin.readableEnded) process.exit();
      };
      process.stdin.on("readable", tick).on("end", () => process.exit());
      setInterval(() => { if (!existsSync(import.meta.filename)) process.exit(); left = Math.max(left, 0) + ${bytesPerSecond / 20}; tick(); }, 50);`;
    writeFileSync(`${this.directory}/slow.mjs`, slow);
    return this.replaceCommand(
      `if rm ${first} 2>/dev/null; then exec ${honest}; fi\n${honest} | '${process.execPath}' ${this.directory}/slow.mjs`,
    );
  }

  read(path: string): string {
    return readFileSync(`${this.store}${path}`, "utf8");
  }

  async stop(): Promise<void> {
    const ended = new Promise((resolve) => this.#sshd.once("exit", resolve));
    this.#sshd.kill();
    await ended;
    execFileSync("chmod", ["-R", "u+w", this.directory]);
    rmSync(this.directory, { recursive: true });
  }
}

async function freePort(address: string): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, address, resolve));
  const bound = server.address();
  await new Promise((resolve) => server.close(resolve));
  if (bound === null || typeof bound === "string") throw new Error("no port");
  return bound.port;
}
