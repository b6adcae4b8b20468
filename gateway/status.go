package gateway

import (
	"os"
	"time"

	"ptgate/gateway/bridges"
	"ptgate/gateway/outcome"
	"ptgate/gateway/supervise"
)

// The states of a gateway.
const (
	Starting  = "starting"  // not Ready yet
	Running   = "running"   // and nothing else
	Reloading = "reloading" // it serves as before, while the new configuration is made ready
	Stopping  = "stopping"  // nothing new is taken; what is live may end in order
)

// A Status is what a running gateway says of itself. It names no destination and
// no client.
type Status struct {
	Config    string           `json:"config"`
	PID       int              `json:"pid"`
	Since     time.Time        `json:"since"`
	Loaded    time.Time        `json:"loaded"` // the configuration that runs
	State     string           `json:"state"`
	Stopping  bool             `json:"stopping"`  // that is its state
	Listeners []ListenerStatus `json:"listeners"` // that are open
	Active    int64            `json:"active"`    // connections of applications
	Up        int64            `json:"up"`        // bytes from applications, since the start
	Down      int64            `json:"down"`      // bytes to them
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
	In        int64  `json:"in"`      // bytes, but for what a PT moves by itself
	Out       int64  `json:"out"`

	PT supervise.Status `json:"pt"`
}

// Status tells how the gateway does. It waits for nothing.
func (g *Gateway) Status() Status {
	v := g.view.Load()
	s := Status{Config: v.cfg.Path, PID: os.Getpid(), Since: g.since, Loaded: v.loaded,
		State: g.state(), Stopping: g.stopping.Load(),
		Active: g.traffic.active.Load(), Up: g.traffic.up.Load(), Down: g.traffic.down.Load(), Outcomes: g.book.Snapshot()}
	for _, b := range v.set.Bridges() {
		s.Bridges = append(s.Bridges, b.Status())
	}
	for _, l := range g.listeners() {
		s.Listeners = append(s.Listeners, ListenerStatus{l.front.String(), l.address()})
	}
	for _, x := range v.servers {
		a := x.Announced()
		s.Serve = append(s.Serve, ServeStatus{a.Transport, a.Address, x.Clients.Load(), x.Active(), x.Traffic.In.Load(), x.Traffic.Out.Load(), x.PT()})
	}
	return s
}

func (g *Gateway) state() string {
	switch {
	case g.stopping.Load():
		return Stopping
	case g.reloading.Load():
		return Reloading
	}
	select {
	case <-g.ready:
		return Running
	default:
		return Starting
	}
}
