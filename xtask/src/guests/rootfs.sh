# Makes a small Debian disk: sh rootfs.sh WORK MODULES DISK [MIRROR]. Runs as root.
set -eu
export PATH="$PATH:/usr/sbin:/sbin"
work=$1/rootfs modules=$2 disk=$3 mirror=${4:-}
rm -rf "$work"

# systemd-logind, which turns a pressed power button into a shutdown, needs D-Bus.
debootstrap --variant=minbase \
  --include=systemd,systemd-sysv,udev,login,kmod,util-linux,dbus bookworm "$work" $mirror

# udev finds modules by kmod's binary index, which busybox's depmod does not write.
cp -r "$modules/lib/modules" "$work/lib/"
for release in "$work"/lib/modules/*; do chroot "$work" depmod -a "${release##*/}"; done
chroot "$work" passwd --delete root
echo vireo > "$work/etc/hostname"
echo '/dev/vda / ext4 defaults 0 1' > "$work/etc/fstab"
: > "$work/etc/machine-id"
rm -rf "$work"/var/cache/apt/* "$work"/var/lib/apt/lists/* \
  "$work"/usr/share/doc/* "$work"/usr/share/man/* "$work"/usr/share/locale/*

# Whole file system, no partition table: the guest's root is /dev/vda itself.
rm -f "$disk.new"
truncate -s 512M "$disk.new"
mke2fs -q -F -t ext4 -L vireo -d "$work" "$disk.new"
chown --reference="$1" "$disk.new"
mv "$disk.new" "$disk"
rm -rf "$work"
