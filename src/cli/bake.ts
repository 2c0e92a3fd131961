/** `npx fleet bake`: a snapshot of a verified builder at Hetzner, from which others start in seconds instead of minutes. */
import { execa } from "execa";
import { setTimeout as delay } from "node:timers/promises";
import * as z from "zod";
import { builderDirectory, signingDirectory, trustingMark } from "../bootstrap/builderFiles.ts";
import { HcloudError, understand, type HcloudApi } from "../hcloud/api.ts";
import { labels } from "../hcloud/inventory.ts";
import { snapshotLabel } from "../hcloud/schema.ts";
import { quoted } from "../machineText.ts";
import { linesOf } from "../process.ts";
import { sshCommand, type Target } from "../provision/ssh.ts";
import { CliError } from "./stack.ts";

/** What is baked. */
export interface Baking {
  /** Name of the stack: the fleet's label. */
  readonly fleet: string;
  /** The builder's name within the fleet. */
  readonly builder: string;
  /** Id of its server. */
  readonly server: number;
  readonly target: Target;
  /** OpenSSH private key that opens root. */
  readonly adminPrivateKey: string;
  /** The stack's folder on this machine. */
  readonly stackDirectory: string;
  /** Bake it although clients were root on it. */
  readonly acceptTrusting: boolean;
  /** Snapshots of its architecture that stay, this one included. */
  readonly keep: number;
}

/** What was done. */
export interface Baked {
  readonly snapshot: number;
  /** Ids of older ones that were deleted. */
  readonly deleted: readonly number[];
}

/** What makes the builder itself and no other; lies in memory while the snapshot is taken. */
const identity = [
  "/etc/ssh/ssh_host_ed25519_key",
  "/etc/ssh/ssh_host_ed25519_key.pub",
  "/etc/machine-id",
  `${builderDirectory}/born`,
  `${builderDirectory}/keys`,
  `${builderDirectory}/${signingDirectory}`,
];

/** The builder says it instead of `cleaned`, and is left as it is. */
const refusal = "trusting";

/**
 * Cleans the builder, and gives it its identity back after a line on its input, or when the connection breaks. Only in the first case
 * it says `kept`: until then nothing was given back.
 */
const cleaning = (acceptTrusting: boolean): string => `
set -u
${acceptTrusting ? "" : `[ ! -e ${trustingMark} ] || { echo ${refusal}; exit 0; }`}
home=/run/nix-builder-bake
restore() {
  for path in ${identity.join(" ")}; do [ ! -e $home$path ] || cp -a $home$path "$(dirname $path)/"; done
  rm -rf $home
}
rm -rf $home && mkdir -m 700 $home || exit 1
nix-collect-garbage -d >/dev/null 2>&1
for path in ${identity.join(" ")}; do [ ! -e $path ] || cp -a --parents $path $home; done
trap restore EXIT
trap 'exit 1' HUP INT TERM PIPE
rm -rf ${identity.join(" ")} ${builderDirectory}/state /old-root /var/log/journal/* /root/.ssh
: >/etc/machine-id
sync
echo cleaned
read -r _ || exit 1
echo kept
exit 0
`;

/** What a builder may print while it is baked, in bytes; it says two words. */
const printedLimit = 64 * 1024;

/** Milliseconds that cleaning and a snapshot may take together. */
const sessionLimit = 3 * 3_600_000;

const image = z.object({
  id: z.number(),
  created: z.string(),
  architecture: z.string(),
  labels: z.record(z.string(), z.string()),
});

const created = z.object({ image: z.object({ id: z.number() }) });

/**
 * Bakes. Clients can't open new connections to the builder meanwhile; builds that run go on.
 *
 * @param say Told what is being done.
 * @param cleaningLimit Milliseconds for collecting the builder's garbage. Default: half an hour.
 * @throws CliError in words; then there is no new snapshot.
 */
export async function bake(
  api: HcloudApi,
  baking: Baking,
  say: (progress: string) => void,
  cleaningLimit = 1_800_000,
): Promise<Baked> {
  const interruption = awaitInterruption();
  const session = new CleaningSession(baking);
  try {
    say("cleaning the builder of its keys and garbage");
    await Promise.race([interruption.comes, session.cleaned(cleaningLimit)]);
    say("taking the snapshot");
    const id = await takeSnapshot(api, baking, session, interruption.comes);
    return { snapshot: id, deleted: await deleteOlder(api, id, baking.keep) };
  } catch (error) {
    throw error instanceof HcloudError ? new CliError(error.message) : error;
  } finally {
    await session.end();
    interruption.forget();
  }
}

/** Rejects `comes` when this process is told to end, so that what was begun is undone before it does. */
function awaitInterruption(): { readonly comes: Promise<never>; readonly forget: () => void } {
  const signals = ["SIGINT", "SIGTERM", "SIGHUP"] as const;
  let interrupt: (signal: NodeJS.Signals) => void = () => undefined;
  const comes = new Promise<never>((_, reject) => {
    interrupt = (signal) => {
      reject(new CliError(`ended by ${signal}; no snapshot was kept`));
    };
  });
  for (const signal of signals) process.on(signal, interrupt);
  // It may come where nobody waits for it; then the next wait ends.
  comes.catch(() => undefined);
  const forget = (): void => {
    for (const signal of signals) process.off(signal, interrupt);
  };
  return { comes, forget };
}

/** A builder without its identity, for as long as the connection to it lasts. */
class CleaningSession {
  readonly #process;
  readonly #lines: AsyncIterator<string>;
  readonly #close: () => void;
  readonly #builder: string;
  #last = "";

  constructor({ builder, target, adminPrivateKey, stackDirectory, acceptTrusting }: Baking) {
    const { args, close } = sshCommand(target, adminPrivateKey, stackDirectory, cleaning(acceptTrusting));
    this.#builder = builder;
    const buffered = { stdout: false, stderr: true };
    this.#process = execa("ssh", args, {
      reject: false,
      buffer: buffered,
      maxBuffer: printedLimit,
      timeout: sessionLimit,
    });
    this.#lines = linesOf(this.#process.stdout, printedLimit);
    this.#close = close;
  }

  /**
   * Resolves when the builder is without its identity.
   *
   * @param milliseconds What it may take.
   */
  async cleaned(milliseconds: number): Promise<void> {
    const late = new AbortController();
    const within = delay(milliseconds, undefined, { signal: late.signal }).then(
      () => `it did not do so within ${milliseconds / 1000} s`,
      () => "",
    );
    const answer = this.#says("cleaned", refusal).catch((error: unknown) => wordsOf(error));
    const said = await Promise.race([answer, within]);
    late.abort();
    if (said === true && this.#last !== refusal) return;
    if (said === true) {
      throw new CliError(
        `clients of '${this.#builder}' are or were root on it (trust: full) and may have left something that every builder made from its ` +
          "snapshot would run; bake a new builder of a fleet at trust none or signed, or say --accept-trusting",
      );
    }
    this.#process.kill();
    if (said !== false) throw new CliError(`the builder can't be cleaned: ${said}`);
    throw new CliError(`the builder can't be cleaned:\n${quoted((await this.#process).stderr ?? "")}`);
  }

  /** Gives the identity back, and says whether the builder was without it until now. */
  async restore(): Promise<boolean> {
    this.#process.stdin.write("done\n");
    return this.#says("kept");
  }

  /** Ends the connection, and with it whatever the builder lacks: it gives that back by itself when it sees the end. */
  async end(): Promise<void> {
    this.#process.stdin.end();
    const late = new AbortController();
    const hung = delay(30_000, undefined, { signal: late.signal }).then(
      () => this.#process.kill(),
      () => undefined,
    );
    await this.#process;
    late.abort();
    await hung;
    this.#close();
  }

  /** Whether one of these words comes as a line; it is `#last` then. */
  async #says(...words: readonly string[]): Promise<boolean> {
    for (;;) {
      const line = await this.#lines.next();
      if (line.done === true) return false;
      this.#last = line.value;
      if (words.includes(line.value)) return true;
    }
  }
}

/**
 * Takes the snapshot of a cleaned builder. Only when it is certain that it was made of the cleaned one, it gets the label by which
 * builders start from it; until then it counts as something of the fleet's that is left over.
 */
async function takeSnapshot(
  api: HcloudApi,
  { fleet, builder, server }: Baking,
  session: CleaningSession,
  interrupted: Promise<never>,
): Promise<number> {
  const path = `/servers/${server}/actions/create_image`;
  const answer = await api.request("POST", path, {
    type: "snapshot",
    description: `nix-builder-fleet ${fleet} ${builder}`,
    labels: { [labels.fleet]: fleet },
  });
  const { id } = understand(created, answer, path).image;
  try {
    await Promise.race([interrupted, api.finish(answer)]);
    if (!(await session.restore())) {
      throw new CliError(
        "the connection to the builder broke while the snapshot was taken, so the snapshot may hold the builder's private keys " +
          "and isn't kept; bake again",
      );
    }
    await api.request("PUT", `/images/${id}`, { labels: { [snapshotLabel]: "builder" } });
    return id;
  } catch (error) {
    await api.request("DELETE", `/images/${id}`).catch((refused: unknown) => {
      if (refused instanceof HcloudError && refused.code === "not_found") return;
      throw new CliError(
        `${wordsOf(error)}; but snapshot ${id} can't be deleted (${wordsOf(refused)}): delete it in the console, it may hold the builder's private keys`,
      );
    });
    throw error;
  }
}

function wordsOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** Deletes the oldest snapshots of the new one's architecture. */
async function deleteOlder(api: HcloudApi, newest: number, keep: number): Promise<number[]> {
  const all = await api.list(`/images?type=snapshot&label_selector=${snapshotLabel}%3D%3Dbuilder`, "images", image);
  const architecture = all.find(({ id }) => id === newest)?.architecture;
  const older = all
    .filter((one) => one.architecture === architecture && one.id !== newest)
    .sort((a, b) => b.created.localeCompare(a.created) || b.id - a.id)
    .slice(Math.max(0, keep - 1));
  for (const { id } of older) await api.request("DELETE", `/images/${id}`);
  return older.map(({ id }) => id);
}
