// Package session moves the streams between a gateway and an exit.
//
// An application's connection is a stream. Streams belong to a session between two boxes:
// the gateway's and the far one. A session is carried by carriers, which are connections of
// pluggable transports (package carrier). Carriers come and go: networks cut, freeze, slow
// down and reset them. The streams do not notice. While a session has no carrier, its
// streams wait.
//
// The user of this package asks for streams and does not see the carriers (Status gives
// numbers, for people). The package knows nothing of transports, bridges and
// configurations.
//
// # The gateway's end
//
// A Client gets Paths: functions that open one connection each. The first Path is its own,
// and sessions begin there. The rules:
//
//   - A carrier that was lost is replaced at once. After a failure the next attempt waits,
//     longer each time, with some chance in it. Every Path's budget is kept to (package
//     budget).
//   - If the own Path does not work, the others are tried in turn, but none that is known to
//     lead to another box. Before the box is known, only those are tried that have to lead to
//     the box of the own Path (Path.Only). No byte of a stream goes to a box before it has
//     shown that it is the one that has the session.
//   - An attempt that gives no sign for some seconds gets another one beside it. What waits
//     for the first one to answer goes over whichever answers first.
//   - A carrier that owes an answer for too long gets no more streams. It is given up when
//     another one has been heard since then.
//   - A carrier that nears its budget of bytes or age is replaced before that is used up.
//   - There are never more than Settings.Carriers connections, counting those that are being
//     opened or closed. If it is 0, there are as many as the load needs, and more where each
//     connection is slow and another one helps. See Limits for two exceptions.
//   - If a session had no carrier for Settings.Resume, or the box does not know it any more,
//     its streams are reset. The next request begins another session.
//   - If the box is about to stop, a second session is begun as soon as a box takes it, and
//     new streams go there. The old streams stay where they are.
//   - An application may be told of success before the exit has answered (OpenEarly), but
//     only over a carrier that was heard a moment ago (carrier.Conn.Trusted).
//
// # The far end
//
// A Server has the sessions of a process. It gives each stream to a function, which speaks
// SOCKS5 on it. A Group is the part of them that has begun at one listener; it can be
// stopped without the others. A carrier may come in at any listener of the process. A
// session without a carrier is kept for the shorter Resume of both sides, and not at all if
// it has no stream and nothing to send again. The oldest ones end sooner if there are too
// many, or if they keep too many bytes.
//
// # On the wire
//
// A carrier is a connection that keeps bytes in order. Each side begins with a hello:
//
//	preamble  4 bytes, see package carrier; the last one is the version
//	length    2 bytes, big endian: of what follows; at most 1024
//
// The gateway's hello goes on so:
//
//	features  4 bytes, big endian: one bit for each extension that it knows. 1: news;
//	          2: the far end looks names up for a gateway, see package lookup
//	flags     1 byte. 1: begin the session if there is none. 2: this carrier is an extra one
//	id        16 bytes: of the session, made by chance
//	proof     16 bytes. With flag 1: the session's secret, made by chance. Otherwise a MAC
//	number    of the carrier: from 0, each number is used once in a session
//	budget    how many bytes the far end may put on this carrier's connection, in all; 0: any
//	resume    for how many seconds the session may be kept without a carrier
//
// The last three are varints (as in package encoding/binary: unsigned, 7 bits a byte, the
// lowest first), and so are all numbers below. The far end answers:
//
//	features   4 bytes, big endian
//	answer     1 byte. 0: welcome. 1: there is no such session. 2: refused. 3: there are too
//	           many sessions. 4: the box is about to stop and begins no session
//	mac        16 bytes, if the answer is 0
//	resume     for how many seconds the session is kept without a carrier
//	key        32 bytes: the Ed25519 key of the box
//	signature  64 bytes
//
// Key and signature are there unless the answer is 0 and flag 1 was not set. A hello may be
// longer than this: a later version adds fields at its end, and who does not know them
// skips them. Both sides use an extension if both have its bit. A change that old versions
// can't skip gets another preamble.
//
// A MAC is the first 16 bytes of the HMAC-SHA-256, with the secret as its key, of the text
// "ptgate session gateway" or, for the far end's, "ptgate session box", a zero byte, the
// id, and the number in 8 bytes, big endian. The signature is of the text "ptgate box", a
// zero byte, the id, the SHA-256 of proof, and the number in 8 bytes. A wrong proof gets
// the same answer as an unknown session. All this passes inside the transport, which
// encrypts.
//
// The gateway may send frames behind its hello without waiting for the answer. Frames
// follow each other without gaps. A frame is its type, one byte, and its numbers:
//
//	 1 data     stream, offset, length; then as many bytes, 1 to 65536
//	 2 fin      stream, offset: this direction ends there
//	 3 stop     stream, offset: as fin, and the other direction is not read any more
//	 4 reset    stream, code: both directions end at once. 0: reset. 1: there are too many
//	            streams. 2: the box is about to stop. With 1 and 2 nobody looked at the stream
//	 5 window   stream, offset: the peer may send up to there
//	 6 ack      carrier, position: see below
//	 7 gone     carrier, position: see below
//	 8 last     this side sends no more frames on this carrier, except close
//	 9 ping     token: answer soon
//	10 pong     token: the answer
//	11 leaving  stage: the far end is about to stop
//	12 close    code (0): the session ends, and all streams with it
//	13 budget   bytes: what hello's budget says, from now on
//	14 news     serial: see below. Only if both sides have the bit of news
//
// An unknown type, or what contradicts what was said before, ends the session.
//
// Streams. The gateway opens streams, numbered from 0; a stream is there when a frame with
// its number comes. Its bytes have offsets from 0 in each direction, and frames with them
// may come in any order and twice. Nobody sends past the last window; the first is 16384 in
// both directions. Each side gives a larger one behind its first bytes, if it has memory for
// that. Each stream is a SOCKS5 session whose client side is sent at once:
// greeting, user and password where the exit asks for them, CONNECT.
//
// Carriers. All frames of one side on one carrier have positions, counted in bytes from the
// first one after its hello. A side confirms with ack, on the same carrier, up to where it
// has taken bytes: at least after each 512 KiB, and before each pong. The sender keeps what
// is not confirmed.
//
// A side that does not use a carrier any more, for any reason, says so over another one
// with gone, and how many bytes it has taken. It takes no more from it after that. It says
// it again if the carrier with that gone is lost before it was confirmed. Who gets a gone
// answers with its own, if it has not sent one, and then sends again what the other side has
// not taken: data from the very byte, and fin, stop, reset, window, leaving, close and news. It does
// not send again ack, ping, pong, last and budget, which belong to a carrier; gone is sent
// again as said. A gone with the number of a carrier that never came means that it must not
// come any more.
//
// In order, a carrier ends so: one side sends last, the other one does, too, and each closes
// the connection when it has both sent and got one. Each then sends gone for it.
//
// An answer goes over the carrier on which its stream's last frame came. Extra carriers are
// an exception: the far end uses them only for streams whose own carrier is full.
//
// A box that is about to stop says leaving 1: new streams had better go elsewhere, but are
// taken. Then leaving 2: it resets new streams with code 2. Streams that live go on. At last
// it sends close on every carrier.
//
// The far end has something to say to those who may use it, which changes now and then: its
// news. It says the serial of its news when a session begins, and again when there are
// newer ones. The gateway asks for them in a stream if it does not have them, and then says
// the same serial. A box that is about to stop waits a moment for that.
//
// # Pacing and memory
//
// A writer waits when its peer's window is used up, when the carrier's queue is full, and
// when too many bytes wait to be confirmed (Settings.Buffer). Streams take turns, so an
// interactive one does not wait behind a bulk one. A stream's window grows while its reader
// takes what comes.
//
// What peers make a process hold is counted as the memory that it takes (Memory): for each
// session, each client of a Server, and the process. The less is left, the smaller are the
// windows and the bytes that a session may keep, down to some KiB each, so every stream goes
// on. If peers send what they were allowed to send before, and nobody reads it, streams with
// unread bytes are reset, in the session that holds much. So one peer does not take the
// memory of the others.
//
// One client of a Server may have so many streams, and may open so many in a second
// (ServerSettings). Those beyond that are reset with code 1, and nobody looks at them.
//
// # Limits
//
// A stream stays in its session, and a session with its box. When a box ends, so do its
// streams. One direction of a stream has at most 2^60 bytes. A peer may not leave too many
// gaps in the numbers of streams and carriers, or in the bytes of a stream. A frame that
// comes twice, late, or for a stream that has ended does nothing.
//
// There may be one connection more than Settings.Carriers in two cases. The successor of a
// session whose box is about to stop has one of its own: neither may starve the other. And
// a renewal (Client.Renew) opens the new carrier before it ends the old one.
//
// The proof of the box is not bound to the connection. So whoever operates one bridge of a
// route can pass a session on to another box, and read it. Put in one route only bridges
// of operators that you trust alike.
package session
