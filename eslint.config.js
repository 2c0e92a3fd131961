import js from "@eslint/js";
import ts from "typescript";
import tseslint from "typescript-eslint";

/** What a folder may not import, so that data keeps flowing one way: see docs/decisions.md. */
const forbid = (files, groups, message, options = {}) => ({
  files,
  rules: {
    "@typescript-eslint/no-restricted-imports": ["error", { patterns: [{ group: groups, message, ...options }] }],
  },
});

/**
 * `record[name]` with a name that may be any text also finds what every object has, `toString` or `constructor`, and `in` does as well; what is
 * assigned to `__proto__` is nowhere. `ownValue` of src/record.ts, a Map, or Object.fromEntries do not.
 */
const ownProperties = {
  meta: { type: "problem", schema: [] },
  create(context) {
    const services = context.sourceCode.parserServices;
    const checker = services.program.getTypeChecker();
    const isText = (node) => {
      const type = services.getTypeAtLocation(node);
      return (checker.getBaseConstraintOfType(type) ?? type).flags === ts.TypeFlags.String;
    };
    const isRecord = (node) => checker.getIndexInfosOfType(services.getTypeAtLocation(node)).length > 0;
    const message =
      "This finds what every object has, such as `toString`, too: use ownValue() of src/record.ts, or a Map.";
    return {
      MemberExpression(node) {
        if (node.computed && isText(node.property) && !isEnvironment(services.getTypeAtLocation(node.object)))
          context.report({ node, message });
      },
      BinaryExpression(node) {
        if (node.operator === "in" && (isText(node.left) || (node.left.type !== "Literal" && isRecord(node.right))))
          context.report({ node, message });
      },
    };
  },
};

/** Variables' names are the program's own. */
const isEnvironment = (type) => type.symbol?.name === "ProcessEnv";

export default tseslint.config(
  { ignores: ["node_modules", ".fleet"] },
  js.configs.recommended,
  {
    files: ["**/*.ts"],
    extends: [tseslint.configs.strictTypeChecked],
    languageOptions: { parserOptions: { projectService: true } },
    plugins: { fleet: { rules: { "own-properties": ownProperties } } },
    rules: {
      "fleet/own-properties": "error",
      "@typescript-eslint/restrict-template-expressions": ["error", { allowNumber: true }],
      "@typescript-eslint/no-unnecessary-condition": [
        "error",
        { allowConstantLoopConditions: "only-allowed-literals" },
      ],
    },
  },
  { files: ["test/**/*.ts", "src/record.ts"], rules: { "fleet/own-properties": "off" } },
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
      "src/cli/{bake,explain,log,nix,remoteStore,stack,takeBack}.ts",
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
