package exit

import (
	"fmt"
	"net/netip"

	"ptgate/gateway/answer"
)

// Own tells whether a connection to a would come back to this process. An error means that
// this can't be known now.
func (e *Exit) Own(a netip.AddrPort) (bool, error) {
	list := e.settings().Own
	if list == nil {
		return false, nil
	}
	addr := a.Addr().Unmap().WithZone("")
	all := append(meant(addr), addr)
	for _, own := range list() {
		if own.Port() != a.Port() {
			continue
		}
		l := own.Addr().Unmap().WithZone("")
		for _, addr := range all {
			if l == addr {
				return true, nil
			}
			if l.IsUnspecified() {
				if is, err := e.isLocal(addr); is || err != nil {
					return is, err
				}
			}
		}
	}
	return false, nil
}

// Direct tells whether a route that says direct may dial a; nil: it may. private says that
// the route leads to private addresses, too. Every error has an answer.Reason.
//
// It is asked for the address that is about to be dialled: a page in a browser can give
// any name an address of this machine, or of the network around it.
func (e *Exit) Direct(a netip.AddrPort, private bool) error {
	own, err := e.Own(a)
	if err == nil && own {
		return answer.Errorf(answer.Blocked, "it would come back to ptgate itself")
	}
	ok := true
	if err == nil {
		ok, err = e.may(&Policy{DenyPrivate: !private}, a.Addr().Unmap(), a.Port())
	}
	switch {
	case err != nil:
		return failed(fmt.Errorf("direct: %w", err))
	case !ok:
		return answer.Errorf(answer.Blocked, "a private address, which no pattern of the route names: name it in to, or write private = true")
	}
	return nil
}

// Public tells whether a is an address of the public Internet.
func Public(a netip.Addr) bool { return public(a) }
