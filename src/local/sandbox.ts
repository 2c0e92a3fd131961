/** Whether an ordinary user's builds can have a sandbox on this machine: Nix makes it of user namespaces. */
import { readFileSync } from "node:fs";

/** Kernel settings, the value that takes user namespaces away from ordinary users, and one that gives them back. */
const settings = [
  { name: "user.max_user_namespaces", forbids: "0", allows: "10000" },
  { name: "kernel.unprivileged_userns_clone", forbids: "0", allows: "1" },
  // Ubuntu 23.10 and later: https://ubuntu.com/blog/ubuntu-23-10-restricted-unprivileged-user-namespaces.
  { name: "kernel.apparmor_restrict_unprivileged_userns", forbids: "1", allows: "0" },
] as const;

/**
 * Why this user's builds can't have a sandbox, and what to do, in words; `undefined`: nothing is known against it.
 *
 * @param directory Folder of the kernel's settings.
 */
export function sandboxObstacle(directory = "/proc/sys"): string | undefined {
  if (process.getuid?.() === 0) return undefined;
  const wrong = settings.filter(({ name, forbids }) => valueOf(`${directory}/${name.replace(".", "/")}`) === forbids);
  if (wrong.length === 0) return undefined;
  const found = wrong.map(({ name, forbids }) => `${name} is ${forbids}`).join(" and ");
  const remedy = wrong.map(({ name, allows }) => `${name}=${allows}`).join(" ");
  return (
    `builds need a sandbox, which the kernel allows nobody but root here (${found}); ` +
    `allow it with \`sudo sysctl ${remedy}\`, or run as root`
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
