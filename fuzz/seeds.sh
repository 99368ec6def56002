#!/bin/bash
# Fills fuzz/corpus/TARGET from the fixtures; for `journal`, with the journal of a relink of one of them.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build -q
for pair in fat12:fat fat16:fat exfat:exfat ntfs:ntfs ext4:ext gpt:volume mbr:volume gpt:container host-fat12:relink host-exfat:relink host-ntfs:relink; do
    mkdir -p "fuzz/corpus/${pair#*:}"
    zstd -qdf "fixtures/${pair%:*}.img.zst" -o "fuzz/corpus/${pair#*:}/${pair%:*}"
done
qemu-img create -q -f vpc -o subformat=fixed,force_size=on fuzz/corpus/container/vhd 64K
fuzz/disks.sh
mkdir -p fuzz/corpus/journal
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp fuzz/corpus/relink/host-fat12 "$work/host"
target/debug/unimage relink "$work/host//vm/disk.raw" --into /out --journal "$work/journal" --commit >/dev/null
python3 - "$work/journal" "$work/host" fuzz/corpus/relink/host-fat12 fuzz/corpus/journal <<'P'
import sys
journal, after, before, to = sys.argv[1:]
bytes_, frames, at = open(journal, 'rb').read(), [], 7 * 4096
while True:
    stored = int.from_bytes(bytes_[at + 8:at + 12], 'little')
    frames.append(bytes_[at:at + 16] + bytes_[at + 48:at + 48 + stored])
    tag = bytes_[at:at + 4]
    at += 48 + stored
    if tag == b'HEND': at = -(-at // 4096) * 4096
    if tag == b'END.': break
for state, host in [(0, before), (1, before), (1, after), (2, after), (4, after), (5, before)]:
    with open(f'{to}/state{state}-{"after" if host == after else "before"}', 'wb') as seed:
        seed.write(bytes([state, len(frames)]) + b''.join(frames) + open(host, 'rb').read())
P
