/** `nix.conf`: what makes Nix on a client use the fleet. */
import { checkPath } from "./buildMachine.ts";
import { InvalidValue } from "./invalidValue.ts";

export interface NixConfOptions {
  /** Absolute path of the directory that holds `machines`. */
  readonly directory: string;
  /** Further settings, after those of the fleet; one of the same name replaces it. */
  readonly settings?: NixSettings;
}

/** Names and values of Nix settings. */
export type NixSettings = Readonly<Record<string, string | number | boolean>>;

/**
 * The client's `nix.conf`, settings in the order given.
 *
 * @throws InvalidValue if the directory or a setting can't be written without quotes
 */
export function renderNixConf({ directory, settings = {} }: NixConfOptions): string {
  return renderSettings({
    builders: `@${checkPath(directory, "directory")}/machines`,
    // Builders fetch what they can from the caches themselves, instead of over the client's line.
    "builders-use-substitutes": true,
    ...settings,
  });
}

/**
 * `NAME = VALUE` lines.
 *
 * @throws InvalidValue for a value that `nix.conf` would read otherwise: it has no quotes, and `#` starts a comment anywhere
 */
export function renderSettings(settings: NixSettings): string {
  return Object.entries(settings)
    .map(([name, value]) => `${checkName(name)} = ${checkValue(name, value)}`.trimEnd() + "\n")
    .join("");
}

/**
 * Reads `nix.conf` text: settings in their order, values as they stand there. Includes aren't followed.
 *
 * @throws InvalidValue naming the line that isn't a setting
 */
export function parseNixConf(text: string): Map<string, string> {
  const settings = new Map<string, string>();
  for (const line of text.split("\n").map((raw) => raw.replace(/#.*/, "").trim())) {
    if (line === "") continue;
    const [, name, value] = /^([A-Za-z0-9-]+)\s+=(.*)$/.exec(line) ?? [];
    if (name === undefined || value === undefined) throw new InvalidValue("nix.conf", line, "NAME = VALUE");
    settings.set(name, value.trim());
  }
  return settings;
}

function checkName(name: string): string {
  if (/^[a-z][a-z0-9-]*$/.test(name)) return name;
  throw new InvalidValue("nix.conf", name, "the name of a Nix setting: lower-case letters, digits and hyphens");
}

function checkValue(name: string, value: string | number | boolean): string {
  const text = String(value);
  if (/^([^\s#]+( [^\s#]+)*)?$/.test(text)) return text;
  throw new InvalidValue(`nix.conf ${name}`, value, "words separated by single spaces, without # and line ends");
}
