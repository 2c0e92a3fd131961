import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { afterEach, describe, expect, it, vi } from "vitest";
import { sandboxObstacle } from "../../src/local/sandbox.ts";

afterEach(() => {
  vi.restoreAllMocks();
});

/** What is said on a machine with these settings alone. */
function obstacle(settings: Readonly<Record<string, string>>, uid = 1000): string | undefined {
  vi.spyOn(process, "getuid").mockReturnValue(uid);
  const directory = mkdtempSync(`${tmpdir()}/fleet-sysctl-`);
  for (const folder of ["user", "kernel"]) mkdirSync(`${directory}/${folder}`);
  for (const [path, value] of Object.entries(settings)) writeFileSync(`${directory}/${path}`, `${value}\n`);
  try {
    return sandboxObstacle(directory);
  } finally {
    rmSync(directory, { recursive: true });
  }
}

describe("the sandbox of an ordinary user's builds", () => {
  it.each([
    ["user/max_user_namespaces", "0", "user.max_user_namespaces is 0", "sysctl user.max_user_namespaces=10000`"],
    [
      "kernel/unprivileged_userns_clone",
      "0",
      "kernel.unprivileged_userns_clone is 0",
      "sysctl kernel.unprivileged_userns_clone=1`",
    ],
    [
      "kernel/apparmor_restrict_unprivileged_userns",
      "1",
      "kernel.apparmor_restrict_unprivileged_userns is 1",
      "sysctl kernel.apparmor_restrict_unprivileged_userns=0`",
    ],
  ])("can't be had where %s is %s, which is said with the remedy", (path, value, found, remedy) => {
    const sentence = obstacle({ [path]: value });
    expect(sentence).toContain(found);
    expect(sentence).toContain(remedy);
    // Root makes its builders' containers of them as well, and is kept from it by the limit alone.
    const ofRoot = obstacle({ [path]: value }, 0);
    if (path === "user/max_user_namespaces") expect(ofRoot).toContain("allows nobody here");
    else expect(ofRoot).toBeUndefined();
  });

  it("can be had where the kernel has none of the settings, or allows it in all", () => {
    expect(obstacle({})).toBeUndefined();
    const allowed = { "user/max_user_namespaces": "15000", "kernel/unprivileged_userns_clone": "1" };
    expect(obstacle({ ...allowed, "kernel/apparmor_restrict_unprivileged_userns": "0" })).toBeUndefined();
  });
});
