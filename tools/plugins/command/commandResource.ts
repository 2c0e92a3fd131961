/** The life cycle that local and remote commands share: which command runs when, and what the state holds afterwards. */
import { randomBytes } from "node:crypto";
import { type Properties, UNKNOWN, plainObject } from "../propertyValue.ts";
import { type ResourceType, changes } from "../serve.ts";
import { type Outputs, type Run, text } from "./execution.ts";
import { type InputTypes, checkInputs, inputNames } from "./inputTypes.ts";

/**
 * A resource that runs `create` when it is made, `update` (or `create` where there is none) when an input changes, and
 * `delete` when it goes. A change of `triggers` replaces it. In a preview nothing runs, and the outputs are unknown.
 * The state is the inputs, with their marks of secrecy, and the outputs; stdout and stderr are not secret on account of a
 * secret input. All as pulumi-command 1.2.1 (`provider/pkg/provider/{local,remote}/commandController.go`).
 */
export function commandResource(types: InputTypes, run: Run): ResourceType {
  const names = inputNames(types);
  return {
    check: (inputs) => checkInputs(types, inputs),
    diff: (state, inputs) => changes(names, state, inputs, (name) => name === "triggers"),
    create: async (inputs, operation) => {
      const id = `${operation.name}${randomBytes(4).toString("hex")}`;
      if (operation.preview) return { id, state: { ...inputs, stdout: UNKNOWN, stderr: UNKNOWN } };
      const none = { stdout: "", stderr: "" };
      const values = plainObject(inputs);
      const command = text(values["create"]);
      return {
        id,
        state: { ...inputs, ...none, ...(command !== undefined && (await run(command, values, none, operation))) },
      };
    },
    update: async (state, inputs, operation) => {
      const outputs = outputsOf(state, names);
      if (operation.preview) {
        return { ...inputs, ...Object.fromEntries(Object.keys(outputs).map((name) => [name, UNKNOWN])) };
      }
      const values = plainObject(inputs);
      const command = text(values["update"]) ?? text(values["create"]);
      const ran = command !== undefined && (await run(command, values, previous(state), operation));
      return { ...inputs, ...outputs, ...ran };
    },
    delete: async (state, operation) => {
      const values = plainObject(state);
      const command = text(values["delete"]);
      if (command !== undefined) await run(command, values, previous(state), operation);
    },
  };
}

/** Everything in the state that no input put there. */
function outputsOf(state: Properties, inputs: readonly string[]): Properties {
  const outputs = Object.entries(state).filter(([name]) => !inputs.includes(name) && !name.startsWith("__"));
  return { stdout: "", stderr: "", ...Object.fromEntries(outputs) };
}

function previous(state: Properties): Outputs {
  const { stdout, stderr } = plainObject(state);
  return { stdout: text(stdout) ?? "", stderr: text(stderr) ?? "" };
}
