//go:build !linux

package adapter

// AdoptOrphans does nothing: only Linux can do it.
func AdoptOrphans() (stop func(), err error) { return func() {}, nil }
