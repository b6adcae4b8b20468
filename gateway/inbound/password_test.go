package inbound

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ptgate/gateway/answer"
)

// A fromAddr is a connection from an address.
type fromAddr struct {
	net.Conn
	addr *net.TCPAddr
}

func (c fromAddr) RemoteAddr() net.Addr { return c.addr }

// dialFrom connects to a front in memory.
func dialFrom(ln memory, addr string) net.Conn {
	here, there := net.Pipe()
	ln <- fromAddr{there, &net.TCPAddr{IP: net.ParseIP(addr), Port: 5}}
	return here
}

func socksLogin(password string) string {
	return "\x05\x01\x02\x01\x05alice" + string(rune(len(password))) + password
}

func startUsers(t *testing.T, f Front, change func(*Settings, *Config)) (*gate, memory) {
	ln := make(memory)
	g := startOn(t, ln, f, failing(answer.Blocked), func(s *Settings, c *Config) {
		s.Allow = nil
		s.Users = map[string]string{"alice": "secret"}
		change(s, c)
	})
	t.Cleanup(func() { g.end(t) })
	return g, ln
}

// Clients that wait to be told that their password is wrong keep no place from others.
func TestWrongPasswordsKeepNoPlace(t *testing.T) {
	for f, say := range map[Front]struct{ wrong, answer, right, granted string }{
		SOCKS5: {socksLogin("old"), "\x05\x02\x01\x01", socksLogin("secret") + socksRequest("a.example", 80)[3:], "\x05\x02\x01\x00\x05\x02"},
		HTTP: {"CONNECT a.example:80 HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n" + basic("alice:old") + "\r\n", "HTTP/1.1 407 ",
			"CONNECT a.example:80 HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n" + basic("alice:secret") + "\r\n", "HTTP/1.1 403 "},
	} {
		synctest.Test(t, func(t *testing.T) {
			const places = 10
			limit := NewLimiter(places)
			g, ln := startUsers(t, f, func(_ *Settings, c *Config) { c.Limit = limit })
			ask := func(text, want string, took time.Duration) {
				c := dialFrom(ln, "127.0.0.1")
				defer c.Close()
				begun := time.Now()
				go io.WriteString(c, text)
				got := make([]byte, len(want))
				if _, err := io.ReadFull(c, got); string(got) != want || time.Since(begun) != took {
					t.Errorf("%v: %q after %v, %v; want %q", f, got, time.Since(begun), err, want)
				}
				go io.Copy(io.Discard, c)
			}
			var wg sync.WaitGroup
			for range places {
				wg.Go(func() {
					c := dialFrom(ln, "127.0.0.1")
					defer c.Close()
					go io.WriteString(c, say.wrong)
					r := bufio.NewReader(c)
					if f == SOCKS5 {
						r.Discard(2)
						r.ReadByte()
						return
					}
					if line, _, err := r.ReadLine(); err != nil || string(line[:13]) != say.answer {
						t.Errorf("%v: %q, %v", f, line, err)
					}
				})
			}
			synctest.Wait()
			ask(say.right, say.granted, 0)
			wg.Wait()
			<-time.After(lingerMost)
			synctest.Wait()
			if n, aside := limit.n.Load(), g.aside.n.Load(); n != 0 || aside != 0 {
				t.Errorf("%v: %d and %d places are taken at the end", f, n, aside)
			}
		})
	}
}

// A client whose password is right finds that its place was taken meanwhile.
func TestPlaceTakenMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limit := NewLimiter(2)
		g, ln := startUsers(t, SOCKS5, func(_ *Settings, c *Config) { c.Limit = limit })
		const addr = "192.0.2.1"
		guesser, c := dialFrom(ln, addr), dialFrom(ln, addr)
		defer guesser.Close()
		defer c.Close()
		go io.WriteString(guesser, socksLogin("old"))
		go io.Copy(io.Discard, guesser)
		synctest.Wait() // the guesser has its address's turn
		go io.WriteString(c, socksLogin("secret")+socksRequest("a.example", 80)[3:])
		got := make([]byte, 2)
		io.ReadFull(c, got)
		synctest.Wait()
		if n := limit.n.Load(); n != 0 {
			t.Fatalf("%d places are taken", n)
		}
		limit.Acquire()
		limit.Acquire()
		want := "\x01\x00" + reply(answer.Limit.SOCKS())
		got = make([]byte, len(want))
		if _, err := io.ReadFull(c, got); string(got) != want {
			t.Errorf("%q, %v", got, err)
		}
		c.Close()
		guesser.Close()
		<-time.After(lingerMost)
		synctest.Wait()
		if n, aside := limit.n.Load(), g.aside.n.Load(); n != 2 || aside != 0 {
			t.Errorf("%d and %d places are taken at the end", n, aside)
		}
	})
}

// The time that the check of a password takes is not the client's: it has its whole
// handshake for what it has to send.
func TestPasswordAndHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, ln := startUsers(t, SOCKS5, func(s *Settings, _ *Config) { s.Handshake = time.Second })
		const addr = "192.0.2.1"
		var wg sync.WaitGroup
		guess := func(i int) {
			wg.Go(func() {
				c := dialFrom(ln, addr)
				defer c.Close()
				go io.WriteString(c, socksLogin(fmt.Sprint("guess ", i)))
				got := make([]byte, 4)
				if _, err := io.ReadFull(c, got); string(got) != "\x05\x02\x01\x01" {
					t.Errorf("a wrong one: %q, %v", got, err)
				}
			})
		}
		for i := range 3 {
			guess(i)
		}
		synctest.Wait()
		c := dialFrom(ln, addr)
		defer c.Close()
		go io.WriteString(c, socksLogin("secret"))
		got := make([]byte, 2)
		io.ReadFull(c, got)
		synctest.Wait()
		for i := range 8 { // the last ones have their answers without a check
			guess(10 + i)
		}
		if _, err := io.ReadFull(c, got); string(got) != "\x01\x00" {
			t.Errorf("%q, %v", got, err)
		}
		<-time.After(time.Second / 2)
		go io.WriteString(c, socksRequest("a.example", 80)[3:])
		got = make([]byte, 2)
		if _, err := io.ReadFull(c, got); string(got) != "\x05\x02" {
			t.Errorf("%q, %v", got, err)
		}
		go io.Copy(io.Discard, c)
		wg.Wait()
	})
}
