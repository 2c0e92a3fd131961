/** nixos/builder.nix as the real Nix evaluates it, over a stub of nixpkgs. */
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
  const own = mkdtempSync(`${directory}/`);
  const builderNix = readFileSync(resolve(import.meta.dirname, "../../nixos/builder.nix"), "utf8");
  for (const [name, text] of Object.entries(moduleFiles({ ...parameters, ...changed }, builderNix))) {
    writeFileSync(`${own}/${name}`, text);
  }
  writeFileSync(`${own}/nix.conf`, "build-users-group =\n");
  copyFileSync(`${import.meta.dirname}/stub.nix`, `${own}/stub.nix`);
  const expression = `import ${own}/stub.nix { directory = ${own}; opensshVersion = "${opensshVersion}"; }`;
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
  return evaluated.parse(JSON.parse(json.replaceAll("/nix/store/", `${own}/root/nix/store/`)));
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
