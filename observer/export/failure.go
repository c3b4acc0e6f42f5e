package export

import (
	"errors"
	"fmt"
	"time"
)

// Cause says why a span was dropped.
type Cause uint8

// The causes.
const (
	QueueFull   Cause = iota // the endpoint took less than was made; the oldest went
	Rejected                 // the receiver refused the batch for good: HTTP 4xx
	Redirected               // the receiver answered with a redirect, which is not followed
	DiskFull                 // no space, quota or file size left
	WriteError               // another error of the file system
	EncodeError              // the span could not be put into the receiver's form
	Unusable                 // no exporter could be made for the endpoint
	Unsent                   // still undelivered when its time to flush was over
	TooOld                   // undelivered for longer than spans are kept
	Corrupt                  // its file in the queue on disk was damaged
	NumCauses
)

var causeNames = [NumCauses]string{
	"queue_full", "rejected", "redirected", "disk_full", "write_error", "encode_error", "unusable", "unsent", "too_old", "corrupt",
}

// String returns the name that status and metrics show.
func (c Cause) String() string {
	if c < NumCauses {
		return causeNames[c]
	}
	return fmt.Sprintf("cause(%d)", uint8(c))
}

// Failure is the error of an export that did not deliver the whole batch.
type Failure struct {
	Err   error
	Retry bool          // nothing was delivered and the same batch may be tried again
	After time.Duration // with Retry: the receiver asked for at least this pause; 0: it did not
	Cause Cause         // without Retry: why the records were dropped
	Lost  int           // without Retry: how many of the batch were dropped; the others were delivered
}

func (f *Failure) Error() string { return f.Err.Error() }

// Unwrap returns the cause of the failure.
func (f *Failure) Unwrap() error { return f.Err }

// AsFailure returns err as a Failure. An error of another type loses the whole
// batch of n records.
func AsFailure(err error, n int) *Failure {
	var f *Failure
	if errors.As(err, &f) {
		return f
	}
	return &Failure{Err: err, Cause: WriteError, Lost: n}
}
