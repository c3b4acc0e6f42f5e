package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/cmd/dtagent/push"
)

func TestPushLineHidesSecrets(t *testing.T) {
	line := pushLine(push.Summary{}, "https://u:CANARY@h/api?token=CANARY")
	qt.Check(t, qt.StringContains(line, " to https://u:xxxxx@h/api?token=xxxxx in "))
	qt.Check(t, qt.StringContains(pushLine(push.Summary{}, "https://h:x/?token=CANARY"), "?token=xxxxx in "))
}

func TestPush(t *testing.T) {
	const one = `[{"traceId":"9dda2bd691624f9e2fce578f3a941b87","id":"d3ee4b91c27d703a","name":"VM.start","timestamp":1,"duration":1}]` + "\n"
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		qt.Assert(t, qt.IsNil(os.WriteFile(path, []byte(text), 0o600)))
		return path
	}
	status := 202
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(status)
	}))
	defer srv.Close()
	good := file("good.ndjson", one+one)

	code, out, stderr := dtagent("push", good, srv.URL+"/api/v2/spans")
	qt.Check(t, qt.Equals(code, 0))
	qt.Check(t, qt.Matches(out, `sent 2 spans \(2 lines, \d+ bytes\) of 1 of 1 files to http://\S+/api/v2/spans in \S+\n`))
	qt.Check(t, qt.Equals(stderr, "")) // no bar: it is no terminal

	code, out, stderr = dtagent("push", "--json", good, srv.URL)
	qt.Check(t, qt.Equals(code, 0))
	qt.Check(t, qt.Equals(stderr, ""))
	var sum push.Summary
	qt.Assert(t, qt.IsNil(json.Unmarshal([]byte(out), &sum)))
	sum.Seconds = 0
	qt.Check(t, qt.DeepEquals(sum, push.Summary{Files: 1, FilesTotal: 1, Lines: 2, Spans: 2, Bytes: int64(2*len(one) - 2), Requests: 1, Troubles: []push.Trouble{}}))

	// The end of a file that is still written is told, and no failure.
	code, out, stderr = dtagent("push", file("live.ndjson", one+one[:20]), srv.URL)
	qt.Check(t, qt.Equals(code, 0))
	qt.Check(t, qt.Matches(out, `sent 1 spans .*; 1 half lines left out\n`))
	qt.Check(t, qt.Matches(stderr, `dtagent push: \S+live.ndjson: line 2: half a line at the end of the file, which is still written or was cut off; not sent\n`))

	code, out, stderr = dtagent("push", file("bad.ndjson", "nonsense\n"+one), srv.URL)
	qt.Check(t, qt.Equals(code, exitFailed))
	qt.Check(t, qt.Matches(out, `sent 1 spans .*; 1 lines failed\n`))
	qt.Check(t, qt.Matches(stderr, `(?s)dtagent push: \S+bad.ndjson: line 1: not zipkin-v2, not sent: .*\ndtagent push: not everything was sent.*\n`))

	status = 404
	code, out, stderr = dtagent("push", good, srv.URL)
	qt.Check(t, qt.Equals(code, exitFailed))
	qt.Check(t, qt.Matches(out, `sent 0 spans .* of 0 of 1 files .*\n`))
	qt.Check(t, qt.Matches(stderr, `dtagent push: \S+good.ndjson: line 1 and what follows it was not sent: answered 404 Not Found. Is the path right\?.*\n`))

	status = 503
	code, _, stderr = dtagent("push", "--retries", "1", good, srv.URL)
	qt.Check(t, qt.Equals(code, exitFailed))
	qt.Check(t, qt.Matches(stderr, `(?s)dtagent push: answered 503 Service Unavailable; again in \S+\ndtagent push: \S+ line 1 and what follows .* answered 503.*\n`))

	for _, args := range [][]string{{"push"}, {"push", good}, {"push", good, "host:9411"}, {"push", good, srv.URL, "more"}} {
		code, _, _ = dtagent(args...)
		qt.Check(t, qt.Equals(code, exitUsage), qt.Commentf("%q", args))
	}
	code, _, stderr = dtagent("push", filepath.Join(dir, "absent"), srv.URL)
	qt.Check(t, qt.Equals(code, exitFailed))
	qt.Check(t, qt.Matches(stderr, `dtagent push: stat \S+absent: no such file or directory\n`))
}
