#!/bin/bash
# Installs the Debian packages that the tests need, where they are absent, and runs the whole test suite.
# usage: tests/run.sh [--long] [ARGUMENTS OF cargo test]      --long: the campaigns with far more rounds
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "${1:-}" = --long ]; then
    export UNIMAGE_LONG=1
    shift
fi

# program:package
needs=(
    mkfs.fat:dosfstools mcopy:mtools mkntfs:ntfs-3g fusefat:fusefat fls:sleuthkit 7z:p7zip-full sfdisk:fdisk
    sgdisk:gdisk mkfs.exfat:exfatprogs mount.exfat-fuse:exfat-fuse mkfs.ext4:e2fsprogs debugfs:e2fsprogs mkfs.xfs:xfsprogs
    mkfs.btrfs:btrfs-progs qemu-img:qemu-utils qemu-storage-daemon:qemu-utils strace:strace losetup:mount fusermount3:fuse3 zstd:zstd
    setfattr:attr cc:gcc genisoimage:genisoimage xorriso:xorriso ewfacquire:ewf-tools python3:python3
)
PATH=$PATH:/usr/sbin:/sbin
missing=()
for need in "${needs[@]}"; do
    command -v "${need%%:*}" >/dev/null || missing+=("${need#*:}")
done
if [ -e /usr/bin/time ]; then :; else missing+=(time); fi
/usr/bin/python3 -c 'import pyvhdi' 2>/dev/null || missing+=(python3-libvhdi)
if [ "${#missing[@]}" -gt 0 ]; then
    echo "installing: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    # fuse3 takes the place of fuse: both have fusermount.
    apt-get update -q </dev/null
    apt-get install -q -y --no-install-recommends "${missing[@]}" </dev/null
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "the tests attach loop devices and mount: run them as root" >&2
    exit 2
fi

# The tests of one file run beside each other; two at a time is what mounts and checkers bear well.
exec cargo test --no-fail-fast "$@" </dev/null
