//go:build !linux

package relay

import (
	"errors"
	"net"
)

const canWait = false

func (m *mover) moveTCP(*net.TCPConn) (readErr, writeErr error) {
	return errors.ErrUnsupported, nil
}

// orphaned is not known here.
func orphaned(*net.TCPConn) bool { return false }
