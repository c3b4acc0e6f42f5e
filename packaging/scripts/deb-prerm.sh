#!/bin/sh
# $1 is remove or upgrade, among others. In an upgrade the service runs on; postinst
# restarts it.
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
	deb-systemd-invoke stop dtagent.service >/dev/null || :
fi
