/** Everything as an ordinary user: `npm start` and `destroy` in a checkout of that user's, who has no rights beside it. */
import { execFileSync } from "node:child_process";
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { execa } from "execa";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { emulation } from "../../src/local/emulation.ts";
import { cacheDirectory, checkout } from "../../tools/launch.mjs";
import { setUp } from "../../tools/setup/index.ts";
import { cleanEnvironment, copyOfCheckout } from "../support/checkoutCopy.ts";
import { processesNaming } from "../support/engine.ts";
import { system } from "../support/localFleet.ts";

/** In no password file: the test has one of its own, which only its processes see. */
const user = { name: "fleet-ordinary", id: 47_321 } as const;
const asUser = ["setpriv", `--reuid=${user.id}`, `--regid=${user.id}`, "--clear-groups"];

const obstacle = userObstacle();
if (obstacle !== undefined) console.log(`skipped: a fleet of an ordinary user. ${obstacle}`);

describe.skipIf(obstacle !== undefined)("an ordinary user", { timeout: 5 * 60_000 }, () => {
  const folder = mkdtempSync(join(tmpdir(), "fleet-user-"));
  const home = join(folder, "home");
  const copy = join(home, "checkout");
  let env: NodeJS.ProcessEnv;

  beforeAll(async () => {
    const { env: toolchain } = await setUp();
    chmodSync(folder, 0o755);
    mkdirSync(join(home, ".cache", "nix-builder-fleet"), { recursive: true });
    copyOfCheckout(copy);
    // Mounts of the real ones take the place of both: whoever runs the tests may keep them where nobody else may look.
    rmSync(join(copy, "node_modules"));
    mkdirSync(join(copy, "node_modules"));
    execFileSync("chown", ["-R", `${user.id}:${user.id}`, home]);
    for (const [file, line] of [
      ["passwd", `${user.name}:x:${user.id}:${user.id}::${home}:/bin/sh`],
      ["group", `${user.name}:x:${user.id}:`],
    ] as const) {
      writeFileSync(join(folder, file), `${readFileSync(`/etc/${file}`, "utf8").trimEnd()}\n${line}\n`);
    }
    const { PATH } = cleanEnvironment(toolchain);
    const cached = join(home, ".cache", "nix-builder-fleet");
    env = { HOME: home, USER: user.name, PATH: (PATH ?? "").replaceAll(cacheDirectory(), cached) };
  });
  afterAll(async () => {
    if (existsSync(stackFolder())) await destroy();
    rmSync(folder, { recursive: true, force: true });
  });

  const stackFolder = () => join(copy, ".fleet", "stacks", "dev");

  const destroy = () => run(["pulumi", "destroy", "--stack", "dev", "--yes", "--skip-preview"]);

  /** Runs a task of the checkout as the user, who sees the packages, the set-up's cache, and a password file with an entry of theirs. */
  async function run(
    words: readonly string[],
    before: readonly string[] = [],
  ): Promise<{ exitCode: number | undefined; output: string }> {
    const mounts = [
      [join(checkout, "node_modules"), join(copy, "node_modules")],
      [cacheDirectory(), join(home, ".cache", "nix-builder-fleet")],
      [join(folder, "passwd"), "/etc/passwd"],
      [join(folder, "group"), "/etc/group"],
    ].map((places) => `mount --bind ${places.join(" ")}`);
    const script = [...mounts, `cd ${copy}`, `exec ${asUser.join(" ")} "$@"`].join(" && ");
    const node = process.execPath.replace(cacheDirectory(), join(home, ".cache", "nix-builder-fleet"));
    const { exitCode, all } = await execa(
      "unshare",
      ["--mount", "--propagation", "private", "sh", "-c", script, "sh", ...before, node, "tools/run.mjs", ...words],
      { env, extendEnv: false, all: true, reject: false, stdin: "ignore", timeout: 200_000 },
    );
    return { exitCode, output: all };
  }

  it("is told before anything is made where the kernel allows no sandbox", async () => {
    // The limit counts for the namespace in which it is set, and what is below.
    const forbid = 'echo 0 >/proc/sys/user/max_user_namespaces && exec "$@"';
    const ids = [`--map-user=${user.id}`, `--map-group=${user.id}`];
    const { exitCode, output } = await run(
      ["start"],
      ["unshare", "--user", ...ids, "--keep-caps", "sh", "-c", forbid, "sh"],
    );
    expect(exitCode).toBe(1);
    expect(output).toContain(
      "builds need a sandbox, which the kernel allows nobody but root here (user.max_user_namespaces is 0)",
    );
    expect(output).not.toMatch(/^\s+at .*\.ts:\d+/m);
    expect(existsSync(stackFolder())).toBe(false);
  });

  it("gets a verified builder of the machine's own system, and is told in one line why the other one is left out", async () => {
    // Whatever the umask, nobody else is to read what is secret.
    const { exitCode, output } = await run(["start"], ["sh", "-c", 'umask 000; exec "$@"', "sh"]);
    expect(exitCode, output).toBe(0);
    const modes = [".", "passphrase", "state", "state/.pulumi/stacks/nix-builder-fleet/dev.json", "stacks/dev"].map(
      (name) => (statSync(join(copy, ".fleet", name)).mode & 0o777).toString(8),
    );
    expect(modes).toEqual(["700", "600", "700", "600", "700"]);
    const [own, foreign] = system === "x86_64-linux" ? ["x86", "arm"] : ["arm", "x86"];
    expect(output).toMatch(new RegExp(`^${own} +${system} +127\\.\\S+ +in \\d+\\.\\d s$`, "m"));
    const emulated = emulation("none", system === "x86_64-linux" ? "aarch64-linux" : "x86_64-linux") === "machine";
    const told = output
      .split("\n")
      .filter((line) => line.includes("is left out: only root may register its emulation"));
    expect(told).toHaveLength(emulated ? 0 : 1);
    if (!emulated) expect(told[0]).toContain(`builder '${foreign}'`);
  });

  it("leaves nothing after destroy", async () => {
    expect(existsSync(join(stackFolder(), "client", "id_ed25519"))).toBe(true);
    expect(processesNaming(stackFolder())).not.toEqual([]);
    const { exitCode, output } = await destroy();
    expect(exitCode, output).toBe(0);
    expect(existsSync(dirname(stackFolder()))).toBe(false);
    expect(processesNaming(folder)).toEqual([]);
  });
});

/** Why this can't be tried here; `undefined`: it can. */
function userObstacle(): string | undefined {
  if (process.getuid?.() !== 0) return "Only root can become another user.";
  try {
    execFileSync(
      "unshare",
      ["--mount", "--propagation", "private", ...asUser, "unshare", "--user", "--mount", "true"],
      {
        stdio: "pipe",
        timeout: 10_000,
      },
    );
    return undefined;
  } catch {
    return "This machine has no mount namespaces, or no user namespaces for ordinary users.";
  }
}
