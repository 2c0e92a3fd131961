# This machine as a client of a fleet, from the stack's own output: `pulumi stack output builders --json > fleet.json`.
# For NixOS and nix-darwin alike. It configures what the form `nixosModule` writes out; the tests hold the two against each other.
{ config, lib, ... }:
let
  inherit (lib) mkIf mkOption mkOverride types;
  cfg = config.nix.builderFleet;

  fleet = map checked (builtins.fromJSON (builtins.readFile cfg.file));
  withoutLocalSystems = machine: machine // { systems = builtins.filter (s: !(builtins.elem s cfg.localSystems)) machine.systems; };
  builders =
    {
      offline = [ ];
      local-first = builtins.filter (machine: machine.systems != [ ]) (map withoutLocalSystems fleet);
    }
    .${toString cfg.profile} or fleet;
  maxJobs = {
    remote-only = 0;
    balanced = "auto";
    local-first = "auto";
    offline = "auto";
  };

  # The file's strings go unquoted into ssh_config and Nix's list of builders, where a space or line end would start something else.
  # What is allowed: src/nix/buildMachine.ts.
  checked =
    machine:
    let
      check =
        field: pattern: value:
        if builtins.isString value && builtins.match pattern value != null then
          value
        else
          throw "nix.builderFleet.file: ${field} is ${builtins.toJSON value}, which no builder can have.";
      number = field: value: if builtins.isInt value then value else throw "nix.builderFleet.file: ${field} must be a whole number.";
      word = "[A-Za-z0-9][A-Za-z0-9._+:-]*";
    in
    machine
    // {
      alias = check "alias" "[a-z]([a-z0-9-]*[a-z0-9])?" machine.alias;
      hostName = check "hostName" "[A-Za-z0-9_.:-]+" machine.hostName;
      port = number "port" machine.port;
      maxJobs = number "maxJobs" machine.maxJobs;
      protocol = check "protocol" "ssh|ssh-ng" machine.protocol;
      sshUser = check "sshUser" "[A-Za-z_][A-Za-z0-9_.-]*" machine.sshUser;
      systems = map (check "systems" "[A-Za-z0-9_]+(-[A-Za-z0-9_]+)+") machine.systems;
      supportedFeatures = map (check "supportedFeatures" word) machine.supportedFeatures;
      mandatoryFeatures = map (check "mandatoryFeatures" word) machine.mandatoryFeatures;
      publicHostKey = check "publicHostKey" "[A-Za-z0-9+/]+=*" machine.publicHostKey;
    }
    // (if machine ? sshKey then { sshKey = check "sshKey" "/[^][:space:]%$\"'\\#;{}]*" machine.sshKey; } else { });

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
  keyOf = machine: machine.sshKey or cfg.sshKey;

  address = machine: if machine.port == 22 then machine.hostName else "[${machine.hostName}]:${toString machine.port}";
  knownHost = machine: {
    name = machine.alias;
    value = {
      hostNames = [ machine.alias ] ++ (if address machine == machine.alias then [ ] else [ (address machine) ]);
      publicKey = fromBase64 machine.publicHostKey;
    };
  };

  # Why each line: src/ssh/sshConfig.ts.
  sshHost =
    machine:
    ''
      Host ${machine.alias}
        HostName ${machine.hostName}
        Port ${toString machine.port}
        User ${machine.sshUser}
        IdentityFile ${keyOf machine}
        IdentitiesOnly yes
        PreferredAuthentications publickey
        BatchMode yes
        StrictHostKeyChecking yes
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
          Match originalhost ${machine.alias} exec "test -O '%d/.ssh'"
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

  # Nix has no function for it. Host keys are plain ASCII.
  fromBase64 =
    text:
    let
      alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
      values = builtins.listToAttrs (
        builtins.genList (i: {
          name = builtins.substring i 1 alphabet;
          value = i;
        }) 64
      );
      ascii = builtins.fromJSON (
        "{"
        + builtins.concatStringsSep "," (
          builtins.genList (i: ''"${toString (i + 32)}":"\u00${hex ((i + 32) / 16)}${hex (i + 32 - (i + 32) / 16 * 16)}"'') 95
        )
        + "}"
      );
      hex = digit: builtins.substring digit 1 "0123456789abcdef";
      at = i: values.${builtins.substring i 1 text} or 0;
      length = builtins.stringLength text;
      padding = if builtins.substring (length - 2) 2 text == "==" then 2 else if builtins.substring (length - 1) 1 text == "=" then 1 else 0;
      byte =
        i:
        let
          group = i / 3 * 4;
          bits = ((at group * 64 + at (group + 1)) * 64 + at (group + 2)) * 64 + at (group + 3);
          shifted = bits / builtins.elemAt [ 65536 256 1 ] (i - i / 3 * 3);
        in
        shifted - shifted / 256 * 256;
    in
    builtins.concatStringsSep "" (builtins.genList (i: ascii.${toString (byte i)}) (length / 4 * 3 - padding));
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
    nix.distributedBuilds = mkIf (builders != [ ]) true;
    nix.settings = {
      builders-use-substitutes = true;
    }
    # Weaker than what a person sets, stronger than the mkDefault of hardware configurations that older NixOS generated.
    // (if cfg.profile == null then { } else { max-jobs = mkOverride 900 maxJobs.${cfg.profile}; })
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
  };
}
