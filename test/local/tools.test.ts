/** Which Nix local builders take, by what a `nix-daemon` says of itself. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir, userInfo } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, describe, expect, it, vi } from "vitest";
import { checkNixVersion, MissingTool, setupFolder } from "../../src/local/tools.ts";
import { cacheDirectory } from "../../tools/launch.mjs";

describe("the Nix of local builders", () => {
  const directory = mkdtempSync(join(tmpdir(), "tools-test-"));
  const daemon = join(directory, "nix-daemon");
  afterAll(() => {
    rmSync(directory, { recursive: true, force: true });
  });
  const check = (says: string) => () => {
    writeFileSync(daemon, `#!/bin/sh\necho '${says}'\n`, { mode: 0o755 });
    checkNixVersion(daemon);
  };

  it.each(["nix-daemon (Nix) 2.8.0", "nix-daemon (Nix) 2.34.0pre20260101_abc", "nix-daemon (Nix) 3.0"])(
    "may be %s",
    (says) => {
      expect(check(says)).not.toThrow();
    },
  );

  it.each(["nix-daemon (Nix) 2.7.9", "nix-daemon (Nix) 1.11.16", "something else"])("may not be %s", (says) => {
    expect(check(says)).toThrow(MissingTool);
    expect(check(says)).toThrow(
      `${daemon} is ${says}, which is too old: 2.8 is the oldest that was tried; install a newer Nix`,
    );
  });

  it.each([
    [
      "echo 'error while loading shared libraries: libnixstore.so' >&2; exit 127",
      /loading shared libraries: libnixstore\.so; mend/,
    ],
    ["exit 3", /it ends with exit code 3;/],
    ["kill -SEGV $$", /it ends with SIGSEGV;/],
  ])("may not be one that is broken: %s", (script, why) => {
    writeFileSync(daemon, `#!/bin/sh\n${script}\n`, { mode: 0o755 });
    expect(() => {
      checkNixVersion(daemon);
    }).toThrow(MissingTool);
    expect(() => {
      checkNixVersion(daemon);
    }).toThrow(why);
  });

  it("may not be one that can't be started", () => {
    expect(() => {
      checkNixVersion(join(directory, "nowhere"));
    }).toThrow(MissingTool);
  });
});

describe("the program looks for its tools where set-up puts them", () => {
  afterEach(() => {
    vi.unstubAllEnvs();
  });

  it.each<[Record<string, string | undefined>, string]>([
    [{ XDG_CACHE_HOME: "/cache", HOME: "/home/me" }, "/cache/nix-builder-fleet/bin"],
    [{ XDG_CACHE_HOME: "", HOME: "/home/me" }, "/home/me/.cache/nix-builder-fleet/bin"],
    [{ XDG_CACHE_HOME: undefined, HOME: "/home/me" }, "/home/me/.cache/nix-builder-fleet/bin"],
    [{ XDG_CACHE_HOME: undefined, HOME: undefined }, `${userInfo().homedir}/.cache/nix-builder-fleet/bin`],
  ])("with %o in %s", (variables, folder) => {
    for (const [name, value] of Object.entries(variables)) vi.stubEnv(name, value);
    expect(setupFolder()).toBe(folder);
    expect(join(cacheDirectory(), "bin")).toBe(folder);
  });
});
