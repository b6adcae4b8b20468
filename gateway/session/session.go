// Package session is what the streams between a gateway and an exit live in.
//
// An application's connection is a stream. Opening a connection of a pluggable transport
// for each of them would cost several round trips and a conspicuous number of connections.
// So a session moves many streams over few carriers (package carrier), which it opens,
// keeps alive and closes as it sees fit. Who uses a session asks for streams and is not
// told how many carriers there are (Status gives numbers, for people). Whoever provides
// connections, and the carriers themselves, know nothing of streams.
//
// # The gateway's end
//
// A Client is given a function that opens one connection to the far end. It is called when
// a request finds no carrier whose peer answers, and ahead of need when the carriers that
// are there get busy. The rules:
//
//   - The connections of a session, those included that are being opened, are never more
//     than Settings.Carriers.
//   - A connection counts as an attempt until the first byte from the far end: that a
//     transport grants it proves nothing. Requests are sent over it even so, which saves a
//     round trip, and wait for as long as an attempt may take. When another carrier
//     answers first, they move there: nothing of an application's has been sent yet.
//   - A carrier that owes an answer for too long gets no new streams and no more requests.
//     Its live streams stay: it may come back.
//   - An application may be told of success before the exit has answered (OpenEarly), but
//     only over a carrier whose way was open a moment ago: one that was not silent for
//     longer than usual, and not heard only before the machine slept.
//
// # The far end
//
// A Server is given the connections that clients have opened, and gives each stream to a
// function, which speaks SOCKS5 on it. It lets go of a client that was not heard for two
// minutes.
//
// # On the wire
//
// A carrier's preamble is followed by yamux (github.com/hashicorp/yamux, spec.md), without
// extensions. Each stream is a SOCKS5 session whose client side is sent in one write:
// greeting, user and password where the exit asks for them, CONNECT. So a new stream costs
// one round trip and the exit's dial. Half-close and reset work in both directions and
// lose no byte. A reset that comes after the end of a direction is noticed, too, although
// yamux drops it: see Stream.WaitReset.
//
// # Pacing
//
// yamux sends what streams have written in the order in which it was written. So that an
// interactive stream does not wait behind a bulk one, each stream may have little in front
// of the carrier at a time (see pace), and the carrier little in front of the network.
// What a server holds for its clients is bounded for all of them together (see memory).
//
// # Limits
//
// A stream lives on one carrier, and dies with it. There is one exit behind all carriers
// of a session.
package session
