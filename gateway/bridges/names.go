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
	"ptgate/gateway/race"
	"ptgate/gateway/session"
	"ptgate/gateway/stream"
	"ptgate/routes"
)

const (
	// lookupTime is how long one look-up may take, and bridgesTime how long those of all
	// bridges together.
	lookupTime  = 5 * time.Second
	bridgesTime = 8 * time.Second
	// An answer is used for lookupFor. If no connection comes up, it is not trusted any
	// longer than lookupAgain, nor is it trusted longer that there is no answer.
	lookupFor   = 5 * time.Minute
	lookupAgain = 10 * time.Second
	// mostAddrs is how many addresses of a name are used, and addrStagger how long one is
	// tried before the next one is tried beside it.
	mostAddrs   = 8
	addrStagger = 2 * time.Second
)

// A nameState is what is known of the name in a bridge's address.
type nameState struct {
	turn chan struct{} // has room for one who looks it up
	said sync.Once     // that the system is asked

	mu     sync.Mutex
	host   string
	addrs  []netip.Addr // the one that has worked last comes first
	err    error        // why there are none
	looked time.Time
	failed bool // no connection came up since then
}

// dial opens a connection to the bridge. If its address has a name, it is looked up, and its
// addresses are tried until one works.
func (b *Bridge) dial(ctx context.Context) (stream.Conn, error) {
	c := b.config()
	row, _ := builtin.Lookup(c.Transport)
	host, port, err := net.SplitHostPort(c.Address)
	_, bad := netip.ParseAddr(host)
	if err != nil || bad == nil || row.Placeholder || c.PT.Proxy != "" { // the proxy looks names up
		return b.dialAddress(ctx, c, c.Address)
	}
	addrs, err := b.lookup(ctx, host, port)
	if err != nil {
		return nil, err
	}
	r := race.Race[netip.Addr, stream.Conn]{
		Try: func(ctx context.Context, a netip.Addr) (stream.Conn, error) {
			conn, err := b.dialAddress(ctx, c, net.JoinHostPort(a.String(), port))
			if err == nil {
				b.name.worked(a)
			}
			return conn, err
		},
		Drop:    func(c stream.Conn) { c.Close() },
		Go:      b.m.spawn,
		Stagger: addrStagger,
	}
	o := r.Run(ctx, addrs, nil)
	switch {
	case o.Err == nil:
		return o.Value, nil
	case !errors.Is(ctx.Err(), context.Canceled): // else the connection is needed no more
		b.name.fails()
	}
	if len(o.Failed) > 0 {
		return nil, o.Failed[0]
	}
	return nil, &builtin.DialError{Transport: c.Transport, Stage: builtin.StageConnect, Err: o.Err}
}

// dialAddress opens a connection to an address of the bridge.
func (b *Bridge) dialAddress(ctx context.Context, c *config.Bridge, addr string) (stream.Conn, error) {
	a, err := netip.ParseAddrPort(addr)
	if err == nil && b.path != nil {
		b.path.Budget.Network(network.ID(a))
	}
	if c.Told != "" {
		if err := b.m.mayTell(c); err != nil {
			return nil, err
		}
		if row, _ := builtin.Lookup(c.Transport); err == nil && !row.Placeholder {
			if err := b.m.mayDial(c, a); err != nil {
				return nil, err
			}
		}
		ctx = builtin.WithCheck(ctx, func(a netip.AddrPort) error { return b.m.mayDial(c, a) })
	}
	literal := *c
	literal.Address = addr
	return b.pt.Load().dial(ctx, &literal)
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
	addrs, _, _ := b.name.known(host)
	if len(addrs) == 0 {
		return ""
	}
	return net.JoinHostPort(addrs[0].String(), port)
}

// worked notes that a connection to an address came up.
func (n *nameState) worked(a netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.failed = false
	if i := slices.Index(n.addrs, a); i > 0 {
		n.addrs = append([]netip.Addr{a}, slices.Delete(slices.Clone(n.addrs), i, i+1)...)
	}
}

// fails notes that no connection came up.
func (n *nameState) fails() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.failed = true
}

// known returns the addresses of a name, or why there are none; fresh: it need not be looked
// up now.
func (n *nameState) known(host string) (addrs []netip.Addr, fresh bool, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.host != host {
		return nil, false, nil
	}
	age := time.Since(n.looked)
	return n.addrs, age < lookupAgain || age < lookupFor && !n.failed, n.err
}

// set notes the result of a look-up. If it has failed, the addresses from before stay.
func (n *nameState) set(host string, addrs []netip.Addr, err error) ([]netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err != nil && n.host == host && len(n.addrs) > 0 {
		addrs, err = n.addrs, nil
	}
	n.host, n.addrs, n.err, n.looked, n.failed = host, addrs, err, time.Now(), err != nil
	return addrs, err
}

// lookup gives the addresses of a name in the bridge's address. It asks the far end of a
// bridge that works, so that nobody near sees the question. Only if no far end answers, it
// asks the system. If nobody knows, it gives the addresses from before.
func (b *Bridge) lookup(ctx context.Context, host, port string) ([]netip.Addr, error) {
	if addrs, fresh, err := b.name.known(host); fresh {
		return addrs, err
	}
	select {
	case b.name.turn <- struct{}{}:
		defer func() { <-b.name.turn }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if addrs, fresh, err := b.name.known(host); fresh {
		return addrs, err // another one has asked
	}
	addrs, err := b.askBridges(ctx, host, port)
	if errors.Is(err, errNobody) && ctx.Err() == nil {
		addrs, err = b.askSystem(ctx, host)
	}
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx) // which says nothing of the name
		}
		err = answer.New(answer.NoBridge, &builtin.DialError{Transport: b.config().Transport, Stage: builtin.StageConnect, Err: err})
	}
	return b.name.set(host, addrs[:min(len(addrs), mostAddrs)], err)
}

var errNobody = errors.New("no far end looks the name up")

// askBridges asks the far ends of bridges that work, one after the other, until one knows the
// addresses, or knows that there are none. The error is errNobody if none has answered.
func (b *Bridge) askBridges(ctx context.Context, host, port string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, bridgesTime)
	defer cancel()
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, err
	}
	t := routes.Target{Name: host + lookup.Suffix, Port: uint16(n)}
	for _, x := range b.m.lookers() {
		addrs, err := x.askName(ctx, t)
		if _, refused := errors.AsType[*session.Refusal](err); refused && answer.Of(err) == answer.NotFound {
			return nil, &net.DNSError{Err: "the server of another bridge does not find it", Name: host, IsNotFound: true}
		}
		// An address of the far end's own network is another machine here.
		addrs = slices.DeleteFunc(addrs, func(a netip.Addr) bool { return !b.m.public(netip.AddrPortFrom(a, t.Port)) })
		if err == nil && len(addrs) > 0 {
			return addrs, nil
		}
	}
	return nil, errNobody
}

// askSystem asks the system for the addresses of a name.
func (b *Bridge) askSystem(ctx context.Context, host string) ([]netip.Addr, error) {
	b.name.said.Do(func() {
		b.m.log.Info("the system looks up the name of the bridge: whoever answers learns it, and so does who is on the way. The server of another bridge would be asked if one worked; this is said once", "bridge", b.Name())
	})
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	addrs, err := b.m.lookupHost(ctx, host)
	for i, a := range addrs {
		addrs[i] = a.Unmap()
	}
	if err == nil && len(addrs) == 0 {
		err = &net.DNSError{Err: "the name has no address", Name: host, IsNotFound: true}
	}
	return addrs, err
}

// lookers are the bridges to an exit that answers, and that looks names up.
func (m *Manager) lookers() (all []*Bridge) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, b := range m.bridges {
		if st := b.sessionStatus(); st.Alive() && st.Names {
			all = append(all, b)
		}
	}
	return all
}

// public tells whether a connection from here to an address leaves this machine and its
// network.
func (m *Manager) public(a netip.AddrPort) bool {
	return a.Addr().IsGlobalUnicast() && !a.Addr().IsPrivate() && (m.Direct == nil || m.Direct(a, false) == nil)
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
