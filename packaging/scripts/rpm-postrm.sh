# %postun; $1 is how many versions are left: 0 after a removal, 1 in an upgrade.
[ "$1" -eq 0 ] || exit 0
if command -v systemctl >/dev/null 2>&1; then
	systemctl daemon-reload >/dev/null 2>&1 || :
	systemctl reset-failed dtagent.service >/dev/null 2>&1 || :
fi
# Nothing stays but spans, in /var/log/dt, which are the toolstack's too.
rm -rf /var/lib/dtagent /var/log/dtagent /run/dtagent
# Observers that were made here are kept as rpm keeps changed settings.
for f in /etc/dtagent/observers.d/*.json; do
	if [ -f "$f" ]; then
		mv -f "$f" "$f.rpmsave" && echo "warning: $f saved as $f.rpmsave" >&2
	fi
done
rmdir /etc/dtagent/observers.d /etc/dtagent 2>/dev/null
exit 0
