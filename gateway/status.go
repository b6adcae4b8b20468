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
	Starting  = "starting"  // before Ready
	Running   = "running"   // after Ready, and no other state
	Reloading = "reloading" // the old configuration runs, and a reload prepares the new one
	Stopping  = "stopping"  // nothing new is accepted; open connections may go on for a while
)

// A Status is the state of a gateway at one moment. It names no destination and no
// client.
type Status struct {
	Config    string           `json:"config"`
	PID       int              `json:"pid"`
	Since     time.Time        `json:"since"`
	Loaded    time.Time        `json:"loaded"` // when the running configuration was loaded
	State     string           `json:"state"`
	Stopping  bool             `json:"stopping"`  // whether State is Stopping
	Listeners []ListenerStatus `json:"listeners"` // the open ones
	Active    int64            `json:"active"`    // open connections of applications
	Up        int64            `json:"up"`        // bytes from applications, since the start
	Down      int64            `json:"down"`      // bytes to applications, since the start
	Bridges   []bridges.Status `json:"bridges"`
	Serve     []ServeStatus    `json:"serve"`
	Box       string           `json:"box,omitempty"` // what gateways know this box by, in short; "": it serves no exit
	Outcomes  []outcome.Value  `json:"outcomes"`      // counted since the start
}

// A ListenerStatus is the part of a Status about one listener.
type ListenerStatus struct {
	Front   string `json:"front"`
	Address string `json:"address"`
}

// A ServeStatus is the part of a Status about one served transport.
type ServeStatus struct {
	Transport string `json:"transport"`
	Address   string `json:"address"`
	Clients   int64  `json:"clients"` // open PT connections
	Active    int64  `json:"active"`  // open streams and forwarded connections
	In        int64  `json:"in"`      // bytes from clients, without those that a PT itself sends to the service
	Out       int64  `json:"out"`     // bytes to clients, in the same way

	PT supervise.Status `json:"pt"`
}

// Status returns the gateway's present state. It never waits.
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
	if sessions := g.sessions.Load(); sessions != nil {
		s.Box = sessions.Box().String()
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
