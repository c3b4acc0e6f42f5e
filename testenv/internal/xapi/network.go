//go:build linux

package xapi

import (
	"encoding/json"
	"slices"

	"github.com/xenserver/dtagent/testenv/internal/mswitch"
	"github.com/xenserver/dtagent/testenv/internal/networkd"
	"github.com/xenserver/dtagent/testenv/internal/node"
)

// internalBridge is the bridge of the pool's one network, which has no PIF.
const internalBridge = "xapi0"

// bridge makes sure that the VM's network has its bridge, as xapi does before it
// has the VM started.
func (w *work) bridge() *failure {
	if !w.x.p.Setup.Options.Networkd {
		return nil
	}
	const uuid = "7d1a6b9e-02c4-4c0b-9a4e-5f4f8b8d0a11"
	w.debug("network", "Creating internal bridge %s (uuid:%s)", internalBridge, uuid)
	tag := mswitch.Quoted(w.tag)
	got, f := w.network("Network.Bridge.get_all", tag+",null")
	if f != nil {
		return f
	}
	var bridges []string
	if err := json.Unmarshal(got, &bridges); err != nil {
		return fail("INTERNAL_ERROR", err.Error())
	}
	if slices.Contains(bridges, internalBridge) {
		return nil
	}
	name := `"name":` + mswitch.Quoted(internalBridge)
	if _, f := w.network("Network.Bridge.create", `{`+name+`,"other_config":{"network-uuids":"`+uuid+`"}},`+tag); f != nil {
		return f
	}
	_, f = w.network("Network.Bridge.set_persistent", `{"value":false,`+name+`},`+tag)
	return f
}

// network calls xcp-networkd, which is told the log tag only, also when there is a
// trace.
func (w *work) network(method, params string) (json.RawMessage, *failure) {
	got, err := w.x.client.Call(w.t, networkd.Queue, method, params)
	if err != nil {
		w.t.Log(node.Error, "network", "%s: %v", method, err)
		return nil, fail("INTERNAL_ERROR", err.Error())
	}
	return got, nil
}
