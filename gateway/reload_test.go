package gateway_test

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ptgate/gateway"
	"ptgate/gateway/destination"
	"ptgate/gateway/inbound"
	"ptgate/gateway/session"
)

// A plain HTTP request that is being served gets the drain time, too.
func TestStopDrainsRequests(t *testing.T) {
	_, b := far(t, "")
	near := start(t, "client", fmt.Sprintf(nearEnd, b))
	asked, answer := make(chan struct{}), make(chan struct{})
	addr := origin(t, func(c *net.TCPConn) {
		r := bufio.NewReader(c)
		for line := "x"; strings.TrimSpace(line) != ""; {
			line, _ = r.ReadString('\n')
		}
		close(asked)
		<-answer
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
	})
	front := near.Addresses(inbound.HTTP)[0]
	c, err := net.Dial("tcp", front)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	fmt.Fprintf(c, "GET http://%s/ HTTP/1.1\r\nHost: %[1]s\r\nConnection: close\r\n\r\n", addr)
	<-asked
	stopped := make(chan error, 1)
	go func() { stopped <- near.stop() }()
	for { // the listener closes first
		n, err := net.Dial("tcp", front)
		if err != nil {
			break
		}
		n.Close()
	}
	close(answer)
	got, err := io.ReadAll(c)
	if !strings.HasSuffix(string(got), "hello") {
		t.Errorf("the answer of a request while stopping: %q, %v", got, err)
	}
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	if err := near.Reload(loadText(t, near.path, fmt.Sprintf(nearEnd, b))); err == nil {
		t.Error("a reload after the stop is no error")
	}
}

// A client that connected before a reload and asks after it gets the new routes,
// and a bridge that the file no longer has is not in its way.
func TestReloadBeforeRequest(t *testing.T) {
	o := origin(t, echo) // ends last: a raw bridge is not told of its client's end
	_, b := far(t, "")
	text := fmt.Sprintf(nearEnd, b)
	near := start(t, "client", text)
	roundTrip(t, mustAsk(t, near, o), 1<<10)
	target, err := destination.Parse(o)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", near.Addresses(inbound.SOCKS5)[0])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	c.Write([]byte{5, 1, 0}) // accepted, and greeted
	if _, err := io.ReadFull(c, make([]byte, 2)); err != nil {
		t.Fatal(err)
	}
	// The bridge with other settings is another bridge: the first one retires.
	changed := strings.Replace(text, "[[route]]", "far = \"socks5\"\n[[route]]", 1)
	if err := near.Reload(loadText(t, near.path, changed)); err != nil {
		t.Fatal(err)
	}
	c.Write(append(append([]byte{5, 1, 0, 1}, target.Addr.AsSlice()...), byte(target.Port>>8), byte(target.Port)))
	reply := make([]byte, 10)
	if _, err := io.ReadFull(c, reply); err != nil || reply[1] != 0 {
		t.Fatalf("a request across a reload: reply %v, %v", reply, err)
	}
	c.Write([]byte("x"))
	if _, err := io.ReadFull(c, reply[:1]); err != nil {
		t.Fatal(err)
	}
}

// Requests that are made while the file changes all the time work.
func TestReloadUnderRequests(t *testing.T) {
	_, b := far(t, "")
	text := fmt.Sprintf(nearEnd, b)
	near := start(t, "client", text)
	changed := strings.Replace(text, "[[route]]", "user = \"x\"\npassword = \"y\"\n[[route]]", 1)
	o := origin(t, echo)
	target, err := destination.Parse(o)
	if err != nil {
		t.Fatal(err)
	}
	front := near.Addresses(inbound.SOCKS5)[0]
	done := make(chan struct{})
	results := make(chan error, 1)
	go func() {
		defer close(results)
		for {
			select {
			case <-done:
				return
			default:
			}
			c, err := net.Dial("tcp", front)
			if err == nil {
				c.SetDeadline(time.Now().Add(time.Minute))
				err = session.Handshake(c, target, session.Auth{})
				c.Close()
			}
			if err != nil {
				results <- err
				return
			}
		}
	}()
	// The second variant has a password that the exit does not want: it routes
	// nothing, and comes and goes with its bridge.
	changed = strings.Replace(changed, "to = \"*\"\nvia = \"far\"", "to = \"never.example\"\nvia = \"far\"\n[[route]]\nto = \"*\"\nvia = \"direct\"\nprivate = true", 1)
	for i := range 30 {
		cfg := text
		if i%2 == 0 {
			cfg = changed
		}
		if err := near.Reload(loadText(t, near.path, cfg)); err != nil {
			t.Fatal(err)
		}
		roundTrip(t, mustAsk(t, near, o), 1<<10)
	}
	close(done)
	if err := <-results; err != nil {
		t.Errorf("a request failed: %v", err)
	}
}

// A key that only a restart puts to work is named after a reload that changes it, and no
// longer when it is as it was.
func TestRestart(t *testing.T) {
	_, b := far(t, "")
	text := fmt.Sprintf(nearEnd, b)
	near := start(t, "client", text)
	for _, tt := range []struct {
		more string
		want []string
	}{
		{"[log]\nformat = \"json\"\n", []string{"log.format"}},
		{"[log]\nlevel = \"debug\"\n", nil},
	} {
		if err := near.Reload(loadText(t, near.path, text+tt.more)); err != nil {
			t.Fatal(err)
		}
		if got := near.Status().Restart; !slices.Equal(got, tt.want) {
			t.Errorf("%q: %v, want %v", tt.more, got, tt.want)
		}
	}
}

// The log has why a start fails, before it says that everything stops.
func TestCauseOfStop(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	cfg := loadText(t, filepath.Join(t.TempDir(), "c.toml"), "[listen]\nmixed = \""+taken.Addr().String()+"\"\n[[route]]\nto = \"*\"\nvia = \"direct\"\n")
	log := &testLog{t: t}
	if err := gateway.New(cfg, "", slog.New(slog.NewTextHandler(log, nil))).Run(t.Context(), t.Context()); err == nil {
		t.Fatal("it runs")
	}
	cause, end := strings.Index(log.text.String(), "address already in use"), strings.Index(log.text.String(), "msg=stopping")
	if cause < 0 || end < cause || !strings.Contains(log.text.String(), "level=ERROR msg=\"ptgate can't run\"") {
		t.Errorf("%s", &log.text)
	}
}

// A reload is what the program advises where the notes of a server are missing: it writes them.
func TestReloadWritesNotes(t *testing.T) {
	server, _ := far(t, "")
	cfg := loadText(t, server.path, fmt.Sprintf(farEnd, ""))
	notes := filepath.Join(cfg.StateDir, "announced.json")
	for _, text := range []string{"", "[]", "damaged"} {
		if err := os.WriteFile(notes, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, ok := gateway.Noted(cfg, cfg.StateDir); ok {
			t.Fatalf("notes of %q", text)
		}
		if err := server.Reload(cfg); err != nil {
			t.Fatal(err)
		}
		if _, ok := gateway.Noted(cfg, cfg.StateDir); !ok {
			t.Errorf("after %q and a reload there are no notes", text)
		}
	}
}
