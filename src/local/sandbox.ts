/** Whether builds can have a container and a sandbox on this machine: both are made of user namespaces. */
import { readFileSync } from "node:fs";

/** Kernel settings, the value that takes user namespaces away, one that gives them back, and whether root lacks them as well. */
const settings = [
  { name: "user.max_user_namespaces", forbids: "0", allows: "10000", root: true },
  { name: "kernel.unprivileged_userns_clone", forbids: "0", allows: "1", root: false },
  // Ubuntu 23.10 and later: https://ubuntu.com/blog/ubuntu-23-10-restricted-unprivileged-user-namespaces.
  { name: "kernel.apparmor_restrict_unprivileged_userns", forbids: "1", allows: "0", root: false },
] as const;

/**
 * Why this user's builds can't have a sandbox, and what to do, in words; `undefined`: nothing is known against it.
 *
 * @param directory Folder of the kernel's settings.
 */
export function sandboxObstacle(directory = "/proc/sys"): string | undefined {
  const isRoot = process.getuid?.() === 0;
  const wrong = settings.filter(
    ({ name, forbids, root }) => (root || !isRoot) && valueOf(`${directory}/${name.replace(".", "/")}`) === forbids,
  );
  if (wrong.length === 0) return undefined;
  const found = wrong.map(({ name, forbids }) => `${name} is ${forbids}`).join(" and ");
  const remedy = wrong.map(({ name, allows }) => `${name}=${allows}`).join(" ");
  return (
    `builds need a sandbox, which the kernel allows ${isRoot ? "nobody" : "nobody but root"} here (${found}); ` +
    (isRoot ? `allow it with \`sysctl ${remedy}\`` : `allow it with \`sudo sysctl ${remedy}\`, or run as root`)
  );
}

/** `undefined` where the kernel has no such setting. */
function valueOf(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8").trim();
  } catch {
    return undefined;
  }
}
