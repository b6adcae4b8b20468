// Package durable writes files that must survive a full disk, a crash and a power
// cut, such as keys and configurations. At any time, a file has its whole old content
// or its whole new content, never a part. After the function has returned without an
// error, the new content is on the disk.
//
// It does not lock: if two write the same file, the last one wins.
//
// A process that is killed in the middle leaves a part, as .NAME.NUMBER.part. The next one that
// writes the same file removes it.
package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// maxSize bounds what ReadFile reads, in bytes. The largest is the list of what users have used:
// a users_file has room for 200,000 of them, which makes half as many bytes here.
const maxSize = 64 << 20

// ReadFile is os.ReadFile for a file that was written by this package. One that is larger than
// any of those is an error, before it has filled the memory.
func ReadFile(name string) ([]byte, error) { return readFile(name, maxSize) }

func readFile(name string, most int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	tooLarge := &fs.PathError{Op: "read", Path: name, Err: fmt.Errorf("the file is larger than %d MiB, which no such file is", most>>20)}
	if info, err := f.Stat(); err == nil && info.Size() > most {
		return nil, tooLarge
	}
	data, err := io.ReadAll(io.LimitReader(f, most+1)) // it may be a device, or grow
	if err == nil && int64(len(data)) > most {
		return nil, tooLarge
	}
	return data, err
}

// WriteFile replaces the file called name, or makes it, with the content data and the
// permissions perm. After an error, the old file is unchanged, unless the error is
// that of the sync of the directory.
func WriteFile(name string, data []byte, perm fs.FileMode) error {
	return Replace(name, data, perm, func(*os.File) error { return nil })
}

// WriteOwned is WriteFile for a file that belongs to whom its directory belongs, also if this
// process is root: somebody else has to read it. The directory is made, with mode 0700, if it
// is not there; it belongs to whom the one above belongs.
func WriteOwned(name string, data []byte, perm fs.FileMode) error {
	if err := mkdirOwned(filepath.Dir(name)); err != nil {
		return err
	}
	return Replace(name, data, perm, giveToDir)
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

// Replace is WriteFile for a file whose owner is to be set by own, before it has its name.
func Replace(name string, data []byte, perm fs.FileMode, own func(*os.File) error) error {
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
	removeOld(name, time.Now().Add(-partAge))
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*"+partSuffix)
	if of, ok := errors.AsType[*fs.PathError](err); ok { // nobody knows the name of that file
		err = &fs.PathError{Op: "write a file in", Path: filepath.Dir(name), Err: of.Err}
	}
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

const (
	partSuffix = ".part"
	// partAge is how old a part is that nobody writes any more.
	partAge = time.Hour
)

// removeOld removes parts of a file that were written before a time. What can't be removed stays.
func removeOld(name string, before time.Time) {
	all, _ := os.ReadDir(filepath.Dir(name))
	for _, e := range all {
		number, mine := strings.CutPrefix(e.Name(), "."+filepath.Base(name)+".")
		number, part := strings.CutSuffix(number, partSuffix)
		if !mine || !part || number == "" || strings.Trim(number, "0123456789") != "" || !e.Type().IsRegular() {
			continue
		}
		if info, err := e.Info(); err == nil && info.ModTime().Before(before) {
			_ = os.Remove(filepath.Join(filepath.Dir(name), e.Name()))
		}
	}
}

// Rename is os.Rename within one directory, and survives a power cut. The caller must
// have synced the file's content.
func Rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return syncDir(filepath.Dir(to))
}
