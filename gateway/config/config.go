// Package config reads ptgate's TOML configuration into a checked, typed Config.
//
// Everything wrong with a file is reported at once, each finding with file and
// line; a Config that Load returns without errors needs no further checks. What
// there is to know of a transport comes from the table of package builtin. Texts
// that people paste go through Pasted first. The package is the only importer of
// the TOML library. It opens no socket and runs no program.
package config

import (
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"ptgate/adapter"
	"ptgate/adapter/builtin"
	"ptgate/routes"
)

// A Config is one configuration file, checked and with its defaults filled in.
// It is never changed after Load.
type Config struct {
	// Path is the file, absolute.
	Path string
	// StateDir is absolute; it need not exist yet.
	StateDir string

	Log    Log
	Listen Listen
	// Bridges holds the named bridges in the file's order, then those that
	// routes write in place, which are named after their route ("route 3").
	Bridges []*Bridge
	Routes  []*Route
	// Table answers with an index into Routes.
	Table  *routes.Table
	Serve  []*Serve
	Exit   Exit
	PTs    []*PT
	Limits Limits
}

// Log is the [log] table.
type Log struct {
	Level   slog.Level
	Format  string // "text" or "json"
	Private bool   // no destination, client address or bridge arg in the log
}

// Listen is the [listen] table: the fronts for applications. A near end whose
// [listen] names no socks5, http or mixed gets the default listeners; one that
// names any gets what it names. A far end alone (no [[route]]) gets none of
// itself.
type Listen struct {
	SOCKS5, HTTP []string // literal address:port; port 0 is any free one
	// Allow is never empty: where the file has none, it is loopback, and with
	// Users everybody.
	Allow []netip.Prefix
	Users map[string]string // name to password; empty: none are asked for
	Line  int
}

// Far says what stands behind a bridge.
type Far string

// The far ends.
const (
	FarExit    Far = "exit"    // a ptgate server
	FarSOCKS5  Far = "socks5"  // any SOCKS5 server
	FarForward Far = "forward" // one fixed service
)

// Optimistic says when an application hears of success.
type Optimistic string

// The ways to answer an application.
const (
	OptimisticNever   Optimistic = "never"
	OptimisticLearned Optimistic = "learned"
	OptimisticAlways  Optimistic = "always"
)

// A Bridge is a far end as the gateway knows it.
type Bridge struct {
	Name      string
	Transport string
	Address   string // host:port with a literal address
	// Args go to the PT with each connection. A key may repeat; the order is kept.
	Args       adapter.Args
	Far        Far
	User       string // to the exit or SOCKS5 server, where it asks
	Password   string
	Optimistic Optimistic
	Carriers   int // PT connections to an exit at most; 0: chosen by load
	PT         *PT // the program that speaks Transport; never nil
	Line       int
}

// Pick says how a route chooses among its bridges.
type Pick string

// The choices.
const (
	PickFirst   Pick = "first"
	PickFastest Pick = "fastest"
	PickSpread  Pick = "spread"
)

// Action is what a route does with what it takes.
type Action uint8

// The actions.
const (
	ActionBridges Action = iota
	ActionDirect
	ActionBlock
)

// A Route leads destinations to bridges, or directly, or nowhere.
type Route struct {
	Action  Action
	Via     []*Bridge // with ActionBridges, at least one
	Pick    Pick
	Line    int      // of its [[route]]
	Sources []Source // where the patterns are written; Config.Where reads it
}

// A Source is a file with patterns of a route.
type Source struct {
	File string // as Problem names it
	// Runs are in the order of the patterns, and so are the Sources of a route.
	Runs []Run
	// PerLine says that each pattern of a run stands on a line of its own, one
	// below the other; else all of them stand on the run's line.
	PerLine bool
}

// A Run is a row of patterns: the index of the first one and its line. It ends
// where the next one begins.
type Run struct{ First, Line uint32 }

// A Serve is one [[serve]]: a transport that this box offers to clients.
type Serve struct {
	Transport string
	Bind      netip.AddrPort // port 0 is any free one
	Public    string         // host:port that clients dial; "" where only the operator can tell
	Options   adapter.Args
	Allow     []netip.Prefix // client networks let in; empty: all
	Deny      []netip.Prefix // looked at first
	// TrustedHops is how many proxies in front of the transport are trusted to name
	// the client in X-Forwarded-For; 0 where none stands in front.
	TrustedHops int
	Forward     string // host:port of a fixed service; "": the exit
	PT          *PT
	Line        int
}

// HasKeys tells whether the options have the transport's keys, as those that
// `ptgate pair` writes; else it makes them, and keeps them in its state directory.
func (s *Serve) HasKeys() bool {
	row, _ := builtin.Lookup(s.Transport)
	return slices.ContainsFunc(s.Options, func(a adapter.Arg) bool { return slices.Contains(row.KeyOptions, a.Key) })
}

// Exit is the [exit] table: what this box's exit may open.
type Exit struct {
	// Allow is matched on the destination as asked for; nil allows all, an empty
	// one (allow = []) nothing.
	Allow *routes.Table
	// Deny is matched on the destination as asked for; never nil.
	Deny *routes.Table
	// DenyPrivate refuses every address that is not global unicast, checked on
	// the address that is dialled ("private" in deny).
	DenyPrivate bool
	// DenyNets holds deny's literal addresses and networks with their ports,
	// checked on the address that is dialled, too; never nil.
	DenyNets *routes.Table
	Users    map[string]string
	// Hosts has the addresses of names that the exit does not look up. No key of a
	// file sets it: it is for a program that is both ends itself.
	Hosts map[string][]netip.Addr
}

// A PT is a pluggable transport program. Bridges and serves that share a *PT
// share its settings.
type PT struct {
	// Name is that of its [pt.NAME]; of the built-in table's rows, the
	// transport's.
	Name string
	// Exec is the argv, beginning with the path of the program where one was
	// found. Empty: the built-in one (this program with "pt").
	Exec       []string
	Transports []string
	Proxy      string   // URL of the upstream proxy, or ""
	State      string   // absolute; "": one of its own below the state directory
	Env        []string // further KEY=VALUE of its environment, sorted
	BindV4     netip.Addr
	BindV6     netip.Addr
	Isolate    bool // a built-in transport in a child process in any case; with Env it has to be
	Line       int  // 0 in the built-in table
}

// Builtin tells whether p is the PT inside ptgate.
func (p *PT) Builtin() bool { return len(p.Exec) == 0 }

// Limits is the [limits] table.
type Limits struct {
	Connections        int
	DefaultConnections bool          // the file says nothing of it
	Handshake          time.Duration // from accept to a complete request
	Dial               time.Duration
	Stagger            time.Duration // before the next bridge is tried beside a slow one
	Idle               time.Duration // 0: never
	HalfOpen           time.Duration // silence allowed once one direction has ended
	Drain              time.Duration // on stop and reload
}
