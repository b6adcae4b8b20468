//go:build !linux

package serve

import (
	"errors"
	"net/netip"
)

// canCount says whether count can work on this system at all.
const canCount = false

// count counts the TCP connections to an address that the processes of a group hold.
func count(int, netip.AddrPort) (n int64, listening bool, err error) {
	return 0, false, errors.ErrUnsupported
}
