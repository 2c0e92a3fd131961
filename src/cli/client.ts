/** `fleet client`: the client's configuration, in any form, for any client, on standard output or in a folder. */
import { existsSync, readFileSync } from "node:fs";
import { resolve } from "node:path";
import { privateKeyFile, writeClientDirectory } from "../client/directory.ts";
import { clientFiles } from "../nix/clientFiles.ts";
import { cacheSettings } from "../nix/caches.ts";
import { findForm, formNames, forms, type FormOptions } from "../nix/forms.ts";
import { profileNames, type Profile } from "../nix/profiles.ts";
import { CliError, type UsableFleet } from "./stack.ts";

/** What a person may choose. */
export interface ClientChoice {
  /** Folder to write to; `undefined`: print. */
  readonly directory?: string;
  /** One form; `undefined`: the plain files, with the key. */
  readonly form?: string;
  /** A client of the configuration; `undefined`: the one whose key all share. */
  readonly client?: string;
  readonly profile?: string;
  /** Version of the client's Nix. */
  readonly nixVersion?: string;
  /** Overwrite files of another fleet. */
  readonly force?: boolean;
}

/** What was written, or is to be printed. */
export type ClientResult =
  | { readonly text: string }
  | { readonly directory: string; readonly files: readonly string[]; readonly needsOwnKey: boolean };

/**
 * Renders and writes.
 *
 * @throws CliError for a choice that makes no sense, and for a folder with files of another fleet
 * @throws InvalidValue, NotExpressible of the forms
 */
export function writeClient(fleet: UsableFleet, choice: ClientChoice): ClientResult {
  const { options, privateKey } = chosenClient(fleet, choice);
  const directory = choice.directory === undefined ? undefined : resolve(choice.directory);
  if (choice.form !== undefined) {
    const form = findForm(choice.form);
    const where = directory ?? fleet.clientSettings.directory;
    const text = form.render(fleet.builders, { ...options, directory: where, sshKey: `${where}/${privateKeyFile}` });
    if (directory === undefined) return { text };
    refuseForeignFiles(directory, { [form.fileName]: text }, fleet, choice.force);
    writeClientDirectory(directory, { [form.fileName]: text });
    return { directory, files: [form.fileName], needsOwnKey: false };
  }
  if (directory === undefined) {
    throw new CliError(`name a folder to write to, or a form to print: --form ${formNames.join(" | ")}`);
  }
  const { caches = [], ...rest } = options;
  const files = {
    ...clientFiles(fleet.builders, { ...rest, directory, settings: cacheSettings(caches) }),
    ...(privateKey !== undefined && { [privateKeyFile]: privateKey }),
  };
  refuseForeignFiles(directory, files, fleet, choice.force);
  writeClientDirectory(directory, files);
  return { directory, files: Object.keys(files), needsOwnKey: privateKey === undefined };
}

/** The forms, a line each. */
export function describeForms(): string {
  const width = Math.max(...formNames.map((name) => name.length));
  return formNames.map((name) => `  ${name.padEnd(width)}  ${forms[name].description}`).join("\n");
}

function chosenClient(
  fleet: UsableFleet,
  choice: ClientChoice,
): { readonly options: FormOptions; readonly privateKey: string | undefined } {
  const { clients, ...settings } = fleet.clientSettings;
  const found = clients.find(({ name }) => name === choice.client);
  if (choice.client !== undefined && found === undefined) {
    const known = clients.map(({ name }) => name).join(", ");
    throw new CliError(
      `client '${choice.client}' is not in the configuration; ` +
        (known === "" ? "`clients` is empty there" : `the clients are ${known}`),
    );
  }
  const profile = checkProfile(choice.profile) ?? found?.profile ?? settings.profile;
  const options = {
    caches: settings.caches,
    localSystems: found?.localSystems ?? settings.localSystems,
    ...(profile !== undefined && { profile }),
    ...(settings.maxSessions !== undefined && { maxSessions: settings.maxSessions }),
    ...(choice.nixVersion !== undefined && { nixVersion: choice.nixVersion }),
  };
  const privateKey = found === undefined ? fleet.clientPrivateKey : fleet.clientPrivateKeys[found.name];
  return { options, privateKey };
}

function checkProfile(text: string | undefined): Profile | undefined {
  const profile = profileNames.find((name) => name === text);
  if (text !== undefined && profile === undefined) {
    throw new CliError(`profile '${text}' does not exist; the profiles are ${profileNames.join(", ")}`);
  }
  return profile;
}

/** A folder is ours if its files are as they would be written, or speak of this fleet's builders. */
function refuseForeignFiles(
  directory: string,
  files: Readonly<Record<string, string>>,
  fleet: UsableFleet,
  force: boolean | undefined,
): void {
  if (force === true) return;
  const foreign = Object.entries(files).filter(([name, text]) => {
    const path = `${directory}/${name}`;
    if (name === privateKeyFile || name === "nix.conf" || !existsSync(path)) return false;
    const present = readFileSync(path, "utf8");
    return present !== text && !fleet.builders.some(({ alias }) => present.includes(alias));
  });
  if (foreign.length === 0) return;
  throw new CliError(
    `${directory} holds ${foreign.map(([name]) => name).join(", ")} of something else than stack '${fleet.stack}'; ` +
      "choose another folder, or overwrite with --force",
  );
}
