#!/bin/sh
# Makes the container of one local builder and becomes its first process, init.sh. container.ts starts it as root of new mount and PID
# namespaces, and tells it everything by the variables below.
#
#   FLEET_DIRECTORY  the builder's folder; the container sees root, state, log, run and conf of it at the same paths, and tmp as /builds
#   FLEET_BINDS      folders of the host that the container sees beside the system's, one a line
#   FLEET_REFUSED    what nothing in it may reach over the network, addresses and prefixes, one a line; empty: there is no way out
#   FLEET_PASTA      the program that carries what the container sends to the network; empty: there is no way out
#   FLEET_USER_NS    1: file descriptor 3 is the user namespace to enter; empty: one of this process's user is to be made
#   FLEET_CACHES     "trusted UID" and "untrusted UID", host ids, one a line: whose sessions keep what in /cache; no UID: they are one user's
#   FLEET_INIT       init.sh
#   FLEET_DAEMON     the command of the Nix daemon, as the shell has it
#
# The mount and network namespaces are this process's already, and belong to another user namespace than the one that the container is to have:
# root of the container can neither mount there, nor change what is refused, nor send what the kernel hasn't looked at, nor touch the way out.
set -eu
directory=$FLEET_DIRECTORY
new=$directory/container

# In the proc of the host, so that this is the pid that the host knows.
read -r pid _ </proc/self/stat

mount -t tmpfs -o mode=755,size=64m nix-builder-fleet "$new"
cd "$new"
# First: other folders may lie below /tmp.
mkdir -p tmp old proc dev/net dev/pts dev/shm
mount -t tmpfs -o mode=1777 tmp tmp
bind() {
  mkdir -p ".$1"
  mount --rbind "$1" ".$1"
}
# Its own user may be the one whose files these are.
show() {
  bind "$1"
  # Field 5 has blanks and the like as \040.
  while read -r _ _ _ _ point _; do
    case $point in
      "$where$1" | "$where$1"/*) mount -o remount,bind,ro "$(printf %b "$(printf %s "$point" | sed 's/\\/\\0/g')")" ;;
    esac
  done </proc/self/mountinfo
}
where=$(printf %s "$new" | sed 's/ /\\040/g')
for name in bin sbin lib lib32 lib64 libx32 usr; do
  if [ -L "/$name" ]; then
    ln -s "$(readlink "/$name")" "$name"
  elif [ -d "/$name" ]; then
    show "/$name"
  fi
done
while read -r folder; do
  [ -z "$folder" ] || show "$folder"
done <<END
$FLEET_BINDS
END
mkdir builds cache
mount -t tmpfs -o mode=755,size=64m cache cache
while read -r level user; do
  mkdir -m 700 "cache/$level"
  [ -z "$user" ] || chown "$user:$user" "cache/$level"
done <<END
$FLEET_CACHES
END
mount --bind "$directory/tmp" builds
for name in root state log run conf; do bind "$directory/$name"; done
# What is private to the kernel's owner or set by the host stays out of reach also where container and host have one user.
mount -o remount,bind,ro,nosuid,nodev,noexec ".$directory/conf"
cp -R "$directory/etc" etc
# Bound, not copied: container.ts changes the text once the way out is open.
mount --bind "$directory/etc/resolv.conf" etc/resolv.conf
mount -o remount,bind,ro,nosuid,nodev,noexec etc/resolv.conf
cp "$directory/busybox" busybox
mount -t proc proc proc
for name in null zero full random urandom tty; do
  : >"dev/$name"
  mount --bind "/dev/$name" "dev/$name"
done
if [ -e /dev/kvm ]; then
  : >dev/kvm
  mount --bind /dev/kvm dev/kvm
fi
# The way out of the network namespace needs it, and systems differ in who may open theirs.
mknod -m 666 dev/net/tun c 10 200 2>/dev/null || {
  : >dev/net/tun
  mount --bind /dev/net/tun dev/net/tun 2>/dev/null || :
}
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
mount -t tmpfs -o mode=1777 shm dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s /proc/self/fd/0 dev/stdin
ln -s /proc/self/fd/1 dev/stdout
ln -s /proc/self/fd/2 dev/stderr
# By this name pasta finds the network that it serves.
: >netns
mount --bind /proc/self/ns/net netns
ip link set lo up || :
refuse() {
  case $1 in *:*) family=-6 ;; *) family=-4 ;; esac
  ip "$family" rule add pref 1 to "$1" prohibit
}
open=
while read -r address; do
  # Where there is no IPv6, there is nothing to refuse; what else can't be refused leaves no way out.
  case $address in "") continue ;; *:*) [ -e /proc/net/if_inet6 ] || continue ;; esac
  refuse "$address" || open=$address
done <<END
$FLEET_REFUSED
END
cp "$FLEET_INIT" init
if [ -n "$open" ]; then
  printf '#!/bin/sh\necho "the kernel takes no rule that refuses %s (ip rule add)" >&2\nexit 1\n' "$open" >pasta
  chmod 755 pasta
elif [ -n "$FLEET_PASTA" ]; then
  cp "$FLEET_PASTA" pasta
fi
pivot_root . old
umount -l /old
rmdir /old
mount -o remount,bind,ro /
cd /

set -- sh /init "nix-builder-container=$directory/" "$pid"
if [ -n "$FLEET_USER_NS" ]; then
  exec nsenter --user=/proc/self/fd/3 -S 0 -G 0 unshare --ipc --uts "$@"
fi
exec unshare --user --map-root-user --ipc --uts "$@"
