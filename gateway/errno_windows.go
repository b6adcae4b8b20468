package gateway

import "golang.org/x/sys/windows"

// Why a port can't be opened. The errors of the same meaning in package syscall are
// never returned by Windows.
const (
	addrInUse    = windows.WSAEADDRINUSE
	noPermission = windows.WSAEACCES
	noSuchAddr   = windows.WSAEADDRNOTAVAIL
)
