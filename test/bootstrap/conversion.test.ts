/** The very script that converts Debian, run in a system of its own, with real hashes, builds and profiles of a real Nix. */
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import {
  conversionLog,
  conversionScript,
  diskFile,
  moveMark,
  stateFile,
  type Conversion,
} from "../../src/bootstrap/conversion.ts";
import { findLocalTools } from "../../src/local/tools.ts";
import { systemOfThisMachine } from "../../src/nix/system.ts";
import { pinnedNix, pinnedNixpkgs } from "../../src/nixosRelease.ts";
import { ConversionStandIn, type StandInOptions } from "../support/hcloud/conversionStandIn.ts";
import { diskPrograms, hostObstacle, sandboxShell } from "../support/hcloud/host.ts";
import { runInOwnRoot, type Ended } from "../support/ownRoot.ts";

const obstacle = hostObstacle();
if (obstacle !== undefined) console.log(`skipped: the conversion in a system of its own. ${obstacle}`);

const system = systemOfThisMachine() ?? "x86_64-linux";

describe("the conversion", () => {
  it("is a POSIX shell script without syntax errors, for both architectures", () => {
    for (const one of ["x86_64-linux", "aarch64-linux"] as const) {
      const script = conversionScript({ system: one, nix: pinnedNix[one], nixpkgs: pinnedNixpkgs["26.05"] });
      const { status, stderr } = spawnSync("sh", ["-n"], { input: script, encoding: "utf8" });
      expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
      expect(script).toContain(pinnedNix[one].hash);
    }
  });
});

describe.skipIf(obstacle !== undefined)("the conversion in a system of its own", { timeout: 120_000 }, () => {
  const standIns: ConversionStandIn[] = [];
  const directory = mkdtempSync(join(tmpdir(), "conversion-"));
  afterAll(() => {
    for (const one of standIns) one.remove();
    rmSync(directory, { recursive: true });
  });
  const standIn = (options: StandInOptions = {}): ConversionStandIn => {
    const one = new ConversionStandIn({ switchScript: "echo made bootable >/etc/switched\n", ...options });
    standIns.push(one);
    return one;
  };
  const usual = obstacle === undefined ? standIn() : undefined;
  const conversionOf = ({ configuration }: ConversionStandIn): Conversion => {
    return { system, nix: configuration.nixArchives[system], nixpkgs: configuration.nixpkgs };
  };

  const convert = (changed: Partial<Conversion> = {}, programs: Readonly<Record<string, string>> = {}): Ended => {
    if (usual === undefined) throw new Error("no stand-in");
    return runInOwnRoot(
      directory,
      {
        files: {
          "/etc/nixos/nix-builder/builder.nix": "{ }\n",
          "/etc/nixos/nix-builder/hcloud.nix": "{ }\n",
        },
        programs: {
          ...diskPrograms,
          [sandboxShell(system)]: readFileSync(findLocalTools(system).shell),
          "/usr/local/sbin/reboot": "#!/bin/sh\necho rebooted >/etc/nixos/rebooted\n",
          "/usr/local/sbin/sleep": "#!/bin/sh\n",
          ...programs,
        },
      },
      conversionScript({ ...conversionOf(usual), ...changed }),
      ["/etc/nixos", "/var/log", "/nix/var", "/etc/NIXOS", "/etc/switched"],
    );
  };

  it("fetches, builds, makes bootable and reboots, and says each step with its time", () => {
    const ended = convert();
    const log = ended.file(conversionLog) ?? "";
    expect(ended.file(stateFile), log).toBe("rebooting into NixOS\n");
    const steps = [...log.matchAll(/^\[\d+ s\] (.*)$/gm)].map(([, step]) => step);
    expect(steps.filter((step) => !step?.endsWith("%"))).toEqual([
      "looking at the disk",
      "fetching Nix",
      "fetching nixpkgs",
      "evaluating NixOS 26.05",
      "fetching and building NixOS 26.05",
      "installing the boot loader",
      "rebooting into NixOS",
    ]);
    expect(steps.filter((step) => step?.endsWith("%")).length).toBeGreaterThan(5);
    expect(ended.file("/etc/nixos/rebooted")).toBe("rebooted\n");
    expect(ended.file("/etc/switched")).toBe("made bootable\n");
    expect(ended.file(moveMark)).toBe("");
    expect(JSON.parse(ended.file(diskFile) ?? "")).toEqual({
      disk: "/dev/sda",
      root: "8c5d2f6e-0000-4000-8000-000000000001",
      esp: "ABCD-1234",
      bios: system === "x86_64-linux",
    });
  });

  /** Nothing is in the way of Debian, which goes on running. */
  const stays = (ended: Ended, reason: RegExp): void => {
    const log = ended.file(conversionLog);
    expect(ended.file(stateFile), log).toMatch(reason);
    expect(ended.status, log).toBe(1);
    for (const path of [moveMark, "/etc/NIXOS", "/etc/nixos/rebooted"])
      expect([path, ended.file(path)]).toEqual([path, undefined]);
  };
  const lsblk = (text: string) => ({ "/usr/local/sbin/lsblk": `#!/bin/sh\n${text}\n` });

  it.each([
    [
      "another architecture",
      { "/usr/local/sbin/uname": "#!/bin/sh\necho riscv64\n" },
      /^failed: this server is riscv64, and not /,
    ],
    [
      "another file system",
      { "/usr/local/sbin/findmnt": "#!/bin/sh\necho btrfs\n" },
      /^failed: the root file system is btrfs, and not ext4/,
    ],
    ["no partitions", lsblk(":"), /^failed: \/dev\/sda1, the root file system, is no partition/],
    [
      "nowhere to boot from",
      lsblk('case "$2" in PKNAME) echo /dev/sda ;; PTTYPE) echo gpt ;; esac'),
      /^failed: \/dev\/sda has neither an EFI system partition nor a place for a BIOS boot loader/,
    ],
  ])("leaves a server with %s as it is", (_, programs, reason) => {
    stays(convert({}, programs), reason);
  });

  it("boots by BIOS alone where there is no EFI system partition", ({ skip }) => {
    skip(system !== "x86_64-linux", "Arm has no BIOS");
    const ended = convert(
      {},
      lsblk('case "$2" in PKNAME) echo /dev/sda ;; PTTYPE) echo dos ;; UUID) echo 1-2 ;; esac'),
    );
    expect(JSON.parse(ended.file(diskFile) ?? "")).toEqual({ disk: "/dev/sda", root: "1-2", esp: null, bios: true });
    expect(ended.file(stateFile)).toBe("rebooting into NixOS\n");
  });

  it("runs nothing of a Nix with another hash", () => {
    if (usual === undefined) throw new Error("no stand-in");
    const ended = convert({ nix: { ...conversionOf(usual).nix, hash: "0".repeat(64) } });
    stays(ended, /^failed: \S*nix\.tar\.xz has another SHA-256 than 0{64}; nothing of it was run/);
    expect(ended.file("/nix/var")).toBeUndefined();
  });

  it("evaluates nothing of a nixpkgs with another hash", () => {
    if (usual === undefined) throw new Error("no stand-in");
    const ended = convert({ nixpkgs: { ...conversionOf(usual).nixpkgs, hash: "0".repeat(52) } });
    stays(ended, /^failed: \S*nixpkgs\.tar\.xz could not be fetched, or is not what its hash says/);
    expect(ended.file(conversionLog)).toMatch(/hash mismatch/);
    expect(ended.file("/etc/nixos/configuration.nix")).toBeUndefined();
  });

  it("says what could not be fetched", () => {
    const nowhere = { url: "file:///nowhere/nix.tar.xz", hash: "0".repeat(64) };
    stays(convert({ nix: nowhere }), /^failed: file:\/\/\/nowhere\/nix\.tar\.xz could not be fetched/);
    stays(
      convert({ nixpkgs: { ...nowhere, hash: "0".repeat(52) } }),
      /^failed: file:\/\/\/nowhere\/nix\.tar\.xz could not be fetched, or/,
    );
  });

  it("says that an archive is none of Nix", () => {
    if (usual === undefined) throw new Error("no stand-in");
    const { nixpkgs } = conversionOf(usual);
    const hash = createHash("sha256")
      .update(readFileSync(nixpkgs.url.slice("file://".length)))
      .digest("hex");
    stays(convert({ nix: { url: nixpkgs.url, hash } }), /^failed: \S*nixpkgs\.tar\.xz is no release archive of Nix/);
  });

  it.each([
    ["evaluated", { nixosNix: `throw "no"` }, /^failed: NixOS 26\.05 can't be evaluated/],
    [
      "built",
      { nixosNix: `{ configuration }: { system = (import ../. { }).run "broken" "exit 3"; }` },
      /^failed: NixOS 26\.05 can't be built/,
    ],
    ["made bootable", { switchScript: "exit 1\n" }, /^failed: the boot loader can't be installed/],
  ])("says that NixOS can't be %s", (_, options, reason) => {
    stays(convert(conversionOf(standIn(options))), reason);
  });
});
