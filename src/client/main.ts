/** The script behind the stack's client directory, run by `command.local.Command`. */
import { dirname } from "node:path";
import { text } from "node:stream/consumers";
import { removeTree } from "../local/folders.ts";
import { isLeftAlone } from "../local/place.ts";
import { requestedGeneration, writeGeneration } from "../local/generation.ts";
import { writeClientDirectory, type ClientFiles } from "./directory.ts";
import { runScript } from "../script.ts";

const [command, directory] = process.argv.slice(2);
await runScript(async () => {
  if (command === "write" && directory !== undefined) {
    writeClientDirectory(directory, JSON.parse(await text(process.stdin)) as ClientFiles);
    writeGeneration(directory, requestedGeneration());
  } else if (command === "remove" && directory !== undefined) {
    if (!isLeftAlone(dirname(directory))) removeTree(directory);
  } else {
    throw new Error("usage: main.ts write | remove DIRECTORY");
  }
});
