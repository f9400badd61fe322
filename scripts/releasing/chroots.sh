# shellcheck shell=bash
# Sourced by scripts/release: throw-away Debian systems in directories.
#
# To be used in namespaces of our own (run_alone): the mounts end with them, and so do the processes.

# debian_base SUITE DIRECTORY: a minimal Debian of the suite, which the other functions leave as it is.
debian_base() {
    say "making a bare Debian ($1)"
    mmdebstrap --quiet --variant=minbase "$1" "$2"
}

# fresh_system BASE DIRECTORY: DIRECTORY/root becomes a system as BASE is, with the devices of a machine that has FUSE. What
# is written to it goes into DIRECTORY.
fresh_system() {
    local root=$2/root device
    mkdir -p "$root" "$2/upper" "$2/work"
    mount -t overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" overlay "$root"
    mount -t proc proc "$root/proc"
    mount -t sysfs -o ro sysfs "$root/sys"
    mount -t tmpfs -o mode=755,dev tmpfs "$root/dev"
    mkdir "$root/dev/pts" "$root/dev/shm"
    mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts "$root/dev/pts"
    mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
    ln -s pts/ptmx "$root/dev/ptmx"
    ln -s /proc/self/fd "$root/dev/fd"
    for device in "null 1 3" "zero 1 5" "full 1 7" "random 1 8" "urandom 1 9" "tty 5 0" "fuse 10 229"; do
        # shellcheck disable=SC2086  # name, major, minor
        mknod -m 666 "$root/dev/${device%% *}" c ${device#* }
    done
    cp --remove-destination /etc/resolv.conf "$root/etc/resolv.conf"
    # The authorities that this machine trusts: it may reach the package index through a proxy of its own.
    mkdir -p "$root/run/machine"
    cp /etc/ssl/certs/ca-certificates.crt "$root/run/machine/"
}

# in_system DIRECTORY COMMAND...: runs it there as root, with the environment of a fresh login.
in_system() {
    env -i HOME=/root TERM=dumb LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        DEBIAN_FRONTEND=noninteractive PIP_CERT=/run/machine/ca-certificates.crt chroot "$1/root" "${@:2}" </dev/null
}

# drop_system DIRECTORY: unmounts and removes it.
drop_system() {
    umount --recursive "$1/root"
    remove_tree "$1"
}
