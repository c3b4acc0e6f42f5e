package masked

import (
	"net/url"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
)

const canary = "CANARY"

func TestEndpoint(t *testing.T) {
	for in, want := range map[string]string{
		"":                                       "",
		"bugtool":                                "bugtool",
		"http://h:9411/api/v2/spans":             "http://h:9411/api/v2/spans",
		"otlp+https://h":                         "otlp+https://h",
		"http://u:CANARY@h/":                     "http://u:xxxxx@h/",
		"http://CANARY@h/":                       "http://xxxxx@h/",
		"http://h/api?token=CANARY":              "http://h/api?token=xxxxx",
		"http://h/a?b=CANARY&c=&d=CANARY#CANARY": "http://h/a?b=xxxxx&c=&d=xxxxx#xxxxx",
		"http://h/?CANARY":                       "http://h/?xxxxx",
		"http://h/?CANARY%20=1":                  "http://h/?xxxxx",
		"http://h/?a=1;sig=CANARY":               "http://h/?a=xxxxx&sig=xxxxx",
		"http://h/a#access_token=CANARY":         "http://h/a#xxxxx",
		"otlp+https://k.s3.example/v1/traces?X-Amz-Signature=CANARY&X-Amz-Credential=CANARY%2F1": "otlp+https://k.s3.example/v1/traces?X-Amz-Signature=xxxxx&X-Amz-Credential=xxxxx",
		// No URLs.
		"h/api?token=CANARY":            "h/api?token=xxxxx",
		"http://ho%st/api?token=CANARY": "http://ho%st/api?token=xxxxx",
		"http://u:CANARY@ho%st/?CANARY": "http://xxxxx@ho%st/?xxxxx",
		"http://u:CAN?ARY@h":            "http://u:xxxxx?xxxxx",
		"http:///?token=CANARY":         "http:///?token=xxxxx",
		"u:CANARY@h":                    "xxxxx@h",
		"h#CANARY?a=CANARY":             "h#xxxxx",
	} {
		got := Endpoint(in)
		qt.Check(t, qt.Equals(got, want), qt.Commentf("%s", in))
		qt.Check(t, qt.Equals(Endpoint(got), got), qt.Commentf("%s", got))
	}
}

func TestHide(t *testing.T) {
	u, err := url.Parse("http://u:p%40ss@h/?token=CANA%2FRY&n=1&x=CANA%2FRY2")
	qt.Assert(t, qt.IsNil(err))
	s := SecretsOf(u)
	qt.Check(t, qt.Equals(s.Hide("no /?token=CANA%2FRY&n=1, CANA/RY2 p@ss p%40ss h"), "no /?token=xxxxx&n=1, xxxxx xxxxx xxxxx h"))
	qt.Check(t, qt.Equals(Secrets{}.Hide("x"), "x"))
	u, err = url.Parse("http://token@h/")
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(SecretsOf(u).Hide("a token"), "a xxxxx"))
}

// FuzzEndpoint: a value in a query, a password and a fragment are not shown,
// whatever stands around them.
func FuzzEndpoint(f *testing.F) {
	f.Add("http://h/", "a", "")
	f.Add("ht tp://h", "X-Amz-Signature", "&b=1")
	f.Add("http://h?x=1#y", "q", "#z")
	f.Add("//h/%", "", "?")
	f.Fuzz(func(t *testing.T, front, key, back string) {
		if strings.Contains(front+key+back, canary) {
			return
		}
		for _, s := range []string{front + "?" + key + "=" + canary + back, front + "#" + canary + back, "http://u:" + canary + "@" + front + back} {
			if got := Endpoint(s); strings.Contains(got, canary) {
				t.Errorf("%q is shown as %q", s, got)
			}
		}
	})
}
