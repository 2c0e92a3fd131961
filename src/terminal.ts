/**
 * The one place where this program prints. A lint rule keeps `console` out of all other files of `src` and `components`, so that no
 * text of a machine reaches a terminal as it came.
 */
import { cutLines, plainJson, plainText } from "./machineText.ts";

/** Prints on standard output. */
export function say(text: string): void {
  console.log(plainText(text));
}

/**
 * Prints on standard error: progress, and what went wrong. Lines that are very long are cut: the genuine plugin `command` hangs where a
 * script prints one of 64 KiB.
 */
export function complain(text: string): void {
  console.error(cutLines(plainText(text)));
}

/**
 * Prints data on standard output.
 *
 * @param indentation Spaces; 0: all in one line. Default: 2.
 */
export function sayJson(value: unknown, indentation = 2): void {
  console.log(plainJson(value, indentation));
}
