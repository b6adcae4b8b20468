// Package builtin holds the transports that ship inside ptgate: obfs4 (both
// sides), webtunnel (both sides) and meek_lite (client), as the Tor Project's
// own Go packages implement them. Of webtunnel, both sides' HTTP is our own.
//
// They can be had in two ways. [Main] is the child side of pt-spec version 1: a
// pluggable transport that any parent can start, ptgate itself or tor.
// [NewClient] and [Listen] call the same code inside the process, without a
// child, without the SOCKS hop and without a copy through the kernel; that is
// offered only where [Transport] says that nothing in the transport can take
// the process down.
//
// The package adds what the transports lack: contexts that cancel at every step,
// deadlines, half-close, errors instead of panics, bounds on what strangers may
// hold open, and upstream proxies that are never dialled around. It does not
// restart anything, choose bridges or multiplex.
//
// One table says what there is to know of each transport, also of those that other
// programs speak; [Lookup] reads it.
package builtin
