/** The users of a local builder's container: who they are inside, and which of the host's ids they have. */
import { createHash } from "node:crypto";
import { existsSync, readFileSync, statSync } from "node:fs";
import { builderUsers } from "../bootstrap/builderFiles.ts";

/**
 * Ids of the container, by name. Root runs the Nix daemon, the two others are whom clients' sessions run as. The container of an ordinary user
 * has `single` alone, whom the daemon trusts.
 */
export const containerIds = {
  single: 1000,
  root: 0,
  untrusted: 1,
  trusted: 2,
  firstBuildUser: 101,
  buildGroup: 100,
  kvmGroup: 99,
} as const;

/** Names of the same users, as Nix's settings have them: those of builders in a cloud. */
export const containerUsers = {
  untrusted: builderUsers.none,
  trusted: builderUsers.full,
  buildGroup: "nixbld",
} as const;

/** Build users: builds at the same time, of all clients together; further ones wait. */
const buildUsers = 128;

/** Host ids that one container takes. */
const blockSize = 256;

/**
 * Ids that no account has: systemd's table calls them unused. Source: https://systemd.io/UIDS-GIDS, "1879048192…2147352575".
 */
const unusedIds = { first: 1_879_048_192, count: 2_147_352_576 - 1_879_048_192 };

/** Host ids in a row: the container's id 0 is `first`. */
export interface IdRange {
  readonly first: number;
  readonly count: number;
}

/**
 * The host's ids for the container of root's builder in `directory`: those that its store has already, else a block that nobody has.
 *
 * @param idMap Which ids this machine's root can give, as /proc/self/uid_map; where it can't give unused ones, because it is root of a container
 *   itself, the block lies at the end of what it has.
 */
export function idRangeFor(
  directory: string,
  idMap = readFileSync("/proc/self/uid_map", "utf8"),
  accounts = ["/etc/passwd", "/etc/group", "/etc/subuid", "/etc/subgid"].map(readIfThere).join("\n"),
): IdRange {
  const given = idMap
    .trim()
    .split("\n")
    .map((line) => line.trim().split(/\s+/).map(Number))
    .map(([first = 0, , count = 0]) => ({ first, count }));
  const holds = (range: IdRange, { first, count }: IdRange): boolean =>
    range.first <= first && first + count <= range.first + range.count;
  const isGiven = (block: IdRange): boolean => given.some((range) => holds(range, block));
  const largest = given.reduce((a, b) => (b.count > a.count ? b : a), { first: 0, count: 0 });
  const half = Math.floor(largest.count / 2);
  const pool = isGiven(unusedIds) ? unusedIds : { first: largest.first + half, count: half };
  const taken = takenIds(accounts);
  const isFree = ({ first, count }: IdRange): boolean =>
    !taken.some((range) => range.first < first + count && first < range.first + range.count);
  const ofStore = { first: ownerOf(`${directory}/root`) ?? 0, count: blockSize };
  // Root of the container may have given its store to another one of its users: a block from there would reach into the next one.
  const isBlock = (ofStore.first - pool.first) % blockSize === 0;
  if (isBlock && holds(pool, ofStore) && isFree(ofStore)) return ofStore;
  const blocks = Math.floor(pool.count / blockSize);
  const start = createHash("sha256").update(directory).digest().readUInt32BE() % Math.max(1, blocks);
  for (let i = 0; i < blocks; i++) {
    const block = { first: pool.first + ((start + i) % blocks) * blockSize, count: blockSize };
    if (isFree(block)) return block;
  }
  throw new Error(
    `this machine has no ${blockSize} user ids in a row that its root may give away and no account has; a local builder needs them`,
  );
}

/** What /proc/PID/uid_map of the container gets. */
export function userMap({ first, count }: IdRange): string {
  return `0 ${first} ${count}\n`;
}

/**
 * What /proc/PID/gid_map of the container gets.
 *
 * @param kvm The host's group that may use /dev/kvm, which build users are in then; `undefined`: none is needed, or there is no such device.
 */
export function groupMap({ first, count }: IdRange, kvm: number | undefined): string {
  if (kvm === undefined) return `0 ${first} ${count}\n`;
  const inside = containerIds.kvmGroup;
  const after = inside + 1;
  return `0 ${first} ${inside}\n${inside} ${kvm} 1\n${after} ${first + after} ${count - after}\n`;
}

/** The group that may use a device that not everybody may. */
export function kvmGroup(device = "/dev/kvm"): number | undefined {
  if (!existsSync(device)) return undefined;
  const { mode, gid } = statSync(device);
  return (mode & 0o006) !== 0o006 && (mode & 0o060) === 0o060 && gid !== 0 ? gid : undefined;
}

/**
 * The container's password and group files.
 *
 * @param withBuildUsers False where the container has a single user: that of whoever runs it.
 */
export function accountFiles(withBuildUsers: boolean): { readonly passwd: string; readonly group: string } {
  const { untrusted, trusted, firstBuildUser, buildGroup, kvmGroup: kvm } = containerIds;
  const builders = withBuildUsers
    ? Array.from({ length: buildUsers }, (_, index) => ({ name: `nixbld${index + 1}`, id: firstBuildUser + index }))
    : [];
  const account = (name: string, id: number, gid = id): string => `${name}:x:${id}:${gid}::/:/bin/sh\n`;
  return {
    passwd: [
      account("root", 0),
      account(containerUsers.untrusted, untrusted),
      account(containerUsers.trusted, withBuildUsers ? trusted : containerIds.single),
      ...builders.map(({ name, id }) => account(name, id, buildGroup)),
      account("nobody", 65_534),
    ].join(""),
    group: [
      "root:x:0:\n",
      `${containerUsers.untrusted}:x:${untrusted}:\n`,
      `${containerUsers.trusted}:x:${withBuildUsers ? trusted : containerIds.single}:\n`,
      ...(withBuildUsers ? [`kvm:x:${kvm}:${builders.map(({ name }) => name).join(",")}\n`] : []),
      ...(withBuildUsers
        ? [`${containerUsers.buildGroup}:x:${buildGroup}:${builders.map(({ name }) => name).join(",")}\n`]
        : []),
      "nogroup:x:65534:\n",
    ].join(""),
  };
}

/** Ids of accounts (third field of passwd and group) and of ranges given to users (subuid, subgid: name, first, count). */
function takenIds(accounts: string): IdRange[] {
  return accounts.split("\n").flatMap((line) => {
    const [, second = "", third = "", ...rest] = line.split(":");
    if (rest.length > 0) return [{ first: Number(third), count: 1 }];
    return third === "" ? [] : [{ first: Number(second), count: Number(third) }];
  });
}

function ownerOf(path: string): number | undefined {
  return existsSync(path) ? statSync(path).uid : undefined;
}

function readIfThere(path: string): string {
  return existsSync(path) ? readFileSync(path, "utf8") : "";
}
