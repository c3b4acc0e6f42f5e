package xapi

import (
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/observer"
)

// checkState fails on a State that the rest of the agent does not expect.
func checkState(t *testing.T, st State) {
	t.Helper()
	if len(st.Observers) > maxObservers {
		t.Fatalf("%d Observers", len(st.Observers))
	}
	for _, o := range st.Observers {
		if err := o.Validate(); err != nil || o.UUID == "" {
			t.Fatalf("not valid: %+v: %v", o, err)
		}
		if max(len(o.Hosts), len(o.Attributes), len(o.Endpoints), len(o.Components)) > maxItems {
			t.Fatal("too many items")
		}
	}
}

// FuzzReply: whatever XAPI answers, and in whatever order of calls, nothing
// panics, errors are of the two kinds, and what comes out is valid.
func FuzzReply(f *testing.F) {
	one, _ := json.Marshal(map[string]any{refOf(1): record(1, "hosts", []string{hostRef}, "attributes", map[string]string{"a.b": "c"})})
	add, _ := json.Marshal(map[string]any{"events": []any{
		map[string]any{"id": "1", "timestamp": "0.0", "class": "observer", "operation": "add", "ref": refOf(2), "snapshot": record(2)},
		map[string]any{"id": "2", "timestamp": "0.0", "class": "observer", "operation": "del", "ref": refOf(1)},
		map[string]any{"class": "host", "operation": "mod", "ref": hostRef, "snapshot": map[string]string{"uuid": hostUUID, "name_label": "n"}},
		map[string]any{"class": "pool", "operation": "mod", "ref": "OpaqueRef:p", "snapshot": map[string]string{"uuid": poolUUID, "name_label": ""}},
	}, "valid_ref_counts": map[string]int{"observer": 1}, "token": "00000000000000000002,00000000000000000000"})
	for _, s := range []string{
		`{"jsonrpc":"2.0","result":` + string(one) + `,"id":1}`,
		`{"jsonrpc":"2.0","result":` + string(add) + `,"id":1}`,
		`{"jsonrpc":"2.0","result":"` + canary + `","id":"1"}`,
		`{"jsonrpc":"2.0","error":{"code":1,"message":"HANDLE_INVALID","data":["VM","OpaqueRef:nonsense"]},"id":1}`,
		`{"jsonrpc":"2.0","error":{"code":1,"message":"SESSION_INVALID","data":["SESSION_INVALID","` + canary + `"]},"id":1}`,
		`{"result":{"events":[{}],"valid_ref_counts":{"observer":"3"},"token":""},"error":null,"id":1}`,
		`{"jsonrpc":"2.0","error":["HANDLE_INVALID","host","OpaqueRef:x"],"id":1}`,
		`{"result":null,"error":["HOST_STILL_BOOTING"],"id":0}`,
		`{"result":{"x":[[]],"":{"uuid":null}},"id":1}`, `{"id":1,"error":[]}`, `null`, `{`, `"`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		result, err := decodeReply("m", canary, 1, data)
		if err != nil {
			text := err.Error()
			if strings.Contains(text, canary) || len(text) > 3000 {
				t.Fatalf("error %q", text)
			}
			return
		}
		m := newMirror(hostUUID)
		m.replace(one)
		m.replace(result)
		if b, ok := decodeBatch(result); ok {
			m.apply(b)
			missing(m, b)
		}
		if i, ok := decodeIdentity(result); ok {
			m.addHost("r", i)
		}
		m.strangers()
		st, mistakes := m.state()
		checkState(t, st)
		if !slices.IsSortedFunc(st.Observers, func(a, b observer.Observer) int { return strings.Compare(a.UUID, b.UUID) }) {
			t.Fatal("not sorted")
		}
		if len(mistakes) > maxObservers {
			t.Fatal("too many mistakes")
		}
		again, _ := m.state()
		if fmt.Sprint(again) != fmt.Sprint(st) {
			t.Fatal("another state the second time")
		}
	})
}

func TestDecodeError(t *testing.T) {
	for body, want := range map[string]string{
		`{"code":1,"message":"HANDLE_INVALID","data":["VM","OpaqueRef:nonsense"]}`:                  `m: HANDLE_INVALID ["VM" "OpaqueRef:…"]`, // as recorded
		`{"code":1,"message":"HANDLE_INVALID","data":["HANDLE_INVALID","VM","OpaqueRef:nonsense"]}`: `m: HANDLE_INVALID ["VM" "OpaqueRef:…"]`,
		`{"code":1,"message":"SESSION_INVALID","data":["SESSION_INVALID","OpaqueRef:x"]}`:           `m: SESSION_INVALID`,
		`{"code":1,"message":"HOST_IS_SLAVE","data":["10.0.0.1"]}`:                                  `m: HOST_IS_SLAVE ["10.0.0.1"]`,
		`{"message":"X","data":["X","X"]}`:                                                          `m: X ["X"]`,
		`{"message":"X","data":"y"}`:                                                                `m: X`,
		`{"message":"X"}`:                                                                           `m: X`,
		`{"message":"","data":[]}`:                                                                  `m: the answer has an error without code`,
		`{"message":7}`:                                                                             `m: the answer has an error without code`,
		`["X"]`:                                                                                     `m: X`, // as a member passes it on
		`["SESSION_INVALID","OpaqueRef:x"]`:                                                         `m: SESSION_INVALID`,
		`["HANDLE_INVALID","host","OpaqueRef:x"]`:                                                   `m: HANDLE_INVALID ["host" "OpaqueRef:…"]`,
		`["X","X"]`: `m: X ["X"]`,
		`[7,"X"]`:   `m: the answer has an error without code`,
		`[]`:        `m: the answer has an error without code`,
		`"X"`:       `m: the answer has an error without code`,
		`17`:        `m: the answer has an error without code`,
	} {
		_, err := decodeReply("m", "", 5, []byte(`{"jsonrpc":"2.0","error":`+body+`,"id":5}`))
		qt.Check(t, qt.Equals(fmt.Sprint(err), want))
	}
	// Emergency mode.
	_, err := decodeReply("m", "", 5, []byte(`{"result":null,"error":["HOST_STILL_BOOTING"],"id":0}`))
	qt.Check(t, qt.Equals(fmt.Sprint(err), "m: HOST_STILL_BOOTING"))
}

// TestCostOfReplies: answers that are made to grow most cost memory in proportion
// to their size only, and what remains of them is little.
func TestCostOfReplies(t *testing.T) {
	const size = 1 << 20
	fill := func(head, unit, tail string) []byte {
		return []byte(head + strings.Repeat(unit+",", (size-len(head)-len(tail)-len(unit))/(len(unit)+1)) + unit + tail)
	}
	numbered := func(head, tail string) []byte {
		var b strings.Builder
		b.WriteString(head)
		for i := 0; b.Len() < size-64; i++ {
			fmt.Fprintf(&b, `"%d":"",`, i)
		}
		return []byte(b.String() + `"x":""` + tail)
	}
	for name, data := range map[string][]byte{
		"events":     fill(`{"id":1,"result":{"token":"x","events":[`, `{"class":"observer","operation":"add","ref":"r"}`, `]}}`),
		"empties":    fill(`{"id":1,"result":{"token":"x","events":[`, `{}`, `]}}`),
		"numbers":    fill(`{"id":1,"result":[`, `1`, `]}`),
		"records":    numbered(`{"id":1,"result":{`, `}}`),
		"attributes": numbered(`{"id":1,"result":{"r":{"attributes":{`, `}}}}`),
		"counts":     numbered(`{"id":1,"result":{"token":"x","valid_ref_counts":{`, `}}}`),
		"data":       fill(`{"id":1,"error":{"message":"X","data":[`, `"OpaqueRef:x"`, `]}}`),
	} {
		qt.Assert(t, qt.IsTrue(len(data) <= size))
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		begin := time.Now()
		m := newMirror(hostUUID)
		result, err := decodeReply("m", "", 1, data)
		if err == nil {
			m.replace(result)
			if b, ok := decodeBatch(result); ok {
				m.apply(b)
			}
		}
		took := time.Since(begin)
		runtime.GC()
		runtime.ReadMemStats(&after)
		held := int64(after.HeapAlloc) - int64(before.HeapAlloc)
		t.Logf("%-10s %5.2f s, %d KiB allocated in all, %d KiB held by what remains", name, took.Seconds(), (after.TotalAlloc-before.TotalAlloc)>>10, held>>10)
		qt.Check(t, qt.IsTrue(after.TotalAlloc-before.TotalAlloc < 128*size))
		qt.Check(t, qt.IsTrue(held < 4*size))
		runtime.KeepAlive(m)
	}
}
