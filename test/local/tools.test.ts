/** Which Nix local builders take, by what a `nix-daemon` says of itself. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { checkNixVersion, MissingTool } from "../../src/local/tools.ts";

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
});
