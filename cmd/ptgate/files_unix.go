//go:build unix

package main

import (
	"context"
	"log/slog"
	"syscall"

	"golang.org/x/sys/unix"

	"ptgate/gateway/config"
)

// needFiles is how many descriptors that many connections may take: two each.
func needFiles(connections int) int { return 2*connections + 64 }

// checkFileLimit tells of limits.connections that can't be had. Go itself raises the
// soft limit to the hard one. Who has asked for no number is hardly in need of it.
func checkFileLimit(log *slog.Logger, limits *config.Limits) {
	level := slog.LevelWarn
	if limits.DefaultConnections {
		level = slog.LevelInfo
	}
	need := needFiles(limits.Connections)
	var l syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l) == nil && uint64(l.Cur) < uint64(need) { // FreeBSD's has a sign
		log.Log(context.Background(), level, "this process may have fewer open files than limits.connections may need: "+
			"raise LimitNOFILE (systemd) or ulimit -n, or lower limits.connections",
			"connections", limits.Connections, "needed", need, "files", l.Cur)
	}
}

// growFileTable makes the kernel's table of descriptors large at once. Linux
// doubles it when it is full, and holds up everything that opens a file for 10 ms
// and more each time. It costs 8 bytes of kernel memory a descriptor. Without it,
// which is what an error tells, things are only slower.
func growFileTable(connections int) error {
	size := min(uint64(needFiles(connections)), 8192)
	var l syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l) == nil {
		size = min(size, uint64(l.Cur)) // no descriptor may be larger
	}
	fd, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, int(size)-1)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}
