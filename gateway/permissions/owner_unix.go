//go:build unix

package permissions

import (
	"io/fs"
	"syscall"

	"golang.org/x/sys/unix"
)

const hasModes = true

// Owner is the user id of a file's owner; ok is false if that is not known.
func Owner(info fs.FileInfo) (id uint32, ok bool) {
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return s.Uid, true
}

// Writable tells whether this process may make files in a directory.
func Writable(dir string) bool {
	return unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS) == nil
}

// group is the group id of a file; ok is false if that is not known.
func group(info fs.FileInfo) (id uint32, ok bool) {
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return s.Gid, true
}
