// Package session moves the streams between a gateway and an exit.
//
// An application's connection is a stream. Opening a connection of a pluggable transport
// for each of them would cost several round trips and a conspicuous number of connections.
// So a session moves many streams over few carriers (package carrier). It decides when to
// open and close a carrier. Its user asks for streams and does not see the carriers
// (Status gives numbers, for people). A carrier knows nothing of streams, and neither does
// the function that opens connections.
//
// # The gateway's end
//
// A Client has a function that opens one connection to the far end (Options.Dial). The
// Client calls it when a request finds no carrier whose peer answers, and also when the
// carriers get busy, before a request needs another one. The rules:
//
//   - A session never has more than Settings.Carriers connections, counting those that are
//     still being opened.
//   - A connection is only an attempt until the first byte from the far end: a transport
//     may grant a connection before it has reached anybody. Requests are sent over an
//     attempt even so, which saves a round trip. They wait as long as an attempt may take.
//     When another carrier answers first, they move to that one: no byte of an application
//     has been sent yet.
//   - A carrier that owes an answer for too long gets no new streams and no more requests.
//     Its live streams stay: it may come back.
//   - An application may be told of success before the exit has answered (OpenEarly), but
//     only over a carrier that was heard a moment ago (carrier.Conn.Trusted).
//
// # The far end
//
// A Server gets the connections that clients have opened. It gives each stream to a
// function, which speaks SOCKS5 on it. It closes the connection of a client that was not
// heard for two minutes.
//
// # On the wire
//
// A carrier's preamble is followed by yamux (github.com/hashicorp/yamux, spec.md), without
// extensions. Each stream is a SOCKS5 session whose client side is sent in one write:
// greeting, user and password where the exit asks for them, CONNECT. So a new stream costs
// one round trip and the exit's dial. Half-close and reset work in both directions and
// lose no byte. Stream.WaitReset also sees a reset that comes after the end of a
// direction, which yamux drops.
//
// # Pacing
//
// yamux sends bytes in the order in which the streams have written them. An interactive
// stream must not wait long behind a bulk one. So each stream may queue only few bytes in
// front of the carrier (see pace), and the carrier only few in front of the network. A
// server bounds the bytes that it holds for all its clients together (see memory).
//
// # Limits
//
// A stream stays on one carrier, and breaks when that carrier ends. All carriers of a
// session lead to the same exit.
package session
