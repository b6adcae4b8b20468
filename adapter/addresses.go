package adapter

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"

	"ptgate/adapter/socks5"
)

// Constant returns an error whose text is a constant of the program: it never has an
// address, a name or a key in it. So a log that must not show those may show the text.
// Apart from that, it is errors.New.
func Constant(text string) error { return &constant{text} }

type constant struct{ text string }

func (e *constant) Error() string { return e.text }

// Class is what kind of failure err is: a text that a log may show which must not show
// clients, destinations, bridges or their args. It is "" if nothing is known of err.
//
// The text is not made from err.Error(), because nobody can tell what a library, a
// program or a peer has put into that. It has only texts that are constants: those of
// Constant, of the errors of the standard library that are listed here, and of errors with
// a method Class, which must return a text without such parts. Of an error that wraps
// others, it has the classes of these. Of an error of an unknown type, it has the name of
// the type. File names and names of programs stay, because they are the
// configuration's.
func Class(err error) string {
	if err == nil {
		return ""
	}
	if slices.ContainsFunc(known, func(k error) bool { return err == k }) {
		return err.Error()
	}
	switch e := err.(type) {
	case *constant:
		return e.text
	case interface{ Class() string }:
		return e.Class()

	case *StartError:
		return classes(fmt.Sprintf("start %q", e.Program), string(e.Stage), Class(e.Err)) + unsaid(e.Message, e.Stderr)
	case *ExitError:
		return fmt.Sprintf("transport program ended: %v", e.State) + unsaid("", e.Stderr)
	case *MethodError:
		return classes("transport "+e.Transport, Class(e.Err)) + unsaid(e.Message, nil)
	case *DialError:
		return classes("dial "+e.Transport, string(e.Stage), Class(e.Err))
	case Reply, *socks5.MethodError, socks5.StatusError, socks5.ReplyError:
		return err.Error() // it has numbers only
	case *socks5.Error:
		return classes("socks5", string(e.Stage), Class(e.Err))

	case *net.OpError:
		return classes(operation(e.Op), Class(e.Err))
	case *os.SyscallError:
		return classes(operation(e.Syscall), Class(e.Err))
	case *net.DNSError:
		switch {
		case e.IsNotFound:
			return "name look-up: no such host"
		case e.IsTimeout:
			return "name look-up: timeout"
		}
		return "name look-up failed"
	case *net.AddrError, *net.ParseError:
		return "an address that makes no sense"
	case *url.Error:
		return classes(operation(e.Op), Class(e.Err))
	case *fs.PathError:
		return classes(e.Op+" "+e.Path, Class(e.Err))
	case *os.LinkError:
		return classes(e.Op+" "+e.Old+" "+e.New, Class(e.Err))
	case *exec.Error:
		return classes(fmt.Sprintf("exec: %q", e.Name), Class(e.Err))
	case syscall.Errno, tls.AlertError:
		return err.Error()
	case x509.HostnameError:
		return "the certificate is for another name"
	case x509.UnknownAuthorityError:
		return "the certificate is of an unknown authority"
	case x509.CertificateInvalidError:
		if e.Reason == x509.Expired {
			return "the certificate has expired or is not yet valid"
		}
		return "the certificate is not valid"

	case interface{ Unwrap() error }:
		return Class(e.Unwrap())
	case interface{ Unwrap() []error }:
		var all []string
		for _, one := range e.Unwrap() {
			all = append(all, Class(one))
		}
		return classes(all...)
	}
	name := fmt.Sprintf("%T", err)
	switch {
	case name == "*errors.errorString":
		return ""
	case strings.HasPrefix(strings.TrimPrefix(name, "*"), "runtime."):
		return err.Error() // of a panic: indexes and names of types
	}
	return "an error of type " + name // also a constant
}

// known are errors of the standard library without a type of their own.
var known = []error{
	context.Canceled, context.DeadlineExceeded,
	io.EOF, io.ErrUnexpectedEOF, io.ErrClosedPipe, io.ErrNoProgress, io.ErrShortWrite, bufio.ErrTooLong,
	net.ErrClosed, os.ErrDeadlineExceeded, os.ErrProcessDone, exec.ErrNotFound, exec.ErrDot,
	fs.ErrInvalid, fs.ErrPermission, fs.ErrExist, fs.ErrNotExist, fs.ErrClosed, errors.ErrUnsupported,
}

// operations are the names of operations that errors of the standard library have. A
// library may have put something else into such an error.
var operations = []string{
	"accept", "accept4", "bind", "close", "connect", "dial", "getsockopt", "listen", "local error", "parse", "read", "recvfrom",
	"remote error", "sendto", "set", "setsockopt", "socket", "splice", "write", "writev", "Get", "Post",
}

func operation(name string) string {
	if slices.Contains(operations, name) {
		return name
	}
	return ""
}

// unsaid tells that a program has said something, but not what: that may be anything.
// Only the texts of common errors of the system are recognized.
func unsaid(message string, stderr []string) string {
	text := strings.Join(append([]string{message}, stderr...), "\n")
	if text == "" {
		return ""
	}
	for _, errno := range []syscall.Errno{syscall.EADDRINUSE, syscall.EADDRNOTAVAIL, syscall.EACCES, syscall.ENOENT, syscall.EMFILE} {
		if strings.Contains(text, errno.Error()) {
			return " (it said: " + errno.Error() + "; the rest is left out)"
		}
	}
	return " (what it said is left out)"
}

// classes puts together what is known of an error.
func classes(parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), ": ")
}

// WithoutAddresses returns err with its Class as the text. errors.Is and errors.As work on
// the result as on err.
func WithoutAddresses(err error) error {
	if err == nil {
		return nil
	}
	text := Class(err)
	switch text {
	case err.Error():
		return err
	case "":
		text = "an error that is not shown, because it may have addresses in it"
	}
	return &safeError{text, err}
}

type safeError struct {
	text string
	err  error
}

func (e *safeError) Error() string { return e.text }
func (e *safeError) Class() string { return e.text }
func (e *safeError) Unwrap() error { return e.err }
