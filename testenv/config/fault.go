package config

import (
	"syscall"
	"time"
)

// Reply is what is wrong with xapi's answers to a method.
type Reply string

// Replies.
const (
	ReplyRight   Reply = ""
	ReplyGarbage Reply = "garbage" // status 200, and a body that is neither JSON nor XML
	ReplyHalf    Reply = "half"    // the header and half of the body it announces, then the connection closes
	ReplyError   Reply = "500"     // status 500 and an HTML page, then the connection closes
	ReplyNothing Reply = "nothing" // the connection closes without an answer
)

// Emergency is the error of a member that does not find its coordinator: the one
// that xapi starts with (xapi_globs.ml, emergency_mode_error).
const Emergency = "HOST_STILL_BOOTING"

// Program is one of the dom0's long-lived programs, or a group of them.
type Program string

// Programs that can be restarted.
const (
	Xapi      Program = "xapi"
	Xenopsd   Program = "xenopsd"   // xenopsd-xc alone, as after a crash: calls that it had not answered go to the new one
	Syslog    Program = "syslog"    // rsyslogd, which makes another /dev/log
	Toolstack Program = "toolstack" // xapi, xenopsd-xc and message-switch, as xe-toolstack-restart has it
)

// Outage is how a program goes and comes back. The zero value is what a clean
// restart looks like to the clients of xapi's socket.
type Outage struct {
	Signal  syscall.Signal `json:"signal,omitempty"`  // it is ended with; 0: SIGTERM
	Gone    time.Duration  `json:"gone,omitempty"`    // how long there is no socket (ENOENT); 0: 100 ms; < 0: the old one stays, and nobody listens, until the new process removes it
	Refused time.Duration  `json:"refused,omitempty"` // how long there is one on which nobody listens (ECONNREFUSED); 0: 100 ms; < 0: not at all; at most 10 s
}

// WithDefaults returns o with the defaults of its zero values filled in.
func (o Outage) WithDefaults() Outage {
	if o.Signal == 0 {
		o.Signal = syscall.SIGTERM
	}
	for _, d := range []*time.Duration{&o.Gone, &o.Refused} {
		if *d == 0 {
			*d = 100 * time.Millisecond
		}
	}
	return o
}
