package outcome

import (
	"log/slog"
	"slices"
)

// An Outcome is one row of the table: an event that is counted, or a gauge, such
// as the number of open connections.
type Outcome uint8

// The rows of the table.
const (
	// The near end: what applications ask for.
	Accepted Outcome = iota
	KeptOut
	NotOwner
	OverLimit
	AcceptFailed
	Foreign
	Silent
	HandshakeFailed
	BadCredentials
	Opened
	Refused
	Abandoned
	Panicked
	Connections
	Relays
	Up
	Down

	// Bridges, and the programs that speak their transports.
	BridgeFailed
	BridgeRecovered
	EarlyFailed
	CarrierLost
	SessionDetached
	SessionResumed
	StreamsLost
	BoxLeaves
	BoxGone
	BoxBack
	LimitLearned
	BoxChanged
	BridgeSessions
	BridgeCarriers
	BridgeStreams
	BridgeIn
	BridgeOut
	PTStarts
	PTFailures

	// The far end: what clients of a [[serve]] ask for.
	ServeAccepted
	ServeKeptOut
	ServeOverLimit
	ServeForeign
	ServeHandshakeFailed
	ServeVanished
	ServeClients
	ServeSessions
	ServeStreams
	ServeIn
	ServeOut
	ForwardFailed
	ExitOpened
	ExitBadCredentials
	ExitRefused
	ExitNoNames

	// Both ends.
	MemoryReset
	MadeRoom
	// The status page.
	AdminRefused

	outcomes
)

// The names of labels.
const (
	front    = "front"    // socks5, http, mixed
	reason   = "reason"   // of package answer
	protocol = "protocol" // what a client spoke
	bridge   = "bridge"   // its name
	limit    = "limit"    // a budget.Kind
	pt       = "pt"       // the name of the program
	serve    = "serve"    // the transport of a [[serve]]
	port     = "port"     // its port
	end      = "end"      // gateway, server
)

// A Row describes an outcome.
type Row struct {
	Name   string   // in the status and in metrics
	Help   string   // one sentence for the reader of metrics
	Labels []string // the names of the label's values, in their order; at most two
	Gauge  bool     // the number goes down, too

	Message string     // of the log line; "": there is none
	Level   slog.Level // of the log line
	// Trouble says it in plain words to the people who read the status page, and Next what
	// to do. No Trouble: the page does not tell of it. No Next: the reason in the label
	// says what to do.
	Trouble, Next string
	// AtWill: people outside can cause it as often as they like, so its log lines
	// are summed up.
	AtWill bool
}

var table = [outcomes]Row{
	Accepted: {Name: "accepted", Labels: []string{front},
		Help: "Connections of applications that were let in."},
	KeptOut: {Name: "kept_out", Labels: []string{front},
		Help:    "Connections from networks that listen.allow does not name.",
		Message: "client refused: its network is not in listen.allow", Level: slog.LevelInfo, AtWill: true,
		Trouble: "A program on a network that may not use the gateway was turned away.",
		Next:    "If it may, add its network to allow in [listen]."},
	NotOwner: {Name: "not_owner", Labels: []string{front},
		Help:    "Connections of programs whose user listen.owners does not name.",
		Message: "client refused: its user is not in listen.owners", Level: slog.LevelInfo, AtWill: true,
		Trouble: "A program of a user who may not use the gateway was turned away.",
		Next:    "If it may, add its user to owners in [listen]."},
	OverLimit: {Name: "over_limit", Labels: []string{front},
		Help:    "Connections of applications beyond limits.connections, or beyond what the limit of open files allows.",
		Message: "connection refused: there are as many as there may be", Level: slog.LevelWarn, AtWill: true,
		Trouble: "Programs were turned away: there are as many connections as there may be.",
		Next:    "Raise connections in [limits], or the number of open files (LimitNOFILE in the service, ulimit -n). The log says which."},
	AcceptFailed: {Name: "accept_failed", Labels: []string{front},
		Help:    "Failed attempts to accept a connection of an application.",
		Message: "accept failed: raise the limit of open files, or lower limits.connections", Level: slog.LevelWarn, AtWill: true,
		Trouble: "For a moment no connection could be accepted.",
		Next:    "Raise the number of open files (LimitNOFILE in the service, ulimit -n), or lower connections in [limits]."},
	Foreign: {Name: "foreign", Labels: []string{front, protocol},
		Help:    "Connections whose first byte is of another protocol than the port's.",
		Message: "the client speaks another protocol than this port", Level: slog.LevelWarn, AtWill: true,
		Trouble: "A program spoke another protocol than its port takes.",
		Next:    "Set its proxy to http:// or socks5h:// as the port takes it. With mixed in [listen] a port takes both."},
	Silent: {Name: "silent", Labels: []string{front},
		Help: "Connections of applications that were closed because nothing came for limits.handshake.",
		Message: "client closed: it sent nothing. A program that waits for the server to speak first knows nothing of the proxy: " +
			"give it the address of its own server, and this one as its SOCKS or HTTP proxy", Level: slog.LevelInfo, AtWill: true,
		Trouble: "A program connected and sent nothing.",
		Next:    "It was probably given ptgate as its server. Give it its own server, and ptgate as its proxy."},
	HandshakeFailed: {Name: "handshake_failed", Labels: []string{front},
		Help:    "Connections of applications that ended before a complete request.",
		Message: "no complete request", Level: slog.LevelDebug, AtWill: true},
	BadCredentials: {Name: "bad_credentials", Labels: []string{front},
		Help:    "Attempts with a wrong user name or password.",
		Message: "wrong user name or password", Level: slog.LevelWarn, AtWill: true,
		Trouble: "A program gave a wrong user or password.",
		Next:    "Give it one of users in [listen]."},
	Opened: {Name: "opened", Labels: []string{front},
		Help: "Requests whose destination was opened."},
	Refused: {Name: "refused", Labels: []string{front, reason},
		Help:    "Requests that got an error for an answer.",
		Message: "request refused", Level: slog.LevelInfo, AtWill: true,
		Trouble: "Requests of programs got an error for an answer."},
	Abandoned: {Name: "abandoned", Labels: []string{front},
		Help:    "Requests whose client left before it had its answer.",
		Message: "client left before it had its answer", Level: slog.LevelDebug, AtWill: true},
	Panicked: {Name: "panicked", Labels: []string{front},
		Help:    "Panics that were recovered. Each is a fault of ptgate.",
		Message: "panic recovered: please report it", Level: slog.LevelError, AtWill: true,
		Trouble: "ptgate itself made a mistake, and one connection was lost.",
		Next:    "Please report it, with the line of the log that says \"panic recovered\"."},
	Connections: {Name: "connections", Labels: []string{front}, Gauge: true,
		Help: "Connections of applications that are open."},
	Relays: {Name: "relays", Gauge: true,
		Help: "Connections of applications that are open and lead to their destination."},
	Up: {Name: "up_bytes",
		Help: "Bytes from applications."},
	Down: {Name: "down_bytes",
		Help: "Bytes to applications."},

	BridgeFailed: {Name: "bridge_failed", Labels: []string{bridge, reason},
		Help:    "Failures after which a bridge was left alone for a while.",
		Message: "bridge failed", Level: slog.LevelWarn,
		Trouble: "A bridge failed, and rests for a while.",
		Next:    "ptgate tries it again by itself. `ptgate probe` with its name dials it and says how far it comes."},
	BridgeRecovered: {Name: "bridge_recovered", Labels: []string{bridge},
		Help:    "Bridges that worked again after a failure.",
		Message: "bridge works again", Level: slog.LevelInfo},
	EarlyFailed: {Name: "early_failed", Labels: []string{bridge, reason},
		Help:    "Requests that failed after the application had been told of success.",
		Message: "request failed after an early answer", Level: slog.LevelInfo, AtWill: true,
		Trouble: "A program was told that it is connected, and then the request failed."},
	CarrierLost: {Name: "carrier_lost", Labels: []string{bridge},
		Help:    "Carriers given up because the far end was silent.",
		Message: "carrier is dead: no answer", Level: slog.LevelInfo, AtWill: true},
	SessionDetached: {Name: "session_detached", Labels: []string{bridge},
		Help:    "Sessions that lost their last carrier while streams were open.",
		Message: "no carrier is left: the open streams wait", Level: slog.LevelInfo, AtWill: true,
		Trouble: "No connection to the server was left, and what was open had to wait.",
		Next:    "ptgate connects again by itself. If it comes often, look at what was learned of the network above."},
	LimitLearned: {Name: "limit_learned", Labels: []string{bridge, limit},
		Help:    "Limits of the network that were learned from how carriers ended.",
		Message: "the network ends connections: carriers keep to a limit now", Level: slog.LevelInfo},
	SessionResumed: {Name: "session_resumed", Labels: []string{bridge},
		Help:    "Sessions that went on after they had no carrier.",
		Message: "streams go on", Level: slog.LevelInfo, AtWill: true},
	StreamsLost: {Name: "streams_lost", Labels: []string{bridge},
		Help:    "Sessions that ended with open streams, because the far end was started again or did not come back in time.",
		Message: "streams were lost: the far end was started again, or did not come back within limits.resume", Level: slog.LevelWarn, AtWill: true,
		Trouble: "What was open through a bridge was lost: its server was started again, or did not come back in time.",
		Next:    "Start the downloads again. resume in [limits] says how long ptgate waits for a server."},
	BoxLeaves: {Name: "box_leaves", Labels: []string{bridge},
		Help:    "Far ends that have said that they are about to stop.",
		Message: "the far end is about to stop: new requests go elsewhere, or wait for it for a few seconds", Level: slog.LevelInfo, AtWill: true},
	BoxGone: {Name: "box_gone", Labels: []string{bridge},
		Help:    "Far ends that have stopped after they had said so.",
		Message: "the far end has stopped: requests wait for it for 10s, then they are refused until it is back", Level: slog.LevelWarn, AtWill: true,
		Trouble: "The server of a bridge was stopped.",
		Next:    "Start it again, or ask its operator. The next request tries it again."},
	BoxBack: {Name: "box_back", Labels: []string{bridge},
		Help:    "Far ends that were there again after they had stopped.",
		Message: "the far end is back", Level: slog.LevelInfo, AtWill: true},
	BoxChanged: {Name: "box_changed", Labels: []string{bridge},
		Help: "Bridges that lead to another box than before.",
		Message: "the bridge leads to another box than before: was the server installed anew, or does a balancer choose among several? " +
			"If neither, ask its operator", Level: slog.LevelWarn, AtWill: true,
		Trouble: "A bridge leads to another server than before.",
		Next:    "Was the server installed anew, or does a balancer choose among several? If neither, ask its operator."},
	BridgeSessions: {Name: "bridge_sessions", Labels: []string{bridge}, Gauge: true,
		Help: "Sessions with far ends."},
	BridgeCarriers: {Name: "bridge_carriers", Labels: []string{bridge}, Gauge: true,
		Help: "Carriers to far ends that are open."},
	BridgeStreams: {Name: "bridge_streams", Labels: []string{bridge}, Gauge: true,
		Help: "Connections of applications that a bridge carries, and requests for them."},
	BridgeIn: {Name: "bridge_in_bytes", Labels: []string{bridge},
		Help: "Bytes that came over a bridge's carriers."},
	BridgeOut: {Name: "bridge_out_bytes", Labels: []string{bridge},
		Help: "Bytes that went over a bridge's carriers."},
	PTStarts: {Name: "pt_starts", Labels: []string{pt},
		Help: "Starts of programs of pluggable transports, tried."},
	PTFailures: {Name: "pt_failures", Labels: []string{pt}, Gauge: true,
		Help: "Failures of programs of pluggable transports since they last ran for a minute."},

	ServeAccepted: {Name: "serve_accepted", Labels: []string{serve, port},
		Help: "Connections that came through a served transport."},
	ServeKeptOut: {Name: "serve_kept_out", Labels: []string{serve, port},
		Help:    "Clients that allow or deny of a [[serve]] kept out.",
		Message: "client kept out by allow or deny of this [[serve]]", Level: slog.LevelInfo, AtWill: true,
		Trouble: "A client was kept out.",
		Next:    "If it may use this server, add its network to allow of the [[serve]]."},
	ServeOverLimit: {Name: "serve_over_limit", Labels: []string{serve, port},
		Help:    "Clients and streams of a served transport beyond limits.connections, or beyond what the limit of open files allows.",
		Message: "client or connection refused: there are as many as there may be", Level: slog.LevelWarn, AtWill: true,
		Trouble: "Clients were turned away: there are as many connections as there may be.",
		Next:    "Raise connections or the limits of one client in [limits], or the number of open files."},
	ServeForeign: {Name: "serve_foreign", Labels: []string{serve, port},
		Help: "Clients that came through a served transport with another protocol than those of an exit.",
		Message: "client speaks neither a carrier of this version nor SOCKS5: set far = \"exit\" or \"socks5\" in its bridge, " +
			"and the same version of ptgate on both sides", Level: slog.LevelWarn, AtWill: true,
		Trouble: "A client spoke a protocol that this server does not know.",
		Next:    "Set far = \"exit\" in its bridge, and use the same version of ptgate on both sides."},
	ServeHandshakeFailed: {Name: "serve_handshake_failed", Labels: []string{serve, port},
		Help:    "Clients that came through a served transport and left, or were silent, before it was known what they speak.",
		Message: "client left, or was silent, before it was known what it speaks", Level: slog.LevelDebug, AtWill: true},
	ServeVanished: {Name: "serve_vanished", Labels: []string{serve, port},
		Help:    "Carriers given up because nothing was heard of the client for two minutes.",
		Message: "the client of a carrier has gone without a word", Level: slog.LevelInfo, AtWill: true},
	ServeClients: {Name: "serve_clients", Labels: []string{serve, port}, Gauge: true,
		Help: "Connections through a served transport that are open."},
	ServeSessions: {Name: "serve_sessions", Labels: []string{serve, port}, Gauge: true,
		Help: "Sessions with clients of a served transport."},
	ServeStreams: {Name: "serve_streams", Labels: []string{serve, port}, Gauge: true,
		Help: "Streams and forwarded connections of a served transport that are open."},
	ServeIn: {Name: "serve_in_bytes", Labels: []string{serve, port},
		Help: "Bytes that came through a served transport, but for what its program takes to the fixed service by itself."},
	ServeOut: {Name: "serve_out_bytes", Labels: []string{serve, port},
		Help: "Bytes that went through a served transport, but for what its program takes from the fixed service by itself."},
	ForwardFailed: {Name: "forward_failed", Labels: []string{serve, port},
		Help:    "Clients for which the fixed service of a [[serve]] could not be reached.",
		Message: "the fixed service can't be reached: see forward of this [[serve]]", Level: slog.LevelWarn, AtWill: true,
		Trouble: "The service that clients are led to could not be reached.",
		Next:    "Is it running? See forward of the [[serve]]."},
	ExitOpened: {Name: "exit_opened",
		Help: "Requests of clients whose destination the exit opened."},
	ExitBadCredentials: {Name: "exit_bad_credentials",
		Help:    "Attempts at the exit with a wrong user or password, or with none.",
		Message: "exit: wrong user or password: set user and password of the client's bridge as one of [exit] users or users_file has them here; or the invitation was revoked or has ended", Level: slog.LevelWarn, AtWill: true,
		Trouble: "A client gave a wrong user or password.",
		Next:    "Set user and password of its bridge as in users or users_file of [exit]; or its invitation was revoked or has ended, and `ptgate invite` makes a new one."},
	ExitRefused: {Name: "exit_refused", Labels: []string{reason},
		Help:    "Requests that the exit refused, or whose destination could not be opened.",
		Message: "exit: refused", Level: slog.LevelDebug, AtWill: true},
	ExitNoNames: {Name: "exit_no_names",
		Help:    "Requests whose name the exit could not look up, because no name server answered.",
		Message: "exit: names can't be looked up: the name servers of this machine do not answer; look at /etc/resolv.conf, and whether the firewall lets port 53 out",
		Level:   slog.LevelWarn, AtWill: true,
		Trouble: "The exit could not look names up: no name server answered.",
		Next:    "Look at /etc/resolv.conf, and whether the firewall lets port 53 out."},

	MemoryReset: {Name: "memory_reset", Labels: []string{end},
		Help:    "Connections that were reset because too many bytes waited: see limits.memory and limits.client_memory.",
		Message: "connection reset: too many bytes wait, and limits.memory or limits.client_memory is used up",
		Level:   slog.LevelWarn, AtWill: true,
		Trouble: "Connections were reset: too many bytes waited for programs that do not read.",
		Next:    "Raise memory or client_memory in [limits], if this machine has more."},
	MadeRoom: {Name: "made_room",
		Help:    "Half-closed connections that were silent, and were ended because others needed their places.",
		Message: "half-closed connection ended: it was silent, and its place was needed", Level: slog.LevelInfo, AtWill: true},
	AdminRefused: {Name: "admin_refused", Labels: []string{reason},
		Help:    "Requests for the status page, or connections for them, that were refused: for another host, from a page of another site, with a wrong password, of another user, or too many.",
		Message: "status page: refused", Level: slog.LevelInfo, AtWill: true,
		Trouble: "A request for this page was refused.",
		Next:    "If it was yours: use the address of this page as it stands here, and user and password of [admin]."},
}

// Rows lists the table. Its index is the Outcome.
func Rows() []Row { return slices.Clone(table[:]) }
