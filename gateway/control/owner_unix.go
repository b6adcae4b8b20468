//go:build unix

package control

import (
	"io/fs"
	"syscall"
)

// sameOwner tells whether two files are of the same user.
func sameOwner(a, b fs.FileInfo) bool {
	x, ok := a.Sys().(*syscall.Stat_t)
	y, ok2 := b.Sys().(*syscall.Stat_t)
	return ok && ok2 && x.Uid == y.Uid
}
