/** Keeps secrets out of what the Pulumi CLI prints, and what it writes from the eyes of other users. */
import { LaunchError } from "./launch.mjs";

/** From 9 on the engine logs every property that it passes on, secrets in clear. */
const mostVerbose = 8;

/** What records everything that the engine and its plugins say to each other, tokens and private keys in clear: options, variables. */
const recorders = {
  options: ["--tracing", "--otel-traces"],
  variables: ["PULUMI_OPTION_TRACING", "PULUMI_OPTION_OTEL_TRACES", "PULUMI_DEBUG_GRPC", "PULUMI_LOG_OTLP_ENDPOINT"],
};

/**
 * The arguments with which the CLI says as much as it can without secrets.
 *
 * @param say called with a sentence where that is less than was asked for.
 * @throws {LaunchError} for an option that can only record everything.
 */
export function discreetArguments(args: readonly string[], say: (sentence: string) => void): string[] {
  for (const option of recorders.options)
    if (args.some((arg) => arg === option || arg.startsWith(`${option}=`))) throw recorder(option);
  if (verbosity(args) <= mostVerbose) return [...args];
  say(capped);
  const end = args.indexOf("--");
  // Of several the last one counts.
  return args.toSpliced(end === -1 ? args.length : end, 0, `--verbose=${mostVerbose}`);
}

/**
 * The environment in which the CLI says as much as it can without secrets.
 *
 * @param say as for {@link discreetArguments}.
 * @throws {LaunchError} for a variable that can only record everything.
 */
export function discreetEnvironment(env: NodeJS.ProcessEnv, say: (sentence: string) => void): NodeJS.ProcessEnv {
  for (const variable of recorders.variables) if (env[variable]) throw recorder(variable);
  if (number(env["PULUMI_OPTION_VERBOSE"]) <= mostVerbose) return env;
  say(capped);
  return { ...env, PULUMI_OPTION_VERBOSE: String(mostVerbose) };
}

/**
 * Starts a program so that what it writes (logs, events, plans, exports, checkpoints) is this user's alone. The scripts behind commands
 * have the usual mask again: `src/script.ts`.
 */
export function privately<T>(start: () => T): T {
  const usual = process.umask(0o077);
  try {
    return start();
  } finally {
    process.umask(usual);
  }
}

const capped = `the CLI logs private keys in clear from -v 9 on: it gets -v ${mostVerbose}`;

function recorder(name: string): LaunchError {
  return new LaunchError(
    `${name} records tokens and private keys in clear, so the CLI isn't called with it here: leave it out, -v ${mostVerbose} logs all but secrets.`,
  );
}

/** What is asked for at most; options that take no value may stand before the v. */
function verbosity(args: readonly string[]): number {
  const end = args.indexOf("--");
  const asked = (end === -1 ? args : args.slice(0, end)).flatMap((arg, index) => {
    const [option, value] = /^(?:-[defijruyQ]*v|--verbose)(?:=?(.+))?$/.exec(arg) ?? [];
    return option === undefined ? [] : [number(value ?? args[index + 1])];
  });
  return Math.max(0, ...asked);
}

/** As Go reads numbers; what is none, the CLI refuses. */
function number(text: string | undefined): number {
  return Number((text ?? "").replaceAll("_", "")) || 0;
}
