package gateway

import (
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"ptgate/gateway/admin"
	"ptgate/gateway/bridges"
	"ptgate/gateway/config"
)

// The states of a gateway.
const (
	Starting  = admin.Starting
	Running   = admin.Running
	Reloading = admin.Reloading
	Stopping  = admin.Stopping
)

// The parts of the status. Package admin shows them to people.
type (
	Status         = admin.Status
	ListenerStatus = admin.ListenerStatus
	RouteStatus    = admin.RouteStatus
	ServeStatus    = admin.ServeStatus
	UserStatus     = admin.UserStatus
)

// version is the program's, as far as the build knows it.
var version = sync.OnceValue(func() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	return info.Main.Version
})

// Status returns the gateway's present state. It never waits.
func (g *Gateway) Status() Status {
	v := g.view.Load()
	s := Status{Config: v.cfg.Path, PID: os.Getpid(), Version: version(), Since: g.since, Loaded: v.loaded, Restart: g.Restart(),
		State: g.state(), Stopping: g.stopping.Load(),
		Active: g.traffic.active.Load(), Up: g.traffic.up.Load(), Down: g.traffic.down.Load(), Outcomes: g.book.Snapshot(),
		// As JSON, a list is one also if it is empty.
		Bridges: []bridges.Status{}, Listeners: []ListenerStatus{}, Admin: []string{}, Routes: []RouteStatus{}, Serve: []ServeStatus{}, Users: []UserStatus{}}
	for _, b := range v.set.Bridges() {
		s.Bridges = append(s.Bridges, b.Status())
	}
	for _, l := range g.listeners() {
		if l.admin {
			s.Admin = append(s.Admin, l.address())
			continue
		}
		s.Listeners = append(s.Listeners, ListenerStatus{Front: l.front.String(), Address: l.address()})
	}
	s.NoAdmin = v.noPage
	for i, r := range v.cfg.Routes {
		s.Routes = append(s.Routes, routeStatus(v, i, r, s.Bridges))
	}
	if sessions := g.sessions.Load(); sessions != nil {
		s.Box = sessions.Box().String()
	}
	for _, x := range v.servers {
		a := x.Announced()
		if !a.Old.After(time.Now()) {
			a.Old = time.Time{}
		}
		s.Serve = append(s.Serve, ServeStatus{Transport: a.Transport, Address: x.Address(), Clients: x.Clients.Load(), Active: x.Active(),
			In: x.Traffic.In.Load(), Out: x.Traffic.Out.Load(), OldUntil: a.Old, PT: x.PT()})
	}
	if len(v.servers) > 0 {
		s.AsksUsers = v.cfg.Exit.AsksUsers()
		for name, u := range g.exit.Usage() {
			s.Users = append(s.Users, UserStatus{Name: name, Active: u.Streams, Last: u.Last, Up: u.Up, Down: u.Down})
		}
		slices.SortFunc(s.Users, func(a, b UserStatus) int { return strings.Compare(a.Name, b.Name) })
	}
	s.Ready = len(s.NotReady()) == 0
	return s
}

func routeStatus(v *view, i int, r *config.Route, all []bridges.Status) RouteStatus {
	s := RouteStatus{Route: i + 1, Line: r.Line, Patterns: v.cfg.Table.Patterns(i), Via: []string{}}
	switch r.Action {
	case config.ActionDirect:
		s.Action, s.Ready = "direct", true
	case config.ActionBlock:
		s.Action, s.Ready = "block", true
	default:
		s.Action, s.Pick = "via", string(r.Pick)
		s.Via = v.set.Route(i).Via()
		for _, name := range s.Via {
			s.Ready = s.Ready || slices.ContainsFunc(all, func(x bridges.Status) bool { return x.Name == name && x.Worked })
		}
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
