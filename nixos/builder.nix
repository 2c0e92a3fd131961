# What every NixOS builder of every provider runs. The fleet writes parameters.json and keys/ beside this file
# (/etc/nixos/nix-builder), see src/bootstrap/builderFiles.ts. What it says counts, whatever the configuration of an image of one's own has.
{ lib, pkgs, ... }:
let
  inherit (lib) mkForce;
  allForced = builtins.mapAttrs (_: mkForce);

  directory = "/etc/nixos/nix-builder";
  parameters = builtins.fromJSON (builtins.readFile ./parameters.json);

  # Accepts exactly the commands that Nix sends for ssh-ng:// and ssh://.
  storeProtocolsOnly = pkgs.writeShellScript "nix-builder-ssh" ''
    case "$SSH_ORIGINAL_COMMAND" in
      "nix-daemon --stdio" | "nix-store --serve --write") exec $SSH_ORIGINAL_COMMAND ;;
      *)
        echo "nix-builder-fleet: this key may only speak the Nix store protocols; refused" >&2
        exit 1
        ;;
    esac
  '';

  # What signs with the keys that `clients[].publicKey` may be: src/ssh/hostKey.ts. No SHA-1, no certificates.
  clientKeyAlgorithms = [
    "ssh-ed25519"
    "sk-ssh-ed25519@openssh.com"
    "ecdsa-sha2-nistp256"
    "ecdsa-sha2-nistp384"
    "ecdsa-sha2-nistp521"
    "sk-ecdsa-sha2-nistp256@openssh.com"
    "rsa-sha2-512"
    "rsa-sha2-256"
  ];

  # Users that clients log in as: src/bootstrap/builderFiles.ts. The second is made only where a client is fully trusted.
  clientUsers = [ "nix-builder" ] ++ (if parameters.trustedClients then [ "nix-builder-trusted" ] else [ ]);

  # Whose signatures count, and the builder's own key. The fleet brings them in, and restarts the daemon after it.
  signingSettings = "${directory}/signing/nix.conf";

  # Nix settings that depend on the machine; Nix reads them through the include below.
  sizedSettings = "/run/nix-builder/nix.conf";
in
{
  users.groups.nix-builder = { };
  users.users = builtins.listToAttrs (
    map (name: {
      inherit name;
      value = {
        isSystemUser = true;
        group = "nix-builder";
        # A real shell: sshd runs the forced command with it.
        useDefaultShell = true;
        home = "/var/empty";
      };
    }) clientUsers
  );

  services.openssh = {
    enable = mkForce true;
    openFirewall = mkForce true;
    # The fleet pins this key before the machine exists.
    hostKeys = mkForce [
      {
        path = "/etc/ssh/ssh_host_ed25519_key";
        type = "ed25519";
      }
    ];
    # Nothing but the fleet's files counts: they change by being replaced, without a rebuild.
    authorizedKeysFiles = mkForce [ "${directory}/keys/%u" ];
    settings = allForced (
      {
        PermitRootLogin = "prohibit-password";
        PasswordAuthentication = false;
        KbdInteractiveAuthentication = false;
        AllowUsers = [ "root" ] ++ clientUsers;
        HostKeyAlgorithms = "ssh-ed25519";
        PubkeyAcceptedAlgorithms = builtins.concatStringsSep "," clientKeyAlgorithms;
        X11Forwarding = false;
        # Every derivation opens a connection of its own (NixOS/nix#8499).
        MaxStartups = "200:30:400";
        MaxSessions = 100;
        # Whoever connects and says nothing is gone soon.
        LoginGraceTime = 20;
        ClientAliveInterval = 30;
        ClientAliveCountMax = 4;
      }
      # One client's failed logins would lock out all that share its address (NAT). OpenSSH has penalties since 9.8, and knows no unknown setting.
      // (if builtins.compareVersions pkgs.openssh.version "9.8" >= 0 then { PerSourcePenalties = "no"; } else { })
    );
    # Last, after what others put last (mkAfter), too: their lines would fall into the Match.
    extraConfig = lib.mkOrder 10000 ''
      Match User ${builtins.concatStringsSep "," clientUsers}
        ForceCommand ${storeProtocolsOnly}
        DisableForwarding yes
        PermitTTY no
    '';
  };

  nix = {
    settings = allForced {
      # Whoever is trusted is root here: docs/security.md. The group has no name here, because all client users are in it.
      trusted-users = [ "root" ] ++ (if parameters.trustedClients then [ "nix-builder-trusted" ] else [ ]);
      # Without force it would be added to NixOS's own list, which has kvm.
      system-features = parameters.systemFeatures;
      # Over ssh-ng the client's own limits don't reach the builder.
      timeout = parameters.timeout;
      max-silent-time = parameters.maxSilentTime;
      builders-use-substitutes = true;
      sandbox = true;
      sandbox-fallback = false;
    };
    extraOptions = ''
      !include ${sizedSettings}
      !include ${signingSettings}
    '';
  };

  # What it includes is no part of its unit, so a switch would not restart it. Connections under way are processes of their own, and go on.
  systemd.services.nix-daemon.restartTriggers = [ (builtins.toJSON parameters) ];

  systemd.services.nix-builder-sizes = {
    description = "Nix settings from this machine's processors and disk";
    wantedBy = [ "nix-daemon.service" ];
    before = [
      "nix-daemon.service"
      "nix-daemon.socket"
    ];
    unitConfig.DefaultDependencies = false;
    after = [ "local-fs.target" ];
    serviceConfig = {
      Type = "oneshot";
      RemainAfterExit = true;
    };
    path = [ pkgs.coreutils ];
    script = ''
      # The rules of src/bootstrap/defaults.ts, in MiB.
      least() { if [ "$1" -lt "$2" ]; then echo "$1"; else echo "$2"; fi; }
      most() { if [ "$1" -gt "$2" ]; then echo "$1"; else echo "$2"; fi; }
      cpus=$(nproc)
      read -r _ memory _ < /proc/meminfo
      read -r size free <<EOF
      $(df --output=size,avail --block-size=1K /nix/store | tail -n 1)
      EOF
      jobs=${
        if parameters.maxJobs == null then
          ''$(most 1 "$(least "$cpus" $(( memory / 1024 / 2048 )))")''
        else
          toString parameters.maxJobs
      }
      slots=$(most 2 "$jobs")
      minFree=$(least "$(least $(( size / 1024 / 10 )) 20480)" $(( free / 1024 / 2 )))
      mkdir -p ${dirOf sizedSettings}
      cat > ${sizedSettings} <<EOF
      max-jobs = $jobs
      cores = $(most 1 $(( (2 * cpus + slots - 1) / slots )))
      min-free = $(( minFree * 1048576 ))
      max-free = $(( minFree * 5 / 2 * 1048576 ))
      EOF
    '';
  };

  systemd.services.nix-builder-gc = {
    description = "Garbage collection that keeps what was built or fetched recently";
    startAt = "03:15";
    path = [
      pkgs.coreutils
      pkgs.nix
      pkgs.sqlite
    ];
    script = ''
      roots=/nix/var/nix/gcroots/nix-builder-recent
      rm -rf $roots
      mkdir -p $roots
      since=$(( $(date +%s) - ${toString parameters.keepDays} * 86400 ))
      sqlite3 -readonly /nix/var/nix/db/db.sqlite \
        "select path from ValidPaths where registrationTime >= $since" |
        while read -r path; do ln -s "$path" "$roots/''${path##*/}"; done
      nix-collect-garbage --delete-older-than ${toString parameters.keepDays}d
    '';
  };

  # What builds left that the last shutdown cut off; the second is where Nix builds since 2.30.
  boot.tmp.cleanOnBoot = mkForce true;
  systemd.tmpfiles.rules = [ "R! /nix/var/nix/builds/*" ];
  zramSwap.enable = mkForce true;
  services.journald.extraConfig = ''
    SystemMaxUse=500M
    MaxRetentionSec=1month
  '';
  system.autoUpgrade = {
    enable = mkForce parameters.automaticUpgrades;
    allowReboot = mkForce false;
  };
  # Where Nix runs on Debian, as in a conversion, the check fails (NixOS/nix#8502).
  services.logrotate.checkConfig = mkForce false;

  networking.firewall = {
    enable = mkForce true;
    # Builds with network access (fixed-output derivations) must not read user data: it holds the host key.
    extraCommands = ''
      iptables -I OUTPUT -d 169.254.169.254 -m owner ! --uid-owner 0 -j REJECT
    '';
    extraStopCommands = ''
      iptables -D OUTPUT -d 169.254.169.254 -m owner ! --uid-owner 0 -j REJECT || true
    '';
  };

  # A server from a snapshot gets its identity here, before sshd first runs and before a host key would be made for it.
  # `npx fleet bake` removes the file `born`.
  systemd.services.nix-builder-birth = lib.mkIf (parameters.provider == "hcloud") {
    description = "Host key, keys and parameters from the user data of Hetzner Cloud";
    wantedBy = [ "multi-user.target" ];
    before = [
      "sshd-keygen.service"
      "sshd.service"
    ];
    wants = [ "network-online.target" ];
    after = [ "network-online.target" ];
    unitConfig.ConditionPathExists = "!${directory}/born";
    serviceConfig.Type = "oneshot";
    path = [
      pkgs.coreutils
      pkgs.curl
      pkgs.jq
    ];
    script = ''
      umask 077
      data=$(curl -sSf --retry 30 --retry-all-errors --retry-max-time 120 http://169.254.169.254/hetzner/v1/userdata)
      json=$(printf '%s\n' "$data" | tail -n +2)
      key=/etc/ssh/ssh_host_ed25519_key
      printf '%s\n' "$json" | jq -er .ssh_keys.ed25519_private > $key.new
      printf '%s\n' "$json" | jq -er .ssh_keys.ed25519_public > $key.pub
      mv $key.new $key
      chmod 644 $key.pub
      printf '%s\n' "$json" | jq -er '.write_files[] | select(.path | startswith("${directory}/")) | .path' |
        while read -r path; do
          mkdir -p "$(dirname "$path")"
          printf '%s\n' "$json" | jq -ejr --arg path "$path" '.write_files[] | select(.path == $path) | .content' > "$path"
          chmod 644 "$path"
        done
      chmod 755 ${directory} ${directory}/keys
    '';
  };

  # Hetzner's DHCP gives the IPv4 address only; the IPv6 address stands in the metadata.
  systemd.services.nix-builder-ipv6 = lib.mkIf (parameters.provider == "hcloud") {
    description = "IPv6 address from the metadata of Hetzner Cloud";
    wantedBy = [ "multi-user.target" ];
    wants = [ "network-online.target" ];
    after = [ "network-online.target" ];
    serviceConfig.Type = "oneshot";
    path = [
      pkgs.coreutils
      pkgs.curl
      pkgs.gnugrep
      pkgs.iproute2
    ];
    script = ''
      address=$(curl -sSf --retry 10 --retry-all-errors http://169.254.169.254/hetzner/v1/metadata |
        grep -oE '[0-9a-f:]*::[0-9a-f]*/64' | head -n 1 || true)
      [ -n "$address" ] || exit 0
      interface=$(ip -o -4 route show default | grep -oE 'dev [^ ]+' | cut -d ' ' -f 2 | head -n 1)
      ip -6 address replace "$address" dev "$interface"
      ip -6 route replace default via fe80::1 dev "$interface"
    '';
  };
}
