//go:build !linux

package carrier

import (
	"net"
	"time"
)

// unsent is for systems that let it be set.
type unsent struct{}

func newUnsent(net.Conn) *unsent { return nil }

func (*unsent) wrote(int, time.Time) {}
