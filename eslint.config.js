import js from "@eslint/js";
import tseslint from "typescript-eslint";

/** What a folder may not import, so that data keeps flowing one way: see docs/decisions.md. */
const forbid = (files, groups, message, options = {}) => ({
  files,
  rules: {
    "@typescript-eslint/no-restricted-imports": ["error", { patterns: [{ group: groups, message, ...options }] }],
  },
});

export default tseslint.config(
  { ignores: ["node_modules", ".fleet"] },
  js.configs.recommended,
  {
    files: ["**/*.ts"],
    extends: [tseslint.configs.strictTypeChecked],
    languageOptions: { parserOptions: { projectService: true } },
    rules: {
      "@typescript-eslint/restrict-template-expressions": ["error", { allowNumber: true }],
      "@typescript-eslint/no-unnecessary-condition": [
        "error",
        { allowConstantLoopConditions: "only-allowed-literals" },
      ],
    },
  },
  {
    // What this program prints goes through one place, which makes it fit for a terminal.
    files: ["src/**/*.ts", "components/**/*.ts"],
    ignores: ["src/terminal.ts"],
    rules: { "no-console": "error" },
  },
  {
    // What a machine has a say in is run with limits. Those that are left out hand the terminal over, or run what is this machine's own.
    files: ["src/**/*.ts"],
    ignores: [
      "src/cli/{bake,explain,nix,remoteStore,stack,takeBack}.ts",
      "src/client/settings.ts",
      "src/doctor/client.ts",
    ],
    rules: {
      "no-restricted-imports": [
        "error",
        {
          paths: [
            { name: "execa", message: "runProgram (src/process.ts) limits time and bytes, and makes text plain." },
          ],
        },
      ],
    },
  },
  {
    files: ["**/*.js", "**/*.mjs"],
    languageOptions: {
      globals: { process: "readonly", console: "readonly", URL: "readonly", fetch: "readonly", setTimeout: "readonly" },
    },
  },
  {
    // Read by whatever Node the machine has: see the first lines of tools/launch.mjs.
    files: ["tools/*.mjs"],
    languageOptions: { ecmaVersion: 2020 },
    rules: {
      "no-restricted-syntax": [
        "error",
        { selector: "ChainExpression, LogicalExpression[operator='??']", message: "Node 12.22 can't read it." },
      ],
    },
  },
  forbid(
    ["src/nix/**/*.ts", "src/ssh/**/*.ts", "src/bootstrap/**/*.ts", "src/ci/**/*.ts"],
    ["@pulumi/*", "**/components/**", "**/cli/**"],
    "The pure folders take and return plain data.",
  ),
  forbid(
    ["src/cli/**/*.ts"],
    ["@pulumi/*", "**/components/**"],
    "The CLI works on the stack's outputs, not on components.",
  ),
  forbid(
    ["components/**/*.ts"],
    ["@pulumi/aws", "@pulumi/aws/**", "@pulumi/hcloud", "@pulumi/hcloud/**", "**/config.ts", "**/cli/**"],
    "Only machines/aws.ts and machines/hcloud.ts import their provider; no component reads configuration.",
    { allowTypeImports: true },
  ),
  {
    files: ["components/machines/aws.ts", "components/machines/hcloud.ts"],
    rules: { "@typescript-eslint/no-restricted-imports": "off" },
  },
);
