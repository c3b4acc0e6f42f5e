package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/client"
)

// TestSecretsGoNowhere sends passwords, session references, pool secrets and
// cookies of every form through the toolstack and looks for them in all that the
// agent writes: files, log at its most verbose, status, trace stream.
func TestSecretsGoNowhere(t *testing.T) {
	l := newLab(t, testenv.Options{Knobs: testenv.Knobs{Verbose: true}}, "--log-level", "debug")
	l.observe()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	streamed := make(chan string, 1)
	go func() {
		out, _ := l.agent.Run(ctx, "trace", "--json", "--count", "12") // ended by cancel
		streamed <- out
	}()
	l.wait("answers", func(*control.Status) bool { return true })

	const canary = "CANARYpassword77"
	secrets := []string{canary}
	for _, shape := range []client.Shape{client.Python, client.Node, client.JSON1} {
		for _, transport := range []string{"unix", "tcp", "tls"} {
			c := l.dial(transport, client.Options{Shape: shape, KeepAlive: true,
				Header: []string{"Cookie: session_id=" + canary + "; pool_secret=" + canary, "Authorization: Basic " + canary, "X-Unknown: " + canary}})
			v, err := c.Call(ctx, "session.login_with_password", "root", canary, "1.0", "partner")
			qt.Assert(t, qt.IsNil(err))
			session, ok := v.(string)
			qt.Assert(t, qt.IsTrue(ok))
			secrets = append(secrets, strings.TrimPrefix(session, "OpaqueRef:"))
			_, err = c.Call(ctx, "VM.get_all", session)
			qt.Assert(t, qt.IsNil(err))
			_, err = c.Call(ctx, "session.logout", session)
			qt.Assert(t, qt.IsNil(err))
			c.Close()
		}
	}
	c := l.dial("unix", client.Options{})
	_, _ = c.Xe(ctx, "vm-list", "password="+canary, "secret="+canary) // how it ends does not matter
	_, _, _ = c.Request(ctx, "GET", "/rrd_updates?session_id=OpaqueRef:"+canary+"&pool_secret="+canary, nil)
	_, _, _ = c.Request(ctx, "PUT", "/import?session_id=OpaqueRef:"+canary+"&task_id=OpaqueRef:0", []byte(canary))
	session := l.session()
	secrets = append(secrets, strings.TrimPrefix(session, "OpaqueRef:"))
	// The SM script gets the session in its argument.
	_, err := l.dial("unix", client.Options{}).Call(ctx, "VM.start", session, l.dom0.VMs()[0].Ref, false, false)
	qt.Assert(t, qt.IsNil(err))
	_, err = l.dial("unix", client.Options{}).Call(ctx, "VM.get_record", "OpaqueRef:"+canary, "nonsense")
	qt.Check(t, qt.IsTrue(err == nil || !strings.Contains(err.Error(), "EOF")))

	l.traces()
	status, err := json.Marshal(l.status())
	qt.Assert(t, qt.IsNil(err))
	places := map[string][]byte{"status": status}
	qt.Assert(t, qt.IsNil(l.agent.Stop()))
	cancel()
	places["trace stream"] = []byte(<-streamed)
	qt.Assert(t, qt.StringContains(string(places["trace stream"]), "session.login_with_password"))
	places["log"] = []byte(l.agent.Log())
	qt.Assert(t, qt.IsNil(filepath.WalkDir(l.dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			places[p], err = os.ReadFile(p)
		}
		return err
	})))
	for where, b := range places {
		for _, s := range secrets {
			if i := bytes.Index(b, []byte(s)); i >= 0 {
				t.Errorf("%s holds a secret: …%s…", where, b[max(0, i-200):min(len(b), i+len(s)+20)])
			}
		}
	}
	t.Logf("%d secrets in none of %d places", len(secrets), len(places))
}
