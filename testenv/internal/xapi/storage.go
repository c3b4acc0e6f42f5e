//go:build linux

package xapi

import (
	"errors"
	"fmt"
	"strings"

	"github.com/xenserver/dtagent/testenv/config"
	"github.com/xenserver/dtagent/testenv/internal/mswitch"
	"github.com/xenserver/dtagent/testenv/internal/node"
)

// Queues of storage that xapi itself serves: the mux, and the plugin of SMAPIv1
// repositories of type lvm.
const (
	muxQueue    = "org.xen.xapi.storage"
	pluginQueue = "org.xen.xapi.storage.lvm"
)

// script is the SM script of that type.
const script = "/opt/xensource/sm/LVMSR"

// smMethods are SM's names of SMAPIv2's methods.
var smMethods = map[string]string{
	"VDI.attach3": "vdi_attach", "VDI.activate3": "vdi_activate", "VDI.deactivate": "vdi_deactivate", "VDI.detach": "vdi_detach",
}

// mux is a call to the storage mux: it goes on to the plugin, over the switch.
func (x *xapi) mux(t *node.Thread, method string, p mswitch.Params) (string, error) {
	if smMethods[method] == "" {
		return "", &mswitch.Failure{Parts: []string{"Unknown_RPC", method}}
	}
	tag, c := node.ParseDebugInfo(p.DebugInfo())
	t.Tag = tag
	own := t.NewSpanIf(c)
	t.Log(node.Info, "mux", "%s dbg:%s sr:%s vdi:%s", method, tag, p.String("sr"), p.String("vdi"))
	params := fmt.Sprintf(`"vm":%s,"vdi":%s,"sr":%s,"dp":%s,"dbg":%s}`, mswitch.Quoted(p.String("vm")), mswitch.Quoted(p.String("vdi")),
		mswitch.Quoted(p.String("sr")), mswitch.Quoted(p.String("dp")), mswitch.Quoted(t.P.DebugInfo(tag, own)))
	if p["read_write"] != nil {
		params = `{"read_write":` + string(p["read_write"]) + "," + params
	} else {
		params = "{" + params
	}
	got, err := x.client.Call(t, pluginQueue, method, params)
	if err != nil {
		return "", err
	}
	return string(got), nil
}

// plugin runs the SM script in a process and waits for it.
func (x *xapi) plugin(t *node.Thread, method string, p mswitch.Params) (string, error) {
	op := smMethods[method]
	if op == "" {
		return "", &mswitch.Failure{Parts: []string{"Unknown_RPC", method}}
	}
	tag, c := node.ParseDebugInfo(p.DebugInfo())
	t.Tag = tag
	own := t.NewSpanIf(c)
	t.Log(node.Debug, "sm", "SM lvm %s sr=OpaqueRef:%s vdi=%s", op, p.String("sr"), p.String("vdi"))
	session, f := x.newSession(t)
	if f != nil {
		return "", &mswitch.Failure{Parts: append([]string{f.code}, f.params...)}
	}
	defer x.endSession(t, session)
	k := t.P.Knobs()
	env := []string{"ORIGINATOR=SM", "DOM0_FAIL=" + k.Fail[op]}
	if t.P.Truth != nil {
		env = append(env, "DOM0_TRUTH="+t.P.Setup.Root)
	}
	if op == "vdi_attach" || op == "vdi_activate" {
		env = append(env, node.DelayEnv(k.Delay[config.LayerSM]))
	}
	child := node.Child{Path: script, Args: []string{smCall(op, session, p, x.db.hostRef)}, Name: "LVMSR", Operation: op, Component: "smapi", Env: env, Span: own}
	if k.SMAPI {
		child.Path, child.Args = "/usr/bin/python3", append([]string{"-m", "observer", script}, child.Args...)
		child.Env = append(child.Env, "OBSERVER_CONFIG_DIR='/etc/xensource/observer/smapi/enabled'", "PYTHONPATH=/opt/xensource/sm")
	}
	out, err := t.Run(child)
	if err != nil {
		return "", &mswitch.Failure{Parts: []string{"Backend_error", "SR_BACKEND_FAILURE_1200", "", err.Error(), ""}}
	}
	if f := fault(string(out)); f != nil {
		t.Log(node.Error, "sm", "%s failed: %s", op, f)
		return "", &mswitch.Failure{Parts: []string{"Backend_error", f.Error(), "", "injected", ""}}
	}
	if method == "VDI.attach3" {
		return `{"implementations":[["XenDisk",{"backend_type":"vbd3","extra":{},"params":"/dev/sm/backend/` + p.String("sr") + "/" + p.String("vdi") + `"}]]}`, nil
	}
	return "null", nil
}

// smCall is the one argument of an SM script: a call in XML.
func smCall(op, session string, p mswitch.Params, host string) string {
	member := func(name, value string) string {
		return "<member><name>" + name + "</name><value>" + xmlEscape(value) + "</value></member>"
	}
	return "<?xml version='1.0'?><methodCall><methodName>" + op + "</methodName><params><param><value><struct>" +
		member("host_ref", host) + member("command", op) + member("args", "") +
		"<member><name>device_config</name><value><struct>" + member("SRmaster", "true") + member("device", "/dev/sda3") + "</struct></value></member>" +
		member("session_ref", session) + member("sr_ref", "OpaqueRef:"+p.String("sr")) + member("sr_uuid", p.String("sr")) +
		member("vdi_ref", "OpaqueRef:"+p.String("vdi")) + member("vdi_uuid", p.String("vdi")) + member("subtask_of", "DummyRef:|"+uuid()+"|"+strings.ToUpper(op)) +
		"</struct></value></param></params></methodCall>"
}

// fault is the fault in an SM script's answer.
func fault(out string) error {
	if !strings.Contains(out, "<methodResponse>") {
		return errors.New("SR_BACKEND_FAILURE: no answer")
	}
	if _, rest, ok := strings.Cut(out, "<name>faultString</name><value>"); ok {
		text, _, _ := strings.Cut(rest, "</value>")
		return errors.New(text)
	}
	return nil
}
