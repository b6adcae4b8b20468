// Package durable writes files that must survive a full disk, a crash and a power
// cut, such as keys and configurations. At any time, a file has its whole old content
// or its whole new content, never a part. After the function has returned without an
// error, the new content is on the disk.
//
// It does not lock: if two write the same file, the last one wins.
package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// WriteFile replaces the file called name, or makes it, with the content data and the
// permissions perm. After an error, the old file is unchanged, unless the error is
// that of the sync of the directory.
func WriteFile(name string, data []byte, perm fs.FileMode) error {
	return replace(name, data, perm, func(*os.File) error { return nil })
}

// WriteOwned is WriteFile for a file that belongs to whom its directory belongs, also if this
// process is root: somebody else has to read it. The directory is made, with mode 0700, if it
// is not there; it belongs to whom the one above belongs.
func WriteOwned(name string, data []byte, perm fs.FileMode) error {
	if err := mkdirOwned(filepath.Dir(name)); err != nil {
		return err
	}
	return replace(name, data, perm, giveToDir)
}

// mkdirOwned lets nobody see a directory whose owner is wrong still.
func mkdirOwned(dir string) error {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	above := filepath.Dir(dir)
	if err := mkdirOwned(above); err != nil {
		return err
	}
	part, err := os.MkdirTemp(above, "."+filepath.Base(dir)+".*")
	if err != nil {
		return err
	}
	if err = ownLike(part, above); err == nil {
		err = os.Rename(part, dir)
	}
	if err != nil {
		_ = os.Remove(part)
		return err
	}
	return syncDir(above)
}

func replace(name string, data []byte, perm fs.FileMode, own func(*os.File) error) error {
	part, err := temporary(name, data, perm, own) // a rename works within one file system only
	if err != nil {
		return err
	}
	if err := Rename(part, name); err != nil {
		_ = os.Remove(part)
		return err
	}
	return nil
}

// WriteNew is WriteFile for a file that must not exist yet. If it exists, the error
// wraps fs.ErrExist. After any other error, there is no such file.
func WriteNew(name string, data []byte, perm fs.FileMode) error {
	if err := linkNew(name, data, perm); err == nil {
		return syncDir(filepath.Dir(name))
	} else if errors.Is(err, fs.ErrExist) {
		return &fs.PathError{Op: "create", Path: name, Err: fs.ErrExist}
	}
	// The file system may know no links. Then another process may see a part of the file.
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(name))
	}
	return syncDir(filepath.Dir(name))
}

// linkNew writes a file beside the one called name, and gives it that name.
func linkNew(name string, data []byte, perm fs.FileMode) error {
	part, err := temporary(name, data, perm, func(*os.File) error { return nil })
	if err != nil {
		return err
	}
	defer os.Remove(part)
	return os.Link(part, name)
}

// temporary writes a file beside the one called name. own gives it its owner.
func temporary(name string, data []byte, perm fs.FileMode, own func(*os.File) error) (part string, err error) {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return "", err
	}
	_, err = f.Write(data)
	// Some file systems tell of a full disk only when asked to sync or to close.
	if err := errors.Join(err, own(f), f.Chmod(perm), f.Sync(), f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(f.Name()))
	}
	return f.Name(), nil
}

// Rename is os.Rename within one directory, and survives a power cut. The caller must
// have synced the file's content.
func Rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return syncDir(filepath.Dir(to))
}
