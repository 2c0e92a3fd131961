/**
 * A substitute of the Pulumi plugin `tls` 5.6.1, for machines where the genuine one can't be had. Started by the engine
 * through a launcher on the PATH named `pulumi-resource-tls`: see ../README.md.
 */
import { enableCompileCache } from "node:module";

enableCompileCache();

const { serve } = await import("../serve.ts");
const { tlsPlugin } = await import("./plugin.ts");
await serve(tlsPlugin, process.argv.slice(2));
