package builtin

import (
	"cmp"
	"container/heap"
	"container/list"
	"net"
	"net/netip"
	"sync"
	"time"

	"ptgate/adapter/subnet"
)

// A guest is a client whose handshake is not done, or has failed. Nobody knows yet, or
// ever, whether it is a client at all.
type guest struct {
	tcp  *net.TCPConn
	from netip.Prefix // its network

	// patient says that the transport keeps a failed client for a while. until is the
	// time that the transport has named; zero: the connection is to be closed at once.
	// The goroutine of the handshake sets it.
	patient bool
	until   time.Time

	mu   sync.Mutex
	done bool          // the handshake is done
	let  bool          // the guest was let go before that
	gone chan struct{} // closed when the guest is let go

	settled bool     // settle was called
	after   []func() // settle calls them

	// The place in a crowd, whose mutex guards these. A guest is in one crowd at a time.
	place  *list.Element
	arrive uint64
}

func newGuest(tcp *net.TCPConn, from netip.Addr, patient bool) *guest {
	return &guest{tcp: tcp, from: subnet.Of(from), patient: patient, gone: make(chan struct{})}
}

// letGo ends the guest's handshake. If that is done, and nobody has taken the connection
// yet, the connection is to be closed. When the guest is settled, settled is called. That a
// guest is let go twice is rare: it has entered a crowd again in the moment of the first time.
func (g *guest) letGo(settled func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.settled {
		settled()
	} else {
		g.after = append(g.after, settled)
	}
	if !g.let {
		g.let = true
		close(g.gone)
		if !g.done {
			_ = g.tcp.SetDeadline(time.Unix(1, 0))
		}
	}
}

// settle notes that the guest does not need its descriptor any more, or is counted for it
// elsewhere.
func (g *guest) settle() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.settled = true
	for _, f := range g.after {
		f()
	}
	g.after = nil
}

// isLetGo reports whether the handshake must not go on.
func (g *guest) isLetGo() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.let
}

// setDeadline is the transport's, for its handshake.
func (g *guest) setDeadline(t time.Time) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.let {
		return nil
	}
	return g.tcp.SetDeadline(t)
}

// finish notes that the handshake is done. A guest that has been let go in the same moment
// has shown that it is a client: it comes in.
func (g *guest) finish() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.done = true
	if g.let {
		g.let, g.gone = false, make(chan struct{})
		_ = g.tcp.SetDeadline(time.Time{})
	}
}

// A crowd has guests, at most max. When there is one more, another one has to leave: the
// oldest of the network that has most guests. So a newcomer always has a place, and silent
// connections take places from their own network first. If all come from one network, such
// as that of a proxy in front, the oldest guest leaves: a real client is done in a few
// round trips.
type crowd struct {
	mu       sync.Mutex
	max      int
	closed   bool
	n        int
	arrivals uint64
	networks map[netip.Prefix]*crowdNetwork
	order    crowdOrder
}

// A crowdNetwork has the guests of one network, the oldest first.
type crowdNetwork struct {
	from   netip.Prefix
	guests list.List
	index  int // in crowdOrder
}

func (n *crowdNetwork) oldest() *guest { return n.guests.Front().Value.(*guest) }

func newCrowd(most int) *crowd {
	return &crowd{max: max(1, most), networks: make(map[netip.Prefix]*crowdNetwork)}
}

// enter gives g a place. If another guest has lost its place to g, it is returned. ok is
// false if the crowd is closed.
func (c *crowd) enter(g *guest) (out *guest, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, false
	}
	if c.n >= c.max {
		out = c.first()
		c.remove(out)
	}
	c.n++
	c.arrivals++
	g.arrive = c.arrivals
	n := c.networks[g.from]
	if n == nil {
		n = &crowdNetwork{from: g.from}
		c.networks[g.from] = n
		g.place = n.guests.PushBack(g)
		heap.Push(&c.order, n)
	} else {
		g.place = n.guests.PushBack(g)
		heap.Fix(&c.order, n.index)
	}
	return out, true
}

// leave gives the place of g back, if it has one.
func (c *crowd) leave(g *guest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if g.place != nil {
		c.remove(g)
	}
}

// shed takes the place of the one guest that is the first to go; nil: there is none.
func (c *crowd) shed() *guest {
	c.mu.Lock()
	defer c.mu.Unlock()
	g := c.first()
	if g != nil {
		c.remove(g)
	}
	return g
}

// close lets nobody in any more, and returns all who are there.
func (c *crowd) close() (all []*guest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for c.n > 0 {
		g := c.first()
		c.remove(g)
		all = append(all, g)
	}
	return all
}

func (c *crowd) first() *guest {
	if c.n == 0 {
		return nil
	}
	return c.order[0].oldest()
}

func (c *crowd) remove(g *guest) {
	n := c.networks[g.from]
	n.guests.Remove(g.place)
	g.place = nil
	c.n--
	if n.guests.Len() > 0 {
		heap.Fix(&c.order, n.index)
		return
	}
	heap.Remove(&c.order, n.index)
	delete(c.networks, n.from)
}

// crowdOrder is a heap (container/heap): the network with most guests is the first, and of
// two that have as many, the one with the oldest guest.
type crowdOrder []*crowdNetwork

func (o crowdOrder) Len() int { return len(o) }

func (o crowdOrder) Less(i, j int) bool {
	a, b := o[i], o[j]
	// While it is removed from the heap, a network has no guest.
	if a.guests.Len() == b.guests.Len() && a.guests.Len() > 0 {
		return a.oldest().arrive < b.oldest().arrive
	}
	return cmp.Less(b.guests.Len(), a.guests.Len())
}

func (o crowdOrder) Swap(i, j int) {
	o[i], o[j] = o[j], o[i]
	o[i].index, o[j].index = i, j
}

func (o *crowdOrder) Push(x any) {
	n := x.(*crowdNetwork)
	n.index = len(*o)
	*o = append(*o, n)
}

func (o *crowdOrder) Pop() any {
	last := len(*o) - 1
	n := (*o)[last]
	(*o)[last] = nil
	*o = (*o)[:last]
	return n
}
