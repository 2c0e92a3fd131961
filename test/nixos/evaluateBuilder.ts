/** nixos/builder.nix and nixos/hcloud.nix as the real Nix evaluates them, over a stub of nixpkgs. */
import { execFileSync } from "node:child_process";
import { copyFileSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
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

const service = z.looseObject({ script: z.string().optional() });
const evaluated = z.object({
  nix: z.object({ settings: z.record(z.string(), z.unknown()), extraOptions: z.string() }),
  services: z.object({
    openssh: z.looseObject({
      authorizedKeysFiles: z.array(z.string()),
      settings: z.record(z.string(), z.union([z.string(), z.number(), z.boolean(), z.array(z.string())])),
      extraConfig: z.string(),
      hostKeys: z.array(z.object({ path: z.string(), type: z.string() })),
    }),
  }),
  systemd: z.object({ services: z.record(z.string(), service) }),
  users: z.object({ users: z.record(z.string(), z.unknown()) }),
  system: z.object({ autoUpgrade: z.object({ enable: z.boolean() }) }),
  networking: z.object({ firewall: z.object({ extraCommands: z.string() }) }),
});

/** What the module sets, as far as tests look at it. */
export type EvaluatedBuilder = z.infer<typeof evaluated>;

/** Has the real Nix evaluate nixos/builder.nix with these parameters, over a stub of nixpkgs. */
export function evaluateBuilder(
  directory: string,
  changed: Partial<BuilderParameters> = {},
  opensshVersion = "9.2p1",
): EvaluatedBuilder {
  const builderNix = readFileSync(resolve(import.meta.dirname, "../../nixos/builder.nix"), "utf8");
  const files = moduleFiles({ ...parameters, ...changed }, builderNix);
  return evaluated.parse(evaluate(directory, files, `opensshVersion = "${opensshVersion}";`));
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

/** Has the real Nix evaluate nixos/hcloud.nix for a disk, over a stub of nixpkgs. */
export function evaluateHcloud(directory: string, disk: Disk, arm = false): z.infer<typeof evaluatedBoot> {
  const hcloudNix = readFileSync(resolve(import.meta.dirname, "../../nixos/hcloud.nix"), "utf8");
  const files = { "hcloud.nix": hcloudNix, "disk.json": JSON.stringify(disk) };
  return evaluatedBoot.parse(evaluate(directory, files, `file = "hcloud.nix"; arm = ${arm};`));
}

function evaluate(directory: string, files: Readonly<Record<string, string>>, settings: string): unknown {
  const own = mkdtempSync(`${directory}/`);
  for (const [name, text] of Object.entries(files)) writeFileSync(`${own}/${name}`, text);
  writeFileSync(`${own}/nix.conf`, "build-users-group =\n");
  copyFileSync(`${import.meta.dirname}/stub.nix`, `${own}/stub.nix`);
  const expression = `import ${own}/stub.nix { directory = ${own}; ${settings} }`;
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

/** sshd's configuration as NixOS would render it, and the script that it forces on clients. */
export function sshdConfig(builder: EvaluatedBuilder): { readonly config: string; readonly forcedCommand: string } {
  const { settings, extraConfig, authorizedKeysFiles } = builder.services.openssh;
  const value = (given: (typeof settings)[string]): string =>
    Array.isArray(given) ? given.join(" ") : typeof given === "boolean" ? (given ? "yes" : "no") : String(given);
  const lines = Object.entries(settings).map(([name, given]) => `${name} ${value(given)}`);
  const path = /ForceCommand (\S+)/.exec(extraConfig)?.[1] ?? "";
  return {
    config: [`AuthorizedKeysFile ${authorizedKeysFiles.join(" ")}`, ...lines, extraConfig].join("\n"),
    forcedCommand: readFileSync(path, "utf8"),
  };
}
