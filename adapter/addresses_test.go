package adapter

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"syscall"
	"testing"
)

func TestWithoutAddresses(t *testing.T) {
	const canary = "192.0.2.77"
	addr := &net.TCPAddr{IP: net.ParseIP(canary), Port: 4711}
	op := &net.OpError{Op: "read", Net: "tcp", Source: addr, Addr: addr, Err: syscall.ECONNRESET}
	dns := &net.DNSError{Err: "no such host", Name: canary, Server: canary + ":53", IsNotFound: true}
	other := &net.OpError{Op: "dial", Net: "tcp", Addr: addr, Err: dns}
	for _, tt := range []struct {
		err  error
		want string
		is   error
	}{
		{op, "read: connection reset by peer", syscall.ECONNRESET},
		{dns, "name look-up: no such host", dns},
		{fmt.Errorf("far end: %w", op), "read: connection reset by peer", syscall.ECONNRESET},
		{errors.Join(op, other), "read: connection reset by peer: dial: name look-up: no such host", dns},
		{fmt.Errorf("%w, then %w", op, op), "read: connection reset by peer: read: connection reset by peer", op},
		{&DialError{Transport: "t", Stage: StageConnect, Err: other}, "dial t: connect: dial: name look-up: no such host", dns},
		{&url.Error{Op: "Get", URL: "https://" + canary, Err: op}, "Get: read: connection reset by peer", op},
		{&net.AddrError{Err: "missing port in address", Addr: canary}, "an address that makes no sense", nil},
		{&net.DNSError{Err: "read udp 192.0.2.1:53->" + canary + ":53: i/o timeout", Name: "a.example", IsTimeout: true}, "name look-up: timeout", nil},
		{&net.DNSError{Err: "dial udp: connect " + canary, Name: "a.example"}, "name look-up failed", nil},
		{fmt.Errorf("no way to %s: %v", canary, io.EOF), "an error that is not shown, because it may have addresses in it", nil},
		{&net.OpError{Op: "accept", Net: "tcp", Addr: addr, Err: errors.New("")}, "accept", nil},
	} {
		got := WithoutAddresses(tt.err)
		if !strings.Contains(tt.err.Error(), canary) || got.Error() != tt.want {
			t.Errorf("%v: got %q, want %q", tt.err, got, tt.want)
		}
		if tt.is != nil && !errors.Is(got, tt.is) {
			t.Errorf("%v: %v is not found in it any more", tt.err, tt.is)
		}
	}
	for _, err := range []error{nil, io.EOF, Reply(5), ErrRefused} {
		if got := WithoutAddresses(err); got != err {
			t.Errorf("%v became %v", err, got)
		}
	}
}
