package admin

import (
	"fmt"
	"time"

	"ptgate/gateway/bridges"
	"ptgate/gateway/outcome"
	"ptgate/gateway/supervise"
)

// The states of a gateway.
const (
	Starting  = "starting"  // before it is ready for the first time
	Running   = "running"   // after that, and no other state
	Reloading = "reloading" // the old configuration runs, and a reload prepares the new one
	Stopping  = "stopping"  // nothing new is accepted; open connections may go on for a while
)

// A Status is the state of a gateway at one moment. It names no destination and no
// client. Its JSON is what `ptgate status --json` prints and what /api/v1/status answers:
// fields are added, and none is renamed, removed or given another meaning.
type Status struct {
	Config    string           `json:"config"`
	PID       int              `json:"pid"`
	Version   string           `json:"version"` // of the program
	Since     time.Time        `json:"since"`
	Loaded    time.Time        `json:"loaded"`            // when the running configuration was loaded
	Restart   []string         `json:"restart,omitempty"` // keys that were changed, and that a restart reads
	State     string           `json:"state"`
	Stopping  bool             `json:"stopping"`           // whether State is Stopping
	Ready     bool             `json:"ready"`              // each route has a bridge that worked, and served transports are up
	Listeners []ListenerStatus `json:"listeners"`          // the open ones
	Admin     []string         `json:"admin"`              // where the status page is
	NoAdmin   string           `json:"no_admin,omitempty"` // why there is no status page
	Active    int64            `json:"active"`             // open connections of applications
	Up        int64            `json:"up"`                 // bytes from applications, since the start
	Down      int64            `json:"down"`               // bytes to applications, since the start
	Bridges   []bridges.Status `json:"bridges"`
	Routes    []RouteStatus    `json:"routes"`
	Serve     []ServeStatus    `json:"serve"`
	Users     []UserStatus     `json:"users"`         // of the exit, by name; none: it asks for no password
	AsksUsers bool             `json:"asks_users"`    // every client of the exit needs a user
	Box       string           `json:"box,omitempty"` // what gateways know this box by, in short; "": it serves no exit
	Outcomes  []outcome.Value  `json:"outcomes"`      // counted since the start
}

// A ListenerStatus is the part of a Status about one listener.
type ListenerStatus struct {
	Front   string `json:"front"`
	Address string `json:"address"`
}

// A RouteStatus is the part of a Status about one route.
type RouteStatus struct {
	Route    int      `json:"route"`    // its number in the file, from 1
	Line     int      `json:"line"`     // where it begins
	Action   string   `json:"action"`   // "via", "direct" or "block"
	Via      []string `json:"via"`      // names of its bridges
	Pick     string   `json:"pick"`     // how it chooses among them; "": it has none
	Patterns int      `json:"patterns"` // how many it has
	Ready    bool     `json:"ready"`    // it needs no bridge, or one of its bridges worked
}

// A ServeStatus is the part of a Status about one served transport.
type ServeStatus struct {
	Transport string `json:"transport"`
	Address   string `json:"address"` // where it listens, whatever its program announces
	Clients   int64  `json:"clients"` // open PT connections
	Active    int64  `json:"active"`  // open streams and forwarded connections
	In        int64  `json:"in"`      // bytes from clients, without those that a PT itself sends to the service
	Out       int64  `json:"out"`     // bytes to clients, in the same way

	// OldUntil is until when bridge lines from before a rotation are good, too. Zero: they
	// are not.
	OldUntil time.Time `json:"old_until,omitzero"`

	PT supervise.Status `json:"pt"`
}

// A UserStatus is the part of a Status about one user of the exit.
type UserStatus struct {
	Name   string `json:"name"`
	Active int    `json:"active"` // open streams

	Last time.Time `json:"last,omitzero"` // when a stream was open; zero: never
	Up   int64     `json:"up"`            // bytes from the user
	Down int64     `json:"down"`          // bytes to the user
}

// NotReady says what is missing, a sentence each; none: the gateway is ready.
func (s *Status) NotReady() (missing []string) {
	switch s.State {
	case Starting:
		return []string{"ptgate is starting"}
	case Stopping:
		return []string{"ptgate is stopping"}
	}
	for _, r := range s.Routes {
		if !r.Ready {
			missing = append(missing, fmt.Sprintf("route %d (line %d): no bridge of it works, or none was needed yet", r.Route, r.Line))
		}
	}
	for _, x := range s.Serve {
		if x.PT.State != supervise.Running {
			missing = append(missing, fmt.Sprintf("transport %s at %s: it is %s", x.Transport, x.Address, x.PT.State))
		}
	}
	return missing
}
