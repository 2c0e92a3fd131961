/**
 * How a deployment notices that something it made on this machine is gone or no longer as it was: by the generation in its folder.
 *
 * The program sends the generation that it wants, as an input of the command that makes the thing; the script writes it down when
 * all else is done.
 */
import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";

/** Carries the generation from the program to the script. */
export const generationVariable = "FLEET_GENERATION";

/**
 * The generation that what lies in the folder is to have: the one it has while it is as it should be, a new one otherwise.
 *
 * A new one is the time, in milliseconds since 1970: no state knows it yet, whatever became of the folder.
 */
export function wantedGeneration(directory: string, asItShouldBe: boolean): string {
  const present = asItShouldBe ? presentGeneration(directory) : undefined;
  return present ?? String(Date.now());
}

/** The generation of what lies in the folder; `undefined`: whatever made it did not come to its end. */
export function presentGeneration(directory: string): string | undefined {
  const path = pathOf(directory);
  const text = existsSync(path) ? readFileSync(path, "utf8") : "";
  return text === "" ? undefined : text;
}

/** The generation that the program asked this script for. */
export function requestedGeneration(): string {
  const generation = process.env[generationVariable];
  if (generation === undefined) throw new Error(`${generationVariable} is not set`);
  return generation;
}

/** To be called before anything in the folder changes. */
export function dropGeneration(directory: string): void {
  rmSync(pathOf(directory), { force: true });
}

/** To be called when all is as it should be. */
export function writeGeneration(directory: string, generation: string): void {
  writeFileSync(pathOf(directory), generation);
}

function pathOf(directory: string): string {
  return `${directory}/generation`;
}
