package bridges

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
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
	var now atomic.Pointer[Set]
	now.Store(w.set(config.PickFirst, "a"))
	w.m.Told = func() { now.Store(w.apply(w.config(config.PickFirst, "a"))) }
	return w, func() *Set {
		synctest.Wait()
		return now.Load()
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
		end := func() { // the old bridges end
			w.set(config.PickFirst)
			w.m.told.set(w.far["a"].server.Box(), *w.far["a"].ways.Load())
		}
		end()
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
			s.bridge("a").health.bad(errBlocked, maxRest)
			if order := choose(s.Route(0).via, pick); order[0].Name() == "a" {
				t.Errorf("%s: what does not work is first", pick)
			}
			end()
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
		if a.Port() == 9050 || !private && !strings.HasPrefix(a.Addr().Unmap().String(), "192.0.2.") {
			return errOwn
		}
		return nil
	}
	written := []*config.Bridge{
		{Name: "home", Transport: "obfs4", Address: "10.0.0.5:443", Far: config.FarExit, User: "u", Password: "p", Carriers: 3},
		{Name: "web", Transport: "webtunnel", Address: "192.0.2.1:443", Args: adapter.Args{{Key: "url", Value: "https://Home.example.com/x"}}, Far: config.FarExit},
		{Name: "here", Transport: "obfs4", Address: "127.0.0.1:443", Far: config.FarExit},
		{Name: "named", Transport: "obfs4", Address: "named.example.com:443", Far: config.FarExit},
		{Name: "own", Transport: "own", Address: "192.0.2.77:1", Args: adapter.Args{{Key: "k", Value: "v"}}, Far: config.FarExit},
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
		obfs4("127.0.0.1:444"):                                 true, // as above
		obfs4("127.0.0.2:443"):                                 false,
		obfs4("[::1]:443"):                                     false,
		obfs4("[::ffff:10.0.0.6]:443"):                         false,
		obfs4("[fe80::1%eth0]:443"):                            false,
		obfs4("0.0.0.0:443"):                                   false,
		obfs4("host.example.com:443"):                          false, // a name that the user has not written
		obfs4("Named.example.com:444"):                         true,
		"obfs4 192.0.2.9:443 cert=short":                       false,
		"obfs3 192.0.2.9:443":                                  false, // a program that is not there
		"unknown 192.0.2.9:443":                                false,
		"own 192.0.2.9:443 k=v":                                true,
		"own 192.0.2.9:443":                                    false, // args that the user has not written
		"own 192.0.2.9:443 k=w":                                false,
		web + "https://192.0.2.9/y":                            true,
		web + "https://www.example.com/y":                      true,  // checked when it is looked up
		web + "https://127.0.0.1/y":                            true,  // the very port that the user wrote
		web + "http://127.0.0.1:8080/y":                        false, // the host that the user wrote, but what a web server there may do
		web + "https://10.0.0.5:8443/y":                        false,
		web + "https://10.0.0.7/y":                             false,
		web + "https://127.1:8080/y":                           false,
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
	// What a name leads to.
	for line, want := range map[string]bool{
		web + "https://home.example.com/y":      true,
		web + "https://home.example.com:8080/y": false,
		web + "https://www.example.com/y":       false,
		obfs4("named.example.com:444"):          true,
	} {
		bc := m.toldBridge(cfg, written, box, line)
		if got := m.mayDial(bc, netip.MustParseAddrPort("10.0.0.1:443")) == nil; got != want {
			t.Errorf("%s to a private address: %v, want %v", line, got, want)
		}
		if m.mayDial(bc, netip.MustParseAddrPort("10.0.0.1:9050")) == nil || m.mayDial(bc, netip.MustParseAddrPort("192.0.2.5:443")) != nil {
			t.Error(line)
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

// What a box tells shows it no address that the user keeps from it, and leaves this machine
// by the way that the user has chosen.
func TestMayTellHidden(t *testing.T) {
	m := NewManager("", outcome.New(quiet), quiet)
	defer m.Close()
	m.Direct = func(netip.AddrPort, bool) error { return nil }
	obfs4 := "obfs4 192.0.2.9:443 cert=" + strings.Repeat("A", 70) + " iat-mode=0"
	literal, named := "webtunnel 192.0.2.1:443 url=https://192.0.2.9/y", "webtunnel 192.0.2.1:443 url=https://www.example.com/y"
	source := netip.MustParseAddr("192.0.2.99")
	for _, tt := range []struct {
		what      string
		transport string
		pt        config.PT
		others    []*config.PT
		line      string
		want      bool
	}{
		{"fronted", "meek_lite", config.PT{}, nil, obfs4, false},
		{"by volunteers", "snowflake", config.PT{}, nil, obfs4, false},
		{"direct", "obfs4", config.PT{}, nil, literal, true},
		{"proxy", "obfs4", config.PT{Proxy: "socks5://192.0.2.3:1080"}, nil, literal, true},
		{"proxy that looks up", "obfs4", config.PT{Proxy: "socks5://192.0.2.3:1080"}, nil, named, false},
		{"source address", "obfs4", config.PT{BindV4: source}, nil, literal, true},
		{"another program without the proxy", "obfs4", config.PT{Proxy: "socks5://192.0.2.3:1080"}, []*config.PT{{Name: "w", Transports: []string{"webtunnel"}}}, literal, false},
		{"another program without the source address", "obfs4", config.PT{BindV4: source}, []*config.PT{{Name: "w", Transports: []string{"webtunnel"}}}, literal, false},
	} {
		pt := tt.pt
		pt.Name, pt.Transports = tt.transport, []string{tt.transport}
		b := &config.Bridge{Name: "a", Transport: tt.transport, Address: "192.0.2.1:443", Far: config.FarExit, PT: &pt,
			Args: adapter.Args{{Key: "url", Value: "https://front.example.com/"}}}
		bc := m.toldBridge(&config.Config{Bridges: []*config.Bridge{b}, PTs: tt.others}, []*config.Bridge{b}, session.Box{1}, tt.line)
		if (bc != nil) != tt.want {
			t.Errorf("%s: %v, want %v", tt.what, bc != nil, tt.want)
		}
		if bc != nil && (bc.PT.Proxy != pt.Proxy || bc.PT.BindV4 != pt.BindV4) {
			t.Errorf("%s: %+v", tt.what, bc.PT)
		}
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
// somebody has changed in it, too. Both are told. A list is kept as long as its box confirms it.
func TestToldFile(t *testing.T) {
	f := newFar()
	defer f.end()
	box := f.server.Box()
	text := ways.List{Serial: 1, Lines: []string{"fake " + moved}}.Sign(f.key)
	cfg := &config.Config{StateDir: t.TempDir(), Path: "/etc/ptgate.toml"}
	name := toldPath(cfg)
	var log bytes.Buffer
	fresh := func() *told {
		n := &told{log: slog.New(slog.NewTextHandler(&log, nil))}
		n.load(cfg)
		return n
	}
	n := fresh()
	if _, changed, err := n.set(box, text); !changed || err != nil {
		t.Fatal(changed, err)
	}
	if got := fresh().get(box); got.Serial != 1 || len(got.Lines) != 1 {
		t.Errorf("%+v", got)
	}
	if got := fresh().get(session.Box{1}); got.Serial != 0 {
		t.Errorf("of another box: %+v", got)
	}
	if log.Len() > 0 {
		t.Errorf("the log: %s", &log)
	}
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	changed := bytes.Replace(whole, []byte("192.0.2.20"), []byte("192.0.2.66"), 1)
	for _, bad := range [][]byte{nil, []byte("{"), []byte("[]"), []byte(`{"ab": {}}`), []byte(`{"` + strings.Repeat("x", 64) + `": {}}`), changed} {
		log.Reset()
		os.WriteFile(name, bad, 0o600)
		n := fresh()
		if got := n.get(box); got.Serial != 0 || got.Lines != nil {
			t.Errorf("%.20q: %+v", bad, got)
		}
		if said := log.String(); !strings.Contains(said, "can't be read") || strings.Contains(said, "192.0.2.") || strings.Contains(said, filepath.Dir(name)) {
			t.Errorf("%.20q: the log: %s", bad, said)
		}
		if _, changed, err := n.set(box, text); !changed || err != nil || fresh().get(box).Serial != 1 {
			t.Errorf("%.20q: %v, %v", bad, changed, err)
		}
	}
	// What one box has damaged leaves the others.
	other := newFar()
	defer other.end()
	n = fresh()
	n.set(other.server.Box(), ways.List{Serial: 3}.Sign(other.key))
	whole, _ = os.ReadFile(name)
	os.WriteFile(name, bytes.Replace(whole, []byte("192.0.2.20"), []byte("192.0.2.66"), 1), 0o600)
	if n := fresh(); n.get(box).Serial != 0 || n.get(other.server.Box()).Serial != 3 {
		t.Errorf("%+v", n.lists)
	}
	// One that was signed before the newest one is refused, also after a restart.
	os.WriteFile(name, whole, 0o600)
	n = fresh()
	if _, changed, err := n.set(other.server.Box(), ways.List{Serial: 2, Lines: []string{"fake 192.0.2.66:1"}}.Sign(other.key)); changed || err == nil {
		t.Errorf("an old list: %v, %v", changed, err)
	}
	// A box to which no bridge leads is forgotten.
	if !n.keep(map[session.Box]bool{box: true}) || n.keep(map[session.Box]bool{box: true}) {
		t.Error("what is kept")
	}
	n.write()
	if got, _ := os.ReadFile(name); bytes.Contains(got, []byte(hex.EncodeToString(other.key.Public().(ed25519.PublicKey)))) || !bytes.Contains(got, []byte("192.0.2.20")) {
		t.Errorf("%s", got)
	}
	// Another configuration with the same directory has a file of its own.
	cfg.Path += "2"
	if got := fresh().get(box); got.Serial != 0 {
		t.Errorf("of another configuration: %+v", got)
	}
}

// A list that its box has not confirmed for a long time is used no more.
func TestToldOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, set := toldWorld(t)
		w.far["a"].tells(1, "fake "+moved)
		box := w.far["a"].server.Box()
		passes := func(long time.Duration) { // since it was heard of last
			x := w.m.told.lists[box]
			x.Heard = x.Heard.Add(-long)
			w.m.told.put(box, x)
		}
		for range 4 {
			w.far["a"].group.Close() // it says again what it has said, in another session
			w.far["a"].begin(w.far["a"].key)
			w.far["a"].server.Tell(1)
			c, _ := open(t, w.set(config.PickFirst, "a"))
			<-time.After(time.Minute)
			c.Close()
			if got := names(set()); got != "a a+fake" {
				t.Fatalf("bridges %q", got)
			}
			passes(toldFor - time.Hour)
		}
		if s := w.set(config.PickFirst, "a"); names(s) != "a a+fake" {
			t.Errorf("bridges %q", names(s))
		}
		passes(time.Hour)
		if s := w.set(config.PickFirst, "a"); names(s) != "a" || len(w.m.told.lists) != 0 {
			t.Errorf("bridges %q", names(s))
		}
	})
}

// Where the list is known already, and a bridge turns out to lead to its box, the ways are
// used: the user has pasted another line of that box.
func TestToldKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, set := toldWorld(t)
		w.far["c"] = newFar()
		w.far["c"].end()
		w.far["c"].begin(w.far["a"].key)
		w.far["a"].tells(1, "fake "+moved)
		w.far["c"].tells(1, "fake "+moved)
		var now atomic.Pointer[Set]
		w.m.Told = func() { now.Store(w.set(config.PickFirst, "c", "a")) }
		c, _ := open(t, set())
		synctest.Wait()
		c.Close()
		s := w.set(config.PickFirst, "c", "a")
		if got := names(s); got != "c a a+fake" {
			t.Fatalf("bridges %q", got)
		}
		w.far["a"].refuses.Store(true)
		c, _ = open(t, s)
		<-time.After(time.Minute)
		c.Close()
		if s := now.Load(); s == nil || names(s) != "c a c+fake" { // it has the settings of c
			t.Errorf("%+v", s)
		}
		// And when it leads to another box, they are those of a.
		w.far["c"].end()
		w.far["c"].begin(nil)
		w.far["c"].reset()
		<-time.After(time.Minute)
		s = now.Load()
		c, _ = open(t, s)
		<-time.After(time.Minute)
		c.Close()
		if got := names(now.Load()); got != "c a a+fake" {
			t.Errorf("bridges %q", got)
		}
	})
}

// If the box does not answer at first, it is asked again, but not without end.
func TestToldAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, set := toldWorld(t)
		w.far["a"].server.Tell(1) // it has no list
		c, _ := open(t, set())
		defer c.Close()
		<-time.After(3 * time.Second)
		if n := w.far["a"].told.Load(); n < 2 {
			t.Errorf("asked %d times", n)
		}
		w.far["a"].tells(1, "fake "+moved)
		<-time.After(time.Minute)
		if got := names(set()); got != "a a+fake" {
			t.Errorf("bridges %q", got)
		}
		before := w.far["a"].told.Load()
		wrong := []byte("hello")
		w.far["a"].ways.Store(&wrong)
		w.far["a"].server.Tell(2)
		<-time.After(24 * time.Hour)
		if n := w.far["a"].told.Load() - before; n != asks {
			t.Errorf("asked %d times for a list that is none", n)
		}
	})
}

// While what the user wrote works, a way that was told and that does not work is left alone.
func TestToldLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, set := toldWorld(t)
		w.far["a"].tells(1, "fake "+moved)
		c, _ := open(t, set())
		defer c.Close()
		w.far[moved].refuses.Store(true)
		s := set()
		s.bridge("a+fake").health.bad(errBlocked, maxRest)
		for range 60 {
			<-time.After(time.Minute)
			c, _ := open(t, set())
			c.Close()
		}
		if n := w.far[moved].dials.Load(); n != 0 {
			t.Errorf("%d dials", n)
		}
		s.bridge("a").health.bad(errBlocked, maxRest)
		w.far[moved].refuses.Store(false)
		choose(s.Route(0).via, config.PickFirst)
		synctest.Wait()
		if n := w.far[moved].dials.Load(); n == 0 {
			t.Error("it is not tried when it is needed")
		}
	})
}

// Bridges to one box ask it at the same time: the newest list stays.
func TestNewestStays(t *testing.T) {
	public, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	const newest = 8
	for range 500 {
		kept := told{log: quiet}
		var wg sync.WaitGroup
		for serial := range newest {
			text := ways.List{Serial: uint64(serial + 1)}.Sign(key)
			wg.Go(func() { kept.set(session.Box(public), text) })
		}
		wg.Wait()
		if got := kept.get(session.Box(public)).Serial; got != newest {
			t.Fatalf("the list that stays has the serial %d", got)
		}
	}
}

// What a box has told is known without a ptgate that runs, but for what is too old or what the user
// has written.
func TestToldWays(t *testing.T) {
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	line := func(addr string) string {
		return "obfs4 " + addr + " cert=" + strings.Repeat("A", 70) + " iat-mode=0"
	}
	written := &config.Bridge{Name: "far", Transport: "obfs4", Address: "192.0.2.1:443", Far: config.FarExit}
	other := &config.Bridge{Name: "other", Transport: "obfs4", Address: "192.0.2.2:443", Far: config.FarExit}
	for _, b := range []*config.Bridge{written, other} {
		l, err := adapter.ParseBridgeLine(line(b.Address))
		if err != nil {
			t.Fatal(err)
		}
		b.Args = l.Args
	}
	cfg := &config.Config{Path: filepath.Join(dir, "client.toml"), StateDir: dir, Bridges: []*config.Bridge{written, other}}
	count := func(want int) {
		t.Helper()
		if got := ToldWays(cfg, written); got != want {
			t.Errorf("%d ways, want %d", got, want)
		}
		if got := ToldWays(cfg, other); got != 0 {
			t.Errorf("%d ways to a box that is not known", got)
		}
	}
	count(0)
	NoteBox(cfg, written, session.Box(pub))
	count(0)
	list := ways.List{Serial: 1, Lines: []string{line(written.Address), line("192.0.2.3:443"), line("192.0.2.4:443")}}
	for ago, want := range map[time.Duration]int{0: 2, toldFor + time.Hour: 0} {
		x := toldBy{Text: string(list.Sign(key)), Heard: time.Now().Add(-ago)}
		if err := writeJSON(toldPath(cfg), map[string]toldBy{hex.EncodeToString(pub): x}); err != nil {
			t.Fatal(err)
		}
		count(want)
	}
}
