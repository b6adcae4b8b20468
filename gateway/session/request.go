package session

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"

	"ptgate/adapter"
	"ptgate/adapter/socks5"
	"ptgate/gateway/answer"
	"ptgate/routes"
)

// Auth is a user and a password for an exit that asks for them. The zero value has
// none.
type Auth = socks5.Auth

// request makes the SOCKS5 client that asks an exit for t.
func request(t routes.Target, a Auth) socks5.Client {
	return socks5.Client{Auth: a, Command: socks5.Connect, Addr: socks5.Addr{Name: t.Name, IP: t.Addr, Port: t.Port}}
}

// readAnswers reads the exit's side of a request that was sent in one write.
func readAnswers(r io.Reader, m socks5.Method) error {
	bound, err := socks5.ReadAnswers(r, m)
	return meaning(err, bound)
}

// Handshake asks any SOCKS5 server for a connection to t. It sends each message only
// after the answer to the one before, because not every server can read several at
// once. The caller sets a deadline on c, and still owns c after an error. Errors are
// as those of Client.Open.
func Handshake(c net.Conn, t routes.Target, a Auth) error {
	bound, err := request(t, a).Do(c)
	return meaning(err, bound)
}

// Greet does the part of Handshake before the request. Nil: the far end answers and
// accepts a. The caller sets a deadline on c.
func Greet(c net.Conn, a Auth) error {
	return meaning(socks5.Client{Auth: a}.Greet(c), socks5.Addr{})
}

// meaning turns the error of a handshake into one of this package. bound is the address in
// the reply.
func meaning(err error, bound socks5.Addr) error {
	e, ok := errors.AsType[*socks5.Error](err)
	if !ok {
		return err
	}
	switch reason := e.Err.(type) {
	case *socks5.MethodError:
		switch {
		case reason.Offered == socks5.UserPassword:
			return badAuth("takes no user and password: remove them from the bridge")
		case reason.Chosen == socks5.NoMethod:
			return badAuth("asks for a user and password: set them in the bridge")
		}
		return answer.Errorf(answer.NoBridge, "the far end chooses an unknown method, %d", reason.Chosen)
	case socks5.StatusError:
		return badAuth("says that user or password of the bridge are wrong")
	case socks5.ReplyError:
		r := &Refusal{Code: byte(reason)}
		if bound.IP == netip.IPv4Unspecified() {
			r.Detail = bound.Port
		}
		return answer.New(r.Reason(), r)
	}
	if errors.Is(e.Err, socks5.ErrMalformed) {
		return answer.Errorf(answer.NoBridge, "the far end gives no SOCKS5 answer: %w", e.Err)
	}
	return lost(string(e.Stage), e.Err)
}

// An AuthError says that the far end does not accept the bridge's user and password,
// or that it asks for some and the bridge has none. What says which, and what to do.
type AuthError struct{ What string }

func (e *AuthError) Error() string { return "the far end " + e.What }

// Class is the text: it has no address; see adapter.Class.
func (e *AuthError) Class() string { return e.Error() }

func badAuth(what string) error { return answer.New(answer.User, &AuthError{what}) }

// A Refusal says that the far end has refused a request. Another bridge to the same
// server would get the same answer.
type Refusal struct {
	Code   byte   // RFC 1928 section 6
	Detail uint16 // of answer.Reason; 0: there is none
}

// Reason is why the far end has refused.
func (e *Refusal) Reason() answer.Reason { return answer.FromExit(e.Code, e.Detail) }

func (e *Refusal) Error() string {
	return fmt.Sprintf("the far end answers %#02x, %v", e.Code, e.Reason())
}

// Class is the text: it has no address; see adapter.Class.
func (e *Refusal) Class() string { return e.Error() }

// Lost says that the connection to the far end broke, or fell silent, before the
// answer came. Stage is the part of the request that was under way.
type Lost struct {
	Stage string
	Err   error
}

func (e *Lost) Error() string { return fmt.Sprintf("carrier lost, awaiting %s: %v", e.Stage, e.Err) }

// Class is the text without what may say where; see adapter.Class.
func (e *Lost) Class() string {
	text := "carrier lost, awaiting " + e.Stage
	if class := adapter.Class(e.Err); class != "" {
		text += ": " + class
	}
	return text
}

// Unwrap returns the reason.
func (e *Lost) Unwrap() error { return e.Err }

func isLost(err error) bool {
	_, ok := errors.AsType[*Lost](err)
	return ok
}

func lost(stage string, err error) error {
	reason := answer.NoBridge
	if t, ok := err.(interface{ Timeout() bool }); ok && t.Timeout() {
		reason, err = answer.Timeout, os.ErrDeadlineExceeded
	}
	return answer.New(reason, &Lost{stage, err})
}
