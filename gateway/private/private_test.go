package private_test

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"

	"ptgate/adapter"
	"ptgate/gateway/private"
)

const canary = "192.0.2.77"

func TestText(t *testing.T) {
	exit := &adapter.ExitError{Stderr: []string{"client " + canary}}
	op := &net.OpError{Op: "read", Net: "tcp", Source: &net.TCPAddr{IP: net.ParseIP(canary)}, Err: syscall.ECONNRESET}
	for _, err := range []error{
		exit,
		&adapter.StartError{Program: "pt", Stage: "handshake", Message: canary, Stderr: []string{canary}, Err: errors.New("no")},
		&adapter.StartError{Program: "pt", Stage: "handshake", Err: exit},
		&adapter.MethodError{Transport: "obfs4", Message: canary, Err: errors.New("refused")},
		op,
		fmt.Errorf("dial: %w", op),
	} {
		err := fmt.Errorf("bridge %q: %w", "tokyo", err)
		if text := private.Text(err, true); strings.Contains(text, canary) || !strings.HasPrefix(text, `bridge "tokyo": `) {
			t.Errorf("%T in private: %s", err, text)
		}
		if text := private.Text(err, false); text != err.Error() || !strings.Contains(text, canary) {
			t.Errorf("%T: %s", err, text)
		}
	}
	if text := private.Text(nil, true); text != "" {
		t.Errorf("nil: %q", text)
	}
}

func Example() {
	err := &adapter.MethodError{Transport: "obfs4", Message: "cert=secret", Err: adapter.ErrRefused}
	fmt.Println(private.Text(err, true))
	// Output: transport "obfs4": refused by the transport program
}
