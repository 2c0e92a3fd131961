/** Looks at this machine's own Nix, which `npx fleet` doesn't use: is it a client of the fleet, and does it work as one? */
import { readFileSync, statSync } from "node:fs";
import { userInfo } from "node:os";
import { dirname } from "node:path";
import { execa } from "execa";
import { readSettings } from "../client/settings.ts";
import type { BuildMachine } from "../nix/buildMachine.ts";
import { storeUri } from "../nix/machinesFile.ts";
import { probeLogin } from "./builder.ts";
import type { Finding, View } from "./finding.ts";

/** What this machine is compared with. */
export interface ClientToExamine {
  readonly machines: readonly BuildMachine[];
  /** The `machines` file that the stack emits. */
  readonly emitted: string;
  readonly stack: string;
}

/** Examines this machine's Nix and its users' ssh. */
export async function examineClient(client: ClientToExamine): Promise<Finding[]> {
  const settings = await readSettings();
  if (settings === undefined) {
    const fix = "`npm run setup` installs it or says how";
    return [{ view: "user", check: "Nix", severity: "error", what: "Nix is not installed here", fix }];
  }
  const rows = builderRows(settings.get("builders") ?? "", client.stack);
  const ours = new Map(client.machines.map((machine) => [storeUri(machine), machine]));
  const used = rows.rows.filter((row) => ours.has(row.split(/\s+/)[0] ?? ""));
  const findings = [
    ...rows.findings,
    ...checkRows(client, used),
    ...(await checkUser(settings)),
    ...(await checkSubstituters(settings)),
  ];
  if (used.length === 0) return findings;
  const aliases = client.machines.filter((machine) => used.some((row) => row.startsWith(`${storeUri(machine)} `)));
  return [
    ...findings,
    ...checkKeys(used, client.stack),
    ...(await checkSsh(
      aliases.map(({ alias }) => alias),
      client.stack,
    )),
    ...checkFallback(settings),
  ];
}

/** The rows that `builders` leads to. A file that isn't there is what Nix passes over in silence. */
function builderRows(builders: string, stack: string): { rows: string[]; findings: Finding[] } {
  const about = { view: "root", check: "builders setting" } as const;
  const parts = builders
    .split(/[\n;]/)
    .map((part) => part.trim())
    .map((part) => ({
      part,
      text: part.startsWith("@") ? lookAt(() => readFileSync(part.slice(1), "utf8")) : { found: part },
    }));
  const rows = parts.flatMap(({ text }) => (typeof text === "string" ? [] : text.found.split("\n")));
  return {
    rows: rows.map((row) => row.replace(/#.*/, "").trim()).filter((row) => row !== ""),
    findings: parts.flatMap(({ part, text }): Finding[] => {
      const path = part.slice(1);
      if (text === "hidden") return [{ ...about, ...hidden(path, stack) }];
      // Nix's default names a file that need not be there.
      if (text !== "missing" || part === `@${process.env["NIX_CONF_DIR"] ?? "/etc/nix"}/machines`) return [];
      const what = `nix.conf says builders = ${part}, but ${path} does not exist`;
      const why = "Nix passes over it in silence and builds here instead";
      return [{ ...about, severity: "error", what, why, fix: writeAgain(stack, dirname(path)) }];
    }),
  };
}

/** What a file holds or is, for root and the others alike: `hidden` where this user may not look, often root's own files. */
function lookAt<T>(read: () => T): { readonly found: T } | "missing" | "hidden" {
  try {
    return { found: read() };
  } catch (error) {
    const code = error instanceof Error && "code" in error ? error.code : undefined;
    if (code === "ENOENT" || code === "ENOTDIR") return "missing";
    if (code === "EACCES" || code === "EPERM") return "hidden";
    throw error;
  }
}

function hidden(path: string, stack: string) {
  return { severity: "note", what: `not looked at: this user may not see ${path}`, fix: asRoot(stack) } as const;
}

/** Root has a selection of stacks of its own. */
function asRoot(stack: string): string {
  return `sudo npx fleet doctor --stack ${stack}`;
}

function writeAgain(stack: string, directory: string): string {
  return `npx fleet client --stack ${stack} ${directory} (as root)`;
}

/** Whether the rows say what the stack emits; where the key lies is the client's own business. */
function checkRows({ machines, emitted, stack }: ClientToExamine, used: readonly string[]): Finding[] {
  const about = { view: "root", check: "machines" } as const;
  if (used.length === 0) {
    return [
      {
        ...about,
        severity: "note",
        what: "this machine's own Nix does not use the fleet; `npx fleet build` does",
        fix: "to change that: docs/clients.md",
      },
    ];
  }
  const withoutKey = (row: string): string => row.split(/\s+/).toSpliced(2, 1).join(" ");
  const wanted = emitted.split("\n").filter((row) => row !== "");
  const stale = used.filter((row) => !wanted.some((other) => withoutKey(other) === withoutKey(row)));
  const absent = machines.filter((machine) => !used.some((row) => row.startsWith(`${storeUri(machine)} `)));
  if (stale.length === 0 && absent.length === 0) {
    return [{ ...about, severity: "ok", what: `says what stack '${stack}' emits` }];
  }
  const differences = [
    ...stale.map((row) => `${row.split(/\s+/)[0] ?? ""} differs`),
    ...absent.map(({ alias }) => `${alias} is missing`),
  ];
  return [
    {
      ...about,
      severity: "error",
      what: `is not what stack '${stack}' emits: ${differences.join(", ")}`,
      why: "builds go where the fleet no longer is, or are refused because of an old host key",
      fix: `${writeAgain(stack, "DIR")}, DIR being the folder that nix.conf names; on NixOS, import the module again`,
    },
  ];
}

async function checkUser(settings: ReadonlyMap<string, string>): Promise<Finding[]> {
  const user = process.env["SUDO_USER"] ?? userInfo().username;
  const about = { view: "user", check: "trusted user" } as const;
  const trusted = (settings.get("trusted-users") ?? "").split(" ");
  const names = ["*", user, ...(await groupsOf(user)).map((group) => `@${group}`)];
  if (user === "root" || names.some((name) => trusted.includes(name))) {
    return [{ ...about, severity: "ok", what: `${user} may choose builders` }];
  }
  return [
    {
      ...about,
      severity: "note",
      what: `${user} is not among trusted-users`,
      why: "this machine's daemon ignores that user's --builders, and older ones without a word",
      fix: `add ${user} to trusted-users in /etc/nix/nix.conf (that is nearly root), or set builders there`,
    },
  ];
}

/** Names of a user's groups; those with a blank, which macOS knows, no nix.conf can name. */
async function groupsOf(user: string): Promise<string[]> {
  const { failed, stdout } = await execa("id", ["-Gn", user], { reject: false, stdin: "ignore" });
  return failed ? [] : stdout.split(" ");
}

/** The files in column 3 are read by root's ssh. */
function checkKeys(rows: readonly string[], stack: string): Finding[] {
  const keys = new Set(rows.map((row) => row.split(/\s+/)[2] ?? "-").filter((key) => key !== "-"));
  return [...keys].map((key): Finding => {
    const about = { view: "root", check: "private key" } as const;
    const mode = lookAt(() => statSync(key).mode);
    if (mode === "hidden") return { ...about, ...hidden(key, stack) };
    if (mode === "missing") {
      const fix = writeAgain(stack, dirname(key));
      return { ...about, severity: "error", what: `${key} does not exist`, why: "ssh has no key to log in with", fix };
    }
    return (mode.found & 0o077) === 0
      ? { ...about, severity: "ok", what: `${key} is its owner's alone` }
      : {
          ...about,
          severity: "error",
          what: `${key} is readable by others`,
          why: "ssh ignores such a key",
          fix: `chmod 600 ${key}`,
        };
  });
}

/** The daemon's builds use root's ssh, a person's `--store` their own: each has a configuration of its own. */
async function checkSsh(aliases: readonly string[], stack: string): Promise<Finding[]> {
  const root = process.getuid?.() === 0;
  const person = process.env["SUDO_USER"];
  const views: readonly (readonly [View, readonly string[] | undefined])[] = root
    ? [["root", ["ssh"]], ...(person === undefined ? [] : [["user", ["sudo", "-n", "-u", person, "ssh"]] as const])]
    : [
        ["user", ["ssh"]],
        ["root", (await canSudo()) ? ["sudo", "-n", "ssh"] : undefined],
      ];
  const options = (process.env["NIX_SSHOPTS"] ?? "").split(" ").filter(Boolean);
  const checks = views.flatMap(([view, program]) =>
    aliases.map(async (alias): Promise<Finding> => {
      const about = { view, check: `ssh to ${alias}` } as const;
      if (program === undefined) {
        return { ...about, severity: "note", what: "not tried: this user isn't root", fix: asRoot(stack) };
      }
      const { outcome, output } = await probeLogin(options, alias, program);
      if (outcome !== "failed") return { ...about, severity: "ok", what: "logs in" };
      const unknown = /Could not resolve hostname/.test(output);
      return {
        ...about,
        severity: view === "root" ? "error" : "note",
        what: unknown ? `this ssh does not know ${alias}` : `it fails: ${output.trim().split("\n").at(-1) ?? ""}`,
        why:
          view === "root"
            ? "the daemon builds as root, with root's ssh configuration"
            : "only builds without the daemon need it",
        fix: `npm run pulumi -- stack output sshConfig, into ${view === "root" ? "/etc/ssh/ssh_config" : "~/.ssh/config"}`,
      };
    }),
  );
  return Promise.all(checks);
}

async function canSudo(): Promise<boolean> {
  const { failed } = await execa("sudo", ["-n", "true"], { reject: false, stdin: "ignore" });
  return !failed;
}

async function checkSubstituters(settings: ReadonlyMap<string, string>): Promise<Finding[]> {
  const urls = (settings.get("substituters") ?? "").split(" ").filter((url) => /^https?:/.test(url));
  return Promise.all(
    urls.map(async (url): Promise<Finding> => {
      const about = { view: "user", check: "substituter" } as const;
      const place = `${url.replace(/\/$/, "")}/nix-cache-info`;
      const status = await fetch(place, { signal: AbortSignal.timeout(5000) }).then(
        (response) => response.status,
        () => undefined,
      );
      if (status === 200) return { ...about, severity: "ok", what: `${url} answers` };
      return {
        ...about,
        severity: "warning",
        what: status === undefined ? `${url} can't be reached` : `${url} answers with status ${status}`,
        why: "Nix asks it for every path, with several attempts each, before it builds",
        fix: `mend the way there (curl ${place}), or remove it from substituters`,
      };
    }),
  );
}

function checkFallback(settings: ReadonlyMap<string, string>): Finding[] {
  const maxJobs = settings.get("max-jobs") ?? "";
  if (maxJobs === "0") return [];
  return [
    {
      view: "root",
      check: "local builds",
      severity: "note",
      what: `max-jobs = ${maxJobs}: when no builder answers, Nix builds here without saying so`,
      fix: "set max-jobs = 0 in /etc/nix/nix.conf to get an error instead",
    },
  ];
}
