package observer

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/go-quicktest/qt"
)

func TestLookAt(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		qt.Assert(t, qt.IsNil(os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600)))
	}
	write("a.json", `{"name_label":"one","uuid":"3f6c4b2a-9c1d-4e5f-8a7b-001122334455"}`)
	write("b.json", `{"name_label":"one","uuid":"3f6c4b2a-9c1d-4e5f-8a7b-001122334455"}`)
	write("c.json", "{\n\"enabled\": tru}")
	write("d.txt", "no Observer")
	files := LookAt(dir)
	qt.Assert(t, qt.HasLen(files, 3))
	qt.Check(t, qt.Equals(files[0].Path, filepath.Join(dir, "a.json")))
	qt.Check(t, qt.IsNil(files[0].Err))
	qt.Check(t, qt.Equals(files[0].Observer.NameLabel, "one"))
	qt.Check(t, qt.ErrorMatches(files[1].Err, `.*is that of a\.json too.*`))
	qt.Check(t, qt.IsNil(files[1].Observer))
	qt.Check(t, qt.ErrorMatches(files[2].Err, `.*c\.json: .*line 2.*`))

	qt.Check(t, qt.HasLen(LookAt(filepath.Join(dir, "none")), 0))
	files = LookAt(filepath.Join(dir, "d.txt"))
	qt.Assert(t, qt.HasLen(files, 1))
	qt.Check(t, qt.ErrorMatches(files[0].Err, `.*not a directory`))
}

func TestReceivers(t *testing.T) {
	o := Observer{Endpoints: []string{"bugtool", "http://a/api", "bugtool"}, Attributes: map[string]string{
		"dtagent.endpoints": "otlp+http://user:secret@b:4318", "dtagent.metrics": "true", "dtagent.logs": "true",
	}}
	qt.Check(t, qt.DeepEquals(o.Receivers(), []string{"bugtool", "http://a/api", "otlp+http://user:secret@b:4318"}))
	qt.Check(t, qt.Equals(Show(o.Receivers()[2]), "otlp+http://user:xxxxx@b:4318"))
	for in, want := range map[string]string{
		"bugtool":                   "bugtool",
		"http://h/a?token=CANARY x": "http://h/a?token=xxxxx",
		"metrics to otlp+http://h/?token=CANARY otlp+http://u:CANARY@h": "metrics to otlp+http://h/?token=xxxxx otlp+http://u:xxxxx@h",
		"logs to otlp+http://h/#CANARY":                                 "logs to otlp+http://h/#xxxxx",
	} {
		qt.Check(t, qt.Equals(Show(in), want))
	}
}
