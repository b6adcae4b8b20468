// Package builtin holds the transports that ship inside ptgate: obfs4 (both
// sides), webtunnel (both sides) and meek_lite (client), as the Tor Project's own
// Go packages implement them. Only the HTTP part of webtunnel is our own, on both
// sides.
//
// There are two ways to use them. [Main] is the child side of pt-spec version 1: a
// pluggable transport that any parent can start, ptgate or tor. [NewClient] and
// [Listen] run the same code inside the process, without a child and a SOCKS hop.
// A program may do that only with a transport that can't end the process by a
// panic (see InProcess in [Transport]).
//
// The package adds features that the transports do not have: contexts that cancel
// at every step, deadlines, half-close, errors instead of panics, bounds on the
// connections of strangers, and upstream proxies that are used for every
// connection. It does not restart anything, choose bridges or multiplex.
//
// One table has the facts about each transport, also about those that only other
// programs speak; see [Lookup].
package builtin
