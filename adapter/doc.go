// Package adapter runs Tor-style pluggable transports for any Go program, without Tor.
// It is the parent's side of pt-spec version 1: it starts a transport program
// (obfs4proxy, lyrebird, webtunnel, snowflake, …) as a child process, agrees with it
// on transports and ports (the handshake), watches it, and ends it.
//
// # What a transport does
//
// A transport makes a TCP connection look like other traffic on its way. It needs two
// programs: one at the near end and one at the far end.
//
//	your client ─▶ client child ═══ obfuscated ═══▶ server child ─▶ your server
//
// A transport carries no destination. A client child dials a bridge: the address of a
// server child, with its args. All bytes go to the one address that the server child
// connects to.
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
// ClientConfig.Proxy sends the child's own connections through an upstream proxy. A
// child that does not confirm the proxy is stopped, because it would dial without it.
// [ParseBridgeLine] reads bridges in the form Tor users know.
//
// One child serves several transports and any number of connections at once. If some
// of its transports fail and others come up, Start succeeds, and Method tells about
// each one.
//
// # A server
//
// A [ServerAdapter] runs a server child that connects every client to one fixed
// address, ServerConfig.Forward. AddTransport names what it serves and where it
// listens; port 0 lets the system choose. After Start, Method returns the address and
// the args that clients need.
//
// # A server that knows its clients
//
// An [ExtServerAdapter] receives the connections in this process, by the Extended
// ORPort protocol, and learns each client's address and transport. PreConnect can deny
// a client at once. Other connections go to Handler or, if there is no Handler, to
// Accept: the adapter is a [net.Listener].
//
// # State
//
// Programs keep keys in Config.StateDir. A server needs one, so that its keys stay the
// same after a restart. Without it, a temporary directory is used, and removed at the
// end.
//
// # What can go wrong
//
// Start returns a [*StartError], with the [Stage], the child's error message and its
// last lines on standard error. Method returns a [*MethodError] if a transport is
// missing. DialTransport returns a [*DialError]. A child that ends by itself is an
// [*ExitError]. They wrap the errors of this package, so errors.Is and errors.AsType
// tell them apart.
//
// An adapter runs one child once. When the child has ended, Done is closed, and Wait
// returns the reason. To start again, make a new adapter. The caller decides about
// restarts, pauses and the choice of bridges.
//
// # Lifetime
//
// The child gets its own environment (see Config.Env) and its own process group. Close
// first closes the child's stdin, then sends SIGTERM, then SIGKILL, to the whole
// group. If this process dies, even by SIGKILL, the kernel kills the child on Linux;
// on other systems the child sees that its stdin is closed. Drain lets open
// connections finish first.
//
// # Half-close
//
// Connections cannot be half-closed: at the first EOF, transport programs end both
// directions, and lose the bytes under way. A protocol that needs to announce the end
// of its data has to do so in its own bytes.
package adapter
