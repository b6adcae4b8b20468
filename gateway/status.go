package gateway

import (
	"os"
	"time"

	"ptgate/gateway/bridges"
	"ptgate/gateway/inbound"
	"ptgate/gateway/outcome"
	"ptgate/gateway/supervise"
)

// A Status is what a running gateway says of itself. It names no destination and
// no client.
type Status struct {
	Config    string           `json:"config"`
	PID       int              `json:"pid"`
	Since     time.Time        `json:"since"`
	Loaded    time.Time        `json:"loaded"` // the configuration that runs
	Stopping  bool             `json:"stopping"`
	Listeners []ListenerStatus `json:"listeners"`
	Active    int64            `json:"active"` // connections of applications
	Up        int64            `json:"up"`     // bytes from applications, since the start
	Down      int64            `json:"down"`   // bytes to them
	Bridges   []bridges.Status `json:"bridges"`
	Serve     []ServeStatus    `json:"serve"`
	Outcomes  []outcome.Value  `json:"outcomes"` // what was counted since the start
}

// A ListenerStatus is a listener's.
type ListenerStatus struct {
	Front   string `json:"front"`
	Address string `json:"address"`
}

// A ServeStatus is a served transport's.
type ServeStatus struct {
	Transport string `json:"transport"`
	Address   string `json:"address"`
	Clients   int64  `json:"clients"` // PT connections
	Active    int64  `json:"active"`  // streams and forwarded connections
	In        int64  `json:"in"`      // bytes, of carriers
	Out       int64  `json:"out"`

	PT supervise.Status `json:"pt"`
}

// Status tells how the gateway does.
func (g *Gateway) Status() Status {
	v := g.view.Load()
	s := Status{Config: v.cfg.Path, PID: os.Getpid(), Since: g.since, Loaded: v.loaded,
		Active: g.traffic.active.Load(), Up: g.traffic.up.Load(), Down: g.traffic.down.Load(), Outcomes: g.book.Snapshot()}
	for _, b := range v.set.Bridges() {
		s.Bridges = append(s.Bridges, b.Status())
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	s.Stopping = g.stop != nil && g.stop.Err() != nil
	for _, f := range []inbound.Front{inbound.SOCKS5, inbound.HTTP} {
		for k, l := range g.listeners {
			if k.front == f {
				s.Listeners = append(s.Listeners, ListenerStatus{f.String(), l.ln.Addr().String()})
			}
		}
	}
	for _, x := range g.servers {
		a := x.Announced()
		s.Serve = append(s.Serve, ServeStatus{a.Transport, a.Address, x.Clients.Load(), x.Active(), x.Traffic.In.Load(), x.Traffic.Out.Load(), x.PT()})
	}
	return s
}
