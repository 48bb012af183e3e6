#!/bin/busybox sh
# First program of the 32-bit guest: says what it runs on, works, and switches the machine off.
/bin/busybox mount -t proc proc /proc
echo "vireo-686 machine $(/bin/busybox uname -m)"
/bin/busybox sh /work.sh 2>&1 | while read -r line; do echo "vireo-686 work $line"; done
echo VIREO-686-DONE
/bin/busybox poweroff -f
