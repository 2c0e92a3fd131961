#!/usr/bin/env node
/** What `npx fleet` calls: runs the commands of src/cli, on a machine that may lack the packages or a new enough Node. */
import { fail, launch } from "./launch.mjs";

launch("src/cli/main.ts", process.argv.slice(2)).catch(fail);
