//go:build !linux

package carrier

import (
	"time"

	"ptgate/gateway/stream"
)

// unsent is for systems that let it be set.
type unsent struct{}

func newUnsent(stream.Conn) *unsent { return nil }

func (*unsent) wrote(int, time.Time) {}
