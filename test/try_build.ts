import { withCloudPlugins } from "../tools/setup/cloudPlugins.ts";
import { setUp } from "../tools/setup/index.ts";
const t = Date.now();
const env = await withCloudPlugins((await setUp()).env, ["hcloud"]);
console.log(env["PATH"], Date.now() - t);
