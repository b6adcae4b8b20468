package builtin

import (
	"fmt"
	"io"
	"os"
	"testing"
	"time"
)

// A server that can't keep its keys says so. Not even root can write in /proc.
func TestMainStateNotWritable(t *testing.T) {
	p := startPT(t, "TOR_PT_SERVER_TRANSPORTS=obfs4", "TOR_PT_ORPORT=127.0.0.1:9",
		"TOR_PT_SERVER_BINDADDR=obfs4-127.0.0.1:0", "TOR_PT_STATE_LOCATION=/proc/self")
	p.until("SMETHOD-ERROR obfs4 obfs4: the server's new keys can't be kept: ")
	if code := p.exit(); code != 1 {
		t.Errorf("exit code %d", code)
	}
}

// A stream that has ended leaves no descriptor in either child.
func TestStreamsLeaveNothingBehind(t *testing.T) {
	_, addr, args := startServerPT(t, nameObfs4, "TOR_PT_ORPORT="+orPort(t, echoAtEnd))
	p := startPT(t, "TOR_PT_CLIENT_TRANSPORTS=obfs4")
	ln := cmethod(t, p.until("CMETHODS DONE"), nameObfs4)
	fds := func() int {
		names, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		return len(names)
	}
	round := func() {
		c, reply := socks(t, ln, addr, args)
		if reply != 0 {
			t.Fatalf("reply %d", reply)
		}
		_, _ = io.WriteString(c, "x")
		_ = c.CloseWrite()
		if got, err := io.ReadAll(c); err != nil || string(got) != "x" {
			t.Fatalf("got %q, %v", got, err)
		}
		_ = c.Close()
	}
	round()
	before := fds()
	for range 20 {
		round()
	}
	for deadline := time.Now().Add(limit); fds() > before; {
		if time.Now().After(deadline) {
			t.Fatalf("%d descriptors, %d before", fds(), before)
		}
	}
}
