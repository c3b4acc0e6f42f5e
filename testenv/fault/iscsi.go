//go:build linux

package fault

import "context"

func openISCSI(_ context.Context, o Options, d *device) error { return missingModule("iscsi_tcp", nil) }
