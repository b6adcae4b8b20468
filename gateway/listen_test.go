package gateway

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"

	"ptgate/adapter"
)

// A hint is given for what the system, or a transport program, says of a port, and
// for nothing else.
func TestHint(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, taken := net.Listen("tcp", ln.Addr().String())
	bind := func(err error) error {
		return &net.OpError{Op: "listen", Net: "tcp", Err: os.NewSyscallError("bind", err)}
	}
	said := func(words string) error {
		return &adapter.StartError{Program: "p", Stage: adapter.StageMethods,
			Err: errors.Join(&adapter.MethodError{Transport: "x", Message: words, Err: adapter.ErrRefused})}
	}
	low := "CAP_NET_BIND_SERVICE"
	if runtime.GOOS != "linux" {
		low = ""
	}
	for _, tt := range []struct {
		name string
		err  error
		want string // a part of it; "": no hint
	}{
		{"a taken port", fmt.Errorf("listen.socks5: %w", taken), "another program"},
		{"a low port", bind(noPermission), low},
		{"a program's taken port", said("listen tcp 127.0.0.1:1: bind: " + addrInUse.Error()), "another program"},
		{"a program's low port", said("bind: " + noPermission.Error()), low},
		{"an address that is not there", bind(errors.New("cannot assign requested address")), ""},
		{"a program that can't be run", &adapter.StartError{Program: "/x", Stage: adapter.StageExec, Err: &os.PathError{Op: "fork/exec", Path: "/x", Err: noPermission}}, ""},
		{"a directory that can't be written", &fs.PathError{Op: "mkdir", Path: "/x", Err: noPermission}, ""},
		{"a program's own words", said("a bridge line with permission"), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := hint(tt.err, false)
			if (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
				t.Errorf("%v: the hint is %q, want %q", tt.err, got, tt.want)
			}
		})
	}
	if got := hint(taken, true); !strings.Contains(got, "a reload can't move") {
		t.Errorf("in a reload the hint is %q", got)
	}
}
