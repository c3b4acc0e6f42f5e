#!/bin/sh
# $1 is remove, purge or upgrade, among others.
set -e
case "$1" in
remove)
	if [ -d /run/systemd/system ]; then
		systemctl --system daemon-reload >/dev/null || :
	fi
	rm -rf /run/dtagent
	;;
purge)
	if command -v deb-systemd-helper >/dev/null; then
		deb-systemd-helper purge dtagent.service >/dev/null || :
		deb-systemd-helper unmask dtagent.service >/dev/null || :
	fi
	# Nothing stays but spans, in /var/log/dt, which are the toolstack's too.
	rm -rf /etc/dtagent /var/lib/dtagent /var/log/dtagent /run/dtagent
	;;
esac
