/**
 * The steps of the workflow as shell scripts: which builds there are, build them, say what happened.
 *
 * They take their input from the environment (FLEET_DIR, FLAKE, FILTER, SYSTEMS, NIX_CONFIG) and never from text that GitHub would put into them,
 * so nothing that someone names a branch or a derivation is ever run. They need bash, jq and Nix 2.8 or newer.
 */

/**
 * Takes what follows in a step's output for text: GitHub runs lines such as `::add-mask::…`, and what is evaluated or built here may
 * print any. The word that ends this is known to nobody else, and one stream keeps the order.
 */
const noCommands = `exec 2>&1
word=$(od -An -N16 -tx1 /dev/urandom | tr -dc 0-9a-f)
echo "::stop-commands::$word"
trap 'echo "::$word::"' EXIT
`;

/**
 * Writes `$FLEET_DIR/builds.json`: `[{ top_attr, system, attr, name, out, drv, output }]`, for the systems of the fleet.
 *
 * Evaluates purely, while there is no key and nothing can be built: all of a flake is its author's, and so are its inputs. A lock file
 * has to be complete, as an input that isn't locked could be any folder of the runner.
 */
export const evaluateScript = `${noCommands}export NIX_CONFIG="$NIX_CONFIG
allow-import-from-derivation = false
builders =
\${GITHUB_TOKEN:+extra-access-tokens = github.com=$GITHUB_TOKEN}"
url=$(nix flake metadata --json --no-update-lock-file "$FLAKE" | jq '.url | @json | gsub("[$]"; "\\\\$")' --raw-output)
nix eval --json --no-update-lock-file --expr "
  let
    flake = builtins.getFlake $url;
    systems = builtins.filter builtins.isString (builtins.split \\" \\" \\"$SYSTEMS\\");
    under = set: names: builtins.concatMap (name: if set ? \\\${name} then [ { inherit name; value = set.\\\${name}; } ] else [ ]) names;
  in
  builtins.concatMap (top:
    builtins.concatMap (system:
      map (attr: let this = system.value.\\\${attr}; in {
        top_attr = top.name; system = system.name; inherit attr; inherit (this) name;
        out = this.outPath; drv = this.drvPath; output = this.outputName;
      }) (builtins.attrNames system.value))
      (under top.value systems))
    (under flake [ \\"packages\\" \\"checks\\" ])
" | jq --compact-output "map(select($FILTER))" >"$FLEET_DIR/builds.json"
jq -r '
  def shown: if test("\\\\A[A-Za-z0-9_+.-]+\\\\z") then . else @json end;
  def is(expression): type == "string" and test("\\\\A" + expression + "\\\\z");
  "\\(length) builds:", (.[] | "\\(.top_attr).\\(.system).\\(.attr | shown)" as $named
    | if (.drv | is("/nix/store/[a-z0-9]{32}-[A-Za-z0-9+._?=-]+[.]drv")) and (.output | is("[A-Za-z0-9+._?=-]+")) then "  " + $named
      else error("\\($named) is no derivation") end)
' "$FLEET_DIR/builds.json"
`;

/**
 * Builds them all, whatever fails, and keeps Nix's own account with the time of each line in `$FLEET_DIR/log.json`.
 *
 * Nothing is evaluated any more: what the derivations are is decided.
 */
export const buildScript = `${noCommands}mapfile -t derivations < <(jq -r '.[] | "\\(.drv)!\\(.output)"' "$FLEET_DIR/builds.json" | sort --unique)
if [ "\${#derivations[@]}" = 0 ]; then
  echo "The filter leaves nothing to build."
  exit 0
fi
status=0
nix-store --realise --no-gc-warning --keep-going --log-format internal-json "\${derivations[@]}" 2> >(
  jq --raw-input --compact-output --unbuffered 'select(startswith("@nix ")) | .[5:] | fromjson? | . + { time: now }' |
    tee "$FLEET_DIR/log.json" |
    jq --raw-output --unbuffered 'if .action == "msg" and .level <= 1 then .msg
      elif .action == "start" and .type == 105 then .text
      elif .action == "result" and .type == 101 then "  " + .fields[0]
      else empty end'
) >/dev/null || status=$?
wait
exit "$status"
`;

/** A Markdown table of what was built where, how long it took, and what came from caches, in the job's summary. */
export const summaryScript = `[ -s "$FLEET_DIR/builds.json" ] || exit 0
touch "$FLEET_DIR/log.json"
jq --raw-output --slurp --slurpfile wanted "$FLEET_DIR/builds.json" '
  def base: split("/") | last;
  def seconds: . * 10 | round / 10 | tostring + " s";
  def cell: gsub("[|\`<>\\n]"; " ");
  (map(select(.action == "stop") | { (.id | tostring): .time }) | add // {}) as $stops
  | map(select(.action == "start")) as $starts
  | [ $starts[] | select(.type == 105) | {
      drv: (.fields[0] | base),
      on: (.fields[1] // "" | if . == "" then "this runner" else sub("^.*@"; "") end),
      took: (($stops[.id | tostring] // .time) - .time) } ] as $all
  # A builder tells of its builds as well, as of builds of its own.
  | [ $all[] | select(.on != "this runner") | .drv ] as $remote
  | [ $all[] | select(.on != "this runner" or (.drv | IN($remote[]) | not)) ] as $built
  | [ $starts[] | select(.type == 108) | { path: (.fields[0] | base), from: .fields[1] } ] as $substituted
  | "## Built on the fleet",
    "",
    "| derivation | built on | took |",
    "| --- | --- | --- |",
    ($built[] | "| \\(.drv | cell) | \\(.on | cell) | \\(.took | seconds) |"),
    "",
    "\\($wanted[0] | length) wanted, \\($built | length) built, \\($substituted | length) substituted.",
    (if $substituted == [] then empty else
      "", "| substituted | from |", "| --- | --- |", ($substituted[] | "| \\(.path | cell) | \\(.from | cell) |") end)
' "$FLEET_DIR/log.json" >>"$GITHUB_STEP_SUMMARY"
`;
