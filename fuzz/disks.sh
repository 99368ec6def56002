#!/bin/bash
# fuzz/disks.sh [FOLDER]: fills FOLDER/disk-FORMAT (in fuzz/corpus) with small disks of every format, written as the records that
# the target `disk` reads.
set -euo pipefail
corpus=$(realpath "${1:-$(dirname "$0")/corpus}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 - <<'P'
import random
random.seed(5)
raw = bytearray(512 << 10)
for at, n in [(0, 1000), (70000, 3000), (300000, 1500), ((512 << 10) - 512, 512)]:
    raw[at:at + n] = bytes(random.choices(b'abcd', k=n))
raw[400000:410000] = b'x' * 10000
open('raw', 'wb').write(raw)
P
# FORMAT NAME FILE...: the files as one seed.
seed() {
    mkdir -p "$corpus/disk-$1"
    python3 - "$corpus/disk-$1/$2" "${@:3}" <<'P'
import sys
out = bytearray()
for n, name in enumerate(sys.argv[2:]):
    data = open(name, 'rb').read()
    if n: out += b'\xff\xff\xff\0\0'
    data += bytes(-len(data) % 512)
    out += (len(data) // 512).to_bytes(4, 'little')
    at = 0
    while at < len(data):
        end = at
        while end < len(data) and end - at < 65024 and any(data[end:end + 512]): end += 512
        if end > at:
            out += (at // 512).to_bytes(3, 'little') + (end - at).to_bytes(2, 'little') + data[at:end]
        at = max(end, at + 512)
open(sys.argv[1], 'wb').write(out)
P
}
make() { qemu-img convert -f raw -O "$1" ${2:+-o "$2"} ${4:-} raw "$3"; }
i=0
for options in cluster_size=512 cluster_size=4096,compat=0.10 cluster_size=16k,extended_l2=on cluster_size=64k; do
    make qcow2 $options q$((++i)); seed qcow2 plain$i q$i
done
for type in zlib zstd; do make qcow2 cluster_size=4096,compression_type=$type c$type -c; seed qcow2 $type c$type; done
make qcow2 cluster_size=512 snap
qemu-img snapshot -c one snap; qemu-io -f qcow2 -c 'write -P 7 0 2k' snap >/dev/null; qemu-img snapshot -c two snap
seed qcow2 snapshots snap
qemu-img create -q -f qcow2 -o cluster_size=4096 -b snap -F qcow2 child; qemu-io -f qcow2 -c 'write -P 9 4k 9k' -c 'write -z 64k 64k' child >/dev/null
seed qcow2 chain child snap
qemu-img create -q -f qcow2 -o data_file=data,cluster_size=4096 outside 256k; qemu-io -f qcow2 -c 'write -P 9 4k 9k' outside >/dev/null
seed qcow2 data outside data
for kind in monolithicSparse streamOptimized monolithicFlat twoGbMaxExtentSparse; do
    make vmdk subformat=$kind $kind.vmdk
    seed vmdk $kind $(ls $kind*.vmdk | sort -r | grep -v -e '-[sf]0*1*' ) $(ls $kind-* 2>/dev/null || true)
done
qemu-img create -q -f vmdk -b monolithicSparse.vmdk -F vmdk delta.vmdk; qemu-io -f vmdk -c 'write -P 9 4k 9k' delta.vmdk >/dev/null
seed vmdk delta delta.vmdk monolithicSparse.vmdk
for kind in dynamic fixed; do make vpc subformat=$kind,force_size=on $kind.vhd; seed vhd $kind $kind.vhd; done
make vdi '' dynamic.vdi; seed vdi dynamic dynamic.vdi
make vdi static=on static.vdi; seed vdi static static.vdi
make vhdx block_size=1M,log_size=1M closed.vhdx; seed vhdx closed closed.vhdx
# Killed while it wrote: the log holds entries.
cp closed.vhdx open.vhdx
qemu-io -f vhdx -c 'write -P 7 0 16k' -c 'write -P 8 256k 4k' -c flush -c 'sleep 60000' open.vhdx >/dev/null 2>&1 &
sleep 1
kill -9 $!
wait $! 2>/dev/null || true
seed vhdx open open.vhdx
for kind in encase6 ewf smart; do
    ewfacquire -u -q -f $kind -c deflate:fast -b 16 -t $kind "$PWD/raw" >/dev/null
    seed ewf $kind $kind.[EeSs]01
done
