//go:build unix

package main

import (
	"context"
	"log/slog"
	"syscall"

	"ptgate/gateway/config"
)

// checkFileLimit tells of limits.connections that can't be had. Go itself raises the
// soft limit to the hard one. Who has asked for no number is hardly in need of it.
func checkFileLimit(log *slog.Logger, limits *config.Limits) {
	level := slog.LevelWarn
	if limits.DefaultConnections {
		level = slog.LevelInfo
	}
	need := 2*limits.Connections + 64 // two each
	var l syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l) == nil && uint64(l.Cur) < uint64(need) { // FreeBSD's has a sign
		log.Log(context.Background(), level, "this process may have fewer open files than limits.connections may need: "+
			"raise LimitNOFILE (systemd) or ulimit -n, or lower limits.connections",
			"connections", limits.Connections, "needed", need, "files", l.Cur)
	}
}
