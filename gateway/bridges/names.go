package bridges

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"ptgate/adapter/builtin"
	"ptgate/gateway/answer"
	"ptgate/gateway/config"
	"ptgate/gateway/lookup"
	"ptgate/gateway/network"
	"ptgate/gateway/stream"
	"ptgate/routes"
)

const (
	// lookupTime is how long one look-up may take.
	lookupTime = 5 * time.Second
	// An answer is used for lookupFor. If no connection comes up, it is not trusted any
	// longer than lookupAgain.
	lookupFor   = 5 * time.Minute
	lookupAgain = 10 * time.Second
)

// A nameState is what is known of the name in a bridge's address.
type nameState struct {
	turn chan struct{} // has room for one who looks it up

	mu     sync.Mutex
	host   string
	addrs  []netip.Addr // the one that has worked last comes first
	looked time.Time
	failed bool // no connection came up since then
}

// dial opens a connection to the bridge. If its address has a name, it is looked up, and each
// of its addresses is tried.
func (b *Bridge) dial(ctx context.Context) (stream.Conn, error) {
	c := b.config()
	row, _ := builtin.Lookup(c.Transport)
	host, port, err := net.SplitHostPort(c.Address)
	_, bad := netip.ParseAddr(host)
	if err != nil || bad == nil || row.Placeholder || c.PT.Proxy != "" { // the proxy looks names up
		return b.dialAddress(ctx, c)
	}
	addrs, err := b.lookup(ctx, host, port)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, a := range addrs {
		literal := *c
		literal.Address = net.JoinHostPort(a.String(), port)
		conn, err := b.dialAddress(ctx, &literal)
		if err != nil && errors.Is(ctx.Err(), context.Canceled) {
			return nil, err // it is needed no more
		}
		b.name.tried(a, err)
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errs[0]
}

func (b *Bridge) dialAddress(ctx context.Context, c *config.Bridge) (stream.Conn, error) {
	if a, err := netip.ParseAddrPort(c.Address); err == nil && b.path != nil {
		b.path.Budget.Network(network.ID(a))
	}
	if c.Told != "" {
		if err := b.m.mayTell(c); err != nil {
			return nil, err
		}
		ctx = builtin.WithCheck(ctx, func(a netip.AddrPort) error { return b.m.mayDial(c, a) })
	}
	return b.pt.Load().dial(ctx, c)
}

// literal is the bridge's address; of a name, the first that is known; "": none is.
func (b *Bridge) literal() string {
	c := b.config()
	host, port, err := net.SplitHostPort(c.Address)
	if err != nil {
		return ""
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return c.Address
	}
	addrs, _ := b.name.known(host)
	if len(addrs) == 0 {
		return ""
	}
	return net.JoinHostPort(addrs[0].String(), port)
}

// tried notes whether a connection to an address came up.
func (n *nameState) tried(a netip.Addr, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.failed = err != nil
	if i := slices.Index(n.addrs, a); i > 0 && err == nil {
		rest := slices.Delete(slices.Clone(n.addrs), i, i+1)
		n.addrs = append([]netip.Addr{a}, rest...)
	}
}

// known returns the addresses of a name; fresh: they need not be looked up now.
func (n *nameState) known(host string) (addrs []netip.Addr, fresh bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.host != host {
		return nil, false
	}
	age := time.Since(n.looked)
	return n.addrs, age < lookupAgain || age < lookupFor && !n.failed
}

func (n *nameState) set(host string, addrs []netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.host, n.addrs, n.looked, n.failed = host, addrs, time.Now(), false
}

// lookup gives the addresses of a name in the bridge's address. It asks the far end of a
// bridge that works, so that nobody near sees the question. If there is none, or none of them
// answers, it asks the system. If nobody answers, it gives the addresses from before.
func (b *Bridge) lookup(ctx context.Context, host, port string) ([]netip.Addr, error) {
	if addrs, fresh := b.name.known(host); fresh {
		return addrs, nil
	}
	select {
	case b.name.turn <- struct{}{}:
		defer func() { <-b.name.turn }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	old, fresh := b.name.known(host)
	if fresh {
		return old, nil // another one has asked
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, err
	}
	t := routes.Target{Name: host + lookup.Suffix, Port: uint16(n)}
	for _, x := range b.m.working() {
		if addrs, err := x.askName(ctx, t); err == nil {
			b.name.set(host, addrs)
			return addrs, nil
		}
	}
	look, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	addrs, err := b.m.lookupHost(look, host)
	switch {
	case err == nil && len(addrs) > 0:
		for i, a := range addrs {
			addrs[i] = a.Unmap()
		}
		b.name.set(host, addrs)
		return addrs, nil
	case len(old) > 0:
		return old, nil
	case err == nil:
		err = errors.New("the name has no address")
	}
	return nil, answer.New(answer.NoBridge, &builtin.DialError{Transport: b.config().Transport, Stage: builtin.StageConnect, Err: err})
}

// working are the bridges to an exit that answers.
func (m *Manager) working() (all []*Bridge) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, b := range m.bridges {
		if b.session != nil && b.alive() {
			all = append(all, b)
		}
	}
	return all
}

// askName asks the bridge's far end for addresses.
func (b *Bridge) askName(ctx context.Context, t routes.Target) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	s, err := b.session.Open(ctx, t)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	return lookup.Read(ctx, s)
}
