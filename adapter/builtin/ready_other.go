//go:build !unix

package builtin

import "net"

// A readiness that waits for nothing: the read itself does.
type readiness struct{}

func newReadiness(*net.TCPConn) *readiness { return new(readiness) }

func (*readiness) wait() error { return nil }
