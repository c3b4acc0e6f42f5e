package event

import (
	"strings"
	"testing"
)

func TestParseImage(t *testing.T) {
	const sr, vdi = "f0e1d2c3-0000-4000-8000-00000000aaaa", "01234567-89ab-4cde-8f01-23456789abcd"
	for path, want := range map[string][2]string{
		"/dev/VG_XenStorage-" + sr + "/VHD-" + vdi:                 {sr, vdi},
		"/dev/VG_XenStorage-" + sr + "/LV-" + vdi:                  {sr, vdi},
		"/dev/VG_XenStorage-" + sr + "/MGT":                        {sr, ""},
		"/run/sr-mount/" + sr + "/" + vdi + ".vhd":                 {sr, vdi},
		"/var/run/sr-mount/" + sr + "/" + vdi + ".qcow2":           {sr, vdi},
		"/run/sr-mount/" + sr + "/" + vdi + "_tmp.vhd":             {sr, vdi},
		"/run/sr-mount/SMB/nas.example/" + sr + "/" + vdi + ".vhd": {sr, vdi},
		"/dev/sm/backend/" + sr + "/" + vdi:                        {sr, vdi},
		"/dev/sm/phy/" + sr + "/" + vdi:                            {sr, vdi},
		"/run/blktap-control/nbd/" + sr + "/" + vdi:                {sr, vdi},
		"/run/sr-mount/" + sr:                                      {sr, ""},
		"/run/sr-mount/" + sr + "/" + vdi + "-more":                {sr, ""},
		"/run/sr-mount/" + sr + "0/" + vdi:                         {},
		"/run/sr-mount/" + sr[:35]:                                 {}, // cut
		"/run/sr-mount/" + strings.Replace(sr, "f", "g", 1):        {},
		"/home/" + sr + "/" + vdi:                                  {},
		"OpaqueRef:" + vdi:                                         {},
		sr + "/" + vdi + "/" + vdi:                                 {}, // a pool's secret
		"":                                                         {},
		"/":                                                        {},
		"x/run/sr-mount/" + sr:                                     {},
	} {
		s, v := ParseImage([]byte(path))
		if got := [2]string{string(s), string(v)}; got != want {
			t.Errorf("%s: %q, not %q", path, got, want)
		}
	}
}
