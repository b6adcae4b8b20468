package builtin

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// A journal is a log that is read while it is written.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
	news chan struct{}
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	select {
	case j.news <- struct{}{}:
	default:
	}
	return j.text.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

// clientHello is a client's handshake (obfs4-spec section 4) that was made so many hours
// away from now. cert is that of a bridge line; another one is that of a stranger.
func clientHello(t testing.TB, cert string, hours int64) []byte {
	return paddedHello(t, cert, 100, hours)
}

// paddedHello is one with so many bytes of padding; 64 bytes are around them.
func paddedHello(t testing.TB, cert string, padding int, hours int64) []byte {
	raw, err := base64.RawStdEncoding.DecodeString(cert)
	if err != nil || len(raw) != 20+32 {
		t.Fatalf("cert: %d bytes, %v", len(raw), err)
	}
	key := append(bytes.Clone(raw[20:]), raw[:20]...) // B | NODEID
	mac := func(b ...[]byte) []byte {
		h := hmac.New(sha256.New, key)
		h.Write(bytes.Join(b, nil))
		return h.Sum(nil)[:16]
	}
	x := randomBytes(t, 32)
	hello := bytes.Join([][]byte{x, randomBytes(t, padding), mac(x)}, nil)
	hour := time.Now().Unix()/3600 + hours
	return append(hello, mac(hello, []byte(fmt.Sprint(hour)))...)
}

// A client that has the cert and another hour is told in the server's log from those
// that have no cert.
func TestClocksDiffer(t *testing.T) {
	for _, tt := range []struct {
		name  string
		hours int64
		known bool
		want  bool
	}{
		{"a day behind", -24, true, true},
		{"three hours ahead", 3, true, true},
		{"right", 0, true, false},
		{"a stranger", -24, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			log := &journal{news: make(chan struct{}, 1)}
			left := make(chan struct{}, 1)
			l := serverFor(t, nameObfs4, func(c *ServerConfig) {
				c.Logger = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
				c.Left = func() {
					select {
					case left <- struct{}{}:
					default:
					}
				}
			})
			cert, _ := l.Args().Get("cert")
			if !tt.known {
				cert = base64.RawStdEncoding.EncodeToString(randomBytes(t, 52))
			}
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.Write(clientHello(t, cert, tt.hours)); err != nil {
				t.Fatal(err)
			}
			switch {
			case tt.want:
				<-log.news
			case tt.known: // it is answered
				if _, err := c.Read(make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
			default:
				_ = c.(*net.TCPConn).CloseWrite()
				<-left
			}
			if got := strings.Contains(log.String(), "its clock"); got != tt.want {
				t.Errorf("a line about the clock: %v, want %v\n%s", got, tt.want, log)
			}
			if tt.want && (!strings.Contains(log.String(), "level=WARN") || !strings.Contains(log.String(), "date -u")) {
				t.Errorf("no warning with advice: %s", log)
			}
		})
	}
}
