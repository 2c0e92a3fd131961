/** What Nix on this machine says of itself: its version, and its settings as it reads them. */
import { execa } from "execa";

/** For instance `2.8.0`; empty where there is no Nix. */
export async function nixVersion(): Promise<string> {
  const { stdout } = await execa("nix", ["--version"], { reject: false, stdin: "ignore" });
  return /\d+\.\d+\S*/.exec(stdout)?.[0] ?? "";
}

/**
 * All settings by name, defaults included.
 *
 * @param env Variables that lead Nix to another configuration.
 * @returns `undefined` where Nix is missing or can't read its configuration.
 */
export async function readSettings(env: NodeJS.ProcessEnv = {}): Promise<Map<string, string> | undefined> {
  const words = ["show-config", "--extra-experimental-features", "nix-command"];
  const { failed, stdout } = await execa("nix", words, { env, reject: false, stdin: "ignore" });
  if (failed) return undefined;
  const settings = new Map<string, string>();
  let last = "";
  for (const line of stdout.split("\n")) {
    const [, name, value] = /^([a-z0-9-]+) = ?(.*)$/.exec(line) ?? [];
    // `builders` may hold several lines.
    if (name === undefined || value === undefined) settings.set(last, `${settings.get(last) ?? ""}\n${line}`);
    else settings.set((last = name), value.trim());
  }
  return settings;
}
