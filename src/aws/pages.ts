/** Lists that the EC2 API hands out in pieces, and names that it does not know. */

/** All items of all pages. */
export async function pages<T>(
  ask: (token: string | undefined) => Promise<{ items: T[] | undefined; next: string | undefined }>,
): Promise<T[]> {
  const all: T[] = [];
  let token: string | undefined;
  do {
    const { items, next } = await ask(token);
    all.push(...(items ?? []));
    token = next === "" ? undefined : next;
  } while (token !== undefined);
  return all;
}

/** Whether an error says that something with this id doesn't exist. */
export function isMissing(error: unknown): boolean {
  return error instanceof Error && /\.NotFound$|\.Unknown$|\.Malformed$|^InvalidAMIID/.test(error.name);
}
