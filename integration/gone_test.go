//go:build integration

package integration

import (
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"ptgate/integration/harness"
	"ptgate/integration/ports"
	"ptgate/integration/realpt"
)

// TestProgramGone has a program that opens connections to a destination which keeps its
// side open, and closes them: the far end lets go of them, over every kind of stream, and
// is not full for good. Over an exit's carrier the end of a program is told at once, so
// that no silence need be waited for; else only the silence after the end of its direction
// tells of it.
func TestProgramGone(t *testing.T) {
	t.Parallel() // it waits more than it works
	const (
		never = "[limits]\nconnections = 200\nhalf_open = \"10h\"\n"
		soon  = "[limits]\nconnections = 200\nhalf_open = \"1s\"\n"
	)
	type side struct{ name, pt string }
	inside := side{"built in", ""}
	child := side{"ptgate pt", "[pt.it]\nisolate = true\ntransports = [\"obfs4\"]\n"}
	program := side{"obfs4proxy", fmt.Sprintf("[pt.it]\nexec = [%q]\ntransports = [\"obfs4\"]\n", realpt.Program(t, "obfs4proxy"))}
	for _, tt := range []struct {
		far            string
		client, server side
		limits         string
	}{
		{"exit", inside, inside, never},
		{"exit", program, inside, never},
		{"exit", inside, program, never},
		{"exit", inside, child, never},
		{"socks5", inside, inside, soon},
		{"socks5", inside, program, soon},
		{"socks5", program, inside, soon},
		{"socks5", program, program, soon},
		{"forward", inside, inside, soon},
		{"forward", inside, child, soon},
	} {
		t.Run(tt.far+", "+tt.client.name+" to "+tt.server.name, func(t *testing.T) {
			opened := make(chan struct{}, 1000)
			over := make(chan struct{})
			defer close(over)
			addr := serveTCP(t, func(c *net.TCPConn) {
				opened <- struct{}{}
				io.Copy(io.Discard, c)
				<-over // its own side stays open
			})
			s, c := pairFiles(t, "--address", ports.Free(t))
			if tt.far == "forward" {
				s, _, _ = strings.Cut(s, "[exit]")
				s = replace(t, s, "options   =", "forward = \""+addr+"\"\noptions   =")
			}
			c = replace(t, c, "args  ", "far = \""+tt.far+"\"\nargs  ")
			server := run(t, "server", tt.limits+tt.server.pt+s, setting{hosts: originHosts})
			client := run(t, "client", "[limits]\nhalf_open = \"10h\"\n"+tt.client.pt+c, setting{})

			open := func() net.Conn {
				conn, reply := socksOpen(t, client.socks(), originName, portOf(t, addr))
				if reply != 0 {
					t.Fatalf("reply %d", reply)
				}
				return conn
			}
			open() // what is there once stays: a carrier, a socket to the transport
			<-opened
			before := harness.Descriptors(t, server.Cmd.Process.Pid)
			for range 3 { // more than the server may have at once
				var all []net.Conn
				for range 100 {
					all = append(all, open())
				}
				var wg sync.WaitGroup
				for _, c := range all {
					wg.Go(func() { c.Write([]byte("request")) })
				}
				wg.Wait()
				for range all {
					wait(t, opened, "the destination was not reached")
				}
				for _, c := range all {
					c.Close()
				}
				few(t, server, before)
			}
		})
	}
}

// few waits until a box has about as many files open as before.
func few(t *testing.T, b *box, before int) {
	t.Helper()
	var now int
	if !harness.Eventually(patience, func() bool {
		now = harness.Descriptors(t, b.Cmd.Process.Pid)
		return now <= before+5
	}) {
		t.Fatalf("%d descriptors, %d before", now, before)
	}
}

// wait takes one from c.
func wait(t *testing.T, c <-chan struct{}, otherwise string) {
	t.Helper()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	select {
	case <-c:
	case <-limit.C:
		t.Fatal(otherwise)
	}
}
