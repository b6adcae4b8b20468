package gateway_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"ptgate/gateway"
	"ptgate/gateway/bridges"
	"ptgate/integration/ports"
)

// hears waits until a box has n bridges.
func hears(t testing.TB, near *box, n int) (all []bridges.Status) {
	t.Helper()
	for end := time.Now().Add(time.Minute); len(all) != n; {
		if time.Now().After(end) {
			t.Fatalf("%d bridges: %+v", len(all), all)
		}
		<-time.After(5 * time.Millisecond)
		all = near.Status().Bridges
	}
	return all
}

// refuses waits until nothing listens at an address.
func refuses(t testing.TB, addr string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return
		}
		c.Close()
		if time.Now().After(end) {
			t.Fatal("it still listens")
		}
		<-time.After(5 * time.Millisecond)
	}
}

// A program gets nothing of what a server has for gateways, such as its bridge lines.
func TestWaysInside(t *testing.T) {
	server := start(t, "server", strings.Replace(fmt.Sprintf(farEnd, ""), `"127.0.0.1:0"`, fmt.Sprintf("%q", ports.Free(t)), 1))
	near := start(t, "client", fmt.Sprintf(nearEnd, bridge(server)))
	roundTrip(t, mustAsk(t, near, origin(t, echo)), 10)
	for _, to := range []string{"ways.ptgate.invalid:1", "WAYS.ptgate.invalid.:1", "measure.ptgate.invalid:1", "localhost.lookup.ptgate.invalid:80"} {
		c, err := ask(t, near, to)
		if err == nil || !strings.Contains(err.Error(), "0x02") {
			t.Errorf("%s: %v", to, err)
		}
		if err == nil {
			c.Close()
		}
	}
}

// A server moves to another port, while a client uses it and while it does not. The client,
// which knew the old one only, goes on, and also after its restart.
func TestMoved(t *testing.T) {
	first, second, third := ports.Free(t), ports.Free(t), ports.Free(t)
	at := func(addr string) string {
		return strings.Replace(fmt.Sprintf(farEnd, ""), `"127.0.0.1:0"`, fmt.Sprintf("%q", addr), 1)
	}
	server := start(t, "server", at(first))
	text := fmt.Sprintf(nearEnd, bridge(server))
	near := start(t, "client", text)
	o := origin(t, echo)
	live := mustAsk(t, near, o)
	roundTrip(t, live, 1<<16)
	if all := near.Status().Bridges; len(all) != 1 {
		t.Errorf("the server tells what the user has written: %+v", all)
	}

	if err := server.Reload(loadText(t, server.path, at(second))); err != nil {
		t.Fatal(err)
	}
	all := hears(t, near, 2)
	if b := all[1]; b.Name != "far+obfs4" || !b.Told || b.Transport != "obfs4" || all[0].Told {
		t.Errorf("%+v", all)
	}
	if via := near.Status().Routes[0].Via; !slices.Equal(via, []string{"far", "far+obfs4"}) {
		t.Errorf("via %q", via)
	}
	live.Close()
	refuses(t, first)
	roundTrip(t, mustAsk(t, near, o), 1<<16)

	// Nothing uses it now.
	if err := server.Reload(loadText(t, server.path, at(third))); err != nil {
		t.Fatal(err)
	}
	refuses(t, second)
	roundTrip(t, mustAsk(t, near, o), 1<<16)
	near.stop()

	notes, _ := filepath.Glob(filepath.Join(near.path+".state", "ways-*.json"))
	if len(notes) != 1 {
		t.Fatalf("notes %q", notes)
	}
	if info, err := os.Stat(notes[0]); err != nil || runtime.GOOS != "windows" && info.Mode() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	again := startAt(t, near.path, text)
	roundTrip(t, mustAsk(t, again, o), 1<<16)
	log := near.log.text.String()
	if !strings.Contains(log, "the server has told of the ways to it") || strings.Contains(log, second) || strings.Contains(log, third) {
		t.Errorf("the log: %s", log)
	}
}

// A server gets new keys, and the old ones end at once. A client that is connected hears of
// the new line, and gets in with it later.
func TestRotateIsTold(t *testing.T) {
	server := start(t, "server", fmt.Sprintf(farEnd, ""))
	text := fmt.Sprintf(nearEnd, bridge(server))
	near := start(t, "client", text)
	o := origin(t, echo)
	roundTrip(t, mustAsk(t, near, o), 1<<10)
	live := mustAsk(t, near, o)
	name := gateway.ServeName(loadText(t, server.path, fmt.Sprintf(farEnd, "")).Serve[0])
	if err := server.Rotate(t.Context(), []string{name}, time.Now()); err != nil {
		t.Fatal(err)
	}
	if b := hears(t, near, 2)[1]; b.Name != "far+obfs4" || !b.Told {
		t.Errorf("%+v", b)
	}
	roundTrip(t, live, 1<<10)
	near.stop()
	roundTrip(t, mustAsk(t, startAt(t, near.path, text), o), 1<<10)
}
