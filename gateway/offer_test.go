package gateway

import (
	"crypto/ed25519"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"ptgate/gateway/config"
	"ptgate/gateway/serve"
	"ptgate/gateway/ways"
)

// The list of ways is the same over restarts as long as the ways are, and a later one has a
// larger serial, whatever the clock says.
func TestOfferList(t *testing.T) {
	dir := t.TempDir()
	cfg := &config.Config{StateDir: dir}
	key, err := boxKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	public := key.Public().(ed25519.PublicKey)
	list := func(lines ...string) ways.List {
		t.Helper()
		g := &Gateway{log: slog.New(slog.DiscardHandler)}
		l, text := g.list(cfg, key, lines)
		got, err := ways.Open(public, text)
		if err != nil || got.Serial != l.Serial || !slices.Equal(got.Lines, lines) {
			t.Errorf("%+v, %v", got, err)
		}
		return l
	}
	a, b := "obfs4 192.0.2.10:443 cert=abc", "obfs4 192.0.2.10:444 cert=abc"
	first := list(a)
	if again := list(a); again.Serial != first.Serial {
		t.Errorf("serial %d, and then %d", first.Serial, again.Serial)
	}
	// The clock was in the future.
	name := filepath.Join(dir, offerFile)
	os.WriteFile(name, ways.List{Serial: first.Serial + 1<<40, Lines: []string{a}}.Sign(key), 0o600)
	if l := list(a, b); l.Serial != first.Serial+1<<40+1 {
		t.Errorf("serial %d after %d", l.Serial, first.Serial+1<<40)
	}
	for _, bad := range []string{"", "hello"} {
		os.WriteFile(name, []byte(bad), 0o600)
		if l := list(a); l.Serial < first.Serial {
			t.Errorf("%q: serial %d", bad, l.Serial)
		}
	}
	os.Remove(name)
	os.Mkdir(name, 0o700) // it can't be noted
	list(a)
}

// Clients are told of the ways to the exit, as `ptgate bridges` prints them.
func TestOffered(t *testing.T) {
	cfg := &config.Config{Serve: []*config.Serve{
		{Transport: "obfs4", Public: "192.0.2.10:443", Tell: true},
		{Transport: "obfs4", Public: "192.0.2.10:444", Tell: true, Forward: "127.0.0.1:22"},
		{Transport: "obfs4", Tell: true}, // on all addresses
		{Transport: "webtunnel", Public: "127.0.0.1:4000", Tell: true},
		{Transport: "obfs4", Public: "192.0.2.10:446"}, // for some people only
	}}
	var all []serve.Announced
	for range cfg.Serve {
		all = append(all, serve.Announced{Transport: "obfs4", Address: "0.0.0.0:445"})
	}
	want := []string{"obfs4 192.0.2.10:443", "webtunnel 127.0.0.1:4000"}
	if got := offered(cfg, all); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
