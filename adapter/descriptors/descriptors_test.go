//go:build unix

package descriptors

import (
	"errors"
	"net"
	"os"
	"syscall"
	"testing"
)

func TestSupply(t *testing.T) {
	for _, tt := range []struct {
		limit int
		fd    uintptr
		want  Supply
	}{
		{256, 3, Enough}, {256, 191, Enough}, {256, 192, Few}, {256, 239, Few}, {256, 240, Last}, {256, 255, Last},
		{1024, 863, Enough}, {1024, 864, Few}, {1024, 959, Few}, {1024, 960, Last},
		{65536, 64511, Enough}, {65536, 64512, Few}, {65536, 65279, Few}, {65536, 65280, Last},
		{Unlimited, 1 << 20, Enough},
		{16, 300, Last}, // the limit was lowered while files were open
	} {
		if got := supply(tt.fd, tt.limit); got != tt.want {
			t.Errorf("file %d of %d: %d, want %d", tt.fd, tt.limit, got, tt.want)
		}
	}
}

// The numbers go up as files are opened, and a connection tells it.
func TestOf(t *testing.T) {
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	few := before
	few.Cur = 128
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	defer syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before)
	if Limit() != 128 || Kept() != 32 || Reserve() != 8 {
		t.Fatalf("limit %d, kept %d, reserve %d", Limit(), Kept(), Reserve())
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	seen := Enough
	var files []*os.File
	for seen != Last {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		now := Of(c)
		c.Close()
		if s := Now(); s > now+1 || s < now {
			t.Errorf("%d now, and %d of a connection", s, now)
		}
		if now > seen {
			t.Errorf("%d after %d", now, seen)
		}
		for _, least := range []Supply{Last, Few} {
			d := net.Dialer{Control: Keep(least)}
			c, err := d.Dial("tcp", ln.Addr().String())
			if (err == nil) != (now > least) || err != nil && !errors.Is(err, syscall.EMFILE) {
				t.Errorf("supply %d, kept back %d: %v", now, least, err)
			}
			if err == nil {
				c.Close()
			}
		}
		seen = now
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatalf("no descriptor left, and the supply was %d: %v", seen, err)
		}
		files = append(files, f)
	}
	for _, f := range files {
		f.Close()
	}
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if s := Of(c); s != Enough {
		t.Errorf("%d after the files were closed", s)
	}
}
