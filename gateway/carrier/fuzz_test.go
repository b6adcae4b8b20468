package carrier

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"ptgate/gateway/stream"
)

// Whatever a connection begins with, all that does not belong to the preamble can be read.
func FuzzSniff(f *testing.F) {
	f.Add([]byte(Preamble + "rest"))
	f.Add([]byte("\x05\x01\x00"))
	f.Add([]byte("PTG\x02"))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, first []byte) {
		near, far := net.Pipe()
		done, sniffed := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			near.Write(first)
			if len(first) >= len(Preamble) { // a pipe takes no deadline once it has been closed
				<-sniffed
			}
			near.Close()
		}()
		defer func() { far.Close(); <-done }()
		kind, c, err := Sniff(stream.From(far), time.Minute)
		close(sniffed)
		if err != nil {
			if len(first) >= len(Preamble) {
				t.Errorf("%q: %v", first, err)
			}
			return
		}
		rest, _ := io.ReadAll(c)
		switch {
		case bytes.HasPrefix(first, []byte(Preamble)):
			if kind != Carrier || string(rest) != string(first[len(Preamble):]) {
				t.Errorf("%q: kind %d, %q is left", first, kind, rest)
			}
		case first[0] == 5:
			if kind != BareSOCKS5 || !bytes.Equal(rest, first) {
				t.Errorf("%q: kind %d, %q is left", first, kind, rest)
			}
		case kind != Unknown:
			t.Errorf("%q: kind %d", first, kind)
		}
	})
}

// Whatever is appended, read and released, and in what order: the peer gets all bytes in
// order, and what was not released can be had back.
func FuzzConn(f *testing.F) {
	f.Add([]byte("\x00\x05\x02\x03\x03\x02\x1c\xff\x00\x01\x02\xff"), int64(0))
	f.Add([]byte("\x1c\xff\x1c\xff\x1c\xff\x02\xff\x03\x80"), int64(1<<40))
	f.Fuzz(func(t *testing.T, program []byte, beyond int64) {
		pattern := func(from, to int64) []byte {
			b := make([]byte, to-from)
			for i := range b {
				b[i] = byte((from + int64(i)) * 7 / 5)
			}
			return b
		}
		a, b := net.Pipe()
		defer b.Close()
		c := Open(stream.From(a), []byte("hello"), Options{Traffic: new(Traffic)})
		defer c.Close()
		if _, err := io.ReadFull(b, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		var appended, read, released int64
		for ; len(program) >= 2; program = program[2:] {
			n := (int64(program[1]) + 1) << (program[0] / 4 % 8)
			switch program[0] % 4 {
			case 0, 1:
				if appended-read+n > QueueLimit {
					break
				}
				p := pattern(appended, appended+n)
				half := len(p) / 2
				if appended += n; c.Append(p[:half], p[half:]) != appended || c.Position() != appended {
					t.Fatalf("position %d, want %d", c.Position(), appended)
				}
			case 2:
				got := make([]byte, min(n, appended-read))
				if _, err := io.ReadFull(b, got); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, pattern(read, read+int64(len(got)))) {
					t.Fatalf("other bytes have come at %d", read)
				}
				read += int64(len(got))
			case 3:
				to := min(n, read)
				if freed, err := c.Release(to); err != nil || freed != max(0, to-released) {
					t.Fatalf("released up to %d, before %d: %d, %v", to, released, freed, err)
				}
				released = max(released, to)
			}
		}
		if beyond > appended {
			if _, err := c.Release(beyond); !errors.Is(err, ErrRelease) {
				t.Errorf("%d is released of %d: %v", beyond, appended, err)
			}
		}
		b.Close()
		c.Close()
		at := int64(-1)
		for _, p := range c.Unreleased() {
			end := p.At + int64(len(p.B))
			if at < 0 && p.At > released || at >= 0 && p.At != at || !bytes.Equal(p.B, pattern(p.At, end)) {
				t.Fatalf("bytes %d to %d are taken back, after %d; %d are released", p.At, end, at, released)
			}
			at = end
		}
		if at < 0 && released != appended || at >= 0 && at != appended {
			t.Errorf("bytes up to %d are taken back, of %d; %d are released", at, appended, released)
		}
	})
}
