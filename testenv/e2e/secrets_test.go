package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"github.com/klauspost/compress/zstd"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/client"
)

// TestSecretsGoNowhere sends passwords, session references, pool secrets and
// cookies of every form through the toolstack and looks for them in all that the
// agent writes: files, the queue on disk for a receiver that is down, log records,
// metrics, its log at its most verbose, status, trace stream. The agent's own
// session is one of the secrets.
func TestSecretsGoNowhere(t *testing.T) {
	page := filepath.Join(t.TempDir(), "page.sock")
	l := newXapiLab(t, testenv.Options{Knobs: testenv.Knobs{Verbose: true}}, "--log-level", "debug", "--metrics", "unix:"+page)
	l.connected()
	l.observe("endpoints=bugtool,http://user:CANARYpassword77@127.0.0.1:1/api/v2/spans?token=CANARYpassword77&X-Amz-Signature=CANARYpassword77#CANARYpassword77", "attributes:dtagent.metrics=true", "attributes:dtagent.logs=true")
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
				Header: []string{"Cookie: session_id=" + canary + "; pool_secret=" + canary, "Authorization: Basic " + canary, "X-Unknown: " + canary,
					"User-Agent: partner (https://partner.example/?key=" + canary + "&sig=" + canary + ")", "x-http-other-config-dbg: PUT /import?ticket=" + canary}})
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
	_, _, _ = c.Request(ctx, "GET", "/export?uuid=0&session_id=OpaqueRef:"+canary+"&task_id=OpaqueRef:"+canary+"&token="+canary+"#"+canary, nil)
	_, _, _ = c.Request(ctx, "GET", "http://host/vm_rrd?X-Amz-Signature="+canary, nil)
	session := l.session()
	secrets = append(secrets, strings.TrimPrefix(session, "OpaqueRef:"))
	// The SM script gets the session in its argument.
	_, err := l.dial("unix", client.Options{}).Call(ctx, "VM.start", session, l.dom0.VMs()[0].Ref, false, false)
	qt.Assert(t, qt.IsNil(err))
	_, err = l.dial("unix", client.Options{}).Call(ctx, "VM.get_record", "OpaqueRef:"+canary, "nonsense")
	qt.Check(t, qt.IsTrue(err == nil || !strings.Contains(err.Error(), "EOF")))

	time.Sleep(3 * time.Second) // longer than the engine holds a tree back; the dead endpoint never settles
	l.wait("has written its files", func(s *control.Status) bool {
		return s.Observers[0].Endpoints[0].Sent > 100 && s.Observers[0].Endpoints[0].Queued == 0
	})
	status, err := json.Marshal(l.status())
	qt.Assert(t, qt.IsNil(err))
	places := map[string][]byte{"status": status, "metrics": []byte(scrapeText(t, page))}
	qt.Assert(t, qt.StringContains(string(places["metrics"]), "session.login_with_password"))
	qt.Assert(t, qt.IsNil(l.agent.Stop()))
	cancel()
	places["trace stream"] = []byte(<-streamed)
	qt.Assert(t, qt.StringContains(string(places["trace stream"]), "session.login_with_password"))
	places["log"] = []byte(l.agent.Log())
	unpack, err := zstd.NewReader(nil)
	qt.Assert(t, qt.IsNil(err))
	defer unpack.Close()
	queued := 0
	qt.Assert(t, qt.IsNil(filepath.WalkDir(l.dir, func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil || !d.Type().IsRegular():
			return err
		case strings.HasPrefix(p, l.agent.ObserversDir()), filepath.Base(p) == "queue.json":
			info, err := d.Info() // it holds the endpoint as it was given, for its owner alone
			qt.Check(t, qt.IsTrue(err == nil && info.Mode().Perm() == 0o600), qt.Commentf("%s", p))
			return err
		}
		places[p], err = os.ReadFile(p)
		if err == nil && strings.HasSuffix(p, ".zst") {
			queued++
			places[p], err = unpack.DecodeAll(places[p], nil)
		}
		return err
	})))
	qt.Assert(t, qt.Not(qt.Equals(queued, 0)))
	for where, b := range places {
		for _, s := range secrets {
			if i := bytes.Index(b, []byte(s)); i >= 0 {
				t.Errorf("%s holds a secret: …%s…", where, b[max(0, i-200):min(len(b), i+len(s)+20)])
			}
		}
	}
	// Nobody else talks of sessions by their references to that socket.
	if i := bytes.Index(places["log"], []byte("OpaqueRef:")); i >= 0 {
		t.Errorf("the log holds a reference: …%s…", places["log"][max(0, i-200):i+20])
	}
	t.Logf("%d secrets in none of %d places", len(secrets), len(places))
}

// scrapeText reads the metrics page on a unix socket as it is.
func scrapeText(t testing.TB, socket string) string {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}}
	defer c.CloseIdleConnections()
	resp, err := c.Get("http://dtagent/metrics")
	qt.Assert(t, qt.IsNil(err))
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	qt.Assert(t, qt.IsNil(err))
	return string(b)
}
