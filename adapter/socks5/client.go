package socks5

import "io"

// A Client is what one client wants of a server.
type Client struct {
	Auth    Auth
	Command Command
	Addr    Addr
	// Strict takes it amiss where the answer to user and password has not the version of
	// RFC 1929.
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

// An Error says at which stage a handshake failed. Err is a *MethodError, a StatusError
// or a ReplyError where the server refused; it wraps ErrMalformed where the server does
// not speak SOCKS5; else it is the connection's.
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

// Append appends all that the client has to say. A server that reads message by message
// finds the next one behind each: the whole handshake takes one round trip. Servers that
// take early bytes amiss want Do.
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

// ReadAnswers reads a server's answers to what Append has made for a client that offers
// m, not a byte beyond the last. Errors are *Error.
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

// Do goes through the handshake step by step: no message is sent before the answer to
// the one before has come, and not a byte is read beyond the last answer. An error that
// is no *Error means that the client can't be put into messages; nothing was sent then.
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

// Greet is the part of Do before the request: it shows that the server answers and takes
// the client's user and password.
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
