package redact

import (
	"testing"

	"github.com/go-quicktest/qt"
)

func TestScrub(t *testing.T) {
	for in, want := range map[string]string{
		"VM.start R:8ae06e1ea3d1":                         "VM.start R:8ae06e1ea3d1",
		"session.login_with_password D:7fab96eb5fb1":      "session.login_with_password D:7fab96eb5fb1",
		"user.change_password R:1":                        "user.change_password R:1",
		"x OpaqueRef:9e25edb4-49f5 y":                     "x OpaqueRef************** y",
		"x OPAQUEREF%3A9e25edb4-49f5&y":                   "x OPAQUEREF****************&y",
		"session_id=abc;a=b":                              "session_id=***;a=b",
		"pool_secret: abc, x":                             "pool_secret: **** x",
		"\"password\":\"a b;c\",\"x\":1":                  "\"password\":\"*****\",\"x\":1",
		"\\\"chappassword\\\": \\\"abc\\\" x":             "\\\"chappassword\\\": \\\"****\" x",
		"CIFSPassword = 'a b' c":                          "CIFSPassword = '***' c",
		"Authorization: Basic Zm9vOmJhcg==":               "Authorization:*******************",
		"Cookie: a=b; session_id=c":                       "Cookie:******************",
		"Bearer abc def":                                  "Bearer *** def",
		"https://root:pw@host/x https://host/y":           "https://*******@host/x https://host/y",
		"https://root:pw":                                 "https://*******",
		"00-3100a3ead5c4210a99c27e3e5578158c-34991b62-00": "00-3100a3ead5c4210a99c27e3e5578158c-34991b62-00",
		"token%3Dabc&x":                                   "token%3D***&x",
		"https://h/api?token=abc&x=1;y=2#z w":             "https://h/api?token=***&x=*;y=*** w",
		"https://k.s3.x/?X-Amz-Signature=a%2Fb&c d":       "https://k.s3.x/?X-Amz-Signature=*****&* d",
		"GET /rrd_updates?session_id=a&start=1 R:1":       "GET /rrd_updates?session_id=*&start=* R:1",
		"PUT /import?a= R:8ae06e1ea3d1":                   "PUT /import?a= R:8ae06e1ea3d1",
		"x?\\na?sig=b\\n{\"c\":1}":                        "x?\\na?sig=*\\n{\"c\":1}",
		"https://h/?sig=\"a b\" c":                        "https://h/?sig=\"***\" c",
		"https://h/?sig=\\\"a b\\\" c":                    "https://h/?sig=\\\"****\" c",
		"why? because=x":                                  "why? because=x",
		"x-goog-signature: abc":                           "x-goog-signature: ***",
		"AWSAccessKeyId=abc":                              "AWSAccessKeyId=***",
		"":                                                "",
	} {
		b := []byte(in)
		scrub(b)
		qt.Check(t, qt.Equals(string(b), want))
	}
}

func FuzzScrub(f *testing.F) {
	f.Add([]byte("session_id=OpaqueRef:1-2 https://a:b@c/ Basic x \"password\":\"y\""))
	f.Fuzz(func(t *testing.T, b []byte) {
		before := string(b)
		scrub(b)
		check(t, []byte(before), b)
	})
}
