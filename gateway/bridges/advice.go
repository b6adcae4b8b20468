package bridges

import (
	"errors"
	"io/fs"
	"syscall"

	"ptgate/adapter"
	"ptgate/gateway/answer"
	"ptgate/gateway/carrier"
)

// advice tells the operator what to do about a bridge's failure.
func advice(err error) string {
	if _, ok := errors.AsType[*adapter.StartError](err); ok {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return "install the transport program, or correct exec in its [pt]"
		case errors.Is(err, fs.ErrPermission):
			return "make the transport program executable, or correct exec in its [pt]"
		case errors.Is(err, adapter.ErrRefused):
			return "the program does not offer this transport: correct transports in its [pt], or take another program"
		}
		return "this may be no transport program, or one with other options: look at exec in its [pt]"
	}
	if _, ok := errors.AsType[*carrier.AuthError](err); ok {
		return "user and password of the bridge must be one of [exit] users on the server, where that has any"
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nothing listens there: is the server running, and the bridge's address right?"
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return "this machine has no way to the bridge's address: look at its own connection first"
	case answer.Of(err) == answer.Timeout:
		return "no answer: the server is down, its address is blocked from here, or the args are another server's; `ptgate probe` tells at which stage"
	}
	return "is the server running, and are address and args as in the line of its `ptgate bridges`? `ptgate probe` tells at which stage it fails"
}
