/** `fleet client`: the client's configuration, in any form, for any client, on standard output or in a folder. */
import { resolve } from "node:path";
import { clientDirectoryFiles, makeClientFolder, writeClientDirectory, type ClientFiles } from "../client/directory.ts";
import { findObstacles, fleetId, markerName, renderMarker, type Obstacle, type Owner } from "../client/ownership.ts";
import { placeProblem } from "../client/place.ts";
import { atTrust, checkPath, type BuildMachine } from "../nix/buildMachine.ts";
import { findForm, formNames, formOptions, forms, type ClientSettings } from "../nix/forms.ts";
import { storeUri } from "../nix/machinesFile.ts";
import { profileNames, type Profile } from "../nix/profiles.ts";
import { fullTrust, oldestForUntrustedRows, rowObstacle, type Trust } from "../nix/trust.ts";
import { CliError, type UsableFleet } from "./stack.ts";
import { ownValue } from "../record.ts";

/** What a person may choose. */
export interface ClientChoice {
  /** Folder to write to; `undefined`: print. */
  readonly directory?: string;
  /** One form; `undefined`: the plain files, with the key. */
  readonly form?: string;
  /** A client of the configuration; `undefined`: the one whose key all share. */
  readonly client?: string;
  readonly profile?: string;
  /**
   * Absolute path of the folder in which the files will lie on the client: they name each other by it. Default: where they are written;
   * the configured `clientDirectory` for what is only printed, and for a client with a key pair of its own, which is on another machine.
   */
  readonly installedAt?: string;
  /** Version of the client's Nix. */
  readonly nixVersion?: string;
  /** Overwrite files that aren't this fleet's. A private key that no fleet wrote stays all the same. */
  readonly force?: boolean;
}

/** What was written, or is to be printed. */
export type ClientResult =
  | { readonly text: string; readonly notes: readonly string[] }
  | {
      readonly directory: string;
      /** Where the files work. */
      readonly installedAt: string;
      readonly files: readonly string[];
      readonly needsOwnKey: boolean;
      /** The builders' URIs, for `--store`. */
      readonly stores: readonly string[];
      /** What the person should know of the client's level, a sentence each. */
      readonly notes: readonly string[];
    };

/**
 * Renders and writes.
 *
 * @throws CliError for a choice that makes no sense, and for a folder with files of somebody else
 * @throws InvalidValue for a folder that the files can't name, and of the forms
 * @throws NotExpressible of the forms
 */
export function writeClient(fleet: UsableFleet, choice: ClientChoice): ClientResult {
  const { settings, privateKey, signingKey } = chosenClient(fleet, choice);
  const builders = fleet.builders.map((machine) => atTrust(machine, settings.trust));
  const notes = trustNotes(builders, settings.trust, choice.nixVersion);
  const directory = choice.directory === undefined ? undefined : resolve(choice.directory);
  // Who has the key elsewhere is elsewhere.
  const ownPlace = privateKey === undefined ? undefined : directory;
  const chosenPlace =
    choice.installedAt === undefined ? undefined : resolve(checkPath(choice.installedAt, "--installed-at"));
  if (choice.form !== undefined) {
    const form = findForm(choice.form);
    const place = chosenPlace ?? (form.elsewhere === true ? undefined : ownPlace) ?? settings.directory;
    const text = form.render(builders, formOptions({ ...settings, directory: place }));
    if (directory === undefined) return { text, notes };
    writeOwned(directory, { [form.fileName]: text }, fleet, choice);
    return { directory, installedAt: place, files: [form.fileName], needsOwnKey: false, stores: [], notes };
  }
  if (directory === undefined) {
    throw new CliError(`name a folder to write to, or a form to print: --form ${formNames.join(" | ")}`);
  }
  const installedAt = chosenPlace ?? ownPlace ?? settings.directory;
  const files = clientDirectoryFiles(builders, { ...settings, directory: installedAt, privateKey, signingKey });
  writeOwned(directory, files, fleet, choice);
  return {
    directory,
    installedAt,
    files: Object.keys(files),
    needsOwnKey: privateKey === undefined,
    stores: builders.map(storeUri),
    notes,
  };
}

/** The forms, a line each. */
export function describeForms(): string {
  const width = Math.max(...formNames.map((name) => name.length));
  return formNames.map((name) => `  ${name.padEnd(width)}  ${forms[name].description}`).join("\n");
}

function chosenClient(
  fleet: UsableFleet,
  choice: ClientChoice,
): {
  readonly settings: ClientSettings & { readonly trust: Trust };
  readonly privateKey: string | undefined;
  readonly signingKey: string | undefined;
} {
  const { clients, ...settings } = fleet.clientSettings;
  const found = clients.find(({ name }) => name === choice.client);
  if (choice.client !== undefined && found === undefined) {
    const known = clients.map(({ name }) => name).join(", ");
    throw new CliError(
      `client '${choice.client}' is not in the configuration; ` +
        (known === "" ? "`clients` is empty there" : `the clients are ${known}`),
    );
  }
  return {
    settings: {
      ...settings,
      localSystems: found?.localSystems ?? settings.localSystems,
      trust: found?.trust ?? settings.trust,
      profile: checkProfile(choice.profile) ?? found?.profile ?? settings.profile,
      nixVersion: choice.nixVersion,
    },
    privateKey: found === undefined ? fleet.clientPrivateKey : ownValue(fleet.clientPrivateKeys, found.name),
    signingKey: found === undefined ? fleet.clientSigningKey : ownValue(fleet.clientSigningKeys, found.name),
  };
}

/** What a person should know of a client's level: what it means, and what its Nix is too old for. */
function trustNotes(builders: readonly BuildMachine[], trust: Trust, nixVersion: string | undefined): string[] {
  const notes =
    trust === "full" && builders.some((machine) => machine.trust === "full") ? [`${fullTrust} (trust: full).`] : [];
  const obstacles = new Set(builders.map((machine) => rowObstacle(machine, nixVersion ?? oldestForUntrustedRows)));
  const [obstacle] = [...obstacles].filter((one) => one !== undefined);
  if (obstacle !== undefined) {
    notes.push(
      `These builders can't be rows of \`builders\` for this client: ${obstacle}; use one as a store, with --store and --eval-store.`,
    );
  }
  return notes.map((note) => note.charAt(0).toUpperCase() + note.slice(1));
}

function checkProfile(text: string | undefined): Profile | undefined {
  const profile = profileNames.find((name) => name === text);
  if (text !== undefined && profile === undefined) {
    throw new CliError(`profile '${text}' does not exist; the profiles are ${profileNames.join(", ")}`);
  }
  return profile;
}

/** Writes the files with the marker that says whose they are, if that takes nothing from anybody. */
function writeOwned(directory: string, files: ClientFiles, fleet: UsableFleet, choice: ClientChoice): void {
  const owner: Owner = {
    fleet: fleetId(fleet.adminPrivateKey),
    client: choice.client,
    keys: [fleet.clientPrivateKey, ...Object.values(fleet.clientPrivateKeys)],
  };
  refusePlace(directory);
  refuse(directory, findObstacles(directory, files, owner), choice);
  makeClientFolder(directory);
  // It may be another one than the one that was missing a moment ago.
  refusePlace(directory);
  const marker = renderMarker(directory, files, owner);
  writeClientDirectory(directory, { ...files, [markerName]: marker });
}

function refusePlace(directory: string): void {
  const problem = placeProblem(directory);
  if (problem !== undefined) throw new CliError(problem);
}

const reasons: Readonly<Record<Exclude<Obstacle["reason"], "foreign key" | "no file">, string>> = {
  "not ours": "that this fleet did not write",
  "another fleet": "of another fleet",
  "another client": "of another client of this fleet",
  changed: "that somebody changed since this fleet wrote it",
};

function refuse(directory: string, obstacles: readonly Obstacle[], { force }: ClientChoice): void {
  const key = obstacles.find(({ reason }) => reason === "foreign key");
  if (key !== undefined) {
    throw new CliError(
      `${directory}/${key.name} is a private key that this fleet did not make, and is never overwritten; ` +
        "choose another folder, or move the key away",
    );
  }
  const [first] = obstacles;
  if (first?.reason === "no file")
    throw new CliError(
      `${directory}/${first.name} is no file, and is left alone; choose another folder, or move it away`,
    );
  if (first === undefined || first.reason === "foreign key" || force === true) return;
  const names = obstacles.filter(({ reason }) => reason === first.reason).map(({ name }) => name);
  throw new CliError(
    `${directory} holds ${names.join(", ")} ${reasons[first.reason]}; choose another folder, or overwrite with --force`,
  );
}
