/** Runs `pulumi up` and tells its progress in a line a step, from the engine's own events. */
import { createInterface } from "node:readline";
import { execa } from "execa";
import { asOneMessage } from "../src/machineText.ts";
import { privately } from "./discretion.ts";
import { checkout } from "./launch.mjs";
import { markRun } from "./orphans.ts";
import { describeWrongPassphrase, isWrongPassphrase } from "./passphrase.ts";
import { accompany, sayEnded, startCancellable } from "./pulumi.ts";
import { whichStack } from "./stack.ts";
import { describeLock, parseLock } from "./staleLocks.ts";
import { ownValue } from "../src/record.ts";

/** What is used of an engine event; `sdk/nodejs/automation/events.ts` of pulumi/pulumi describes them in full. */
export interface EngineEvent {
  readonly resourcePreEvent?: { readonly metadata: StepMetadata };
  readonly resOutputsEvent?: { readonly metadata: StepMetadata };
  readonly diagnosticEvent?: { readonly message: string; readonly severity: string };
}

interface StepMetadata {
  readonly op: string;
  readonly urn: string;
  readonly type?: string;
  readonly new?: { readonly outputs?: Readonly<Record<string, unknown>> } | null;
}

/** How a deployment ended. */
export interface Deployment {
  /** Exit code of the CLI. */
  readonly exitCode: number;
  /** The stack's outputs; secrets among them are not readable. */
  readonly outputs: Readonly<Record<string, unknown>>;
  /** Whether anything was warned of: it holds, and is to be said again, until a deployment has no warning. */
  readonly warned: boolean;
  /** Whether Ctrl-C, or a signal like it, asked for its end. */
  readonly cancelled: boolean;
}

/** A resource's own type, or its component's → what has been done when it is there. */
const done: Readonly<Record<string, string>> = {
  "tls:index/privateKey:PrivateKey": "key pair made",
  "command:remote:Command": "measured",
  "nix-builder-fleet:index:LocalEmulation": "registered",
  "nix-builder-fleet:index:LocalMachine": "sshd started",
  "hcloud:index/server:Server": "server made",
  "aws:ec2/instance:Instance": "instance made",
  // A cloud machine's own commands set it up.
  "nix-builder-fleet:index:HcloudMachine": "NixOS ready",
  "nix-builder-fleet:index:AwsMachine": "NixOS ready",
  "nix-builder-fleet:index:ClientDirectory": "written",
  // The fleet's own commands are its smoke tests.
  "nix-builder-fleet:index:BuilderFleet": "passed",
};

/** Seconds without a finished step after which what is under way is named. */
const patience = 15;

/**
 * Deploys the stack that `env` selects.
 *
 * @param env As `pulumiEnvironment` makes it.
 * @param say Called with each line of progress, and of what went wrong.
 */
export async function deploy(env: NodeJS.ProcessEnv, say: (line: string) => void): Promise<Deployment> {
  const started = performance.now();
  const seconds = (): string => `${((performance.now() - started) / 1000).toFixed(1)} s`.padStart(7);
  const underWay = new Set<string>();
  let outputs: Deployment["outputs"] = {};
  let warned = false;
  let cancelled = false;
  const run = markRun({ ...env, PULUMI_ENABLE_STREAMING_JSON_PREVIEW: "true" });
  const start = () =>
    execa("pulumi", ["up", "--yes", "--skip-preview", "--json"], {
      cwd: checkout,
      env: run.env,
      extendEnv: false,
      stdin: "ignore",
      buffer: { stdout: false },
      reject: false,
      // Signals reach it by `startCancellable` alone.
      detached: true,
      cleanup: false,
    });
  const { cli: up, release } = startCancellable(
    () => privately(start),
    undefined,
    () => {
      cancelled = true;
      say(
        "cancelling: waiting for what is under way to end; a second Ctrl-C stops it at once, and its end is then unknown",
      );
    },
  );
  const finish = accompany(up.pid, env);
  const heartbeat = setInterval(() => {
    if (underWay.size > 0) say(`${seconds()}  … ${[...underWay].join(", ")}`);
  }, patience * 1000);
  try {
    for await (const line of createInterface({ input: up.stdout })) {
      const event = parseEvent(line);
      if (event === undefined) continue;
      const before = stepName(event.resourcePreEvent?.metadata);
      if (before !== undefined) underWay.add(before);
      const after = stepName(event.resOutputsEvent?.metadata);
      if (after !== undefined) underWay.delete(after);
      const resource = event.resOutputsEvent?.metadata;
      if (resource?.type === "pulumi:pulumi:Stack") outputs = resource.new?.outputs ?? outputs;
      const text = describeEvent(event);
      if (text?.startsWith("warning: ") === true) warned = true;
      if (text !== undefined) say(event.diagnosticEvent === undefined ? `${seconds()}  ${text}` : text);
    }
    const { exitCode, stderr } = await up;
    sayEnded(await run.ended(exitCode ?? null));
    if (stderr.trim() !== "") say(asOneMessage(describeRefusal(stderr.trim(), env)));
    return { exitCode: exitCode ?? 1, outputs, warned, cancelled };
  } finally {
    clearInterval(heartbeat);
    release();
    finish();
  }
}

/**
 * One line for an event, `undefined` where it is of no interest to a person.
 *
 * @param event An engine event.
 */
export function describeEvent(event: EngineEvent): string | undefined {
  const { diagnosticEvent, resOutputsEvent } = event;
  if (diagnosticEvent !== undefined) return describeDiagnostic(diagnosticEvent);
  const step = stepName(resOutputsEvent?.metadata);
  if (resOutputsEvent === undefined || step === undefined) return undefined;
  const { op, urn } = resOutputsEvent.metadata;
  // A replacement is told by its new resource; the old one's end is no news.
  if (op === "replace" || op.endsWith("-replaced")) return undefined;
  if (op.startsWith("delete")) return `${step}: removed`;
  const types = (urn.split("::")[2] ?? "").split("$");
  return `${step}: ${ownValue(done, types.at(-1) ?? "") ?? ownValue(done, types.at(-2) ?? "") ?? "done"}`;
}

/** What the CLI says when it doesn't even begin; in words of ours where a person has to do something. */
export function describeRefusal(said: string, env: NodeJS.ProcessEnv): string {
  const stack = whichStack(env);
  const owner = parseLock(said);
  if (owner !== undefined) return describeLock(stack, owner);
  return isWrongPassphrase(said) ? describeWrongPassphrase(env, stack, checkout) : said;
}

function describeDiagnostic({ message, severity }: { message: string; severity: string }): string | undefined {
  if (severity !== "warning" && severity !== "error") return undefined;
  // Set-up has said so once already.
  if (/^using pulumi-resource-\S+ from \$PATH/.test(message)) return undefined;
  // The engine closes every failed deployment with this.
  if (/^(update|preview) failed$/.test(message.trim())) return undefined;
  // A builder may have written it, as where a measurement fails.
  return asOneMessage(`${severity}: ${message.trim()}`);
}

/** The name of a step that does something; components do nothing themselves, and `same` is no step. */
function stepName(metadata: StepMetadata | undefined): string | undefined {
  if (metadata === undefined || metadata.op === "same" || metadata.op === "read") return undefined;
  const [types = "", name = ""] = metadata.urn.split("::").slice(2);
  const type = types.split("$").at(-1) ?? "";
  // The stack's folder is no news.
  if (types.includes(":Workspace$")) return undefined;
  return type.startsWith("pulumi:") || type.startsWith("nix-builder-fleet:") ? undefined : name;
}

function parseEvent(line: string): EngineEvent | undefined {
  try {
    return JSON.parse(line) as EngineEvent;
  } catch {
    return undefined;
  }
}
