/** The resources and functions of the substitute of the plugin `command`. What needs SSH is loaded at its first use. */
import { plainObject } from "../propertyValue.ts";
import { type Plugin, type ResourceType, changes } from "../serve.ts";
import { commandResource } from "./commandResource.ts";
import { text } from "./execution.ts";
import { INPUT_TYPES, checkInputs, inputNames } from "./inputTypes.ts";
import { runLocally } from "./localCommand.ts";

export const commandPlugin: Plugin = {
  name: "command",
  version: "1.2.1",
  resources: {
    "command:local:Command": commandResource(INPUT_TYPES.localCommand, runLocally),
    "command:remote:Command": commandResource(INPUT_TYPES.remoteCommand, async (...run) => {
      const { runRemotely } = await import("./remoteCommand.ts");
      return runRemotely(...run);
    }),
    "command:remote:CopyToRemote": copyToRemote(),
  },
  functions: {
    "command:local:run": async (args, operation) => {
      const { failures } = checkInputs(INPUT_TYPES.localRun, args);
      const [failure] = failures;
      if (failure) throw new Error(`${failure.property} ${failure.reason}`);
      const inputs = plainObject(args);
      return {
        ...args,
        ...(await runLocally(text(inputs["command"]) ?? "", inputs, { stdout: "", stderr: "" }, operation)),
      };
    },
  },
};

/** Copies when it is made, and again when the source's hash or the path changes; deleting it leaves the files there. */
function copyToRemote(): ResourceType {
  const copy: ResourceType["create"] = async (inputs, operation) => {
    if (operation.preview) return { id: "", state: inputs };
    const { copySource, newId } = await import("./copyToRemote.ts");
    await copySource(plainObject(inputs), operation);
    return { id: newId(), state: inputs };
  };
  return {
    check: (inputs) => checkInputs(INPUT_TYPES.copyToRemote, inputs),
    diff: (state, inputs) =>
      changes(inputNames(INPUT_TYPES.copyToRemote), state, inputs, (name) => name === "triggers"),
    create: copy,
    update: async (state, inputs, operation) => {
      const moved = changes(["source", "remotePath"], plainObject(state), plainObject(inputs), () => false);
      if (moved.length > 0) await copy(inputs, operation);
      return inputs;
    },
    delete: () => Promise.resolve(),
  };
}
