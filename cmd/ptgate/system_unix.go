//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ptgate/adapter/descriptors"
	"ptgate/gateway/config"
)

// fewFiles is a limit of open files that many people at once may use up: some
// 1900 connections.
const fewFiles = 4096

// checkFileLimit tells of limits.connections that can't be had. Go itself raises the
// soft limit to the hard one. Who has asked for no number is hardly in need of it, and hears
// of it only where the limit is a small one.
func checkFileLimit(log *slog.Logger, limits *config.Limits) {
	need := 2*uint64(limits.Connections) + 64 + uint64(descriptors.Kept()) // two each
	if files := descriptors.Limit(); files != descriptors.Unlimited && uint64(files) < need {
		level := slog.LevelWarn
		switch {
		case limits.DefaultConnections && files >= fewFiles:
			level = slog.LevelDebug
		case limits.DefaultConnections:
			level = slog.LevelInfo
		}
		log.Log(context.Background(), level, "this process may have fewer open files than limits.connections may need: "+
			"raise LimitNOFILE (systemd) or ulimit -n, or lower limits.connections",
			"connections", limits.Connections, "needed", need, "files", files)
	}
}

// keepOwner gives f the owner of another file.
func keepOwner(f *os.File, of fs.FileInfo) error {
	want, ok := of.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	have, ok := info.Sys().(*syscall.Stat_t)
	if ok && have.Uid == want.Uid && have.Gid == want.Gid {
		return nil
	}
	err = f.Chown(int(want.Uid), int(want.Gid))
	if err == nil || ok && have.Uid == want.Uid && groupless(of.Mode()) {
		return nil
	}
	if path, ok := errors.AsType[*fs.PathError](err); ok {
		err = path.Err // the file has another name soon
	}
	return fmt.Errorf("the file belongs to user %d and group %d, and would not any more: do this as that user in that group, or as root: %w", want.Uid, want.Gid, err)
}

// groupless tells whether a file's group may do nothing with it, and so does not matter. Whoever
// copies a file as root, and then gives it away, often leaves root's group.
func groupless(mode fs.FileMode) bool { return mode.Perm()&0o070 == 0 }

// lock waits until no other process has a directory locked, and locks it until it is closed.
func lock(dir *os.File) error {
	for {
		if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != unix.EINTR {
			return err
		}
	}
}

// dieOf ends the process as the signal does by default.
func dieOf(s syscall.Signal) {
	signal.Reset(s)
	syscall.Kill(syscall.Getpid(), s)
	time.Sleep(time.Minute) // it comes at any moment
}
