package event

import "errors"

// ErrRecord is wrapped by the errors for records that cannot be decoded: too
// short, of an unknown kind or version, or with lengths that do not fit.
var ErrRecord = errors.New("malformed record")
