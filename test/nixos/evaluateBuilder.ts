/** nixos/builder.nix and nixos/hcloud.nix as the real Nix evaluates them, over stubs of NixOS. */
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { resolve } from "node:path";
import * as z from "zod";
import { moduleFiles, type BuilderParameters } from "../../src/bootstrap/builderFiles.ts";

const parameters: BuilderParameters = {
  provider: "hcloud",
  maxJobs: null,
  timeout: 172_800,
  maxSilentTime: 0,
  systemFeatures: ["big-parallel", "kvm"],
  keepDays: 14,
  trustedClients: false,
  automaticUpgrades: false,
};

const names = z.array(z.string());
const service = z.looseObject({
  script: z.string(),
  before: names,
  after: names,
  restartTriggers: z.array(z.unknown()),
});
const evaluated = z.object({
  nix: z.object({ settings: z.record(z.string(), z.unknown()), extraOptions: z.string() }),
  services: z.object({
    logrotate: z.object({ checkConfig: z.boolean() }),
    openssh: z.looseObject({
      settings: z.record(z.string(), z.union([z.string(), z.number(), z.boolean(), z.array(z.string()), z.null()])),
      extraConfig: z.string(),
      hostKeys: z.array(z.object({ path: z.string(), type: z.string() })),
    }),
  }),
  systemd: z.object({ services: z.record(z.string(), service) }),
  users: z.object({ users: z.record(z.string(), z.unknown()) }),
  system: z.object({ autoUpgrade: z.looseObject({ enable: z.boolean() }) }),
  networking: z.object({ firewall: z.looseObject({ extraCommands: z.string() }) }),
  boot: z.unknown(),
  zramSwap: z.unknown(),
});

/** What NixOS makes of it, as far as tests look at it. */
export type EvaluatedBuilder = z.infer<typeof evaluated>;

/** Packages are their names, scripts their text. */
const packages = (opensshVersion: string, arm: boolean) => `{
  writeShellScript = name: text: builtins.toFile name "#!/bin/sh\\n\${text}";
  openssh.version = "${opensshVersion}";
  stdenv.hostPlatform.isAarch64 = ${arm};
  ${["coreutils", "curl", "gnugrep", "iproute2", "jq", "nix", "sqlite"].map((name) => `${name} = "${name}";`).join(" ")}
}`;

/** What the machine is that the modules are evaluated for. */
interface Ground {
  readonly opensshVersion?: string;
  readonly arm?: boolean;
  /** Further modules, as Nix expressions. */
  readonly others?: readonly string[];
}

/** Has the real Nix evaluate nixos/builder.nix with these parameters, over stubs of NixOS. */
export function evaluateBuilder(
  directory: string,
  changed: Partial<BuilderParameters> = {},
  ground: Ground = {},
): EvaluatedBuilder {
  const files = moduleFiles({ ...parameters, ...changed }, moduleText("builder.nix"));
  return evaluated.parse(evaluate(directory, "builder.nix", files, ground));
}

/** A disk as the conversion describes it in disk.json. */
export interface Disk {
  readonly disk: string;
  readonly root: string;
  readonly esp: string | null;
  readonly bios: boolean;
}

const unit = z.looseObject({ script: z.string(), unitConfig: z.record(z.string(), z.unknown()) });
const evaluatedBoot = z.object({
  fileSystems: z.record(z.string(), z.object({ device: z.string(), fsType: z.string() }).loose()),
  boot: z.object({
    growPartition: z.boolean(),
    kernelParams: z.array(z.string()),
    loader: z.object({ grub: z.record(z.string(), z.unknown()), efi: z.object({ efiSysMountPoint: z.string() }) }),
    initrd: z.object({
      kernelModules: z.array(z.string()),
      availableKernelModules: z.array(z.string()),
      systemd: z.object({ enable: z.boolean(), services: z.record(z.string(), unit) }),
    }),
  }),
  systemd: z.object({ services: z.record(z.string(), unit) }),
  system: z.object({ defaultChannel: z.string() }),
});

/** Has the real Nix evaluate nixos/hcloud.nix for a disk, over stubs of NixOS. */
export function evaluateHcloud(directory: string, disk: Disk, arm = false): z.infer<typeof evaluatedBoot> {
  const files = { "hcloud.nix": moduleText("hcloud.nix"), "disk.json": JSON.stringify(disk) };
  return evaluatedBoot.parse(evaluate(directory, "hcloud.nix", files, { arm }));
}

const moduleText = (name: string) => readFileSync(resolve(import.meta.dirname, "../../nixos", name), "utf8");

function evaluate(
  directory: string,
  module: string,
  files: Readonly<Record<string, string>>,
  { opensshVersion = "9.2p1", arm = false, others = [] }: Ground,
): unknown {
  const own = mkdtempSync(`${directory}/`);
  for (const [name, text] of Object.entries(files)) writeFileSync(`${own}/${name}`, text);
  writeFileSync(`${own}/nix.conf`, "build-users-group =\n");
  const stubs = resolve(import.meta.dirname, "../nix/stubs");
  const modules = [`${stubs}/nixos.nix`, `${own}/${module}`, ...others.map((other) => `(${other})`)];
  const expression = `(import ${stubs}/lib.nix).evalModules { pkgs = ${packages(opensshVersion, arm)}; modules = [ ${modules.join(" ")} ]; }`;
  const env = {
    ...process.env,
    NIX_STATE_DIR: `${own}/state`,
    NIX_REMOTE: `local?root=${own}/root`,
    NIX_CONF_DIR: own,
  };
  const json = execFileSync(
    "nix-instantiate",
    ["--eval", "--strict", "--json", "--read-write-mode", "--expr", expression],
    {
      encoding: "utf8",
      env,
      timeout: 20_000,
    },
  );
  // Store paths are below a root of the test's own.
  return JSON.parse(json.replaceAll("/nix/store/", `${own}/root/nix/store/`));
}

/** sshd's configuration as NixOS renders it (without its ports and host keys), and the script that it forces on clients. */
export function sshdConfig(builder: EvaluatedBuilder): { readonly config: string; readonly forcedCommand: string } {
  const { settings, extraConfig } = builder.services.openssh;
  const value = (given: NonNullable<(typeof settings)[string]>): string =>
    Array.isArray(given) ? given.join(" ") : typeof given === "boolean" ? (given ? "yes" : "no") : String(given);
  const lines = Object.entries(settings).flatMap(([name, given]) =>
    given === null ? [] : [`${name} ${value(given)}`],
  );
  const path = /ForceCommand (\S+)/.exec(extraConfig)?.[1] ?? "";
  return { config: [...lines, extraConfig].join("\n"), forcedCommand: readFileSync(path, "utf8") };
}
