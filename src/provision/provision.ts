/** Waits until a new machine runs NixOS as a builder, then gives it the fleet's keys and settings of today. */
import { createHash } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import { builderDirectory, trustingMark } from "../bootstrap/builderFiles.ts";
import { conversionLog, rebootingState, stateFile } from "../bootstrap/conversion.ts";
import { oneLine, quoted } from "../machineText.ts";
import { explainFailure } from "../smoke/failure.ts";
import { connection, type Connection, type Target } from "./ssh.ts";
import { ownValue } from "../record.ts";

/** What is wanted of one machine; JSON on the script's standard input, because it holds the key. */
export interface Provisioning extends Target {
  /** The builder's alias, for messages. */
  readonly alias: string;
  /** OpenSSH private key that opens root. */
  readonly adminPrivateKey: string;
  /** Path below `builderDirectory` → text of what sshd reads at every login. */
  readonly keyFiles: Readonly<Record<string, string>>;
  /** Path below `builderDirectory` → text of what Nix's daemon reads at its start; for root's eyes only. */
  readonly signingFiles: Readonly<Record<string, string>>;
  /** Path below `builderDirectory` → text of what NixOS is built from. */
  readonly moduleFiles: Readonly<Record<string, string>>;
  /** Names the state of `moduleFiles`. */
  readonly applied: string;
  /** Seconds until NixOS must answer. */
  readonly timeout: number;
  /** The configuration's key for it. */
  readonly timeoutKey: string;
  /** The EC2 instance that it is: where SSH says nothing, its console does. */
  readonly ec2Instance?: string;
  /** The stack's folder on the machine that this runs on. */
  readonly stackDirectory: string;
}

/** Seconds that a rebuild of NixOS may take. */
const rebuildTimeout = 1800;

/**
 * Brings a machine to what is wanted. Safe to repeat; on a machine that is so already, one round trip.
 *
 * @param previousKey Private key that opened root the last time: with it a new key is brought in.
 * @param report Told what the machine is doing, whenever that changes.
 * @throws Error with the reason in words, fetched from the machine where it can be reached.
 */
export async function provision(
  wanted: Provisioning,
  previousKey: string | undefined,
  report: (progress: string) => void,
): Promise<void> {
  const adminKeys = [...new Set([wanted.adminPrivateKey, previousKey ?? wanted.adminPrivateKey])];
  const connections = adminKeys.map((key) => connection(wanted, key, wanted.stackDirectory));
  try {
    const { open, applied, keys, signing } = await whenNixos(wanted, connections, report);
    const [own] = connections;
    if (open !== own || keys !== markOf(wanted.keyFiles)) {
      await must(open, writeFiles(wanted.keyFiles), 60, `builder ${wanted.alias}: its keys can't be written`);
    }
    if (own !== undefined && open !== own) {
      await must(own, "true", 60, `builder ${wanted.alias}: the new administration key does not open it`);
      report("the administration key was replaced");
    }
    if (signing !== markOf(wanted.signingFiles)) {
      // A restart leaves running builds alone (KillMode=process).
      const write = `${writeFiles(wanted.signingFiles, "077")}\nsystemctl try-restart nix-daemon.service`;
      await must(own ?? open, write, 120, `builder ${wanted.alias}: its signing key can't be written`);
    }
    if (applied === wanted.applied) return;
    report("rebuilding NixOS with the new settings");
    const rebuild = [
      "set -e",
      // Until there was a choice, every client was trusted.
      `grep -q trustedClients ${builderDirectory}/parameters.json || touch ${trustingMark}`,
      writeFiles(wanted.moduleFiles),
      "nixos-rebuild switch >/var/log/nix-builder-rebuild.log 2>&1 || { tail -n 15 /var/log/nix-builder-rebuild.log >&2; exit 1; }",
      writeFiles({ applied: wanted.applied }),
    ].join("\n");
    await must(own ?? open, rebuild, rebuildTimeout, `builder ${wanted.alias}: nixos-rebuild failed`);
  } finally {
    for (const one of connections) one.close();
  }
}

/** States in which nothing is being installed: none was said, Debian's last one, and that of a finished EC2 instance. */
const settled = ["starting", rebootingState, "running"];

/** Names the state of such files, as `watch` does on the machine: with their names, since a key may move from one to another. */
function markOf(files: Readonly<Record<string, string>>): string {
  const digest = (text: string) => createHash("sha256").update(text).digest("hex");
  const lines = Object.keys(files)
    .sort()
    .map((name) => `${digest(ownValue(files, name) ?? "")}  ${name}\n`);
  return digest(lines.join(""));
}

/**
 * Shell that prints `state STATE` five times a second, until NixOS is ready or its installation failed: then also `applied MARK`,
 * `keys MARK` and `signing MARK`. Over a connection that broke, the next line would end it.
 */
function watch({ keyFiles, signingFiles }: Pick<Provisioning, "keyFiles" | "signingFiles">): string {
  const markOn = (files: Readonly<Record<string, string>>) =>
    `$(sha256sum ${Object.keys(files).sort().join(" ")} 2>/dev/null | sha256sum)`;
  return `. /etc/os-release
while
  state=$(cat ${stateFile} 2>/dev/null || echo starting)
  [ "$ID $state" = "nixos starting" ] && echo "state NixOS is starting" || echo "state $state"
  id -u nix-builder >/dev/null 2>&1 && user=ready || user=missing
  case "$ID $user $state" in
    ${settled.map((state) => `"nixos ready ${state}"`).join(" | ")} | *" failed: "*) false ;;
  esac
do sleep 0.2; done
echo "applied $(cat ${builderDirectory}/applied 2>/dev/null)"
cd ${builderDirectory} && echo "keys ${markOn(keyFiles)}" && echo "signing ${markOn(signingFiles)}"
`;
}

interface Answer {
  readonly open: Connection;
  readonly applied: string;
  readonly keys: string;
  readonly signing: string;
}

async function whenNixos(
  wanted: Provisioning,
  connections: readonly Connection[],
  report: (progress: string) => void,
): Promise<Answer> {
  const deadline = Date.now() + wanted.timeout * 1000;
  let last = "";
  const say = (progress: string): void => {
    if (progress !== last) report(progress);
    last = progress;
  };
  for (let pause = 100; ; pause = Math.min(pause * 1.5, 1000)) {
    for (const open of connections) {
      const left = Math.max(1, (deadline - Date.now()) / 1000);
      const seen = new Map<string, string>();
      const { code, stderr } = await open.run(watch(wanted), left, (line) => {
        const [, field = "", value = ""] = /^(state|applied|keys|signing) (.*)$/.exec(line) ?? [];
        seen.set(field, value);
        if (field === "state" && !value.startsWith("failed: ")) say(oneLine(value, 200));
      });
      const state = seen.get("state");
      if (state?.startsWith("failed: ") === true) await explainConversion(wanted, open, state.slice("failed: ".length));
      if (code === 0) {
        const digest = (field: string) => seen.get(field)?.split(" ")[0] ?? "";
        return { open, applied: seen.get("applied") ?? "", keys: digest("keys"), signing: digest("signing") };
      }
      // It answered, and then rebooted.
      if (state !== undefined) {
        pause = 100;
        break;
      }
      const { reason } = explainFailure(stderr, "administrator");
      if (/IDENTIFICATION HAS CHANGED|Host key verification failed|host key is known/i.test(stderr)) {
        throw new Error(`builder ${wanted.alias} (${wanted.address}) is refused: ${reason}.`);
      }
      say(`waiting for SSH (${reason})`);
    }
    if (Date.now() + pause > deadline) {
      const console = wanted.ec2Instance === undefined ? "" : await consoleOutput(wanted.ec2Instance);
      throw new Error(
        `builder ${wanted.alias} (${wanted.address}) is no NixOS builder after ${wanted.timeout} s (${wanted.timeoutKey}); ` +
          `its last state: ${last}. Look at it with its console, or run \`pulumi up\` again to go on waiting.${console}`,
      );
    }
    await delay(pause);
  }
}

/** The end of an EC2 instance's console output, as part of a message; the API is loaded only for it. */
async function consoleOutput(instance: string): Promise<string> {
  const { lastConsoleLines } = await import("../aws/console.ts");
  const lines = await lastConsoleLines(instance).catch((error: unknown) => `(it can't be read: ${String(error)})`);
  return `\nThe end of its console output:\n${quoted(lines)}`;
}

async function explainConversion(
  { alias, ec2Instance }: Provisioning,
  open: Connection,
  reason: string,
): Promise<never> {
  const { stdout } = await open.run(`tail -n 15 ${conversionLog}`, 30);
  throw new Error(
    `builder ${alias} could not be ${ec2Instance === undefined ? "converted to NixOS" : "made of NixOS"}: ${oneLine(reason)}. The end of its log (${conversionLog}):\n${quoted(stdout)}\n` +
      "Once mended, `pulumi up --replace` of its machine starts over.",
  );
}

/** Shell that writes files, each renamed into place. */
function writeFiles(files: Readonly<Record<string, string>>, umask = "022"): string {
  return Object.entries(files)
    .map(([name, text]) => {
      const path = `${builderDirectory}/${name}`;
      const content = Buffer.from(text).toString("base64");
      return `umask ${umask} && mkdir -p "$(dirname ${path})" && echo '${content}' | base64 -d >${path}.new && mv ${path}.new ${path} || exit 1`;
    })
    .join("\n");
}

async function must(open: Connection, script: string, seconds: number, problem: string): Promise<void> {
  const { code, stderr } = await open.run(script, seconds);
  if (code !== 0) throw new Error(`${problem}:\n${quoted(stderr) || `exit code ${code}`}`);
}
