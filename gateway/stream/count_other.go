//go:build !linux

package stream

// Received is not known on this system.
func (s Socket) Received() (n int64, ok bool) { return 0, false }

// Sent is not known on this system.
func (s Socket) Sent() (n int64, ok bool) { return 0, false }
