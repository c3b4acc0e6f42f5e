# Makes a dom0 of Debian's packages on the first disk, and starts Xen's daemons.
# The first process runs it, in the machine's first file system. $1 is dom0's PATH.
set -e
path=$1

mount -t ext4 -o noatime /dev/vda /xen
mount -t xenfs xenfs /proc/xen
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
# Xen's hotplug script of disks waits for its lock for ever without them.
ln -sf /proc/self/fd /dev/fd
for fd in 0:stdin 1:stdout 2:stderr; do ln -sf "/proc/self/fd/${fd%:*}" "/dev/${fd#*:}"; done
for d in dev proc sys run tmp; do mount --rbind "/$d" "/xen/$d"; done
mkdir -p /run/xen /run/xenstored /run/lock

xen() { chroot /xen /usr/bin/env "PATH=$path" HOME=/root LC_ALL=C "$@"; }
xen oxenstored --pid-file /run/xenstored.pid
tries=0
until [ -S /run/xenstored/socket ]; do
	tries=$((tries + 1))
	[ $tries -lt 600 ] || { echo 'oxenstored has no socket after a minute' >&2; exit 1; }
	sleep 0.1
done
xen xen-init-dom0
xen xenconsoled --log=guest --log-dir=/var/log/xen/console --pid-file=/run/xenconsoled.pid
xen xl info
