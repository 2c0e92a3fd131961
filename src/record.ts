/** Records whose names come from people, files and builders. */

/**
 * What a record itself has by a name: not what every object has, such as `toString` or `constructor`. A lint rule asks for it.
 *
 * @returns `undefined` where it has nothing by that name.
 */
export function ownValue<T>(record: Readonly<Record<string, T>>, name: string): T | undefined {
  return Object.hasOwn(record, name) ? record[name] : undefined;
}
