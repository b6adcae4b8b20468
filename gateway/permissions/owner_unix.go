//go:build unix

package permissions

import (
	"io/fs"
	"syscall"
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

// group is the group id of a file; ok is false if that is not known.
func group(info fs.FileInfo) (id uint32, ok bool) {
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return s.Gid, true
}
