// Package durable writes files that must survive a full disk, a crash and a power
// cut: keys, and what users have typed. A file written here has its old content or
// all of its new one, never a part; once the function has returned without an error,
// the new content is on the disk.
//
// It does not lock: of two writers the last one wins.
package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// WriteFile puts data in the place of the file called name, with the permissions
// perm, and makes the file where there is none. After an error the old file is as it
// was, unless the error is of the directory's sync.
func WriteFile(name string, data []byte, perm fs.FileMode) error {
	// Beside the file: a rename works within one file system only.
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	// Some file systems tell of a full disk only when asked to sync or to close.
	if err := errors.Join(err, f.Chmod(perm), f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if err := Rename(f.Name(), name); err != nil {
		_ = os.Remove(f.Name())
		return err
	}
	return nil
}

// WriteNew is WriteFile for a file that must not be there yet: otherwise the error is
// fs.ErrExist. After any other error there is no file.
func WriteNew(name string, data []byte, perm fs.FileMode) error {
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

// Rename is os.Rename within one directory, and lasts. The file's content must have
// been synced.
func Rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return syncDir(filepath.Dir(to))
}
