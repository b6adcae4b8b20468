package bridges

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ptgate/adapter"
	"ptgate/gateway/config"
	"ptgate/gateway/outcome"
	"ptgate/gateway/session"
	"ptgate/gateway/ways"
)

// tells makes a far end tell of ways.
func (f *far) tells(serial uint64, lines ...string) {
	text := ways.List{Serial: serial, Lines: lines}.Sign(f.key)
	f.ways.Store(&text)
	f.server.Tell(serial)
}

const moved = "192.0.2.20:443" // where the box of "a" is to be found, too

var errOwn = errors.New("it would come back")

// toldWorld is a world whose far end "a" has a second address, and whose newest Set is in
// the channel.
func toldWorld(t testing.TB) (w *world, sets func() *Set) {
	w = newWorld(t)
	w.far[moved] = newFar()
	w.far[moved].end()
	w.far[moved].begin(w.far["a"].key)
	w.m.Direct = func(netip.AddrPort, bool) error { return nil }
	now := w.set(config.PickFirst, "a")
	w.m.Told = func() { now = w.apply(w.config(config.PickFirst, "a")) }
	return w, func() *Set {
		synctest.Wait()
		return now
	}
}

// names are those of the bridges of a route.
func names(s *Set) string { return strings.Join(s.Route(0).Via(), " ") }

// A client learns of a way from the box, keeps it over a restart, and uses it when what the
// user wrote does not work.
func TestTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, set := toldWorld(t)
		w.far["a"].tells(1, "fake "+moved)
		c, _ := open(t, set())
		echo(t, c)
		if got := names(set()); got != "a a+fake" {
			t.Fatalf("bridges %q", got)
		}
		w.far["a"].tells(1, "fake "+moved)
		<-time.After(time.Minute)
		if n := w.far["a"].told.Load(); n != 1 {
			t.Errorf("asked %d times", n)
		}
		over, _ := open(t, set())
		echo(t, over)
		if n := w.far[moved].dials.Load(); n != 0 {
			t.Errorf("%d dials, while what the user wrote works", n)
		}
		w.far["a"].refuses.Store(true)
		w.far["a"].reset()
		over.Close()
		over, _ = open(t, set())
		echo(t, over)
		over.Close()
		c.Close()
		if s := set().bridge("a+fake").Status(); !s.Told || s.Box == "" {
			t.Errorf("%+v", s)
		}

		// A way less.
		w.far[moved].tells(2)
		<-time.After(time.Minute)
		if got := names(set()); got != "a" {
			t.Errorf("bridges %q", got)
		}
		w.far["a"].refuses.Store(false)
		w.far["a"].tells(3, "fake "+moved)
		<-time.After(time.Hour) // the bridge rests
		c, _ = open(t, set())
		c.Close()
		if got := names(set()); got != "a a+fake" {
			t.Errorf("bridges %q", got)
		}

		// Another process.
		w.far["a"].refuses.Store(true)
		next := &world{t: t, dir: w.dir, m: NewManager("", outcome.New(quiet), quiet), far: w.far}
		next.m.startPT = next.start
		next.m.Direct = w.m.Direct
		defer next.wg.Wait()
		defer next.m.Close()
		s := next.set(config.PickFirst, "a")
		if got := names(s); got != "a a+fake" {
			t.Fatalf("bridges %q", got)
		}
		c, _ = open(t, s)
		echo(t, c)
		c.Close()
	})
}

// A way that leads to another box is not used: nothing of a request goes there.
func TestToldOtherBox(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, set := toldWorld(t)
		w.far["a"].tells(1, "fake "+moved)
		c, _ := open(t, set())
		synctest.Wait()
		c.Close()
		w.far[moved].begin(nil)
		w.far["a"].refuses.Store(true)
		w.far["a"].reset()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		s := set()
		if c, err := s.Open(ctx, s.Route(0), example); err == nil {
			c.Close()
			t.Error("a request was opened")
		}
		if f := w.far[moved]; f.dials.Load() == 0 || f.asked.Load() != 0 {
			t.Errorf("%d dials, %d requests at the other box", f.dials.Load(), f.asked.Load())
		}
	})
}

// A box that says something new all the time is asked now and then.
func TestToldWithoutEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, set := toldWorld(t)
		c, _ := open(t, set())
		defer c.Close()
		for serial := range uint64(3600) {
			w.far["a"].tells(serial+1, "fake "+moved)
			<-time.After(time.Second)
		}
		if n := w.far["a"].told.Load(); n < 10 || n > 20 {
			t.Errorf("asked %d times in an hour", n)
		}
		<-time.After(lastAsk)
		if got := w.m.told.get(w.m.boxes.get(markOf(set().cfg.Bridges[0]))).Serial; got != 3600 {
			t.Errorf("at last it knows %d", got)
		}
	})
}

// What is no list of the box, or an older one, changes nothing.
func TestToldWrong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, set := toldWorld(t)
		good := ways.List{Serial: 5, Lines: []string{"fake " + moved}}
		text := good.Sign(w.far["a"].key)
		other := good.Sign(w.far["b"].key)
		old := ways.List{Serial: 4}.Sign(w.far["a"].key)
		c, _ := open(t, set())
		defer c.Close()
		serial := uint64(10)
		tells := func(text []byte) {
			serial++
			w.far["a"].ways.Store(&text)
			w.far["a"].server.Tell(serial)
			<-time.After(time.Hour)
		}
		for _, wrong := range [][]byte{nil, []byte("hello"), other, make([]byte, 1<<20), text[:len(text)-1]} {
			if tells(wrong); names(set()) != "a" {
				t.Errorf("%.20q: bridges %q", wrong, names(set()))
			}
		}
		for _, text := range [][]byte{text, old} {
			if tells(text); names(set()) != "a a+fake" {
				t.Errorf("bridges %q", names(set()))
			}
		}
	})
}

// What the user wrote goes first, also where the fastest one is taken and is not known.
func TestToldLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, set := toldWorld(t)
		w.far["a"].tells(1, "fake "+moved)
		c, _ := open(t, set())
		synctest.Wait()
		c.Close()
		w.set(config.PickFirst) // the old bridges end
		for _, pick := range []config.Pick{config.PickFirst, config.PickFastest, config.PickSpread} {
			s := w.set(pick, "a")
			order := choose(s.Route(0).via, pick)
			if order[0].Name() != "a" || len(order) != 2 || unmeasured(order) != 1 {
				t.Errorf("%s: %s first, %d at once", pick, order[0].Name(), unmeasured(order))
			}
			s.bridge("a").health.slow(time.Second)
			s.bridge("a+fake").health.ok(time.Millisecond)
			if order := choose(s.Route(0).via, pick); order[0].Name() != "a" {
				t.Errorf("%s: %s first, when it is faster", pick, order[0].Name())
			}
			s.bridge("a").health.bad(errBlocked)
			if order := choose(s.Route(0).via, pick); order[0].Name() == "a" {
				t.Errorf("%s: what does not work is first", pick)
			}
			w.set(config.PickFirst)
		}
	})
}

// A box can't lead its clients into their own network, and adds ways for programs that are
// there only.
func TestMayTell(t *testing.T) {
	cert := strings.Repeat("A", 70)
	m := NewManager("", outcome.New(quiet), quiet)
	defer m.Close()
	box := session.Box{1}
	m.Direct = func(a netip.AddrPort, private bool) error {
		if a.Port() == 9050 || !private && !strings.HasPrefix(a.String(), "192.0.2.") {
			return errOwn
		}
		return nil
	}
	written := []*config.Bridge{
		{Name: "home", Transport: "obfs4", Address: "10.0.0.5:443", Far: config.FarExit, User: "u", Password: "p", Carriers: 3},
		{Name: "web", Transport: "webtunnel", Address: "192.0.2.1:443", Args: adapter.Args{{Key: "url", Value: "https://Home.example.com/x"}}, Far: config.FarExit},
	}
	for _, b := range written {
		b.PT = &config.PT{Name: b.Transport, Transports: []string{b.Transport}}
	}
	cfg := &config.Config{Bridges: written}
	web := "webtunnel 192.0.2.1:443 url="
	obfs4 := func(addr string) string { return "obfs4 " + addr + " cert=" + cert + " iat-mode=0" }
	for line, want := range map[string]bool{
		obfs4("192.0.2.9:443"):                                 true,
		obfs4("192.0.2.9:9050"):                                false, // one of this process
		obfs4("10.0.0.5:444"):                                  true,  // the host that the user wrote
		obfs4("10.0.0.5:9050"):                                 false,
		obfs4("10.0.0.6:443"):                                  false,
		obfs4("127.0.0.1:443"):                                 false,
		obfs4("[::1]:443"):                                     false,
		obfs4("0.0.0.0:443"):                                   false,
		obfs4("host.example.com:443"):                          false, // a name is not looked up
		"obfs4 192.0.2.9:443 cert=short":                       false,
		"obfs3 192.0.2.9:443":                                  false, // a program that is not there
		"unknown 192.0.2.9:443":                                false,
		web + "https://192.0.2.9/y":                            true,
		web + "https://www.example.com/y":                      true, // checked when it is looked up
		web + "https://127.0.0.1/y":                            false,
		web + "https://10.0.0.7/y":                             false,
		web + "https://127.1/y":                                false,
		web + "https://a/y addr=10.0.0.7:1":                    false,
		"snowflake 192.0.2.1:443":                              false,
		"meek_lite 192.0.2.1:443 url=https://www.example.com/": false, // not checked when it connects
	} {
		bc := m.toldBridge(cfg, written, box, line)
		if (bc != nil) != want {
			t.Errorf("%s: %v, want %v", line, bc != nil, want)
		}
		if bc == nil {
			continue
		}
		if !strings.HasPrefix(bc.Name, "home+") || bc.User != "u" || bc.Password != "p" || bc.Carriers != 3 || bc.Told != string(box[:]) || bc.PT == nil {
			t.Errorf("%+v", bc)
		}
	}
	// What the name leads to.
	for url, want := range map[string]bool{"https://home.example.com/y": true, "https://www.example.com/y": false} {
		bc := m.toldBridge(cfg, written, box, web+url)
		if got := m.mayDial(bc, netip.MustParseAddrPort("10.0.0.1:443")) == nil; got != want {
			t.Errorf("%s to a private address: %v, want %v", url, got, want)
		}
		if m.mayDial(bc, netip.MustParseAddrPort("10.0.0.1:9050")) == nil || m.mayDial(bc, netip.MustParseAddrPort("192.0.2.5:443")) != nil {
			t.Error(url)
		}
	}
	isolated := &config.Config{Bridges: written, PTs: []*config.PT{{Name: "w", Transports: []string{"webtunnel"}, Isolate: true}}}
	if m.toldBridge(isolated, written, box, web+"https://www.example.com/y") != nil {
		t.Error("a name that another process looks up")
	}
	m.Direct = nil
	if m.toldBridge(cfg, written, box, obfs4("192.0.2.9:443")) != nil {
		t.Error("nobody knows which addresses are private")
	}
}

// A way belongs to the routes and the user of the bridges that lead to its box.
func TestToldRoutes(t *testing.T) {
	w := newWorld(t)
	w.m.Direct = func(netip.AddrPort, bool) error { return nil }
	w.set(config.PickFirst)
	cfg := w.config(config.PickFirst, "a", "b", "c", "d", "a+fake")
	b := cfg.Bridges
	b[2].User, b[2].Password = "another", "password"
	b[3].Far = config.FarForward
	cfg.Routes = []*config.Route{
		{Via: []*config.Bridge{b[0], b[1]}},
		{Via: []*config.Bridge{b[1], b[3]}},
		{Via: []*config.Bridge{b[2]}},
		{Via: []*config.Bridge{b[1], b[0]}},
	}
	for _, i := range []int{0, 2, 3} {
		w.m.boxes.set(markOf(b[i]), session.Box(w.far["a"].server.Box()))
	}
	text := ways.List{Serial: 1, Lines: []string{"fake " + moved, "fake 192.0.2.21:443", "fake " + moved}}.Sign(w.far["a"].key)
	if _, changed, err := w.m.told.set(w.far["a"].server.Box(), text); !changed || err != nil {
		t.Fatal(changed, err)
	}
	for range 2 {
		s := w.apply(cfg)
		for i, want := range []string{"a b a+fake-2 a+fake-3", "b d", "c c+fake c+fake-2", "b a a+fake-2 a+fake-3"} {
			if got := strings.Join(s.Route(i).Via(), " "); got != want {
				t.Errorf("route %d: %q, want %q", i, got, want)
			}
		}
		var got []string
		for _, p := range s.bridge("a+fake-2").paths()[1:] {
			got = append(got, p.Name())
		}
		if slices.Sort(got); !slices.Equal(got, []string{"a", "a+fake-3", "b"}) {
			t.Errorf("its streams may go over %v", got)
		}
		if len(cfg.Bridges) != 5 || len(cfg.Routes[0].Via) != 2 {
			t.Error("the configuration has changed")
		}
	}
}

// The file is written for its user only; one that is damaged counts as none, and a list that
// somebody has changed in it, too.
func TestToldFile(t *testing.T) {
	f := newFar()
	defer f.end()
	box := f.server.Box()
	text := ways.List{Serial: 1, Lines: []string{"fake " + moved}}.Sign(f.key)
	dir := t.TempDir()
	var log bytes.Buffer
	fresh := func() *told {
		b := &boxes{log: slog.New(slog.NewTextHandler(&log, nil)), known: map[string]string{}}
		b.set("x", box)
		n := &told{boxes: b}
		n.load(dir)
		return n
	}
	if _, changed, err := fresh().set(box, text); !changed || err != nil {
		t.Fatal(changed, err)
	}
	name := filepath.Join(dir, toldFile)
	if got := fresh().get(box); got.Serial != 1 || len(got.Lines) != 1 {
		t.Errorf("%+v", got)
	}
	if got := fresh().get(session.Box{1}); got.Serial != 0 {
		t.Errorf("of another box: %+v", got)
	}
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range [][]byte{nil, []byte("{"), []byte("null"), []byte("[]"), bytes.Replace(whole, []byte("192.0.2.20"), []byte("192.0.2.66"), 1)} {
		os.WriteFile(name, bad, 0o600)
		n := fresh()
		if got := n.get(box); got.Serial != 0 || got.Lines != nil {
			t.Errorf("%.20q: %+v", bad, got)
		}
		if _, changed, err := n.set(box, text); !changed || err != nil || fresh().get(box).Serial != 1 {
			t.Errorf("%.20q: %v, %v", bad, changed, err)
		}
	}
	// A box to which no bridge leads is forgotten.
	n := fresh()
	n.boxes.known = map[string]string{}
	n.boxes.set("x", session.Box{1})
	if _, _, err := n.set(box, ways.List{Serial: 2}.Sign(f.key)); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(log.String(), "192.0.2.") {
		t.Errorf("the log: %s", &log)
	}
}
