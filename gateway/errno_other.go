//go:build !windows

package gateway

import "syscall"

// Why a port can't be opened.
const (
	addrInUse    = syscall.EADDRINUSE
	noPermission = syscall.EACCES
	noSuchAddr   = syscall.EADDRNOTAVAIL
)
