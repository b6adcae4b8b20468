package session

import (
	"errors"

	"ptgate/adapter"
	"ptgate/adapter/socks5"
	"ptgate/gateway/answer"
)

// Errors of sessions.
var (
	errReset      = adapter.Constant("the stream was reset") // by the peer, or the session has ended
	errPeerClosed = adapter.Constant("the far end has ended the session")
	errLimit      = adapter.Constant("the far end takes no more streams") // this one was not looked at
	errLeaving    = adapter.Constant("the far end is about to stop")      // this stream was not looked at
	errCarrier    = adapter.Constant("the carrier was lost, and streams do not outlive it")
	errDetached   = adapter.Constant("the session had no carrier for too long")
	errUnknown    = adapter.Constant("the far end does not know the session: was it started again?")
	errOtherBox   = adapter.Constant("the bridge leads to another box than before")
	errMemory     = adapter.Constant("too many bytes wait for programs that do not read")
	errClosed     = adapter.Constant("the bridge is closed")
	errNoAnswer   = adapter.Constant("no answer from the far end")
	errNoSign     = adapter.Constant("no sign of the far end")
	// ErrStopped: the far end has said that it stops, and is not back.
	ErrStopped = adapter.Constant("the far end has stopped, and is not back")
	// ErrEnded: the far end has closed the connection before it said a word.
	ErrEnded = adapter.Constant("the connection to the bridge ended as soon as it was made")
)

// answerError is what an answer of the far end means.
func answerError(answer byte) error {
	switch answer {
	case answerUnknown:
		return errUnknown
	case answerFull:
		return errLimit
	case answerLeaving:
		return errLeaving
	}
	return adapter.Constant("the far end refuses the carrier")
}

// NotLookedAt tells whether the error of a request says that the far end has not looked at
// it, so that it may be made again without harm.
func NotLookedAt(err error) bool {
	r, ok := errors.AsType[*Refusal](err)
	return ok && r.Code == answer.Limit.SOCKS() || errors.Is(err, errLeaving)
}

// IsLost tells whether the error of a request says that the way to the far end is lost.
// The far end may have looked at the request or not.
func IsLost(err error) bool { return isLost(err) }

// IsFull tells whether an error says that the far end takes nobody at the moment.
func IsFull(err error) bool { return errors.Is(err, errLimit) || errors.Is(err, errLeaving) }

// IsOtherBox tells whether an error says that a bridge leads to another box than before.
func IsOtherBox(err error) bool { return errors.Is(err, errOtherBox) }

// IsForeign tells whether an error says that the far end speaks something else.
func IsForeign(err error) bool {
	return errors.Is(err, errHello) || errors.Is(err, errFrame) || errors.Is(err, socks5.ErrMalformed)
}
