package socks5

import "io"

// A Client has the settings of one client's handshake.
type Client struct {
	Auth    Auth
	Command Command
	Addr    Addr
	// Strict makes it an error if the answer to user and password has another version
	// than that of RFC 1929.
	Strict bool
}

// A Stage is a part of the handshake.
type Stage string

// The stages, in order.
const (
	StageMethod  Stage = "method"
	StageAuth    Stage = "authentication"
	StageRequest Stage = "reply"
)

// An Error says at which stage a handshake has failed. If the server has refused, Err is
// a *MethodError, a StatusError or a ReplyError. If the server does not speak SOCKS5, it
// wraps ErrMalformed. Otherwise it is the error of the connection.
type Error struct {
	Stage Stage
	Err   error
}

func (e *Error) Error() string { return "socks5: " + string(e.Stage) + ": " + e.Err.Error() }

// Unwrap returns the reason.
func (e *Error) Unwrap() error { return e.Err }

func at(stage Stage, err error) error {
	if err == nil {
		return nil
	}
	return &Error{stage, err}
}

// Append appends all messages of the client, to be sent at once. So the whole handshake
// takes one round trip. Some servers do not accept several messages at once: use Do for
// these.
func (c Client) Append(b []byte) ([]byte, error) {
	b = AppendGreeting(b, c.Auth.Method())
	if c.Auth.Method() == UserPassword {
		var err error
		if b, err = AppendAuth(b, c.Auth); err != nil {
			return nil, err
		}
	}
	return AppendRequest(b, c.Command, c.Addr)
}

// ReadAnswers reads a server's answers to the messages of Client.Append, and no byte
// after the last one. m is the method that the client has offered. Errors are *Error.
func ReadAnswers(r io.Reader, m Method) (bound Addr, err error) {
	if err := ReadMethod(r, m); err != nil {
		return Addr{}, at(StageMethod, err)
	}
	if m == UserPassword {
		if err := ReadStatus(r, false); err != nil {
			return Addr{}, at(StageAuth, err)
		}
	}
	bound, err = ReadReply(r)
	return bound, at(StageRequest, err)
}

// Do does the handshake step by step: it sends a message only after the answer to the
// one before. It reads no byte after the last answer. If an error is not an *Error, the
// messages could not be built, and nothing was sent.
func (c Client) Do(rw io.ReadWriter) (bound Addr, err error) {
	request, err := AppendRequest(nil, c.Command, c.Addr)
	if err != nil {
		return Addr{}, err
	}
	if err := c.Greet(rw); err != nil {
		return Addr{}, err
	}
	if _, err := rw.Write(request); err != nil {
		return Addr{}, at(StageRequest, err)
	}
	bound, err = ReadReply(rw)
	return bound, at(StageRequest, err)
}

// Greet does the part of Do before the request. Nil: the server answers and accepts the
// client's user and password.
func (c Client) Greet(rw io.ReadWriter) error {
	m := c.Auth.Method()
	auth, err := AppendAuth(nil, c.Auth)
	if err != nil {
		return err
	}
	if _, err := rw.Write(AppendGreeting(nil, m)); err != nil {
		return at(StageMethod, err)
	}
	if err := ReadMethod(rw, m); err != nil || m == NoAuth {
		return at(StageMethod, err)
	}
	if _, err := rw.Write(auth); err != nil {
		return at(StageAuth, err)
	}
	return at(StageAuth, ReadStatus(rw, c.Strict))
}
