#!/bin/sh
# First program of the test guest. What it does after its marker is chosen by words of the kernel command line:
#   vireo.test=TASK[,ARGUMENT]   see the list at the end; most tasks power the machine off when done
#   root=DEVICE                  load the virtio drivers and go on with the system on that disk
# Without either, a shell on the console.
/bin/busybox mount -t proc proc /proc
read up idle < /proc/uptime
echo "VIREO-INIT-OK uptime=$up"
/bin/busybox --install -s /bin
export PATH=/bin:/sbin HOME=/root
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev

task= root=
for word in $(cat /proc/cmdline); do
  case $word in
  vireo.test=*) task=${word#vireo.test=} ;;
  root=*) root=${word#root=} ;;
  esac
done
argument=
case $task in
*,*) argument=${task#*,} task=${task%%,*} ;;
esac

# Waits up to 30 s for the virtio console. The port is announced through the device's control queue, some time after the
# driver is there, and its node is there some time before it can be opened; a redirection to no node would make a file.
wait_for_hvc0() {
  n=0
  until [ -c /dev/hvc0 ] && (exec 4<> /dev/hvc0) 2> /dev/null; do
    [ $n -lt 300 ] || return 1
    sleep 0.1
    n=$((n + 1))
  done
}

# Waits up to 30 s for a block device.
wait_for_disk() {
  n=0
  while [ ! -b "$1" ] && [ $n -lt 300 ]; do sleep 0.1; n=$((n + 1)); done
  [ -b "$1" ]
}

# Writes 4 MiB of numbers to the disk, reads them back past the page cache, compares checksums.
test_block() {
  modprobe virtio_pci
  modprobe virtio_blk
  wait_for_disk /dev/vda || { echo "VIREO-BLOCK-FAILED no /dev/vda"; return; }
  echo "VIREO-BLOCK-SIZE $(cat /sys/block/vda/size) ro=$(cat /sys/block/vda/ro) serial=$(cat /sys/block/vda/serial)"
  echo "VIREO-BLOCK-READ $(head -c 1048576 /dev/vda | sha256sum | cut -c1-64)"
  [ "$(cat /sys/block/vda/ro)" = 0 ] || return
  seq 1 700000 | head -c 4194304 > /tmp/numbers
  wanted=$(sha256sum < /tmp/numbers)
  dd if=/tmp/numbers of=/dev/vda bs=64k seek=16 conv=fsync 2>/dev/null
  echo 3 > /proc/sys/vm/drop_caches
  got=$(dd if=/dev/vda bs=64k skip=16 count=64 2>/dev/null | sha256sum)
  if [ "$wanted" = "$got" ]; then echo "VIREO-BLOCK-OK"; else echo "VIREO-BLOCK-FAILED $wanted $got"; fi
}

# Loads the kernel's own cryptography for this processor; the kernel compares it with known answers and
# taints a driver whose answers are wrong.
test_crypto() {
  for path in /lib/modules/*/kernel/arch/x86/crypto/*.ko; do
    name=${path##*/}
    modprobe ${name%.ko} 2>/dev/null
  done
  modprobe raid6_pq
  dmesg | grep -E 'raid6:.*(gen|using)'
  # A driver whose test failed stays listed with another word than "passed".
  awk '$1 == "driver" { driver = $3 } $1 == "selftest" { print "crypto", driver, $3 }' /proc/crypto | sort
  dmesg | grep -E 'alg: .*(fail|inconsisten|wrong)' || echo "VIREO-CRYPTO-OK"
}

case $task in
shell | "") ;;
poweroff) ;;
reboot) reboot -f ;;
panic)
  # What udev does by the device's name in the tables.
  [ "$argument" = silent ] || modprobe pvpanic-mmio
  echo c > /proc/sysrq-trigger
  ;;
exit) vireo_guest exit ${argument:-0} ;;
cpuinfo) cat /proc/cpuinfo ;;
cpu) vireo_guest cpu && echo "VIREO-CPU-DONE" ;;
bench) vireo_bench run $(echo $argument | tr , " ") && echo "VIREO-BENCH-DONE" ;;
work) vireo_guest work ${argument:-100} && echo "VIREO-WORK-DONE" ;;
crypto) test_crypto ;;
block) test_block ;;
entropy)
  modprobe virtio_pci
  modprobe virtio-rng
  echo "VIREO-RNG $(cat /sys/class/misc/hw_random/rng_current) $(head -c 64 /dev/hwrng | sha256sum | cut -c1-64)"
  ;;
console)
  modprobe virtio_pci
  modprobe virtio_console
  wait_for_hvc0 && echo "VIREO-CONSOLE-OK" > /dev/hvc0
  ;;
smp) echo "VIREO-SMP $(nproc)" && vireo_guest cpu | grep threads ;;
time)
  before=$(cut -d' ' -f1 /proc/uptime)
  sleep 2
  echo "VIREO-TIME $before $(cut -d' ' -f1 /proc/uptime) $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
  date -u +"VIREO-DATE %s"
  ;;
echo)
  echo "VIREO-ECHO-READY"
  read line
  echo "VIREO-ECHO $line"
  ;;
interrupts) cat /proc/interrupts ;;
idle) echo "VIREO-IDLE" && sleep ${argument:-600} ;;
button)
  modprobe button
  modprobe evdev
  # Only who has the device open hears of a press: open it first, then say so.
  exec 3< /dev/input/event0
  echo "VIREO-BUTTON-READY"
  head -c 24 <&3 > /dev/null && echo "VIREO-BUTTON-PRESSED"
  ;;
*) echo "VIREO-UNKNOWN-TASK $task" ;;
esac
[ -z "$task" ] || [ "$task" = shell ] || poweroff -f

if [ -n "$root" ]; then
  modprobe virtio_pci
  modprobe virtio_blk
  wait_for_disk "$root" && mount -t ext4 -o rw "$root" /newroot && exec switch_root /newroot /sbin/init
  echo "VIREO-ROOT-FAILED $root"
fi
# The kernel has this console only as a module, so nothing was said on it so far.
case " $(cat /proc/cmdline) " in
*" console=hvc0 "*)
  modprobe virtio_pci
  modprobe virtio_console
  wait_for_hvc0
  exec < /dev/hvc0 > /dev/hvc0 2>&1
  echo "VIREO-INIT-OK on hvc0"
  ;;
esac
setsid cttyhack sh
poweroff -f
