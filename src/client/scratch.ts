/** Folders for a moment, beside a client's files. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";

/** A new folder below the stack's, which `destroy` removes, should whoever made it be killed. */
export function scratchFolder(clientDirectory: string, name: string): string {
  return mkdtempSync(`${dirname(clientDirectory)}/${name}-`);
}

/** Has a private key in a file, as ssh takes it, for as long as the work goes on. */
export async function withKeyFile<T>(
  clientDirectory: string,
  privateKey: string,
  work: (keyFile: string) => Promise<T>,
): Promise<T> {
  const scratch = scratchFolder(clientDirectory, "key");
  try {
    writeFileSync(`${scratch}/key`, privateKey, { mode: 0o600 });
    return await work(`${scratch}/key`);
  } finally {
    rmSync(scratch, { recursive: true });
  }
}
