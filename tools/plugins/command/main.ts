/**
 * A substitute of the Pulumi plugin `command` 1.2.1, for machines where the genuine one can't be had. Started by the engine
 * through a launcher on the PATH named `pulumi-resource-command`: see ../README.md.
 */
import { enableCompileCache } from "node:module";

enableCompileCache();

const { serve } = await import("../serve.ts");
const { commandPlugin } = await import("./plugin.ts");
await serve(commandPlugin, process.argv.slice(2));
