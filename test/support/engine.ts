/** Deployments for tests: the real CLI, engine, plugins and builders, in a project folder and backend of their own. */
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { randomBytes } from "node:crypto";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { execa } from "execa";
import { stringify } from "yaml";
import { withCloudPlugins, type CloudPluginName } from "../../tools/setup/cloudPlugins.ts";
import { setUp } from "../../tools/setup/index.ts";
import { engineEnvironment } from "../../tools/pulumi.ts";
import { repairStates } from "../../tools/savedState.ts";
import { dropStaleLocks, noteRun } from "../../tools/staleLocks.ts";
import { emulationOwner } from "../../src/local/plan.ts";

const checkout = resolve(import.meta.dirname, "../..");

/** What the CLI did. */
export interface CliResult {
  readonly exitCode: number;
  /** Both streams, as a person sees them. */
  readonly output: string;
}

/** A stack of this project, deployed for a test. */
export class TestDeployment {
  readonly stack = `t${randomBytes(4).toString("hex")}`;
  readonly project = mkdtempSync(join(tmpdir(), "fleet-engine-"));
  /** Milliseconds that one run of the CLI may take. */
  timeLimit = 180_000;
  readonly #env: NodeJS.ProcessEnv;

  private constructor(env: NodeJS.ProcessEnv) {
    const state = join(this.project, "state");
    mkdirSync(state);
    this.#env = {
      ...engineEnvironment(env),
      PULUMI_BACKEND_URL: `file://${state}`,
      PULUMI_CONFIG_PASSPHRASE: randomBytes(16).toString("hex"),
      PULUMI_STACK: this.stack,
    };
    for (const file of ["Pulumi.yaml", "package.json"]) copyFileSync(join(checkout, file), join(this.project, file));
    for (const folder of ["src", "components", "node_modules"])
      symlinkSync(join(checkout, folder), join(this.project, folder));
  }

  /** A new stack with this configuration, not deployed yet; `env` comes on top of set-up's, `cloud` names its clouds. */
  static async create(
    config: Readonly<Record<string, unknown>>,
    env: NodeJS.ProcessEnv = {},
    cloud: readonly CloudPluginName[] = [],
  ): Promise<TestDeployment> {
    const { env: tools } = await setUp();
    const deployment = new TestDeployment({ ...(await withCloudPlugins(tools, cloud)), ...env });
    await execa("pulumi", ["stack", "init", deployment.stack], {
      cwd: deployment.project,
      env: deployment.#env,
      extendEnv: false,
    });
    deployment.configure(config);
    return deployment;
  }

  /** Folder of the stack on this machine. */
  get directory(): string {
    return join(checkout, ".fleet", "stacks", this.stack);
  }

  /** Environment in which `npx fleet` and the CLI work on this stack. */
  get env(): NodeJS.ProcessEnv {
    return this.#env;
  }

  /** Replaces the stack's configuration. Keys without a namespace are the project's. */
  configure(config: Readonly<Record<string, unknown>>): void {
    const path = join(this.project, `Pulumi.${this.stack}.yaml`);
    const salt = /^encryptionsalt:.*$/m.exec(readFileSync(path, "utf8"))?.[0] ?? "";
    const values = Object.fromEntries(
      Object.entries(config).map(([key, value]) => [key.includes(":") ? key : `nix-builder-fleet:${key}`, value]),
    );
    writeFileSync(path, `${salt}\n${stringify({ config: values })}`);
  }

  up(): Promise<CliResult> {
    return this.pulumi("up", "--yes", "--skip-preview", "--suppress-progress", "--suppress-outputs");
  }

  destroy(): Promise<CliResult> {
    return this.pulumi("destroy", "--yes", "--skip-preview", "--suppress-progress");
  }

  async pulumi(...words: readonly string[]): Promise<CliResult> {
    const { exitCode, all } = await this.start(...words);
    return { exitCode: exitCode ?? 1, output: all };
  }

  /** What `npm run pulumi` and `npm start` do first: takes back what a killed CLI left in the state's folder. */
  unlock(): void {
    dropStaleLocks(this.#env["PULUMI_BACKEND_URL"]);
    repairStates(this.#env["PULUMI_BACKEND_URL"]);
  }

  /** Starts the CLI; a test may read along and kill it. */
  start(...words: readonly string[]) {
    const cli = execa("pulumi", [...words, "--color", "never", "--non-interactive"], {
      cwd: this.project,
      env: this.#env,
      extendEnv: false,
      all: true,
      reject: false,
      stdin: "ignore",
      timeout: this.timeLimit,
    });
    noteRun(cli.pid, this.#env["PULUMI_BACKEND_URL"]);
    return cli;
  }

  /** All outputs, secrets in clear. */
  async outputs(): Promise<Record<string, unknown>> {
    const { stdout } = await execa("pulumi", ["stack", "output", "--json", "--show-secrets"], {
      cwd: this.project,
      env: this.#env,
      extendEnv: false,
    });
    return JSON.parse(stdout) as Record<string, unknown>;
  }

  /** Destroys what there is and removes the project; for `afterAll`, whatever happened before. */
  async remove(): Promise<void> {
    this.unlock();
    const { exitCode, output } = await this.destroy();
    rmSync(this.project, { recursive: true, force: true });
    if (exitCode !== 0) throw new Error(`destroy of ${this.stack} failed:\n${output}`);
  }

  /** Everything of the stack that is on this machine now; empty after a destroy. */
  leftovers(): string[] {
    return [
      ...(existsSync(this.directory) ? [`folder ${this.directory}`] : []),
      ...processesNaming(this.stack),
      ...registrations(emulationOwner(this.stack, this.directory)),
    ];
  }
}

/** Live processes with the text in their command line or title. */
export function processesNaming(text: string): string[] {
  return readdirSync("/proc")
    .filter((entry) => /^\d+$/.test(entry) && Number(entry) !== process.pid)
    .flatMap((entry) => {
      try {
        const command = readFileSync(`/proc/${entry}/cmdline`, "utf8").replaceAll("\0", " ");
        return command.includes(text) ? [`process ${entry}: ${command}`] : [];
      } catch {
        return [];
      }
    });
}

function registrations(owner: string): string[] {
  try {
    return readdirSync("/proc/sys/fs/binfmt_misc").filter((name) => name.includes(owner));
  } catch {
    return [];
  }
}
