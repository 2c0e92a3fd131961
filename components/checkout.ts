/** How components run this project's own scripts. */
import * as pulumi from "@pulumi/pulumi";
import { stackVariable } from "../src/stackConfig.ts";

/**
 * Arguments that all commands share: nothing of earlier runs in the environment, and standard error alone is logged, whose lines
 * `complain` cuts. The genuine plugin hangs on lines of 64 KiB in what it logs, and on standard output there is data.
 *
 * They run in the project's folder, as plugins do. No `dir`: it would stay in the state, and a checkout that was moved couldn't
 * be destroyed.
 */
export const commandDefaults = { addPreviousOutputInEnv: false, logging: "stderr" } as const;

/**
 * Command text that runs a script of `src` with the Node that runs this program's scripts, the one on PATH.
 *
 * @param script Path below `src`.
 * @param words Arguments that need no quoting: names and paths that the configuration's rules let through.
 */
export function scriptCommand(script: string, ...words: readonly string[]): string {
  for (const word of words) {
    if (!/^[A-Za-z0-9_.+/@:-]+$/.test(word)) {
      throw new pulumi.RunError(
        `${word}: this path or name has a character that can't stand in a command; move the checkout to a path of letters, digits and '_.+-@/'`,
      );
    }
  }
  return ["node", "--disable-warning=ExperimentalWarning", `src/${script}`, ...words].join(" ");
}

/** For the environment of a script that asks a cloud: it reads today's credentials by it, and none stands in a command's inputs. */
export function stackEnvironment(): Record<string, string> {
  const [organization, stack] = [pulumi.getOrganization(), pulumi.getStack()];
  // What backends without organizations call theirs.
  const whole = organization === "organization" ? stack : `${organization}/${pulumi.getProject()}/${stack}`;
  return { [stackVariable]: whole };
}
