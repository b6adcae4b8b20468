//go:build integration

package attack

import (
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ptgate/integration/ports"
)

// How much a box may write while one kind of attack goes on. At debug level a message may
// have 2000 lines at once, of up to 350 bytes, and then ten a second.
var mostLog = map[string]struct{ once, second int64 }{
	"info":  {6 << 10, 1 << 10},
	"debug": {700 << 10, 8 << 10},
}

// often is how many times an attack is made that costs the attacker little. At debug level
// it is so often that most attacks would break the bound of a log that has none itself.
var often = map[string]int{"info": 600, "debug": 6000}

// again is how many times it is made if the message is that of an attack before.
const again = 600

// attackers work at the same time. A wrong password takes them a while.
const attackers = 8

// An attacker of the log does the same thing again and again.
type repeated struct {
	name  string
	times int
	once  func() error
}

// logs does what attackers do, and measures the log of the box.
func logs(t *testing.T, b *box, level string, attacks []repeated) {
	t.Helper()
	for _, a := range attacks {
		before, begun := b.Log.Written(), time.Now()
		var wg sync.WaitGroup
		for range attackers {
			wg.Go(func() {
				for range a.times / attackers {
					if err := a.once(); err != nil {
						t.Errorf("%s: %v", a.name, err)
						return
					}
				}
			})
		}
		wg.Wait()
		took := time.Since(begun)
		got := b.Log.Written() - before
		most := mostLog[level]
		t.Logf("%s, %s at %s: %d times in %v, %d bytes of log, %.0f a second", b.name, a.name, level,
			a.times, took.Round(time.Millisecond), got, float64(got)/took.Seconds())
		if got > most.once+int64(took.Seconds()*float64(most.second)) {
			t.Errorf("%s, %s at %s: %d bytes of log in %v", b.name, a.name, level, got, took)
		}
	}
}

// say connects, writes text and reads until the other side closes. From me, or from another
// address of this machine.
func say(addr, from, text string) func() error { return saying(addr, from, text, false) }

// begin is say for a text that is not complete, after which nothing follows.
func begin(addr, from, text string) func() error { return saying(addr, from, text, true) }

func saying(addr, from, text string, half bool) func() error {
	return func() error {
		d := net.Dialer{Timeout: patience}
		if from != me { // a chosen address takes one of few ports
			d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
		}
		c, err := d.Dial("tcp", addr)
		if err != nil {
			return err
		}
		defer c.Close()
		c.(*net.TCPConn).SetLinger(0) // it keeps no port
		c.SetDeadline(time.Now().Add(patience))
		io.WriteString(c, text)
		if half {
			c.(*net.TCPConn).CloseWrite()
		}
		io.Copy(io.Discard, c) // a reset is an answer, too
		return nil
	}
}

const (
	me       = "127.0.0.1"
	upgrade  = "GET /x HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
	socks    = "\x05\x01\x00"
	password = "\x05\x01\x02\x01\x04user\x05wrong"
)

var guesses atomic.Int64

// guess makes password another one, of the same length, each time.
func guess(once func(password string) func() error) func() error {
	return func() error { return once(fmt.Sprintf("%05d", guesses.Add(1)))() }
}

// TestLogOfGateway: programs that may not come in, or make no sense, can't fill the disk.
func TestLogOfGateway(t *testing.T) {
	for _, level := range []string{"info", "debug"} {
		t.Run(level, func(t *testing.T) {
			log := fmt.Sprintf("[log]\nlevel = %q\nprivate = false\n", level)
			far := "[[route]]\nto = \"none.example\"\nvia = \"block\"\n"
			front := "[listen]\nsocks5 = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\nmixed = \"127.0.0.1:0\"\nallow = [\"127.0.0.1\"]\n"
			b := start(t, "open", log+front+far)
			socksPort, httpPort, mixed := port(b, "socks5"), port(b, "http"), port(b, "mixed")
			blocked := "\x05\x01\x00\x05\x01\x00\x03\x0cnone.example\x00\x50"
			logs(t, b, level, []repeated{
				{"not in allow", often[level], say(mixed, attackerHost, socks)},
				{"nothing", often[level], begin(mixed, me, "")},
				{"HTTP to SOCKS", often[level], say(socksPort, me, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")},
				{"SOCKS to HTTP", again, say(httpPort, me, socks)},
				{"TLS", again, say(mixed, me, "\x16\x03\x01\x00\x05hello")},
				{"junk", again, begin(mixed, me, "\x00\xff\x00\xff")},
				{"half a request", often[level], begin(socksPort, me, socks+"\x05\x01")},
				{"a blocked name", often[level], say(mixed, me, blocked)},
				{"a blocked name by HTTP", again, say(httpPort, me, "CONNECT none.example:80 HTTP/1.1\r\nHost: none.example:80\r\n\r\n")},
				{"a long name", again, say(httpPort, me, "CONNECT "+strings.Repeat("a.", 120)+"example:80 HTTP/1.1\r\nHost: h\r\n\r\n")},
				{"bad HTTP", again, say(httpPort, me, "GET http://h/ HTTP/1.1\r\nHost: h\r\n"+strings.Repeat("x", 300)+"\r\n\r\n")},
			})
		})
	}
}

// TestLogOfPasswords: the same for wrong passwords.
func TestLogOfPasswords(t *testing.T) {
	for _, level := range []string{"info", "debug"} {
		t.Run(level, func(t *testing.T) {
			b := start(t, "users", fmt.Sprintf("[log]\nlevel = %q\nprivate = false\n[listen]\nmixed = \"127.0.0.1:0\"\n"+
				"users = { user = \"right\" }\n[[route]]\nto = \"*\"\nvia = \"block\"\n", level))
			mixed := port(b, "mixed")
			logs(t, b, level, []repeated{
				{"no password", often[level], say(mixed, me, socks)},
				{"wrong password", 16, guess(func(p string) func() error {
					return say(mixed, me, strings.Replace(password, "wrong", p, 1))
				})},
				{"wrong password by HTTP", 16, guess(func(p string) func() error {
					basic := base64.StdEncoding.EncodeToString([]byte("user:" + p))
					return say(mixed, me, "CONNECT h:80 HTTP/1.1\r\nHost: h\r\nProxy-Authorization: Basic "+basic+"\r\nConnection: close\r\n\r\n")
				})},
			})
		})
	}
}

// TestLogOfServer: the same at the far end, for strangers and for clients that have the
// bridge line.
func TestLogOfServer(t *testing.T) {
	for _, level := range []string{"info", "debug"} {
		t.Run(level, func(t *testing.T) {
			webtunnel := ports.Free(t)
			b, to := startServer(t, fmt.Sprintf("users = { user = \"right\" }\n[log]\nlevel = %q\nprivate = false\n[[serve]]\ntransport = \"webtunnel\"\n"+
				"bind = %q\noptions = { url = \"https://www.example.com/x\" }\ntrusted_hops = 0\ndeny = \"127.0.0.3\"\n"+
				"[limits]\ndrain = \"1s\"\nshared = [\"127.0.0.1\", %q]\n", level, webtunnel, attackerHost))
			obfs4 := func(text string) func() error {
				return func() error {
					c, err := dial(t, to, attackerHost)
					if err != nil {
						return err
					}
					defer c.Close()
					c.SetDeadline(time.Now().Add(patience))
					io.WriteString(c, text)
					io.ReadFull(c, make([]byte, 1))
					return nil
				}
			}
			session := func() error {
				c, err := dial(t, to, attackerHost)
				if err != nil {
					return err
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(patience))
				if _, err := c.Write(newHello().append(nil)); err != nil {
					return err
				}
				_, err = readHello(c)
				return err
			}
			logs(t, b, level, []repeated{
				{"webtunnel junk", often[level], begin(webtunnel, me, "junk\r\n\r\n")},
				{"a web page", again, say(webtunnel, me, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")},
				{"kept out", often[level], say(webtunnel, "127.0.0.3", upgrade)},
				{"SOCKS with a wrong password", 16, guess(func(p string) func() error {
					return say(webtunnel, me, upgrade+strings.Replace(password, "wrong", p, 1))
				})},
				{"another protocol", often[level], say(webtunnel, me, upgrade+"GET / HTTP/1.1\r\n\r\n")},
				{"a bad hello", often[level], begin(webtunnel, me, upgrade+string(newHello().append(nil)[:30]))},
				{"another protocol in obfs4", 300, obfs4("GET / HTTP/1.1\r\nHost: h\r\n\r\n")},
				{"a session", 300, session},
			})
			logs(t, b, level, streams(t, to))
		})
	}
}

// streams are attacks by 100 frames or streams of a session.
func streams(t *testing.T, to bridge) []repeated {
	const each = 100
	over := func(make func(id uint64) []byte) func() error {
		return func() error {
			c := attack(t, to, newHello())
			defer c.Close()
			c.SetDeadline(time.Now().Add(patience))
			var out []byte
			for id := range uint64(each) {
				out = append(out, make(id)...)
			}
			if _, err := c.Write(frame(out, fPing, each)); err != nil {
				return err
			}
			for {
				m, err := c.in.next()
				if err != nil {
					return nil // a server may end such a session
				}
				if m.kind == fPong && m.numbers[0] == each {
					return nil
				}
			}
		}
	}
	stream := func(text string) func() error {
		return over(func(id uint64) []byte { return data(nil, id, 0, []byte(text)) })
	}
	return []repeated{
		{"pings", 40, over(func(id uint64) []byte { return frame(nil, fPing, id) })},
		{"streams with a wrong password", 8, stream(password)},
		{"streams without a password", 40, stream(socks)},
		{"streams that are junk", 40, stream("junk, junk")},
		{"half requests", 40, stream(password[:5])},
	}
}

// TestLogOfFarEnd: a far end that takes each request, and breaks each promise.
func TestLogOfFarEnd(t *testing.T) {
	for _, level := range []string{"info", "debug"} {
		t.Run(level, func(t *testing.T) {
			far := newFarEnd(t, func(c *farCarrier) {
				for {
					m, err := c.in.next()
					if err != nil {
						return
					}
					switch {
					case m.kind == fPing:
						c.Write(frame(nil, fPong, m.numbers[0]))
					case m.kind == fData && m.numbers[1] == 0:
						c.Write(frame(data(nil, m.numbers[0], 0, granted), fReset, m.numbers[0], uint64(len(granted))))
					}
				}
			})
			b := startGateway(t, far.bridge, fmt.Sprintf("[log]\nlevel = %q\nprivate = false\n[limits]\ndrain = \"1s\"\n", level))
			proxy := b.listens(0)
			logs(t, b, level, []repeated{{"broken promises", 600, func() error {
				c, err := through(proxy, 80, patience)
				if err != nil {
					return nil // it may be refused
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(patience))
				io.Copy(io.Discard, c)
				return nil
			}}})
		})
	}
}

// port is where a box takes what a front takes.
func port(b *box, front string) string {
	b.t.Helper()
	return b.Await(`msg=listening front=` + front + ` address=(\S+)`)[1]
}
