/** Runs a command on another machine over SSH. */
import { constants } from "node:os";
import type { Client, ClientChannel } from "ssh2";
import { type Properties, isObject } from "../propertyValue.ts";
import type { Operation } from "../serve.ts";
import { withClient } from "./connection.ts";
import { answerEnvironment } from "./environmentRequests.ts";
import { Capture, type Outputs, previousOutputs, text, textMap } from "./execution.ts";

/**
 * Runs the command by the login shell of the connection's user and waits until it has ended.
 *
 * A variable of `environment` that sshd doesn't accept (`AcceptEnv`) is an error, and the command isn't run; the previous
 * outputs are offered as variables too, but only warned about.
 *
 * @returns stdout and stderr.
 */
export async function runRemotely(
  command: string,
  inputs: Properties,
  previous: Outputs,
  operation: Operation,
): Promise<Properties> {
  const connection = isObject(inputs["connection"]) ? inputs["connection"] : {};
  return withClient(connection, operation, async (client) => {
    const capture = new Capture(inputs, operation);
    const channel = await execute(
      client,
      command,
      textMap(inputs["environment"]),
      previousOutputs(inputs, previous),
      operation,
    );
    const failure = await finished(channel, client, text(inputs["stdin"]) ?? "", capture);
    if (failure !== undefined) throw capture.failure(failure, command);
    return { ...capture.finish() };
  });
}

async function execute(
  client: Client,
  command: string,
  environment: Record<string, string>,
  offered: Record<string, string>,
  operation: Operation,
): Promise<ClientChannel> {
  answerEnvironment(client, (refused) => {
    const severity = Object.hasOwn(environment, refused) ? "error" : "warning";
    operation.log(severity, REFUSED.replace("NAME", refused), { ephemeral: false });
    return severity === "error"
      ? new Error(`could not set environment variable "${refused}": ssh: setenv failed`)
      : undefined;
  });
  return new Promise((resolve, reject) => {
    client.once("error", reject);
    client.once("close", () => {
      reject(new Error("the SSH connection was closed before the command could be started"));
    });
    client.exec(command, { env: { ...environment, ...offered } }, (error, channel) => {
      if (error) reject(error);
      else resolve(channel);
    });
  });
}

const REFUSED =
  "Unable to set 'NAME'. This only works if your SSH server is configured to accept these variables via AcceptEnv. " +
  "Alternatively, if a Bash-like shell runs the command on the remote host, you could prefix the command itself with the " +
  "variables in the form 'VAR=value command'";

/** @returns why it failed, in the words of Go's x/crypto/ssh. */
function finished(
  channel: ClientChannel,
  client: Client,
  stdin: string,
  capture: Capture,
): Promise<string | undefined> {
  let failure: string | undefined = "wait: remote command exited without exit status or exit signal";
  channel.on("data", (chunk: Buffer) => {
    capture.add("stdout", chunk);
  });
  channel.stderr.on("data", (chunk: Buffer) => {
    capture.add("stderr", chunk);
  });
  channel.on("exit", (code: number | null, killedBy = "") => {
    if (code !== null) failure = code === 0 ? undefined : `Process exited with status ${code}`;
    else
      failure = `Process exited with status ${128 + signalNumber(killedBy)} from signal ${killedBy.replace(/^SIG/, "")}`;
  });
  return new Promise((resolve) => {
    channel.on("close", () => {
      resolve(failure);
    });
    client.on("close", () => {
      resolve(failure);
    });
    // A command that ends without reading its input has not failed for that reason.
    channel.on("error", () => undefined);
    channel.end(stdin);
  });
}

/** @param name with "SIG" */
function signalNumber(name: string): number {
  return Object.entries(constants.signals).find(([known]) => known === name)?.[1] ?? 0;
}
