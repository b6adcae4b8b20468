package gateway

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// A socket is a listener on a Unix socket, which is a file.
type socket struct {
	*net.UnixListener
	path string
	info fs.FileInfo // of the file
	once sync.Once
}

// Addr implements net.Listener.
func (s *socket) Addr() net.Addr { return &net.UnixAddr{Name: s.path, Net: "unix"} }

// own tells whether the file at the path is still this socket.
func (s *socket) own() bool {
	now, err := os.Lstat(s.path)
	return err == nil && os.SameFile(now, s.info)
}

// setMode changes the mode of the file. A socket that is gone has none.
func (s *socket) setMode(mode fs.FileMode) error {
	if !s.own() {
		return nil
	}
	return os.Chmod(s.path, mode)
}

// Close implements net.Listener. It removes the file first, unless that is another one by
// now: nobody finds a socket on which nobody answers.
func (s *socket) Close() error {
	s.once.Do(func() {
		if s.own() {
			os.Remove(s.path)
		}
	})
	return s.UnixListener.Close()
}

// listenUnix makes a Unix socket of that mode at path. It replaces a socket on which nobody
// answers any more, and nothing else.
func listenUnix(path string, mode fs.FileMode) (*socket, error) {
	fail := func(err error) (*socket, error) { return nil, fmt.Errorf("unix socket %s: %w", path, err) }
	dir := filepath.Dir(path)
	if err := trusted(dir); errors.Is(err, fs.ErrNotExist) {
		return fail(fmt.Errorf("there is no directory %s: make it, as the user who runs this", dir))
	} else if err != nil {
		return fail(err)
	}
	if err := free(path); err != nil {
		return fail(err)
	}
	// The socket has its mode before anybody can find it: it is made in a directory that
	// nobody else can enter, and then renamed. That also puts it in the place of an old one
	// in one step.
	private, err := os.MkdirTemp(dir, ".p*")
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(private)
	beside := filepath.Join(private, "s")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: beside, Net: "unix"})
	if err != nil {
		return fail(err)
	}
	ln.SetUnlinkOnClose(false) // Close does it, by its name in the end
	s := &socket{UnixListener: ln, path: path}
	if err = os.Chmod(beside, mode); err == nil {
		s.info, err = os.Lstat(beside)
	}
	if err == nil {
		err = os.Rename(beside, path)
	}
	if err != nil {
		ln.Close()
		return fail(err)
	}
	return s, nil
}

// trusted tells whether only this user, root, and those who own a file in it can replace
// files of a directory.
func trusted(dir string) error {
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there is no directory %s: make it, or write another path", dir)
	}
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o002 != 0 && info.Mode()&fs.ModeSticky == 0 {
		return fmt.Errorf("everybody can write to %s (mode %#o), and so put another socket there: use a directory of ptgate's own", dir, info.Mode().Perm())
	}
	return nil
}

// free tells whether a socket may be made at path.
func free(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode()&fs.ModeSocket == 0:
		return errors.New("there is a file that is no socket, which is left alone: remove it, or write another path")
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	switch {
	case err == nil:
		c.Close()
		return errors.New("another program, or another ptgate, answers there; if it is this one itself, restart it: a reload can't give a socket another front")
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return nil
	}
	return fmt.Errorf("there is a socket already: %w", err)
}
