// Package config reads ptgate's TOML configuration into a checked, typed Config.
//
// All problems of a file are reported at once, each with file and line. A Config
// that Load returns without errors needs no further checks. What a transport can do
// comes from the table of package builtin. Texts that people paste go through
// Pasted first. Only this package imports the TOML library. It opens no socket and
// runs no program.
package config

import (
	"io/fs"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"ptgate/adapter"
	"ptgate/adapter/builtin"
	"ptgate/adapter/builtin/website"
	"ptgate/gateway/budget"
	"ptgate/gateway/users"
	"ptgate/routes"
)

// A Config is one configuration file, checked and with its defaults filled in.
// It is never changed after Load.
type Config struct {
	// Path is the file, absolute.
	Path string
	// Written is when the file was written, by this machine's clock then; zero: not known.
	Written time.Time
	// StateDir is absolute; it need not exist yet.
	StateDir  string
	StateLine int // of state_dir; 0: the file has none

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
	Admin  Admin
	Limits Limits
}

// Log is the [log] table.
type Log struct {
	Level   slog.Level
	Format  string // "text" or "json"
	Private bool   // the log has no destination, no client address and no bridge args
}

// Listen is the [listen] table: the fronts for applications. If the file has a
// [[route]], and [listen] names no socks5, http or mixed, there are the default
// listeners. Otherwise there are only the listeners that are named.
type Listen struct {
	// Each is a literal address:port, where port 0 is any free one, or UnixPrefix and the
	// absolute path of a Unix socket.
	SOCKS5, HTTP, Mixed []string
	SocketMode          fs.FileMode // of the Unix sockets
	// Allow is never empty. If the file has none, it is loopback, or all addresses
	// if there are Users.
	Allow []netip.Prefix
	// Owners has the users of this machine whose programs may connect; empty: anybody's.
	Owners []uint32
	Users  map[string]string // name to password; empty: no client is asked
	Line   int
}

// UnixPrefix is what the address of a Unix socket begins with.
const UnixPrefix = "unix:"

// Far says what stands behind a bridge.
type Far string

// The far ends.
const (
	FarExit    Far = "exit"    // a ptgate server
	FarSOCKS5  Far = "socks5"  // any SOCKS5 server
	FarForward Far = "forward" // one fixed service
)

// Optimistic says whether an application gets the answer of success before the exit
// has answered.
type Optimistic string

// Never, only for destinations that were reached a short time ago, or always.
const (
	OptimisticNever   Optimistic = "never"
	OptimisticLearned Optimistic = "learned"
	OptimisticAlways  Optimistic = "always"
)

// A Bridge is a bridge with the settings for its far end.
type Bridge struct {
	Name      string
	Of        string // the [bridge.NAME] that it is another way of; "": it is that itself
	Transport string
	Address   string // host:port; the host is a literal address or a name
	// Args go to the PT with each connection. A key may repeat; the order is kept.
	Args       adapter.Args
	Far        Far
	User       string // for the exit or SOCKS5 server, if it asks for one
	Password   string
	Optimistic Optimistic
	Carriers   int // the most PT connections to an exit; 0: as the load needs
	// Budget is what a PT connection to an exit may use. What is zero is learned.
	Budget budget.Limits
	PT     *PT // the program that speaks Transport; never nil
	Line   int

	// Told is the key of the box that has told of the bridge, which is no key of a file. It
	// must be that box. "": the user wrote the bridge. Written are the bridges that the user
	// wrote and that lead to the same box.
	Told    string
	Written []*Bridge
}

// Pick says how a route chooses among its bridges.
type Pick string

// The choices.
const (
	PickFirst   Pick = "first"
	PickFastest Pick = "fastest"
	PickSpread  Pick = "spread"
)

// Action is what a route does with the destinations that it matches.
type Action uint8

// The actions.
const (
	ActionBridges Action = iota
	ActionDirect
	ActionBlock
)

// A Route says what happens to the destinations that it matches: they go to
// bridges, are connected directly, or are blocked.
type Route struct {
	Action  Action
	Via     []*Bridge // with ActionBridges, at least one
	Pick    Pick
	Private bool     // with ActionDirect: private addresses, too, whatever the pattern is
	Line    int      // of its [[route]]
	Sources []Source // where the patterns are written; Config.Where reads it
}

// ReachesPrivate tells whether the route of a match of c.Table, which says direct, may lead
// to addresses that are not public: it says so, or its pattern names the destination.
func (c *Config) ReachesPrivate(m routes.Match) bool {
	return c.Routes[m.Rule].Private || !c.Table.Pattern(m).IsWide()
}

// A Source is a file with patterns of a route.
type Source struct {
	File string // as Problem names it
	// Runs are in the order of the patterns, and so are the Sources of a route.
	Runs []Run
	// PerLine says that the patterns of a run are on one line each, one below the
	// other. Otherwise all of them are on the run's line.
	PerLine bool
}

// A Run is a group of patterns: First is the index of the first one, and Line is
// its line. It ends before the next Run.
type Run struct{ First, Line uint32 }

// A Serve is one [[serve]]: a transport that this box offers to clients.
type Serve struct {
	Transport string
	Bind      netip.AddrPort // port 0 is any free one
	Public    string         // host:port that clients dial; "": not known
	Options   adapter.Args
	Allow     []netip.Prefix // client networks let in; empty: all
	Deny      []netip.Prefix // client networks not let in, even if Allow has them
	// TrustedHops is how many proxies in front of the transport are trusted to name
	// the client in X-Forwarded-For. 0: there is no proxy in front.
	TrustedHops int
	// TrustedProxies are the networks from which X-Forwarded-For counts. Nil: loopback.
	TrustedProxies []netip.Prefix
	// Site makes the transport answer TLS itself. Nil: it does not.
	Site *website.Config
	// ProxyFrom are the networks of proxies that write the client's address in front of
	// each connection (the PROXY protocol), and ProxyWait is how long they may take.
	ProxyFrom []netip.Prefix
	ProxyWait time.Duration
	Forward   string // host:port of a fixed service; "": the exit
	Tell      bool   // clients of the exit are told of it
	// ProxyProtocol is the version of the PROXY protocol in which that service is told who
	// the client is. 0: it is not told.
	ProxyProtocol int
	PT            *PT
	Line          int
}

// HasKeys tells whether the options have the transport's keys, as `ptgate pair`
// writes them. If not, the transport makes keys and keeps them in its state
// directory.
func (s *Serve) HasKeys() bool { return len(s.Keys()) > 0 }

// Keys are the options with the transport's keys.
func (s *Serve) Keys() (keys adapter.Args) {
	row, _ := builtin.Lookup(s.Transport)
	for _, a := range s.Options {
		if slices.Contains(row.KeyOptions, a.Key) {
			keys = append(keys, a)
		}
	}
	return keys
}

// Exit is the [exit] table: which destinations the exit of this server may open.
type Exit struct {
	// Allow must match the destination as the client wrote it. Nil allows all
	// destinations. An empty table (allow = []) allows none.
	Allow *routes.Table
	// Deny must not match the destination as the client wrote it. It is never nil.
	Deny *routes.Table
	// DenyPrivate denies every address that is not public ("private" in deny). The
	// address that is dialled is checked.
	DenyPrivate bool
	// DenyNets has the addresses and networks of deny, with their ports. It must
	// not match the address that is dialled. It is never nil.
	DenyNets *routes.Table
	Users    map[string]string // name to password, or its hash
	// UsersFile is the absolute path of the file with more users, FileUsers. It may not
	// exist yet. "": there is none. If there are neither Users nor a UsersFile, nobody is
	// asked.
	UsersFile string
	FileUsers []users.User
	// Hosts has the addresses of names that the exit does not look up. No key of a
	// file sets it: it is for a program that runs both ends itself.
	Hosts map[string][]netip.Addr
}

// Admin is the [admin] table: where the status page, the metrics and the PAC file are.
type Admin struct {
	// Listen has addresses as those of Listen. Nil: there is no page.
	Listen []string
	// None says why there is no page, for people; "": there is one.
	None string
	// Default says that the file names no address, so that ptgate goes without a page if
	// the port of the default is taken.
	Default    bool
	SocketMode fs.FileMode       // of the Unix sockets
	Owners     []uint32          // as in Listen; for loopback addresses and Unix sockets
	Users      map[string]string // name to password; empty: nobody is asked
	Line       int
}

// A PT is a pluggable transport program. Bridges and serves that share a *PT
// share its settings.
type PT struct {
	// Name is the NAME of its [pt.NAME]. Without such a table, it is the name of
	// the transport.
	Name string
	// Exec is the program and its arguments. The program is a path, if it was
	// found. Empty: the built-in one (this program with "pt").
	Exec       []string
	Transports []string
	Proxy      string   // URL of the upstream proxy, or ""
	State      string   // its state directory, absolute; "": one below Config.StateDir
	Env        []string // more KEY=VALUE for its environment, sorted
	BindV4     netip.Addr
	BindV6     netip.Addr
	Isolate    bool // run a built-in transport always in a child process; true if there is Env
	Line       int  // 0 in the built-in table
}

// Builtin tells whether p is the PT inside ptgate.
func (p *PT) Builtin() bool { return len(p.Exec) == 0 }

// Limits is the [limits] table.
type Limits struct {
	Connections        int
	DefaultConnections bool          // Connections is the default, not set by the file
	Handshake          time.Duration // from accept to a complete request
	Dial               time.Duration
	Stagger            time.Duration  // how long a slow bridge is tried alone, before the next one
	Idle               time.Duration  // silence that ends a connection; 0: none does
	HalfOpen           time.Duration  // silence that ends a connection once one direction has ended
	Drain              time.Duration  // how long open connections may go on after a stop or reload
	Resume             time.Duration  // how long a session without a carrier is kept; 0: streams end with their carrier
	ResumeBuffer       int64          // bytes kept for replay at most, per session and direction
	Memory             int64          // bytes held for all peers
	ClientMemory       int64          // bytes held for one client of a server
	ClientStreams      int            // of one client of a server; 0: half of Connections
	ClientCarriers     int            // of one client of a server
	ClientNew          int            // streams that one client of a server may open in a second
	Shared             []netip.Prefix // addresses that many clients of a server share
}
