package adapter

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Errors to test for with errors.Is.
var (
	// ErrStarted: Start was called before, or AddTransport after it. An
	// adapter runs one child once; make a new one to run another.
	ErrStarted = Constant("adapter already started")
	// ErrNotStarted: there is no running child yet.
	ErrNotStarted = Constant("adapter not started")
	// ErrClosed: Close or Drain was called.
	ErrClosed = Constant("adapter closed")
	// ErrStartTimeout: the child was not ready within Config.StartTimeout.
	ErrStartTimeout = Constant("not ready in time")
	// ErrOutputClosed: the child closed its standard output before it was ready.
	ErrOutputClosed = Constant("standard output closed")
	// ErrProtocol: the child sent what pt-spec does not allow.
	ErrProtocol = Constant("protocol violated")
	// ErrVersion: the child speaks none of the offered protocol versions.
	ErrVersion = Constant("no common protocol version")
	// ErrEnvironment: the child reported ENV-ERROR.
	ErrEnvironment = Constant("environment refused")
	// ErrProxy: the child reported PROXY-ERROR.
	ErrProxy = Constant("upstream proxy refused")
	// ErrProxyUnconfirmed: the child has not confirmed that it uses the upstream
	// proxy. It was stopped, because it might have dialled without the proxy.
	ErrProxyUnconfirmed = Constant("upstream proxy not confirmed")
	// ErrNoMethods: not one transport came up.
	ErrNoMethods = Constant("no transport available")
	// ErrUnknownTransport: the configuration does not have this transport.
	ErrUnknownTransport = Constant("unknown transport")
	// ErrNotAnnounced: the child said nothing about the transport.
	ErrNotAnnounced = Constant("not announced")
	// ErrRefused: the child reported CMETHOD-ERROR or SMETHOD-ERROR.
	ErrRefused = Constant("refused by the transport program")
	// ErrNotLoopback: the child's SOCKS listener is open to others.
	ErrNotLoopback = Constant("listener is not on loopback")
)

// Stage names a step of the start of a child.
type Stage string

// The stages of a start, in order.
const (
	StageConfig      Stage = "configuration"
	StageState       Stage = "state directory"
	StageListen      Stage = "extended orport"
	StageExec        Stage = "exec"
	StageVersion     Stage = "version"
	StageEnvironment Stage = "environment"
	StageProxy       Stage = "upstream proxy"
	StageMethods     Stage = "methods"
)

// StartError says why a start failed.
type StartError struct {
	Program string   // the program; may be empty
	Stage   Stage    // the stage that failed
	Message string   // the child's error message; empty if it has sent none
	Stderr  []string // the last lines of the child's standard error
	Err     error    // the reason: one of this package's errors, *ExitError, or the context's
}

// quoted is how many of the last stderr lines an error's text holds.
const quoted = 3

func (e *StartError) Error() string {
	var b strings.Builder
	b.WriteString("start ")
	if e.Program != "" {
		b.WriteString(strconv.Quote(e.Program) + ": ")
	}
	fmt.Fprintf(&b, "%s: %v", e.Stage, e.Err)
	if e.Message != "" {
		fmt.Fprintf(&b, ": %q", e.Message)
	}
	writeStderr(&b, e.Stderr)
	return b.String()
}

// Unwrap returns the reason.
func (e *StartError) Unwrap() error { return e.Err }

// ExitError says that the child has ended by itself.
type ExitError struct {
	State  *os.ProcessState // its exit status or signal
	Stderr []string         // the last lines of its standard error
}

func (e *ExitError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "transport program ended: %v", e.State)
	writeStderr(&b, e.Stderr)
	return b.String()
}

func writeStderr(b *strings.Builder, lines []string) {
	if len(lines) > quoted {
		lines = lines[len(lines)-quoted:]
	}
	for i, line := range lines {
		if i == 0 {
			b.WriteString("; stderr:")
		}
		b.WriteString(" " + strconv.Quote(line))
	}
}

// MethodError says why one transport of a child cannot be used.
type MethodError struct {
	Transport string
	Message   string // the child's error message; may be empty
	Err       error
}

func (e *MethodError) Error() string {
	if e.Message != "" {
		return fmt.Sprintf("transport %q: %v: %q", e.Transport, e.Err, e.Message)
	}
	return fmt.Sprintf("transport %q: %v", e.Transport, e.Err)
}

// Unwrap returns the reason.
func (e *MethodError) Unwrap() error { return e.Err }

// DialStage names a step of DialTransport.
type DialStage string

// The stages of a dial, in order. Everything up to StageConnect is local.
const (
	StagePrepare  DialStage = "prepare"  // address, args and transport were checked
	StageConnect  DialStage = "connect"  // to the child's SOCKS listener
	StageGreeting DialStage = "greeting" // the choice of SOCKS method
	StageAuth     DialStage = "args"     // the args were sent, as user and password
	StageRequest  DialStage = "request"  // the child dials the bridge
)

// DialError says why DialTransport failed. It does not contain the bridge's
// address and args, so it can be logged.
type DialError struct {
	Transport string
	Stage     DialStage
	Err       error // a Reply if the child has sent one, otherwise the cause
}

func (e *DialError) Error() string {
	return fmt.Sprintf("dial %s: %s: %v", e.Transport, e.Stage, e.Err)
}

// Unwrap returns the reason.
func (e *DialError) Unwrap() error { return e.Err }

// Reply is a SOCKS reply other than success: 0x01 to 0xff as in RFC 1928, or
// 0x5b to 0x5d of SOCKS4. Transport programs do not use them exactly: obfs4proxy
// sends 0x01 both for a wrong certificate and for a refused port.
type Reply byte

// The replies that RFC 1928 names.
const (
	ReplyGeneralFailure     Reply = 1
	ReplyNotAllowed         Reply = 2
	ReplyNetworkUnreachable Reply = 3
	ReplyHostUnreachable    Reply = 4
	ReplyConnectionRefused  Reply = 5
	ReplyTTLExpired         Reply = 6
	ReplyCommandUnsupported Reply = 7
	ReplyAddressUnsupported Reply = 8
)

func (r Reply) Error() string {
	text := "failure"
	switch r {
	case ReplyGeneralFailure:
		text = "general failure"
	case ReplyNotAllowed:
		text = "not allowed"
	case ReplyNetworkUnreachable:
		text = "network unreachable"
	case ReplyHostUnreachable:
		text = "host unreachable"
	case ReplyConnectionRefused:
		text = "connection refused"
	case ReplyTTLExpired:
		text = "ttl expired"
	case ReplyCommandUnsupported:
		text = "command not supported"
	case ReplyAddressUnsupported:
		text = "address type not supported"
	case 0x5b, 0x5c, 0x5d:
		text = "request rejected"
	}
	return fmt.Sprintf("socks reply 0x%02x: %s", byte(r), text)
}
