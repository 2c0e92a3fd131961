# The root flake's checks: whole systems of NixOS, nix-darwin and home-manager with our modules, evaluated, and their values read. Nothing of a
# system is built. `nix flake check` ends with the check's name and each value that isn't what it should be.
{ nixpkgs, nix-darwin, home-manager, ... }:
let
  inherit (nixpkgs) lib;

  # A fact is [ what it is about, what it is, what it should be ].
  facts =
    name: list:
    let
      wrong = builtins.filter (fact: builtins.elemAt fact 1 != builtins.elemAt fact 2) list;
      say = fact: "${builtins.head fact} is ${builtins.toJSON (builtins.elemAt fact 1)}, not ${builtins.toJSON (builtins.elemAt fact 2)}";
    in
    if wrong == [ ] then "${toString (builtins.length list)} facts hold.\n" else throw "${name}: ${lib.concatMapStringsSep "; " say wrong}";

  # What every system must say, and that it can be built at all, as far as evaluating tells.
  sound =
    { config, drvPath, warnings ? [ ] }:
    [
      [ "failed assertions" (map (a: a.message) (builtins.filter (a: !a.assertion) config.assertions)) [ ] ]
      [ "warnings" config.warnings warnings ]
      [ "the whole system is a derivation" (lib.hasSuffix ".drv" (builtins.unsafeDiscardStringContext drvPath)) true ]
    ];
  startsWith = prefix: text: builtins.substring 0 (builtins.stringLength prefix) text;

  linux = [ "x86_64-linux" "aarch64-linux" ];
  nixos =
    system: modules:
    (nixpkgs.lib.nixosSystem {
      modules = [
        {
          nixpkgs.hostPlatform = system;
          system.stateVersion = lib.trivial.release;
        }
      ]
      ++ modules;
    }).config;
  # A client's.
  disk = {
    boot.loader.grub.device = "/dev/sda";
    fileSystems."/" = {
      device = "/dev/sda1";
      fsType = "ext4";
    };
  };
  # What puts the pinned host key in its place.
  identity = {
    aws = "apply-ec2-data";
    hcloud = "nix-builder-birth";
  };
  # A module with other text in place of the one file that it reads beside itself.
  reading =
    text: module:
    builtins.scopedImport {
      builtins = builtins // {
        readFile = _: builtins.toJSON text;
      };
    } module;
  # Where each provider's machine comes from: at Hetzner by each firmware that a type may have, Arm by EFI alone.
  hcloudDisk = {
    disk = "/dev/sda";
    root = "5f1a8e0c-0000-4000-8000-000000000000";
    esp = "ABCD-EF01";
    bios = true;
  };
  onHcloud = changed: [ (reading (hcloudDisk // changed) ../../nixos/hcloud.nix) ];
  ground = {
    aws = [ (nixpkgs + "/nixos/modules/virtualisation/amazon-image.nix") ];
    hcloud = onHcloud { };
    hcloud-bios = onHcloud { esp = null; };
    hcloud-efi = onHcloud { bios = false; };
  };

  parameters = {
    maxJobs = null;
    timeout = 172800;
    maxSilentTime = 14400;
    systemFeatures = [ "benchmark" "big-parallel" ];
    keepDays = 14;
    trustedClients = false;
    automaticUpgrades = false;
  };
  builderModule = changed: reading (parameters // changed) ../../nixos/builder.nix;
  # What an image of one's own may say otherwise.
  contrary =
    { lib, ... }:
    {
      services.openssh.extraConfig = lib.mkAfter "MaxAuthTries 4\n";
      services.openssh.settings = {
        AllowUsers = [ "me" ];
        PasswordAuthentication = true;
        MaxSessions = 10;
      };
      nix.settings = {
        trusted-users = [ "*" ];
        sandbox = "relaxed";
        system-features = [ "own" ];
      };
      networking.firewall.enable = false;
      system.autoUpgrade.enable = true;
    };

  # The old root is moved by the systemd initrd, and a snapshot gets all of a larger disk.
  hcloudFacts = config: [
    [ "the systemd initrd" config.boot.initrd.systemd.enable true ]
    [ "the move of the old root" config.boot.initrd.systemd.services.nix-builder-move-old-root.wantedBy [ "initrd.target" ] ]
    [ "growPartition" config.boot.growPartition true ]
    [ "autoResize" config.fileSystems."/".autoResize true ]
    [ "generations in the boot menu" config.boot.loader.grub.configurationLimit 10 ]
  ];
  builder =
    place: system: others:
    let
      provider = builtins.head (lib.splitString "-" place);
      with' = changed: nixos system (ground.${place} ++ others ++ [ (builderModule ({ inherit provider; } // changed)) ]);
      config = with' { };
      ssh = config.services.openssh;
      matched = "Match User nix-builder\n";
      daemonWith = changed: builtins.unsafeDiscardStringContext (with' changed).systemd.units."nix-daemon.service".text;
    in
    sound {
      inherit config;
      inherit (config.system.build.toplevel) drvPath;
    }
    ++ (if provider == "hcloud" then hcloudFacts else _: [ ]) config
    ++ [
      [ "system-features" config.nix.settings.system-features parameters.systemFeatures ]
      [ "trusted-users" config.nix.settings.trusted-users [ "root" ] ]
      [ "sandbox" config.nix.settings.sandbox true ]
      [ "the daemon's unit with other maxJobs" (daemonWith { maxJobs = 3; } == daemonWith { }) false ]
      [ "the daemon's unit with the same" (daemonWith { maxJobs = null; } == daemonWith { }) true ]
      [ "AllowUsers" ssh.settings.AllowUsers [ "root" "nix-builder" ] ]
      [ "PasswordAuthentication" ssh.settings.PasswordAuthentication false ]
      [ "PermitRootLogin" ssh.settings.PermitRootLogin "prohibit-password" ]
      [ "LoginGraceTime" ssh.settings.LoginGraceTime 20 ]
      [ "PerSourcePenalties" ssh.settings.PerSourcePenalties "no" ]
      [ "MaxSessions" ssh.settings.MaxSessions 100 ]
      [ "authorized keys" ssh.authorizedKeysFiles [ "/etc/nixos/nix-builder/keys/%u" ] ]
      [ "host keys" (map (key: key.path) ssh.hostKeys) [ "/etc/ssh/ssh_host_ed25519_key" ] ]
      # Nothing stands behind the clients' block.
      [ "lines of the clients' block" (builtins.length (lib.splitString "\n" (lib.last (lib.splitString matched ssh.extraConfig)))) 4 ]
      [ "sshd-keygen before sshd" (lib.elem "sshd-keygen.service" config.systemd.services.sshd.after) true ]
      [ "firewall" config.networking.firewall.enable true ]
      [ "automatic upgrades" config.system.autoUpgrade.enable false ]
      [ "logrotate's check" config.services.logrotate.checkConfig false ]
      [
        "the host key's service before sshd-keygen"
        (lib.elem "sshd-keygen.service" config.systemd.services.${identity.${provider}}.before)
        true
      ]
    ];

  # Clients: the flake's module over the golden fleet.json, and the written modules.
  fleetFile = ../golden/fleetJson/fleet.json;
  flakeModule = {
    imports = [ ../../nixos/client.nix ];
    nix.builderFleet = {
      file = fleetFile;
      profile = "balanced";
    };
  };
  aliases = map (machine: machine.alias) (builtins.fromJSON (builtins.readFile fleetFile));
  contraryClient = {
    nix.distributedBuilds = false;
    nix.settings = {
      builders-use-substitutes = false;
      max-jobs = 3;
      extra-substituters = [ "https://own.example" ];
    };
  };
  client =
    { evaluate, drvPath, module, quiet ? [ ] }:
    let
      plain = evaluate [ module ];
      own = evaluate [ module contraryClient ];
      unmanaged = evaluate [ module { nix.enable = false; } ];
    in
    sound {
      config = plain;
      drvPath = drvPath plain;
    }
    ++ [
      [ "distributedBuilds" plain.nix.distributedBuilds true ]
      [ "builders-use-substitutes" plain.nix.settings.builders-use-substitutes true ]
      [ "max-jobs" plain.nix.settings.max-jobs "auto" ]
      [ "builders" (map (machine: machine.hostName) plain.nix.buildMachines) aliases ]
      [ "a row for each builder" (builtins.length (lib.splitString "\n" plain.environment.etc."nix/machines".text)) (builtins.length aliases + 1) ]
      [ "known hosts" (lib.all (alias: plain.programs.ssh.knownHosts.${alias}.hostNames == [ alias ]) aliases) true ]
      [ "the fleet first in ssh_config" (startsWith "Host ${builtins.head aliases}\n" plain.programs.ssh.extraConfig) "Host ${builtins.head aliases}\n" ]
      [ "the person's distributedBuilds" own.nix.distributedBuilds false ]
      [ "the person's builders-use-substitutes" own.nix.settings.builders-use-substitutes false ]
      [ "the person's max-jobs" own.nix.settings.max-jobs 3 ]
      [ "the person's caches" (lib.elem "https://own.example" own.nix.settings.extra-substituters) true ]
      [ "builders of a person without them" own.nix.settings.builders null ]
    ]
    ++ map (a: [ "a failed assertion beside the person's own" a.message null ]) (builtins.filter (a: !a.assertion) own.assertions)
    ++ [
      [ "warnings beside the person's own" own.warnings quiet ]
      [ "warnings where Nix isn't the system's own" (map (startsWith "nix-builder-fleet: nix.enable is false") unmanaged.warnings) [ "nix-builder-fleet: nix.enable is false" ] ]
    ];

  darwin =
    modules:
    (nix-darwin.lib.darwinSystem {
      modules = [
        {
          nixpkgs.hostPlatform = "aarch64-darwin";
          system.stateVersion = 6;
        }
      ]
      ++ modules;
    }).config;

  home =
    system: modules:
    home-manager.lib.homeManagerConfiguration {
      pkgs = nixpkgs.legacyPackages.${system};
      modules = [
        ../golden/homeManagerModule/fleet.nix
        {
          home.username = "me";
          home.homeDirectory = "/home/me";
          home.stateVersion = lib.trivial.release;
        }
      ]
      ++ modules;
    };
  homes =
    system:
    let
      alone = home system [ ];
      written = home system [ { programs.ssh = { enable = true; enableDefaultConfig = false; includes = [ "own" ]; }; } ];
      ours = map (name: ".ssh/nix-builder-fleet/${name}") [ "config" "known_hosts" "machines" ];
      below = config: builtins.filter (lib.hasPrefix ".ssh/") (builtins.attrNames config.home.file);
    in
    sound {
      inherit (alone) config;
      inherit (alone.activationPackage) drvPath;
    }
    ++ sound {
      inherit (written) config;
      inherit (written.activationPackage) drvPath;
    }
    ++ [
      [ "files of the module alone" (below alone.config) ours ]
      [ "files where home-manager writes ~/.ssh/config" (below written.config) ([ ".ssh/config" ] ++ ours) ]
      [ "ssh_config" (startsWith "Include nix-builder-fleet/config own" written.config.home.file.".ssh/config".text) "Include nix-builder-fleet/config own" ]
    ];

  all =
    lib.listToAttrs (
      lib.concatMap (
        system:
        map (place: lib.nameValuePair "builder-${place}-${system}" (builder place system [ ])) (builtins.attrNames ground)
        ++ [
          (lib.nameValuePair "builder-of-a-contrary-image-${system}" (builder "aws" system [ contrary ]))
          (lib.nameValuePair "home-${system}" (homes system))
        ]
        ++ map (
          { name, module }:
          lib.nameValuePair "client-${name}-${system}" (client {
            inherit module;
            evaluate = modules: nixos system ([ disk ] ++ modules);
            drvPath = config: config.system.build.toplevel.drvPath;
          })
        ) (forms ../golden/nixosModule/fleet.nix)
      ) linux
      ++ map (
        { name, module }:
        lib.nameValuePair "client-${name}-aarch64-darwin" (client {
          inherit module;
          evaluate = darwin;
          drvPath = config: config.system.build.toplevel.drvPath;
          # nix-darwin's own word, and true.
          quiet = [ "nix.distributedBuilds is not enabled, build machines won't be configured." ];
        })
      ) (forms ../golden/darwinModule/fleet.nix)
    );
  forms = written: [
    {
      name = "flake";
      module = flakeModule;
    }
    {
      name = "written";
      module = written;
    }
  ];
in
lib.genAttrs [ "x86_64-linux" "aarch64-linux" "aarch64-darwin" "x86_64-darwin" ] (
  system: lib.mapAttrs (name: list: nixpkgs.legacyPackages.${system}.writeText name (facts name list)) all
)
