# This machine as a client of a fleet, from the stack's own output: `pulumi stack output builders --json > fleet.json`.
# For NixOS and nix-darwin alike. It configures what the form `nixosModule` writes out; the tests hold the two against each other.
{ config, lib, ... }:
let
  inherit (lib) mkIf mkOption mkOverride types;
  cfg = config.nix.builderFleet;

  fleet = checkedFleet (builtins.fromJSON (builtins.readFile cfg.file));
  withoutLocalSystems = machine: machine // { systems = builtins.filter (s: !(builtins.elem s cfg.localSystems)) machine.systems; };
  builders =
    {
      offline = [ ];
      local-first = builtins.filter (machine: machine.systems != [ ]) (map withoutLocalSystems fleet);
    }
    .${toString cfg.profile} or fleet;
  # Weaker than what a person sets, stronger than the mkDefault of hardware configurations that older NixOS generated.
  yielding = mkOverride 900;
  maxJobs = {
    remote-only = 0;
    balanced = "auto";
    local-first = "auto";
    offline = "auto";
  };

  # The file's strings go unquoted into ssh_config and Nix's list of builders, where a space or line end would start something else.
  # It takes what the program writes and nothing else. The rules are those of src/nix/buildMachine.ts and src/ssh/hostKey.ts; the tests
  # hold the two against each other, value by value.
  refuse = field: value: allowed: throw "nix.builderFleet.file: ${field} is ${builtins.toJSON value}, but allowed is ${allowed}.";
  matches = pattern: most: value: builtins.isString value && builtins.stringLength value <= most && builtins.match pattern value != null;
  unique = list: builtins.length (builtins.attrNames (namesOf list)) == builtins.length list;
  namesOf =
    list:
    builtins.listToAttrs (
      map (name: {
        inherit name;
        value = true;
      }) list
    );

  checkedFleet =
    machines:
    let
      all = if builtins.isList machines then map checked machines else refuse "the whole" machines "a list of builders";
      aliases = map (machine: machine.alias) all;
      others = machine: builtins.filter (alias: alias != machine.alias) aliases;
      ambiguous = builtins.filter (machine: builtins.elem machine.hostName (others machine)) all;
    in
    builtins.deepSeq all (
      # A name that meant two builders would let either one's host key pass for the other's.
      if !(unique aliases) then
        refuse "alias" aliases "a name that no other builder has"
      else if ambiguous != [ ] then
        refuse "hostName" (builtins.head ambiguous).hostName "an address that isn't the alias of another builder"
      else
        all
    );

  checked =
    machine:
    let
      unknown = builtins.attrNames (builtins.removeAttrs machine (builtins.attrNames rules));
      missing = builtins.filter (field: !(machine ? ${field}) && !(builtins.elem field [ "sshKey" "trust" ])) (builtins.attrNames rules);
      values = builtins.mapAttrs check machine;
      check = field: value: if rules.${field}.holds value then value else refuse field value rules.${field}.allowed;
    in
    if !(builtins.isAttrs machine) then
      refuse "a builder" machine "an object"
    else if unknown != [ ] then
      refuse (builtins.head unknown) "there" "only what this module knows; it may be older than the program that wrote the file"
    else if missing != [ ] then
      refuse (builtins.head missing) null rules.${builtins.head missing}.allowed
    else if builtins.any (feature: builtins.elem feature values.mandatoryFeatures) values.supportedFeatures then
      refuse "supportedFeatures" machine.supportedFeatures "what isn't mandatory"
    else
      values;

  rules =
    let
      whole = most: {
        holds = value: builtins.isInt value && value >= 1 && value <= most;
        allowed = "a whole number from 1 to ${toString most}";
      };
      list = allowed: holds: {
        inherit allowed;
        holds = value: builtins.isList value && builtins.all holds value && unique value;
      };
      features = list "a list of different words" (matches "[A-Za-z0-9][A-Za-z0-9._+:-]*" 100);
      system = matches "[A-Za-z0-9_]+(-[A-Za-z0-9_]+)+" 100;
    in
    {
      alias = {
        # Nix runs a builder called `localhost` without ssh.
        holds = value: matches "[a-z]([a-z0-9-]*[a-z0-9])?" 63 value && value != "localhost";
        allowed = "up to 63 lower-case letters, digits and hyphens, with a letter first, no hyphen last, and not localhost";
      };
      hostName = {
        holds = value: builtins.isString value && (isIPv4 value || isDnsName value || isIPv6 value);
        allowed = "a DNS name in lower case, an IPv4 address, or an IPv6 address without brackets and zone";
      };
      port = whole 65535;
      protocol = {
        holds = value: value == "ssh" || value == "ssh-ng";
        allowed = "ssh-ng or ssh";
      };
      systems = list "Nix systems" system // {
        holds = value: (list "" system).holds value && value != [ ];
      };
      sshUser = {
        holds = matches "[A-Za-z_][A-Za-z0-9_.-]*" 32;
        allowed = "a user name of at most 32 letters, digits and _ . - that starts with a letter or _";
      };
      # What it takes from this client: nothing here depends on it.
      trust = {
        holds = value: builtins.elem value [ "none" "signed" "full" ];
        allowed = "one of none, signed, full";
      };
      sshKey = {
        holds = isPath;
        allowed = pathAllowed;
      };
      maxJobs = whole 2147483647;
      speedFactor = whole 2147483647;
      supportedFeatures = features;
      mandatoryFeatures = features;
      publicHostKey = {
        holds = value: builtins.isString value && hostKeyOf value != null;
        allowed = "the base64 of one whole OpenSSH public host key line";
      };
    };

  isIPv4 = matches "(${octet}[.]){3}${octet}" 15;
  octet = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])";
  isDnsName =
    value:
    let
      labels = split "[.]" value;
    in
    builtins.stringLength value <= 253
    && builtins.all (matches "[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?" 63) labels
    && builtins.match "[0-9]+" (last labels) == null;
  isIPv6 =
    value:
    let
      halves = split "::" value;
      groups = half: if half == "" then [ ] else split ":" half;
      all = builtins.concatLists (map groups halves);
      isGroup = matches "0|[1-9a-f][0-9a-f]{0,3}" 4;
      dotted = all != [ ] && isIPv4 (last all);
      plain = if dotted then builtins.genList (builtins.elemAt all) (builtins.length all - 1) else all;
      count = builtins.length plain + (if dotted then 2 else 0);
    in
    builtins.stringLength value <= 45
    && builtins.match ".*:::.*" value == null
    && builtins.all isGroup plain
    # An IPv4 address stands at the very end.
    && (!dotted || last halves != "")
    && (if builtins.length halves == 1 then count == 8 else builtins.length halves == 2 && count <= 7);
  split = separator: text: builtins.filter builtins.isString (builtins.split separator text);
  last = list: builtins.elemAt list (builtins.length list - 1);

  # Letters of any alphabet are plain, which Nix can't tell from other characters beyond ASCII: it refuses the blank and invisible ones.
  isPath = value: matches "/[^][:space:][:cntrl:]!\"#$%&'()*;<>?\\^`{|}~[]*" 1024 value && builtins.replaceStrings invisible (map (_: "") invisible) value == value;
  pathAllowed = "an absolute path of letters, digits and / . _ + @ : = , -";
  invisible =
    let
      hex = digits: builtins.concatLists (map (a: map (b: a + b) (split "," "0,1,2,3,4,5,6,7,8,9,a,b,c,d,e,f")) digits);
      points = builtins.concatLists [
        (map (low: "00" + low) (hex [ "8" "9" ] ++ [ "a0" "ad" ]))
        (map (low: "20" + low) (hex [ "0" "1" "2" "3" "4" "5" "6" ]))
        [ "061c" "1680" "180e" "2800" "3000" "feff" "fff9" "fffa" "fffb" "fffc" "fffd" ]
      ];
    in
    map (point: builtins.fromJSON "\"\\u${point}\"") points;

  buildMachine = machine: {
    hostName = machine.alias;
    inherit (machine)
      protocol
      systems
      sshUser
      maxJobs
      speedFactor
      supportedFeatures
      mandatoryFeatures
      publicHostKey
      ;
    sshKey = keyOf machine;
  };
  keyOf = machine: machine.sshKey or sshKey;
  sshKey = if isPath cfg.sshKey then cfg.sshKey else throw "nix.builderFleet.sshKey is ${builtins.toJSON cfg.sshKey}, but allowed is ${pathAllowed}.";

  # By the alias alone, under which ssh looks it up (HostKeyAlias): the address may be somebody else's to all other programs here.
  knownHost = machine: {
    name = machine.alias;
    value = {
      hostNames = [ machine.alias ];
      publicKey = hostKeyOf machine.publicHostKey;
    };
  };

  # Why each line: src/ssh/sshConfig.ts.
  sshHost =
    machine:
    let
      loopback = builtins.match "127[.].*|::1|::ffff:127[.].*|(.*[.])?localhost" machine.hostName != null;
    in
    ''
      Host ${machine.alias}
        HostName ${machine.hostName}
        Port ${toString machine.port}
        User ${machine.sshUser}
        IdentityFile ${keyOf machine}
        IdentitiesOnly yes
        PreferredAuthentications publickey
        BatchMode yes
        ${if loopback then "KexAlgorithms curve25519-sha256\n  " else ""}StrictHostKeyChecking yes
        HostKeyAlias ${machine.alias}
        UserKnownHostsFile /dev/null
        UpdateHostKeys no
        CheckHostIP no
        ForwardAgent no
        ConnectTimeout 10
        ServerAliveInterval 15
        ServerAliveCountMax 4
    ''
    + (
      if machine.maxJobs >= cfg.maxSessions then
        ""
      else
        ''
          Match originalhost ${machine.alias} exec "test -O '%d' && mkdir -p -m 700 '%d/.ssh' && test -O '%d/.ssh'"
            ControlMaster auto
            ControlPath ~/.ssh/nix-%i-${socketId machine}
            ControlPersist 60
        ''
    );
  socketId =
    machine:
    builtins.substring 0 8 (
      builtins.hashString "sha256" (
        builtins.toJSON [
          machine.alias
          machine.hostName
          machine.port
          machine.sshUser
          machine.publicHostKey
        ]
      )
    );

  # The host key line in the base64 of a builder's `publicHostKey`; null: it isn't that, whole, alone and in its shortest form.
  hostKeyOf =
    text:
    let
      line = asciiOf (bytesOf text);
      parts = builtins.match "(ssh-ed25519|ecdsa-sha2-nistp256|ecdsa-sha2-nistp384|ecdsa-sha2-nistp521|ssh-rsa) ([A-Za-z0-9+/]+=*)" line;
      type = builtins.elemAt parts 0;
      key = bytesOf (builtins.elemAt parts 1);
      number = at: builtins.foldl' (sum: i: sum * 256 + builtins.elemAt key (at + i)) 0 [ 0 1 2 3 ];
      size = builtins.stringLength type;
      end = 4 + size;
      length = builtins.length key;
    in
    if
      bytesOf text != null
      && line != null
      && parts != null
      && key != null
      && length > end
      && number 0 == size
      && asciiOf (builtins.genList (i: builtins.elemAt key (4 + i)) size) == type
      && (type != "ssh-ed25519" || (length == end + 36 && number end == 32))
    then
      line
    else
      null;

  # Bytes as printable ASCII; null: they aren't.
  asciiOf =
    bytes:
    let
      printable = builtins.fromJSON (
        "["
        + builtins.concatStringsSep "," (
          builtins.genList (i: "\"\\u00${hex ((i + 32) / 16)}${hex (i + 32 - (i + 32) / 16 * 16)}\"") 95
        )
        + "]"
      );
      hex = digit: builtins.substring digit 1 "0123456789abcdef";
    in
    if bytes != null && builtins.all (byte: byte >= 32 && byte <= 126) bytes then
      builtins.concatStringsSep "" (map (byte: builtins.elemAt printable (byte - 32)) bytes)
    else
      null;

  # Base64 → bytes; null: it isn't what these bytes are encoded to. Nix has no function for it.
  bytesOf =
    text:
    let
      length = builtins.stringLength text;
      padding = if builtins.substring (length - 2) 2 text == "==" then 2 else if builtins.substring (length - 1) 1 text == "=" then 1 else 0;
      at = i: digits.${builtins.substring i 1 text} or 0;
      byte =
        i:
        let
          group = i / 3 * 4;
          bits = ((at group * 64 + at (group + 1)) * 64 + at (group + 2)) * 64 + at (group + 3);
          shifted = bits / builtins.elemAt [ 65536 256 1 ] (i - i / 3 * 3);
        in
        shifted - shifted / 256 * 256;
      count = length / 4 * 3 - padding;
      # What the padding cuts off has to be zero.
      rest = map byte (builtins.genList (i: count + i) padding);
    in
    if matches "[A-Za-z0-9+/]+={0,2}" 8192 text && length / 4 * 4 == length && builtins.all (b: b == 0) rest then
      builtins.genList byte count
    else
      null;
  digits = builtins.listToAttrs (
    builtins.genList (i: {
      name = builtins.substring i 1 "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
      value = i;
    }) 64
  );
in
{
  options.nix.builderFleet = {
    file = mkOption {
      type = types.nullOr types.path;
      default = null;
      description = "The stack's output `builders` as a JSON file. It holds no secrets. `null`: no fleet.";
    };
    sshKey = mkOption {
      type = types.str;
      default = "/etc/nix/fleet/id_ed25519";
      description = "Path of the client's private key on this machine, readable by root only and outside of the Nix store.";
    };
    signingKey = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "/etc/nix/fleet/signing-key";
      description = "Path of the key with which this machine signs what it builds, for a client at `trust: signed`. `null`: it signs nothing.";
    };
    profile = mkOption {
      type = types.nullOr (types.enum [ "remote-only" "balanced" "local-first" "offline" ]);
      default = null;
      description = "What this machine leaves to the fleet: see docs/clients.md. `null`: its own `max-jobs` stays as it is.";
    };
    caches = mkOption {
      type = types.listOf (types.attrsOf types.str);
      default = [ ];
      example = [
        {
          url = "https://nix-community.cachix.org";
          publicKey = "nix-community.cachix.org-1:mB9FSh9qf2dCimDSUo8Zy7bkq5CX+/rkCWyvRCYg3Fs=";
        }
      ];
      description = "Binary caches beside the fleet, as `caches` in the stack's output `clientSettings` lists them.";
    };
    localSystems = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "x86_64-linux" ];
      description = "Systems that this machine builds for itself under the profile `local-first`.";
    };
    maxSessions = mkOption {
      type = types.int;
      default = 10;
      description = "`MaxSessions` of the builders' sshd. Builders with fewer maxJobs share one connection.";
    };
  };

  config = mkIf (cfg.file != null) {
    # Only ever switched on: a person's own builders stay in use without those of the fleet.
    nix.distributedBuilds = mkIf (builders != [ ]) (yielding true);
    nix.settings = {
      builders-use-substitutes = yielding true;
    }
    // (if cfg.profile == null then { } else { max-jobs = yielding maxJobs.${cfg.profile}; })
    // (if cfg.signingKey == null then { } else { extra-secret-key-files = [ cfg.signingKey ]; })
    // (
      if cfg.caches == [ ] then
        { }
      else
        {
          extra-substituters = map (cache: cache.url) cfg.caches;
          extra-trusted-public-keys = map (cache: cache.publicKey) cfg.caches;
        }
    );
    nix.buildMachines =
      if cfg.profile == "local-first" && cfg.localSystems == [ ] then
        throw "nix.builderFleet.profile is local-first, which needs nix.builderFleet.localSystems."
      else
        map buildMachine builders;
    programs.ssh.knownHosts = builtins.listToAttrs (map knownHost fleet);
    # First, because ssh takes the first value that it finds. The last line ends the last block for what others add.
    programs.ssh.extraConfig = lib.mkBefore (builtins.concatStringsSep "\n" (map sshHost fleet) + "\nHost *\n");
    # An older nix-darwin doesn't have the option.
    warnings = lib.optional (
      !(config.nix.enable or true)
    ) "nix-builder-fleet: nix.enable is false, so that nothing here tells Nix of the fleet; use the plain files, as docs/clients.md says for any Linux or macOS.";
  };
}
