// Package budget knows what a network lets one connection to a bridge use before it
// kills the connection, and how many connections it allows.
//
// Networks freeze a connection after some bytes from the far end, reset it at some age,
// cut it after some silence, and drop new connections when there are too many. The user
// can write such limits into the configuration. They are kept to. What the user does not
// write, a Learner finds out from how carriers die. A carrier is one connection to the
// bridge.
//
// # What teaches
//
// One death says little: programs crash, boxes restart, laptops sleep. A death counts
// only if the way to the bridge works at that moment: another carrier has got bytes since,
// or a new carrier works at once. Several deaths teach a limit if their bytes, their ages
// or their silences agree so well that chance is no good explanation. A
// carrier that lives past such a value takes away all that the deaths below have taught.
//
// One limit is so well known that less is enough: a connection that is frozen in the
// middle of a transfer, after some 16 KiB from the far end.
//
// Too tight a limit costs throughput. So a learned limit is tried again from time to time:
// one carrier at a time may go past it. If it lives, the limit is forgotten. Another
// network forgets all limits.
//
// The package opens no connection and starts no goroutine. The caller passes the time.
package budget

import (
	"fmt"
	"strconv"
	"time"
)

// Limits is what the carriers of one bridge may use. A zero field is no limit.
type Limits struct {
	// Bytes is how many bytes may come from the far end on one carrier, as the network
	// counts them: with the transport's handshake, padding and framing.
	Bytes int64
	// Age is how old a carrier may become.
	Age time.Duration
	// Idle is how long no byte may come from the far end.
	Idle time.Duration
	// New is how many connections may be begun in a time.
	New Rate
	// AtOnce is how many carriers there may be at a time, those included that are
	// being opened.
	AtOnce int
}

// A Rate is at most Count events in any time as long as Per.
type Rate struct {
	Count int
	Per   time.Duration
}

// String gives the rate as a configuration has it, as in "3/30s". "" is no rate.
func (r Rate) String() string {
	if r == (Rate{}) {
		return ""
	}
	return strconv.Itoa(r.Count) + "/" + duration(r.Per)
}

// DefaultNew bounds new connections if the configuration does not. The short time means
// that there is no burst: no more than four begin together. It is enough for some 16
// connections a second, as many as a browser opens while it loads a page.
var DefaultNew = Rate{Count: 4, Per: 250 * time.Millisecond}

// A Kind names one of the limits.
type Kind uint8

// The kinds are the fields of Limits. KindNone is none of them.
const (
	KindNone Kind = iota
	KindBytes
	KindAge
	KindIdle
	KindNew
	KindAtOnce
)

// String gives the kind's key in the configuration.
func (k Kind) String() string {
	switch k {
	case KindBytes:
		return "bytes"
	case KindAge:
		return "age"
	case KindIdle:
		return "idle"
	case KindNew:
		return "new"
	case KindAtOnce:
		return "number"
	}
	return ""
}

// MarshalText implements encoding.TextMarshaler, with String.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText is the opposite of MarshalText.
func (k *Kind) UnmarshalText(text []byte) error {
	for x := KindNone; x <= KindAtOnce; x++ {
		if x.String() == string(text) {
			*k = x
			return nil
		}
	}
	return fmt.Errorf("no kind of limit: %q", text)
}

// How says in what way a carrier died.
type How uint8

// The ways.
const (
	// Reset: the connection was reset, or failed with another error.
	Reset How = iota
	// Frozen: nothing came any more. Somebody noticed, and gave the carrier up.
	Frozen
	// Ended: the far end's direction ended, and the far box had not said that it would.
	Ended
)

// A Death says how a carrier died that was not closed in order.
type Death struct {
	// Bytes is what came from the far end, counted as Limits.Bytes.
	Bytes int64
	// Age is the time from when the connection was begun.
	Age time.Duration
	// Silent is the time since the last byte from the far end.
	Silent time.Duration
	// Asked is the time since something was sent that the far end must answer; at most
	// Silent. So the far end was silent for Silent-Asked before anybody needed it. 0: not
	// known, or nobody asked.
	Asked time.Duration
	How   How
	// OthersAlive says that another carrier of this bridge has got a byte after the last
	// byte of this one. It is not enough that another carrier is open.
	OthersAlive bool
}

// A Life says what a carrier has lived through.
type Life struct {
	// Bytes came from the far end, counted as Limits.Bytes.
	Bytes int64
	// Age is the time from when the connection was begun to the last byte from the far
	// end.
	Age time.Duration
	// Silent is the longest time without a byte from the far end after which bytes came
	// again.
	Silent time.Duration
}

// duration is d as people write it: "1m", not "1m0s".
func duration(d time.Duration) string {
	switch {
	case d >= time.Hour && d%time.Hour == 0:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d >= time.Minute && d%time.Minute == 0:
		return fmt.Sprintf("%dm", d/time.Minute)
	}
	return d.String()
}
