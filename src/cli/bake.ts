/** `npx fleet bake`: a snapshot of a verified builder at Hetzner, from which others start in seconds instead of minutes. */
import { execa } from "execa";
import { createInterface } from "node:readline";
import * as z from "zod";
import { builderDirectory } from "../bootstrap/builderFiles.ts";
import { HcloudError, type HcloudApi } from "../hcloud/api.ts";
import { findLabelled, labels } from "../hcloud/inventory.ts";
import { snapshotLabel } from "../hcloud/schema.ts";
import { sshCommand, type Target } from "../provision/ssh.ts";
import { CliError } from "./stack.ts";

/** What is baked. */
export interface Baking {
  /** Name of the stack: the fleet's label. */
  readonly fleet: string;
  /** The builder's name within the fleet. */
  readonly builder: string;
  readonly target: Target;
  /** OpenSSH private key that opens root. */
  readonly adminPrivateKey: string;
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
];

/**
 * Cleans the builder, takes its snapshot, and gives the builder its identity back: after each line on its input, or when the
 * connection breaks.
 */
const cleaning = `
set -u
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
rm -rf ${identity.join(" ")} ${builderDirectory}/state /var/log/journal/* /root/.ssh
: >/etc/machine-id
sync
echo cleaned
read -r _
exit 0
`;

const server = z.object({ id: z.number(), labels: z.record(z.string(), z.string()) });
const image = z.object({
  id: z.number(),
  created: z.string(),
  architecture: z.string(),
  labels: z.record(z.string(), z.string()),
});

/**
 * Bakes. Clients can't open new connections to the builder meanwhile; builds that run go on.
 *
 * @param say Told what is being done.
 * @throws CliError in words.
 */
export async function bake(api: HcloudApi, baking: Baking, say: (progress: string) => void): Promise<Baked> {
  const [found] = (
    await findLabelled(api, { [labels.fleet]: baking.fleet, [labels.builder]: baking.builder }, ["servers"])
  ).filter(({ labels: own }) => own[labels.role] === undefined);
  if (found === undefined)
    throw new CliError(`fleet ${baking.fleet} has no builder '${baking.builder}' at Hetzner Cloud`);
  const id = await whileCleaned(baking, say, async () => {
    say("taking the snapshot");
    const answer = await api.request("POST", `/servers/${server.parse(found).id}/actions/create_image`, {
      type: "snapshot",
      description: `nix-builder-fleet ${baking.fleet} ${baking.builder}`,
      labels: { [snapshotLabel]: "builder" },
    });
    await api.finish(answer);
    return z.object({ image: z.object({ id: z.number() }) }).parse(answer).image.id;
  });
  return { snapshot: id, deleted: await deleteOlder(api, id, baking.keep) };
}

async function whileCleaned<T>(baking: Baking, say: (progress: string) => void, work: () => Promise<T>): Promise<T> {
  const { args, close } = sshCommand(baking.target, baking.adminPrivateKey, cleaning);
  const session = execa("ssh", args, { reject: false, buffer: { stdout: false } });
  try {
    say("cleaning the builder of its keys and garbage");
    let cleaned = false;
    for await (const line of createInterface({ input: session.stdout })) {
      cleaned = line === "cleaned";
      if (cleaned) break;
    }
    if (!cleaned) throw new CliError(`the builder can't be cleaned: ${(await session).stderr.trim()}`);
    return await work();
  } catch (error) {
    throw error instanceof HcloudError ? new CliError(error.message) : error;
  } finally {
    session.stdin.end("done\n");
    await session;
    close();
  }
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
