/** Real local builders for one test, and the client directory that leads to them. */
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir, userInfo } from "node:os";
import { execa } from "execa";
import { defaultBuildLimits, type BuildLimits } from "../../src/bootstrap/defaults.ts";
import { clientEnvironment } from "../../src/client/environment.ts";
import { writeClientDirectory } from "../../src/client/directory.ts";
import { sweep, startMachine } from "../../src/local/machine.ts";
import { marksOfMachine, runningSshd, stopProcesses } from "../../src/local/processes.ts";
import type { LocalMachine } from "../../src/local/spec.ts";
import type { BuildMachine } from "../../src/nix/buildMachine.ts";
import { clientFiles } from "../../src/nix/clientFiles.ts";
import { systemOfThisMachine, type System } from "../../src/nix/system.ts";
import { toPublicHostKey } from "../../src/ssh/hostKey.ts";
import { newSigningKey } from "./signingKey.ts";

/** This machine's own system. */
export const system: System = systemOfThisMachine() ?? "x86_64-linux";

/** A key pair in OpenSSH's forms. */
export interface KeyPair {
  readonly privateKey: string;
  readonly publicKey: string;
}

/** What a test says of a builder; all else has defaults. */
export type BuilderOptions = Partial<Omit<BuildMachine, "hostName" | "port" | "publicHostKey">> & {
  readonly alias: string;
  /** Of its builds. Default: as in a fleet. */
  readonly limits?: BuildLimits;
};

/** One running builder. */
export interface FleetBuilder {
  /** As the client knows it; a test may let the client know it otherwise, see `writeClient`. */
  readonly machine: BuildMachine;
  readonly local: LocalMachine;
}

/** Builders and a client, in a folder of their own. */
export class LocalFleet {
  /** Laid out as `.fleet/stacks/NAME` of a checkout. */
  readonly directory: string;
  readonly builders: readonly FleetBuilder[];
  readonly client: KeyPair;
  readonly admin: KeyPair;
  /** For a test's own files, removed with the builders. */
  readonly root: string;

  private constructor(root: string, client: KeyPair, admin: KeyPair, builders: readonly FleetBuilder[]) {
    this.root = root;
    this.directory = stackDirectory(root);
    this.client = client;
    this.admin = admin;
    this.builders = builders;
  }

  /** Starts the builders, on addresses of their own, and writes the client's files. */
  static async start(...options: readonly BuilderOptions[]): Promise<LocalFleet> {
    const root = mkdtempSync(`${tmpdir()}/fleet-`);
    const [client, admin] = [keyPair(root), keyPair(root)];
    const signer = newSigningKey("local-builders");
    const builders = options.map(({ limits = defaultBuildLimits, ...one }, index): FleetBuilder => {
      const host = keyPair(root);
      const address = {
        address: `127.${66 + (process.pid % 60)}.${(process.pid >> 6) % 250}.${nextHost()}`,
        port: 2299,
      };
      const machine: BuildMachine = {
        hostName: address.address,
        port: address.port,
        protocol: "ssh-ng",
        systems: [system],
        sshUser: userInfo().username,
        maxJobs: 2,
        speedFactor: 1,
        supportedFeatures: ["big-parallel"],
        mandatoryFeatures: [],
        publicHostKey: toPublicHostKey(host.publicKey),
        ...one,
      };
      const local: LocalMachine = {
        ...limits,
        ...address,
        directory: `${stackDirectory(root)}/machines/${index}`,
        system,
        features: [...machine.supportedFeatures, ...machine.mandatoryFeatures],
        maxJobs: machine.maxJobs,
        hostPrivateKey: host.privateKey,
        clients: [{ publicKey: client.publicKey, trust: "full" }],
        trustedPublicKeys: [signer.publicKey],
        signingKey: signer.secretKey,
        adminPublicKey: admin.publicKey,
      };
      return { machine, local };
    });
    const fleet = new LocalFleet(root, client, admin, builders);
    try {
      await Promise.all(builders.map(({ local }) => startMachine(local, "1")));
      fleet.writeClient();
    } catch (error) {
      await fleet.stop();
      throw error;
    }
    return fleet;
  }

  get clientDirectory(): string {
    return `${this.directory}/client`;
  }

  /** The builder of that alias. */
  builder(alias: string): FleetBuilder {
    const found = this.builders.find(({ machine }) => machine.alias === alias);
    if (found === undefined) throw new Error(`no builder ${alias}`);
    return found;
  }

  /** Writes the client's files; `machines` and `privateKey` as a test wants the client to believe. */
  writeClient(
    machines: readonly BuildMachine[] = this.builders.map(({ machine }) => machine),
    privateKey: string = this.client.privateKey,
    directory: string = this.clientDirectory,
  ): void {
    writeClientDirectory(directory, { ...clientFiles(machines, { directory }), id_ed25519: privateKey });
  }

  /** Starts `nix-build` as a client with a store of its own name; a test may watch and kill it. */
  nixBuild(expression: string, words: readonly string[] = [], store = "store", clientDirectory = this.clientDirectory) {
    return execa("nix-build", ["-E", expression, "--no-out-link", "--option", "substituters", "", ...words], {
      all: true,
      reject: false,
      stdin: "ignore",
      timeout: 120_000,
      env: clientEnvironment({ clientDirectory, store: `${this.directory}/${store}` }),
    });
  }

  /** The text of a store path that a client has. */
  read(storePath: string, store = "store"): string {
    return readFileSync(`${this.directory}/${store}${storePath}`, "utf8");
  }

  /** The builder goes as in a power cut: all its processes at once. Its folder stays. */
  async kill(alias: string): Promise<void> {
    await stopProcesses(marksOfMachine(this.builder(alias).local.directory));
  }

  /** Starts a builder again with what it had. */
  async restart(alias: string): Promise<void> {
    await startMachine(this.builder(alias).local, "2");
  }

  /** Pid of a builder's sshd. */
  sshd(alias: string): number {
    const pid = runningSshd(this.builder(alias).local.directory);
    if (pid === undefined) throw new Error(`${alias} does not run`);
    return pid;
  }

  /** Stops everything and removes the folder. */
  async stop(): Promise<void> {
    await sweep(this.directory, "none");
    // Clients' stores have folders that nobody may write to.
    execFileSync("chmod", ["-R", "u+w", this.root]);
    rmSync(this.root, { recursive: true, force: true });
  }
}

/** A new ed25519 key pair. */
export function keyPair(directory: string): KeyPair {
  const file = mkdtempSync(`${directory}/key-`);
  execFileSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-C", "", "-f", `${file}/key`]);
  const read = (name: string): string => readFileSync(`${file}/${name}`, "utf8");
  return { privateKey: read("key"), publicKey: read("key.pub").trim() };
}

let hosts = 0;

function nextHost(): number {
  hosts += 1;
  return hosts;
}

function stackDirectory(root: string): string {
  return `${root}/.fleet/stacks/t`;
}
