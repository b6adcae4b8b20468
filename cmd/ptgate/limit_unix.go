//go:build unix

package main

import (
	"log/slog"
	"syscall"
)

// raiseFileLimit makes room for the connections: two descriptors each. Go raises
// the soft limit to the hard one by itself, so that there is only to tell.
func raiseFileLimit(log *slog.Logger, connections int) {
	var l syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l) == nil && l.Cur < uint64(2*connections+64) {
		log.Warn("limits.connections needs more open files than this process may have: raise LimitNOFILE (systemd) or ulimit -n",
			"connections", connections, "files", l.Cur)
	}
}
