/** How the scripts behind commands end: an error is one message on standard error and exit code 1, without a stack trace. */
import { ownValue } from "./record.ts";
import { complain } from "./terminal.ts";

/** Runs a script's work. */
export async function runScript(work: () => void | Promise<void>): Promise<void> {
  // What it makes has the same modes whoever deploys: a store's folders and sockets are for other users as well. What is secret has a mode
  // of its own. The CLI has a narrower one, for its logs (tools/discretion.ts).
  process.umask(0o022);
  try {
    await work();
  } catch (error) {
    complain(error instanceof Error ? error.message : String(error));
    process.exitCode = 1;
  }
}

/**
 * Runs the one of a script's actions that its first argument names; any other word lists them.
 *
 * @param command The first argument.
 */
export function runAction(
  command: string | undefined,
  actions: Readonly<Record<string, () => void | Promise<void>>>,
): Promise<void> {
  return runScript(() => {
    const action = ownValue(actions, command ?? "");
    if (action === undefined) throw new Error(`usage: main.ts ${Object.keys(actions).join(" | ")}`);
    return action();
  });
}
