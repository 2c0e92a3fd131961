/** Names of stacks, which become folders of this machine. */

/**
 * Why a stack may not be called so, in words; `undefined`: it may. Pulumi's own rule would take `..`, `.` and `-x`: the one is the folder
 * of all stacks, the other is an option wherever a command names it.
 *
 * @param stack A name, or ORGANIZATION/PROJECT/NAME.
 */
export function stackNameProblem(stack: string): string | undefined {
  const good = stack.split("/").every((part) => /^[A-Za-z0-9_.][A-Za-z0-9_.-]*$/.test(part) && !/^\.+$/.test(part));
  return good
    ? undefined
    : `no stack can be called ${JSON.stringify(stack)}: a name consists of letters, digits, '_', '.' and '-', doesn't begin with '-', and is ` +
        "not made of dots alone; choose another one with --stack, PULUMI_STACK or `npm run pulumi -- stack select`";
}
