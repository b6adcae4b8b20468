//go:build unix

package main

import (
	"log/slog"
	"syscall"

	"golang.org/x/sys/unix"
)

// checkFileLimit tells of limits.connections that can't be had: two descriptors
// each. Go itself raises the soft limit to the hard one.
func checkFileLimit(log *slog.Logger, connections int) {
	var l syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l) == nil && l.Cur < uint64(2*connections+64) {
		log.Warn("limits.connections needs more open files than this process may have: raise LimitNOFILE (systemd) or ulimit -n",
			"connections", connections, "files", l.Cur)
	}
}

// growFileTable makes the kernel's table of descriptors large at once. Linux
// doubles it when it is full, and holds up everything that opens a file for 10 ms
// and more each time. It costs 8 bytes of kernel memory a descriptor.
func growFileTable(connections int) {
	const most = 8192
	if fd, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, min(2*connections+64, most)-1); err == nil {
		unix.Close(fd)
	}
}
