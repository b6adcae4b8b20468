//go:build integration

package attack

import (
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"ptgate/integration/ports"
)

// login asks for the answer to a user and password, and tells how long that took.
func login(addr, password string) (right bool, took time.Duration, err error) {
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return false, 0, err
	}
	defer c.Close()
	c.(*net.TCPConn).SetLinger(0)
	c.SetDeadline(time.Now().Add(patience))
	begun := time.Now()
	io.WriteString(c, "\x05\x01\x02\x01\x04user"+string(rune(len(password)))+password)
	var answer [4]byte
	if _, err := io.ReadFull(c, answer[:]); err != nil {
		return false, 0, err
	}
	return answer[3] == 0, time.Since(begun), nil
}

// A program on the same machine guesses passwords, over many connections. Each wrong one
// takes it a second, and whoever knows the password does not wait for it.
func TestGuessPasswords(t *testing.T) {
	const hash = "$2a$10$wdBEOOjr1ZoWv33iX8Fc..Mn6eZvijE2MxxwqtnPD3pn9J7G9fG.C" // of the same
	for name, users := range map[string]string{"a password": "right", "a hash": hash} {
		t.Run(name, func(t *testing.T) {
			b := start(t, "users", fmt.Sprintf("[listen]\nmixed = \"127.0.0.1:0\"\nusers = { user = %q }\n[[route]]\nto = \"*\"\nvia = \"block\"\n", users))
			addr := b.listens(0)
			if right, _, err := login(addr, "right"); err != nil || !right {
				t.Fatalf("the right password: %v, %v", right, err)
			}
			base := b.usage()
			begun, number := time.Now(), 0
			var mu sync.Mutex
			var wg sync.WaitGroup
			for i := range 100 {
				wg.Go(func() {
					for j := range 3 {
						right, took, err := login(addr, fmt.Sprint("guess ", i, j))
						if err != nil || right || took < 900*time.Millisecond {
							t.Errorf("a wrong password: %v after %v, %v", right, took, err)
							return
						}
						mu.Lock()
						number++
						mu.Unlock()
					}
				})
			}
			var worst time.Duration
			for range 100 {
				right, took, err := login(addr, "right")
				if err != nil || !right {
					t.Errorf("the right password: %v, %v", right, err)
				}
				worst = max(worst, took)
			}
			wg.Wait()
			t.Logf("%d guesses in %v over 100 connections; the right password has its answer after %v at most; %v",
				number, time.Since(begun).Round(time.Millisecond), worst.Round(100*time.Microsecond), b.usage())
			b.grewLittle(base)
			b.recovers(base, back)
		})
	}
}

// A client asks the exit for private addresses, written as IPv6 addresses that embed them.
func TestEmbeddedAddresses(t *testing.T) {
	webtunnel := ports.Free(t)
	start(t, "server", fmt.Sprintf("[[serve]]\ntransport = \"webtunnel\"\nbind = %q\noptions = { url = \"https://www.example.com/x\" }\n", webtunnel))
	for _, form := range []string{"::ffff:%s", "::%s", "::ffff:0:%s", "64:ff9b::%s", "64:ff9b:1::%s", "2606:4700::5efe:%s", "2606:4700::200:5efe:%s"} {
		for _, private := range []string{"127.0.0.1", "10.0.0.1", "169.254.169.254"} {
			ip := net.ParseIP(fmt.Sprintf(form, private))
			c, err := net.Dial("tcp", webtunnel)
			if err != nil {
				t.Fatal(err)
			}
			c.SetDeadline(time.Now().Add(patience))
			io.WriteString(c, upgrade+socks+"\x05\x01\x00\x04"+string(ip.To16())+"\x00\x50")
			all, err := io.ReadAll(c)
			c.Close()
			_, answer, _ := strings.Cut(string(all), "\r\n\r\n")
			if len(answer) < 4 || answer[3] != 2 { // RFC 1928 section 6: not allowed
				t.Errorf("%v: %q, %v", ip, answer, err)
			}
		}
	}
}

// A client reaches webtunnel's port without the web server, and says in X-Forwarded-For
// that it is somebody who may come in.
func TestForgedForwardedFor(t *testing.T) {
	webtunnel := ports.Free(t)
	start(t, "server", fmt.Sprintf("[[serve]]\ntransport = \"webtunnel\"\nbind = %q\noptions = { url = \"https://www.example.com/x\" }\n"+
		"allow = \"198.51.100.0/24\"\ntrusted_proxies = %q\n", webtunnel, me))
	for _, tt := range []struct {
		from string
		want bool
	}{{me, true}, {attackerHost, false}} {
		for _, path := range []string{"/x", "/", "/y"} {
			c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(tt.from)}}).Dial("tcp", webtunnel)
			if err != nil {
				t.Fatal(err)
			}
			c.SetDeadline(time.Now().Add(patience))
			text := strings.Replace(upgrade, "/x", path, 1)
			io.WriteString(c, strings.Replace(text, "Host: h", "Host: h\r\nX-Forwarded-For: 198.51.100.7", 1)+"\x05\x01\x00")
			_, err = io.ReadFull(c, make([]byte, 12))
			c.Close()
			if (err == nil) != tt.want {
				t.Errorf("from %s for %s: %v", tt.from, path, err)
			}
		}
	}
}
