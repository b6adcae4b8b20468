//go:build unix

package durable

import (
	"os"
	"path/filepath"
	"syscall"
)

// giveToDir gives f the owner of its directory. Only root can.
func giveToDir(f *os.File) error {
	if os.Geteuid() != 0 {
		return nil
	}
	uid, gid, err := owner(filepath.Dir(f.Name()))
	if err != nil {
		return err
	}
	return f.Chown(uid, gid)
}

// ownLike gives a path the owner of another one. A link is not followed: the directory may be
// somebody else's, who would be given what the link leads to.
func ownLike(path, other string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	uid, gid, err := owner(other)
	if err != nil {
		return err
	}
	return os.Lchown(path, uid, gid)
}

func owner(path string) (uid, gid int, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, 0, err
	}
	s := info.Sys().(*syscall.Stat_t)
	return int(s.Uid), int(s.Gid), nil
}
