package ways

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var (
	seed   = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, ed25519.SeedSize))
	public = seed.Public().(ed25519.PublicKey)
)

// What a box has signed comes out as it went in.
func TestSign(t *testing.T) {
	for _, lines := range [][]string{
		nil,
		{"obfs4 192.0.2.10:443 cert=abc iat-mode=0"},
		{"obfs4 192.0.2.10:443 cert=abc iat-mode=0", "webtunnel 192.0.2.1:443 url=https://example.com/secret ver=0.0.1"},
	} {
		got, err := Open(public, List{7, lines}.Sign(seed))
		if err != nil || got.Serial != 7 || !slices.Equal(got.Lines, lines) {
			t.Errorf("%q: %+v, %v", lines, got, err)
		}
	}
}

// A list has no more lines and bytes than allowed; the first lines stay.
func TestSignBounds(t *testing.T) {
	for size, want := range map[int]int{1: Most, 300: Most, 1000: 3, 2000: 1, 4000: 0} {
		var lines []string
		for i := range 20 {
			lines = append(lines, fmt.Sprintf("obfs4 192.0.2.10:%d cert=%s", 1000+i, strings.Repeat("x", size)))
		}
		text := List{1, lines}.Sign(seed)
		got, err := Open(public, text)
		if err != nil || len(text) > MaxSize || !slices.Equal(got.Lines, lines[:want]) {
			t.Errorf("lines of %d: %d lines in %d bytes, %v", size, len(got.Lines), len(text), err)
		}
	}
}

// signed signs any text.
func signed(text string) []byte {
	return fmt.Appendf(nil, "%ssignature %x\n", text, ed25519.Sign(seed, []byte(text)))
}

// Whatever is no list of that box is refused.
func TestOpen(t *testing.T) {
	line := "obfs4 192.0.2.10:443 cert=abc iat-mode=0\n"
	good := string(signed(head + "serial 7\n" + line))
	if _, err := Open(public, []byte(good)); err != nil {
		t.Fatal(err)
	}
	other := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{2}, ed25519.SeedSize)).Public().(ed25519.PublicKey)
	if _, err := Open(other, []byte(good)); err != errSignature {
		t.Errorf("another box: %v", err)
	}
	if _, err := Open(nil, []byte(good)); err != errSignature {
		t.Errorf("no box: %v", err)
	}
	for what, text := range map[string]string{
		"nothing":           "",
		"another address":   strings.Replace(good, "192.0.2.10", "192.0.2.11", 1),
		"another serial":    strings.Replace(good, "serial 7", "serial 8", 1),
		"a line more":       strings.Replace(good, line, line+line, 1),
		"the end is gone":   good[:len(good)-2],
		"something behind":  good + line,
		"two signatures":    good + good[strings.Index(good, "signature"):],
		"another version":   string(signed("ptgate ways 2\nserial 7\n")),
		"no serial":         string(signed(head + line)),
		"a negative serial": string(signed(head + "serial -1\n")),
		"no lines at all":   string(signed(head)),
		"too many lines":    string(signed(head + "serial 7\n" + strings.Repeat(line, Most+1))),
		"too long":          string(signed(head + "serial 7\nobfs4 192.0.2.10:443 cert=" + strings.Repeat("x", MaxSize) + "\n")),
		"no bridge line":    string(signed(head + "serial 7\nhello\n")),
		"an empty line":     string(signed(head + "serial 7\n\n")),
		"a comment":         string(signed(head + "serial 7\n# hello\n")),
		"other spaces":      string(signed(head + "serial 7\nobfs4  192.0.2.10:443\n")),
		"a return":          string(signed(head + "serial 7\nobfs4 192.0.2.10:443\r\n")),
	} {
		if l, err := Open(public, []byte(text)); err == nil {
			t.Errorf("%s: %+v", what, l)
		}
	}
}

// A client reads what a box serves, and no more than a list has.
func TestRead(t *testing.T) {
	text := List{7, []string{"obfs4 192.0.2.10:443 cert=abc"}}.Sign(seed)
	for _, tt := range []struct {
		served []byte
		ok     bool
	}{{text, true}, {nil, true}, {make([]byte, MaxSize), true}, {make([]byte, MaxSize+1), false}, {make([]byte, 1<<20), false}} {
		synctest.Test(t, func(t *testing.T) {
			here, there := net.Pipe()
			done := make(chan struct{})
			go func() {
				Serve(there, tt.served)
				there.Close()
				close(done)
			}()
			got, err := Read(t.Context(), here)
			if (err == nil) != tt.ok || tt.ok && !bytes.Equal(got, tt.served) {
				t.Errorf("%d bytes: got %d, %v", len(tt.served), len(got), err)
			}
			here.Close()
			<-done
		})
	}
}

// Who reads nothing is let go.
func TestServeSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		defer here.Close()
		begun := time.Now()
		Serve(there, []byte("hello"))
		if took := time.Since(begun); took != patience {
			t.Errorf("after %v", took)
		}
	})
}

func FuzzOpen(f *testing.F) {
	f.Add(List{7, []string{"obfs4 192.0.2.10:443 cert=abc"}}.Sign(seed)[:20])
	f.Add([]byte("serial 1\nobfs4 192.0.2.10:443\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		Open(public, text)
		if l, err := Open(public, signed(head+string(text))); err == nil {
			again, err := Open(public, l.Sign(seed))
			if err != nil || again.Serial != l.Serial || !slices.Equal(again.Lines, l.Lines) {
				t.Errorf("%+v became %+v, %v", l, again, err)
			}
		}
	})
}

func ExampleOpen() {
	text := List{Serial: 1, Lines: []string{"obfs4 192.0.2.10:443 cert=abc iat-mode=0"}}.Sign(seed)
	list, err := Open(public, text)
	fmt.Println(list.Lines, err)
	// Output: [obfs4 192.0.2.10:443 cert=abc iat-mode=0] <nil>
}
