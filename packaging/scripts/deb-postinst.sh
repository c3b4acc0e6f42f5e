#!/bin/sh
# $1 is configure, or that an upgrade or a removal was given up; $2 the version that
# was configured last, if there was one.
set -e
case "$1" in
configure | abort-upgrade | abort-deconfigure | abort-remove) ;;
*) exit 0 ;;
esac
# As dh_installsystemd does it: on at the first installation, later as the
# administrator left it.
deb-systemd-helper unmask dtagent.service >/dev/null || :
if deb-systemd-helper --quiet was-enabled dtagent.service; then
	deb-systemd-helper enable dtagent.service >/dev/null || :
else
	deb-systemd-helper update-state dtagent.service >/dev/null || :
fi
if [ -d /run/systemd/system ]; then
	systemctl --system daemon-reload >/dev/null || :
	if [ -n "$2" ]; then
		deb-systemd-invoke restart dtagent.service >/dev/null || :
	else
		deb-systemd-invoke start dtagent.service >/dev/null || :
	fi
fi
