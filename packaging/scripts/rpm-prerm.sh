# %preun; $1 is how many versions are left: 0 in a removal, 1 in an upgrade.
[ "$1" -eq 0 ] || exit 0
command -v systemctl >/dev/null 2>&1 || exit 0
systemctl stop dtagent.service >/dev/null 2>&1 || :
systemctl --no-reload disable dtagent.service >/dev/null 2>&1 || :
exit 0
