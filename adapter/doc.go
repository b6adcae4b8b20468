// Package adapter runs Tor-style pluggable transports for any Go program,
// without Tor. It is the parent's side of pt-spec version 1: it starts a
// transport program (obfs4proxy, lyrebird, webtunnel, snowflake, …) as a child
// process, negotiates with it, watches it, and ends it.
//
// # What a transport does
//
// A transport makes a TCP connection look like something else on its way. It
// needs two programs: one at the near end and one at the far end.
//
//	your client ─▶ client child ═══ obfuscated ═══▶ server child ─▶ your server
//
// A transport carries no destination: a client child dials a bridge, which is
// a server child's address with its args, and whatever is sent comes out at
// the one place that server child leads to.
//
// # A client
//
// A [ClientAdapter] runs a client child. Give it the program and the
// transports, Start it, and dial:
//
//	client := adapter.NewClient(adapter.ClientConfig{
//		Config:     adapter.Config{Exec: []string{"obfs4proxy"}},
//		Transports: []string{"obfs4"},
//	})
//	if err := client.Start(ctx); err != nil { … }
//	defer client.Close()
//	conn, err := client.DialTransport(ctx, "obfs4", "192.0.2.10:443", adapter.Args{{"cert", "…"}, {"iat-mode", "0"}})
//
// ClientConfig.Proxy sends the child's own connections through an upstream
// proxy. A child that does not confirm it is stopped, because it would dial
// around it. [ParseBridgeLine] reads bridges in the form Tor users know.
//
// One child serves several transports and any number of connections at once.
// Where some of its transports fail and others come up, Start succeeds, and
// Method tells about each.
//
// # A server
//
// A [ServerAdapter] runs a server child that leads every client to one fixed
// address, ServerConfig.Forward. AddTransport names what it serves and where
// it listens; port 0 lets the system choose. After Start, Method tells the
// address and the args that clients need.
//
// # A server that knows its clients
//
// An [ExtServerAdapter] receives the connections in this process, by the
// Extended ORPort protocol, and learns each client's address and transport.
// PreConnect can deny a client at once; then either Handler gets the
// connection or, because the adapter is a [net.Listener], Accept does.
//
// # State
//
// Programs keep keys in Config.StateDir. A server whose keys clients are to
// know tomorrow needs one that stays. Without it a temporary directory is
// used, and vanishes at the end.
//
// # What can go wrong
//
// Start returns a [*StartError], which names the [Stage], the child's own
// words and its last lines on standard error. A transport that is not there is
// a [*MethodError], a dial that fails a [*DialError], a child that ends by
// itself an [*ExitError]. They wrap the errors of this package, so errors.Is
// and errors.AsType tell them apart.
//
// An adapter runs one child once. Done is closed when that has ended and Wait
// tells why; to start again, make a new adapter. Restarts and backoff are up
// to the caller, as is every decision about which bridge to use.
//
// # Lifetime
//
// The child gets an environment of its own (see Config.Env) and a process group of its
// own. Close asks it to end by closing its stdin, then sends SIGTERM, then
// SIGKILL; what it forked is killed with it. On Linux the kernel kills it
// should this process die, even by SIGKILL; elsewhere its closed stdin tells
// it. Drain lets live connections finish first.
//
// # Half-close
//
// Connections cannot be half-closed: transport programs end both directions at
// the first EOF and lose what is under way. A protocol that needs to say "no
// more from me" has to say it in its own bytes.
package adapter
