/** The errors for what a person asked for and can't have: a value that can't be used, a form without words for it. */

/**
 * A value that can't stand in the configuration of a builder or a client.
 *
 * `message` is one sentence for the person: the field, the value, what is allowed. `field`, `value` and `allowed` are there
 * for callers that know a better name for the field, for instance the key in `Pulumi.<stack>.yaml`.
 */
export class InvalidValue extends Error {
  override readonly name = "InvalidValue";
  readonly field: string;
  readonly value: unknown;
  readonly allowed: string;

  /**
   * @param field where the value stands, for instance `x86.maxJobs`
   * @param value what was given
   * @param allowed what may stand there, as it reads after "allowed is"
   */
  constructor(field: string, value: unknown, allowed: string) {
    super(`${field} is ${value === undefined ? "missing" : JSON.stringify(value)}, but allowed is ${allowed}.`);
    this.field = field;
    this.value = value;
    this.allowed = allowed;
  }
}

/** Something that one form of client configuration has no words for; `message` names the form to use instead. */
export class NotExpressible extends Error {
  override readonly name = "NotExpressible";
}
