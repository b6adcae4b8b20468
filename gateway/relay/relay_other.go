//go:build !linux

package relay

import (
	"errors"
	"net"

	"ptgate/gateway/stream"
)

const canWait = false

func (m *mover) moveTCP(*net.TCPConn) (readErr, writeErr error) {
	return errors.ErrUnsupported, nil
}

func owner(*net.TCPConn) ownership { return unknown }

// Owner does not know the user on this system.
func Owner(stream.Conn) (uid uint32, ok bool) { return 0, false }
