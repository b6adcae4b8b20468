package builtin

import (
	"fmt"
	"io"
	"os"
	"testing"
	"time"
)

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
