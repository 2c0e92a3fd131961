/** What a client's messages can make a builder's daemon do, at each level, on real builders with the installed Nix and a current one. */
import { chmodSync, existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { execa } from "execa";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { stops } from "../support/attack.ts";
import { DaemonConnection } from "../../src/smoke/daemonConnection.ts";
import { tryPrivileges } from "../../src/smoke/privileges.ts";
import type { Trust } from "../../src/nix/trust.ts";
import { findCurrentNix } from "../support/currentNix.ts";
import { LevelBuilder, levelClient, system } from "../support/levelBuilder.ts";

const found = process.getuid?.() === 0 ? findCurrentNix() : { missing: "only root may have users for each level" };

/** Open to a trusted user. The builders' stores have a root of their own, for which Nix keeps the sandbox on whatever anybody says. */
const openAtFull = [
  "refuses the client's post-build-hook",
  "refuses the client's pre-build-hook",
  "refuses the client's build-hook",
  "refuses the client's diff-hook",
  "refuses the client's sandbox-paths",
  "refuses the client's builders",
  "refuses the client's substituters",
  "refuses a store path that nobody signed",
  "refuses to take store paths without signatures, whatever the client says",
];

describe.each(["the installed Nix", "a current Nix"])("a builder with %s", (which) => {
  stops({
    attack: "a client that isn't trusted sets the daemon up",
    tried:
      "messages by hand: post-build-hook, build-hook, sandbox-paths, builders, substituters, unsigned paths and more",
    stopped: "at none and signed the daemon takes none of it; at full npx fleet verify says what is open",
  });

  let builder: LevelBuilder;
  beforeAll(async () => {
    if ("missing" in found) return;
    builder = await LevelBuilder.start(which === "a current Nix" ? { bin: found.bin } : {});
  });
  afterAll(async () => {
    if ("bin" in found) await builder.stop();
  });
  beforeEach((context) => {
    if ("missing" in found) context.skip(found.missing);
  });

  const attempt = (key: Trust, trust: Trust | undefined, ownMachine = true) =>
    tryPrivileges(builder.machine(key), { clientDirectory: builder.writeClient(key), ownMachine, trust, patience: 20 });

  it.each(["none", "signed"] as const)("refuses all of it at %s", async (trust) => {
    const cases = await attempt(trust, trust);
    expect(cases.length).toBeGreaterThan(openAtFull.length);
    expect(cases.filter(({ outcome }) => outcome !== "passed")).toEqual([]);
  });

  it("says at full what is open, as what it is", async () => {
    const cases = await attempt("full", "full");
    const open = cases.filter(({ outcome }) => outcome === "warned");
    expect(open.map(({ name }) => name)).toEqual(openAtFull);
    for (const { detail } of open)
      expect(detail).toMatch(/^open, as configured .*a client of this fleet is root on its builders/);
    expect(cases.filter(({ outcome }) => outcome === "failed" || outcome === "skipped")).toEqual([]);
  });

  it("fails where a client is trusted that wasn't to be, and warns the owner of a host of their own", async () => {
    const failed = (await attempt("full", "none")).filter(({ outcome }) => outcome === "failed");
    expect(failed.map(({ name }) => name)).toEqual(openAtFull);
    expect(failed[0]?.detail).toMatch(/take the user .* out of `trusted-users`/);
    const warned = (await attempt("full", undefined, false)).filter(({ outcome }) => outcome === "warned");
    expect(warned.map(({ name }) => name)).toEqual(openAtFull);
  });

  it.each([
    ["a connection is lost", "exit 1", ":"],
    ["a build fails for a reason of its own", "chmod 000 busybox", "chmod 755 busybox"],
  ])("takes it for no refusal where %s, and tries once more", async (_, fault, otherwise) => {
    const forced = `${builder.directory}/force-full`;
    const honest = readFileSync(forced, "utf8");
    // Of three logins in a row the last meets it.
    const count = `cd ${builder.directory}; n=$(cat logins 2>/dev/null || echo 0); echo $((n + 1)) >logins
[ $((n % 3)) = 2 ] && ${fault} || ${otherwise}`;
    rmSync(`${builder.directory}/logins`, { force: true });
    writeFileSync(forced, honest.replace("\n", `\n${count}\n`));
    try {
      const failed = (await attempt("full", "none")).filter(({ outcome }) => outcome === "failed");
      expect(failed.map(({ name }) => name)).toEqual(openAtFull);
      expect(failed.filter(({ detail }) => !/^open: /.test(detail ?? ""))).toEqual([]);
    } finally {
      writeFileSync(forced, honest);
      chmodSync(`${builder.directory}/busybox`, 0o755);
    }
  });

  /** The attack itself: a program of the client's that leaves a mark. */
  const runHook = async (trust: Trust): Promise<string | undefined> => {
    const clientDirectory = builder.writeClient(trust);
    const mark = `${builder.directory}/home/mark-${trust}`;
    const hook = `${builder.directory}/hook-${trust}`;
    writeFileSync(hook, `#!/bin/sh\nid -u >${mark}\n`, { mode: 0o755 });
    const env = levelClient(clientDirectory);
    const expression = `derivation { name = "hooked-${trust}-${Date.now()}"; system = "${system}"; builder = "/bin/sh"; args = [ "-c" "echo > $out" ]; }`;
    const { stdout: derivation } = await execa("nix-instantiate", ["-E", expression], { env });
    await execa("nix", ["copy", "--derivation", "--to", "ssh-ng://root@levels", derivation], { env });
    const connection = await DaemonConnection.open({ alias: "levels", clientDirectory, patience: 20 });
    try {
      await connection.setOptions({ "post-build-hook": hook });
      await connection.addToStoreNar(`/nix/store/${"0".repeat(32)}-x`, Buffer.alloc(64), "0".repeat(64), []);
      expect((await connection.buildPaths([`${derivation}!out`])).error).toBeUndefined();
    } finally {
      connection.close();
    }
    return existsSync(mark) ? readFileSync(mark, "utf8").trim() : undefined;
  };

  it("runs a client's post-build-hook as the daemon's user at full, and at no other level", async () => {
    expect(await runHook("full")).toBe(which === "a current Nix" ? "64100" : "0");
    expect(await runHook("signed")).toBeUndefined();
    expect(await runHook("none")).toBeUndefined();
  });

  it("lets every client have unused store paths deleted, as Nix has no way to forbid it", async () => {
    const clientDirectory = builder.writeClient("none");
    const connection = await DaemonConnection.open({ alias: "levels", clientDirectory, patience: 20 });
    try {
      expect((await connection.collectGarbage([], false)).error).toBeUndefined();
    } finally {
      connection.close();
    }
  });
});
