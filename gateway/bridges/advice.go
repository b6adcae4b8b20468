package bridges

import (
	"crypto/x509"
	"errors"
	"io/fs"
	"net"
	"os/exec"
	"syscall"

	"ptgate/adapter"
	"ptgate/adapter/builtin"
	"ptgate/gateway/answer"
	"ptgate/gateway/config"
	"ptgate/gateway/session"
)

// StartAdvice is a text for the operator: what to do about a PT that did not start.
// It is "" for any other error.
func StartAdvice(err error, pt *config.PT) string {
	if _, ok := errors.AsType[*adapter.StartError](err); !ok {
		return ""
	}
	switch {
	case NoProgram(err):
		return pt.Install()
	case errors.Is(err, fs.ErrPermission):
		return "make the transport program executable, or correct " + pt.Setting("exec")
	case errors.Is(err, adapter.ErrRefused):
		return "the program does not offer this transport: take another one, with " + pt.Setting("exec")
	}
	return "this may be no transport program, or one that wants other options: run it by hand, and look at " + pt.Setting("exec")
}

// AuthAdvice is a text for the operator: what to do about a far end that does not
// accept the bridge's user and password. It is "" for any other error.
func AuthAdvice(err error) string {
	if _, ok := errors.AsType[*session.AuthError](err); !ok {
		return ""
	}
	return "user and password of the bridge must be one of [exit] users on the server, where that has any"
}

// WebAdvice is a text for the operator: what to do if the name of a web server in front
// of a bridge is not found, or its certificate is not accepted. It is "" for any other
// error. Only the built-in transports report such errors.
func WebAdvice(err error) string {
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		return "the name in the bridge's args (url or front) is not found: is it right, and can this machine look names up?"
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return "the web server's certificate is for another name than the bridge's url: copy the line anew, or correct the web server"
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "this machine does not trust the web server's certificate: it takes one of a public authority; " +
			"or name a file with yours, as env = { SSL_CERT_FILE = \"/etc/own-ca.pem\" } of the transport's [pt.NAME]"
	}
	if _, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		return "the web server's certificate is not valid: has it expired, and is the time right on both boxes?"
	}
	return ""
}

// NoProgram tells whether a PT did not start because its program is missing.
func NoProgram(err error) bool {
	_, ok := errors.AsType[*adapter.StartError](err)
	return ok && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, exec.ErrNotFound))
}

// Refused tells whether the bridge's port is closed. Not every external PT reports
// that.
func Refused(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, adapter.ReplyConnectionRefused)
}

// NoWay tells whether this machine has no network route to the bridge's address.
func NoWay(err error) bool {
	return errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.EHOSTUNREACH) ||
		errors.Is(err, adapter.ReplyNetworkUnreachable) || errors.Is(err, adapter.ReplyHostUnreachable)
}

// advice is a text for the operator: what to do about a bridge's failure.
func advice(err error, pt *config.PT) string {
	if text := StartAdvice(err, pt); text != "" {
		return text
	}
	if text := AuthAdvice(err); text != "" {
		return text
	}
	if text := WebAdvice(err); text != "" {
		return text
	}
	switch {
	case Refused(err):
		return "nothing listens there: is the server running, and the bridge's address right?"
	case NoWay(err):
		return "this machine has no way to the bridge's address: look at its own connection first"
	case errors.Is(err, builtin.ErrFiltered):
		return "the TCP connection does not come up: something on the way drops the packets to the bridge's address, or its machine is off; try another bridge, or another network"
	case answer.Of(err) == answer.Timeout, errors.Is(err, adapter.ReplyTTLExpired):
		return "no answer: the server is down, its address is blocked from here, or the args are another server's; `ptgate probe` tells at which stage"
	}
	return "is the server running, and are address and args as in the line of its `ptgate bridges`? `ptgate probe` tells at which stage it fails"
}
