#!/bin/sh
# The first process of a host, in namespaces of its own: makes DISK the root of all that it sees, then becomes sshd.
#
#   boot.sh DISK NAME PYTHON VENV CHECKOUT
#
# Of the machine below it a host sees programs only, read-only: /usr, the Python in PYTHON, and VENV as CHECKOUT/.venv.
set -eu
disk=$1 name=$2 python=$3 venv=$4 checkout=$5

# The /proc of the machine below is still mounted: the number by which others know this process.
read -r pid _ </proc/self/stat
echo "$pid"
exec >&2

bind() { # FROM TO
    mkdir -p ".$2"
    mount --bind "$1" ".$2"
    mount -o remount,bind,ro ".$2"
}

umask 022
mount --bind "$disk" "$disk"
cd "$disk"
bind /usr /usr
for folder in /bin /sbin /lib /lib64; do
    if [ -L "$folder" ]; then
        ln -sfn "$(readlink "$folder")" ".$folder"
    elif [ -d "$folder" ]; then
        bind "$folder" "$folder"
    fi
done
case $python/ in
    /usr/*) ;;
    *) bind "$python" "$python" ;;
esac
bind "$venv" "$checkout/.venv"

mkdir -p proc sys dev tmp run old
mount -t proc proc proc
mount -t sysfs -o ro sys sys
mount -t tmpfs -o mode=755 dev dev
mount -t tmpfs tmp tmp
mount -t tmpfs -o mode=755 run run
mkdir -m 1777 dev/shm
mkdir run/sshd
for device in null zero full random urandom tty; do
    : >"dev/$device"
    mount --bind "/dev/$device" "dev/$device"
done
ln -s /proc/self/fd dev/fd

pivot_root . old
umount -l /old
rmdir /old
cd /

echo "$name" >/proc/sys/kernel/hostname
for which in all default; do
    settings=/proc/sys/net/ipv4/conf/$which
    echo 0 >"$settings/rp_filter"
    echo 1 >"$settings/arp_ignore"   # an address is answered for on its own interface only
    echo 2 >"$settings/arp_announce"
    echo 1 >"$settings/ignore_routes_with_linkdown"
done
exec /usr/sbin/sshd -D -e
