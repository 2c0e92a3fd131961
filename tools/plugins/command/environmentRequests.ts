/**
 * Learns whether the server accepts the environment of a command. ssh2 sends `env` requests without asking for an answer
 * (lib/client.js, `reqEnv`), so a refused variable would be missing without a word. This reaches into ssh2's private
 * protocol object; ssh2 is pinned to an exact version, and a test fails if the members are renamed.
 */
import type { Client } from "ssh2";

/**
 * Applies to the first command that the client executes: its `env` requests ask for an answer, and it is sent only when
 * all of them are answered.
 *
 * @param onRefused called for each variable that the server doesn't accept; a returned error ends the connection, so that
 *   the command doesn't run.
 */
export function answerEnvironment(client: Client, onRefused: (name: string) => Error | undefined): void {
  const protocol = protocolOf(client);
  const { env, exec, _handlers: handlers } = protocol;
  const { CHANNEL_SUCCESS: succeeded, CHANNEL_FAILURE: failed } = handlers;
  const awaited: string[] = [];
  let send: (() => void) | undefined;

  protocol.env = (channel, name, value) => {
    awaited.push(name);
    env.call(protocol, channel, name, value, true);
  };
  protocol.exec = (...request) => {
    send = () => {
      send = undefined;
      exec.apply(protocol, request);
    };
    if (awaited.length === 0) send();
  };
  const answered = (refused: boolean, otherwise: Handler): Handler => {
    return (...answer) => {
      const name = awaited.shift();
      if (name === undefined) {
        otherwise(...answer);
        return;
      }
      const error = refused ? onRefused(name) : undefined;
      if (error) {
        client.emit("error", error);
        client.destroy();
      } else if (awaited.length === 0) send?.();
    };
  };
  handlers.CHANNEL_SUCCESS = answered(false, succeeded);
  handlers.CHANNEL_FAILURE = answered(true, failed);
}

type Handler = (...answer: unknown[]) => void;

interface Protocol {
  env: (channel: number, name: string, value: string, wantReply: boolean) => void;
  exec: (...request: unknown[]) => void;
  _handlers: { CHANNEL_SUCCESS: Handler; CHANNEL_FAILURE: Handler };
}

function protocolOf(client: Client): Protocol {
  const protocol: unknown = Reflect.get(client, "_protocol");
  if (isProtocol(protocol)) return protocol;
  throw new Error(
    "This version of the npm package ssh2 isn't the one that the substitute of the plugin command was written for.",
  );
}

function isProtocol(value: unknown): value is Protocol {
  if (typeof value !== "object" || value === null) return false;
  const handlers: unknown = Reflect.get(value, "_handlers");
  return (
    ["env", "exec"].every((name) => typeof Reflect.get(value, name) === "function") &&
    typeof handlers === "object" &&
    handlers !== null &&
    ["CHANNEL_SUCCESS", "CHANNEL_FAILURE"].every((name) => typeof Reflect.get(handlers, name) === "function")
  );
}
