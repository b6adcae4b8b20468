//go:build !linux

package network

// defaultRoute is not known on this system.
func defaultRoute(six bool) string { return "" }
