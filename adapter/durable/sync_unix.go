//go:build unix

package durable

import (
	"errors"
	"os"
	"syscall"
)

// syncDir puts the names in dir on the disk. Some file systems can't do that.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return nil
}
