// Package testenv is a dom0 that fits in a test: separate processes named and
// behaving as XenServer's xapi, message-switch, xenopsd-xc, SM, xenguest,
// stunnel and syslog do on the wire, in threads and in system calls, started
// in a private mount namespace so that the real paths exist inside and the
// machine stays untouched.
//
// Every process writes what really happened (package truth), so that a test can
// compare what dtagent found out from outside with what there was to find.
//
// Its xapi has the pool's Observers and their events, and its faults can be
// ordered: it can be restarted or killed, forget sessions and events, be in
// emergency mode, and answer late or nonsense.
//
// StartPool starts two of them, a coordinator and a member, each in a network
// namespace of its own: they call each other as hosts of a pool do, over stunnel.
//
// It needs Linux with overlayfs, root (CAP_SYS_ADMIN: unshare, mount) and, to be
// built, a C compiler: threads are made by pthread_create on the thread that the
// real program would make them on. The agent never imports it.
package testenv
