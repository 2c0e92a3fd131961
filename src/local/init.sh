#!/bin/sh
# The first process of a local builder's container, as the container's root: keeps the builder's Nix daemon running. container.sh starts it
# with a mark that tells it from others and the pid that the host knows it by, and with the variables that are listed there. It prints
# one line: "ready PID", its own pid on the host.
exec 3<&-
# Ubuntu gives nobody but the host's root the rights of a user namespace; Nix does without one, as it has build users here.
{ read -r restricted </proc/sys/kernel/apparmor_restrict_unprivileged_userns; } 2>/dev/null || restricted=0
[ "$restricted" = 0 ] || [ -z "$FLEET_USER_NS" ] || echo 0 >/proc/sys/user/max_user_namespaces
echo "ready $2"
exec >&2 </dev/null
daemon=
asked=
# SIGHUP: the daemon is to read its configuration again.
trap 'asked=1; [ -z "$daemon" ] || kill "$daemon"' HUP
while :; do
  asked=
  # Removed here, not from outside: what lies there is whatever root of the container has put there.
  rm -rf "$FLEET_DIRECTORY/run/socket"
  eval "exec $FLEET_DAEMON" &
  daemon=$!
  # A signal ends a wait, not the daemon, which takes a moment; its connections go on without it.
  while kill -0 "$daemon" 2>/dev/null; do wait "$daemon"; done
  daemon=
  [ -n "$asked" ] || sleep 1
done
