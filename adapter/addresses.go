package adapter

import (
	"net"
	"net/url"
	"strings"
)

// WithoutAddresses gives err a text that names no network address and no host, as
// far as the standard library's errors of connections and look-ups hold them: for
// a log where neither clients nor destinations are to be seen. errors.Is and
// errors.As find what they found before.
func WithoutAddresses(err error) error {
	if err == nil {
		return nil
	}
	if text := bareText(err); text != err.Error() {
		return &bareError{text, err}
	}
	return err
}

type bareError struct {
	text string
	err  error
}

func (e *bareError) Error() string { return e.text }
func (e *bareError) Unwrap() error { return e.err }

func bareText(err error) string {
	switch e := err.(type) {
	case *net.OpError:
		return join(e.Op, e.Err)
	case *url.Error:
		return join(e.Op, e.Err)
	case *net.DNSError:
		return "lookup: " + e.Err
	case *net.AddrError:
		return e.Err
	case *net.ParseError:
		return "invalid " + e.Type
	}
	text := err.Error()
	switch e := err.(type) {
	case interface{ Unwrap() error }:
		text = replaceInner(text, e.Unwrap())
	case interface{ Unwrap() []error }:
		for _, inner := range e.Unwrap() {
			text = replaceInner(text, inner)
		}
	}
	return text
}

func join(op string, err error) string {
	if err == nil {
		return op
	}
	return op + ": " + bareText(err)
}

func replaceInner(text string, inner error) string {
	if inner == nil || inner.Error() == "" {
		return text
	}
	return strings.ReplaceAll(text, inner.Error(), bareText(inner))
}
