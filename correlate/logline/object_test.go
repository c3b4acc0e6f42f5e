package logline

import (
	"fmt"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
)

func TestObjects(t *testing.T) {
	const vm, sr = "91b928e6-5e4c-9f1a-6147-fb162417c0e0", "f0e1d2c3-0000-4000-8000-00000000aaaa"
	for message, want := range map[string]string{
		"VM.start_on: VM = '" + vm + " (vm-257)'; host '" + sr + " (vm)'": "VM.start_on 1:" + vm,
		"VM.start: VM = '" + vm + " ************":                         "VM.start 1:" + vm,
		"VDI.pool_migrate: VDI = '" + vm + "'; SR = '" + sr + "'":         "VDI.pool_migrate 2:" + vm + " 3:" + sr,
		"SR.scan: SR = '" + sr + "'":                                      "SR.scan 3:" + sr,
		"SR.scan: SR = '" + sr[:30]:                                       "",
		"VM.start: VM = '" + vm:                                           "", // may be cut
		"VM.start: host = '" + vm + "'":                                   "",
		"no method: VM = '" + vm + "'":                                    "",
		"VM: VM = '" + vm + "'":                                           "",
		": VM = '" + vm + "'":                                             "",
		"VM.start":                                                        "",
		"":                                                                "",
		"VM.x: " + strings.Repeat("VM = '"+vm+"'; ", 9):                   "VM.x" + strings.Repeat(" 1:"+vm, maxObjects),
	} {
		got := ""
		method := Objects([]byte(message), func(k ObjectKind, id []byte) { got += fmt.Sprintf(" %d:%s", k, id) })
		qt.Check(t, qt.Equals(string(method)+got, want), qt.Commentf("%s", message))
		qt.Check(t, qt.IsTrue(want == "" || NamesObjects([]byte(message))))
	}
}
