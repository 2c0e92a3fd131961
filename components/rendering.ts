/** How text is rendered of what is known only when machines exist. */
import * as pulumi from "@pulumi/pulumi";
import { InvalidValue } from "../src/nix/invalidValue.ts";

/**
 * What `render` returns.
 *
 * @throws pulumi.RunError for a value that can't be used: the program ends in that one sentence, without a stack trace.
 */
export function rendering<T>(render: () => T): T {
  try {
    return render();
  } catch (error) {
    if (error instanceof InvalidValue) throw new pulumi.RunError(error.message);
    throw error;
  }
}
