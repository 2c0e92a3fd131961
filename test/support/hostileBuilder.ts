/** A builder that lies: a real one, whose store a test changes behind its back. */
import { execFileSync } from "node:child_process";
import { chmodSync, mkdirSync, readFileSync, renameSync, statSync, writeFileSync } from "node:fs";
import { writeClientDirectory } from "../../src/client/directory.ts";
import { clientEnvironment } from "../../src/client/environment.ts";
import { clientFiles } from "../../src/nix/clientFiles.ts";
import { storeUri } from "../../src/nix/machinesFile.ts";
import { startLocalBuilder, type LocalBuilder } from "./localBuilder.ts";

/** What a builder may say of a path. */
export interface Claim {
  readonly path: string;
  readonly text: string;
  readonly references?: readonly string[];
}

/** Starts one, and makes a client of it. */
export async function startHostileBuilder(alias: string): Promise<HostileBuilder> {
  return new HostileBuilder(await startLocalBuilder(alias));
}

/** A running builder, and a client of it with a store of its own. */
export class HostileBuilder {
  readonly #builder: LocalBuilder;
  readonly uri: string;
  /** Root of the client's store. */
  readonly store: string;
  readonly directory: string;

  constructor(builder: LocalBuilder) {
    this.#builder = builder;
    this.directory = builder.directory;
    this.uri = storeUri(builder.machine);
    this.store = `${builder.directory}/client-store`;
    const directory = `${builder.directory}/of-client`;
    const [key, publicKey] = ["cache-key", "cache-key.pub"].map((name) => `${builder.directory}/${name}`) as [
      string,
      string,
    ];
    execFileSync("nix-store", ["--generate-binary-cache-key", "cache-1", key, publicKey]);
    chmodSync(key, 0o644);
    const settings = { substituters: "", "trusted-public-keys": readFileSync(publicKey, "utf8") };
    const files = clientFiles([builder.machine], { directory, settings });
    writeClientDirectory(directory, { ...files, id_ed25519: builder.clientPrivateKey });
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
    return `${this.directory}/builder/root${path}`;
  }

  /** Runs a program on the builder's store, as whom the store belongs to. */
  onBuilder(program: string, words: readonly string[], input: string | Buffer = ""): string {
    const machine = `${this.directory}/builder`;
    const { uid, gid } = statSync(`${machine}/root`);
    return execFileSync(program, words, {
      uid,
      gid,
      input,
      encoding: "utf8",
      stdio: ["pipe", "pipe", "pipe"],
      env: {
        PATH: process.env["PATH"],
        HOME: machine,
        NIX_REMOTE: `local?root=${machine}/root`,
        NIX_STATE_DIR: `${machine}/state`,
        NIX_LOG_DIR: `${machine}/log`,
        NIX_CONF_DIR: machine,
        NIX_USER_CONF_FILES: "",
        NIX_CONFIG: "extra-experimental-features = nix-command\n",
      },
    });
  }

  /** Has it say that these paths are valid, with these references, whatever the derivations say. References come before what has them. */
  claim(claims: readonly Claim[]): void {
    const { uid, gid } = statSync(`${this.directory}/builder/root`);
    for (const { path, text } of claims) {
      mkdirSync(this.inStore("/nix/store"), { recursive: true });
      writeFileSync(this.inStore(path), text, { mode: 0o444 });
      execFileSync("chown", [`${uid}:${gid}`, this.inStore(path)]);
    }
    const lines = claims.flatMap(({ path, references = [] }) => {
      const hash = execFileSync("nix-hash", ["--type", "sha256", this.inStore(path)], { encoding: "utf8" }).trim();
      const size = execFileSync("nix-store", ["--dump", this.inStore(path)]).length;
      return [path, hash, size, "", references.length, ...references];
    });
    this.onBuilder("nix-store", ["--load-db"], `${lines.join("\n")}\n`);
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
    const file = `${this.directory}/builder/root/nix/var/nix/db/db.sqlite`;
    const script = `const { DatabaseSync } = require("node:sqlite"); new DatabaseSync(process.argv[1]).exec(process.argv[2]);`;
    this.onBuilder(process.execPath, ["--no-warnings", "-e", script, file, statement]);
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
    const command = `${this.directory}/builder/nix-ssh`;
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

  read(path: string): string {
    return readFileSync(`${this.store}${path}`, "utf8");
  }

  stop(): Promise<void> {
    return this.#builder.stop();
  }
}
