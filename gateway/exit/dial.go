package exit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"ptgate/gateway/answer"
	"ptgate/gateway/race"
	"ptgate/gateway/stream"
	"ptgate/routes"
)

// Times of RFC 8305, "Happy Eyeballs".
const (
	// resolutionDelay is how long IPv4 addresses wait for the IPv6 ones of a new
	// name (section 3).
	resolutionDelay = 50 * time.Millisecond
	// attemptDelay is how long one address is tried alone (section 5).
	attemptDelay = 250 * time.Millisecond
)

// Dial opens a connection to t, if the policy allows it. Every error has an
// answer.Reason.
func (e *Exit) Dial(ctx context.Context, t routes.Target) (stream.Conn, error) {
	return e.dialInto(ctx, t, everywhere{})
}

// A Place bounds how many connections there are. Acquire takes a place, and is false if
// none is free. Release gives it back.
type Place interface {
	Acquire() bool
	Release()
}

// everywhere has no bound.
type everywhere struct{}

func (everywhere) Acquire() bool { return true }
func (everywhere) Release()      {}

// dialInto is Dial. If t is allowed as it was asked for, it takes a place. The caller gives
// that back if there is no error.
func (e *Exit) dialInto(ctx context.Context, t routes.Target, p Place) (stream.Conn, error) {
	c, err := e.dial(ctx, t, p)
	if err != nil {
		return nil, err
	}
	return stream.From(c), nil
}

func (e *Exit) dial(ctx context.Context, t routes.Target, place Place) (c net.Conn, err error) {
	s := e.settings()
	limit := s.Dial
	if limit == 0 {
		limit = time.Minute
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()

	p := &s.Policy
	if err := p.mayAsk(t); err != nil {
		return nil, err
	}
	addrs, known := s.Hosts[t.Name]
	if t.Addr.IsValid() {
		addrs, known = []netip.Addr{t.Addr}, true
	}
	var f finding
	if known {
		if f = e.sift(p, addrs, t.Port); len(f.allowed) == 0 {
			return e.dialAddrs(ctx, f) // it says why
		}
	}
	if !place.Acquire() {
		return nil, answer.Errorf(answer.Limit, "exit: no place is free")
	}
	defer func() {
		if err != nil {
			place.Release()
		}
	}()
	if known {
		return e.dialAddrs(ctx, f)
	}
	return e.dialName(ctx, p, t)
}

// mayAsk returns an error if t is not allowed as the client has written it.
func (p *Policy) mayAsk(t routes.Target) error {
	if p.Allow != nil && !asked(p.Allow, t) {
		return answer.Errorf(answer.Blocked, "exit: not allowed by [exit] allow")
	}
	if matches(p.Deny, t) {
		return answer.Errorf(answer.Blocked, "exit: denied by [exit] deny")
	}
	return nil
}

// lookup gives the addresses of a name to which Dial would connect, and public ones of this
// machine: at least one, IPv4 first. Every error has an answer.Reason.
func (e *Exit) lookup(ctx context.Context, t routes.Target) (addrs []netip.Addr, err error) {
	s := e.settings()
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(s.Dial, time.Minute))
	defer cancel()
	if err := s.Policy.mayAsk(t); err != nil {
		return nil, err
	}
	var found [len(families)]finding
	if known, ok := s.Hosts[t.Name]; ok {
		found[0] = e.show(&s.Policy, known, t.Port)
	} else {
		var wg sync.WaitGroup
		for i, f := range families {
			wg.Go(func() {
				all, ok := e.resolver.cached(t.Name, f)
				var err error
				if !ok {
					all, err = e.resolver.lookup(ctx, t.Name, f)
				}
				found[i] = e.show(&s.Policy, all, t.Port)
				if err != nil {
					found[i].err = err
				}
			})
		}
		wg.Wait()
	}
	var all finding
	for _, f := range found {
		all.add(f)
	}
	for _, a := range all.allowed {
		addrs = append(addrs, a.Addr())
	}
	if len(addrs) == 0 {
		return nil, all.why()
	}
	return addrs, nil
}

// show is sift for addresses that are told to a client. A public one may be of this machine,
// to which Dial does not connect: the bridge that the client asks about may lead here, too.
func (e *Exit) show(p *Policy, addrs []netip.Addr, port uint16) (f finding) {
	for _, a := range addrs {
		if a = a.Unmap(); public(a) && len(meant(a)) == 0 && !matches(p.DenyNets, routes.Target{Addr: a, Port: port}) {
			f.allowed = append(f.allowed, netip.AddrPortFrom(a, port))
			continue
		}
		f.add(e.sift(p, []netip.Addr{a}, port))
	}
	return f
}

// A finding is what is known of the addresses of a destination.
type finding struct {
	allowed []netip.AddrPort // may be dialled
	denied  bool             // the policy denies some addresses
	own     bool             // this process listens on some
	err     error            // why it is not known whether more addresses are allowed
}

// sift checks addresses against the policy. Every address that is dialled was checked
// here.
func (e *Exit) sift(p *Policy, addrs []netip.Addr, port uint16) (f finding) {
	for _, a := range addrs {
		a = a.Unmap()
		ok, err := e.may(p, a, port)
		own := false
		if ok && err == nil {
			own, err = e.Own(netip.AddrPortFrom(a, port))
		}
		switch {
		case err != nil:
			f.err = fmt.Errorf("exit: %w", err)
		case own:
			f.own = true
		case ok:
			f.allowed = append(f.allowed, netip.AddrPortFrom(a, port))
		default:
			f.denied = true
		}
	}
	return f
}

func (f *finding) add(g finding) {
	f.allowed = append(f.allowed, g.allowed...)
	f.denied, f.own = f.denied || g.denied, f.own || g.own
	if f.err == nil {
		f.err = g.err
	}
}

// dialAddrs dials a destination all of whose addresses are known.
func (e *Exit) dialAddrs(ctx context.Context, f finding) (net.Conn, error) {
	if len(f.allowed) > 0 {
		return e.race(ctx, interleave(f.allowed), nil)
	}
	return nil, f.why()
}

// why says why no address may be dialled.
func (f *finding) why() error {
	switch {
	case f.err != nil:
		// A client takes Blocked and NotFound as final, and this may change.
		return failed(f.err)
	case f.own:
		return answer.Errorf(answer.Blocked, "exit: it would come back to ptgate itself")
	case f.denied:
		return answer.Errorf(answer.Blocked, "exit: address denied by [exit] deny")
	}
	return answer.Errorf(answer.NotFound, "exit: the name has no address")
}

// dialName looks up both families of a name at the same time. It begins to connect as
// soon as it has an address that may be dialled. Addresses that come later are tried
// beside the first ones.
func (e *Exit) dialName(ctx context.Context, p *Policy, t routes.Target) (net.Conn, error) {
	var found finding
	var missing []family
	for _, f := range families {
		if addrs, ok := e.resolver.cached(t.Name, f); ok {
			found.add(e.sift(p, addrs, t.Port))
		} else {
			missing = append(missing, f)
		}
	}
	if len(missing) == 0 {
		e.sort(found.allowed)
		return e.dialAddrs(ctx, found)
	}

	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	findings := make(chan finding, len(missing))
	for _, f := range missing {
		wg.Go(func() {
			addrs, err := e.resolver.lookup(ctx, t.Name, f)
			g := e.sift(p, addrs, t.Port)
			if err != nil {
				g.err = err
			}
			findings <- g
		})
	}
	// Addresses from the cache are dialled at once. If they waited too, a name server
	// that never answers for the other family would slow down every connection.
	begin := len(found.allowed) > 0
	expected := len(missing)
	var delay <-chan time.Time
	for expected > 0 && !begin {
		select {
		case g := <-findings: // a look-up ends with ctx at the latest
			expected--
			found.add(g)
			switch {
			case slices.ContainsFunc(found.allowed, isIPv6):
				begin = true
			case len(found.allowed) > 0 && delay == nil:
				delay = time.After(resolutionDelay)
			}
		case <-delay:
			begin = true
		}
	}
	if expected == 0 {
		e.sort(found.allowed)
		return e.dialAddrs(ctx, found)
	}
	later := make(chan []netip.AddrPort)
	wg.Go(func() {
		defer close(later)
		for range expected {
			g := <-findings
			select {
			case later <- g.allowed:
			case <-ctx.Done():
				return
			}
		}
	})
	return e.race(ctx, found.allowed, later)
}

// race connects to the first address that answers (RFC 8305 section 5).
func (e *Exit) race(ctx context.Context, addrs []netip.AddrPort, later <-chan []netip.AddrPort) (net.Conn, error) {
	var attempts sync.WaitGroup
	defer attempts.Wait()
	r := race.Race[netip.AddrPort, net.Conn]{
		Try:     e.connect,
		Drop:    func(c net.Conn) { c.Close() },
		Go:      func(attempt func()) bool { attempts.Go(attempt); return true },
		Stagger: attemptDelay,
		Merge: func(untried, later []netip.AddrPort) []netip.AddrPort {
			// The address that was tried last is of the other family.
			return interleave(append(later, untried...))
		},
	}
	o := r.Run(ctx, addrs, later)
	if o.Err == nil {
		return o.Value, nil
	}
	return nil, failed(mostTelling(append(o.Failed, o.Err)))
}

// mostTelling gives the first of the errors that says more than that there is no way to
// an address: a machine without IPv6 has no way to half of them.
func mostTelling(errs []error) error {
	for _, err := range errs {
		if r := answer.Of(err); r != answer.Unreachable && r != answer.Internal {
			return err
		}
	}
	return errs[0]
}

// failed gives a reason to an error of the network. An error that has none becomes
// Unreachable. As a fault of this exit it would make clients give up the whole bridge.
func failed(err error) error {
	reason := answer.Of(err)
	if reason == answer.Internal {
		reason = answer.Unreachable
	}
	// askSystem has taken out names that don't exist. A name server that says that it has
	// failed has most often met a fault in that one domain.
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		reason = answer.NoNames
		if strings.Contains(dns.Err, "server misbehaving") {
			reason = answer.NameFailed
		}
	}
	return answer.New(reason, err)
}

func isIPv6(a netip.AddrPort) bool { return a.Addr().Is6() }

// sort puts the addresses of the better family first. The addresses of one family stay
// in their order: net.Resolver has sorted them.
func (e *Exit) sort(addrs []netip.AddrPort) {
	i := slices.IndexFunc(addrs, isIPv6)
	if i < 0 {
		return
	}
	source, err := e.source(addrs[i].Addr())
	six := err == nil && native(source) && native(addrs[i].Addr())
	slices.SortStableFunc(addrs, func(a, b netip.AddrPort) int {
		switch {
		case isIPv6(a) == isIPv6(b):
			return 0
		case isIPv6(a) == six:
			return -1
		}
		return 1
	})
}

// native tells whether an IPv6 address is an ordinary one. IPv6 is better than IPv4
// where both the destination and the source are ordinary (RFC 6724 section 6, rules 1,
// 2, 5 and 6, with the table of section 2.1).
func native(a netip.Addr) bool {
	return a.IsLoopback() || a.IsGlobalUnicast() && !a.IsPrivate() && !sixto4.Contains(a) && !teredo.Contains(a)
}

// interleave orders addresses so that the families take turns. The family of the first
// address begins (RFC 8305 section 4).
func interleave(in []netip.AddrPort) []netip.AddrPort {
	if len(in) < 2 {
		return in
	}
	var first, other []netip.AddrPort
	for _, a := range in {
		if isIPv6(a) == isIPv6(in[0]) {
			first = append(first, a)
		} else {
			other = append(other, a)
		}
	}
	out := make([]netip.AddrPort, 0, len(in))
	for i := range max(len(first), len(other)) {
		if i < len(first) {
			out = append(out, first[i])
		}
		if i < len(other) {
			out = append(out, other[i])
		}
	}
	return out
}
