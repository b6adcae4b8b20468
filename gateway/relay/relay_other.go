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

func owner(*net.TCPConn) ownership { return unknown }
