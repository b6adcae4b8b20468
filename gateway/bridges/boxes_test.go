package bridges

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"

	"ptgate/gateway/config"
	"ptgate/gateway/outcome"
	"ptgate/gateway/session"
)

// Which box a bridge leads to is known after a restart, and by nobody who does not know
// the bridge.
func TestBoxes(t *testing.T) {
	dir, log := t.TempDir(), new(bytes.Buffer)
	name := filepath.Join(dir, boxesFile)
	fresh := func() *boxes {
		b := &boxes{log: slog.New(slog.NewTextHandler(log, nil))}
		b.load(dir)
		return b
	}
	one, two := session.Box{1}, session.Box{2}
	b, at := fresh(), mark("obfs4\x00192.0.2.1:443")
	if got := b.get(at); got != (session.Box{}) {
		t.Errorf("at first it knows %v", got)
	}
	if before := b.set(at, one); before != (session.Box{}) {
		t.Errorf("before the first one: %v", before)
	}
	if _, err := os.Stat(name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("who notes a box waits for the disk: %v", err)
	}
	b.write()
	if got := fresh().get(at); got != one {
		t.Errorf("after a restart: %v", got)
	}
	b.file.Lock() // while the disk is slow, all goes on
	b.set(at, two)
	if got := b.get(at); got != two {
		t.Errorf("while the file is written: %v", got)
	}
	b.file.Unlock()
	b = fresh()
	if before := b.set(at, two); before != one {
		t.Errorf("before the second one: %v", before)
	}
	if before := b.set(at, two); before != two {
		t.Errorf("the same again: %v", before)
	}
	b.set(mark("another"), one)
	b.write()
	if b = fresh(); b.get(at) != two || b.get(mark("another")) != one {
		t.Errorf("it has %v", b.known)
	}
	text, err := os.ReadFile(name)
	if err != nil || bytes.Contains(text, []byte("192.0.2.1")) || bytes.Contains(text, []byte("obfs4")) {
		t.Errorf("%s, %v", text, err)
	}
	if info, err := os.Stat(name); err != nil || runtime.GOOS != "windows" && info.Mode() != fs.FileMode(0o600) {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if log.Len() > 0 {
		t.Errorf("logged: %s", log)
	}

	for _, broken := range []string{"", "{", "null", "[]", `{"` + at + `": 1}`} {
		log.Reset()
		os.WriteFile(name, []byte(broken), 0o600)
		b := fresh()
		if got := b.get(at); got != (session.Box{}) || !strings.Contains(log.String(), boxesFile) {
			t.Errorf("%q: %v, logged %q", broken, got, log)
		}
		b.set(at, one)
		b.write()
		if got := fresh().get(at); got != one {
			t.Errorf("%q: later %v", broken, got)
		}
	}
	log.Reset()
	os.WriteFile(name, []byte(`{"`+at+`": "not hex", "other": "00"}`), 0o600)
	if b := fresh(); b.get(at) != (session.Box{}) || b.get("other") != (session.Box{}) {
		t.Error("half a key is a box")
	}
}

// A box that can't be noted is known until the end.
func TestBoxesWithoutAFile(t *testing.T) {
	log := new(bytes.Buffer)
	b := &boxes{log: slog.New(slog.NewTextHandler(log, nil))}
	b.load(filepath.Join(t.TempDir(), "no", "directory"))
	b.set("x", session.Box{1})
	b.write()
	if b.get("x") != (session.Box{1}) || !strings.Contains(log.String(), "can't be written") {
		t.Errorf("%v, logged %q", b.get("x"), log)
	}
}

// A bridge that leads to another box than before is told of once, also over restarts. It
// works as before.
func TestBoxChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cfg, f := w.config(config.PickFirst, "a"), w.far["a"]
		s := w.apply(cfg)
		told := func() int64 { return w.m.book.Total(outcome.BoxChanged) }
		visit := func() Status {
			c, _ := open(t, s)
			echo(t, c)
			c.Close()
			return s.bridge("a").Status()
		}
		first := visit()
		if first.Box == "" || first.Changed || told() != 0 {
			t.Errorf("at first: %+v, told %d times", first, told())
		}
		f.begin(nil)
		f.reset()
		second := visit()
		if second.Box == first.Box || !second.Changed || told() != 1 {
			t.Errorf("another box: %+v, told %d times", second, told())
		}
		f.reset()
		if third := visit(); third.Box != second.Box || told() != 1 {
			t.Errorf("the same again: %+v, told %d times", third, told())
		}
		// Another process, the same state directory.
		synctest.Wait()
		if noted := KnownBox(cfg, cfg.Bridges[0]); noted != second.Box {
			t.Errorf("the file has the box %q, want %q", noted, second.Box)
		}
		w.m.boxes = boxes{log: quiet}
		w.m.boxes.load(cfg.StateDir)
		f.reset()
		if st := visit(); st.Box != second.Box || told() != 1 {
			t.Errorf("after a restart: %+v, told %d times", st, told())
		}
	})
}
