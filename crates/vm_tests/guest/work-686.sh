#!/bin/busybox sh
# Work whose results do not depend on the machine: run by the 32-bit guest, and on the host for comparison.
busybox=${1:-/bin/busybox}
"$busybox" seq 1 20000 | "$busybox" sha256sum
"$busybox" seq 1 20000 | "$busybox" md5sum
"$busybox" seq 1 3000 | "$busybox" awk '{ x += 3.5 * $1 / (y + 1); y += $1 % 7 } END { printf "%.6f %d\n", x, y }'
"$busybox" seq 1 5000 | "$busybox" sort -r | "$busybox" gzip -9 | "$busybox" gunzip | "$busybox" sha512sum
"$busybox" factor 600851475143 4294967291
n=0; i=0
while [ $i -lt 3000 ]; do n=$(((n * 31 + i) % 1000003)); i=$((i + 1)); done
echo "shell $n"
