/** Case: what a build could take over of the machine that builds it, or of later builds. */
import { isLoopback, type BuildMachine } from "../nix/buildMachine.ts";
import type { SmokeBuilds } from "./builds.ts";
import { takeoverExpression, type Hole } from "./derivation.ts";
import type { CaseResult } from "./verdict.ts";

const means: Readonly<Record<Hole, string>> = {
  kernel: "change the kernel's settings (/proc/sys/kernel/core_pattern), which makes it root on the machine",
  devices: "change the modes of the machine's devices",
  shell: "change the /bin/sh of later builds",
  inputs: "change its own inputs in the store, so that later builds get others",
};

/**
 * Has a build try. On a host that the fleet didn't set up a hole is a warning. So is, on the builder of an ordinary user, that builds are the
 * owner of the store: the kernel gives that user no second one.
 *
 * @param ownMachine Whether the fleet set the machine up.
 */
export async function tryTakeover(
  machine: BuildMachine,
  builds: SmokeBuilds,
  ownMachine: boolean,
): Promise<CaseResult> {
  const name = "a build takes nothing over";
  const built = await builds.run(takeoverExpression, { system: machine.systems[0] ?? "" });
  const { seconds } = built;
  if ("reason" in built) return { name, outcome: "failed", seconds, detail: built.reason };
  const [nonce, ...words] = built.output.trim().split(" ");
  const holes = words.filter((word): word is Hole => Object.hasOwn(means, word));
  if (nonce !== built.nonce || holes.length !== words.length) {
    return { name, outcome: "failed", seconds, detail: "its output is not what was asked for" };
  }
  if (holes.length === 0) return { name, outcome: "passed", seconds };
  const ofOrdinaryUser = isLoopback(machine.hostName) && process.getuid?.() !== 0 && holes.join() === "inputs";
  const advice = ofOrdinaryUser
    ? "builds run as you, in a container; run as root to have users of their own for them"
    : "its Nix needs build users (`build-users-group`) that own nothing there";
  const detail = `a build can ${holes.map((hole) => means[hole]).join(", and ")}; ${advice}`;
  return { name, outcome: ownMachine && !ofOrdinaryUser ? "failed" : "warned", seconds, detail };
}
