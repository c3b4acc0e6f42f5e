# %post; $1 is how many versions are installed now: 1 after an installation, 2 in an
# upgrade.
command -v systemctl >/dev/null 2>&1 || exit 0
systemctl daemon-reload >/dev/null 2>&1 || :
if [ "$1" -eq 1 ]; then
	# On or off as the distribution's presets say: off, if they do not.
	systemctl --no-reload preset dtagent.service >/dev/null 2>&1 || :
else
	systemctl try-restart dtagent.service >/dev/null 2>&1 || :
fi
exit 0
