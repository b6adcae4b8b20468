//go:build unix && !linux

package adapter

func parent() {}
