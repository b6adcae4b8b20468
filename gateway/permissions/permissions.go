// Package permissions tells whether other users of the machine could change a file or a
// directory that ptgate believes: whoever can write the configuration chooses which
// programs run as ptgate's user. It looks at owner and mode as ssh does. The superuser is
// nobody's other user, and for ptgate as the superuser the owner does not matter, so that
// root can look at the files of a service. A group that is the user's own may write, too.
//
// It does not look at the directories above, and on systems without such modes
// (Windows) it finds nothing.
package permissions

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Check returns an error that says what to do if others can change the file or directory
// at path. info is what fstat or stat gives: of the file itself, not of a link to it. What
// is neither a file nor a directory, such as a pipe, is not looked at.
func Check(path string, info fs.FileInfo) error {
	if !info.Mode().IsRegular() && !info.IsDir() {
		return nil
	}
	if owner, ok := Owner(info); ok && !Trusted(owner) {
		return fmt.Errorf("it belongs to user %d, who is neither user %d, as whom this runs, nor root, and can change it: "+
			"if it is meant for this, chown %[2]d %s", owner, os.Geteuid(), path)
	}
	writable := info.Mode().Perm() & 0o022
	if ownGroup(info) {
		writable &^= 0o020
	}
	if hasModes && writable != 0 {
		return fmt.Errorf("others can write it (mode %#o), and so choose what ptgate does: chmod go-w %s", info.Mode().Perm(), path)
	}
	return nil
}

// Denied tells why this process may not read a file, and who must own it; "" if that does not show.
// A file of somebody else's is most often that of a service, which should keep it.
func Denied(path string) string {
	info, err := os.Stat(path)
	switch {
	case err != nil && filepath.Base(path) == path:
		return fmt.Sprintf("user %d, as whom this runs, may not look into the directory where it was called: cd elsewhere", os.Geteuid())
	case err != nil:
		return fmt.Sprintf("user %d, as whom this runs, may not look into its directory", os.Geteuid())
	}
	owner, ok := Owner(info)
	switch {
	case !ok || !hasModes:
		return ""
	case int64(owner) == int64(os.Geteuid()):
		return fmt.Sprintf("it has mode %#o: chmod u+r %s", info.Mode().Perm(), path)
	case owner != 0:
		return fmt.Sprintf("it belongs to user %d (mode %#o), and this runs as user %d: run it as that user or as root, or, if the file is meant for user %[3]d, chown %[3]d %s",
			owner, info.Mode().Perm(), os.Geteuid(), path)
	}
	return fmt.Sprintf("it belongs to user %d (mode %#o), and this runs as user %d, who must own it: chown %[3]d %s",
		owner, info.Mode().Perm(), os.Geteuid(), path)
}

// ownGroup tells whether the group of a file or directory is one that may write there. The
// group in which this process runs, with the number of its user, is that user's alone, as
// most systems make it; a umask of 002 goes with such groups. The superuser trusts every
// owner, and so an owner's group. A directory may also be shared on purpose with the group
// in which this process runs, as with mode 2770.
func ownGroup(info fs.FileInfo) bool {
	gid, ok := group(info)
	if !ok {
		return false
	}
	euid := int64(os.Geteuid())
	if owner, ok := Owner(info); ok && euid == 0 && gid == owner {
		return true
	}
	return int64(gid) == int64(os.Getegid()) && (int64(gid) == euid || info.IsDir())
}

// CheckDir is Check for a directory. If the path is a link, that must have been made by
// somebody who is trusted, too.
func CheckDir(path string) error {
	link, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if owner, ok := Owner(link); ok && link.Mode()&fs.ModeSymlink != 0 && !Trusted(owner) {
		return fmt.Errorf("it is a link that user %d has made, who is neither user %d, as whom this runs, nor root: remove the link, or name where it leads to",
			owner, os.Geteuid())
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	return Check(path, info)
}

// Trusted tells whether a user can do what this process can anyway: the same user, root,
// or anybody if this process is root.
func Trusted(owner uint32) bool {
	own := os.Geteuid()
	return own == 0 || owner == 0 || int64(owner) == int64(own)
}
